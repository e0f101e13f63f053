"""The gates of a candidate: one pure function from measurements and a policy to a decision with reasons.

A gate that lacks a number, meets one that is not finite, or would compare what cannot be compared is `not_decidable`; only a
measured value on the right side of its threshold is a pass. Comparisons use the paired bootstrap over queries. The policy's
confidence is one-sided, so the interval taken is the two-sided one at `2 * confidence - 1` and only its lower end decides.

The gate of the index (`ann_recall`) is apart from those of the models: it holds the index against exact search on the same vectors, so
no encoder can raise or lower it. Its lower end decides as well, since the recall is known from a sample of queries only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from components.promotion.config import PolicyConfig
from components.promotion.decision import Evidence as Evidence
from components.promotion.decision import GateDecision as GateDecision
from components.promotion.decision import GateResult as GateResult
from components.promotion.decision import Status as Status
from components.promotion.decision import Verdict as Verdict

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.report import Evaluation
    from components.evaluation.significance import Interval

BOOTSTRAP_SAMPLES = 2000
BOOTSTRAP_SEED = 13  # fixed: the same report and policy always give the same decision, so it can be recomputed
ANN_DEPTH = 100  # documents of exact search that the index has to find
SUMMARY_TOLERANCE = 1e-4  # absolute; a summary may be rounded to four digits, but not tell another story than its queries


class _NotDecidableError(Exception):
    """Internal: its message becomes the reason of the gate."""


def decide(evidence: Evidence, policy: PolicyConfig) -> GateDecision:
    """Hold a candidate's evaluation against the champion's and the policy; pure, raises nothing for bad measurements.

    `baseline` is the champion's own evaluation, None when nothing was released yet. The verdict is `fail` if any gate fails, else
    `not_decidable` if any gate is, else `pass`.
    """
    report, baseline = evidence.report, evidence.baseline
    gates = (
        _gate("enough_queries", policy.min_queries, lambda: _enough_queries(report, policy)),
        _gate("retention", policy.min_retention, lambda: _retention(report, policy)),
        _beats("beats_bm25", "bm25", report, policy) if policy.beat_bm25 else _off("beats_bm25"),
        _beats("beats_untrained", "student_untrained", report, policy) if policy.beat_untrained else _off("beats_untrained"),
        _gate("champion_non_inferior", -policy.margin, lambda: _non_inferior(report, baseline, policy)),
        _gate("speed_up", policy.min_speed_up, lambda: _speed_up(report, policy)),
        _of_the_index(report, policy),
    )
    statuses = {gate.status for gate in gates}
    verdict: Verdict = "fail" if "fail" in statuses else "not_decidable" if "not_decidable" in statuses else "pass"
    return GateDecision(verdict=verdict, first_release=baseline is None, gates=gates)


_Outcome = tuple[Status, str, float | None]


def _gate(name: str, threshold: float, measure: Callable[[], _Outcome]) -> GateResult:
    try:
        status, reason, value = measure()
    except _NotDecidableError as error:
        return GateResult(name=name, status="not_decidable", reason=str(error), threshold=threshold)
    return GateResult(name=name, status=status, reason=reason, value=value, threshold=threshold)


def _off(name: str) -> GateResult:
    return GateResult(name=name, status="off", reason="Switched off by the policy.")


def _enough_queries(report: Evaluation, policy: PolicyConfig) -> _Outcome:
    queries = report.summary.queries
    if queries < policy.min_queries:
        raise _NotDecidableError(f"{queries} judged queries; at least {policy.min_queries} are needed to decide anything.")
    measured = report.per_query["query_id"].nunique() if len(report.per_query) else 0
    if measured != queries:
        raise _NotDecidableError(f"The report names {queries} judged queries but holds measurements for {measured}.")
    return "pass", f"{queries} judged queries, at least {policy.min_queries} needed.", float(queries)


def _retention(report: Evaluation, policy: PolicyConfig) -> _Outcome:
    student = _scores(report, "student", "recall@50").mean()
    teacher = _scores(report, "teacher", "recall@50").mean()
    if teacher <= 0:
        raise _NotDecidableError("The teacher's recall@50 is 0, so there is nothing to retain; look at the teacher first.")
    value = float(student / teacher)
    stated = _finite(_mapping(report.summary.retention).get("recall@50"), "retention of recall@50")
    if abs(stated - value) > 10 * SUMMARY_TOLERANCE:
        raise _NotDecidableError(f"The summary states a retention of {stated:.4f}, its queries give {value:.4f}.")
    text = f"The student keeps {value:.1%} of the teacher's recall@50 ({student:.3f} of {teacher:.3f}); {policy.min_retention:.1%} asked."
    return ("pass" if value >= policy.min_retention else "fail"), text, value


def _beats(name: str, other: str, report: Evaluation, policy: PolicyConfig) -> GateResult:
    def measure() -> _Outcome:
        student, rival = _scores(report, "student", "ndcg@10"), _scores(report, other, "ndcg@10")
        interval = _interval(student, rival, policy)
        text = f"nDCG@10 of the student minus {other}: {_text(interval, policy, len(student))}."
        if interval.low > 0:
            return "pass", text, interval.low
        return "fail", f"{text} Not shown to be better: the lower end is not above 0.", interval.low

    return _gate(name, 0.0, measure)


def _non_inferior(report: Evaluation, baseline: Evaluation | None, policy: PolicyConfig) -> _Outcome:
    if baseline is None:
        return "first_release", "There is no champion to compare with: this is a first release, and a person has to judge it.", None
    ours, theirs = report.summary.judgements_digest, baseline.summary.judgements_digest
    if not ours or ours != theirs:
        raise _NotDecidableError(
            f"The champion was measured on other judgements ({str(theirs)[:12]}, the candidate on {str(ours)[:12]}); "
            "evaluate both on the same ones to compare them."
        )
    candidate, champion = _scores(report, "student", "ndcg@10"), _scores(baseline, "student", "ndcg@10", "champion's ")
    interval = _interval(candidate, champion, policy)
    text = f"nDCG@10 of candidate minus champion: {_text(interval, policy, len(candidate))}; a loss below {policy.margin:g} is allowed."
    return ("pass" if interval.low > -policy.margin else "fail"), text, interval.low


def _speed_up(report: Evaluation, policy: PolicyConfig) -> _Outcome:
    value = _finite(_mapping(report.summary.speed).get("speed_up"), "speed-up over the teacher")
    text = f"The student answers {value:.2f} times as many queries per second as the teacher; {policy.min_speed_up:g} is asked."
    return ("pass" if value >= policy.min_speed_up else "fail"), text, value


def _of_the_index(report: Evaluation, policy: PolicyConfig) -> GateResult:
    asked = policy.min_ann_recall
    return _off("ann_recall") if asked is None else _gate("ann_recall", asked, lambda: _ann_recall(report, asked, policy))


def _ann_recall(report: Evaluation, asked: float, policy: PolicyConfig) -> _Outcome:
    from components.evaluation.significance import mean_interval

    values = _ann_values(report)
    interval = mean_interval(values.to_numpy(), BOOTSTRAP_SAMPLES, 2 * policy.confidence - 1, BOOTSTRAP_SEED)
    lost = _finite(_mapping(report.summary.ann).get("ndcg_lost"), "nDCG@10 that the index loses")
    text = (
        f"The index finds {interval.difference:.1%} of what exact search finds (recall@{ANN_DEPTH}), at least {interval.low:.1%} with "
        f"{policy.confidence:.0%} confidence, {len(values)} queries; {asked:.1%} asked. It costs the student {lost:.4f} of nDCG@10."
    )
    if interval.low >= asked:
        return "pass", text, interval.low
    return (
        "fail",
        f"{text} This is the index, not the models: raise index.target_recall and run again; the towers and vectors stay.",
        interval.low,
    )


def _ann_values(report: Evaluation) -> pd.Series:
    """recall@100 of the index, one finite value per query that was searched; not decidable when one is missing or strange."""
    metric = f"recall@{ANN_DEPTH}"
    stated = _mapping(report.summary.ann)
    if not stated or report.ann is None:
        raise _NotDecidableError(
            f"The report has no {metric} of the index against exact search. Evaluate again; index.refine must not be none."
        )
    rows = report.ann[report.ann["metric"] == metric]
    values = rows.set_index("query_id")["value"].astype(float).sort_index()
    if not values.index.is_unique:
        raise _NotDecidableError(f"The report has more than one {metric} of the index for the same query.")
    if not len(values) or len(values) != stated.get("queries"):
        raise _NotDecidableError(f"The report has {metric} of the index for {len(values)} of {stated.get('queries')} queries.")
    if not all(0 <= value <= 1 for value in values):
        raise _NotDecidableError(f"The {metric} of the index is not a share between 0 and 1 for every query.")
    mean = _finite(_mapping(stated.get("recall")).get(metric), f"{metric} of the index in the summary")
    if abs(mean - float(values.mean())) > SUMMARY_TOLERANCE:
        raise _NotDecidableError(f"The summary states {metric} {mean:.4f} for the index, its queries give {float(values.mean()):.4f}.")
    return values


def _scores(report: Evaluation, system: str, metric: str, owner: str = "") -> pd.Series:
    """One finite value per judged query, indexed by query_id in a fixed order; not decidable when one is missing or strange."""
    import numpy as np

    where = f"{metric} of the {owner}system '{system}'"
    table = report.per_query
    rows = table[(table["system"] == system) & (table["metric"] == metric)] if len(table) else table
    if not len(rows):
        raise _NotDecidableError(f"The report has no {where}.")
    values = rows.set_index("query_id")["value"].astype(float).sort_index()
    if not values.index.is_unique:
        raise _NotDecidableError(f"The report has more than one {where} for the same query.")
    if len(values) != report.summary.queries:
        raise _NotDecidableError(f"The report has {where} for {len(values)} of {report.summary.queries} judged queries.")
    if not np.isfinite(values.to_numpy()).all():
        raise _NotDecidableError(f"The {where} is not a number for {int((~np.isfinite(values)).sum())} queries.")
    _agrees(report, system, metric, float(values.mean()))
    return values


def _agrees(report: Evaluation, system: str, metric: str, mean: float) -> None:
    entry = _mapping(_mapping(report.summary.systems).get(system))
    stated = _finite(_mapping(entry.get("metrics")).get(metric), f"{metric} of the system '{system}' in the summary")
    if abs(stated - mean) > SUMMARY_TOLERANCE:
        raise _NotDecidableError(f"The summary states {metric} {stated:.4f} for '{system}', its queries give {mean:.4f}.")


def _interval(a: pd.Series, b: pd.Series, policy: PolicyConfig) -> Interval:
    from components.evaluation.significance import paired_bootstrap

    if not a.index.equals(b.index):
        raise _NotDecidableError("The two systems were measured on different queries, so they cannot be compared in pairs.")
    level = 2 * policy.confidence - 1
    interval = paired_bootstrap(a.to_numpy(), b.to_numpy(), BOOTSTRAP_SAMPLES, level, BOOTSTRAP_SEED)
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        raise _NotDecidableError("The bootstrap gave no finite interval.")
    return interval


def _text(interval: Interval, policy: PolicyConfig, queries: int) -> str:
    return f"{interval.difference:+.4f}, at least {interval.low:+.4f} with {policy.confidence:.0%} confidence, {queries} queries"


def _finite(value: Any, what: str) -> float:
    if value is None:
        raise _NotDecidableError(f"The report has no {what}.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _NotDecidableError(f"The {what} is not a finite number ({value}).")
    return float(value)


def _mapping(value: Any) -> dict[str, Any]:
    """A section of the summary as a plain dict; empty when the section is absent."""
    if isinstance(value, BaseModel):
        return value.model_dump(by_alias=True)
    return dict(value) if isinstance(value, dict) else {}
