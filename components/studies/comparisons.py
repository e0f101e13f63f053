"""Columns of a study's table from metrics per query: levels, shares kept and differences, each with its interval.

A system is given by its scores, or by those of each of its trainings with different seeds: the interval then holds the noise of training
beside that of the queries (see `seeded_interval`), and the value is the mean over the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError
from components.evaluation.config import EvaluationConfig
from components.evaluation.significance import Interval, Statistic, seeded_interval
from components.evaluation.summarize import CONFIDENCE, RETAINED
from components.evaluation.units import Numbers, Units, design_effect, told_units
from components.studies.report import with_interval
from components.studies.scores import Scores, splits_of

METRIC_TITLES = {"recall@50": "R@50", "ndcg@10": "nDCG@10"}
Values = Mapping[tuple[str, str], NDArray[np.float64]]
Runs = Values | Sequence[Values]  # the scores of one system, or of each of its seeds
Row = dict[str, float]


def levels(runs: Runs, config: EvaluationConfig) -> Row:
    """R@50 and nDCG@10 on every split, with intervals."""
    return _columns(config, partial(compare, runs, None, "mean", config), "")


def kept(runs: Runs, reference: Runs, config: EvaluationConfig) -> Row:
    """The share of the reference's R@50 and nDCG@10 that is kept, paired by query; nothing where the reference has 0."""
    return _columns(config, partial(compare, runs, reference, "ratio", config), "kept ")


def gained(runs: Runs, reference: Runs, config: EvaluationConfig, word: str = "gain ", same_trainings: bool = False) -> Row:
    """R@50 and nDCG@10 minus the reference's, paired by query; below 0 for a loss. `x p` is the chance of as much if there is nothing.

    `same_trainings`: both are the same trainings in the same order, asked in two ways, so that they are paired by seed as well.
    """
    if same_trainings:
        runs, reference = differences(runs, reference), None  # type: ignore[assignment]
    return _columns(config, partial(compare, runs, reference, "difference", config), word)


def differences(runs: Runs, reference: Runs) -> list[Scores]:
    """Each training's scores minus the reference's of the same training: what `compare` takes for `runs`, without a reference."""
    pairs = zip(seeds_of(runs), seeds_of(reference), strict=True)
    return [Scores({key: own[key] - other[key] for key in own}, _units(own)) for own, other in pairs]


def compare(
    runs: Runs,
    reference: Runs | None,
    statistic: Statistic,
    config: EvaluationConfig,
    split: str,
    metric: str,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The statistic in one metric of one split over seeds and units, with its chance for a difference; None for a share of 0.

    Raises DataError when the units of two runs differ.
    """
    own, others = seeds_of(runs), [] if reference is None else seeds_of(reference)
    first, second = [run[split, metric] for run in own], [run[split, metric] for run in others] or None
    if statistic == "ratio" and not np.mean(second or 0.0) > 0:
        return None
    known = [units[split] for run in (*own, *others) if split in (units := _units(run))]
    if any(not np.array_equal(units, known[0]) for units in known[1:]):
        raise DataError(f"Another cell grouped the queries of '{split}' into other units. Run the study again.")
    asked: Statistic = "mean" if second is None else statistic
    found = seeded_interval(first, second, asked, config.bootstrap_samples, confidence, config.seed, known[0] if known else None)
    if statistic == "difference":
        return found
    return replace(found.share if statistic == "mean" else found, p=None)


def _units(run: Values) -> Mapping[str, Numbers]:
    return run.units if isinstance(run, Scores) else {}


def told_worth(scores: Scores, config: EvaluationConfig) -> str:
    """In how many units the queries of `config.split` were drawn, and what these are worth by the values of one system."""
    numbers = scores.units.get(config.split)
    if numbers is None:
        return ""
    rule = f"grouped as evaluation.query_groups says ({config.query_groups})"
    effects = {METRIC_TITLES[metric]: design_effect(scores[config.split, metric], numbers) for metric in RETAINED}
    return told_units(Units(tuple(map(str, range(len(numbers)))), numbers, rule), effects)


def seeds_of(runs: Runs) -> Sequence[Values]:
    """The scores of each seed."""
    return [runs] if isinstance(runs, Mapping) else list(runs)


def _columns(config: EvaluationConfig, compared: Callable[[str, str], Interval | None], word: str) -> Row:
    row: Row = {}
    for split in splits_of(config):
        where = "" if split == config.split else f" ({split})"
        for metric in RETAINED:
            found = compared(split, metric)
            if found is not None:
                row.update(with_interval(f"{word}{METRIC_TITLES[metric]}{where}", found))
    return row
