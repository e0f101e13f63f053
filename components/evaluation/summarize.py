"""From values per query to the summary: means, intervals, comparisons, retention. Pure; no files, no models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError
from components.evaluation.metrics import METRICS, RETAINED, JudgedSplit
from components.evaluation.report import Comparison, ExtraSummary, OwnSummary, Summary, SystemSummary, UnitsSummary
from components.evaluation.table import told_units
from components.evaluation.units import (
    AUTO,
    Interval,
    Numbers,
    Units,
    design_effect,
    mean_interval,
    paired_bootstrap,
    query_units,
    ratio_interval,
)

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig
    from components.evaluation.report import Evaluation

CONFIDENCE = 0.95  # of the two-sided intervals that are shown; gates compute their own from the values per query
COMPARED = (
    ("student", "bm25"),
    ("student", "student_untrained"),
    ("student", "teacher"),
    ("teacher", "bm25"),
    ("teacher", "student_untrained"),
    ("student_fused", "bm25"),
    ("student_fused", "student_untrained"),
    ("student_fused", "student"),
)


def judged_split(dataset: Dataset, split: str) -> JudgedSplit:
    """The queries with at least one relevant document in the split; raises DataError when there are none or one has no text.

    A query without a relevant document has no recall: it would only pull every system's mean towards 0.
    """
    judgements = dataset.judgements(split)
    relevant = set(judgements.loc[judgements["score"] > 0, "query_id"])
    judgements = judgements[judgements["query_id"].isin(relevant)].reset_index(drop=True)
    wanted = sorted({str(i) for i in judgements["query_id"]})
    if not wanted:
        raise DataError(
            f"The data set has no relevant document for any query of the split '{split}', so nothing can be measured. Name another split."
        )
    queries = dataset.judged_queries(split)
    texts = {str(i): str(text) for i, text in zip(queries["query_id"], queries["text"], strict=True)}
    if lost := [i for i in wanted if i not in texts]:
        raise DataError(f"{len(lost)} judged queries of the split '{split}' have no text, the first is '{lost[0]}'. Add or remove them.")
    return JudgedSplit(wanted, [texts[i] for i in wanted], judgements, dataset.own_documents(split))


def require_judged(dataset: Dataset, splits: Iterable[str], groups: str = AUTO) -> None:
    """Raise DataError for the first split that cannot be measured (see `judged_split`), at once rather than after a training.

    Or whose queries are not grouped by what `groups` (evaluation.query_groups) names.
    """
    for split in splits:
        query_units(judged_split(dataset, split), dataset, groups)


Scores = dict[tuple[str, str], NDArray[np.float64]]


def summarize(
    per_query: pd.DataFrame, judged: JudgedSplit, documents: int, config: EvaluationConfig, units: Units | None = None
) -> Summary:
    """The summary of `per_query` (query_id, system, metric, value), which holds every judged query for every system.

    `units` are those of the judged queries, None: each was drawn by itself. Speed, extra splits and health are measured apart and left
    empty here.
    """
    scores, numbers = scores_of(per_query, judged.query_ids), _numbers(units, judged)
    retention = _retention(scores, config, numbers)
    return Summary(
        split=config.split,
        queries=len(judged.query_ids),
        documents=documents,
        depth=config.depth,
        confidence=CONFIDENCE,
        judgements_digest=judged.digest,
        systems={name: _system(scores, name, config, numbers) for name in dict.fromkeys(per_query["system"])},
        comparisons=_comparisons(scores, config, numbers),
        retention={metric: found.difference for metric, found in retention.items()},
        retention_intervals={metric: found.ends for metric, found in retention.items() if found.known},
        speed=None,
        own_documents=_own(judged),
        units=_units(units, scores),
        ends="student",
    )


def summarize_extra(per_query: pd.DataFrame, judged: JudgedSplit, config: EvaluationConfig, units: Units | None = None) -> ExtraSummary:
    """The figures of an extra split, from its `per_query` (query_id, system, metric, value); `units` as for the main one."""
    scores, numbers = scores_of(per_query, judged.query_ids), _numbers(units, judged)
    retention = _retention(scores, config, numbers)
    return ExtraSummary(
        queries=len(judged.query_ids),
        judgements_digest=judged.digest,
        systems={name: _system(scores, name, config, numbers) for name in dict.fromkeys(per_query["system"])},
        retention={metric: found.difference for metric, found in retention.items()},
        retention_intervals={metric: found.ends for metric, found in retention.items() if found.known},
        own_documents=_own(judged),
        units=_units(units, scores),
    )


def _numbers(units: Units | None, judged: JudgedSplit) -> Numbers | None:
    return None if units is None else units.of(judged.query_ids)


def _units(units: Units | None, scores: Scores) -> UnitsSummary | None:
    """How many there are and what they make of the student's means, or of the first system's where there is no student."""
    if units is None:
        return None
    name = "student" if ("student", RETAINED[0]) in scores else next(iter(scores))[0]
    effects = {metric: design_effect(scores[name, metric], units.numbers) for metric in RETAINED} if units.count > 1 else {}
    told = told_units(units, effects)
    sizes = {"units": units.count, "largest": units.largest, "taken_apart": units.taken_apart}
    return UnitsSummary(rule=units.rule, **sizes, design_effects=effects, words=told, spread="left_out")


def _own(judged: JudgedSplit) -> OwnSummary | None:
    own = judged.own
    return OwnSummary(**{**own._asdict(), "left_out": len(own.left_out)}) if own.same_text or own.other_text else None


def scores_of(per_query: pd.DataFrame, query_ids: list[str]) -> Scores:
    """(system, metric) -> values in the order of `query_ids`; a query without a value becomes nan, which the bootstrap refuses."""
    groups = per_query.groupby(["system", "metric"], sort=False)
    return {
        (str(system), str(metric)): rows.set_index("query_id")["value"].reindex(query_ids).to_numpy(np.float64)
        for (system, metric), rows in groups
    }


def _system(scores: Scores, name: str, config: EvaluationConfig, numbers: Numbers | None) -> SystemSummary:
    found = {m: mean_interval(scores[name, m], config.bootstrap_samples, CONFIDENCE, config.seed, numbers).share for m in METRICS}
    return SystemSummary(
        metrics={metric: interval.difference for metric, interval in found.items()},
        intervals={metric: interval.ends for metric, interval in found.items() if interval.known},
    )


def _comparisons(scores: Scores, config: EvaluationConfig, numbers: Numbers | None) -> tuple[Comparison, ...]:
    systems = {system for system, _ in scores}
    pairs = [pair for pair in COMPARED if set(pair) <= systems]
    return tuple(compare_scores(scores, pair, metric, config, numbers) for pair in pairs for metric in METRICS)


def compare_scores(
    scores: Scores, pair: tuple[str, str], metric: str, config: EvaluationConfig, numbers: Numbers | None = None
) -> Comparison:
    """The first of `pair` minus the second in one metric, paired by query, with its interval over the units `numbers`."""
    system, baseline = pair
    own, other = scores[system, metric], scores[baseline, metric]
    found = paired_bootstrap(own, other, config.bootstrap_samples, CONFIDENCE, config.seed, numbers)
    return Comparison(
        system=system,
        baseline=baseline,
        metric=metric,
        difference=found.difference,
        low=found.low if found.known else None,
        high=found.high if found.known else None,
        confidence=CONFIDENCE,
        queries=len(own),
        units=found.units,
    )


def _retention(scores: Scores, config: EvaluationConfig, numbers: Numbers | None) -> dict[str, Interval]:
    """Metric -> student over teacher with its interval; a metric without a teacher's value above 0 is left out."""
    result = {}
    for metric in RETAINED:
        student, teacher = scores.get(("student", metric)), scores.get(("teacher", metric))
        if student is None or teacher is None or teacher.mean() <= 0:
            continue
        result[metric] = ratio_interval(student, teacher, config.bootstrap_samples, CONFIDENCE, config.seed, numbers)
    return result


# --- Whether a report that was read back says what its values per query say: people read the summary, gates the values.


ROUNDED = 1e-4  # absolute: a summary may be rounded to four digits
_Stated = tuple[str, float, float | None, float | None, float]  # what, value, the ends of its interval, what the values per query give


def figures_apart(report: Evaluation) -> list[str]:
    """Every mean, difference, retention and speed-up of the summary that its own values do not give; one sentence each, none is right."""
    summary = report.summary
    found = [*_stated_by(summary, _means(report.per_query)), *_compared_by(summary.comparisons, _means(report.per_query))]
    for split, extra in summary.extra.items():
        means = _means(report.extra[report.extra["split"] == split]) if report.extra is not None else {}
        found += [(f"{what} on '{split}'", value, low, high, given) for what, value, low, high, given in _stated_by(extra, means)]
    if summary.ann is not None and report.ann is not None:
        recall = report.ann.groupby("metric")["value"].mean()
        ends = summary.ann.intervals
        found += [(f"{m} of the index", v, *ends.get(m, (None, None)), recall.get(m, np.nan)) for m, v in summary.ann.recall.items()]
    speed = summary.speed
    if speed is not None and speed.speed_up is not None:
        teacher = speed.teacher.qps if speed.teacher is not None else 0.0
        found.append(("speed-up", speed.speed_up, None, None, speed.student.qps / teacher if teacher else np.nan))
    return [sentence for stated in found if (sentence := _apart(stated))]


def differences_apart(comparisons: Iterable[Comparison], per_query: pd.DataFrame) -> list[str]:
    """The same of comparisons alone, whose systems have their values in `per_query`."""
    return [sentence for stated in _compared_by(comparisons, _means(per_query)) if (sentence := _apart(stated))]


def _means(per_query: pd.DataFrame) -> dict[tuple[str, str], float]:
    return {(str(s), str(m)): float(v) for (s, m), v in per_query.groupby(["system", "metric"])["value"].mean().items()}


def _stated_by(summary: Summary | ExtraSummary, means: Mapping[tuple[str, str], float]) -> Iterator[_Stated]:
    for name, system in summary.systems.items():
        for metric, value in system.metrics.items():
            yield f"{metric} of '{name}'", value, *system.intervals.get(metric, (None, None)), means.get((name, metric), np.nan)
    for metric, value in summary.retention.items():
        kept, whole = (means.get((name, metric), np.nan) for name in ("student", "teacher"))
        ends = summary.retention_intervals.get(metric, (None, None))
        yield f"retention of {metric}", value, *ends, kept / whole if whole else np.nan


def _compared_by(comparisons: Iterable[Comparison], means: Mapping[tuple[str, str], float]) -> Iterator[_Stated]:
    for c in comparisons:
        gap = means.get((c.system, c.metric), np.nan) - means.get((c.baseline, c.metric), np.nan)
        yield f"{c.metric} of '{c.system}' minus '{c.baseline}'", c.difference, c.low, c.high, gap


def _apart(stated: _Stated) -> str:
    """Empty where value and values agree within rounding, and the interval holds the value."""
    what, value, low, high, given = stated
    if not abs(value - given) <= ROUNDED * max(1.0, abs(value)):
        return f"The summary states {value:.4f} for the {what}, its values give {given:.4f}."
    if low is not None and high is not None and not low - ROUNDED <= value <= high + ROUNDED:
        return f"The summary states {value:.4f} for the {what}, outside of its own interval from {low:.4f} to {high:.4f}."
    return ""
