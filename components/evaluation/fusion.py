"""Two rankings made one: a query encoder's, which finds what is meant, and BM25's, which finds the very words.

A document's fused score is `weight` times its share in the dense ranking and `1 - weight` times that in the lexical one; a document that a
ranking lacks has a share of 0 there. By reciprocal rank the share is 1 / (k + rank), ranks from 1; by scores it is the score on the scale
from the lowest (0) to the highest (1) of the query's ranking. Method, k and weight are chosen on dev, never on what is reported.
Sources: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods, SIGIR 2009;
Bruch, Gai and Ingber, An Analysis of Fusion Functions for Hybrid Retrieval, ACM TOIS 42 (2023), for the sum of scores on one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from components.evaluation.bm25 import Bm25Ranker, sampled
from components.evaluation.metrics import RETAINED, Ranking, first_places, per_query_metrics
from components.evaluation.rankers import DenseRanker, Ranker
from components.evaluation.report import FusionSetup
from components.evaluation.summarize import JudgedSplit, judged_split

if TYPE_CHECKING:
    from components.data.dataset import Dataset

DEV = "dev"
DEPTH = 100  # documents of each ranking that are fused, where fewer are asked for
# Cormack's k and equal weights come first: of equally good settings the first is taken.
GRID = (
    *(FusionSetup(k=k, weight=weight) for k in (60.0, 20.0, 5.0) for weight in (0.5, 0.3, 0.7)),
    *(FusionSetup(method="scores", weight=weight) for weight in (0.5, 0.2, 0.35, 0.65, 0.8)),
)


@dataclass(frozen=True)
class FusedRanker:
    """A dense and a lexical ranker asked the same queries, their rankings fused as `setup` says."""

    dense: Ranker
    lexical: Ranker
    setup: FusionSetup

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """At most k (doc_id, fused score) for each query, best first, equal scores in the order of the ids."""
        depth = max(k, DEPTH)
        return self.fused(self.dense.rank(queries, depth), self.lexical.rank(queries, depth), k)

    def fused(self, dense: Sequence[Ranking], lexical: Sequence[Ranking], k: int) -> list[list[tuple[str, float]]]:
        """The same from the rankings of both, of the same queries in the same order."""
        return [fuse(first, second, self.setup)[:k] for first, second in zip(dense, lexical, strict=True)]

    def quiet(self) -> FusedRanker:
        """The same without progress bars, which would be timed with the answers."""
        dense = replace(self.dense, label=None) if isinstance(self.dense, DenseRanker) else self.dense
        return replace(self, dense=dense, lexical=self.lexical.quiet() if isinstance(self.lexical, Bm25Ranker) else self.lexical)


def fused_ranker(dense: Ranker, lexical: Ranker, dataset: Dataset, depth: int = DEPTH) -> FusedRanker:
    """Both as one, fused as is best on the dev queries; without judged dev queries by reciprocal rank with Cormack's k, weights equal."""
    judged = dev_sample(dataset)
    if judged is None:
        return FusedRanker(dense, lexical, GRID[0])
    first, second = (judged.rankings(ranker.rank(judged.texts, judged.asked(depth)), depth) for ranker in (dense, lexical))
    return FusedRanker(dense, lexical, best_on_dev(first, second, judged))


def dev_sample(dataset: Dataset) -> JudgedSplit | None:
    """An even sample of the judged dev queries, the one that BM25's k1 and b are chosen on; None where none is judged."""
    if DEV not in dataset.splits or dataset.judged_queries(DEV).empty:
        return None
    return sampled(judged_split(dataset, DEV))


def best_on_dev(dense: Mapping[str, Ranking], lexical: Mapping[str, Ranking], judged: JudgedSplit) -> FusionSetup:
    """The setting of `GRID` with the best sum of recall@50 and nDCG@10, by which checkpoints and BM25 are chosen too.

    `dense` and `lexical` map every query of `judged` to its ranking.
    """
    scores = []
    for setup in GRID:
        found = {query: fuse(dense[query], lexical[query], setup) for query in judged.query_ids}
        means = per_query_metrics(judged.judgements, found).groupby("metric")["value"].mean()
        scores.append(float(sum(means[metric] for metric in RETAINED)))
    return GRID[int(np.argmax(scores))].model_copy(update={"dev_queries": len(judged.query_ids)})


def fuse(dense: Ranking, lexical: Ranking, setup: FusionSetup) -> list[tuple[str, float]]:
    """One ranking of all documents of both, best first, equal scores in the order of the ids."""
    fused: dict[str, float] = {}
    for ranking, weight in ((dense, setup.weight), (lexical, 1 - setup.weight)):
        for doc_id, share in _shares(first_places(ranking), setup):
            fused[doc_id] = fused.get(doc_id, 0.0) + weight * share
    return sorted(fused.items(), key=lambda hit: (-hit[1], hit[0]))


def _shares(ranking: Ranking, setup: FusionSetup) -> list[tuple[str, float]]:
    """(doc_id, share) of one ranking, in which no document stands twice."""
    if setup.method == "reciprocal_rank":
        return [(doc_id, 1 / (setup.k + rank)) for rank, (doc_id, _) in enumerate(ranking, start=1)]
    scores = [score for _, score in ranking]
    lowest, width = min(scores, default=0.0), max(scores, default=0.0) - min(scores, default=0.0)
    # Where all scores are equal, all are the best.
    return [(doc_id, (score - lowest) / width if width > 0 else 1.0) for doc_id, score in ranking]
