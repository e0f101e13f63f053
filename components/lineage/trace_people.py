"""The people in a trace: who registered a version and who approved it, by the audit log where there is one, else as tags claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.lineage.trace_node import Node
from components.promotion.approval import read_approval
from components.release import reviewers as people
from components.release.baseline import record_of
from components.release.champion import Record, candidate_model, release_model
from components.signing.statements import signed_by
from components.tracking import audit_log as audit
from components.tracking import promotion_records as record_store
from components.tracking import registry
from components.tracking.store import TrackingError

if TYPE_CHECKING:
    from components.tracking.audit_log import AuditEntry
    from components.tracking.registry import VersionInfo

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
        act = people.creator(self.entries, model, version)
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
    """Of a candidate the versions of the release model that were copied from it, of a release itself."""
    where = (info.name, info.version)
    return [copy for copy in witness.releases if where in (_place(copy), registry.copied_from(copy))]


def approvals(name: str, info: VersionInfo, witness: Witness) -> Node:
    """Of a release its own approval, of a candidate all of its copies."""
    found = tuple(_approval(name, copy, witness) for copy in copies(info, witness))
    return Node("approval", {} if found else {"note": "not approved"}, found, "approval")


def promotions(name: str, info: VersionInfo, witness: Witness) -> Node:
    """The promotion records that moved the champion to or from a release."""
    if info.name != release_model(name):
        return Node("promotion records", {"note": "a candidate has none"}, kind="record")
    about = [record for record in witness.records if info.version in (record["to_version"], record["from_version"])]
    children = tuple(Node(f"record {record['sequence']}: {record['action']}", _readable(record), kind="record") for record in about)
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
