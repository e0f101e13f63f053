"""Stored vectors, memory-mapped: they score the best candidates of an approximate search again, and answer exact searches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.index.shards import to_float32, unit_rows

_AT_ONCE = 2**21  # numbers held as float32 while candidates are scored: what stays in a core's cache is several times faster


@dataclass(frozen=True)
class StoredVectors:
    """The stored vectors of all parts, (rows of the part, d) float16 or int8, as one matrix. Of each row only the direction counts."""

    parts: Sequence[NDArray[Any]]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Inner products of query i with the unit vectors of rows[i]: float32 (n, c); -inf where a row is -1.

        Rows in ascending order are read fastest.
        """
        scores = np.empty(rows.shape, np.float32)
        step = max(1, _AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            vectors = self.values(np.maximum(rows[some], 0).reshape(-1)).reshape(*rows[some].shape, -1)
            lengths = np.sqrt(np.einsum("ncd,ncd->nc", vectors, vectors))
            scores[some] = (vectors @ queries[some, :, None])[..., 0] / np.maximum(lengths, np.float32(1e-12))
        scores[rows < 0] = -np.inf
        return scores

    def unit_vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Vectors of unit length, float32 (len(rows), d)."""
        return unit_rows(self.values(rows))

    def blocks(self, size: int) -> Iterator[NDArray[np.float32]]:
        """All vectors in row order, of unit length, at most `size` rows at a time and none across two parts."""
        for first, part in zip(self._starts, self.parts, strict=False):
            for start in range(0, len(part), size):
                yield self.unit_vectors(np.arange(first + start, first + min(start + size, len(part))))

    def values(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored values as they are, float32 (len(rows), d)."""
        if len(self.parts) == 1:
            return to_float32(self.parts[0].take(rows, axis=0))
        found = np.empty((len(rows), self.parts[0].shape[1]), self.parts[0].dtype)
        of_part = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(of_part):
            mine = of_part == number
            found[mine] = self.parts[number].take(rows[mine] - self._starts[number], axis=0)
        return to_float32(found)
