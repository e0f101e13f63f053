"""Open an index with every check that FAISS does not make, and search it: deleted rows left out, candidates rescored.

An answer depends on the vectors, the template and the search parameters, not on the files: merged or in parts, with one query or many,
the same documents come back in the same order.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, IndexArtifact, Scalar, VectorShards, open_artifact, read_manifest, verify, verify_sizes
from components.errors import ArtifactError, SpaceMismatch
from components.index.engine import (
    BLOCK,
    FaissEngine,
    Found,
    IndexEngine,
    OpenPart,
    Settings,
    flat_engine,
    nearest,
    open_mapped,
    read_faiss,
)
from components.index.index_keys import is_exact
from components.index.merging import MERGE_VERSION
from components.index.parts import (
    INDEX_FILE,
    TEMPLATE_FILE,
    StoredPart,
    StoredVectors,
    has_own_file,
    merge_fault,
    open_part,
    open_stored,
    read_part,
    read_parts,
)
from components.index.rows import DocIds, Rows, live_rows, read_rows
from components.index.shards import read_vectors

LAYOUT_VERSION = 2
Check = Literal["full", "sizes"]
SCORE_DIGITS = 6  # that scores are rounded to: what differs by less are equals, in the order of their ids
# FAISS multiplies large batches by BLAS and small ones by kernels of its own, whose inner products of unit vectors differ by up to 1e-6.
# So an exact search takes its candidates from FAISS, some more than it needs, and their scores from one arithmetic for all batches.
_ROUGH = 5e-6
_AT_ONCE = 2**21  # numbers that are multiplied as float64 at a time
_SHARED = 8  # times the candidates of one query, to which those of all may come for a product of all with all to be the cheaper way
_HELD = 2**22  # documents of all answers that are fetched at a time where ties lead deep
# Rows fetched beyond what is needed, to see whether documents tie with the last one.
_MARGIN = 16
Blocks = Callable[[], Iterable[NDArray[np.float32]]]


@dataclass(frozen=True)
class VectorIndex:
    """Documents that can be searched by vectors of one space.

    `stored` are the vectors on disk that approximate search scores its candidates with; `flat` says that `engine` searches exactly.
    """

    space_id: str
    dimension: int
    rows: Rows
    engine: IndexEngine
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
        those of its codes. Raises SpaceMismatch for another width, ArtifactError for vectors that are not finite and where an index that
        keeps no vectors has fewer than k documents within its reach, ValueError for k < 1.
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
            return self._ordered(vectors, k, k + _MARGIN, lambda some, n: self._scored(some, self._found(some, n)), _ROUGH)
        if self.stored is None or self.settings.refine_factor is None:
            return self._ordered(vectors, k, k + _MARGIN, self._found)
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
            wider = self.settings.wider(max(16, len(self.rows)) + 1)  # at last wider than a graph has rows
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

        def fetch(some: NDArray[np.float32], depth: int) -> Found:
            return self._scored(some, nearest(some, stored.blocks(BLOCK), depth, self.rows.deleted), stored)

        return self._ordered(vectors, k, k + _MARGIN, fetch, _ROUGH)

    def _by_blocks(self, vectors: NDArray[np.float32], k: int, blocks: Blocks) -> Found:
        return self._ordered(vectors, k, k + _MARGIN, lambda some, depth: nearest(some, blocks(), depth, self.rows.deleted))

    def _found(self, vectors: NDArray[np.float32], depth: int) -> Found:
        return self.engine.search(vectors, depth, self.settings)

    def _scored(self, vectors: NDArray[np.float32], found: Found, stored: StoredVectors | None = None) -> Found:
        """What an exact search found with the scores worked out again in float64, so that they do not depend on the batch.

        From the `stored` vectors; None: from those of the engine.
        """
        rough, rows = found

        def kept(some: NDArray[np.int64]) -> NDArray[np.float64]:
            return (self.engine.vectors_of(some) if stored is None else _vectors_at(stored, some)).astype(np.float64)

        step = _AT_ONCE // max(1, rows.shape[1] * self.dimension)
        if not step and (shared := _products_of_shared(vectors, rows, kept)) is not None:
            return np.where(rows < 0, rough, shared), rows
        scores = np.empty(rows.shape, np.float64)
        for start in range(0, len(rows), max(1, step)):
            some = slice(start, start + max(1, step))
            scores[some] = (kept(rows[some]) @ vectors[some, :, None].astype(np.float64))[..., 0]
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
        for some in _in_groups(undecided, depth * 4):
            scores[some], rows[some] = self._ordered(vectors[some], k, depth * 4, fetch, slack)
        return scores, rows

    def _refined(self, vectors: NDArray[np.float32], k: int, depth: int) -> Found:
        """The k best of the `depth` best candidates, by their stored vectors.

        Codes tie often, and which of several equals comes last is chance. So all that tie with the last candidate are left out: then
        the candidates are the same however the index is cut into parts. Fetches deeper for the queries that lose too many.
        """
        depth = min(depth, len(self))
        rough, rows = self._found(vectors, depth)
        if depth < len(self):
            rows[rough <= rough[:, -1:]] = -1
        too_few = np.flatnonzero(((rows >= 0).sum(axis=1) < k) & np.isfinite(rough[:, -1])) if depth < len(self) else np.empty(0, np.int64)
        rows.sort(axis=1)  # the same order of reading, so the same rounding, however the candidates were found
        scores, rows = self._sorted(self.stored.scores(vectors, rows), rows)  # type: ignore[union-attr]  # only called with vectors
        scores, rows = scores[:, :k].astype(np.float32), rows[:, :k]
        for some in _in_groups(too_few, depth * 4):
            scores[some], rows[some] = self._refined(vectors[some], k, depth * 4)
        return scores, rows

    def _sorted(self, raw: NDArray[np.float32], rows: NDArray[np.int64]) -> Found:
        scores = np.round(raw, SCORE_DIGITS) + np.float32(0)  # + 0 turns -0.0 into 0.0
        by_score_then_id = np.lexsort((self.rows.order[rows], -scores), axis=1)
        return np.take_along_axis(scores, by_score_then_id, 1), np.take_along_axis(rows, by_score_then_id, 1)


def _in_groups(queries: NDArray[np.int64], depth: int) -> Iterator[NDArray[np.int64]]:
    """The numbers of queries in groups of which answers so deep fit into memory: a text that half of the documents have ties with all."""
    step = max(1, _HELD // depth)
    return (queries[start : start + step] for start in range(0, len(queries), step))


def _products_of_shared(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], kept: Callable[[NDArray[np.int64]], NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    """Inner products of query i with `kept(rows[i])`, float64 (n, c), that reads each row once; None where queries share too few of them.

    Where ties lead deep, one query's candidates alone can be all documents, and another one's are the same.
    """
    order = np.argsort(rows, axis=None)
    ordered = rows.reshape(-1)[order]
    distinct = ordered[np.diff(ordered, prepend=ordered[0] - 1) > 0]
    if len(distinct) > _SHARED * rows.shape[1]:
        return None
    products, wide = np.empty(rows.size, np.float64), vectors.astype(np.float64)
    step = max(1, _AT_ONCE // max(vectors.shape))
    for start in range(0, len(distinct), step):
        chunk = distinct[start : start + step]
        first, end = np.searchsorted(ordered, chunk[[0, -1]] + np.array([0, 1]))
        here = order[first:end]
        products[here] = (wide @ kept(chunk).T)[here // rows.shape[1], np.searchsorted(chunk, ordered[first:end])]
    return products.reshape(rows.shape)


def _vectors_at(stored: StoredVectors, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Unit vectors, float32 (*rows.shape, d); -1, which stands for nothing found, gives any."""
    return stored.unit_vectors(np.maximum(rows, 0).reshape(-1)).reshape(*rows.shape, -1)


def index_in_memory(vectors: NDArray[np.float32], doc_ids: Sequence[str], space_id: str) -> VectorIndex:
    """An exact index over float32 (n, d) vectors that is not kept on disk."""
    return VectorIndex(space_id, vectors.shape[1], Rows.of(doc_ids), flat_engine([vectors], vectors.shape[1]))


# --- Opening of an index folder, with every check that FAISS does not make.


def load_index(folder: Path, space_id: str, expected_digest: str | None = None, check: Check = "full") -> VectorIndex:
    """Open the index in `folder`, memory-mapped, for queries of the space `space_id`.

    `check`: "full" hashes every file; "sizes" compares their sizes only, for folders that were hashed when they came, and opens a
    million documents in well under a second. Raises SpaceMismatch when it belongs to another space, ArtifactError when it is not the
    artifact `expected_digest`, a file is missing or changed, its layout is newer than this program, or its parts do not fit together.
    """
    artifact = open_artifact(folder)
    require_index(artifact, space_id)
    verify(folder, expected_digest) if check == "full" else verify_sizes(folder, expected_digest)
    if layout_version(artifact) == 1:
        return _open_first_layout(artifact)
    _require_template(artifact)
    if fault := merge_fault_of(artifact):
        # Stopping the search that has answered until now would be worse than a document that it does not find.
        print(f"Warning: {fault} `scalingnote verify` fails until then.", file=sys.stderr, flush=True)
    return open_files(folder, artifact.attributes, artifact.counts["parts"], artifact)


def merge_fault_of(artifact: Artifact) -> str | None:
    """`merge_fault` of a sealed index; None for one that was merged by this version, and for the first layout, which has no parts."""
    if int(artifact.attributes.get("merge_version") or 1) >= MERGE_VERSION or layout_version(artifact) == 1:
        return None
    return merge_fault(artifact.path, [read_part(artifact.path, number) for number in range(artifact.counts.get("parts", 1))])


def require_index(artifact: Artifact, space_id: str) -> None:
    """Raise ArtifactError for what is no index or one of a newer layout, SpaceMismatch for one of another space."""
    if artifact.kind != "index":
        raise ArtifactError(f"{artifact.path} holds an artifact of kind '{artifact.kind}', not an index. Give the index folder.")
    if artifact.space_id != space_id:
        raise SpaceMismatch(
            f"{artifact.path}: the index belongs to the vector space {artifact.space_id[:12]}, the query encoder to {space_id[:12]}. "
            "Searching would return unrelated documents: take the index and the query encoder of the same release."
        )
    if layout_version(artifact) > LAYOUT_VERSION:
        raise ArtifactError(
            f"{artifact.path}: the index has layout version {layout_version(artifact)}; this program reads up to {LAYOUT_VERSION}. "
            "Update scalingnote."
        )


def layout_version(artifact: Artifact) -> int:
    """The version of an index's files; those that do not say it are the first."""
    return int(artifact.attributes.get("layout_version") or 1)


def open_files(folder: Path, about: Mapping[str, Scalar], parts: int, artifact: Artifact | None = None) -> VectorIndex:
    """Open the files of an index of the present layout; `about` are its attributes."""
    rows, dimension, flat = read_rows(folder), int(about["dimension"] or 0), is_exact(str(about["index_key"]))
    space_id, digest = str(about["space_id"]), about["template_digest"]
    found = read_parts(folder, parts, space_id, None if digest is None else str(digest))
    stored = open_stored(folder, parts)
    _require_rows(folder, sum(part.rows for part in found), len(rows))
    _require_stored(folder, found, stored, about)
    exact = _exact_engine(stored, dimension, rows) if flat and stored is not None else None
    engine = exact or FaissEngine(_approximate_pieces(folder, found, rows))
    _require_dimension(folder, engine.pieces, dimension)
    names = ("nprobe", "ef_search", "refine_factor")
    settings = Settings(*(None if (value := about.get(name)) is None else int(value) for name in names))
    return VectorIndex(space_id, dimension, rows, engine, stored, flat, settings, artifact)


def _exact_engine(stored: StoredVectors, dimension: int, rows: Rows) -> FaissEngine:
    """Deleted rows are left out and not filtered, so that an index after deletions answers like one built without them."""
    if not len(rows.deleted):
        return flat_engine(stored.blocks(BLOCK), dimension)
    live = live_rows(len(rows), rows.deleted)
    return flat_engine((stored.unit_vectors(live[i : i + BLOCK]) for i in range(0, len(live), BLOCK)), dimension, live)


def _approximate_pieces(folder: Path, parts: Sequence[StoredPart], rows: Rows) -> list[OpenPart]:
    """The merged file, where there is one, holds the first parts, those without a file of their own."""
    pieces: list[OpenPart] = []
    merged = sum(part.rows for part in parts if not has_own_file(folder, part.number))
    if merged and not (folder / INDEX_FILE).is_file():
        lost = next(part.number for part in parts if not has_own_file(folder, part.number))
        raise ArtifactError(
            f"{folder}: part-{lost:05d}.faiss is missing, and there is no {INDEX_FILE} that would hold the part. Restore it or build the "
            "index again."
        )
    if merged:
        pieces.append(_piece(open_mapped(folder / INDEX_FILE), 0, merged, rows))
    first = merged
    for part in parts:
        if has_own_file(folder, part.number):
            pieces.append(_piece(open_part(folder, part.number), first, part.rows, rows))
            first += part.rows
    for piece, expected in zip(pieces, _sizes(merged, folder, parts), strict=True):
        _require_rows(folder, piece.index.ntotal, expected)
    return pieces


def _sizes(merged: int, folder: Path, parts: Sequence[StoredPart]) -> list[int]:
    return [*([merged] if merged else []), *(part.rows for part in parts if has_own_file(folder, part.number))]


def _piece(index: Any, first: int, count: int, rows: Rows) -> OpenPart:
    mine = rows.deleted[(rows.deleted >= first) & (rows.deleted < first + count)]
    return OpenPart(index, first, deleted=mine - first)


def _open_first_layout(artifact: Artifact) -> VectorIndex:
    """One file `index.faiss` for exact search and `doc_ids.parquet` without the order of the ids."""
    piece, rows = OpenPart(read_faiss(artifact.path / INDEX_FILE)), read_rows(artifact.path)
    dimension = int(artifact.attributes["dimension"] or 0)
    _require_rows(artifact.path, piece.index.ntotal, len(rows))
    _require_dimension(artifact.path, [piece], dimension)
    return VectorIndex(artifact.space_id, dimension, rows, FaissEngine([piece]), artifact=artifact)


def _require_template(artifact: Artifact) -> None:
    """The manifest lists the template's sha256 already, so the file is not hashed a second time."""
    entry, stated = read_manifest(artifact.path).files.get(TEMPLATE_FILE), artifact.attributes.get("template_digest")
    found = entry.sha256 if entry else None
    if found != stated:
        raise ArtifactError(
            f"{artifact.path / TEMPLATE_FILE}: the index was made from the template {str(stated)[:12]}, the file is {str(found)[:12]}. "
            "Documents that a refresh adds to it would never be found: restore the file or build the index again."
        )


def _require_stored(folder: Path, parts: Sequence[StoredPart], stored: StoredVectors | None, about: Mapping[str, Scalar]) -> None:
    """Raise ArtifactError when vectors are not kept although they should be, or are not those of the rows."""
    if stored is None:
        if about["refine"] != "none":
            raise ArtifactError(f"{folder}: the vectors of the index (part-00000.vectors.npy) are missing. Restore or build it again.")
        return
    for part, vectors in zip(parts, stored.parts, strict=True):
        if vectors.shape != (part.rows, about["dimension"]):
            raise ArtifactError(
                f"{folder}: part-{part.number:05d}.vectors.npy holds {vectors.shape[0]:,} vectors of {vectors.shape[-1]} dimensions where "
                f"{part.rows:,} of {about['dimension']} are recorded. Restore it or build the index again."
            )


def _require_rows(folder: Path, found: int, expected: int) -> None:
    if found != expected:
        raise ArtifactError(f"{folder}: {found:,} vectors were found where {expected:,} documents are recorded. Build the index again.")


def _require_dimension(folder: Path, pieces: Sequence[OpenPart], dimension: int) -> None:
    for piece in pieces:
        if piece.index.d != dimension:
            raise ArtifactError(
                f"{folder}: the index holds vectors of {piece.index.d} dimensions, its manifest says {dimension}. Build the index again."
            )


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
    return index.engine.vectors_of(rows)  # the first layout has its vectors in FAISS alone


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
