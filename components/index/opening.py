"""Open an index: its parts as one, every check that FAISS does not make, and exact search over its stored vectors."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, Scalar, open_artifact, read_manifest, verify, verify_sizes
from components.errors import ArtifactError, SpaceMismatch
from components.index.index_keys import can_filter, inner_index, inverted_file, is_exact, transformed
from components.index.merging import MERGE_VERSION
from components.index.parts import (
    INDEX_FILE,
    TEMPLATE_FILE,
    StoredPart,
    has_own_file,
    merge_fault,
    open_mapped,
    open_part,
    open_stored,
    read_faiss,
    read_part,
    read_parts,
)
from components.index.rows import Rows, live_rows, read_rows
from components.index.stored_vectors import StoredVectors

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True)
class Settings:
    """Search parameters; None where an index has none: lists visited, width in a graph, candidates scored again for each result."""

    nprobe: int | None = None
    ef_search: int | None = None
    refine_factor: int | None = None

    def wider(self, most: int) -> Settings:
        """Four times the lists and the width, up to `most` rows; the same when there is nothing to widen."""
        return replace(self, nprobe=_times_four(self.nprobe, most), ef_search=_times_four(self.ef_search, most))


@dataclass(frozen=True)
class Piece:
    """A FAISS index over `rows` (row numbers, int64) or, when None, over the rows from `first` on.

    `deleted` are numbers in the index itself, which are never found.
    """

    index: Any
    first: int = 0
    rows: NDArray[np.int64] | None = None
    deleted: NDArray[np.int64] | None = None

    def search(self, vectors: NDArray[np.float32], depth: int, settings: Settings, lists: Lists | None) -> Found:
        """Scores, best first, and rows, (n, depth); -1 and -inf where fewer were found. `lists` are those to visit, if it has any."""
        if self._filters:
            scores, numbers = self._search(vectors, depth, lists, self._parameters(settings, self._selector))
        else:
            scores, numbers = self._search_and_drop(vectors, depth, settings, lists)
        missing = numbers < 0
        rows = numbers + self.first if self.rows is None else self.rows[numbers]
        if missing.any():
            rows[missing], scores[missing] = -1, -np.inf
        return scores, rows

    @cached_property
    def _filters(self) -> bool:
        return can_filter(self.index)

    def _search(self, vectors: NDArray[np.float32], depth: int, lists: Lists | None, parameters: Any) -> Found:
        if lists is not None:
            return _search_lists(inner_index(self.index), lists, depth, parameters)
        found: Found = self.index.search(vectors, depth, params=parameters)
        return found

    def _search_and_drop(self, vectors: NDArray[np.float32], depth: int, settings: Settings, lists: Lists | None) -> Found:
        """For codes that FAISS cannot filter: deleted ones are found, too, and dropped."""
        gone = np.empty(0, np.int64) if self.deleted is None else self.deleted
        parameters = None if lists is None else self._parameters(settings, None)
        scores, numbers = self._search(vectors, depth + len(gone), lists, parameters)
        dropped = np.isin(numbers, gone)
        numbers[dropped], scores[dropped] = -1, -np.inf
        return best_of([(scores, numbers)], depth)

    @cached_property
    def _selector(self) -> Any | None:
        import faiss

        if self.deleted is None or not len(self.deleted):
            return None
        live = np.ones(self.index.ntotal, bool)
        live[self.deleted] = False
        return faiss.IDSelectorBitmap(np.packbits(live, bitorder="little"))

    def _parameters(self, settings: Settings, selector: Any | None) -> Any:
        import faiss

        inner, chosen = inner_index(self.index), {} if selector is None else {"sel": selector}
        if isinstance(inner, faiss.IndexIVF):
            return faiss.SearchParametersIVF(nprobe=_visited(inner, settings), **chosen)
        if isinstance(inner, faiss.IndexHNSW):
            parameters = faiss.SearchParametersHNSW(efSearch=settings.ef_search or 16, **chosen)
        else:
            parameters = faiss.SearchParameters(**chosen)
        return parameters if inner is self.index else faiss.SearchParametersPreTransform(index_params=parameters)


class Lists(NamedTuple):
    """The lists of an inverted file that queries visit: the (transformed) queries, and numbers and scores of the lists, (n, nprobe)."""

    vectors: NDArray[np.float32]
    numbers: NDArray[np.int64]
    scores: NDArray[np.float32]


def search_pieces(pieces: Sequence[Piece], vectors: NDArray[np.float32], depth: int, settings: Settings) -> Found:
    """The `depth` best of all pieces together, best first; -1 and -inf where fewer were found.

    All pieces of an inverted file have the same lists, so the lists to visit are looked for once.
    """
    lists = _lists(pieces[0].index, vectors, settings)
    found = [piece.search(vectors, depth, settings, lists) for piece in pieces]
    return found[0] if len(found) == 1 else best_of(found, depth)


def _search_lists(inverted: Any, lists: Lists, depth: int, parameters: Any) -> Found:
    import faiss

    # FAISS's own wrapper of this function does not take parameters, so the one beneath it is called.
    shape = (len(lists.vectors), depth)
    scores, numbers = np.empty(shape, np.float32), np.empty(shape, np.int64)
    asked = (faiss.swig_ptr(array) for array in (lists.numbers, lists.scores, scores, numbers))
    inverted.search_preassigned_c(len(scores), faiss.swig_ptr(lists.vectors), depth, *asked, False, parameters)
    return scores, numbers


def _lists(index: Any, vectors: NDArray[np.float32], settings: Settings) -> Lists | None:
    import faiss

    inverted = inverted_file(index)
    if inverted is None:
        return None
    asked = transformed(index, vectors)
    quantizer = faiss.downcast_index(inverted.quantizer)
    scores, numbers = quantizer.search(asked, _visited(inverted, settings))
    if isinstance(quantizer, faiss.ResidualCoarseQuantizer):
        scores = _residual_scores(quantizer, asked, numbers)
    return Lists(asked, numbers, scores)


def _residual_scores(quantizer: Any, vectors: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner products with the centroids, each a sum of one vector a level. FAISS gives Euclidean distances, to which the products with
    residuals must not be added: without this the scores of different lists cannot be compared."""
    import faiss

    books = faiss.vector_to_array(quantizer.rq.codebooks).reshape(-1, vectors.shape[1])
    products, scores, shift = vectors @ books.T, np.zeros(numbers.shape, np.float32), 0
    for level, bits in enumerate(faiss.vector_to_array(quantizer.rq.nbits)):
        codes = (numbers >> shift) & ((1 << int(bits)) - 1)
        scores += np.take_along_axis(products, codes + quantizer.rq.codebook_offsets.at(level), 1)
        shift += int(bits)
    return scores


def _visited(inverted: Any, settings: Settings) -> int:
    return min(settings.nprobe or 1, inverted.nlist)


def best_of(found: Sequence[Found], depth: int) -> Found:
    """The `depth` best of several results for the same queries."""
    scores, rows = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)


def _times_four(value: int | None, most: int) -> int | None:
    return None if value is None else max(value, min(4 * value, most))


# --- Exact search by brute force over blocks of vectors: what approximate search is measured against.


BLOCK = 16_384  # rows as float32 at a time


def nearest(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], depth: int, deleted: NDArray[np.int64] | None = None
) -> Found:
    """Scores, best first, and rows of the `depth` best vectors of each query, (n, depth); -1 and -inf where there are fewer.

    `blocks` are (m, d) float32 in row order; `deleted` row numbers are left out.
    """
    import faiss

    found: Found = (np.full((len(queries), depth), -np.inf, np.float32), np.full((len(queries), depth), -1, np.int64))
    first, gone = 0, np.empty(0, np.int64) if deleted is None else np.sort(deleted)
    for block in blocks:
        mine = gone[np.searchsorted(gone, first) : np.searchsorted(gone, first + len(block))] - first
        live = live_rows(len(block), mine)
        if len(live):
            vectors = block if len(live) == len(block) else block[live]
            scores, numbers = faiss.knn(queries, vectors, min(depth, len(live)), metric=faiss.METRIC_INNER_PRODUCT)
            found = best_of([found, (scores, live[numbers] + first)], depth)
        first += len(block)
    return found


# --- Opening of an index folder, with every check that FAISS does not make.


LAYOUT_VERSION = 2
Check = Literal["full", "sizes"]


@dataclass(frozen=True)
class Opened:
    """What lies in an index folder; `artifact` is None as long as it is not sealed."""

    space_id: str
    dimension: int
    rows: Rows
    pieces: Sequence[Piece]
    stored: StoredVectors | None
    flat: bool
    settings: Settings
    artifact: Artifact | None = None


def open_index(folder: Path, space_id: str, expected_digest: str | None, check: Check) -> Opened:
    """Open a sealed index folder; raises as `components.index.search.load_index` says."""
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


def open_files(folder: Path, about: Mapping[str, Scalar], parts: int, artifact: Artifact | None = None) -> Opened:
    """Open the files of an index of the present layout; `about` are its attributes."""
    rows, dimension, flat = read_rows(folder), int(about["dimension"] or 0), is_exact(str(about["index_key"]))
    space_id, digest = str(about["space_id"]), about["template_digest"]
    found = read_parts(folder, parts, space_id, None if digest is None else str(digest))
    stored = open_stored(folder, parts)
    _require_rows(folder, sum(part.rows for part in found), len(rows))
    _require_stored(folder, found, stored, about)
    pieces = [_exact_piece(stored, dimension, rows)] if flat and stored is not None else _approximate_pieces(folder, found, rows)
    _require_dimension(folder, pieces, dimension)
    names = ("nprobe", "ef_search", "refine_factor")
    settings = Settings(*(None if (value := about.get(name)) is None else int(value) for name in names))
    return Opened(space_id, dimension, rows, pieces, stored, flat, settings, artifact)


def flat_piece(blocks: Iterable[NDArray[np.float32]], dimension: int, rows: NDArray[np.int64] | None = None) -> Piece:
    """Exact search over blocks of vectors, float32 (m, d); `rows` are their row numbers when they are not counted from 0."""
    import faiss

    index = faiss.IndexFlatIP(dimension)
    for block in blocks:
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    return Piece(index, rows=rows)


def _exact_piece(stored: StoredVectors, dimension: int, rows: Rows) -> Piece:
    """Deleted rows are left out and not filtered, so that an index after deletions answers like one built without them."""
    if not len(rows.deleted):
        return flat_piece(stored.blocks(BLOCK), dimension)
    live = live_rows(len(rows), rows.deleted)
    return flat_piece((stored.unit_vectors(live[i : i + BLOCK]) for i in range(0, len(live), BLOCK)), dimension, live)


def _approximate_pieces(folder: Path, parts: Sequence[StoredPart], rows: Rows) -> list[Piece]:
    """The merged file, where there is one, holds the first parts, those without a file of their own."""
    pieces: list[Piece] = []
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


def _piece(index: Any, first: int, count: int, rows: Rows) -> Piece:
    mine = rows.deleted[(rows.deleted >= first) & (rows.deleted < first + count)]
    return Piece(index, first, deleted=mine - first)


def _open_first_layout(artifact: Artifact) -> Opened:
    """One file `index.faiss` for exact search and `doc_ids.parquet` without the order of the ids."""
    piece, rows = Piece(read_faiss(artifact.path / INDEX_FILE)), read_rows(artifact.path)
    dimension = int(artifact.attributes["dimension"] or 0)
    _require_rows(artifact.path, piece.index.ntotal, len(rows))
    _require_dimension(artifact.path, [piece], dimension)
    return Opened(artifact.space_id, dimension, rows, [piece], None, True, Settings(), artifact)


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


def _require_dimension(folder: Path, pieces: Sequence[Piece], dimension: int) -> None:
    for piece in pieces:
        if piece.index.d != dimension:
            raise ArtifactError(
                f"{folder}: the index holds vectors of {piece.index.d} dimensions, its manifest says {dimension}. Build the index again."
            )
