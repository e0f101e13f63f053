"""The parts that a release pins, fetched from the registry and verified: what a refresh starts from, whatever the working files hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from components import settings
from components.artifacts import Artifact, EncoderArtifact, IndexArtifact, verify, verify_noted
from components.errors import ArtifactError, ModelError, SpaceMismatch
from components.release.baseline import record_of
from components.release.champion import Record, release_model
from components.release.completeness import VALIDATION_KIND
from components.release.manifest import FLOWS_SINCE, LineageNode, Pin, ReleaseManifest, load_release
from components.release.references import resolve
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store

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
    manifest = load_release(artifact.path)
    parts = {role: _fetch(role, pin, manifest, f"{model}/{version}") for role, pin in manifest.pins.items()}
    encoders = {role: EncoderArtifact(**part.model_dump()) for role, part in parts.items() if role != "index"}
    return PinnedRelease(model, version, artifact, manifest, index=IndexArtifact(**parts["index"].model_dump()), **encoders)


def load_manifest(name: str, ref: str) -> ReleaseManifest:
    """The manifest of `ref` alone, nothing verified: enough to check a command's settings before anything starts."""
    return load_release(registry.artifact_folder(*resolve(name, ref)))


def recorded_digest(name: str, model: str, version: int, records: Sequence[Record] | None = None) -> str | None:
    """The digest of a release in its promotion record (of `records` where they were read before), else the one it was registered with."""
    record = None
    if model == release_model(name):
        record = record_of(record_store.read_records(name) if records is None else records, version)
    if record is not None:
        return str(record["manifest_digest"])
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
            f"{release} cannot be refreshed: its {words}, {pin.model}/{pin.version}, is not in the registry as it was released. {error} "
            "Refresh another release (--release), or build a new one with 'scalingnote retrain'."
        ) from error
    if artifact.space_id != manifest.space_id:
        raise SpaceMismatch(
            f"The {words} {pin.model}/{pin.version} belongs to the vector space {artifact.space_id[:12]}, {release} to "
            f"{manifest.space_id[:12]}. Run 'scalingnote verify {release.rpartition('-')[2]}', and retrain."
        )
    return artifact
