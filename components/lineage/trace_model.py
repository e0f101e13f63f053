"""The tree of one registered model or index: the release that was built with it tells where it came from, and who uses it."""

from __future__ import annotations

from components.errors import ModelError
from components.lineage.release_graph import Ancestry, Opened, open_info, surroundings
from components.lineage.trace_node import Node
from components.lineage.trace_people import Witness, approvals, call_witness, copies, promotions
from components.promotion.approval import find_version
from components.release.champion import candidate_model
from components.release.manifest import PinRole
from components.tracking import labels, registry
from components.tracking.registry import VersionInfo

ROLES: tuple[PinRole, ...] = ("query_tower", "document_tower", "query_encoder", "index")


def role_of(model: str) -> tuple[str, PinRole] | None:
    """Retriever and role of a registered model; None for a candidate, a release or any other."""
    for role in ROLES:
        name = model.removesuffix(f"-{role.replace('_', '-')}")
        if name and name != model:
            return name, role
    return None


def model_node(model: str, version: int) -> tuple[Node, Opened | None]:
    """The tree of a registered version, and the oldest candidate that pins it, None when none does.

    Raises ModelError when there is no such version or it is no part of a retriever, ArtifactError for a candidate with changed files.
    """
    part, info = role_of(model), find_version(model, version)
    if part is None or info is None:
        raise ModelError(_unknown(model, version, info))
    name, role = part
    users = _pinned_in(name, role, info)
    if not users:
        return Node(f"{model}/{version}", _tags(info), (Node("used in", {"note": "no candidate pins it"}),), role), None
    built = users[0]
    node, witness = Ancestry(built).pin(role), call_witness(name)
    by = witness.registered(model, version)
    title, details = f"{model}/{version}", {**node.details, "registered_by_run": info.run_id, "registered_by": by}
    used = Node("used in", {}, tuple(_use(user, witness) for user in users), "release")
    return Node(title, details, (*node.children, *surroundings(built), used), node.kind, node.key), built


def _pinned_in(name: str, role: str, info: VersionInfo) -> list[Opened]:
    """Candidates that pin this version, oldest first. Tags only say where to look: the manifests, which are verified, decide."""
    digest = info.tags.get(labels.DIGEST)
    tagged = [found for found in registry.versions(candidate_model(name)) if found.tags.get(labels.PARENT + role, digest) == digest]
    opened = [open_info(name, found) for found in tagged]
    return [candidate for candidate in opened if (info.name, info.version) == _pin(candidate, role)]


def _pin(candidate: Opened, role: str) -> tuple[str, int]:
    pin = getattr(candidate.manifest.pins, role)
    return pin.model, pin.version


def _use(candidate: Opened, witness: Witness) -> Node:
    """A candidate, its approvals, and the records of the releases that it became."""
    records = [promotions(candidate.name, info, witness) for info in copies(candidate.info, witness)]
    details = {"digest": candidate.artifact.digest, "verdict": candidate.manifest.decision.verdict}
    return Node(
        candidate.title, details, (approvals(candidate.name, candidate.info, witness), *records), "release", candidate.artifact.digest
    )


def _tags(info: VersionInfo) -> dict[str, str]:
    """What the registry says where no manifest does; anybody with the right to could have written it."""
    known = {key.removeprefix(labels.PREFIX): value for key, value in info.tags.items() if key.startswith(labels.PREFIX)}
    return {**known, "note": "from tags, which are no proof: no release manifest describes it"}


def _unknown(model: str, version: int, info: VersionInfo | None) -> str:
    if info is not None:
        return f"{model} is no tower, encoder or index of a retriever. Trace a release or candidate by its own name."
    numbers = [str(found.version) for found in registry.versions(model)]
    there = f"its versions: {', '.join(numbers[-10:])}" if numbers else "there is no such model; `scalingnote status` names a retriever's"
    return f"{model}/{version} does not exist; {there}."
