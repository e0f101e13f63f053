"""A retriever: the query encoder and the index of one release as one object, opened only if they belong together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.data.values import is_storable
from components.errors import ArtifactError, DataError
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
        opened = load_index(index_folder, encoder.space_id, expected_index, check)
        check_probes(encoder, encoder_folder, tolerance)
        return cls(encoder, opened)

    def search(self, queries: Sequence[str], k: int = 10, progress: str | None = None) -> list[list[Hit]]:
        """The k best documents of each query, best first, equal scores in the order of the ids; `progress` labels a bar on stderr.

        Raises TypeError for one text in the place of several, whose letters would be the queries, for a table or dictionary, whose names
        would be, for what is no text and a `k` that is no whole number, DataError for half a character, and as `VectorIndex.search` does.
        """
        if isinstance(queries, str):
            raise TypeError(f"search takes a list of texts, not one text. Give [{queries[:60]!r}].")
        if isinstance(queries, Mapping) or getattr(queries, "ndim", 1) != 1:
            raise TypeError(
                f"search takes a list of texts, not a {type(queries).__name__}. Give the texts alone, such as one column of a table."
            )
        texts = list(queries)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"queries[{number}] is {repr(text)[:60]}, which is no text. Give texts alone.")
            if not is_storable(text):
                raise DataError(f"queries[{number}] holds half a surrogate pair, which is no character. Remove it.")
        if not texts:
            return []
        scores, ids = self.index.search(self.encoder.encode(texts, progress=progress), index(k))  # FAISS takes no number of numpy
        return [[Hit(doc_id, float(score)) for doc_id, score in zip(row, best, strict=True)] for row, best in zip(ids, scores, strict=True)]


def _require_query_encoder(encoder: TextEncoder, folder: Path) -> None:
    # A document encoder is of the right space, so nothing else would notice: it would only search badly.
    if encoder.contract.role != "query":
        raise ArtifactError(f"{folder} holds a {encoder.contract.role} encoder; a retriever needs a query encoder.")
