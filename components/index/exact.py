"""Exact search by brute force over blocks of vectors: what approximate search is measured against."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from components.index.pieces import Found, best_of
from components.index.rows import live_rows

BLOCK = 16_384  # rows as float32 at a time


def nearest(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], depth: int, deleted: NDArray[np.int64] | None = None
) -> Found:
    """Scores, best first, and rows of the `depth` best vectors of each query, (n, depth); -1 and -inf where there are fewer.

    `blocks` are (m, d) float32 in row order; `deleted` row numbers are left out.
    """
    import faiss

    found: Found = (np.full((len(queries), depth), -np.inf, np.float32), np.full((len(queries), depth), -1, np.int64))
    first, gone = 0, np.empty(0, np.int64) if deleted is None else np.sort(deleted)
    for block in blocks:
        mine = gone[np.searchsorted(gone, first) : np.searchsorted(gone, first + len(block))] - first
        live = live_rows(len(block), mine)
        if len(live):
            vectors = block if len(live) == len(block) else block[live]
            scores, numbers = faiss.knn(queries, vectors, min(depth, len(live)), metric=faiss.METRIC_INNER_PRODUCT)
            found = best_of([found, (scores, live[numbers] + first)], depth)
        first += len(block)
    return found
