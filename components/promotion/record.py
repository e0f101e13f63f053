"""What a promotion record says: the decision, made again where the champion has changed since; and records signed afterwards.

A candidate is compared with the champion of its day. Approved late, it would replace another one, which may be better: then the gates
decide again, on the candidate's evaluation and that of today's champion, both registered and digested; where the candidate lacks documents
also on those that both hold, by the rankings that lie there. Speed alone is measured anew, by
whoever can open both: times of different runs say nothing about each other. The judged queries themselves lie with the data and not with
a release, so a champion that was evaluated on other judgements is not asked here: the candidate has to be built again.

Fields that were added later have no default in older records: read them with `.get`.

Signing afterwards means the release, and one more record that vouches for the chain up to it. A record cannot be signed afterwards, since
the next one names its digest. So a record of the action `vouch` repeats the newest one, moves nothing, and is signed: as every record
names the one before it, its signature holds for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components import settings
from components.artifacts import SIGNATURE, digest_of, verify
from components.errors import ArtifactError, ConfigError, ModelError, PromotionError
from components.gates.decide import GateDecision, GateInputs, decide
from components.gates.decision import load_facts
from components.gates.policy import recorded_policy
from components.promotion.approval import Approval, given_since, moment_of
from components.release import reviewers
from components.release.champion import (
    Record,
    baseline_evaluation,
    candidate_model,
    digest_in,
    expected_aliases,
    lost,
    moved,
    release_model,
    settle_aliases,
    standing,
)
from components.release.manifest import EVALUATION_FOLDER, ReleaseManifest, load_release
from components.release.open import recorded_digest, resolve
from components.signing.keys import SigningKey, TrustedKey, not_rotating, rotating, rotation_key, take_over, trusted_keys, usable_key
from components.signing.statements import (
    check_records,
    check_release,
    check_strikes,
    covered_records,
    record_signer,
    require_vouched,
    sign_release,
    signed_by,
)
from components.text import written
from components.tracking import labels, registry
from components.tracking import promotion_records as record_store
from components.tracking.promotion_records import FORGED, STRIKE, UNREADABLE
from components.tracking.provenance import claimed_user

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.champion_comparison import ComparisonSummary
    from components.release.reviewers import AuditedAction
    from components.tracking.registry import VersionInfo


class DatedDecision(NamedTuple):
    """A decision, and the version of the release model that the candidate was held against (None: a first release).

    `comparison` is what was measured for this decision alone and lies in no artifact.
    """

    against: int | None
    decision: GateDecision
    comparison: ComparisonSummary | None = None

    @property
    def digest(self) -> str:
        """sha256 (hex) of the decision's canonical JSON."""
        return digest_of(self.decision.model_dump(mode="json"))


CompareAgain = Callable[[Path, int | None], DatedDecision]


def decide_against(
    folder: Path,
    champion: int | None,
    comparison: ComparisonSummary | None = None,
    problem: str = "",
    shared: pd.DataFrame | None = None,
) -> DatedDecision:
    """Decide about the release in `folder` as if `champion` had been there when it was built.

    `comparison` holds their speeds if they were timed in one run, else `problem` says why they were not; what the candidate was built with
    is about another champion. `shared` says what each of the two serves (see `values_of_runs`). One that was deleted or whose files were
    changed leaves its gates undecided.
    """
    from components.evaluation.report import load_evaluation

    manifest = load_release(folder)
    gone = "" if champion is None else lost(manifest.name, champion)
    baseline = None if champion is None or gone else baseline_evaluation(manifest.name, champion)
    report, facts = load_evaluation(folder / EVALUATION_FOLDER), load_facts(folder)
    if facts is not None:
        facts = facts.model_copy(update={"uncompared": "" if champion is None else _uncompared(champion, problem)})
    evidence = GateInputs(report, baseline, comparison, facts, champion=champion, lost=gone, shared=shared)
    return DatedDecision(champion, decide(evidence, recorded_policy(manifest.config)), comparison)


def _uncompared(champion: int, problem: str) -> str:
    advice = f"Build the candidate again by the same command: finished steps come from the cache, and release/{champion} is asked as well."
    return f"{problem} {advice}".strip()


def decisions_for(
    manifest: ReleaseManifest, folder: Path, champion: int | None, compare_again: CompareAgain | None
) -> tuple[DatedDecision, ...]:
    """The candidate's decision, and after it the one against today's champion when that is another one than it was compared with.

    Raises PromotionError for a stale comparison when there is no `compare_again`.
    """
    first = DatedDecision(manifest.baseline_version, manifest.decision)
    if first.against == champion:
        return (first,)
    if compare_again is None:
        raise PromotionError(f"{_stale(first.against, champion)} It has to be compared again; nothing was changed.")
    return first, compare_again(folder, champion)


def require_decided(version: int, decisions: Sequence[DatedDecision], approval: Approval, records: Sequence[Record]) -> None:
    """Raise PromotionError unless the last decision is a pass or a reviewer gave a reason to release it all the same, knowing it."""
    last, stale = decisions[-1], len(decisions) > 1
    if last.decision.verdict == "pass":
        return
    if approval.override and (not stale or given_since(approval.override_at, records)):
        return
    gates = " ".join(f"{gate.name}: {gate.told}" for gate in last.decision.open_gates())
    subject = f"{_stale(decisions[0].against, last.against)} Compared again, it" if stale else f"release/{version}"
    before = _why_older(records) if approval.override else ""
    raise PromotionError(
        f"{subject} did not pass its gates ({last.decision.verdict}): {gates} Its approval gives no reason to release it all the same."
        f"{before} Give one: scalingnote approve candidate/{approval.candidate_version} --as NAME --override REASON, or, where people "
        f"sign in, the tag `override` on release/{version} in the MLflow UI. Or reject it: the tag `review` = `rejected: REASON`."
    )


def _why_older(records: Sequence[Record]) -> str:
    """Why the reason that was given does not count. None ever would after a record of a clock that ran ahead."""
    newest = next((str(record.get("time")) for record in reversed(moved(records))), "")
    moment = moment_of(newest)
    if moment is not None and moment > datetime.now(UTC) + settings.CLOCK_SLACK:
        return (
            f" The newest promotion record is dated {newest}, later than this machine's clock, so that no reason counts as given after it: "
            "set the clock right. Where the record is wrong, make another promotion or rollback first, and give the reason after that."
        )
    return " The reason that was given is older than that champion, or has no time."


def stale_note(decisions: Sequence[DatedDecision]) -> list[str]:
    """A sentence about a second decision; nothing when there was none."""
    if len(decisions) == 1:
        return []
    first, last = decisions[0], decisions[-1]
    return [f"{_stale(first.against, last.against)} Compared again: {last.decision.verdict}."]


def _stale(compared: int | None, champion: int | None) -> str:
    was = f"release/{compared}" if compared is not None else "no champion"
    now = f"release/{champion}" if champion is not None else "none"
    return f"The gates compared this candidate with {was}; the champion it replaces is {now}."


# --- The content of promotion records: from where to where, who, when and why, and the digests of what the decision rests on.


UNAUTHENTICATED = "unauthenticated"


@dataclass(frozen=True)
class Promotion:
    """A verified release that is about to become champion. `decisions`: its own, and one against today's champion if that changed.

    `digest` is the one that was approved and verified; files that were swapped since make the record fail. `foreign_policy` is None where
    the policy is the installation's, `without_champion` the reason to promote although the champion cannot be opened.
    """

    release: VersionInfo
    digest: str
    approval: Approval
    decisions: tuple[DatedDecision, ...]
    champion: int | None
    foreign_policy: str | None = None
    without_champion: str | None = None

    @property
    def overridden(self) -> bool:
        """Whether it needs the reviewer's reason: the decision against the champion did not pass, or was another policy's."""
        return self.decisions[-1].decision.verdict != "pass" or self.foreign_policy is not None


def promotion_record(name: str, promotion: Promotion) -> dict[str, Any]:
    """Content of the record of a promotion. Raises ArtifactError for files that are not those that were verified any more."""
    approval, last, digest = promotion.approval, promotion.decisions[-1], promotion.digest
    folder = verify(registry.artifact_folder(release_model(name), promotion.release.version), digest).path
    return {
        "action": "promote",
        "from_version": promotion.champion,
        "to_version": promotion.release.version,
        "candidate_version": approval.candidate_version,
        "manifest_digest": digest,
        "packages": _packages(name, promotion.release.version, folder),
        "evidence_digest": digest,  # the copy shares the files of its candidate: manifest, pins, evaluation, report under one digest
        "decision_digest": promotion.decisions[0].digest,
        "verdict": last.decision.verdict,
        "first_release": last.decision.first_release,
        "decisions": [_decided(decided) for decided in promotion.decisions] if len(promotion.decisions) > 1 else None,
        "approved_by": approval.person or UNAUTHENTICATED,
        "approved_at": approval.approved_at,
        "role": approval.role,
        "override": approval.override if promotion.overridden else None,
        "override_by": approval.override_by if promotion.overridden else None,
        "reason": approval.override,
        "promoted_by": claimed_user(),
        "foreign_policy": promotion.foreign_policy,
        "without_champion": promotion.without_champion,
        **_proof(approval.authentication, approval.audit_sequence, approval.audit_digest),
    }


def rollback_record(
    name: str,
    records: Sequence[Record],
    versions: tuple[int, int],
    person: str,
    reason: str,
    override: str | None = None,
    skipped: Mapping[int, str] | None = None,
) -> dict[str, Any]:
    """Content of the record of a rollback. Where there is an audit log, the tag with the reason is the act that names the person.

    `override`: why a release is served again that a reviewer has rejected; `skipped`: releases between that cannot be served, and why.
    """
    champion, target = versions
    promoted = next(r for r in reversed(standing(records)) if r["action"] == "promote" and int(r["to_version"]) == target)
    act = _proven_rollback(name, records, champion, reason)
    proof = _proof("none", None, None) if act is None else _proof("basic", act.sequence, act.digest)
    digest = digest_in(promoted)
    folder = verify(registry.artifact_folder(release_model(name), target), digest).path
    return {
        "action": "rollback",
        "from_version": champion,
        "to_version": target,
        "candidate_version": promoted.get("candidate_version"),
        "manifest_digest": digest,
        "packages": _packages(name, target, folder),
        "evidence_digest": digest,
        "approved_by": act.person if act else person,
        "claimed_by": person,
        "role": act.role if act else None,
        "override": override,
        "override_by": person if override else None,
        "reason": reason,
        "skipped": {str(version): why for version, why in skipped.items()} if skipped else None,
        **proof,
    }


def append(name: str, content: dict[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """Write the record with its time, signed where there is a key. It is the act that counts.

    The key is the one that signs now: another may have come while the release was looked at, and then it has to vouch for the `records`
    too. Raises PromotionError when another record came since `records` were read, as what was decided on them may no longer hold; and for
    what is no number, as every later reader would call the record changed, and nothing could be promoted or served any more.
    """
    with not_rotating():
        sign = record_signer()
        try:
            require_vouched(records)
        except ArtifactError as error:
            raise PromotionError(f"Nothing was changed: other keys count since this command began. {error}") from None
        return _append(name, content, records, sign)


def _append(name: str, content: dict[str, Any], records: Sequence[Record], sign: record_store.Signer | None) -> dict[str, Any]:
    try:
        json.dumps(content, default=str, allow_nan=False)
    except ValueError:
        raise PromotionError(
            f"The promotion record of '{name}' would hold a number that is none (nan or infinity), which no reader of records takes. "
            "Nothing was recorded. Build the candidate again."
        ) from None
    return record_store.append_record(name, {**content, "time": datetime.now(UTC).isoformat()}, sign, len(records))


def _packages(name: str, version: int, folder: Path) -> dict[str, str]:
    """Digests of what lists the code of the release and of its parts; without those that were registered before there were lists."""
    places = [(release_model(name), version), *((pin.model, pin.version) for _, pin in load_release(folder).pins.items())]
    found = {f"{model}/{number}": registry.package_digest(model, number) for model, number in places}
    return {place: digest for place, digest in found.items() if digest}


def _decided(decided: DatedDecision) -> dict[str, Any]:
    comparison = decided.comparison.model_dump(mode="json") if decided.comparison is not None else None
    decision = decided.decision.model_dump(mode="json")
    return {"against": decided.against, "digest": decided.digest, "decision": decision, "comparison": comparison}


def _proof(authentication: str, sequence: int | None, digest: str | None) -> dict[str, Any]:
    """Without an audit log nobody's identity was proven: the names are what tags and the command line claim."""
    proven = authentication if authentication != "none" else UNAUTHENTICATED
    return {"authentication": proven, "audit_sequence": sequence, "audit_digest": digest}


def _proven_rollback(name: str, records: Sequence[Record], champion: int, reason: str) -> AuditedAction | None:
    """Tag the release that is left, so that the server's log says who did it; None where there is no log."""
    if (before := reviewers.require_audit_log(records)) is None:
        return None
    registry.set_version_tag(release_model(name), champion, reviewers.ROLLED_BACK, reason)
    entries = reviewers.require_audit_log(records) or []
    release = next((info for info in registry.versions(release_model(name)) if info.version == champion), None)
    act = None if release is None else reviewers.tag_act(entries, release, labels.PREFIX + reviewers.ROLLED_BACK)
    return act if act is not None and act.sequence > len(before) else None  # an older one is of somebody else, who was killed then


# --- Signing afterwards what was promoted before there was a key, or with one that is withdrawn now.


# What the chain gives every record itself, or what is said anew.
_OWN = {"sequence", "previous", "recorded_at", "retriever", "digest", "signature", "time"}


class Vouched(NamedTuple):
    """The version that was signed, with which key, and the number of the record that vouches; None where none was needed."""

    model: str
    version: int
    key_id: str
    sequence: int | None


class Struck(NamedTuple):
    """The number of the record that strikes out, those that it names, those before that it vouches for, and what is champion now."""

    sequence: int
    struck: list[int]
    vouched: list[int]
    champion: int | None
    key_id: str


@not_rotating()
def sign_afterwards(name: str, ref: str) -> Vouched:
    """Sign the release `ref`; where it is the champion and the newest promotion record has no signature, vouch for the records too.

    Raises ConfigError without a key, or with one that is not trusted where others are, ArtifactError for a release that was changed or a
    chain that is broken, PromotionError for an unknown reference.
    """
    key = usable_key()
    if key is None:
        raise ConfigError("There is no signing key. Make one with `scalingnote keys new`, or name one in SCALINGNOTE_SIGNING_KEY.")
    model, version = resolve(name, ref)
    records = record_store.read_records(name)
    folder = verify(registry.artifact_folder(model, version), recorded_digest(name, model, version, records)).path
    sign_release(folder)
    registry.share_file(model, version, SIGNATURE)
    unsigned = model == release_model(name) and _is_uncovered(records, version)
    if unsigned:
        _require_no_strike(records)
    return Vouched(model, version, key.key_id, _append_vouch(name, records, key) if unsigned else None)


class Rotated(NamedTuple):
    """The key that signs from now on, what it signed again, and what was left as it is, with the reason."""

    key_id: str
    signed: list[str]
    left: list[str]
    withdrawn: list[Path]


@rotating()
def rotate() -> Rotated:
    """Give this home a new signing key: all that a trusted key had signed is signed again, then the former key is withdrawn.

    Of every retriever in the tracking store: candidates and releases, and one more record that vouches for the chain. Nothing stops being
    served on the way: both keys are trusted until the new one has signed all. A rotation that was killed is finished by the next.
    Raises ConfigError as `rotation_key` does, ArtifactError for a chain that no trusted key vouches for: look at it first.
    """
    key = rotation_key()
    signed: list[str] = []
    left: list[str] = []
    for name in registry.retrievers():
        records = record_store.read_records(name)
        if not records and not registry.versions(candidate_model(name)):
            continue  # somebody else's model, whose name ends like one of ours
        if records:
            check_records(records, trusted_keys())
        for model in (candidate_model(name), release_model(name)):
            for info in registry.versions(model):
                place = f"{model}/{info.version}"
                try:
                    _sign_again(name, info, records, key)
                    signed.append(place)
                except (ArtifactError, ModelError) as error:
                    left.append(f"{place}: {error}")
        if records and covered_records(records, {key.key_id: TrustedKey(key.path, key.public)}) < len(records):
            signed.append(f"{name}-promotions/{_append_vouch(name, records, key)}")
    return Rotated(key.key_id, signed, left, take_over(key))


def _sign_again(name: str, info: VersionInfo, records: Sequence[Record], key: SigningKey) -> None:
    """Sign a version with `key` that is whole and that a trusted key had signed; another one is for a person to look at."""
    folder = verify(registry.artifact_folder(info.name, info.version), recorded_digest(name, info.name, info.version, records)).path
    if not (folder / SIGNATURE).is_file():
        raise ArtifactError("It was not signed, and stays so. Sign it: scalingnote keys sign REF.")
    if (found := check_release(folder, trusted_keys())) and found.key_id == key.key_id:
        return
    sign_release(folder, key)
    registry.share_file(info.name, info.version, SIGNATURE)


@not_rotating()
def strike(name: str, number: int, person: str, reason: str) -> Struck:
    """Strike record `number`, which was forged, and all records after it out: one more record, signed, names them and why.

    From then on they decide nothing, and what stood before them does; the signature vouches for those before. The aliases follow. Raises
    PromotionError without a name or reason, for a number that no record has, and for records that a trusted key signed: those are
    taken back by `rollback`; ConfigError where no trusted key signs; ArtifactError where the records before do not hold either.
    """
    person, reason = written(person), written(reason)
    if not person or not reason:
        raise PromotionError("To strike a record out needs the name of a person and a reason; give them with --as NAME and --reason TEXT.")
    key, trusted_by, records = usable_key(), trusted_keys(), record_store.read_records(name, unread=True)
    if key is None or not trusted_by:
        raise ConfigError(
            "Only a key that is trusted here can strike a record out: without one anybody could. Nothing was changed. "
            "Make one with `scalingnote keys new`."
        )
    if (done := _struck_before(number, records, trusted_by)) is not None:
        settle_aliases(name)
        return Struck(int(done["sequence"]), sorted(map(int, done["struck"])), [], done["to_version"], key.key_id)
    if not 0 < number <= len(records):
        raise PromotionError(f"'{name}' has no promotion record {number}; there are {len(records)}. See `scalingnote history`.")
    before, forged = records[: number - 1], records[number - 1 :]
    _require_unsigned(before, forged, trusted_by)
    _require_unknown(name, forged)
    left = expected_aliases(before).champion
    content = {
        "action": STRIKE,
        "from_version": _champion_of(records),
        "to_version": left,
        "struck": {str(record["sequence"]): record["digest"] for record in forged},
        "keeps": {"sequence": before[-1]["sequence"], "digest": before[-1]["digest"]} if before else None,
        "reason": reason,
        "approved_by": person,
        "promoted_by": claimed_user(),
        **_proof("none", None, None),
    }
    record = _append(name, content, records, record_signer(key))
    settle_aliases(name)
    vouched = [int(found["sequence"]) for found in before[covered_records(before, trusted_by) :]]
    return Struck(int(record["sequence"]), [int(found["sequence"]) for found in forged], vouched, left, key.key_id)


def _struck_before(number: int, records: Sequence[Record], trusted_by: Mapping[str, TrustedKey]) -> Record | None:
    """The strike by a trusted key that has struck out record `number` and all that came after it: one that was killed then is finished."""
    found: Record | None = None
    with suppress(ArtifactError):  # a false strike, which is to be struck out
        found = record_store.struck_out(records).get(number)
    if found is None or str(number - 1) in found["struck"] or not trusted_by.keys() & set(signed_by(found, trusted_by)):
        return None
    return found


def _require_unsigned(before: Sequence[Record], forged: Sequence[Record], trusted_by: Mapping[str, TrustedKey]) -> None:
    """None of the `forged` records carries a signature that counts, and those `before` hold."""
    if lost := next((record for record in standing(before) if record.get("action") == UNREADABLE), None):
        raise ArtifactError(f"{lost['problem']} That stands before record {forged[0]['sequence']}. {FORGED.format(lost['sequence'])}")
    check_strikes(before, trusted_by)
    for record in forged:
        if names := trusted_by.keys() & set(signed_by(record, trusted_by)):
            raise PromotionError(
                f"Promotion record {record['sequence']} is signed by the trusted key {min(names)[:16]}, so it is no forgery by what counts "
                "here, and nothing was changed. A decision that was wrong is taken back by `scalingnote rollback`. Where that key leaked, "
                "take it away from the trusted keys first, and sign with another."
            )


def _require_unknown(name: str, forged: Sequence[Record]) -> None:
    """A record whose file is gone may have been a true one: then a release names it, or one after it, as the head of the chain."""
    lost = [int(record["sequence"]) for record in forged if record.get("action") == UNREADABLE]
    heads = record_store.stated_heads(name).items() if lost else ()
    if stated := next((version for version, (number, _) in heads if number >= lost[0]), None):
        raise PromotionError(
            f"Promotion record {lost[0]} cannot be read, and release/{stated} names it, or one that came after it, as the head of the "
            "chain: it was a true one, so its file has to come back from a backup. Nothing was changed. Where that tag "
            f"({record_store.HEAD}) was forged, as an auditor's anchor or the audit log can tell, delete it in MLflow first."
        )


def _champion_of(records: Sequence[Record]) -> int | None:
    """What the records say while the forged ones count; None where they lead nowhere."""
    try:
        return expected_aliases(records).champion
    except ArtifactError:
        return None


def _is_uncovered(records: Sequence[Record], version: int) -> bool:
    """Whether the release is the champion by records of which no signature that counts covers the newest."""
    return expected_aliases(records).champion == version and covered_records(records, trusted_keys()) < len(records)


def _require_no_strike(records: Sequence[Record]) -> None:
    """A strike that no trusted key signed is not made right by a signature that somebody gives for all records, perhaps without a look."""
    covered = covered_records(records, trusted_keys()) if trusted_keys() else len(records)
    struck = record_store.struck_out(records)
    live = (record["sequence"] for record in records[covered:] if record.get("action") == STRIKE and record["sequence"] not in struck)
    if number := next(live, 0):
        raise PromotionError(f"Promotion record {number} strikes out others, and no trusted key signed it. {FORGED.format(number)}")


def _append_vouch(name: str, records: Sequence[Record], key: SigningKey) -> int:
    """The number of one more record, signed with `key`, that says what the newest says."""
    record = _append(name, _repeated(standing(records)), records, record_signer(key))
    record_store.state_head(name, [*records, record])
    return int(record["sequence"])


def _repeated(decided: Sequence[Record]) -> dict[str, Any]:
    """What the newest record that counts says; where all were struck out, that nothing is served."""
    newest = decided[-1] if decided else {"to_version": None, "approved_by": UNAUTHENTICATED}
    content = {field: value for field, value in newest.items() if field not in _OWN}
    return {**content, "action": "vouch", "from_version": newest["to_version"], "vouched_by": claimed_user()}
