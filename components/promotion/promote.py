"""Promotion and rollback: verify, append a record, then move the aliases.

The record is the one act that counts; the aliases follow it. A run that is killed between two calls is finished by the next one, and
a run with nothing new to promote changes nothing. Only the newest approved version is promoted: older ones that were approved but
never promoted are passed over for good, and a new approval of the same candidate makes a new version.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from components.artifacts import open_artifact
from components.errors import PromotionError, ScalingNoteError
from components.promotion.approval import Approval, claimed_approval, find_version, rejection
from components.promotion.attestation import record_signer
from components.promotion.references import resolve
from components.promotion.release import ReleaseManifest, load_release
from components.promotion.standing import (
    Reconciled,
    Record,
    candidate_model,
    current_aliases,
    expected_aliases,
    place_aliases,
    reconcile,
    release_model,
    replay,
    trusted,
    trusted_version,
)
from components.promotion.verification import check_version
from components.tracking import records as record_store
from components.tracking import registry

if TYPE_CHECKING:
    from components.tracking.registry import VersionInfo

__all__ = ["Change", "promote", "resolve", "rollback", "trusted", "trusted_version"]

UNAUTHENTICATED = "unauthenticated"
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


def promote(name: str, smoke: Smoke) -> Change:
    """Make the newest approved version of `<name>-release` the champion; finishes what a killed run began.

    `smoke` gets the manifest and raises when the release does not answer its smoke queries as recorded. Raises PromotionError, with
    nothing changed, for a version that is no copy of a candidate, that does not verify, or whose gates did not pass without a reason.
    """
    records = record_store.read_records(name)
    repaired = reconcile(name, records)
    champion = expected_aliases(records).champion
    release, warnings = _newest_approved(name, records)
    warnings = [repaired.note, *warnings] if repaired.note else warnings
    if release is None:
        return _nothing(repaired, champion, warnings)
    candidate = _candidate_of(name, release)
    manifest = _verified(name, release.version)
    claim = claimed_approval(name, release, candidate)
    _require_decided(release.version, manifest, claim)
    _smoke(release.version, manifest, smoke)
    warnings += _stale_baseline(manifest, champion)
    record = _append(name, _promotion(name, release, claim, manifest, champion))
    place_aliases(name, expected_aliases([*records, record]), current_aliases(name))
    message = f"release/{release.version} (candidate/{claim.candidate_version}) is champion."
    return Change("promoted", message, champion, release.version, record["sequence"], tuple(warnings))


def rollback(name: str, person: str, reason: str, smoke: Smoke | None = None) -> Change:
    """Go back to the release that the champion replaced; each further call goes one further back.

    A rollback that was killed after its record is finished, and no second one is made. Raises PromotionError, with nothing changed,
    when there is nothing to roll back to, a name or reason is missing, or the release to go back to does not verify.
    """
    person, reason = person.strip(), reason.strip()
    if not person or not reason:
        raise PromotionError("A rollback needs the name of a person and a reason; give them with --as NAME and --reason REASON.")
    records = record_store.read_records(name)
    repaired = reconcile(name, records)
    stack = replay(records)
    if repaired.kind == "finished" and records[-1]["action"] == "rollback":
        message = f"Finished the interrupted rollback to release/{stack[-1]}. Run it again to go further back."
        return Change("reconciled", message, int(records[-1]["from_version"]), stack[-1], records[-1]["sequence"], (repaired.note,))
    if len(stack) < 2:
        state = f"release/{stack[0]} is the first release" if stack else "no release was promoted yet"
        raise PromotionError(f"There is nothing to roll back to: {state} of '{name}'.")
    champion, target = stack[-1], stack[-2]
    manifest = _verified(name, target)
    if smoke is not None:
        _smoke(target, manifest, smoke)
    record = _append(name, _rollback(name, records, (champion, target), person, reason))
    place_aliases(name, expected_aliases([*records, record]), current_aliases(name))
    warnings = (repaired.note,) if repaired.note else ()
    return Change("rolled_back", f"release/{target} is champion again.", champion, target, record["sequence"], warnings)


def _newest_approved(name: str, records: Sequence[Record]) -> tuple[VersionInfo | None, list[str]]:
    """The newest version that stands above all that any record names and was not rejected, and notes about those left out."""
    newest = max((int(record["to_version"]) for record in records), default=0)
    fresh = [info for info in registry.versions(release_model(name)) if info.version > newest]
    rejected = [f"release/{info.version} is marked as rejected ({rejection(info)}) and was left out." for info in fresh if rejection(info)]
    approved = [info for info in fresh if not rejection(info)]
    return max(approved, key=lambda info: info.version, default=None), rejected


def _candidate_of(name: str, release: VersionInfo) -> VersionInfo | None:
    """The candidate a release was copied from; None when it was deleted since."""
    origin = registry.copied_from(release)
    if origin is None or origin[0] != candidate_model(name):
        came = f"was copied from {origin[0]}/{origin[1]}" if origin else "was not copied from anything"
        raise PromotionError(
            f"{release.name}/{release.version} {came}; only a copy of a version of {candidate_model(name)} is an approval. "
            "Delete that version and approve a candidate: scalingnote approve candidate/N --as NAME."
        )
    return find_version(*origin)


def _verified(name: str, version: int) -> ReleaseManifest:
    """The manifest of a release whose every check holds."""
    failed = [check for check in check_version(name, release_model(name), version) if not check.ok]
    if failed:
        findings = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise PromotionError(f"release/{version} of '{name}' does not verify, nothing was changed. {findings}")
    return load_release(registry.artifact_folder(release_model(name), version))


def _require_decided(version: int, manifest: ReleaseManifest, claim: Approval) -> None:
    if manifest.decision.verdict == "pass" or claim.override:
        return
    raise PromotionError(
        f"release/{version} did not pass its gates ({manifest.decision.verdict}) and its approval gives no reason to release it all the "
        f"same. Give one: scalingnote approve candidate/{claim.candidate_version} --as NAME --override REASON."
    )


def _smoke(version: int, manifest: ReleaseManifest, smoke: Smoke) -> None:
    try:
        smoke(manifest)
    except ScalingNoteError as error:
        message = f"release/{version} failed its smoke queries, nothing was changed. {error} Approve another candidate."
        raise PromotionError(message) from error


def _stale_baseline(manifest: ReleaseManifest, champion: int | None) -> list[str]:
    compared = manifest.baseline_version
    if compared == champion:
        return []
    was = f"release/{compared}" if compared is not None else "no champion"
    now = f"release/{champion}" if champion is not None else "none"
    return [f"The gates compared this candidate with {was}; the champion it replaces is {now}."]


def _promotion(name: str, release: VersionInfo, claim: Approval, manifest: ReleaseManifest, champion: int | None) -> dict[str, Any]:
    return {
        "action": "promote",
        "from_version": champion,
        "to_version": release.version,
        "candidate_version": claim.candidate_version,
        "manifest_digest": open_artifact(registry.artifact_folder(release_model(name), release.version)).digest,
        "verdict": manifest.decision.verdict,
        "first_release": manifest.decision.first_release,
        "approved_by": claim.person or UNAUTHENTICATED,
        "approved_at": claim.approved_at,
        "override": claim.override,
        "reason": claim.override,
    }


def _rollback(name: str, records: Sequence[Record], versions: tuple[int, int], person: str, reason: str) -> dict[str, Any]:
    champion, target = versions
    promoted = next(r for r in reversed(records) if r["action"] == "promote" and int(r["to_version"]) == target)
    return {
        "action": "rollback",
        "from_version": champion,
        "to_version": target,
        "candidate_version": promoted["candidate_version"],
        "manifest_digest": open_artifact(registry.artifact_folder(release_model(name), target)).digest,
        "approved_by": person,
        "override": None,
        "reason": reason,
    }


def _append(name: str, record: dict[str, Any]) -> dict[str, Any]:
    # Nobody's identity was proven: the names are what tags and the command line claim.
    complete = {**record, "authentication": UNAUTHENTICATED, "time": datetime.now(UTC).isoformat()}
    return record_store.append_record(name, complete, record_signer())


def _nothing(repaired: Reconciled, champion: int | None, warnings: list[str]) -> Change:
    if repaired.kind == "clean":
        message = "Nothing to promote: no approved version is newer than the last one promoted."
        return Change("nothing", message, champion, champion, None, tuple(warnings))
    return Change("reconciled", repaired.note, champion, champion, None, tuple(warnings))
