"""Recall of an index against exact search on its own stored vectors, and what that costs the student in nDCG.

Recall of document ids is unfair to an index where documents tie: which of them is returned says nothing about it. So every document
that scores within a rounding error of the k-th nearest counts as one of the k nearest, as in ann-benchmarks (Aumueller et al., 2020).
An exact index is measured in the same way, and comes out at 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.evaluation.metrics import per_query_metrics
from components.evaluation.report import AnnSummary
from components.evaluation.significance import mean_interval, paired_bootstrap
from components.evaluation.summarize import CONFIDENCE

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.config import EvaluationConfig
    from components.evaluation.summarize import JudgedSplit
    from components.evaluation.units import Units
    from components.index.search import VectorIndex

DEPTHS = (10, 100)
MOST_QUERIES = 2000  # exact search reads every vector; more queries than these narrow the interval by less than it costs
TIE = 2e-6  # scores are rounded to six digits, and two ways to compute one may round it to neighbours
_MARGIN = 16
Neighbours = Mapping[str, float]  # document id -> exact score, best first


class AnnMeasured(NamedTuple):
    """The summary, and the values it stands on: DataFrame[query_id, metric, value] with the metrics recall@10 and recall@100."""

    summary: AnnSummary
    per_query: pd.DataFrame


def measure_ann(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    judged: JudgedSplit,
    per_query: pd.DataFrame,
    config: EvaluationConfig,
    units: Units | None = None,
) -> AnnMeasured:
    """Search `index` with the student's query vectors, float32 (judged queries, d), and hold the answers against exact search.

    `per_query` (query_id, metric, value) is what the student reached through this index; `units` are those of the judged queries. At most
    MOST_QUERIES evenly spread queries are searched. Each depth is a search of its own: an index looks less far when it is asked for fewer
    documents.
    Raises ArtifactError when the index keeps no vectors for an exact search.
    """
    step = slice(None, None, -(-len(vectors) // MOST_QUERIES))
    query_ids, sample = judged.query_ids[step], vectors[step]
    nearest = exact_neighbours(index, sample, max(DEPTHS))
    values = {f"recall@{k}": recall_at(index, sample, k, nearest) for k in DEPTHS}
    numbers = None if units is None else units.of(query_ids)
    found = {m: mean_interval(v, config.bootstrap_samples, CONFIDENCE, config.seed, numbers).share for m, v in values.items()}
    exact, served = _ndcg_exact(judged, query_ids, nearest), _ndcg_served(per_query, query_ids)
    lost = paired_bootstrap(exact, served, config.bootstrap_samples, CONFIDENCE, config.seed, numbers)
    summary = AnnSummary(
        queries=len(query_ids),
        documents=len(index),
        recall={metric: interval.difference for metric, interval in found.items()},
        intervals={metric: interval.ends for metric, interval in found.items() if interval.known},
        ndcg_lost=lost.difference,
        ndcg_lost_interval=lost.ends if lost.known else None,
    )
    return AnnMeasured(summary, _table(query_ids, values))


def exact_neighbours(index: VectorIndex, vectors: NDArray[np.float32], k: int) -> list[Neighbours]:
    """For each query its k nearest documents by exact search (all when there are fewer) and every document that ties with the k-th."""
    return _neighbours(index, vectors, k, min(k + _MARGIN, len(index)))


def recall_at(index: VectorIndex, vectors: NDArray[np.float32], k: int, nearest: Sequence[Neighbours]) -> NDArray[np.float64]:
    """Share of the k nearest that `index` finds for each query when asked for k documents, float64 (n,) in [0, 1].

    `nearest` are the `exact_neighbours` of at least k.
    """
    found = index.search(vectors, k)[1]
    return np.array([_recall(ids, near, k) for ids, near in zip(found, nearest, strict=True)], np.float64)


def _neighbours(index: VectorIndex, vectors: NDArray[np.float32], k: int, depth: int) -> list[Neighbours]:
    """Looks deeper for the queries where the tie at place k goes on beyond `depth`."""
    scores, ids = index.exact(vectors, depth)
    found: list[Neighbours] = [dict(zip(row, values.tolist(), strict=True)) for row, values in zip(ids, scores, strict=True)]
    undecided = np.flatnonzero(scores[:, -1] >= scores[:, k - 1] - TIE) if depth < len(index) else np.empty(0, np.int64)
    if len(undecided):
        deeper = _neighbours(index, vectors[undecided], k, min(depth * 8, len(index)))
        for place, near in zip(undecided, deeper, strict=True):
            found[place] = near
    return found


def _recall(found: Sequence[str], near: Neighbours, k: int) -> float:
    scores = list(near.values())
    wanted = min(k, len(scores))
    lowest = scores[wanted - 1] - TIE
    return min(sum(near.get(doc_id, -np.inf) >= lowest for doc_id in set(found)), wanted) / wanted


def _ndcg_exact(judged: JudgedSplit, query_ids: Sequence[str], nearest: Sequence[Neighbours]) -> NDArray[np.float64]:
    """What the student would reach if the index lost nothing."""
    rankings = {query: judged.without_own(query, list(near.items()))[: max(DEPTHS)] for query, near in zip(query_ids, nearest, strict=True)}
    judgements = judged.judgements[judged.judgements["query_id"].astype(str).isin(query_ids)]
    return _ndcg_served(per_query_metrics(judgements, rankings), query_ids)


def _ndcg_served(per_query: pd.DataFrame, query_ids: Sequence[str]) -> NDArray[np.float64]:
    values = per_query[per_query["metric"] == "ndcg@10"].set_index("query_id")["value"]
    return values.reindex(list(query_ids)).to_numpy(np.float64)


def _table(query_ids: Sequence[str], values: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
    import pandas as pd

    tables = [pd.DataFrame({"query_id": query_ids, "metric": metric, "value": column}) for metric, column in values.items()]
    return pd.concat(tables, ignore_index=True)
