"""The graph behind a release: its nodes, and the way from its parts to steps, data, code, machine, and who acted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, canonical_json, digest_of, verify
from components.errors import ArtifactError, ScalingNoteError
from components.promotion.approval import find_version, is_copy_of, read_approval
from components.release import reviewers
from components.release.champion import CHAMPION, Record, candidate_model, record_of, release_model
from components.release.completeness import BESIDE, DATA_KIND, VALIDATION_KIND, base_models_named_by, missing_lineage, other_models
from components.release.manifest import FLOWS_SINCE, RELEASE_FILE, BaseModelPin, LineageNode, Pin, ReleaseManifest, load_release_of
from components.release.open import recorded_digest
from components.signing.statements import signed_by
from components.text import one_line
from components.tracking import audit_log as audit
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.registry import VersionInfo
from components.tracking.store import TrackingError

if TYPE_CHECKING:
    from components.tracking.audit_log import AuditEntry


SHOWN = "shown above"


@dataclass(frozen=True)
class Node:
    """One line of a trace, what is known about it, and what it came from.

    Nodes with the same `key` are the same thing: what was shown before is only named again. `kind` says what it is, such as encoder.
    """

    title: str
    details: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()
    kind: str = "note"
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The node and all below it as plain values."""
        children = [child.to_dict() for child in self.children]
        return {"title": self.title, "kind": self.kind, "key": self.key, "details": dict(self.details), "children": children}


@dataclass(frozen=True)
class Point:
    """A node of the graph: everything that the tree says about one thing."""

    key: str
    kind: str
    title: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Points in the order of the tree, the root first, and edges (key, key of what it came from)."""

    points: tuple[Point, ...]
    edges: tuple[tuple[str, str], ...]


def graph_of(root: Node) -> Graph:
    """The graph of a tree; nodes without a key are things of their own."""
    points: dict[str, Point] = {}
    edges: dict[tuple[str, str], None] = {}
    for key, node, parent in _walk(root):
        if key not in points:
            points[key] = Point(key, node.kind, node.title, dict(node.details))
        elif node.details.get("note") != SHOWN:
            points[key] = Point(key, node.kind, points[key].title, {**points[key].details, **node.details})
        if parent is not None:
            edges[parent, key] = None
    return Graph(tuple(points.values()), tuple(edges))


def text_of(root: Node) -> str:
    """The tree with indented lines."""
    return "\n".join(_lines(root))


def value_text(value: Any) -> str:
    """A detail as text: booleans as true and false, lists with commas, mappings as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return json.dumps(dict(value), ensure_ascii=False, default=str)
    return ", ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)


def time_text(milliseconds: int) -> str:
    """A time of the registry, in milliseconds since 1970, as ISO text in UTC; the number itself where no calendar has it."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms after 1970"


def moment(text: Any, milliseconds: int) -> str:
    """`text`, if it is a time with its zone, else that of the registry: tags and records of others can hold anything."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        return time_text(milliseconds) if found is None or found.tzinfo is None else found.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return time_text(milliseconds)


def _walk(root: Node) -> Iterator[tuple[str, Node, str | None]]:
    """Every node with its key and that of its parent, in the order of the text; nodes without a key get one of their place."""
    waiting: list[tuple[str, Node, str | None]] = [(root.key or root.title, root, None)]
    while waiting:
        key, node, parent = waiting.pop()
        yield key, node, parent
        places = [(child.key or f"{key}/{number} {child.title}", child, key) for number, child in enumerate(node.children, start=1)]
        waiting += reversed(places)


def _lines(node: Node, indent: str = "", branch: str = "", below: str = "") -> list[str]:
    lines = [f"{indent}{branch}{one_line(node.title)}"]
    inner = indent + below
    bar = "│ " if node.children else "  "
    lines += [f"{inner}{bar}  {one_line(key)}: {one_line(value_text(value))}" for key, value in node.details.items() if value is not None]
    for number, child in enumerate(node.children, start=1):
        last = number == len(node.children)
        lines += _lines(child, inner, "└─ " if last else "├─ ", "   " if last else "│  ")
    return lines


# --- The graph behind a release: parts, steps, data, code, machine, and who acted.


NO_LOG = "unauthenticated: no audit log, names are as claimed"


@dataclass(frozen=True)
class Witness:
    """What tells who did what to a retriever, read once for a whole trace: the registry's versions, the records, the audit log.

    `entries` is the log as this user may see it, None without one, and `note` says why.
    """

    entries: Sequence[AuditEntry] | None
    note: str
    candidates: Mapping[int, VersionInfo]
    releases: Sequence[VersionInfo]
    records: Sequence[Record]

    def registered(self, model: str, version: int) -> str | None:
        """Who made a version and the entry that says so; None without a log."""
        if self.entries is None:
            return None
        act = reviewers.created_by(self.entries, model, version)
        return f"{act.person} at {act.at} (audit entry {act.sequence})" if act else "not in the audit log"


def call_witness(name: str) -> Witness:
    """Read it for a retriever; an audit log that this user may not see is said to be there. Raises ArtifactError for damaged ones."""
    candidates = {info.version: info for info in registry.versions(candidate_model(name))}
    known = candidates, registry.versions(release_model(name)), record_store.read_records(name)
    try:
        entries = audit.trail()
    except TrackingError as error:
        return Witness(None, f"as claimed: {error}", *known)
    return Witness(entries, NO_LOG if entries is None else "basic", *known)


def copies(info: VersionInfo, witness: Witness) -> list[VersionInfo]:
    """Of a candidate the releases that were copied from it, and not from a deleted one of its number; of a release itself."""
    return [copy for copy in witness.releases if _place(copy) == _place(info) or is_copy_of(copy, info)]


def approvals(name: str, info: VersionInfo, witness: Witness) -> Node:
    """Of a release its own approval, of a candidate all of its copies."""
    found = tuple(_approval(name, copy, witness) for copy in copies(info, witness))
    return Node("approval", {} if found else {"note": "not approved"}, found, "approval")


def promotions(name: str, info: VersionInfo, witness: Witness) -> Node:
    """The promotion records that moved the champion to or from a release."""
    if info.name != release_model(name):
        return Node("promotion records", {"note": "a candidate has none"}, kind="record")
    about = [record for record in witness.records if info.version in (record.get("to_version"), record.get("from_version"))]
    struck = record_store.struck_out(witness.records)
    marks = {number: {"struck_out_by": f"record {strike['sequence']}"} for number, strike in struck.items()}
    children = tuple(
        Node(
            f"record {record['sequence']}: {one_line(record.get('action'))}",
            {**_readable(record), **marks.get(record["sequence"], {})},
            kind="record",
        )
        for record in about
    )
    return Node("promotion records", {} if about else {"note": "not promoted"}, children, "record")


def _readable(record: Record) -> dict[str, Any]:
    """The record with the ids of the keys in place of its signature, which `verify` reads from the record itself."""
    signed = signed_by(record)
    shown = {field: value for field, value in record.items() if field != "signature"}
    return {**shown, **({"signed_by": ", ".join(signed)} if signed else {})}


def _place(info: VersionInfo) -> tuple[str, int]:
    return info.name, info.version


def _approval(name: str, info: VersionInfo, witness: Witness) -> Node:
    origin = registry.copied_from(info)
    known = read_approval(name, info, witness.entries)
    recorded = record_of(witness.records, info.version) if info.name == release_model(name) else None
    details: dict[str, Any] = {
        "from": f"{origin[0]}/{origin[1]}" if origin else None,
        "approved_by": known.person or (recorded or {}).get("approved_by") or "unauthenticated (copied outside of 'scalingnote approve')",
        "role": known.role,
        "approved_at": known.approved_at,
        "copied_ms": info.created_ms,
        "override": known.override,
        "override_by": known.override_by,
        "authentication": known.authentication if witness.entries is not None else witness.note,
        "audit_sequence": known.audit_sequence,
        "audit_digest": known.audit_digest,
    }
    return Node(f"{info.name}/{info.version}", details, kind="approval", key=f"approval:{info.name}/{info.version}")


# --- The tree of a release: what it pins and all that came before, data, code and machine, runs, configuration, approval, records.


ENCODER_ROLES = ("query_tower", "document_tower", "query_encoder")


@dataclass(frozen=True)
class Opened:
    """A candidate or release whose files were hashed; `info` is its registered version, `base_models` those of its encoders by role."""

    name: str
    info: VersionInfo
    artifact: Artifact
    manifest: ReleaseManifest
    base_models: Mapping[str, BaseModelPin]

    @property
    def title(self) -> str:
        """Registered model and version."""
        return f"{self.info.name}/{self.info.version}"

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is missing on the way back; base models count that an older manifest does not name but its encoders do."""
        found = missing_lineage(self.manifest.model_copy(update={"base_models": dict(self.base_models)}))
        if self.manifest.release_type == "full" or self.manifest.schema_version >= FLOWS_SINCE:
            return found
        return (*found, "This refresh is from before releases named the flow, and so the code, that made the parts they kept.")


def open_version(name: str, model: str, version: int) -> Opened:
    """Open a version of the candidate or release model; raises ArtifactError for changed files, ModelError for no such version.

    Its digest has to be that of its promotion record, where it has one: the tag beside it is no proof.
    """
    info = find_version(model, version)
    return open_info(name, info or VersionInfo(name=model, version=version, tags={}, source="", run_id=None, created_ms=0, aliases=()))


def open_info(name: str, info: VersionInfo) -> Opened:
    """`open_version` of what the registry said before."""
    folder, released = registry.artifact_folder(info.name, info.version), info.name == release_model(name)
    artifact = verify(folder, recorded_digest(name, info.name, info.version) if released else info.tags.get(labels.DIGEST))
    manifest = load_release_of(name, folder)
    try:
        canonical_json(manifest.model_dump())
    except UnicodeEncodeError as error:
        raise ArtifactError(
            f"{info.name}/{info.version}: its {RELEASE_FILE} holds half a character ({error.object[error.start]!r}), which no command "
            "writes and no page shows. Whoever built it has put it there: build it again, or reject it."
        ) from None
    return Opened(name, info, artifact, manifest, _base_models(manifest))


def release_node(opened: Opened) -> Node:
    """The whole tree of a release."""
    ancestry, witness = Ancestry(opened), call_witness(opened.name)
    pins = [ancestry.pin(role) for role, _ in opened.manifest.pins.items()]
    evidence = [ancestry.node(role, digest) for role, digest in _evidence(opened.manifest)]
    acts = (approvals(opened.name, opened.info, witness), promotions(opened.name, opened.info, witness))
    children = (*pins, *evidence, *surroundings(opened), *acts)
    return Node(opened.title, _details(opened, witness), children, "release", opened.artifact.digest)


def surroundings(opened: Opened) -> tuple[Node, ...]:
    """Data, code and machine, runs of the flow, and configuration."""
    return _data(opened.manifest), _code(opened.manifest.provenance), _flow(opened.manifest), _config(opened.manifest)


class Ancestry:
    """The artifacts of a release with their parents; what was shown before is only named again."""

    def __init__(self, opened: Opened) -> None:
        self.nodes = {node.digest: node for node in opened.manifest.lineage}
        self.pins: dict[str, Pin] = dict(opened.manifest.pins.items())
        self.roles = {pin.digest: role for role, pin in self.pins.items()}
        self.base_models = opened.base_models
        self.data = opened.manifest.dataset.digest
        self.flows = opened.manifest.earlier_flows
        self.champion = opened.manifest.baseline_version
        self._seen: set[str] = set()

    def pin(self, role: str) -> Node:
        """A pinned artifact."""
        return self.node(role.replace("_", " "), self.pins[role].digest)

    def node(self, role: str, digest: str) -> Node:
        """The artifact and its parents."""
        entry = self.nodes.get(digest)
        if entry is None:
            return self._stranger(role, digest)
        title = f"{role}: {self._name(entry)}"
        if digest in self._seen:
            return Node(title, {"digest": digest, "note": SHOWN}, kind=entry.kind, key=digest)
        self._seen.add(digest)
        parents = [self.node(parent, found) for parent, found in sorted(entry.parents.items())]
        own = (*self._bases(entry), *self._contracts(entry), *self._flow(entry))
        return Node(title, described(entry), (*parents, *own), entry.kind, digest)

    def _stranger(self, role: str, digest: str) -> Node:
        """An artifact that is not of this lineage: the champion that the release was compared with, or a gap."""
        if role == CHAMPION:
            note = f"a release with a lineage of its own: scalingnote trace release/{self.champion}"
            return Node(f"{role}: release/{self.champion}", {"digest": digest, "note": note}, (), "release", digest)
        return Node(f"{role} {digest[:12]}", {"digest": digest, "note": "not described in the release's lineage"}, key=digest)

    def _name(self, entry: LineageNode) -> str:
        """The registered version that is pinned, or the step that made it."""
        pin = self.pins.get(self.roles.get(entry.digest, ""))
        return f"{pin.model}/{pin.version}" if pin else entry.name

    def _bases(self, entry: LineageNode) -> Iterator[Node]:
        """The published models that an encoder or a set of generated queries was made with, or that towers were judged by."""
        role = self.roles.get(entry.digest, "")
        for base in filter(None, (self.base_models.get(role), self.base_models.get(role + BESIDE))):
            yield base_model_node(base)
        for what, model in other_models(entry):
            yield base_model_node(model, what)

    def _contracts(self, entry: LineageNode) -> Iterator[Node]:
        """The contracts of data of an earlier release; those of the release's own data stand with it."""
        if entry.kind == DATA_KIND and entry.digest != self.data:
            yield from _validations(self.nodes.values(), entry.digest)

    def _flow(self, entry: LineageNode) -> Iterator[Node]:
        """The earlier flow that made it, with its code and machine: those of the release are not what it was made with."""
        if entry.flow_run_id is None:
            return
        title, key = f"made by an earlier flow: {entry.flow_run_id[:12]}", f"flow:{entry.flow_run_id}"
        known = self.flows.get(entry.flow_run_id)
        if known and key not in self._seen:
            self._seen.add(key)
            yield _code(known, title, entry.flow_run_id)
        else:
            yield Node(title, {"note": SHOWN if known else "its code and machine are not known"}, kind="code", key=key)


def base_model_node(base: BaseModelPin, part: str = "base model") -> Node:
    """A published model and the part it had, the digest of its weights, and its commit if it came from a model hub."""
    details = {"digest": base.digest, **({"commit": base.revision} if base.revision else {})}
    return Node(f"{part}: {base.name}", details, kind="base_model", key=f"base:{base.name}:{base.digest}")


def described(entry: LineageNode) -> dict[str, Any]:
    """What the lineage says about one artifact."""
    runs = {"run_id": entry.run_id, "task_run_id": entry.task_run_id, "recorded_at": entry.recorded_at}
    details = {"digest": entry.digest, "kind": entry.kind, **runs, **entry.counts, **entry.attributes}
    details |= {"config_digest": digest_of(entry.config)} if entry.config else {}
    if entry.flow_run_id:  # the configuration of the release is not what it was made with
        details |= {f"config.{key}": value for key, value in labels.flatten(entry.config).items()}
    return {**details, "found_finished": True} if entry.reused else details


def _evidence(manifest: ReleaseManifest) -> Iterator[tuple[str, str]]:
    """Role and digest of what the gates decided on: the evaluation, and the comparison with the champion of that time."""
    yield "evaluation", manifest.evaluation.digest
    yield from (("comparison", node.digest) for node in manifest.lineage if node.kind == "comparison")


def _details(opened: Opened, witness: Witness) -> dict[str, Any]:
    manifest = opened.manifest
    gaps = opened.gaps
    return {
        "digest": opened.artifact.digest,
        "registered_by": witness.registered(opened.info.name, opened.info.version),
        "release_type": manifest.release_type,
        "space_id": manifest.space_id,
        "verdict": manifest.decision.verdict,
        "gates": [f"{gate.name} {gate.status}{f' ({gate.mark})' if gate.mark else ''}" for gate in manifest.decision.gates],
        "first_release": manifest.decision.first_release,
        "baseline_version": manifest.baseline_version,
        "flow_run_id": manifest.flow_run_id,
        "lineage": f"gaps: {' '.join(gaps)}" if gaps else "complete",
    }


def _data(manifest: ReleaseManifest) -> Node:
    data = manifest.dataset
    counts = next((node.counts for node in manifest.lineage if node.digest == data.digest), {})
    contracts = [_contract(name, version) for name, version in sorted(data.contracts.items())]
    details = {"digest": data.digest, "source_digest": data.source_digest, **counts}
    return Node(f"data: {data.name}", details, (*contracts, *_validations(manifest.lineage, data.digest)), "dataset", data.digest)


def _contract(name: str, version: str) -> Node:
    return Node(f"contract {name}", {"version": version}, kind="contract", key=f"contract:{name}:{version}")


def _validations(lineage: Iterable[LineageNode], data: str) -> Iterator[Node]:
    """The reports of the contracts on this data; shown beside the data, for no artifact comes from them."""
    for entry in lineage:
        if entry.kind == VALIDATION_KIND and data in entry.parents.values():
            yield Node(f"validation: {entry.name}", described(entry), kind=entry.kind, key=entry.digest)


def _code(known: Mapping[str, Any], title: str = "code and machine", flow: str | None = None) -> Node:
    """What a flow ran on; `flow` is its run in MLflow where it is not the release's own."""
    children = tuple(Node(part, known[part], kind="code") for part in ("packages", "machine") if isinstance(known.get(part), Mapping))
    details = {key: value for key, value in known.items() if key not in ("packages", "machine")}
    return Node(title, {"mlflow_run_id": flow, **details} if flow else details, children, "code", f"flow:{flow}" if flow else "")


def _flow(manifest: ReleaseManifest) -> Node:
    prefect = manifest.provenance.get("prefect_flow_run_id")
    details = {"mlflow_run_id": manifest.flow_run_id, "prefect_flow_run_id": prefect or "not recorded"}
    return Node("flow run", details, kind="run")


def _config(manifest: ReleaseManifest) -> Node:
    return Node("configuration", {"digest": digest_of(manifest.config), **labels.flatten(manifest.config)}, kind="config")


def _base_models(manifest: ReleaseManifest) -> Mapping[str, BaseModelPin]:
    """None where an older manifest names no base model and its encoders cannot be read any more: that is a gap, not the trace's end."""
    try:
        return base_models_named_by(manifest)
    except ScalingNoteError:
        return {}
