"""Systems side by side: the level of each, and its distance from one of them, with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.evaluation.metrics import per_query_metrics
from components.evaluation.scores import Scores
from components.evaluation.significance import mean_interval, paired_bootstrap
from components.evaluation.study_report import HIGH, LOW, with_interval
from components.evaluation.summarize import CONFIDENCE, judged_split

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import Ranker

METRICS = {"recall@50": "R@50", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}


def side_by_side(systems: Mapping[str, Scores], reference: str, config: EvaluationConfig) -> list[dict[str, Any]]:
    """One row a system on `config.split`: every metric, and the reference's minus its own; both with intervals over queries."""
    rows = []
    for name, scores in systems.items():
        row: dict[str, Any] = {"system": name}
        for metric, title in METRICS.items():
            own = scores[config.split, metric]
            row.update(with_interval(title, mean_interval(own, config.bootstrap_samples, CONFIDENCE, config.seed)))
        for metric, title in METRICS.items() if name != reference else ():
            own, other = scores[config.split, metric], systems[reference][config.split, metric]
            found = paired_bootstrap(other, own, config.bootstrap_samples, CONFIDENCE, config.seed)
            row.update(with_interval(f"{reference} - system, {title}", found))
        rows.append(row)
    return rows


def mean_metrics(ranker: Ranker, dataset: Dataset, split: str, depth: int) -> dict[str, float]:
    """Every metric's mean over the judged queries of a split."""
    judged = judged_split(dataset, split)
    ranking = judged.rankings(ranker.rank(judged.texts, judged.asked(depth)), depth)
    means = per_query_metrics(judged.judgements, ranking).groupby("metric")["value"].mean()
    return {str(metric): float(value) for metric, value in means.items()}


def verdict(row: Mapping[str, Any], reference: str, title: str) -> str:
    """Whether the reference is above or below the row's system in a metric, or not told apart by the interval."""
    column = f"{reference} - system, {title}"
    if row[column + LOW] > 0:
        return "above"
    return "below" if row[column + HIGH] < 0 else "not apart from"
