"""A small distillation problem: a teacher that a student can learn, and the search that scores it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from components.distillation.plan import DevSet
from components.distillation.train import DistillationData
from tests.training.tiny_world import documents, queries

WIDTH = 24


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows scaled to unit length."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def word_data() -> DistillationData:
    """A teacher whose vectors are random projections of word counts: learnable, and 24 wide so that a projection is needed."""
    texts = queries() + documents()
    words = sorted({word for text in texts for word in text.lower().split()})
    counts = np.array([[text.lower().split().count(word) for word in words] for text in texts], dtype=np.float64)
    vectors = unit(counts @ np.random.default_rng(0).normal(size=(len(words), WIDTH)))
    n = len(queries())
    ids = [str(i) for i in range(n)]
    held = vectors[n:]

    def search(vectors: NDArray[np.float32], k: int) -> list[list[str]]:
        return [[ids[j] for j in row[:k]] for row in np.argsort(-(vectors @ held.T), axis=1, kind="stable")]

    dev = DevSet(queries()[::4], [frozenset([ids[i]]) for i in range(0, n, 4)], search)
    return DistillationData(queries(), vectors[:n], [(i, i) for i in range(n)], held, "space", dev)
