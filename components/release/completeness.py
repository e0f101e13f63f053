"""Is everything there that leads back from a release: lineage without gaps, one vector space, base models by digest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from components.gates.config import PolicyConfig
from components.gates.decision import Findings
from components.gates.policy import foreign_policy
from components.release.manifest import BaseModelPin, ManifestDraft, ReleaseManifest
from components.towers.contract import COMPANION, load_contract
from components.tracking import registry
from components.tracking.server.permissions import sources

if TYPE_CHECKING:
    from components.release.manifest import DatasetPin, LineageNode


ENCODERS = ("query_tower", "document_tower", "query_encoder")
OTHER_MODELS = {"generator": "written", "judge": "judged"}  # attribute that names a model no encoder is made of, and what it did
BESIDE = "_companion"  # ends the role of a base model that a tower's companion started from


def base_models_of(folders: Mapping[str, Path]) -> dict[str, BaseModelPin]:
    """Role -> base model, for the encoders among `folders` (role -> folder), and role with `BESIDE` behind it for their companions.

    Raises ArtifactError for an unreadable contract.
    """
    encoders = {role: folder for role, folder in folders.items() if role in ENCODERS}
    beside = {f"{role}{BESIDE}": folder / COMPANION for role, folder in encoders.items() if load_contract(folder)[0].companion is not None}
    contracts = {role: load_contract(folder)[0] for role, folder in {**encoders, **beside}.items()}
    return {role: BaseModelPin(name=c.base_model, digest=c.base_digest, revision=c.base_revision) for role, c in contracts.items()}


def base_models_named_by(manifest: ReleaseManifest) -> dict[str, BaseModelPin]:
    """The base models that the manifest names. An older manifest names none; then those that the pinned encoders name."""
    if manifest.base_models:
        return manifest.base_models
    pins = {role: pin for role, pin in manifest.pins.items() if role in ENCODERS}
    return base_models_of({role: registry.artifact_folder(pin.model, pin.version) for role, pin in pins.items()})


def other_models(entry: LineageNode) -> Iterator[tuple[str, BaseModelPin]]:
    """What part a model had that no encoder is made of, as `judge`, and the model; the digest is `unknown` where the lineage has none."""
    about = entry.attributes
    for what in OTHER_MODELS:
        if name := about.get(what):
            commit, digest = about.get(f"{what}_revision"), str(about.get(f"{what}_digest") or "unknown")
            yield what, BaseModelPin(name=str(name), digest=digest, revision=str(commit) if commit else None)


# --- Whether encoders and index belong to one vector space, by what each of them states and by the contract that the space is named
# --- after.


INDEX, DOCUMENT_TOWER = "index", "document_tower"


def space_mismatches(parts: Mapping[str, Artifact]) -> tuple[str, ...]:
    """One sentence for every part (role -> artifact, `index` among them) that belongs to another space than the index does.

    Raises ArtifactError for an artifact that names no space, or an encoder without a contract.
    """
    expected = parts[INDEX].space_id
    return tuple(
        f"The {role.replace('_', ' ')} {says} the space {space[:12]}, the index {expected[:12]}."
        for role, artifact in parts.items()
        for says, space in _spaces(role, artifact)
        if space != expected
    )


def _spaces(role: str, artifact: Artifact) -> Iterator[tuple[str, str]]:
    from components.towers.contract import load_contract, space_id_of

    yield "belongs to", artifact.space_id
    if role == INDEX:
        return
    contract, stated = load_contract(artifact.path)
    yield "has a contract for", stated
    if role == DOCUMENT_TOWER:  # the space is named after this contract, so it has to give the name
        yield "has a contract that gives", space_id_of(contract)


# --- What is missing on the way from a release back to its data, code, configuration and base models; nothing missing is a gate.


DATA_KIND = "dataset"
VALIDATION_KIND = "validation"
LEADS_TO = {"index": ("document_tower",), "query_encoder": ("query_tower",), "evaluation": ("query_encoder", "index")}
MADE_FROM_DATA = ("vectors", "encoder", "evaluation")  # kinds whose step reads the tables themselves


def missing_lineage(draft: ManifestDraft) -> tuple[str, ...]:
    """What is missing on the way back from a release, or from what is to be one: sentences, each once; empty when every parent is known."""
    nodes = {node.digest: node for node in draft.lineage}
    heads = {
        **{role: pin.digest for role, pin in draft.pins.items()},
        "evaluation": draft.evaluation.digest,
        "data set": draft.dataset.digest,
    }
    found = [gap for role, digest in heads.items() for gap in _ancestry_gaps(_words(role), digest, nodes)]
    found += _edge_gaps(heads, nodes)
    found += [*_data_gaps(draft.dataset), *_code_gaps(draft.provenance), *_run_gaps(draft), *_base_model_gaps(draft)]
    found += _earlier_gaps(draft)
    return tuple(dict.fromkeys(found))


def _ancestry_gaps(role: str, digest: str, nodes: Mapping[str, LineageNode]) -> Iterator[str]:
    """Of one head: it and all that it came from have to be described, and data among them."""
    if digest not in nodes:
        yield f"The {role} ({digest[:12]}) is not described in the lineage."
        return
    ancestry = _ancestry(digest, nodes)
    if not any(node.kind == DATA_KIND for node in ancestry):
        yield f"The {role} ({digest[:12]}) cannot be followed to a data set."
    for node in ancestry:
        yield from (
            f"{_named(node)} was made from the {_words(parent)} {made_from[:12]}, which is not described in the lineage."
            for parent, made_from in node.parents.items()
            if made_from not in nodes
        )
        yield from _node_gaps(node, nodes)


def _edge_gaps(heads: Mapping[str, str], nodes: Mapping[str, LineageNode]) -> Iterator[str]:
    """Each part has to lead to the others that it is known to be made from, not to any data alone."""
    for role, parents in LEADS_TO.items():
        ancestry = {node.digest for node in _ancestry(heads.get(role, ""), nodes)}
        for parent in parents:
            if ancestry and heads.get(parent) not in {None, *ancestry}:
                yield f"The {_words(role)} cannot be followed to the {_words(parent)} that the release pins ({heads[parent][:12]})."


def _ancestry(digest: str, nodes: Mapping[str, LineageNode]) -> list[LineageNode]:
    """The node and all nodes that it came from, each once."""
    found: dict[str, LineageNode] = {}
    waiting = [digest]
    while waiting:
        place = waiting.pop()
        if place in nodes and place not in found:
            found[place] = nodes[place]
            waiting += nodes[place].parents.values()
    return list(found.values())


def _node_gaps(node: LineageNode, nodes: Mapping[str, LineageNode]) -> Iterator[str]:
    data = (nodes[parent].kind for parent in node.parents.values() if parent in nodes)
    if node.kind in MADE_FROM_DATA and DATA_KIND not in data:
        yield f"{_named(node)} names no data set that it was made from."
    if node.run_id is None:
        yield f"{_named(node)} names no run that made it."
    for what, done in OTHER_MODELS.items():
        if node.attributes.get(what) and not node.attributes.get(f"{what}_digest"):
            yield f"{_named(node)} was {done} by the model '{node.attributes[what]}', whose digest is not known."


def _data_gaps(dataset: DatasetPin) -> Iterator[str]:
    if not dataset.source_digest:
        yield f"The source of the data set '{dataset.name}' has no digest."
    if not dataset.contracts:
        yield f"The data set '{dataset.name}' was held against no data contract."
    yield from (f"The data contract '{name}' has no version." for name, version in dataset.contracts.items() if not version)


def _code_gaps(provenance: Mapping[str, Any]) -> Iterator[str]:
    revision = provenance.get("code_revision")
    if revision in (None, "", "unknown") and not provenance.get("code_digest"):
        yield "Neither the revision nor the digest of the code is known."
    if problem := provenance.get("code_problem"):
        yield f"The revision of the code is not known: {problem}"
    if provenance.get("dirty") and not provenance.get("patch_digest"):
        yield "The code had local changes whose digest is not known."
    if not provenance.get("lock_digest"):
        yield "The lock file of the installed packages has no digest."
    if not provenance.get("platform"):
        yield "The machine is not described."


def _earlier_gaps(draft: ManifestDraft) -> Iterator[str]:
    """Of what earlier flows made: their code and machine have to be known as well, and the contracts of their data."""
    made = {node.flow_run_id: node for node in draft.lineage if node.flow_run_id}
    for flow, node in made.items():
        if flow not in draft.earlier_flows:
            yield f"{_named(node)} was made by an earlier flow ({flow[:12]}), whose code and machine are not known."
            continue
        yield from (f"Of the earlier flow {flow[:12]}: {gap}" for gap in _code_gaps(draft.earlier_flows[flow]))
    held = {digest for node in draft.lineage if node.kind == VALIDATION_KIND for digest in node.parents.values()}
    for node in draft.lineage:
        if node.kind == DATA_KIND and node.digest not in {*held, draft.dataset.digest}:
            yield f"{_named(node)} was held against no data contract."


def _run_gaps(draft: ManifestDraft) -> Iterator[str]:
    if not draft.flow_run_id:
        yield "The run of the flow is not named."
    if not draft.config:
        yield "The configuration is not kept."


def _base_model_gaps(draft: ManifestDraft) -> Iterator[str]:
    for role in (*ENCODERS, *(role for role in draft.base_models if role.endswith(BESIDE))):
        base = draft.base_models.get(role)
        if base is None or not base.digest:
            yield f"The base model of the {_words(role)} has no digest."


def _words(role: str) -> str:
    return role.replace("_", " ")


def _named(node: LineageNode) -> str:
    return f"The {node.kind} of {node.name} ({node.digest[:12]})"


# --- Finding out what the gates ask besides measurements: broken contracts, gaps in the lineage, parts of different spaces.


def collect_findings(
    validation: Artifact,
    draft: ManifestDraft,
    parts: Mapping[str, Artifact],
    policy: PolicyConfig,
    uncompared: str = "",
    removed: tuple[int, int] | None = None,
) -> Findings:
    """The facts about a candidate before its manifest is written; `parts` maps the role of encoders and index to their artifact.

    `removed`: documents that an index refresh removed, and how many there were.
    """
    from components.data.validation import load_report

    report, installed = load_report(validation), sources()
    return Findings(
        contract_errors=len(report.errors),
        contract_warnings=len(report.warnings),
        lineage_gaps=missing_lineage(draft),
        space_mismatches=space_mismatches(parts),
        uncompared=uncompared,
        removed_documents=removed[0] if removed else None,
        documents_before=removed[1] if removed else None,
        foreign_policy=(foreign_policy(policy, sources=installed) or "") if installed else None,
    )
