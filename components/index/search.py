"""Search an index: rows of documents that are gone left out, candidates rescored, titles looked up.

An answer depends on the vectors, the template and the search parameters, not on the files: merged or in parts, with one query or many,
the same documents come back in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, IndexArtifact, VectorShards
from components.errors import ArtifactError, SpaceMismatch
from components.index.opening import BLOCK, Check, Found, Opened, Piece, Settings, flat_piece, nearest, open_index, search_pieces
from components.index.rows import DocIds, Rows
from components.index.shards import read_vectors
from components.index.stored_vectors import StoredVectors

SCORE_DIGITS = 6  # that scores are rounded to: what differs by less are equals, in the order of their ids
# FAISS multiplies large batches by BLAS and small ones by kernels of its own, whose inner products of unit vectors differ by up to 1e-6.
# So an exact search takes its candidates from FAISS, some more than it needs, and their scores from one arithmetic for all batches.
_ROUGH = 5e-6
_AT_ONCE = 2**21  # numbers that are multiplied as float64 at a time
# Rows fetched beyond what is needed, to see whether documents tie with the last one.
_MARGIN = 16
Blocks = Callable[[], Iterable[NDArray[np.float32]]]


@dataclass(frozen=True)
class VectorIndex:
    """Documents that can be searched by vectors of one space.

    `stored` are the vectors on disk that approximate search scores its candidates with; `flat` says that `pieces` search exactly.
    """

    space_id: str
    dimension: int
    rows: Rows
    pieces: Sequence[Piece]
    stored: StoredVectors | None = None
    flat: bool = True
    settings: Settings = field(default_factory=Settings)
    artifact: Artifact | None = None

    def __len__(self) -> int:
        return self.rows.live

    @property
    def doc_ids(self) -> DocIds:
        """Document ids by row number, those of deleted rows included."""
        return self.rows.doc_ids

    @property
    def has_vectors(self) -> bool:
        """Whether `exact` can answer."""
        return self.flat or self.stored is not None

    def search(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        """The min(k, documents) best documents of each query vector.

        Takes float32 (n, d); returns scores float32 (n, k), inner products rounded to six decimals, highest first, and the ids beside
        them; equal scores stand in the order of the ids. The scores of an approximate index are exact when it keeps vectors, else
        those of its codes. Raises SpaceMismatch for another width, ArtifactError for vectors that are not finite, ValueError for k < 1.
        """
        return self._named(vectors, k, self._filled)

    def exact(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], list[list[str]]]:
        """What `search` would return if it were exact, by comparing each query with every stored vector.

        Raises as `search`, and ArtifactError for an approximate index that keeps no vectors.
        """
        return self._named(vectors, k, self._brute_force)

    def found(self, vectors: NDArray[np.float32], k: int) -> Found:
        """Scores and row numbers (n, k), as the index finds them with its parameters; -1 where it finds fewer than k."""
        if self.flat:
            return self._ordered(vectors, k, k + _MARGIN, self._scored, _ROUGH)
        if self.stored is None or self.settings.refine_factor is None:
            return self._ordered(vectors, k, k + _MARGIN, self._pieces)
        return self._refined(vectors, k, k * self.settings.refine_factor + _MARGIN)

    def exact_rows(self, vectors: NDArray[np.float32], k: int, blocks: Blocks | None = None) -> NDArray[np.int64]:
        """Row numbers (n, k) of the true neighbours, equal ones in the order of their ids.

        `blocks` gives all vectors anew, in row order, for an index that keeps none; without it such an index raises ArtifactError.
        """
        return (self._brute_force(vectors, k) if blocks is None else self._by_blocks(vectors, k, blocks))[1]

    def _named(
        self, vectors: NDArray[np.float32], k: int, search: Callable[[NDArray[np.float32], int], Found]
    ) -> tuple[NDArray[np.float32], list[list[str]]]:
        self._check(vectors, k)
        k = min(k, len(self))
        if not len(vectors) or not k:
            return np.empty((len(vectors), k), np.float32), [[] for _ in vectors]
        scores, rows = search(np.ascontiguousarray(vectors, dtype=np.float32), k)
        return scores, self.doc_ids.take(rows)

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

    def _filled(self, vectors: NDArray[np.float32], k: int) -> Found:
        """`found`, with wider parameters for the queries whose lists hold fewer than k documents."""
        scores, rows = self.found(vectors, k)
        short = np.flatnonzero(rows[:, k - 1] < 0)
        if len(short):
            wider = self.settings.wider(len(self.rows))
            widest = wider == self.settings
            again = self._brute_force if widest else replace(self, settings=wider)._filled
            scores[short], rows[short] = again(vectors[short], k)
        return scores, rows

    def _brute_force(self, vectors: NDArray[np.float32], k: int) -> Found:
        if self.flat:
            return self.found(vectors, k)
        if self.stored is None:
            raise ArtifactError(
                "The index keeps no vectors, so it cannot be searched exactly, nor answer when fewer documents are within reach than asked "
                "for. Build it with index.refine fp16 or int8."
            )
        stored = self.stored
        return self._by_blocks(vectors, k, lambda: stored.blocks(BLOCK))

    def _by_blocks(self, vectors: NDArray[np.float32], k: int, blocks: Blocks) -> Found:
        return self._ordered(vectors, k, k + _MARGIN, lambda some, depth: nearest(some, blocks(), depth, self.rows.deleted))

    def _pieces(self, vectors: NDArray[np.float32], depth: int) -> Found:
        return search_pieces(self.pieces, vectors, depth, self.settings)

    def _scored(self, vectors: NDArray[np.float32], depth: int) -> Found:
        """`_pieces` of an exact index with the scores worked out again in float64, so that they do not depend on the batch."""
        import faiss

        (piece,) = self.pieces
        rough, rows = self._pieces(vectors, depth)
        kept = faiss.rev_swig_ptr(piece.index.get_xb(), piece.index.ntotal * self.dimension).reshape(-1, self.dimension)
        numbers = np.maximum(rows - piece.first, 0) if piece.rows is None else np.searchsorted(piece.rows, rows)
        scores = np.empty(rows.shape, np.float64)
        step = max(1, _AT_ONCE // max(1, depth * self.dimension))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            scores[some] = (kept[numbers[some]].astype(np.float64) @ vectors[some, :, None].astype(np.float64))[..., 0]
        return np.where(rows < 0, rough, scores), rows

    def _ordered(
        self,
        vectors: NDArray[np.float32],
        k: int,
        depth: int,
        fetch: Callable[[NDArray[np.float32], int], Found],
        slack: float = 0.0,
    ) -> Found:
        """The k best by the scores of `fetch`; fetches deeper for the queries where the tie at place k goes on beyond `depth`.

        `slack`: so much may the scores by which `fetch` chooses differ from those that it gives.
        """
        depth = min(depth, len(self))
        scores, rows = self._sorted(*fetch(vectors, depth))
        goes_on = (scores[:, k - 1] <= scores[:, -1] + slack) & np.isfinite(scores[:, -1])
        undecided = np.flatnonzero(goes_on) if depth < len(self) else np.empty(0, np.int64)
        scores, rows = scores[:, :k].astype(np.float32), rows[:, :k]
        if len(undecided):
            scores[undecided], rows[undecided] = self._ordered(vectors[undecided], k, depth * 4, fetch, slack)
        return scores, rows

    def _refined(self, vectors: NDArray[np.float32], k: int, depth: int) -> Found:
        """The k best of the `depth` best candidates, by their stored vectors.

        Codes tie often, and which of several equals comes last is chance. So all that tie with the last candidate are left out: then
        the candidates are the same however the index is cut into parts. Fetches deeper for the queries that lose too many.
        """
        depth = min(depth, len(self))
        rough, rows = self._pieces(vectors, depth)
        if depth < len(self):
            rows[rough <= rough[:, -1:]] = -1
        too_few = np.flatnonzero(((rows >= 0).sum(axis=1) < k) & np.isfinite(rough[:, -1])) if depth < len(self) else np.empty(0, np.int64)
        rows.sort(axis=1)  # the same order of reading, so the same rounding, however the candidates were found
        scores, rows = self._sorted(self.stored.scores(vectors, rows), rows)  # type: ignore[union-attr]  # only called with vectors
        scores, rows = scores[:, :k].astype(np.float32), rows[:, :k]
        if len(too_few):
            scores[too_few], rows[too_few] = self._refined(vectors[too_few], k, depth * 4)
        return scores, rows

    def _sorted(self, raw: NDArray[np.float32], rows: NDArray[np.int64]) -> Found:
        scores = np.round(raw, SCORE_DIGITS) + np.float32(0)  # + 0 turns -0.0 into 0.0
        by_score_then_id = np.lexsort((self.rows.order[rows], -scores), axis=1)
        return np.take_along_axis(scores, by_score_then_id, 1), np.take_along_axis(rows, by_score_then_id, 1)


def load_index(folder: Path, space_id: str, expected_digest: str | None = None, check: Check = "full") -> VectorIndex:
    """Open the index in `folder`, memory-mapped, for queries of the space `space_id`.

    `check`: "full" hashes every file; "sizes" compares their sizes only, for folders that were hashed when they came, and opens a
    million documents in well under a second. Raises SpaceMismatch when it belongs to another space, ArtifactError when it is not the
    artifact `expected_digest`, a file is missing or changed, its layout is newer than this program, or its parts do not fit together.
    """
    return vector_index(open_index(folder, space_id, expected_digest, check))


def vector_index(opened: Opened) -> VectorIndex:
    """The index over the opened files of a folder."""
    return VectorIndex(
        opened.space_id, opened.dimension, opened.rows, opened.pieces, opened.stored, opened.flat, opened.settings, opened.artifact
    )


def index_in_memory(vectors: NDArray[np.float32], doc_ids: Sequence[str], space_id: str) -> VectorIndex:
    """An exact index over float32 (n, d) vectors that is not kept on disk."""
    return VectorIndex(space_id, vectors.shape[1], Rows.of(doc_ids), [flat_piece([vectors], vectors.shape[1])])


# --- The vectors of single documents, read from what an index keeps of them: nothing is encoded again.


def vectors_of(index: VectorIndex, doc_ids: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of the documents, float32 (len(doc_ids), d), in their order.

    Raises ArtifactError when the index keeps no vectors (`refine: none`) or lacks one of the documents.
    """
    rows = rows_of(index, doc_ids)
    if index.stored is not None:
        return index.stored.unit_vectors(rows)
    if not index.flat:
        raise ArtifactError(
            "The index keeps no vectors (index.refine is none), so nothing can be learned from its documents. "
            "Retrain with index.refine=fp16."
        )
    kept: NDArray[np.float32] = index.pieces[0].index.reconstruct_batch(rows)  # the first layout has its vectors in FAISS alone
    return kept


def open_documents(
    index: IndexArtifact, vectors: VectorShards | None, doc_ids: Sequence[str]
) -> tuple[NDArray[np.float32], Callable[[NDArray[np.float32], int], list[list[str]]]]:
    """Unit vectors of an index's documents, float32 (len(doc_ids), d), and its search: query vectors (n, d) and k to the ids of each.

    `vectors` are its shards, in the order of `doc_ids`; without them those that the index keeps are taken. Raises as `load_index`,
    `vectors_of` and `read_vectors` do.
    """
    opened = load_index(index.path, index.space_id)
    unit = vectors_of(opened, doc_ids) if vectors is None else read_vectors(vectors).vectors
    return unit, lambda queries, k: opened.search(queries, k)[1]


def rows_of(index: VectorIndex, doc_ids: Sequence[str]) -> NDArray[np.int64]:
    """The row of each document, int64 (len(doc_ids),), deleted rows left out; raises ArtifactError for a document without one."""
    found = index.rows.live_rows_of(doc_ids)
    missing = next((doc_id for doc_id in doc_ids if doc_id not in found), None)
    if missing is not None:
        raise ArtifactError(f"The index holds no document '{missing}'. Refresh it with the data that it is used with.")
    return np.array([found[doc_id] for doc_id in doc_ids], np.int64)
