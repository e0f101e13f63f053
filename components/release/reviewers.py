"""Who acted on a release, read from the audit log of the tracking server.

Tags are claims that anybody may have written; the log names the person that was signed in. Where there is a log it alone counts: an
approval is the copy that a reviewer made, and nobody approves what is their own work.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components import settings
from components.errors import ArtifactError, PromotionError
from components.release.champion import Record, standing
from components.text import reads_like, written
from components.tracking import audit_log as audit
from components.tracking import labels, store
from components.tracking import promotion_records as record_store
from components.tracking.server.calls import MAX_VALUE

if TYPE_CHECKING:
    from components.release.manifest import ReleaseManifest
    from components.tracking.audit_log import AuditEntry
    from components.tracking.registry import VersionInfo

REVIEWER = "reviewer"
OVERRIDE = "override"
ROLLED_BACK = "rolled_back"  # the tag whose entry in the log proves who rolled back
OVERRIDE_KEYS = (OVERRIDE, labels.PREFIX + OVERRIDE)
_TAGGED = frozenset({"set_version_tag", "delete_version_tag"})


@dataclass(frozen=True)
class AuditedAction:
    """One act of a signed-in person, and the audit entry that proves it."""

    person: str
    role: str | None
    at: str
    sequence: int
    digest: str


def require_audit_log(records: Sequence[Record]) -> list[AuditEntry] | None:
    """The audit log that approvals are read with; None where there never was one.

    Raises PromotionError when a log has to be there and is not: without it an approval would fall back to mere claims. Raises
    ArtifactError when the log no longer holds the entries that earlier promotion records rest on.
    """
    entries = audit.trail()
    if entries is None:
        if reason := _why_expected(records):
            raise PromotionError(
                f"{reason}, but there is no audit log, so nobody can say who approved. Nothing was changed. Start the server with "
                "`scalingnote ui --auth`, and restore its audit log if it was there before."
            )
        return None
    for record in standing(records):
        require_entry(record, entries)
    return entries


def require_entry(record: Record, entries: Sequence[AuditEntry]) -> None:
    """Raise ArtifactError when the audit log does not hold the entry that a promotion record rests on, or it proves something else."""
    number, digest = proof_of(record)
    if digest is None:
        return
    if not (0 < number <= len(entries) and entries[number - 1].digest == digest):
        raise ArtifactError(
            f"Promotion record {record['sequence']} rests on the audit entry {number} ({str(digest)[:12]}), which the audit log does not "
            "hold: it was replaced or cut. Restore the log from a backup."
        )
    if wrong := _not_proven(record, entries[number - 1]):
        raise ArtifactError(f"Promotion record {record['sequence']} rests on the audit entry {number}, which does not prove it: {wrong}.")


def proof_of(record: Record) -> tuple[int, str | None]:
    """Number and digest of the audit entry that a record rests on; the number is 0 where somebody wrote none that it could be."""
    number, digest = record.get("audit_sequence"), record.get("audit_digest")
    return number if type(number) is int and number > 0 else 0, None if digest is None else str(digest)


def _not_proven(record: Record, entry: AuditEntry) -> str | None:
    """What the entry does not say of what the record claims: that `approved_by`, in `role`, copied or rolled back this release."""
    said = record.get("approved_by"), record.get("role")
    act = act_of(entry)
    if act is None or entry.outcome != "ok":
        return f"it is a call that was {entry.outcome}" if act else "nobody was signed in"
    if (act.person, act.role) != said:
        return f"it is an act of {act.person} ({act.role}), the record names {said[0]} ({said[1]})"
    to, left = (found if type(found := record.get(place)) is int else 0 for place in ("to_version", "from_version"))
    copied = entry.action == "create_model_version" and entry.is_of(f"{record.get('retriever')}-release", to)
    rolled_back = (
        entry.action == "set_version_tag"
        and entry.is_of(f"{record.get('retriever')}-release", None if record.get("action") == "vouch" else left)
        and entry.subject.get("key") == labels.PREFIX + ROLLED_BACK
    )
    proofs = {"promote": copied, "rollback": rolled_back, "vouch": copied or rolled_back}
    if proofs.get(str(record.get("action")), False):
        return None
    return f"it is the call {entry.action} on {entry.subject.get('model')}/{entry.subject.get('version')}"


def require_logged_heads(name: str, records: Sequence[Record], entries: Sequence[AuditEntry]) -> None:
    """Raise ArtifactError when the log knows of a promotion record that is not there: each record's head was set as a tag on the server."""
    for entry in entries:
        stated = record_store.HEAD_FORM.fullmatch(entry.subject.get("value", "")) if entry.subject.get("key") == record_store.HEAD else None
        model = entry.subject.get("model", "")
        if stated is None or entry.outcome != "ok" or entry.action != "set_version_tag" or model != f"{name}-release":
            continue
        witness = f"the audit entry {entry.sequence} ({entry.user} on {model}/{stated[1]})"
        record_store.require_head(records, int(stated[3]), stated[4], witness)


def require_proven(records: Sequence[Record], entries: Sequence[AuditEntry]) -> None:
    """Raise ArtifactError for a promotion that the log does not prove as the promote flow would have asked: for whoever verifies.

    From the first record that rests on the log on every promotion does, on the copy of a reviewer, and a reviewer gave its override.
    """
    rested = False
    for record in standing(records):
        number, digest = proof_of(record)
        rested = rested or bool(digest)
        if digest and record.get("action") == "rollback" and not _is_said(str(record.get("reason")), entries[number - 1]):
            raise ArtifactError(
                f"Promotion record {record['sequence']} gives another reason for its rollback than the audit entry {number}."
            )
        if not rested or record.get("action") != "promote":
            continue
        about = f"Promotion record {record['sequence']} promotes release/{record.get('to_version')}"
        if not digest:
            raise ArtifactError(
                f"{about} and rests on no entry of the audit log, though records before it do: no command has written it so, and nobody is "
                "known to have approved it."
            )
        if (act := act_of(entries[number - 1])) is None or act.role != REVIEWER:
            raise ArtifactError(f"{about}, and the audit entry {number} that it rests on is no act of a reviewer.")
        if written(record.get("override")) and not _overrode(record, entries):
            raise ArtifactError(
                f"{about} because of a reason (override) by {record.get('override_by')}, and the audit log knows no reviewer of that "
                "name who gave it there."
            )


def _overrode(record: Record, entries: Sequence[AuditEntry]) -> bool:
    """Whether the log holds a tag by which `override_by`, a reviewer, gave the record's reason on its release."""
    model, reason = f"{record.get('retriever')}-release", str(record.get("override"))
    for entry in entries:
        about = entry.is_of(model, record.get("to_version")) and entry.subject.get("key") in OVERRIDE_KEYS
        if not about or entry.action != "set_version_tag" or entry.outcome != "ok" or REVIEWER not in entry.roles:
            continue
        if entry.user == record.get("override_by") and _is_said(reason, entry):
            return True
    return False


def _is_said(reason: str, entry: AuditEntry) -> bool:
    """Whether an entry is of a tag with these words, as far as it holds them."""
    said = entry.subject.get("value", "")
    cut = said.endswith(labels.CUT_OFF) and reason.startswith(written(said.removesuffix(labels.CUT_OFF)))
    return cut or written(said) == written(reason)


def require_not_own(record: Record, entries: Sequence[AuditEntry], manifest: ReleaseManifest) -> None:
    """Raise ArtifactError where the log says that who approved the release of `record`, by its proof, made its candidate or a part."""
    number, digest = proof_of(record)
    act = act_of(entries[number - 1]) if digest and record.get("action") == "promote" else None
    if act is None:
        return
    candidate = (f"{record.get('retriever')}-candidate", record.get("candidate_version"))
    for model, version in (candidate, *((pin.model, pin.version) for _, pin in manifest.pins.items())):
        made = created_by(entries[:number], model, version) if type(version) is int else None
        if made is not None and made.person == act.person:
            raise ArtifactError(
                f"Promotion record {record['sequence']} rests on the approval of {act.person}, who made {model}/{version} (audit entry "
                f"{made.sequence}): nobody approves their own work."
            )


def created_by(entries: Sequence[AuditEntry], model: str, version: int) -> AuditedAction | None:
    """Who made a version; None when the log does not know, or nobody was signed in."""
    return act_of(audit.creation_of(entries, model, version))


def act_of(entry: AuditEntry | None) -> AuditedAction | None:
    """The act that an entry proves. Of several roles the reviewer's is named."""
    if entry is None or entry.user is None:
        return None
    role = REVIEWER if REVIEWER in entry.roles else next(iter(entry.roles), None)
    return AuditedAction(entry.user, role, entry.at, entry.sequence, entry.digest)


def require_independent(entries: Sequence[AuditEntry], candidate: tuple[str, int], manifest: ReleaseManifest, person: str) -> None:
    """Raise PromotionError when `person` made the candidate or a part that it pins, or when nobody knows who made the candidate."""
    if created_by(entries, *candidate) is None:
        raise PromotionError(
            f"The audit log does not say who made {candidate[0]}/{candidate[1]}, so nobody can rule out that it was '{person}'. "
            "Build the candidate again, signed in to the server."
        )
    for model, version in (candidate, *((pin.model, pin.version) for _, pin in manifest.pins.items())):
        made = created_by(entries, model, version)
        if made is not None and reads_like(made.person) == reads_like(person):
            raise PromotionError(
                f"'{person}' made {model}/{version} (audit entry {made.sequence}) and cannot approve it: nobody approves their own "
                "work. Another reviewer has to."
            )


def require_reviewer(
    entries: Sequence[AuditEntry], release: VersionInfo, manifest: ReleaseManifest, candidate: tuple[str, int]
) -> AuditedAction:
    """The reviewer who copied the candidate to `release`; raises PromotionError for anybody else, and for the one who trained it."""
    where = f"{release.name}/{release.version}"
    entry = audit.creation_of(entries, release.name, release.version)
    act = act_of(entry)
    if entry is None or act is None:
        raise PromotionError(
            f"The audit log does not say who made {where}: it was written past the server. Reject that version (tag `review`), "
            "and approve the candidate signed in to the server."
        )
    if act.role != REVIEWER:
        roles = ", ".join(entry.roles) or "none"
        raise PromotionError(
            f"{where} was made by '{act.person}' (roles: {roles}; audit entry {act.sequence}); only a reviewer's copy is an approval. "
            "Reject that version (tag `review`) and let a reviewer approve the candidate."
        )
    _require_logged_digest(entry, release)
    require_independent(entries[: entry.sequence], candidate, manifest, act.person)  # later ones may be of a number that was given again
    return act


def require_unrejected(entries: Sequence[AuditEntry], candidate: tuple[str, int], digest: str | None, copied: int) -> None:
    """Raise PromotionError where there is a `logged_rejection`."""
    if reason := logged_rejection(entries, candidate, digest, copied):
        raise PromotionError(f"{reason} Approve another candidate, or tag this one with review = approved first.")


def logged_rejection(entries: Sequence[AuditEntry], candidate: tuple[str, int], digest: str | None, copied: int) -> str | None:
    """A sentence when the log's last word on the files `digest` rejects them, under any number; None when it does not.

    A server does not show the tags of a candidate that was deleted, so the log says what they were. `copied`: the number of the entry of
    the copy that is asked about. Entries of an older log do not hold the digest: there the candidate of before the copy is meant.
    """
    tags: dict[str, str] = {}
    same: set[str] = set()
    for entry in entries:
        number, key = entry.subject.get("version", ""), entry.subject.get("key", "")
        if entry.outcome != "ok" or not entry.is_of(candidate[0]):
            continue
        if entry.action == "create_model_version":
            logged, before = entry.subject.get("digest"), number == str(candidate[1]) and entry.sequence < copied
            if before if logged is None else logged == digest:
                same.add(number)
            else:
                same.discard(number)
        elif number in same and entry.action == "set_version_tag":
            tags[key] = entry.subject.get("value", "")
        elif number in same and entry.action == "delete_version_tag":
            tags.pop(key, None)
    if (reason := labels.rejection(tags)) is None:
        return None
    return f"The audit log says that the files of {candidate[0]}/{candidate[1]} were rejected ({reason}), and nobody has taken that back."


def _require_logged_digest(entry: AuditEntry, release: VersionInfo) -> None:
    """Entries of an older log do not hold the digest."""
    logged, now = entry.subject.get("digest"), release.tags.get(labels.DIGEST)
    if logged is not None and logged != now:
        raise PromotionError(
            f"{release.name}/{release.version} was approved with the digest {logged[:12]} (audit entry {entry.sequence}); its tag now says "
            f"{str(now)[:12]}. Somebody changed it past the server: reject that version, and approve the candidate again."
        )


def override_tag(tags: Mapping[str, str]) -> tuple[str, str] | None:
    """Key and text of the tag that overrides failed gates; None when it is missing or blank."""
    found = ((key, labels.reason(tags.get(key))) for key in OVERRIDE_KEYS)
    return next(((key, text) for key, text in found if text), None)


def override_act(entries: Sequence[AuditEntry], release: VersionInfo) -> tuple[str, AuditedAction] | None:
    """The reason that a reviewer gave on the release itself, and the act. One that came along with a copy is nobody's."""
    found = override_tag(release.tags)
    if found is None:
        return None
    key, reason = found
    tagged = [entry for entry in audit.actions_on(entries, release.name, release.version) if entry.action in _TAGGED]
    last = next((entry for entry in reversed(tagged) if entry.outcome == "ok" and entry.subject.get("key") == key), None)
    act = act_of(last)
    if last is None or act is None or act.role != REVIEWER:
        return None
    logged = last.subject.get("value", "")  # cut off there when it is long
    return (reason, act) if labels.cut(release.tags[key], MAX_VALUE) == logged else None


def tag_act(entries: Sequence[AuditEntry], release: VersionInfo, key: str) -> AuditedAction | None:
    """Who set the tag `key` of a release last."""
    acts = [entry for entry in audit.actions_on(entries, release.name, release.version) if entry.subject.get("key") == key]
    return act_of(next((entry for entry in reversed(acts) if entry.outcome == "ok" and entry.action == "set_version_tag"), None))


def _why_expected(records: Sequence[Record]) -> str | None:
    if rested := next((record for record in reversed(standing(records)) if record.get("audit_digest")), None):
        return f"Promotion record {rested['sequence']} rests on the entry {rested['audit_sequence']} of an audit log"
    if (user := store.signed_in_as()) is not None:
        return f"'{user}' signs in to {settings.tracking_uri()}"
    if os.environ.get("SCALINGNOTE_AUDIT_LOG"):
        return f"SCALINGNOTE_AUDIT_LOG names {settings.audit_log()}"
    return None
