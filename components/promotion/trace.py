"""The way back from a release, or from one document it serves, to data, code, configuration and approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from components.artifacts import Artifact, digest_of, verify
from components.errors import DataError
from components.index.rows import read_rows, read_table
from components.promotion.approval import claimed_approval, find_version
from components.promotion.references import resolve
from components.promotion.release import LineageNode, ReleaseManifest, load_release
from components.promotion.standing import candidate_model, release_model
from components.tracking import labels, registry
from components.tracking import records as record_store

SHARD_FILE = "vectors-{:05d}.parquet"
PART_FILE = "part-{:05d}.vectors.npy"


@dataclass(frozen=True)
class Node:
    """One line of a trace, what is known about it, and what it came from."""

    title: str
    details: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The node and all below it as plain values."""
        return {"title": self.title, "details": dict(self.details), "children": [child.to_dict() for child in self.children]}


@dataclass(frozen=True)
class Trace:
    """A release traced back; `version` is that of the registered `model` that `ref` named."""

    name: str
    ref: str
    model: str
    version: int
    root: Node

    def to_json(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes."""
        return {"retriever": self.name, "ref": self.ref, "model": self.model, "version": self.version, "trace": self.root.to_dict()}

    def text(self) -> str:
        """The trace as an indented tree."""
        return "\n".join(_lines(self.root))


def trace(name: str, ref: str) -> Trace:
    """Trace a release or candidate back; raises PromotionError for an unknown `ref`, ArtifactError for changed files."""
    model, version = resolve(name, ref)
    artifact, manifest = _open(model, version)
    return Trace(name, ref, model, version, _root(name, artifact, manifest, (model, version)))


def trace_document(name: str, ref: str, doc_id: str) -> Trace:
    """Trace one document of a release: row and shard of its vector, content hash, then the release itself.

    Raises DataError for an id that is not in the index, else as `trace`.
    """
    model, version = resolve(name, ref)
    artifact, manifest = _open(model, version)
    pin = manifest.pins.index
    folder = verify(registry.artifact_folder(pin.model, pin.version), pin.digest).path
    root = Node(f"document {doc_id}", find_document(folder, doc_id), (_root(name, artifact, manifest, (model, version)),))
    return Trace(name, ref, model, version, root)


def find_document(index_folder: Path, doc_id: str) -> dict[str, Any]:
    """Row, file of the stored vector and content hash of a document; raises DataError when the index does not hold it."""
    rows = read_rows(index_folder)
    row = rows.row_of(doc_id)
    if row is None:
        raise DataError(f"The index of this release has no document '{doc_id}'; it holds {rows.live:,} others. Check the id.")
    found = read_table(index_folder, ("content_hash", "part", "shard")).slice(row, 1).to_pylist()[0]
    # Indexes of the first layout keep no vectors of their own, but name the shard of the encoding.
    where = {"shard": SHARD_FILE.format(found["shard"])} if "shard" in found else {"part": PART_FILE.format(found["part"])}
    return {"row": row, **where, "content_hash": found["content_hash"]}


def _open(model: str, version: int) -> tuple[Artifact, ReleaseManifest]:
    info = find_version(model, version)
    expected = info.tags.get(labels.DIGEST) if info is not None else None
    artifact = verify(registry.artifact_folder(model, version), expected)
    return artifact, load_release(artifact.path)


def _root(name: str, artifact: Artifact, manifest: ReleaseManifest, where: tuple[str, int]) -> Node:
    seen: set[str] = set()
    by_digest = {node.digest: node for node in manifest.lineage}
    pins = [_pin(role, manifest, by_digest, seen) for role, _ in manifest.pins.items()]
    evaluation = _ancestry("evaluation", manifest.evaluation.digest, by_digest, seen)
    details = {
        "digest": artifact.digest,
        "release_type": manifest.release_type,
        "space_id": manifest.space_id,
        "verdict": manifest.decision.verdict,
        "first_release": manifest.decision.first_release,
        "flow_run_id": manifest.flow_run_id,
    }
    origins = (*pins, evaluation, _data(manifest, by_digest), _code(manifest), _config(manifest))
    return Node(f"{where[0]}/{where[1]}", details, (*origins, _approvals(name, where), _records(name, where)))


def _pin(role: str, manifest: ReleaseManifest, by_digest: Mapping[str, LineageNode], seen: set[str]) -> Node:
    pin = getattr(manifest.pins, role)
    node = _ancestry(role.replace("_", " "), pin.digest, by_digest, seen)
    return Node(f"{role.replace('_', ' ')}: {pin.model}/{pin.version}", node.details, node.children)


def _ancestry(role: str, digest: str, by_digest: Mapping[str, LineageNode], seen: set[str]) -> Node:
    """The artifact and its parents; one that was shown before is only named."""
    entry = by_digest.get(digest)
    if entry is None:
        return Node(role, {"digest": digest, "note": "not described in the release's lineage"})
    if digest in seen:
        return Node(f"{role}: {entry.name}", {"digest": digest, "note": "shown above"})
    seen.add(digest)
    details = {"digest": digest, "kind": entry.kind, "run_id": entry.run_id, **entry.counts, **entry.attributes}
    if entry.config:
        details["config_digest"] = digest_of(entry.config)
    parents = tuple(_ancestry(parent, found, by_digest, seen) for parent, found in sorted(entry.parents.items()))
    return Node(f"{role}: {entry.name}", details, parents)


def _data(manifest: ReleaseManifest, by_digest: Mapping[str, LineageNode]) -> Node:
    data = manifest.dataset
    entry = by_digest.get(data.digest)
    counts = entry.counts if entry is not None else {}
    contracts = tuple(Node(f"contract {contract}", {"version": version}) for contract, version in sorted(data.contracts.items()))
    return Node(f"data: {data.name}", {"digest": data.digest, "source_digest": data.source_digest, **counts}, contracts)


def _code(manifest: ReleaseManifest) -> Node:
    known = manifest.provenance
    packages = known.get("packages")
    children = (Node("packages", packages),) if isinstance(packages, Mapping) else ()
    return Node("code and machine", {key: value for key, value in known.items() if key != "packages"}, children)


def _config(manifest: ReleaseManifest) -> Node:
    return Node("configuration", {"digest": digest_of(manifest.config), **labels.flatten(manifest.config)})


def _approvals(name: str, where: tuple[str, int]) -> Node:
    """Of a release its own approval, of a candidate all of its copies."""
    releases = [info for info in registry.versions(release_model(name)) if where in ((info.name, info.version), registry.copied_from(info))]
    found = []
    for info in releases:
        origin = registry.copied_from(info)
        candidate = find_version(*origin) if origin and origin[0] == candidate_model(name) else None
        claim = claimed_approval(name, info, candidate)
        details = {
            "from": f"{origin[0]}/{origin[1]}" if origin else None,
            "approved_by": claim.person or "unauthenticated (copied outside of 'scalingnote approve')",
            "approved_at": claim.approved_at,
            "copied_ms": info.created_ms,
            "override": claim.override,
            "authentication": "none: names are as claimed",
        }
        found.append(Node(f"{info.name}/{info.version}", details))
    return Node("approval", {} if found else {"note": "not approved"}, tuple(found))


def _records(name: str, where: tuple[str, int]) -> Node:
    """The promotion records that moved the champion to or from this release."""
    if where[0] != release_model(name):
        return Node("promotion records", {"note": "a candidate has none"})
    about = [record for record in record_store.read_records(name) if where[1] in (record["to_version"], record["from_version"])]
    children = tuple(Node(f"record {record['sequence']}: {record['action']}", record) for record in about)
    return Node("promotion records", {} if about else {"note": "not promoted"}, children)


def _lines(node: Node, indent: str = "", branch: str = "", below: str = "") -> list[str]:
    lines = [f"{indent}{branch}{node.title}"]
    inner = indent + below
    bar = "│ " if node.children else "  "
    lines += [f"{inner}{bar}  {key}: {_value(value)}" for key, value in node.details.items() if value is not None]
    for place, child in enumerate(node.children, start=1):
        last = place == len(node.children)
        lines += _lines(child, inner, "└─ " if last else "├─ ", "   " if last else "│  ")
    return lines


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
