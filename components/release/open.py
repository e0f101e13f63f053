"""Open a release by its reference (champion, candidate/3, ...), with the parts that it pins, each verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components import settings
from components.artifacts import Artifact, EncoderArtifact, IndexArtifact, verify, verify_noted
from components.errors import ArtifactError, ModelError, PromotionError, SpaceMismatch
from components.index.index_keys import is_exact
from components.release.champion import (
    CHAMPION,
    PREVIOUS,
    Record,
    candidate_model,
    digest_in,
    expected_aliases,
    record_of,
    release_model,
    servable_version,
)
from components.release.completeness import VALIDATION_KIND
from components.release.manifest import FLOWS_SINCE, LineageNode, Pin, ReleaseManifest, load_release_of
from components.templates import shortened
from components.text import whole_number
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store

TRACED = "a release (champion, previous, candidate/N, release/N), model/NAME/N, index/N, answer:ID, or the id of a document (document:ID)"
FORMS = "champion, previous, candidate/N or release/N (N a number or 'latest')"


def resolve(name: str, ref: str) -> tuple[str, int]:
    """(registered model, version) of `ref`: champion, previous, candidate/N or release/N, N a number or 'latest'.

    `champion` and `previous` follow the promotion records, not an alias that was moved by hand. Raises PromotionError for a
    reference that is malformed or names nothing; the message lists what there is.
    """
    if ref == CHAMPION:
        return release_model(name), servable_version(name)
    if ref == PREVIOUS:
        return release_model(name), _previous(name)
    kind, _, number = ref.partition("/")
    models = {"candidate": candidate_model(name), "release": release_model(name)}
    if kind not in models or not (number == "latest" or (number.isascii() and number.isdigit())):
        raise PromotionError(f"'{ref}' names no release. Expected {FORMS}.")
    return models[kind], _existing(name, kind, models[kind], number)


def candidate_number(ref: str | int, there: Sequence[int]) -> int | None:
    """N of `candidate/N`, a bare number or, of those that are `there`, `candidate/latest`; None for anything else."""
    if ref in ("latest", "candidate/latest"):
        return max(there, default=None)
    kind, _, number = str(ref).rpartition("/")
    return whole_number(number) if kind in ("", "candidate") else None


def describe_versions(name: str, kind: str, numbers: list[int]) -> str:
    """A sentence about the versions there are, for error messages."""
    if not numbers:
        return (
            f"'{name}' has no {kind}s yet; 'scalingnote retrain' makes a candidate, an approval makes a release. If there were some, "
            f"the model '{name}-{kind}' was renamed or deleted in MLflow: give it its name again, or restore it."
        )
    shown = ", ".join(f"{kind}/{number}" for number in sorted(numbers)[-10:])
    return f"The newest {kind}s of '{name}': {shown}."


def _existing(name: str, kind: str, model: str, number: str) -> int:
    numbers = [info.version for info in registry.versions(model)]
    if number == "latest" and numbers:
        return max(numbers)
    if (found := whole_number(number)) in numbers:
        return int(found or 0)
    raise PromotionError(f"{kind}/{shortened(number, 40)} does not exist. {describe_versions(name, kind, numbers)}")


def _previous(name: str) -> int:
    previous = expected_aliases(record_store.read_records(name)).previous
    if previous is None:
        raise PromotionError(f"'{name}' has no previous release: the champion is the first one, or nothing was promoted yet.")
    return previous


# --- The parts that a release pins, fetched from the registry and verified: what a refresh starts from, whatever the working files hold.


UNKNOWN_FLOW = "unknown"


@dataclass(frozen=True)
class PinnedRelease:
    """A candidate or release with the artifacts it pins, every file verified; `model` and `version` are the registered ones."""

    model: str
    version: int
    artifact: Artifact
    manifest: ReleaseManifest
    query_tower: EncoderArtifact
    document_tower: EncoderArtifact
    query_encoder: EncoderArtifact
    index: IndexArtifact

    @property
    def title(self) -> str:
        """How people name it: release/2 or candidate/3."""
        return f"{self.model.rpartition('-')[2]}/{self.version}"

    def ancestry(self, *digests: str) -> list[LineageNode]:
        """The part of the release's lineage that `digests` come from (default: its pins), parents first, each with the flow that made it.

        The reports of the contracts on its data stand at the end.
        """
        heads = digests or [pin.digest for _, pin in self.manifest.pins.items()]
        found = ancestors(self.manifest.lineage, heads)
        made = {node.digest for node in found}
        found += [node for node in self.manifest.lineage if node.kind == VALIDATION_KIND and made.issuperset(node.parents.values())]
        return [node if node.flow_run_id else node.model_copy(update={"flow_run_id": self._own_flow}) for node in found]

    def flows(self) -> dict[str, dict[str, Any]]:
        """Run of a flow -> code and machine it ran on, for all flows that made what `ancestry` gives, as far as they are known."""
        own = {} if self._own_flow == UNKNOWN_FLOW else {self._own_flow: self.manifest.provenance}
        return {**self.manifest.earlier_flows, **own}

    @property
    def _own_flow(self) -> str:
        """A refresh of before schema version 4 does not say what its own flow made and what an earlier one."""
        known = self.manifest.release_type == "full" or self.manifest.schema_version >= FLOWS_SINCE
        return (self.manifest.flow_run_id if known else None) or UNKNOWN_FLOW


def open_pinned(name: str, ref: str) -> PinnedRelease:
    """Resolve `ref` (champion, previous, candidate/N, release/N) of the retriever `name` and verify all that it pins.

    Raises PromotionError for a reference that names nothing, ArtifactError for a part that is missing from the registry or was changed,
    SpaceMismatch for one of another vector space.
    """
    model, version = resolve(name, ref)
    artifact = verify(registry.artifact_folder(model, version), recorded_digest(name, model, version))
    manifest = load_release_of(name, artifact.path)
    parts = {role: _fetch(role, pin, manifest, f"{model}/{version}") for role, pin in manifest.pins.items()}
    encoders = {role: EncoderArtifact(**part.model_dump()) for role, part in parts.items() if role != "index"}
    return PinnedRelease(model, version, artifact, manifest, index=IndexArtifact(**parts["index"].model_dump()), **encoders)


def load_manifest(name: str, ref: str) -> ReleaseManifest:
    """The manifest of `ref` alone, nothing verified: enough to check a command's settings before anything starts."""
    return load_release_of(name, registry.artifact_folder(*resolve(name, ref)))


def recorded_digest(name: str, model: str, version: int, records: Sequence[Record] | None = None) -> str | None:
    """The digest of a release in its promotion record (of `records` where they were read before), else the one it was registered with."""
    record = None
    if model == release_model(name):
        record = record_of(record_store.read_records(name) if records is None else records, version)
    if record is not None:
        return digest_in(record)
    return next((info.tags.get(labels.DIGEST) for info in registry.versions(model) if info.version == version), None)


def ancestors(lineage: Iterable[LineageNode], digests: Iterable[str]) -> list[LineageNode]:
    """The nodes of `digests` and of all their parents, in the order of the lineage."""
    nodes = {node.digest: node for node in lineage}
    found: set[str] = set()
    waiting = list(digests)
    while waiting:
        digest = waiting.pop()
        if digest in nodes and digest not in found:
            found.add(digest)
            waiting += nodes[digest].parents.values()
    return [node for digest, node in nodes.items() if digest in found]


def _fetch(role: str, pin: Pin, manifest: ReleaseManifest, release: str) -> Artifact:
    words = role.replace("_", " ")
    try:
        folder = registry.artifact_folder(pin.model, pin.version)
        artifact = verify_noted(folder, pin.digest, settings.check_note(folder), whole=True)  # and the refresh need not hash again
    except (ModelError, ArtifactError) as error:
        raise ArtifactError(
            f"{release} cannot be used: its {words}, {pin.model}/{pin.version}, is not in the registry as it was released. {error} "
            "Name another release, or build a new one with 'scalingnote retrain'."
        ) from error
    if artifact.space_id != manifest.space_id:
        raise SpaceMismatch(
            f"The {words} {pin.model}/{pin.version} belongs to the vector space {artifact.space_id[:12]}, {release} to "
            f"{manifest.space_id[:12]}. Run 'scalingnote verify {release.rpartition('-')[2]}', and retrain."
        )
    return artifact


# --- The index of a release: its verified files, and of the champion whether it still has the size that it was tuned for.


def verified_index(name: str, ref: str) -> tuple[str, IndexArtifact]:
    """`model/version` that `ref` names, and its index with every file hashed; encoders are not fetched.

    Raises PromotionError for an unknown `ref`, ArtifactError when a file of release or index is missing or changed.
    """
    model, version = resolve(name, ref)
    folder = verify(registry.artifact_folder(model, version), recorded_digest(name, model, version)).path
    pin = load_release_of(name, folder).pins.index
    index = verify(registry.artifact_folder(pin.model, pin.version), pin.digest)
    return f"{model}/{version}", IndexArtifact(**index.model_dump())


def champion_index(name: str) -> dict[str, Any] | None:
    """`index_key`, `documents`, `tuned_documents` and `guard` of the champion's index; None when nothing was promoted yet.

    `tuned_documents` is None for exact search, which has nothing to tune, and for an index from before it was recorded; `guard` is what
    the last refresh found. Reads the release's manifest alone; raises ArtifactError when that is gone or broken.
    """
    try:
        manifest = load_manifest(name, CHAMPION)
    except PromotionError:
        return None
    for node in manifest.lineage:
        if node.digest == manifest.pins.index.digest:
            key = str(node.attributes.get("index_key"))
            tuned = None if is_exact(key) else node.attributes.get("tuned_documents")
            found = {"index_key": key, "documents": node.counts.get("documents"), "tuned_documents": tuned}
            return {**found, "guard": node.attributes.get("guard")}
    return None
