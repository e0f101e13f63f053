"""Tuning of the search parameters to a target recall against exact search: the cheapest that reach it, found by bisection."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.index.config import IndexConfig
from components.index.index_keys import graph, inverted_file
from components.index.pieces import Settings

if TYPE_CHECKING:
    from components.index.search import VectorIndex

REFINE_FACTORS = (1, 2, 3, 4, 6, 8, 12, 16)
WIDEST_GRAPH = 4096  # ef_search
# Rough costs, the same on every machine so that the same vectors give the same index. Measured on one core: a byte of codes that is
# scanned, and a number of a stored vector that is read and multiplied, both in nanoseconds.
_SCANNED_BYTE = 0.1
_REFINED_NUMBER = 0.8


@dataclass(frozen=True)
class Tuned:
    """Search parameters and the recall they reach; a parameter that the index does not have is None."""

    nprobe: int | None
    ef_search: int | None
    refine_factor: int | None
    recall: float
    recall_at: int

    @property
    def settings(self) -> Settings:
        """The parameters as an index takes them."""
        return Settings(self.nprobe, self.ef_search, self.refine_factor)


def tune(index: VectorIndex, queries: NDArray[np.float32], config: IndexConfig, exact: NDArray[np.int64] | None = None) -> Tuned:
    """The cheapest parameters that reach `config.target_recall`; those given in `config` are kept.

    Takes queries float32 (n, d). `exact` are the row numbers (n, k) of their true neighbours; None: asked from the index. When nothing
    reaches the target, the widest search is taken, and its recall says so.
    """
    depth = min(config.recall_at, len(index))
    truth = index.exact_rows(queries, depth) if exact is None else exact[:, :depth]

    def recall(settings: Settings) -> float:
        return mean_recall(replace(index, settings=settings), queries, truth)

    chosen = _cheapest(index, config, depth, recall)
    return Tuned(chosen.nprobe, chosen.ef_search, chosen.refine_factor, recall(chosen), depth)


def mean_recall(index: VectorIndex, queries: NDArray[np.float32], exact: NDArray[np.int64]) -> float:
    """Mean share of the true rows, (n, k), that the index finds with its own parameters."""
    rows = index.found(queries, exact.shape[1])[1]
    return round(float(recall_against_exact(rows.tolist(), exact.tolist()).mean()), 6)


def recall_against_exact(approximate_ids: Sequence[Sequence[Hashable]], exact_ids: Sequence[Sequence[Hashable]]) -> NDArray[np.float64]:
    """Share of each query's exact neighbours that the index found, (n,); 1 for a query without any."""
    pairs = zip(approximate_ids, exact_ids, strict=True)
    return np.array([len(set(found) & set(true)) / len(set(true)) if true else 1.0 for found, true in pairs])


def smallest_reaching(reaches: Callable[[int], bool], most: int) -> int | None:
    """The smallest width from 1 to `most` that reaches the target, if wider never does worse; None when `most` does not.

    Doubles from 1, then halves the last step, so that narrow answers, the usual ones, are found by narrow and cheap searches.
    """
    low, high = 0, 1
    while not reaches(high):
        if high == most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(middle) else (middle, high)
    return high


def _cheapest(index: VectorIndex, config: IndexConfig, depth: int, recall: Callable[[Settings], float]) -> Settings:
    widest = _widest(index, config, _factors(index, config)[-1])
    best: Settings | None = None
    for factor in _factors(index, config):
        most = widest if best is None else best
        if best is not None and _refining(index, depth, factor) >= _cost(index, best, depth):
            break  # more candidates cost more than the whole search that reaches the target with fewer
        found = _narrowest(replace(most, refine_factor=factor), config, recall)
        if found is not None and (best is None or _cost(index, found, depth) < _cost(index, best, depth)):
            best = found
    return best or widest


def _narrowest(most: Settings, config: IndexConfig, recall: Callable[[Settings], float]) -> Settings | None:
    """The settings with the smallest nprobe or ef_search, at most those of `most`, that reach the target; None when none do."""
    name = next((name for name in ("nprobe", "ef_search") if getattr(most, name) is not None), None)
    given = name is None or getattr(config, name) is not None
    if given or name is None:
        return most if recall(most) >= config.target_recall else None
    width = smallest_reaching(lambda value: recall(replace(most, **{name: value})) >= config.target_recall, getattr(most, name))
    return None if width is None else replace(most, **{name: width})


def _factors(index: VectorIndex, config: IndexConfig) -> Sequence[int | None]:
    if index.stored is None or config.refine == "none":
        return (None,)
    return REFINE_FACTORS if config.refine_factor is None else (config.refine_factor,)


def _widest(index: VectorIndex, config: IndexConfig, factor: int | None) -> Settings:
    first = index.pieces[0].index
    if (lists := inverted_file(first)) is not None:
        return Settings(min(config.nprobe or lists.nlist, lists.nlist), None, factor)
    if graph(first) is not None:
        return Settings(None, config.ef_search or min(WIDEST_GRAPH, max(16, len(index))), factor)
    return Settings(None, None, factor)


def _cost(index: VectorIndex, settings: Settings, depth: int) -> float:
    """Nanoseconds of one query, roughly."""
    first = index.pieces[0].index
    if (lists := inverted_file(first)) is not None:
        scanned = len(index.rows) * (settings.nprobe or 1) / lists.nlist * lists.code_size
    elif (small_world := graph(first)) is not None:
        visited = max(settings.ef_search or 0, depth * (settings.refine_factor or 1)) * small_world.hnsw.nb_neighbors(0)
        scanned = visited * index.dimension * 4
    else:
        scanned = 0.0  # plain codes are all scanned, whatever the parameters
    return scanned * _SCANNED_BYTE + _refining(index, depth, settings.refine_factor)


def _refining(index: VectorIndex, depth: int, factor: int | None) -> float:
    return depth * (factor or 0) * index.dimension * _REFINED_NUMBER
