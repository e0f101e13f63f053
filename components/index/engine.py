"""The engine that searches vectors: what an index asks of one, and FAISS behind it, which no other module of this room imports.

`VectorIndex`, the tuning and the drift check know the five calls of `IndexEngine`. What is particular to FAISS stands here too, for the
modules that write its files: factory keys, templates, index files, and the lists and codes within them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from components.errors import ArtifactError, ConfigError
from components.index.rows import live_rows

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
BLOCK = 16_384  # rows as float32 at a time
OPQ_BITS = 8  # of the codes that FAISS fits a rotation to, whatever codes follow


@dataclass(frozen=True)
class Settings:
    """Search parameters; None where an index has none: lists visited, width in a graph, candidates scored again for each result."""

    nprobe: int | None = None
    ef_search: int | None = None
    refine_factor: int | None = None

    def wider(self, most: int) -> Settings:
        """Four times the lists and the width, up to `most` rows; the same when there is nothing to widen."""
        return replace(self, nprobe=_times_four(self.nprobe, most), ef_search=_times_four(self.ef_search, most))


class IndexEngine(Protocol):
    """Vectors that can be searched, known by row numbers; those of deleted rows are never found."""

    def search(self, vectors: NDArray[np.float32], depth: int, settings: Settings) -> Found:
        """Scores, best first, and rows, (n, depth), of float32 (n, d); -1 and -inf where fewer were found."""
        ...

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The vectors that an exact search compares with, float32 (*rows.shape, d); -1, which stands for nothing found, gives any."""
        ...

    def sizes(self) -> NDArray[np.int64] | None:
        """Vectors in each list that a search may visit, int64 (lists,); None for an engine without lists."""
        ...

    def widest(self) -> Settings:
        """The largest parameters that make a difference; None for those that it does not have."""
        ...

    def scanned(self, settings: Settings, wanted: int) -> float:
        """About how many bytes a search for `wanted` rows reads, as far as the parameters change it."""
        ...


@dataclass(frozen=True)
class FaissEngine:
    """FAISS indexes of one template side by side, as one (see `IndexEngine`)."""

    pieces: Sequence[OpenPart]

    def search(self, vectors: NDArray[np.float32], depth: int, settings: Settings) -> Found:
        """All pieces of an inverted file have the same lists, so the lists to visit are looked for once.

        A graph that is asked wider than it has rows is not walked, but all its rows are compared: equal ones may be linked to each other
        alone. The tuning asks for no such width, which more documents would make an ordinary one.
        """
        pieces, first = self.pieces, self.pieces[0].index
        if _rows_of_graph(first) is not None and (settings.ef_search or 0) > max(16, self._rows):
            pieces, vectors = [replace(piece, index=_rows_of_graph(piece.index)) for piece in pieces], transformed(first, vectors)
        lists = _lists_to_visit(pieces[0].index, vectors, settings)
        found = [piece.search(vectors, depth, settings, lists) for piece in pieces]
        return found[0] if len(found) == 1 else best_of(found, depth)

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """An exact index is one piece, which holds the vectors as they are."""
        (piece,) = self.pieces
        kept = memory(piece.index.get_xb(), piece.index.ntotal * piece.index.d).reshape(-1, piece.index.d)
        numbers = np.maximum(rows - piece.first, 0) if piece.rows is None else np.searchsorted(piece.rows, rows)
        found: NDArray[np.float32] = kept[numbers]
        return found

    def sizes(self) -> NDArray[np.int64] | None:
        """Of all pieces together."""
        if inverted_file(self.pieces[0].index) is None:
            return None
        return np.asarray(np.sum([list_sizes(piece.index) for piece in self.pieces], axis=0), np.int64)

    def widest(self) -> Settings:
        """All lists of an inverted file; in a graph as many rows as there are, and 16 at least."""
        if (lists := inverted_file(self.pieces[0].index)) is not None:
            return Settings(nprobe=int(lists.nlist))
        return Settings() if graph(self.pieces[0].index) is None else Settings(ef_search=max(16, self._rows))

    def scanned(self, settings: Settings, wanted: int) -> float:
        """Codes of the lists, or vectors of the graph; plain codes are all read, whatever the parameters."""
        first = self.pieces[0].index
        if (lists := inverted_file(first)) is not None:
            return float(self._rows * (settings.nprobe or 1) / lists.nlist * lists.code_size)
        if (small_world := graph(first)) is not None:
            visited = max(settings.ef_search or 0, wanted * (settings.refine_factor or 1)) * small_world.hnsw.nb_neighbors(0)
            return float(visited * first.d * 4)
        return 0.0

    @property
    def _rows(self) -> int:
        return sum(int(piece.index.ntotal) for piece in self.pieces)


@dataclass(frozen=True)
class OpenPart:
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


def _search_lists(inverted: Any, lists: Lists, depth: int, parameters: Any) -> Found:
    import faiss

    # FAISS's own wrapper of this function does not take parameters, so the one beneath it is called.
    shape = (len(lists.vectors), depth)
    scores, numbers = np.empty(shape, np.float32), np.empty(shape, np.int64)
    asked = (faiss.swig_ptr(array) for array in (lists.numbers, lists.scores, scores, numbers))
    inverted.search_preassigned_c(len(scores), faiss.swig_ptr(lists.vectors), depth, *asked, False, parameters)
    return scores, numbers


def _lists_to_visit(index: Any, vectors: NDArray[np.float32], settings: Settings) -> Lists | None:
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


def flat_engine(blocks: Iterable[NDArray[np.float32]], dimension: int, rows: NDArray[np.int64] | None = None) -> FaissEngine:
    """Exact search over blocks of vectors, float32 (m, d); `rows` are their row numbers when they are not counted from 0."""
    import faiss

    index = faiss.IndexFlatIP(dimension)
    for block in blocks:
        index.add(np.ascontiguousarray(block, dtype=np.float32))
    return FaissEngine([OpenPart(index, rows=rows)])


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


# --- What a factory key makes.


def empty_index(key: str, dimension: int) -> Any:
    """An untrained FAISS index with inner product as the score; raises ConfigError for a key that cannot be used."""
    import faiss

    try:
        index = faiss.index_factory(dimension, key, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"index_key {key} cannot be made for vectors of {dimension} dimensions: FAISS does not know the key, or its codes do not "
            f"divide the dimension. Examples: auto, Flat, IVF1024,Flat, HNSW32, IVF4096,PQ{max(1, dimension // 4)}x4fs. "
            f"({str(error).splitlines()[-1][-160:]})"
        ) from None
    kinds = (faiss.IndexIVF, faiss.IndexHNSW, faiss.IndexPQ, faiss.IndexScalarQuantizer, faiss.IndexFlat)
    if not isinstance(inner_index(index), kinds) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise ConfigError(
            f"index_key {key} is a {type(index).__name__}, which cannot filter deleted documents or score by inner product. "
            "Use Flat, IVF..., HNSW..., PQ... or SQ...; index.refine, not the key, says with what candidates are scored again."
        )
    if (fault := _fault_of(index)) is not None:
        raise ConfigError(f"index_key {key} cannot be used: {fault}. Examples: auto, Flat, IVF1024,Flat, HNSW32, OPQ16,IVF4096,PQ16x4fs.")
    _require_copies(key, index)
    if hasattr(inner_index(index), "do_polysemous_training"):
        # Minutes of simulated annealing for a search by Hamming distances that is never asked for.
        inner_index(index).do_polysemous_training = False
    for trained in _quantizers(inner_index(index)):
        trained.cp.min_points_per_centroid = 1  # FAISS's own warnings on stderr; `require_trainable` and the build say what is too few
    return index


def _fault_of(index: Any) -> str | None:
    """What FAISS makes of a key and then fails on when it trains or adds, or dies of with the whole process; None where nothing is."""
    import faiss

    for number in range(index.chain.size() if isinstance(index, faiss.IndexPreTransform) else 0):
        change = faiss.downcast_VectorTransform(index.chain.at(number))
        if change.d_out < 1 or (isinstance(change, faiss.PCAMatrix) and change.d_out > change.d_in):
            return f"its transformation makes {change.d_out:,} dimensions of {change.d_in:,}"
        if isinstance(change, faiss.OPQMatrix) and (change.M < 1 or change.d_out % change.M):
            return f"the {change.M} parts of its OPQ do not divide {change.d_out:,} dimensions"
    inner = inner_index(index)
    parts = [inner]
    if isinstance(inner, faiss.IndexIVF):
        parts.append(faiss.downcast_index(inner.quantizer))
        rooms = 1 << int(faiss.vector_to_array(parts[1].rq.nbits).sum()) if isinstance(parts[1], faiss.ResidualCoarseQuantizer) else None
        if inner.nlist < 1 or (rooms is not None and rooms != inner.nlist):
            return f"it has {inner.nlist:,} lists" + (f", and its levels make {rooms:,}" if rooms else "")
    neighbours = [faiss.vector_to_array(part.hnsw.cum_nneighbor_per_level) for part in parts if isinstance(part, faiss.IndexHNSW)]
    if any(len(levels) < 2 or levels[1] < 4 for levels in neighbours):  # the lowest level has twice as many
        return "the nodes of its graph have fewer than 2 neighbours (HNSW32 has 32)"
    if (codes := getattr(inner, "pq", None)) is not None and codes.nbits < 1:
        return "its codes have no bits"
    return None


def train(index: Any, vectors: NDArray[np.float32]) -> None:
    """Train an index on vectors, float32 (n, d); raises RuntimeError in FAISS's words where they are too few or too much alike."""
    import faiss

    rotations = []
    if isinstance(index, faiss.IndexPreTransform):
        changes = (faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size()))
        rotations = [change for change in changes if isinstance(change, faiss.OPQMatrix)]
    codes = [faiss.ProductQuantizer(rotation.d_out, rotation.M, OPQ_BITS) for rotation in rotations]
    try:
        for rotation, own in zip(rotations, codes, strict=True):  # the same as FAISS's own, without its hundreds of warnings
            own.cp.min_points_per_centroid = 1
            rotation.pq = own
        index.train(vectors)
    finally:
        for rotation in rotations:
            rotation.pq = None


def _quantizers(index: Any) -> Iterator[Any]:
    """What is trained by k-means in an index: its lists, and its codes of every level."""
    import faiss

    found = [index, *([faiss.downcast_index(index.quantizer)] if isinstance(index, faiss.IndexIVF) else [])]
    found += [codes for part in found for name in ("pq", "rq") if (codes := getattr(part, name, None)) is not None]
    for product in [part.prq for part in found if hasattr(part, "prq")]:
        found += [faiss.downcast_AdditiveQuantizer(product.subquantizer(number)) for number in range(product.nsplits)]
    return (part for part in found if hasattr(part, "cp"))


def _require_copies(key: str, index: Any) -> None:
    """Raise ConfigError for kinds of which FAISS makes no true copies: every part starts as a copy of the template."""
    import faiss

    wrong = {
        faiss.IndexIVFFlatDedup: "returns deleted documents whose text stands in the index twice",
        faiss.IndexIVFFlatPanorama: "loses its layout when FAISS copies it (faiss#5606)",
    }
    reason = wrong.get(type(inner_index(index)))
    try:
        faiss.clone_index(index)
    except RuntimeError:
        reason = "changes the vectors in a way that FAISS cannot copy"
    if reason is not None:
        raise ConfigError(
            f"index_key {key} cannot be used: it {reason}. The vectors have unit length already; take IVF...,Flat, or OPQ and PCA for a "
            "transformation."
        )


def inner_index(index: Any) -> Any:
    """The index behind a transformation of the vectors (OPQ, PCA), or the index itself."""
    import faiss

    if not isinstance(index, faiss.IndexPreTransform):
        return index
    inner = faiss.downcast_index(index.index)
    faiss.add_to_referenced_objects(inner, index)  # else Python may free the whole while its inside is used
    return inner


def transformed(index: Any, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors, float32 (n, d), after the transformations (OPQ, PCA) of an index; as they are for one without."""
    import faiss

    if isinstance(index, faiss.IndexPreTransform):
        for number in range(index.chain.size()):
            vectors = faiss.downcast_VectorTransform(index.chain.at(number)).apply(vectors)
    return np.ascontiguousarray(vectors)


def can_filter(index: Any) -> bool:
    """Whether a search can leave out deleted rows: FAISS has no filter for product codes without lists, nor for plain additive codes."""
    import faiss

    return not isinstance(inner_index(index), faiss.IndexPQ | faiss.IndexIVFAdditiveQuantizer)


def inverted_file(index: Any) -> Any | None:
    """The inverted file in an index; None for other kinds."""
    import faiss

    inner = inner_index(index)
    return inner if isinstance(inner, faiss.IndexIVF) else None


def graph(index: Any) -> Any | None:
    """The graph (HNSW) in an index; None for other kinds."""
    import faiss

    inner = inner_index(index)
    return inner if isinstance(inner, faiss.IndexHNSW) else None


def _rows_of_graph(index: Any) -> Any | None:
    """What the graph of an index links, in the order of its rows; None for other kinds, and where it cannot be searched by itself."""
    import faiss

    if (small_world := graph(index)) is None:
        return None
    rows = faiss.downcast_index(small_world.storage)
    return rows if isinstance(rows, faiss.IndexFlat | faiss.IndexScalarQuantizer) else None


def trained_lists(index: Any) -> int:
    """Centroids that the training of the lists has to find: of one level, where there are several."""
    import faiss

    if not isinstance(index, faiss.IndexIVF):
        return 0
    quantizer = faiss.downcast_index(index.quantizer)
    if isinstance(quantizer, faiss.ResidualCoarseQuantizer):
        return int(2 ** max(faiss.vector_to_array(quantizer.rq.nbits)))
    return int(index.nlist)


def code_centroids(index: Any) -> int:
    """Vectors that the training of the codes, and of what is done to vectors before, takes at least; 0 for codes without any."""
    import faiss

    inner, wanted = inner_index(index), [0]
    if (quantizer := getattr(inner, "pq", None)) is not None:
        wanted.append(2**quantizer.nbits)
    for additive in (getattr(inner, name) for name in ("rq", "prq") if hasattr(inner, name)):
        wanted.append(2 ** int(max(faiss.vector_to_array(additive.nbits))))
    for number in range(index.chain.size() if isinstance(index, faiss.IndexPreTransform) else 0):
        change = faiss.downcast_VectorTransform(index.chain.at(number))
        if isinstance(change, faiss.OPQMatrix):
            wanted.append(2**OPQ_BITS)
        elif isinstance(change, faiss.PCAMatrix):
            wanted.append(change.d_out)
    return int(max(wanted))


# --- Index files, and what lies in them.


def engine_version() -> str:
    """The version of FAISS, which is loaded by this."""
    import faiss

    return str(faiss.__version__)


def threads() -> int:
    """How many threads FAISS takes."""
    import faiss

    return int(faiss.omp_get_max_threads())


def copy_of(index: Any) -> Any:
    """A copy of an index, to which rows can be added."""
    import faiss

    return faiss.clone_index(index)


def list_sizes(index: Any) -> NDArray[np.int64]:
    """Vectors in each list of an inverted file, int64 (nlist,)."""
    lists = inverted_file(index).invlists  # type: ignore[union-attr]  # asked for inverted files only
    return np.array([lists.list_size(n) for n in range(lists.nlist)], np.int64)


def centroid_distances(index: Any, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Euclidean distance of each vector, float32 (n, d), to the centroid of the list it falls into."""
    quantizer = inverted_file(index).quantizer  # type: ignore[union-attr]  # asked for inverted files only
    projected = transformed(index, vectors)
    _, lists = quantizer.search(projected, 1)
    return np.linalg.norm(projected - quantizer.reconstruct_batch(lists[:, 0]), axis=1).astype(np.float64)


def read_faiss(path: Path, flags: int = 0) -> Any:
    """Read an index file; raises ArtifactError when this FAISS cannot."""
    import faiss

    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} cannot be read by faiss {faiss.__version__}; it may have been written by a newer one. "
            f"Use that version or build the index again. ({str(error).splitlines()[0][:200]})"
        ) from None


def write_faiss(index: Any, path: Path) -> None:
    """Write an index file: beside, then renamed. Raises OSError when the disk is full."""
    import faiss

    beside, failed = path.with_name(f".{path.name}.tmp"), []
    try:
        # FAISS's own files lose an error at their closing, and would leave a file without its end.
        with beside.open("wb") as handle:

            def write(content: bytes) -> None:
                try:
                    handle.write(content)
                except OSError as error:
                    failed.append(error)
                    raise

            faiss.write_index(index, faiss.PyCallbackIOWriter(write))
        beside.replace(path)
    except (RuntimeError, SystemError):
        if failed:
            raise failed[0] from None
        raise
    finally:
        beside.unlink(missing_ok=True)


def open_mapped(path: Path) -> Any:
    """A FAISS index, memory-mapped: the lists of an inverted file, or the codes of other kinds. Packed codes of a fast scan are read."""
    import faiss

    index = read_faiss(path, faiss.IO_FLAG_MMAP_IFC)
    if inverted_file(index) is None:
        return index
    index = read_faiss(path, faiss.IO_FLAG_MMAP)
    lists = faiss.downcast_InvertedLists(inverted_file(index).invlists)  # type: ignore[union-attr]  # checked on the line above
    if isinstance(lists, faiss.OnDiskInvertedLists):
        lists.prefetch_nthread = 0  # FAISS would start 32 threads for every search to read lists that the system has in memory
    return index


def memory(pointer: Any, count: int) -> NDArray[Any]:
    """Memory of FAISS as an array of the pointer's type, uint8 or int64, which holds as long as nothing is added."""
    view: NDArray[Any] = sys.modules["faiss"].rev_swig_ptr(pointer, count)  # called for every list, so nothing is imported here
    return view


def inverted_lists(index: Any) -> Any | None:
    """The inverted lists of an index; None when it has none."""
    import faiss

    inverted = inverted_file(index)
    return None if inverted is None else faiss.downcast_InvertedLists(inverted.invlists)


def block_lists(index: Any) -> Any | None:
    """The inverted lists of an index when their codes are packed in blocks (fast scan)."""
    import faiss

    lists = inverted_lists(index)
    return lists if isinstance(lists, faiss.BlockInvertedLists) else None


def may_merge_from(index: Any) -> bool:
    """Whether FAISS's `merge_from` keeps the codes of this kind: one row after another, in lists or without. A new kind is tried first."""
    import faiss

    inner, lists = inner_index(index), inverted_lists(index)
    if lists is None:
        return type(inner) in (faiss.IndexPQ, faiss.IndexScalarQuantizer, faiss.IndexFlat, faiss.IndexFlatIP)
    return type(lists) is faiss.ArrayInvertedLists and type(inner) not in (faiss.IndexIVFFlatDedup, faiss.IndexIVFFlatPanorama)
