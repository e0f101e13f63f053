"""Decisions that a promotion stands on: the candidate's own, and a second one when the champion changed since.

A candidate is compared with the champion of its day. Approved late, it would replace another one, which may be better: then the gates
decide again, on the candidate's evaluation and that of today's champion, both registered and digested. Speed alone is measured anew, by
whoever can open both: times of different runs say nothing about each other. The judged queries themselves lie with the data and not with
a release, so a champion that was evaluated on other judgements is not asked here: the candidate has to be built again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.artifacts import digest_of
from components.errors import PromotionError
from components.gates.decide import Evidence, GateDecision, decide
from components.gates.facts import load_facts
from components.gates.policy import recorded_policy
from components.promotion.approval import Approval, given_since
from components.release.baseline import baseline_evaluation, lost
from components.release.champion import Record
from components.release.manifest import EVALUATION_FOLDER, ReleaseManifest, load_release

if TYPE_CHECKING:
    from components.evaluation.comparison import ComparisonSummary


class Decided(NamedTuple):
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


CompareAgain = Callable[[Path, int | None], Decided]


def decide_again(folder: Path, champion: int | None, comparison: ComparisonSummary | None = None, problem: str = "") -> Decided:
    """Decide about the release in `folder` as if `champion` had been there when it was built.

    `comparison` holds their speeds if they were timed in one run, else `problem` says why they were not; what the candidate was built with
    is about another champion. One that was deleted or whose files were changed leaves its gates undecided.
    """
    from components.evaluation.report import load_evaluation

    manifest = load_release(folder)
    gone = "" if champion is None else lost(manifest.name, champion)
    baseline = None if champion is None or gone else baseline_evaluation(manifest.name, champion)
    facts = load_facts(folder)
    if facts is not None:
        facts = facts.model_copy(update={"uncompared": "" if champion is None else _uncompared(champion, problem)})
    evidence = Evidence(load_evaluation(folder / EVALUATION_FOLDER), baseline, comparison, facts, champion=champion, lost=gone)
    return Decided(champion, decide(evidence, recorded_policy(manifest.config)), comparison)


def _uncompared(champion: int, problem: str) -> str:
    advice = f"Build the candidate again by the same command: finished steps come from the cache, and release/{champion} is asked as well."
    return f"{problem} {advice}".strip()


def decisions_for(manifest: ReleaseManifest, folder: Path, champion: int | None, compare_again: CompareAgain | None) -> tuple[Decided, ...]:
    """The candidate's decision, and after it the one against today's champion when that is another one than it was compared with.

    Raises PromotionError for a stale comparison when there is no `compare_again`.
    """
    first = Decided(manifest.baseline_version, manifest.decision)
    if first.against == champion:
        return (first,)
    if compare_again is None:
        raise PromotionError(f"{_stale(first.against, champion)} It has to be compared again; nothing was changed.")
    return first, compare_again(folder, champion)


def require_decided(version: int, decisions: Sequence[Decided], approval: Approval, records: Sequence[Record]) -> None:
    """Raise PromotionError unless the last decision is a pass or a reviewer gave a reason to release it all the same, knowing it."""
    last, stale = decisions[-1], len(decisions) > 1
    if last.decision.verdict == "pass":
        return
    if approval.override and (not stale or given_since(approval.override_at, records)):
        return
    gates = " ".join(f"{gate.name}: {gate.reason}" for gate in last.decision.open_gates())
    subject = f"{_stale(decisions[0].against, last.against)} Compared again, it" if stale else f"release/{version}"
    before = " The reason that was given is older than that champion, or has no time." if approval.override else ""
    raise PromotionError(
        f"{subject} did not pass its gates ({last.decision.verdict}): {gates} Its approval gives no reason to release it all the same."
        f"{before} Give one: scalingnote approve candidate/{approval.candidate_version} --override REASON, or, where people "
        f"sign in, the tag `override` on release/{version} in the MLflow UI. Or reject it: the tag `review` = `rejected: REASON`."
    )


def stale_note(decisions: Sequence[Decided]) -> list[str]:
    """A sentence about a second decision; nothing when there was none."""
    if len(decisions) == 1:
        return []
    first, last = decisions[0], decisions[-1]
    return [f"{_stale(first.against, last.against)} Compared again: {last.decision.verdict}."]


def _stale(compared: int | None, champion: int | None) -> str:
    was = f"release/{compared}" if compared is not None else "no champion"
    now = f"release/{champion}" if champion is not None else "none"
    return f"The gates compared this candidate with {was}; the champion it replaces is {now}."
