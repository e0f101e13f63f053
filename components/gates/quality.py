"""Gates about the candidate alone: enough queries, retention on and off the training distribution, floors, baselines, collapse, speed.

A share or mean that is known from a sample of queries is held against its threshold by the lower end of its one-sided interval: a
retention of 95.1 % that may well be 92 % is no retention of 95 %. Policies of older versions took the mean (`retention_by`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from components.evaluation.metrics import metric_words
from components.evaluation.table import UNTRAINED
from components.gates.champion import non_inferior
from components.gates.config import PolicyConfig
from components.gates.decision import OFF_DISTRIBUTION, GateResult, Status
from components.gates.measures import (
    SUMMARY_TOLERANCE,
    NotDecidable,
    Outcome,
    agrees,
    at_least,
    beside,
    bound_text,
    finite,
    gate,
    in_units,
    mapping,
    mean_bound,
    method_of,
    off,
    paired_bound,
    ratio_bound,
    require_paired,
    require_present,
    sample_text,
    scores,
    signed,
    units_of,
    values_per_query,
)

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.report import Evaluation

KEPT = "recall@50"  # what retention is decided by; RETAINED are the two metrics that it is shown in
TEACHER_WORTH = "teacher_worth"
ENCODERS = ("student", "teacher")
FEWEST_TELLING = 10  # queries that could tell two encoders apart, below which nobody knows whether they are one
TELLING_ALIKE = 0.9  # of these, since rounding swaps answers among them alone
SPEED_TOLERANCE = 1e-3  # of the speed-up, for figures that were rounded


def quality_gates(report: Evaluation, policy: PolicyConfig) -> Iterator[GateResult]:
    """All gates of this module, those that are switched off too."""
    yield gate("enough_queries", policy.min_queries, lambda: _enough_queries(report, policy))
    yield gate("retention", policy.min_retention, lambda: _retention(report, policy))
    yield from _off_distribution(report, policy)
    yield from (_floor(report, policy, metric, floor) for metric, floor in sorted(policy.floors.items()))
    yield from _baselines(report, policy)
    yield _not_collapsed(report, policy)
    asked = policy.min_speed_up
    yield off("speed_up") if asked is None else gate("speed_up", asked, lambda: _speed_up(report, asked))


def _enough_queries(report: Evaluation, policy: PolicyConfig) -> Outcome:
    queries = report.summary.queries
    if queries < policy.min_queries:
        raise NotDecidable(f"{queries} judged queries; at least {policy.min_queries} are needed to decide anything.")
    measured = report.per_query["query_id"].nunique() if len(report.per_query) else 0
    if measured != queries:
        raise NotDecidable(f"The report names {queries} judged queries but holds measurements for {measured}.")
    return Outcome("pass", f"{queries} judged queries, at least {policy.min_queries} needed.", float(queries), queries)


def _retention(report: Evaluation, policy: PolicyConfig) -> Outcome:
    student, teacher = scores(report, "student", KEPT), scores(report, "teacher", KEPT)
    stated = mapping(report.summary.retention).get(KEPT)
    return _retained((student, teacher), stated, policy.min_retention, policy)


def _retained(pair: tuple[pd.Series, pd.Series], stated: float | None, asked: float, policy: PolicyConfig) -> Outcome:
    student, teacher = pair
    if teacher.mean() <= 0:
        raise NotDecidable(f"The teacher's {KEPT} is 0, so there is nothing to retain; look at the teacher first.")
    interval = ratio_bound(student, teacher, policy)
    agrees(stated, interval.difference, f"retention of {KEPT}", 10 * SUMMARY_TOLERANCE)
    by_mean = policy.retention_by == "mean"
    value = interval.difference if by_mean else interval.low
    text = (
        f"The student keeps {beside(interval.difference, asked, 1, percent=True)} of the teacher's {KEPT} ({student.mean():.3f} of "
        f"{teacher.mean():.3f}), at least {beside(interval.low, asked, 1, percent=True)} with {100 * policy.confidence:g}% confidence, "
        f"{sample_text(len(student), interval)}; {100 * asked:.4g}% asked of {'the mean' if by_mean else 'the lower end'}."
    )
    return Outcome(at_least(value, asked), text, value, len(student))


def _off_distribution(report: Evaluation, policy: PolicyConfig) -> Iterator[GateResult]:
    """One gate for each extra split; what is asked for and was not measured cannot be decided."""
    name, asked = OFF_DISTRIBUTION, policy.min_off_distribution_retention
    measured = sorted(report.summary.extra)
    if asked is None:
        others = f" It was measured all the same, on {', '.join(measured)}." if measured else ""
        yield off(name, f"Switched off by the policy.{others}")
    elif not measured:
        yield gate(name, asked, _no_extra_split)
    else:
        yield from (_of_split(report, policy, split, asked) for split in measured)


def _no_extra_split() -> Outcome:
    raise NotDecidable("The report has no extra split to measure retention on; name judged query sets in evaluation.extra_splits.")


def _of_split(report: Evaluation, policy: PolicyConfig, split: str, asked: float) -> GateResult:
    def measure() -> Outcome:
        summary = report.summary.extra[split]
        if summary.queries < policy.min_queries:
            raise NotDecidable(f"{summary.queries} judged queries in '{split}'; at least {policy.min_queries} are needed.")
        if report.extra is None:
            raise NotDecidable(f"The report has no values per query of the split '{split}'.")
        require_present(report, "teacher")
        rows = report.extra[report.extra["split"] == split]
        student, teacher = (
            in_units(
                values_per_query(rows, (system, KEPT), summary.queries, f"{KEPT} of the system '{system}' on '{split}'"),
                units_of(report, split),
            )
            for system in ("student", "teacher")
        )
        return _retained((student, teacher), summary.retention.get(KEPT), asked, policy)

    return gate(OFF_DISTRIBUTION, asked, measure, split)


def _floor(report: Evaluation, policy: PolicyConfig, metric: str, floor: float) -> GateResult:
    def measure() -> Outcome:
        values = scores(report, "student", metric)
        interval = mean_bound(values, policy)
        text = (
            f"The student's {metric} is {interval.difference:.4f}, at least {beside(interval.low, floor, 4)} with "
            f"{100 * policy.confidence:g}% confidence, {sample_text(len(values), interval)}; {floor:g} is asked of the lower end."
        )
        return Outcome(at_least(interval.low, floor), text, interval.low, len(values))

    return gate("floor", floor, measure, metric)


def _baselines(report: Evaluation, policy: PolicyConfig) -> Iterator[GateResult]:
    """The student against each baseline, and the teacher: what it keeps of a teacher that is worse than doing nothing says nothing."""
    yield _beats("beats_bm25", "student", "bm25", report, policy) if policy.beat_bm25 else off("beats_bm25")
    yield _beats("beats_untrained", "student", UNTRAINED, report, policy) if policy.beat_untrained else off("beats_untrained")
    if policy.teacher_worth:
        yield from (_beats(TEACHER_WORTH, "teacher", other, report, policy, other) for other in ("bm25", UNTRAINED))
    else:
        yield off(TEACHER_WORTH)


def _beats(name: str, system: str, other: str, report: Evaluation, policy: PolicyConfig, part: str | None = None) -> GateResult:
    """Better in one metric (the lower end above 0) and not worse in any other, by the same test as against the champion.

    Where any of several metrics is enough, chance has several tries: each is asked with Bonferroni's share of the error.
    """

    def measure() -> Outcome:
        if (name, other) == (TEACHER_WORTH, UNTRAINED) and (same := _same_answers(report, policy)):
            text = f"The teacher answers {same} queries as {other} does: it is that encoder, and the gates ask its student alone."
            return Outcome("pass", text, 0.0, report.summary.queries)
        found = {metric: _against(metric, system, other, report, policy) for metric in policy.baseline_metrics}
        best = max(outcome.value for outcome in found.values() if outcome.value is not None)
        text = " ".join(outcome.reason for outcome in found.values())
        worse, better = [metric for metric, outcome in found.items() if outcome.status == "fail"], best > 0
        undecided = [metric for metric, outcome in found.items() if outcome.status == "not_decidable"]
        queries = next(iter(found.values())).queries
        if not better:
            return Outcome("fail", f"Not shown to be better: no lower end is above 0. {text}", best, queries)
        if worse or undecided:
            status: Status = "fail" if worse else "not_decidable"
            told = "Not shown to be no worse in" if worse else "Too few queries to tell whether it is worse in"
            return Outcome(status, f"{told} {' and '.join(map(metric_words, worse or undecided))}. {text}", best, queries)
        return Outcome("pass", text, best, queries)

    return gate(name, 0.0, measure, part)


def _same_answers(report: Evaluation, policy: PolicyConfig) -> str:
    """In how many queries no metric tells the teacher from the untrained encoder, in words; empty for less than the policy's share.

    Existing vectors are often those of the encoder as it was downloaded. Rounding alone may swap two answers with almost one score. Queries
    that both find at once, or not at all, are alike for any two encoders, so only the others tell; where too few do, nothing is decided.
    """
    if policy.same_teacher_share is None:
        return ""
    pairs = [(scores(report, "teacher", metric), scores(report, UNTRAINED, metric)) for metric in policy.baseline_metrics]
    for own, rival in pairs:
        require_paired(own, rival)  # else no value would be apart from one that is not there
    told_apart = sum((own - rival).abs() > SUMMARY_TOLERANCE for own, rival in pairs) > 0
    alike, queries = int((~told_apart).sum()), len(told_apart)
    if alike < policy.same_teacher_share * queries:
        return ""
    if method_of(policy) > 1:
        telling = sum(values.between(SUMMARY_TOLERANCE, 1 - SUMMARY_TOLERANCE) for pair in pairs for values in pair) > 0
        counted = told_apart | telling
        if (known := int(counted.sum())) < FEWEST_TELLING and method_of(policy) > 2:
            raise NotDecidable(
                f"The teacher answers {alike:,} of {queries:,} queries as {UNTRAINED} does, but in all but {known} both find all there is, "
                f"or nothing: so few tell no encoder from another, and at least {FEWEST_TELLING} are needed to say that it is that "
                "encoder. Judge queries that are neither trivial nor hopeless."
            )
        if known < FEWEST_TELLING or (counted & ~told_apart).sum() < TELLING_ALIKE * known:
            return ""
    return f"{alike:,} of {queries:,}"


def _against(metric: str, system: str, other: str, report: Evaluation, policy: PolicyConfig) -> Outcome:
    """One metric: passed where it is better or not worse; the value is the lower end of the difference."""
    own, rival = scores(report, system, metric), scores(report, other, metric)
    strict = policy.model_copy(update={"confidence": 1 - (1 - policy.confidence) / len(set(policy.baseline_metrics))})
    interval = paired_bound(own, rival, strict)
    text = f"{metric_words(metric)} of the {system} minus {other}: {bound_text(interval, strict, len(own))}."
    if interval.low > 0 or paired_bound(own, rival, policy).low > 0:
        return Outcome("pass", text, interval.low, len(own))
    tested = non_inferior(own, rival, policy.baseline_margin, policy)
    return Outcome(tested.status, f"{text} A loss below {policy.baseline_margin:g} is allowed.", interval.low, len(own), tested.power)


def _not_collapsed(report: Evaluation, policy: PolicyConfig) -> GateResult:
    if policy.max_mean_cosine_over_teacher is None and policy.min_effective_rank_share is None:
        return off("not_collapsed")
    return gate("not_collapsed", policy.min_effective_rank_share, lambda: _spread(report, policy))


def _spread(report: Evaluation, policy: PolicyConfig) -> Outcome:
    """Both signs of a collapse; the value is the share of the teacher's effective rank."""
    require_present(report, "teacher")
    teacher, student = (mapping(mapping(report.summary.health).get(name)) for name in ("teacher", "student"))
    cosines = [finite(side.get("mean_cosine"), "mean cosine of the query vectors of both encoders") for side in (student, teacher)]
    ranks = [finite(side.get("effective_rank"), "effective rank of the query vectors of both encoders") for side in (student, teacher)]
    if ranks[1] <= 0:
        raise NotDecidable("The teacher's query vectors have no effective rank above 0; look at the teacher first.")
    over, share = cosines[0] - cosines[1], ranks[0] / ranks[1]
    asked_rank, asked_cosine = policy.min_effective_rank_share, policy.max_mean_cosine_over_teacher
    kept = f"{share:.0%}" if asked_rank is None else beside(share, asked_rank, 0, percent=True)
    off_by = f"{over:+.3f}" if asked_cosine is None else signed(over, asked_cosine, 3)
    text = (
        f"The student's query vectors have {kept} of the teacher's effective rank ({ranks[0]:.1f} of {ranks[1]:.1f}) and a mean "
        f"cosine {off_by} from the teacher's ({cosines[0]:.3f} and {cosines[1]:.3f})."
    )
    fine = (asked_rank is None or share >= asked_rank) and (asked_cosine is None or over <= asked_cosine)
    limits = [] if asked_rank is None else [f"at least {100 * asked_rank:.4g}%"]
    limits += [] if asked_cosine is None else [f"at most {asked_cosine:+.4g}"]
    return Outcome("pass" if fine else "fail", f"{text} Asked: {' and '.join(limits)}.", share)


def _speed_up(report: Evaluation, asked: float) -> Outcome:
    require_present(report, "teacher")
    speed = mapping(report.summary.speed)
    value = finite(speed.get("speed_up"), "speed-up over the teacher")
    own, rival = (finite(mapping(speed.get(who)).get("qps"), f"number of queries that the {who} encodes a second") for who in ENCODERS)
    if rival <= 0 or abs(value - own / rival) > SPEED_TOLERANCE * value:
        raise NotDecidable(f"The summary states a speed-up of {value:.2f}, but {own:,.1f} and {rival:,.1f} queries a second.")
    text = f"The student answers {beside(value, asked, 2)} times as many queries per second as the teacher; {asked:g} is asked."
    return Outcome(at_least(value, asked), text, value)
