"""Promote and roll back: which versions are approved, each verified and decided again against today's champion, recorded, then served.

What was refused is remembered on this machine, so that who looks again and again verifies it anew only when something changed, or after a
pause that grows from ten minutes to a day: nothing in the registry shows a file that somebody restored.

The record is the one act that counts; the aliases follow it. A run that is killed between two calls is finished by the next one, and a
run with nothing new to promote changes nothing. Only the newest approved version is promoted: older ones that were approved but never
promoted are passed over for good, and a new approval of the same candidate makes a new version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from components import settings
from components.artifacts import digest_of, read_json, write_json
from components.errors import ArtifactError, ModelError, PromotionError, ScalingNoteError, lack_behind
from components.gates.policy import foreign_policy
from components.promotion.approval import (
    Approval,
    find_version,
    is_copy_of,
    moment_of,
    read_approval,
    rejection,
    rejection_of_files,
)
from components.promotion.record import (
    CompareAgain,
    Promotion,
    append,
    decide_against,
    decisions_for,
    promotion_record,
    require_decided,
    rollback_record,
    stale_note,
)
from components.promotion.verification import check_version
from components.release import reviewers
from components.release.champion import (
    Reconciled,
    Record,
    candidate_model,
    champion_stack,
    current_aliases,
    expected_aliases,
    lost,
    moved,
    newest_promoted,
    reconcile,
    registered,
    release_model,
    settle_aliases,
    show_override_in_mlflow,
)
from components.release.manifest import ReleaseManifest, load_release
from components.release.open import resolve
from components.signing.keys import trusted_keys
from components.signing.statements import record_signer, require_vouched
from components.text import written
from components.tracking import labels, registry, store
from components.tracking import promotion_records as record_store
from components.tracking.server.permissions import sources

if TYPE_CHECKING:
    from components.tracking.registry import VersionInfo


_log = logging.getLogger(__name__)
FIRST_PAUSE, LONGEST_PAUSE = 600.0, 86_400.0  # seconds until an unchanged refusal is examined again; each time twice as long
MOST_REFUSALS = 32  # that are counted: the pause has long stopped growing


class Waiting(NamedTuple):
    """Versions of the release model that may be promoted, oldest first, and a sentence about each that was rejected."""

    versions: list[VersionInfo]
    rejected: list[str]


def waiting_for_promotion(name: str, records: Sequence[Record]) -> Waiting:
    """Versions that were approved, and neither they nor their candidates rejected. Those below the newest promoted one are passed over."""
    newest = newest_promoted(records)
    fresh = [info for info in registry.versions(release_model(name)) if info.version > newest]
    candidates = _candidates(name) if fresh else {}
    found = Waiting([], [])
    for info in fresh:
        reason = rejection(info) or _candidate_rejection(name, info, candidates)
        if reason is None:
            found.versions.append(info)
        else:
            found.rejected.append(f"release/{info.version} is marked as rejected ({reason}) and was left out.")
    return found


def rejection_of(name: str, release: VersionInfo) -> str | None:
    """Why a reviewer rejected a release or the candidate that it is a copy of; None when nobody did."""
    return rejection(release) or _candidate_rejection(name, release, _candidates(name))


def _candidates(name: str) -> dict[int, VersionInfo]:
    return {info.version: info for info in registry.versions(candidate_model(name))}


def promotion_fingerprint(name: str) -> str | None:
    """A digest of what the promote flow would look at; None when it would find nothing to do. Reads the registry alone, no files.

    It stays the same as long as nothing changes, so that a refused approval need not be verified again at every look.
    """
    records = record_store.read_records(name)
    waiting, aliases = waiting_for_promotion(name, records), current_aliases(name)
    if not waiting.versions and aliases == registered(name, expected_aliases(records), records)[0]:
        return None
    seen = [(info.version, {key: value for key, value in info.tags.items() if key != labels.LOOKED}) for info in waiting.versions]
    return digest_of({"waiting": seen, "records": len(records), "aliases": list(aliases)})


def note_look(name: str) -> None:
    """Write into a tag of the newest version that waits that somebody who promotes looked at it, at most every ten minutes.

    Who looks and who asks for the status work on different machines, and a refusal leaves no record. Where the tag cannot be written
    the looking goes on.
    """
    waiting = waiting_for_promotion(name, record_store.read_records(name)).versions
    if not waiting or time.time() - last_look(waiting[-1:]) < FIRST_PAUSE:
        return
    try:
        registry.set_version_tag(waiting[-1].name, waiting[-1].version, labels.LOOKED, datetime.now(UTC).isoformat(timespec="seconds"))
    except ScalingNoteError as error:
        _log.warning("That approvals were looked for could not be noted: %s", error)


def last_look(waiting: Sequence[VersionInfo]) -> float:
    """When somebody last looked at one of these versions (seconds since 1970), or the first was approved where nobody has; 0 for none.

    A time that is none, or is still to come, counts for nothing.
    """
    looked = [moment_of(info.tags.get(labels.LOOKED)) for info in waiting]
    latest = datetime.now(UTC) + settings.CLOCK_SLACK
    seen = [moment.timestamp() for moment in looked if moment is not None and moment <= latest]
    return max([*seen, min((info.created_ms / 1000 for info in waiting), default=0.0)])


def refused_before(name: str) -> str | None:
    """Why what waits now was refused when it was last examined; None when nothing waits, something changed, or the pause is over."""
    state, known = promotion_fingerprint(name), _refusal(name)
    if state is None or known is None or known["state"] != state:
        return None
    paused = 0 <= time.time() - known["at"] < min(FIRST_PAUSE * 2 ** (known["times"] - 1), LONGEST_PAUSE)
    return str(known["message"]) if paused and known["here"] in (None, _conditions()) else None


def _conditions() -> str:
    """A digest of what a refusal may rest on beside the registry, and a person sets right: the keys that count, and the policies."""
    found = []
    for told in (lambda: sorted(trusted_keys()), lambda: [(places.place, places.files) for places in sources()]):
        try:
            found.append(repr(told()))
        except (ScalingNoteError, OSError) as error:
            found.append(str(error))
    return digest_of(found)


@contextmanager
def refusal_remembered(name: str) -> Iterator[None]:
    """Remember a refusal that the block raises, and forget an earlier one when it ends well. A server that does not answer is none."""
    state, here = promotion_fingerprint(name), _conditions()  # before the examination: what comes meanwhile is looked at next
    try:
        yield
    except (PromotionError, ArtifactError) as error:
        known = _refusal(name)
        times = int(known["times"]) + 1 if known and known["state"] == state else 1
        with suppress(OSError):  # it is examined again sooner, and the refusal is what has to be said
            kept = {"state": state, "here": here, "message": str(error), "at": time.time(), "times": min(times, MOST_REFUSALS)}
            write_json(_refusal_file(name), kept)
        raise
    with suppress(OSError):  # of another user; what was done is done, and another state is not refused
        _refusal_file(name).unlink(missing_ok=True)


def _refusal(name: str) -> dict[str, Any] | None:
    """What was remembered; a file that cannot be read is no more than a refusal that is examined again."""
    try:
        found = read_json(_refusal_file(name))
        at, times = float(found["at"]), found["times"]
        if type(times) is not int or not 0 < times <= MOST_REFUSALS:
            return None
        return {"state": found["state"], "here": found.get("here"), "message": found["message"], "at": at, "times": times}
    except (ArtifactError, KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _refusal_file(name: str) -> Path:
    return settings.home() / "promotion" / f"{name}.refused.json"


def _candidate_rejection(name: str, release: VersionInfo, candidates: dict[int, VersionInfo]) -> str | None:
    """Why the candidate of a release was rejected; one that was deleted since, or had its number given again, is known by its files."""
    origin = registry.copied_from(release)
    if origin is None or origin[0] != candidate_model(name):
        return None
    candidate = candidates.get(origin[1])
    known = candidate if candidate is not None and is_copy_of(release, candidate) else release
    return rejection_of_files(name, known, candidates.values())


# --- Promotion and rollback: verify, append a record, then move the aliases.


__all__ = ["Change", "promote", "resolve", "rollback"]

Smoke = Callable[[ReleaseManifest], None]


@dataclass(frozen=True)
class Change:
    """What a promotion or rollback did. `nothing`: there was nothing to do; `reconciled`: only the aliases were set right."""

    status: Literal["promoted", "rolled_back", "reconciled", "nothing"]
    message: str
    from_version: int | None
    to_version: int | None
    sequence: int | None = None
    warnings: tuple[str, ...] = ()


def promote(name: str, smoke: Smoke, compare_again: CompareAgain | None = decide_against, without_champion: str | None = None) -> Change:
    """Make the newest approved version of `<name>-release` the champion; finishes what a killed run began.

    `smoke` gets the manifest and raises when the release does not answer its smoke queries as recorded. `compare_again` decides when
    the champion is another one than the candidate was compared with; with None such an approval is refused. `without_champion` is the
    reason to promote although the champion was deleted or damaged, so that nothing can be compared with it any more. Raises
    PromotionError, with nothing promoted, for a version that is no reviewer's copy of a candidate, that does not verify, or whose gates
    did not pass without a reason; ArtifactError for records that do not hold, ConfigError for a key that cannot be used. TrackingError and
    ResourceError, of the server and of this machine, say nothing of the release.
    """
    record_signer()  # a key that cannot be used is found before anything is changed
    records = _vouched_records(name)
    repaired = reconcile(name, records)
    show_override_in_mlflow(name, records)
    champion = expected_aliases(records).champion
    versions, notes = waiting_for_promotion(name, records)
    warnings = [repaired.note, *notes] if repaired.note else notes
    if not versions:
        return _nothing(repaired, champion, warnings)
    without_champion = labels.reason(without_champion) or None
    gone = _lost_champion(name, champion, without_champion)
    promotion = _examined(name, versions[-1], records, smoke, decide_against if gone else compare_again, gone)
    promotion = replace(promotion, without_champion=without_champion)
    _require_waiting(name, promotion.release.version, records)
    record = append(name, promotion_record(name, promotion), records)
    show_override_in_mlflow(name, [*records, record])
    settle_aliases(name)
    version, candidate = promotion.release.version, promotion.approval.candidate_version
    warnings += stale_note(promotion.decisions)
    message = f"release/{version} (candidate/{candidate}) is champion."
    return Change("promoted", message, champion, version, record["sequence"], tuple(warnings))


def _require_waiting(name: str, version: int, records: Sequence[Record]) -> None:
    """Its examination may have taken minutes, in which a reviewer could look at it too."""
    left = waiting_for_promotion(name, records)
    if version not in (info.version for info in left.versions):
        why = " ".join(left.rejected) or "That version is gone."
        raise PromotionError(f"release/{version} of '{name}' was rejected or deleted while it was examined, and is not promoted. {why}")


def _lost_champion(name: str, champion: int | None, reason: str | None) -> str:
    """Why the champion cannot be opened, empty when it can; raises PromotionError when that and the reason do not fit together."""
    gone = "" if champion is None else lost(name, champion)
    if gone and not reason:
        raise PromotionError(
            f"{gone} Nothing was changed. Restore it; or go back to an earlier release (scalingnote rollback); or promote without "
            "comparing, which is kept in the promotion record: scalingnote promote --without-champion REASON."
        )
    if reason and not gone:
        state = f"release/{champion} is champion and can be opened" if champion else "there is no champion yet"
        raise PromotionError(f"{state}, so a candidate is compared with it as always. Leave --without-champion out.")
    return gone


def rollback(
    name: str, person: str, reason: str, smoke: Smoke | None = None, override: str | None = None, past_lost: bool = False
) -> Change:
    """Go back to the release that the champion replaced; each further call goes one further back.

    A rollback that was killed after its record is finished, and no second one is made. `override` is the reason to go back to a release
    that a reviewer has rejected since; with `past_lost` releases that do not verify any more are passed over. Raises PromotionError, with
    nothing changed, when there is nothing to roll back to, a name or reason is missing, the release to go back to is rejected and no
    override was given, or it does not verify.
    """
    person, reason = written(person), written(reason)
    if not person or not reason:
        raise PromotionError("A rollback needs the name of a person and a reason; give them with --as NAME and --reason REASON.")
    record_signer()
    records = _vouched_records(name)
    repaired = reconcile(name, records)
    stack = champion_stack(records)
    if repaired.kind == "finished" and (newest := moved(records)[-1])["action"] == "rollback":
        message = f"Finished the interrupted rollback to release/{stack[-1]}. Run it again to go further back."
        return Change("reconciled", message, int(newest["from_version"]), stack[-1], newest["sequence"], (repaired.note,))
    if len(stack) < 2:
        state = f"release/{stack[0]} is the first release" if stack else "no release was promoted yet"
        raise PromotionError(f"There is nothing to roll back to: {state} of '{name}'.")
    champion, (target, manifest, skipped) = stack[-1], _way_back(name, stack[:-1], past_lost)
    overridden = _reason_for_rejected(name, target, override, records)
    if smoke is not None:
        _smoke(target, manifest, smoke)
        overridden = _reason_for_rejected(name, target, override, records)  # again: a reviewer may have looked at it meanwhile
    record = append(name, rollback_record(name, records, (champion, target), person, reason, overridden, skipped), records)
    settle_aliases(name)
    warnings: tuple[str, ...] = (repaired.note,) if repaired.note else ()
    if override and overridden is None:
        warnings += (f"Nobody has rejected release/{target}, so the reason of --override was not needed, and is not kept.",)
    return Change("rolled_back", f"release/{target} is champion again.", champion, target, record["sequence"], warnings)


def _way_back(name: str, before: Sequence[int], past_lost: bool) -> tuple[int, ReleaseManifest, dict[int, str]]:
    """The newest of the releases `before` that verifies, its manifest, and why newer ones do not; only the newest without `past_lost`."""
    skipped: dict[int, str] = {}
    for target in reversed(before):
        try:
            return target, _verified(name, target, _lost_baseline(name, target)), skipped
        except (PromotionError, ArtifactError, ModelError) as error:
            skipped[target] = str(error)
            if not past_lost:
                more = " To go back past it: add --past-lost." if len(before) > 1 else ""
                raise PromotionError(f"{error}{more}") from error
    raise PromotionError(f"None of the earlier releases verifies, nothing was changed. {skipped[before[-1]]}")


def _lost_baseline(name: str, version: int) -> str:
    """Why what a release was once compared with cannot be opened: it stood then, and its record says so."""
    manifest = load_release(registry.artifact_folder(release_model(name), version))
    return "" if manifest.baseline_version is None else lost(name, manifest.baseline_version)


def _vouched_records(name: str) -> list[dict[str, Any]]:
    """The records that are built on: a signed one vouches for all before it, so what no trusted key vouched for is not signed over."""
    records = record_store.read_records(name)
    try:
        require_vouched(records)
    except ArtifactError as error:
        raise PromotionError(f"Nothing was changed: the promotion records of '{name}' are not vouched for. {error}") from None
    return records


def _reason_for_rejected(name: str, target: int, override: str | None, records: Sequence[Record]) -> str | None:
    """The reason to serve a rejected release all the same; None for a release that nobody rejected."""
    release = find_version(release_model(name), target)
    rejected = None if release is None else rejection_of(name, release) or _logged_rejection(name, release, records)
    if rejected is None:
        return None
    if not labels.reason(override):
        raise PromotionError(
            f"release/{target} of '{name}' was rejected ({rejected}), so nothing was rolled back. To serve it all the same, say why: "
            "--override REASON; it is kept in the promotion record."
        )
    return labels.reason(override)


def _logged_rejection(name: str, release: VersionInfo, records: Sequence[Record]) -> str | None:
    """Why the candidate of a release was rejected by the audit log: a server shows nothing of one that was deleted since."""
    entries, origin = reviewers.require_audit_log(records), registry.copied_from(release)
    if entries is None or origin is None:
        return None
    copied = reviewers.created_by(entries, release.name, release.version)
    return reviewers.logged_rejection(entries, origin, release.tags.get(labels.DIGEST), copied.sequence if copied else 0)


def _examined(
    name: str, release: VersionInfo, records: Sequence[Record], smoke: Smoke, compare_again: CompareAgain | None, gone: str
) -> Promotion:
    """The release after every check, with what it is promoted on; the costly ones come last."""
    origin = _origin_of(name, release)
    candidate = find_version(*origin)
    if candidate is not None and not is_copy_of(release, candidate):
        candidate = None  # it was deleted since, and its number given again
    _require_same_artifact(release, candidate)
    manifest = _verified(name, release.version, _lost_baseline(name, release.version) if gone else "")
    approval = _approval(name, release, manifest, records)
    champion = expected_aliases(records).champion
    folder = registry.artifact_folder(release.name, release.version)
    decisions = decisions_for(manifest, folder, champion, compare_again)
    require_decided(release.version, decisions, approval, records)
    foreign = foreign_policy(manifest.config.get("policy", {}))
    if foreign and not approval.override:
        raise PromotionError(
            f"release/{release.version} of '{name}' is not promoted. {foreign} Its approval gives no reason to release it all the same: "
            f"scalingnote approve candidate/{approval.candidate_version} --as NAME --override REASON, or the tag `override` where people "
            "sign in."
        )
    _smoke(release.version, manifest, smoke)
    return Promotion(release, str(release.tags[labels.DIGEST]), approval, decisions, champion, foreign)


def _approval(name: str, release: VersionInfo, manifest: ReleaseManifest, records: Sequence[Record]) -> Approval:
    """The approval, by the right person where the server knows persons.

    Read anew: the name is written after the copy, which may have woken this promotion, and the checks have taken their time.
    """
    release = find_version(release.name, release.version) or release
    entries = reviewers.require_audit_log(records)
    approval = read_approval(name, release, entries)
    if entries is not None:
        made = (candidate_model(name), approval.candidate_version)
        act = reviewers.require_reviewer(entries, release, manifest, made)
        if approval.override_by is not None:
            reviewers.require_independent(entries[: act.sequence], made, manifest, approval.override_by)
        reviewers.require_unrejected(entries, made, release.tags.get(labels.DIGEST), act.sequence)
    return approval


def _require_same_artifact(release: VersionInfo, candidate: VersionInfo | None) -> None:
    """The approved version carries the digest of what was approved: without it, changed files could pass for the right ones."""
    digest = release.tags.get(labels.DIGEST)
    if digest is None:
        raise PromotionError(
            f"{release.name}/{release.version} does not name the digest of what was approved: it was copied without its tags. "
            "Delete that version and approve the candidate again."
        )
    now = candidate.tags.get(labels.DIGEST) if candidate is not None else digest
    if now != digest:
        raise PromotionError(
            f"{release.name}/{release.version} was approved with the digest {digest[:12]}; its candidate now names {str(now)[:12]}. "
            "Somebody changed it after the approval: reject it, and build the candidate again."
        )


def _origin_of(name: str, release: VersionInfo) -> tuple[str, int]:
    """The candidate a release was copied from."""
    origin = registry.copied_from(release)
    if origin is None or origin[0] != candidate_model(name):
        came = f"was copied from {origin[0]}/{origin[1]}" if origin else "was not copied from anything"
        raise PromotionError(
            f"{release.name}/{release.version} {came}; only a copy of a version of {candidate_model(name)} is an approval. "
            "Delete that version and approve a candidate: scalingnote approve candidate/N --as NAME."
        )
    return origin


def _verified(name: str, version: int, lost: str = "") -> ReleaseManifest:
    """The manifest of a release whose every check holds; `lost` as `check_version` has it."""
    failed = [check for check in check_version(name, release_model(name), version, lost) if not check.ok]
    if failed:
        findings = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise PromotionError(f"release/{version} of '{name}' does not verify, nothing was changed. {findings}")
    return load_release(registry.artifact_folder(release_model(name), version))


def _smoke(version: int, manifest: ReleaseManifest, smoke: Smoke) -> None:
    try:
        smoke(manifest)
    except ScalingNoteError as error:
        if isinstance(error, store.TrackingError) or lack_behind(error):  # of the server or of this machine, and no fault of the release
            raise
        message = f"release/{version} failed its smoke queries, nothing was changed. {error} Approve another candidate."
        raise PromotionError(message) from error


def _nothing(repaired: Reconciled, champion: int | None, warnings: list[str]) -> Change:
    if repaired.kind == "clean":
        message = "Nothing to promote: no approved version is newer than the last one promoted."
        return Change("nothing", message, champion, champion, None, tuple(warnings))
    return Change("reconciled", repaired.note, champion, champion, None, tuple(warnings))
