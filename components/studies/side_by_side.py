"""Systems side by side: the level of each, and its distance from one of them, with paired intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from components.evaluation.metrics import per_query_metrics
from components.evaluation.summarize import judged_split
from components.studies.comparisons import Runs, compare, seeds_of
from components.studies.report import CLAIM, NO_CLAIM, apart, claim_of, with_interval

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import Ranker

METRICS = {"recall@50": "R@50", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}


def side_by_side(
    systems: Mapping[str, Runs], reference: str, config: EvaluationConfig, untrained: Collection[str] = ()
) -> list[dict[str, Any]]:
    """One row a system on `config.split`: every metric, and the reference's minus its own; both with intervals over seeds and queries.

    Where one of the two was trained with one seed alone, the row says that it claims nothing; `untrained` names the systems that take none.
    """
    rows = []
    for name, runs in systems.items():
        row: dict[str, Any] = {"system": name, "seeds": 0 if name in untrained else len(seeds_of(runs))}
        for metric, title in METRICS.items():
            found = compare(runs, None, "mean", config, config.split, metric)
            row.update(with_interval(title, found) if found else {})
        for metric, title in METRICS.items() if name != reference else ():
            found = compare(systems[reference], runs, "difference", config, config.split, metric)
            row.update(with_interval(f"{reference} - system, {title}", found) if found else {})
        trained = [len(seeds_of(systems[system])) for system in (name, reference) if system not in untrained]
        rows.append({**row, **(claim_of(*trained) if name != reference and trained else {})})
    return rows


def mean_metrics(ranker: Ranker, dataset: Dataset, split: str, depth: int) -> dict[str, float]:
    """Every metric's mean over the judged queries of a split."""
    judged = judged_split(dataset, split)
    ranking = judged.rankings(ranker.rank(judged.texts, judged.asked(depth)), depth)
    means = per_query_metrics(judged.judgements, ranking).groupby("metric")["value"].mean()
    return {str(metric): float(value) for metric, value in means.items()}


def verdict(row: Mapping[str, Any], reference: str, title: str) -> str:
    """Whether the reference is above or below the row's system in a metric, or not told apart; of a row of the corrected table."""
    column = f"{reference} - system, {title}"
    if not apart(row, column):
        return "not compared (one seed) with" if row.get(CLAIM) == NO_CLAIM else "not apart from"
    return "above" if row[column] > 0 else "below"
