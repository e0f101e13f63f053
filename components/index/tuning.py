"""Tuning of the search parameters to a target recall against exact search: cheapest first, by bisection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.index.config import IndexConfig

if TYPE_CHECKING:
    from components.index.search import VectorIndex


@dataclass(frozen=True)
class Tuned:
    """Search parameters and the recall they reach; a parameter that the index does not have is None."""

    nprobe: int | None
    ef_search: int | None
    refine_factor: int | None
    recall: float
    recall_at: int


def tune(index: VectorIndex, queries: NDArray[np.float32], config: IndexConfig, exact: Sequence[Sequence[str]] | None = None) -> Tuned:
    """The cheapest parameters that reach `config.target_recall`; those given in `config` are kept.

    `exact`: the true ids of each query; None: asked from `index.exact`.
    """
    raise NotImplementedError


def recall_against_exact(approximate_ids: Sequence[Sequence[str]], exact_ids: Sequence[Sequence[str]]) -> NDArray[np.float64]:
    """Share of each query's exact neighbours that the index found, (n,); 1 for a query without any."""
    raise NotImplementedError
