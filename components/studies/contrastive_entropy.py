"""Contrastive entropy: a smooth measure of retrieval in which a scaling law can be seen where recall moves in jumps.

Source: Fang et al., "Scaling Laws For Dense Retrieval", SIGIR 2024: minus the log-probability of the relevant document among it and
256 random ones. The paper's scores are inner products of vectors without a fixed length; ours are cosines, so they are divided by the
temperature that the towers were trained with (the logits of training), and the softmax itself has the temperature 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError

NEGATIVES = 256


def contrastive_entropy(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    relevant: Sequence[frozenset[int]],
    negatives: Sequence[NDArray[np.int64]],
    temperature: float,
) -> NDArray[np.float64]:
    """Nats per query, float64 (n,): the mean over its relevant documents, each against the same negatives.

    `queries` (n, d) and `documents` (m, d) unit rows, `relevant` document numbers per query (at least one each), `negatives` from
    `draw_negatives`. Knowing nothing gives log(1 + number of negatives).
    """
    values = np.empty(len(queries), np.float64)
    for row, (wanted, others) in enumerate(zip(relevant, negatives, strict=True)):
        query = queries[row].astype(np.float64)
        against = documents[others] @ query / temperature
        positives = documents[sorted(wanted)] @ query / temperature
        values[row] = float(np.mean([_log_sum([score, *against]) - score for score in positives]))
    return values


def draw_negatives(relevant: Sequence[frozenset[int]], documents: int, count: int, seed: int) -> list[NDArray[np.int64]]:
    """`count` different document numbers below `documents` for each query, none of them relevant to it.

    A function of the seed and the query's place alone, so that every model meets the same negatives.
    """
    require_negatives(relevant, documents, count)
    drawn = []
    for number, wanted in enumerate(relevant):
        # The relevant ones are at most len(wanted) of those drawn.
        picked = np.random.default_rng([seed, number]).permutation(documents)[: count + len(wanted)]
        drawn.append(np.array([d for d in picked if d not in wanted][:count], dtype=np.int64))
    return drawn


def require_negatives(relevant: Sequence[frozenset[int]], documents: int, count: int) -> None:
    """Raise DataError when a query has fewer than `count` documents that are not relevant to it."""
    left = documents - max(map(len, relevant), default=0)
    if left < count:
        raise DataError(
            f"Contrastive entropy is asked for with {count} random negatives, but a query has only {left} documents that are not "
            "relevant to it. Lower study.scaling_negatives, or take more documents."
        )


def relevant_rows(judged: Mapping[str, Sequence[str]], doc_ids: Sequence[str]) -> list[frozenset[int]]:
    """For each query its relevant documents (`judged`: query id -> document ids) as rows of `doc_ids`."""
    row = {doc_id: number for number, doc_id in enumerate(doc_ids)}
    return [frozenset(row[d] for d in wanted) for wanted in judged.values()]


def _log_sum(scores: Sequence[float]) -> float:
    array = np.asarray(scores, np.float64)
    top = array.max()
    return float(top + np.log(np.exp(array - top).sum()))
