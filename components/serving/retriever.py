"""A retriever: the query encoder and the index of one release as one object, opened only if they belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.errors import ArtifactError
from components.index.search import Check, VectorIndex, load_index
from components.towers.contract import check_probes

if TYPE_CHECKING:
    from components.towers.contract import TextEncoder


class Hit(NamedTuple):
    """One document found; `score` is the cosine of query and document, rounded to six decimals."""

    doc_id: str
    score: float


@dataclass(frozen=True)
class Retriever:
    """Finds documents for texts."""

    encoder: TextEncoder
    index: VectorIndex

    @classmethod
    def open(
        cls,
        encoder: TextEncoder,
        encoder_folder: Path,
        index_folder: Path,
        tolerance: float,
        expected_index: str | None = None,
        check: Check = "full",
    ) -> Retriever:
        """Join a loaded query encoder and the index in `index_folder`; `check` as in `load_index`.

        Raises SpaceMismatch when they belong to different spaces, ArtifactError when a file of the index was changed or it is not the
        artifact `expected_index`, ProbeMismatch when the encoder no longer gives the probe vectors recorded in `encoder_folder`.
        """
        _require_query_encoder(encoder, encoder_folder)
        index = load_index(index_folder, encoder.space_id, expected_index, check)
        check_probes(encoder, encoder_folder, tolerance)
        return cls(encoder, index)

    def search(self, queries: Sequence[str], k: int = 10, progress: str | None = None) -> list[list[Hit]]:
        """The k best documents of each query, best first, equal scores in the order of the ids; `progress` labels a bar on stderr.

        Raises TypeError for one text in the place of several, whose letters would be the queries, and as `VectorIndex.search` does.
        """
        if isinstance(queries, str):
            raise TypeError(f"search takes a list of texts, not one text. Give [{queries[:60]!r}].")
        if not len(queries):  # an array has no truth
            return []
        scores, ids = self.index.search(self.encoder.encode(list(queries), progress=progress), k)
        return [[Hit(doc_id, float(score)) for doc_id, score in zip(row, best, strict=True)] for row, best in zip(ids, scores, strict=True)]


def _require_query_encoder(encoder: TextEncoder, folder: Path) -> None:
    # A document encoder is of the right space, so nothing else would notice: it would only search badly.
    if encoder.contract.role != "query":
        raise ArtifactError(f"{folder} holds a {encoder.contract.role} encoder; a retriever needs a query encoder.")
