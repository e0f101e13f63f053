"""FAISS indexes side by side: each holds some rows, and a search asks all of them and merges what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.index.index_keys import can_filter, inner_index, inverted_file, transformed

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
