"""Approval: a reviewer's copy of a candidate into the release model, and what the audit log or, without one, its tags say about it.

The copy is the approval, the same one that "Promote model" in the MLflow UI makes. Where the server keeps an audit log, the person is
the one who was signed in. Without one, tags only carry what the person claims. Copies keep the tags of their source, and MLflow does not
say when a tag was set, so the claim names the copy by the moment it was made: no tag that the candidate had before can know it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from components import settings
from components.artifacts import verify
from components.errors import PromotionError
from components.gates.policy import foreign_policy
from components.release import reviewers
from components.release.champion import (
    Aliases,
    Record,
    candidate_model,
    expected_aliases,
    moved,
    newest_promoted,
    registered,
    release_model,
    standing,
)
from components.release.manifest import load_release
from components.release.open import candidate_number, describe_versions
from components.release.reviewers import OVERRIDE
from components.text import written
from components.tracking import labels, registry, store
from components.tracking import promotion_records as record_store

if TYPE_CHECKING:
    from components.release.manifest import ReleaseManifest
    from components.tracking.audit_log import AuditEntry
    from components.tracking.registry import VersionInfo

APPROVED_BY = "approved_by"
APPROVED_AT = "approved_at"
APPROVED_COPY = "approved_copy"  # written last: a claim without it was interrupted, or came along with the copy, and counts for nothing


@dataclass(frozen=True)
class Approval:
    """What is known about an approval. With `authentication` "none" nobody was signed in and `person` is the name that was given.

    With "basic" the audit log names person, role and time, and the entry of the copy stands in `audit_sequence` and `audit_digest`.
    `created` is False when the approval was already there and nothing was changed.
    """

    name: str
    candidate_version: int
    release_version: int
    person: str | None
    approved_at: str | None
    override: str | None
    created: bool = False
    role: str | None = None
    authentication: Literal["none", "basic"] = "none"
    audit_sequence: int | None = None
    audit_digest: str | None = None
    override_by: str | None = None
    override_at: str | None = None


def approve(name: str, candidate_version: int | str, person: str | None, override: str | None = None) -> Approval:
    """Copy candidate N into the release model as `person`; running it again returns the same approval and finishes a killed one.

    On a server with an audit log the person is the one who signs in, and `person` may be None. A candidate whose gates did not pass
    needs a reason in `override`. Raises PromotionError for an unknown or rejected candidate, a missing name, another name than the
    signed-in one, one's own work, or a missing reason; ArtifactError when the candidate's files were changed.
    """
    who, reason = _person(person), labels.reason(override)
    candidate = _candidate(name, candidate_version)
    _require_approvable(name, candidate, reason)
    records = record_store.read_records(name)
    copy = _standing_copy(name, candidate, records)
    entries = _trail(records, who)
    if entries is None:
        return _approve_claimed(name, (candidate, copy), records, who, reason)
    _require_signed_in()
    manifest = load_release(registry.artifact_folder(candidate.name, candidate.version))
    made = (candidate.name, candidate.version)
    reviewers.require_independent(entries, made, manifest, who)
    reviewers.require_unrejected(entries, made, candidate.tags.get(labels.DIGEST), len(entries) + 1)
    known = _known_approval(name, copy, entries, made, manifest) if copy is not None else None
    return _approve_signed_in(name, candidate, known, records, reason)


def _known_approval(
    name: str, copy: VersionInfo, entries: Sequence[AuditEntry], made: tuple[str, int], manifest: ReleaseManifest
) -> Approval | None:
    """The approval that a copy is, as far as the promotion takes it: None for the copy of who is no reviewer, or made a part of it."""
    known = read_approval(name, copy, entries)
    try:
        reviewers.require_reviewer(entries, copy, manifest, made)
    except PromotionError:
        return None
    try:
        if known.override_by is not None:
            reviewers.require_independent(entries, made, manifest, known.override_by)
    except PromotionError:
        return replace(known, override=None, override_by=None, override_at=None)
    return known


def _trail(records: Sequence[Record], person: str) -> list[AuditEntry] | None:
    try:
        return reviewers.require_audit_log(records)
    except store.TrackingError as error:
        raise store.TrackingError(f"'{person}' cannot approve, only a reviewer can. {error}") from error


def _require_signed_in() -> None:
    if store.signed_in_as() is None:
        raise PromotionError(
            "This installation keeps an audit log, so an approval has to come through its server, signed in: set MLFLOW_TRACKING_URI, "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or approve in the MLflow UI. Nothing was changed."
        )


def _approve_claimed(
    name: str, versions: tuple[VersionInfo, VersionInfo | None], records: Sequence[Record], person: str, reason: str
) -> Approval:
    """The approval of somebody whom nobody checked: tags carry the claim."""
    candidate, copy = versions
    if copy is None:
        return _claim(name, candidate.version, _new_copy(name, candidate, records), person, reason)
    claim = claimed_approval(name, copy)
    if claim.approved_at is not None and not _adds_reason(claim, records, reason):
        return claim
    return claim if _promoted(claim, records) else _claim(name, candidate.version, copy.version, person, reason)


def _approve_signed_in(name: str, candidate: VersionInfo, known: Approval | None, records: Sequence[Record], reason: str) -> Approval:
    """The server logs who copies and who gives a reason, so nothing else is written. A copy that no reviewer made is no approval."""
    model = release_model(name)
    if known is not None and (_promoted(known, records) or not _adds_reason(known, records, reason)):
        return known
    version = known.release_version if known is not None else _new_copy(name, candidate, records)
    if reason:
        registry.set_review_tag(model, version, OVERRIDE, reason)
    release = find_version(model, version)
    if release is None:
        raise PromotionError(f"{model}/{version} was deleted while it was approved. Approve the candidate again.")
    return replace(read_approval(name, release, reviewers.require_audit_log(records)), created=True)


def _new_copy(name: str, candidate: VersionInfo, records: Sequence[Record]) -> int:
    """The number of a new copy, above all that were promoted: a release model that was deleted and made again counts from 1 once more."""
    newest = newest_promoted(records)
    while (version := registry.copy_version(candidate.name, candidate.version, release_model(name))) <= newest:
        continue
    return version


def _promoted(approval: Approval, records: Sequence[Record]) -> bool:
    """A promotion record cannot be amended."""
    return any(record.get("to_version") == approval.release_version for record in standing(records))


def _adds_reason(approval: Approval, records: Sequence[Record], reason: str) -> bool:
    """A reason that was given before today's champion came does not cover the comparison with it: it is given again, with its time."""
    return bool(reason) and (approval.override is None or not given_since(approval.override_at, records))


def read_approval(name: str, release: VersionInfo, entries: Sequence[AuditEntry] | None) -> Approval:
    """What is known about the approval of a release version: from the audit log `entries`, or what tags claim when there is none."""
    claim = claimed_approval(name, release)
    if entries is None:
        return claim
    bare = replace(claim, person=None, approved_at=None, override=None, override_at=None)
    act = reviewers.created_by(entries, release.name, release.version)
    if act is None:
        return bare
    known = replace(bare, person=act.person, role=act.role, approved_at=act.at, authentication="basic")
    known = replace(known, audit_sequence=act.sequence, audit_digest=act.digest)
    found = reviewers.override_act(entries, release)
    return known if found is None else replace(known, override=found[0], override_by=found[1].person, override_at=found[1].at)


def given_since(moment: str | None, records: Sequence[Record]) -> bool:
    """Whether something happened after the newest promotion or rollback, so that whoever did it knew today's champion.

    Who signed the records afterwards changed no champion.
    """
    if not (moving := moved(records)):
        return True
    given, before = moment_of(moment), moment_of(str(moving[-1].get("time")))
    return given is not None and before is not None and before < given <= datetime.now(UTC) + settings.CLOCK_SLACK


def moment_of(text: str | None) -> datetime | None:
    """A moment with its time zone; None for what is none, which proves nothing."""
    try:
        found = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def claimed_approval(name: str, release: VersionInfo) -> Approval:
    """What the tags of a release version claim, leaving out what came along from the candidate's own tags."""
    complete = release.tags.get(labels.PREFIX + APPROVED_COPY) == _copy_mark(release)
    tags: Mapping[str, str] = release.tags if complete else {}
    time = tags.get(labels.PREFIX + APPROVED_AT)
    origin = registry.copied_from(release)
    person = written(tags.get(labels.PREFIX + APPROVED_BY)) or None
    reason, by, at = labels.reason(tags.get(labels.PREFIX + OVERRIDE)) or None, person, time
    return Approval(
        name=name,
        candidate_version=origin[1] if origin else 0,
        release_version=release.version,
        person=person,
        approved_at=time,
        override=reason,
        override_by=by if reason else None,
        override_at=at if reason else None,
    )


def find_version(model: str, version: int) -> VersionInfo | None:
    """The registered version, None when there is none."""
    return next((info for info in registry.versions(model) if info.version == version), None)


def is_copy_of(release: VersionInfo, candidate: VersionInfo) -> bool:
    """Whether a release was copied from this very candidate: a model that was deleted and made again gives its numbers once more.

    One that came after the copy and has other files is another. Each alone shows nothing: tags are changed, and clocks set back.
    """
    other = candidate.created_ms > release.created_ms and candidate.tags.get(labels.DIGEST) != release.tags.get(labels.DIGEST)
    return registry.copied_from(release) == (candidate.name, candidate.version) and not other


def rejection(info: VersionInfo) -> str | None:
    """Why a reviewer rejected a version, None when nobody did (see `components.tracking.labels.rejection`)."""
    return labels.rejection(info.tags)


def rejection_of_files(name: str, files: VersionInfo, candidates: Iterable[VersionInfo]) -> str | None:
    """Why a reviewer rejected `files`, or a candidate that is the very same under another number, also one that was deleted since.

    Nobody can take back what was said of a deleted one, so a plain approval of another in `candidates` counts for more.
    """
    if reason := rejection(files):
        return reason
    digest = files.tags.get(labels.DIGEST)
    same = {info.version: info.tags for info in candidates if digest and info.tags.get(labels.DIGEST) == digest}
    told = {version: reason for version, tags in same.items() if (reason := labels.rejection(tags))}
    if not told and not any(map(labels.is_reviewed, same.values())):
        gone = registry.tags_of_deleted(candidate_model(name))
        told = {
            version: f"{reason} (it was deleted since; where that no longer holds, build it and tag it with review = approved)"
            for version, tags in gone.items()
            if digest and tags.get(labels.DIGEST) == digest and (reason := labels.rejection(tags))
        }
    return next((f"candidate/{version}, the same files, was: {reason}" for version, reason in told.items()), None)


def _person(given: str | None) -> str:
    """The name of who approves; a signed-in person cannot be somebody else."""
    person, signed_in = written(given), store.signed_in_as()
    if person and signed_in and person != signed_in:
        raise PromotionError(f"You are signed in as '{signed_in}' and cannot approve as '{person}'. Leave --as out.")
    if not (person or signed_in):
        raise PromotionError("An approval needs the name of a person; give it with --as NAME.")
    return person or str(signed_in)


def _candidate(name: str, ref: int | str) -> VersionInfo:
    model = candidate_model(name)
    numbers = [info.version for info in registry.versions(model)]
    number = candidate_number(ref, numbers)
    found = find_version(model, number) if number is not None else None
    if found is None:
        raise PromotionError(f"There is no candidate '{ref}'. {describe_versions(name, 'candidate', numbers)}")
    return found


def _require_approvable(name: str, candidate: VersionInfo, reason: str) -> None:
    if rejected := rejection_of_files(name, candidate, registry.versions(candidate.name)):
        raise PromotionError(f"candidate/{candidate.version} of '{name}' was rejected: {rejected}. Approve another one.")
    folder = registry.artifact_folder(candidate.name, candidate.version)
    verify(folder, candidate.tags.get(labels.DIGEST))  # files that were changed and sealed again are whole too
    manifest = load_release(folder)
    decision, foreign = manifest.decision, foreign_policy(manifest.config.get("policy", {}))
    if reason or (decision.verdict == "pass" and not foreign):
        return
    if decision.verdict == "pass":
        raise PromotionError(
            f"candidate/{candidate.version} of '{name}' passed gates that are not this installation's. {foreign} To approve it all the "
            "same, give the reason with --override REASON; it is kept in the promotion record."
        )
    open_gates = "; ".join(f"{gate.name}: {gate.reason}" for gate in decision.open_gates())
    raise PromotionError(
        f"candidate/{candidate.version} of '{name}' did not pass its gates ({decision.verdict}): {open_gates} "
        "To approve it all the same, give the reason with --override REASON; it is kept in the promotion record."
    )


def _standing_copy(name: str, candidate: VersionInfo, records: Sequence[Record]) -> VersionInfo | None:
    """The newest copy of the candidate that can still be, or already was, promoted.

    A copy does not stand any more when it was rejected, rolled back from, replaced as champion, or passed over by the promotion of a newer
    one: to serve its candidate again, it is approved again.
    """
    champion = registered(name, Aliases(expected_aliases(records).champion, None), records)[0].champion  # not what took its number
    newest = newest_promoted(records)
    for info in sorted(registry.versions(release_model(name)), key=lambda info: -info.version):
        if not is_copy_of(info, candidate) or info.tags.get(labels.DIGEST) != candidate.tags.get(labels.DIGEST):
            continue
        if rejection(info) or (info.version <= newest and info.version != champion):
            continue
        return info
    return None


def _copy_mark(release: VersionInfo) -> str:
    """Names a copy by its number and the millisecond at which the registry made it."""
    return f"{release.version}:{release.created_ms}"


def _claim(name: str, candidate_version: int, version: int, person: str, reason: str) -> Approval:
    model = release_model(name)
    now = datetime.now(UTC).isoformat()
    registry.set_version_tag(model, version, OVERRIDE, reason)  # always written, so that a copied one does not stay
    registry.set_version_tag(model, version, APPROVED_BY, person)
    registry.set_version_tag(model, version, APPROVED_AT, now)
    release = find_version(model, version)
    if release is None:
        raise PromotionError(f"{model}/{version} was deleted while it was approved. Approve the candidate again.")
    registry.set_version_tag(model, version, APPROVED_COPY, _copy_mark(release))
    claimed = Approval(name, candidate_version, version, person, now, reason or None, created=True)
    return replace(claimed, override_by=person, override_at=now) if reason else claimed
