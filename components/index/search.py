"""Loading of an index, with every check that FAISS does not make, and exact search with ties in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, open_artifact, verify
from components.errors import ArtifactError, SpaceMismatch
from components.index.build import IDS_FILE, INDEX_FILE, make_faiss_index

# Scores are rounded to this many digits: FAISS takes other kernels for other batch sizes, which differ in the seventh.
SCORE_DIGITS = 6
# Rows fetched beyond k, to see whether documents tie with the last one.
_MARGIN = 16


@dataclass(frozen=True)
class VectorIndex:
    """Documents that can be searched by vectors of one space. `order[row]` is the place of the row's id among the sorted ids."""

    space_id: str
    dimension: int
    doc_ids: list[str]
    faiss_index: Any
    order: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.doc_ids)

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The min(k, documents) best documents of each query vector.

        Takes float32 (n, d); returns scores float32 (n, k), inner products rounded to six decimals, highest first, and the ids beside
        them; equal scores stand in the order of the ids. Raises SpaceMismatch for another width, ArtifactError for vectors that are
        not finite, ValueError for k < 1.
        """
        self._check(vectors, k)
        k = min(k, len(self))
        scores, rows = self._exact(np.ascontiguousarray(vectors, dtype=np.float32), k, min(k + _MARGIN, len(self)))
        return scores, [[self.doc_ids[row] for row in best] for best in rows]

    def _check(self, vectors: NDArray[np.float32], k: int) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}.")
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise SpaceMismatch(
                f"The index holds vectors of {self.dimension} dimensions; the query vectors have the shape {vectors.shape}. "
                "Use the query encoder that was made for this index."
            )
        if not np.isfinite(vectors).all():
            raise ArtifactError("The query encoder gave values that are not finite; restore it or retrain.")

    def _exact(self, vectors: NDArray[np.float32], k: int, depth: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and rows (n, k); fetches deeper for the queries where the tie at place k goes on beyond `depth`."""
        if not len(vectors):
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        raw, rows = self.faiss_index.search(vectors, depth)
        scores = np.round(raw, SCORE_DIGITS) + np.float32(0)  # + 0 turns -0.0 into 0.0
        by_score_then_id = np.lexsort((self.order[rows], -scores), axis=1)
        scores, rows = np.take_along_axis(scores, by_score_then_id, 1), np.take_along_axis(rows, by_score_then_id, 1)
        undecided = np.flatnonzero(scores[:, k - 1] <= scores[:, -1]) if depth < len(self) else np.empty(0, np.int64)
        scores, rows = scores[:, :k].astype(np.float32), rows[:, :k]
        if len(undecided):
            scores[undecided], rows[undecided] = self._exact(vectors[undecided], k, min(depth * 4, len(self)))
        return scores, rows


def load_index(folder: Path, space_id: str, expected_digest: str | None = None) -> VectorIndex:
    """Load the index in `folder` for queries of the space `space_id`.

    Raises SpaceMismatch when it belongs to another space, ArtifactError when it is not the artifact `expected_digest`, a file is
    missing or changed, or its parts do not fit together.
    """
    artifact = open_artifact(folder)
    if artifact.kind != "index":
        raise ArtifactError(f"{folder} holds an artifact of kind '{artifact.kind}', not an index. Give the index folder.")
    if artifact.space_id != space_id:
        raise SpaceMismatch(
            f"{folder}: the index belongs to the vector space {artifact.space_id[:12]}, the query encoder to {space_id[:12]}. "
            "Searching would return unrelated documents: take the index and the query encoder of the same release."
        )
    verify(folder, expected_digest)
    return _assemble(artifact, _read_faiss(folder / INDEX_FILE), read_doc_ids(folder))


def index_in_memory(vectors: NDArray[np.float32], doc_ids: Sequence[str], space_id: str) -> VectorIndex:
    """An exact index over float32 (n, d) vectors that is not kept on disk."""
    return VectorIndex(space_id, vectors.shape[1], list(doc_ids), make_faiss_index(vectors, "Flat"), _places(doc_ids))


def read_doc_ids(folder: Path) -> list[str]:
    """The ids of an index's rows, in row order."""
    import pyarrow.parquet as pq

    # read_table would import pandas and pyarrow's data sets, a third of a second of every search.
    ids: list[str] = pq.ParquetFile(folder / IDS_FILE).read(columns=["doc_id"]).column("doc_id").to_pylist()
    return ids


def _read_faiss(path: Path) -> Any:
    import faiss

    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} cannot be read by faiss {faiss.__version__}; it may have been written by a newer one. "
            f"Use that version or build the index again. ({str(error).splitlines()[0][:200]})"
        ) from None


def _assemble(artifact: Artifact, faiss_index: Any, doc_ids: list[str]) -> VectorIndex:
    if faiss_index.ntotal != len(doc_ids) or faiss_index.d != artifact.attributes.get("dimension"):
        raise ArtifactError(
            f"{artifact.path}: the index holds {faiss_index.ntotal} vectors of {faiss_index.d} dimensions, but {len(doc_ids)} ids and "
            f"dimension {artifact.attributes.get('dimension')} are recorded. Build the index again."
        )
    return VectorIndex(artifact.space_id, faiss_index.d, doc_ids, faiss_index, _places(doc_ids))


def _places(doc_ids: Sequence[str]) -> NDArray[np.int64]:
    """For each row, the place of its id among the sorted ids."""
    places = np.empty(len(doc_ids), np.int64)
    places[sorted(range(len(doc_ids)), key=lambda i: doc_ids[i])] = np.arange(len(doc_ids))
    return places
