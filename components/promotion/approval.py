"""Approval: a named person's copy of a candidate into the release model, and what its tags claim.

The copy is the approval, the same one that "Promote model" in the MLflow UI makes. Tags only carry what the person claims. Copies keep
the tags of their source, so a tag that the candidate already had counts for nothing: only an approval time that differs does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.artifacts import verify
from components.errors import PromotionError
from components.promotion.references import candidate_number, describe_versions
from components.promotion.release import load_release
from components.promotion.standing import Record, candidate_model, release_model
from components.tracking import labels, registry
from components.tracking import records as record_store

if TYPE_CHECKING:
    from components.tracking.registry import VersionInfo

APPROVED_BY = "approved_by"
APPROVED_AT = "approved_at"  # written last: an approval without it was interrupted and claims nothing
OVERRIDE = "override"
REJECTED = "rejected"


@dataclass(frozen=True)
class Approval:
    """What is claimed about an approval. Nobody was authenticated: `person` is the name that was given.

    `created` is False when the approval was already there and nothing was changed.
    """

    name: str
    candidate_version: int
    release_version: int
    person: str | None
    approved_at: str | None
    override: str | None
    created: bool = False


def approve(name: str, candidate_version: int | str, person: str, override: str | None = None) -> Approval:
    """Copy candidate N into the release model as `person`; running it again returns the same approval and finishes a killed one.

    A candidate whose gates did not pass needs a reason in `override`. Raises PromotionError for an unknown or rejected candidate, a
    missing name, or a missing reason; ArtifactError when the candidate's files were changed.
    """
    person, reason = person.strip(), (override or "").strip()
    if not person:
        raise PromotionError("An approval needs the name of a person; give it with --as NAME.")
    candidate = _candidate(name, candidate_version)
    _require_approvable(name, candidate, reason)
    records = record_store.read_records(name)
    copy = _standing_copy(name, candidate, records)
    if copy is None:
        version = registry.copy_version(candidate.name, candidate.version, release_model(name))
        return _claim(name, candidate.version, version, person, reason)
    claim = claimed_approval(name, copy, candidate)
    promoted = any(int(record["to_version"]) == copy.version for record in records)  # its record cannot be amended
    adds_reason = bool(reason) and claim.override is None
    if promoted or (claim.approved_at is not None and not adds_reason):
        return claim
    return _claim(name, candidate.version, copy.version, person, reason)


def claimed_approval(name: str, release: VersionInfo, candidate: VersionInfo | None) -> Approval:
    """What the tags of a release version claim, leaving out what was only copied from the candidate's own tags."""
    inherited: Mapping[str, str] = candidate.tags if candidate is not None else {}
    time = release.tags.get(labels.PREFIX + APPROVED_AT)
    complete = bool(time) and time != inherited.get(labels.PREFIX + APPROVED_AT)
    tags = release.tags if complete else {}
    origin = registry.copied_from(release)
    return Approval(
        name=name,
        candidate_version=origin[1] if origin else 0,
        release_version=release.version,
        person=(tags.get(labels.PREFIX + APPROVED_BY) or "").strip() or None,
        approved_at=time if complete else None,
        override=(tags.get(labels.PREFIX + OVERRIDE) or "").strip() or None,
    )


def find_version(model: str, version: int) -> VersionInfo | None:
    """The registered version, None when there is none."""
    return next((info for info in registry.versions(model) if info.version == version), None)


def rejection(info: VersionInfo) -> str | None:
    """The reason in the tag `rejected`, which a reviewer may set in the MLflow UI, with or without the project's prefix."""
    return info.tags.get(labels.PREFIX + REJECTED) or info.tags.get(REJECTED)


def _candidate(name: str, ref: int | str) -> VersionInfo:
    model = candidate_model(name)
    number = candidate_number(ref)
    found = find_version(model, number) if number is not None else None
    if found is None:
        numbers = [info.version for info in registry.versions(model)]
        raise PromotionError(f"There is no candidate '{ref}'. {describe_versions(name, 'candidate', numbers)}")
    return found


def _require_approvable(name: str, candidate: VersionInfo, reason: str) -> None:
    if rejected := rejection(candidate):
        raise PromotionError(f"candidate/{candidate.version} of '{name}' was rejected: {rejected}. Approve another one.")
    folder = registry.artifact_folder(candidate.name, candidate.version)
    verify(folder)
    decision = load_release(folder).decision
    if decision.verdict == "pass" or reason:
        return
    open_gates = "; ".join(f"{gate.name}: {gate.reason}" for gate in decision.open_gates())
    raise PromotionError(
        f"candidate/{candidate.version} of '{name}' did not pass its gates ({decision.verdict}): {open_gates} "
        "To approve it all the same, give the reason with --override REASON; it is kept in the promotion record."
    )


def _standing_copy(name: str, candidate: VersionInfo, records: Sequence[Record]) -> VersionInfo | None:
    """The newest copy of the candidate that can still be, or already was, promoted.

    A copy does not stand any more when it was rejected, rolled back from, or passed over by the promotion of a newer one.
    """
    rolled_back = {int(record["from_version"]) for record in records if record["action"] == "rollback"}
    recorded = {int(record["to_version"]) for record in records}
    newest = max(recorded, default=0)
    for info in sorted(registry.versions(release_model(name)), key=lambda info: -info.version):
        if registry.copied_from(info) != (candidate.name, candidate.version):
            continue
        if rejection(info) or info.version in rolled_back or (info.version < newest and info.version not in recorded):
            continue
        return info
    return None


def _claim(name: str, candidate_version: int, version: int, person: str, reason: str) -> Approval:
    model = release_model(name)
    now = datetime.now(UTC).isoformat()
    registry.set_version_tag(model, version, OVERRIDE, reason)  # always written, so that a copied one does not stay
    registry.set_version_tag(model, version, APPROVED_BY, person)
    registry.set_version_tag(model, version, APPROVED_AT, now)
    return Approval(name, candidate_version, version, person, now, reason or None, created=True)
