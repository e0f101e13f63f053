"""Columns of a study's table from metrics per query: levels, shares kept and differences, each with its paired interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from components.evaluation.config import EvaluationConfig
from components.evaluation.scores import Scores, splits_of
from components.evaluation.significance import Interval, mean_interval, paired_bootstrap, ratio_interval
from components.evaluation.study_report import with_interval
from components.evaluation.summarize import CONFIDENCE, RETAINED

METRIC_TITLES = {"recall@50": "R@50", "ndcg@10": "nDCG@10"}
Row = dict[str, float]
Compare = Callable[[NDArray[np.float64], NDArray[np.float64]], Interval | None]


def levels(scores: Scores, config: EvaluationConfig) -> Row:
    """R@50 and nDCG@10 on every split, with intervals."""
    return _columns(scores, scores, config, lambda own, _: mean_interval(own, config.bootstrap_samples, CONFIDENCE, config.seed), "")


def kept(scores: Scores, reference: Scores, config: EvaluationConfig) -> Row:
    """The share of the reference's R@50 and nDCG@10 that is kept, paired by query; nothing where the reference has 0."""

    def ratio(own: NDArray[np.float64], other: NDArray[np.float64]) -> Interval | None:
        return ratio_interval(own, other, config.bootstrap_samples, CONFIDENCE, config.seed) if other.mean() > 0 else None

    return _columns(scores, reference, config, ratio, "kept ")


def gained(scores: Scores, reference: Scores, config: EvaluationConfig, word: str = "gain ") -> Row:
    """R@50 and nDCG@10 minus the reference's, paired by query; below 0 for a loss."""
    return _columns(
        scores, reference, config, lambda own, other: paired_bootstrap(own, other, config.bootstrap_samples, CONFIDENCE, config.seed), word
    )


def average(runs: Sequence[Scores]) -> Scores:
    """The mean over runs with different seeds, query by query."""
    return {key: np.mean([run[key] for run in runs], axis=0) for key in runs[0]}


def _columns(scores: Scores, reference: Scores, config: EvaluationConfig, compare: Compare, word: str) -> Row:
    row: Row = {}
    for split in splits_of(config):
        where = "" if split == config.split else f" ({split})"
        for metric in RETAINED:
            found = compare(scores[split, metric], reference[split, metric])
            if found is not None:
                row.update(with_interval(f"{word}{METRIC_TITLES[metric]}{where}", found))
    return row
