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

from components.errors import ConfigError
from components.index.config import IndexConfig
from components.index.engine import code_centroids, empty_index, inner_index, trained_lists

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
    index = empty_index(key, dimension)
    lists, codes = trained_lists(inner_index(index)), code_centroids(index)
    if lists > vectors:
        fits = _power_of_two_below(max(1, vectors // VECTORS_PER_LIST))
        raise ConfigError(
            f"index_key {key} has {lists:,} lists, but only {vectors:,} vectors are there to train them. Take at most {fits:,} lists "
            f"(IVF{fits}), index_key auto, or Flat, which needs no training; index.train_vectors bounds how many vectors are used."
        )
    if codes > vectors:
        raise ConfigError(
            f"index_key {key} needs at least {codes:,} vectors to train its codes or its OPQ or PCA, but only {vectors:,} are there. Take "
            "index_key Flat, which needs no training, codes of fewer bits (PQ..x4), or a key without OPQ and PCA."
        )


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


def _power_of_two_below(count: int) -> int:
    return int(2 ** math.floor(math.log2(count)))
