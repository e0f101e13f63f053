"""The systems of the index's frontier: each builds an index from the same blocks, and opens it with several settings of its search."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from index_world import DEPTH, SHARDS, SPACE_ID, TUNING, Floats, corpus_blocks
from numpy.typing import NDArray

Search = Callable[[Floats], Any]
# Of our tuned values: nprobe alone, then refine_factor alone.
PROBES = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)
REFINES = (0.5, 0.625, 0.75, 2.0)


class Point(NamedTuple):
    """One setting: its name, a search of queries float32 (n, d), and what makes row numbers (n, DEPTH) of that search's result."""

    setting: str
    search: Search
    rows: Callable[[Any], NDArray[np.int64]]


def build_ours(options: Namespace, folder: Path) -> str:
    """Build with the automatic key; returns the key and the tuned values."""
    from components.artifacts import VectorShards, open_artifact
    from components.index.build import build_index
    from components.index.config import IndexConfig

    vectors = VectorShards(**open_artifact(options.folder / SHARDS).model_dump())
    config = IndexConfig(index_key=options.key, exact_below=options.exact_below)
    known = build_index(vectors, config, folder, queries=np.load(options.folder / TUNING)).attributes
    return f"{known['index_key']}, nprobe {known['nprobe']}, refine_factor {known['refine_factor']}, ann_recall {known['ann_recall']}"


def open_ours(options: Namespace, folder: Path) -> Iterator[Point]:
    """The tuned index, then others around it."""
    from components.index.search import load_index

    index = load_index(folder, SPACE_ID, check="sizes")
    tuned = index.settings
    yield _point("tuned", index)
    around = [("nprobe", factor) for factor in PROBES if factor != 1] + [("refine_factor", factor) for factor in REFINES]
    for field, factor in around:
        value = getattr(tuned, field)
        if value is not None:
            changed = max(1, round(value * factor))
            yield _point(f"{field} {changed}", replace(index, settings=replace(tuned, **{field: changed})))


def _point(setting: str, index: Any) -> Point:
    return Point(setting, lambda queries: index.search(queries, DEPTH)[1], _rows_of_ids)


def _rows_of_ids(found: list[list[str]]) -> NDArray[np.int64]:
    return np.array([[int(doc_id.rpartition("-")[2]) for doc_id in best] for best in found])


def build_hnswlib(options: Namespace, folder: Path) -> str:
    """A graph over float32 vectors."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=_dimension(options))
    index.init_index(max_elements=_documents(options), M=options.links, ef_construction=options.ef_construction, random_seed=options.seed)
    index.set_num_threads(1)
    first = 0
    for block in corpus_blocks(options.folder):
        index.add_items(block, np.arange(first, first + len(block)), num_threads=1)
        first += len(block)
    index.save_index(str(folder / "index.hnswlib"))
    return f"M {options.links}, ef_construction {options.ef_construction}"


def open_hnswlib(options: Namespace, folder: Path) -> Iterator[Point]:
    """The graph with each ef in turn."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=_dimension(options))
    index.load_index(str(folder / "index.hnswlib"))
    index.set_num_threads(1)
    for ef in options.ef:
        index.set_ef(ef)
        yield Point(f"ef {ef}", lambda queries: index.knn_query(queries, DEPTH, num_threads=1)[0], lambda labels: labels.astype(np.int64))


def build_usearch(options: Namespace, folder: Path, dtype: str = "f32") -> str:
    """A graph over vectors of `dtype`."""
    from usearch.index import Index

    index = Index(ndim=_dimension(options), metric="ip", dtype=dtype, connectivity=options.links, expansion_add=options.ef_construction)
    first = 0
    for block in corpus_blocks(options.folder):
        index.add(np.arange(first, first + len(block)), block, threads=1)
        first += len(block)
    index.save(str(folder / "index.usearch"))
    return f"connectivity {options.links}, expansion_add {options.ef_construction}, {dtype}"


def open_usearch(options: Namespace, folder: Path) -> Iterator[Point]:
    """The graph with each expansion in turn, read into memory."""
    from usearch.index import Index

    index = Index.restore(str(folder / "index.usearch"), view=False)
    for ef in options.ef:
        index.expansion_search = ef
        yield Point(f"expansion {ef}", lambda queries: index.search(queries, DEPTH, threads=1).keys, _two_axes)


def _two_axes(keys: Any) -> NDArray[np.int64]:
    return np.asarray(keys, np.int64).reshape(-1, DEPTH)


def _dimension(options: Namespace) -> int:
    return int(np.load(options.folder / TUNING, mmap_mode="r").shape[1])


def _documents(options: Namespace) -> int:
    from components.artifacts import open_artifact

    return open_artifact(options.folder / SHARDS).counts["documents"]


BUILD: dict[str, Callable[[Namespace, Path], str]] = {
    "scalingnote": build_ours,
    "hnswlib": build_hnswlib,
    "usearch": build_usearch,
    "usearch-f16": lambda options, folder: build_usearch(options, folder, "f16"),
}
OPEN: dict[str, Callable[[Namespace, Path], Iterator[Point]]] = {
    "scalingnote": open_ours,
    "hnswlib": open_hnswlib,
    "usearch": open_usearch,
    "usearch-f16": open_usearch,
}
LIBRARY = {"scalingnote": "faiss", "hnswlib": "hnswlib", "usearch": "usearch", "usearch-f16": "usearch"}
