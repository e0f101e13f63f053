"""Index keys: which FAISS index a corpus gets, and whether a key fits the vectors, before anything is trained.

`auto` takes exact search for small corpora. Above that, an inverted file whose residuals are coded by product quantisation with 4 bits for
each 4 dimensions, read by FAISS's fast scan: the codes are an eighth of a byte a dimension, so a scan is bound by arithmetic and not by
memory, and what the codes lose is won back by scoring the best candidates again with the stored vectors. Without stored vectors
(`refine: none`) codes of a byte a dimension are taken, since short codes alone do not reach a recall of 0.95. From ten million documents on
the lists come from two levels of residual k-means (the coarse levels of ScalingNote, arXiv 2411.15766): their centroids are sums of two,
so tens of thousands of lists are trained from few vectors and found without comparing a query to each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.errors import ConfigError
from components.index.config import IndexConfig

RESIDUAL_FROM = 10_000_000  # documents
LISTS_PER_ROOT = 4  # lists for each square root of the number of documents, FAISS's guideline for the fewest comparisons
VECTORS_PER_LIST = 39  # FAISS calls a k-means on fewer vectors per centroid too small
CODED_DIMENSIONS = range(4, 9)  # dimensions that share one 4-bit code, finest first


def resolve_key(config: IndexConfig, documents: int, dimension: int) -> str:
    """The FAISS factory key for a corpus: the one asked for, or for `auto` the one that its size asks for.

    Raises ConfigError for a key that FAISS does not know or that does not fit the dimension.
    """
    key = config.index_key if config.index_key != "auto" else _auto_key(config, documents, dimension)
    if not is_exact(key):
        empty_index(key, dimension)
    return key


def usable_key(config: IndexConfig, documents: int, dimension: int) -> str:
    """`resolve_key`, after `require_trainable` with as many vectors as the configuration lets train."""
    key = resolve_key(config, documents, dimension)
    require_trainable(key, min(documents, config.train_vectors), dimension)
    return key


def is_exact(key: str) -> bool:
    """Whether a key names exact search (`Flat`), which has no template and no FAISS file."""
    return key == "Flat"


def require_trainable(key: str, vectors: int, dimension: int) -> None:
    """Raise ConfigError, with what would fit, when `vectors` are too few to train an index of this key."""
    if is_exact(key):
        return
    index = inner_index(empty_index(key, dimension))
    lists, codes = _trained_lists(index), _code_centroids(index)
    if lists > vectors:
        fits = _power_of_two_below(max(1, vectors // VECTORS_PER_LIST))
        raise ConfigError(
            f"index_key {key} has {lists:,} lists, but only {vectors:,} vectors are there to train them. Take at most {fits:,} lists "
            f"(IVF{fits}), index_key auto, or Flat, which needs no training; index.train_vectors bounds how many vectors are used."
        )
    if codes > vectors:
        raise ConfigError(
            f"index_key {key} trains codes of {codes:,} centroids, but only {vectors:,} vectors are there. Take index_key Flat, "
            "which needs no training, or codes of fewer bits (PQ..x4)."
        )


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
    _require_copies(key, index)
    if hasattr(inner_index(index), "do_polysemous_training"):
        # Minutes of simulated annealing for a search by Hamming distances that is never asked for.
        inner_index(index).do_polysemous_training = False
    for trained in _quantizers(inner_index(index)):
        trained.cp.min_points_per_centroid = 1  # FAISS's own warnings on stderr; `require_trainable` and the build say what is too few
    return index


def _quantizers(index: Any) -> Iterator[Any]:
    """What is trained by k-means in an index: its lists, and its codes of every level."""
    import faiss

    found = [index, *([faiss.downcast_index(index.quantizer)] if isinstance(index, faiss.IndexIVF) else [])]
    found += [codes for part in found for name in ("pq", "rq") if (codes := getattr(part, name, None)) is not None]
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


def _auto_key(config: IndexConfig, documents: int, dimension: int) -> str:
    if documents < config.exact_below:
        return "Flat"
    coded = next((d for d in CODED_DIMENSIONS if dimension % d == 0), None)
    # "r": the residual to the list's centroid is coded, which costs nothing with inner products and saves a good part of the error.
    codes = f"PQ{dimension // coded}x4fsr" if coded and config.refine != "none" else "SQ8"
    if documents >= RESIDUAL_FROM:
        bits = round(math.log2(LISTS_PER_ROOT * math.sqrt(documents)) / 2)
        return f"IVF{4**bits}(RCQ2x{bits}),{codes}"
    lists = 2 ** round(math.log2(LISTS_PER_ROOT * math.sqrt(max(1, documents))))
    trainable = _power_of_two_below(max(1, min(config.train_vectors, documents) // VECTORS_PER_LIST))
    return f"IVF{min(lists, trainable)},{codes}"


def _trained_lists(index: Any) -> int:
    """Centroids that the training of the lists has to find: of one level, where there are several."""
    import faiss

    if not isinstance(index, faiss.IndexIVF):
        return 0
    quantizer = faiss.downcast_index(index.quantizer)
    if isinstance(quantizer, faiss.ResidualCoarseQuantizer):
        return int(2 ** max(faiss.vector_to_array(quantizer.rq.nbits)))
    return int(index.nlist)


def _code_centroids(index: Any) -> int:
    """Centroids that the training of the codes has to find; 0 for codes without any."""
    quantizer = getattr(index, "pq", None)
    return 0 if quantizer is None else int(2**quantizer.nbits)


def _power_of_two_below(count: int) -> int:
    return int(2 ** math.floor(math.log2(count)))
