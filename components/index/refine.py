"""Stored vectors, memory-mapped: they score the best candidates of an approximate search again, and answer exact searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StoredVectors:
    """The stored vectors of all parts as one matrix of `rows` rows."""

    parts: Sequence[NDArray[np.float16] | NDArray[np.int8]]
    scales: Sequence[NDArray[np.float32]] | None

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inner products of query i with the unit vectors of rows[i]: float32 (n, c); -inf where a row is -1."""
        raise NotImplementedError

    def unit_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of unit length, float32 (len(rows), d)."""
        raise NotImplementedError

    def blocks(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All vectors in row order, of unit length, at most `size` rows at a time."""
        raise NotImplementedError


def open_stored(folder: Path, parts: int) -> StoredVectors | None:
    """The stored vectors of the index in `folder`; None when it keeps none."""
    raise NotImplementedError
