"""The people in a trace: who registered a version and who approved it, by the audit log where there is one, else as tags claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.promotion import people
from components.promotion.approval import find_version, read_approval
from components.promotion.standing import candidate_model, release_model
from components.promotion.trace_node import Node
from components.tracking import audit, registry
from components.tracking.store import TrackingError

if TYPE_CHECKING:
    from components.tracking.audit import AuditEntry
    from components.tracking.registry import VersionInfo

NO_LOG = "unauthenticated: no audit log, names are as claimed"


@dataclass(frozen=True)
class Witness:
    """The audit log as this user may see it; `entries` is None without one, and `note` says why."""

    entries: Sequence[AuditEntry] | None
    note: str = NO_LOG

    def registered(self, model: str, version: int) -> str | None:
        """Who made a version and the entry that says so; None without a log."""
        if self.entries is None:
            return None
        act = people.creator(self.entries, model, version)
        return f"{act.person} at {act.at} (audit entry {act.sequence})" if act else "not in the audit log"


def call_witness() -> Witness:
    """Read the audit log; one that this user may not see is said to be there. Raises ArtifactError for a damaged one."""
    try:
        entries = audit.trail()
    except TrackingError as error:
        return Witness(None, f"as claimed: {error}")
    return Witness(entries) if entries is None else Witness(entries, "basic")


def approvals(name: str, info: VersionInfo, witness: Witness) -> Node:
    """Of a release its own approval, of a candidate all of its copies."""
    where = (info.name, info.version)
    releases = [copy for copy in registry.versions(release_model(name)) if where in (_place(copy), registry.copied_from(copy))]
    found = tuple(_approval(name, copy, witness) for copy in releases)
    return Node("approval", {} if found else {"note": "not approved"}, found, "approval")


def _place(info: VersionInfo) -> tuple[str, int]:
    return info.name, info.version


def _approval(name: str, info: VersionInfo, witness: Witness) -> Node:
    origin = registry.copied_from(info)
    candidate = find_version(*origin) if origin and origin[0] == candidate_model(name) else None
    known = read_approval(name, info, candidate, witness.entries)
    details: dict[str, Any] = {
        "from": f"{origin[0]}/{origin[1]}" if origin else None,
        "approved_by": known.person or "unauthenticated (copied outside of 'scalingnote approve')",
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
