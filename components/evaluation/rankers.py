"""What is evaluated: anything that ranks documents for queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from components.errors import SpaceMismatch
from components.index.search import VectorIndex, index_in_memory

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.report import UntrainedSetup
    from components.towers.contract import TextEncoder


class Ranker(Protocol):
    """Ranks documents for queries."""

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """At most k (doc_id, score) for each query, best first."""
        ...


@dataclass(frozen=True)
class DenseRanker:
    """A query encoder on an index; `label` names its progress bar, None shows none. Raises SpaceMismatch for two spaces.

    `setup` says which encoder it is, where it was not trained here.
    """

    encoder: TextEncoder
    index: VectorIndex
    label: str | None = None
    setup: UntrainedSetup | None = None

    def __post_init__(self) -> None:
        if self.encoder.space_id != self.index.space_id:
            raise SpaceMismatch(
                f"The query encoder belongs to the vector space {self.encoder.space_id[:12]}, the index to {self.index.space_id[:12]}. "
                "Together they would find documents by chance: take both from the same run."
            )

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """The k nearest (doc_id, cosine) of each query, best first, equal scores in the order of the ids."""
        return self.rank_vectors(self.encode(queries), k)

    def encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of the queries, float32 (n, dimension)."""
        return self.encoder.encode(list(queries), progress=self.label)

    def rank_vectors(self, vectors: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """`rank` for queries that are encoded already."""
        scores, ids = self.index.search(vectors, k)
        return [[(doc_id, float(score)) for doc_id, score in zip(row, best, strict=True)] for row, best in zip(ids, scores, strict=True)]


def symmetric_ranker(
    encoder: TextEncoder, dataset: Dataset, label: str | None = None, vectors: NDArray[np.float32] | None = None
) -> DenseRanker:
    """One encoder for queries and documents alike, such as the student's before training. Its contract's max_length cuts documents too.

    `vectors`: those of the documents, float32 (documents, dimension), where they are known; else all are encoded here.
    """
    if vectors is None:
        vectors = encoder.encode(dataset.document_texts(), progress=None if label is None else f"{label}: documents")
    index = index_in_memory(vectors, [str(i) for i in dataset.documents["doc_id"]], encoder.space_id)
    return DenseRanker(encoder, index, None if label is None else f"{label}: queries")
