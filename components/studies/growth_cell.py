"""Measurement of one corpus size: build an index and search it, each in a process of its own so that memory can be told apart."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import IndexArtifact, VectorShards, open_artifact
from components.errors import ScalingNoteError
from components.index.config import IndexConfig
from components.studies.growth_corpus import write_growth_corpus
from components.studies.growth_law import comparisons

QUERIES_FILE, TUNING_FILE, UNITS_FILE = "queries.npy", "tuning.npy", "units.npy"
SCRATCH = "scratch"  # corpus and index of a cell, gigabytes that nobody needs once they are measured
WARM_UP = 5
Numbers = dict[str, Any]


class MeasurementFailed(ScalingNoteError):
    """A measuring process died, most often for lack of memory."""


@dataclass(frozen=True)
class GrowthRule:
    """How an index is measured: `queries` holds queries.npy, the units.npy of these and tuning.npy; `depth` documents are asked for.

    `batch` are asked at once. Without units.npy each query is a unit.
    """

    queries: Path
    index: IndexConfig
    depth: int
    batch: int
    seed: int


def measure_size(real: VectorShards, documents: int, rule: GrowthRule, folder: Path) -> Numbers:
    """All numbers of one corpus size. What it builds under `folder` is removed again.

    Raises MeasurementFailed when a measuring process is killed, and what the building or loading of an index raises.
    """
    scratch = folder / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    corpus, index = scratch / "vectors", scratch / "index"
    corpus.mkdir(parents=True)
    index.mkdir()
    try:
        vectors = write_growth_corpus(real, documents, rule.seed, corpus)
        built = _in_own_process(build_measured, corpus, index, rule)
        searched = _in_own_process(search_measured, index, rule)
        size = {"documents": documents, "synthetic": vectors.counts["synthetic"]}
        return {**size, **_described(open_artifact(index)), **built, **searched}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def build_measured(corpus: Path, folder: Path, rule: GrowthRule) -> Numbers:
    """Build the index in `folder`; seconds, and the most memory that the building added to what the libraries hold."""
    import faiss  # noqa: F401  belongs to every process that searches, so it is loaded before memory is counted

    from components.index.build import build_index
    from components.studies.memory import peak, resident

    vectors = VectorShards(**open_artifact(corpus).model_dump())
    tuning = np.load(rule.queries / TUNING_FILE)
    before, started = resident(), time.perf_counter()
    artifact = build_index(vectors, rule.index, folder, queries=tuning if len(tuning) else None)
    seconds = time.perf_counter() - started
    files = sum(path.stat().st_size for path in artifact.path.iterdir())
    return {"build_seconds": seconds, "build_peak_bytes": max(0, peak() - before), "file_bytes": files}


def search_measured(folder: Path, rule: GrowthRule) -> Numbers:
    """Open the index in `folder` as serving does and search it: seconds, milliseconds, queries per second, memory, recall.

    The ends of recall's interval over the units of the queries are None where all are one unit.
    """
    import faiss  # noqa: F401

    from components.evaluation.significance import mean_interval
    from components.index.search import load_index
    from components.index.tuning import recall_against_exact
    from components.studies.memory import anonymous, resident

    queries = np.load(rule.queries / QUERIES_FILE)
    before, fixed, started = resident(), anonymous(), time.perf_counter()
    index = load_index(folder, open_artifact(folder).space_id, check="sizes")
    index.search(queries[:1], rule.depth)
    opened = time.perf_counter() - started
    times = _times(lambda some: index.search(some, rule.depth), queries, rule.batch)
    memory = {"resident_bytes": max(0, resident() - before), "anonymous_bytes": max(0, anonymous() - fixed)}
    found, true = (search(queries, rule.depth)[1] for search in (index.search, index.exact))
    units = np.load(rule.queries / UNITS_FILE) if (rule.queries / UNITS_FILE).is_file() else None
    recall = mean_interval(recall_against_exact(found, true), seed=rule.seed, units=units).share
    ends = dict(zip(("recall_low", "recall_high"), recall.ends if recall.known else (None, None), strict=True))
    return {"open_seconds": opened, **times, **memory, "recall": recall.difference, **ends, "queries": len(queries)}


def _times(search: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32], batch: int) -> Numbers:
    """p50 and p95 in milliseconds of one query at a time, and the milliseconds of a query in batches."""
    for query in queries[:WARM_UP]:
        search(query[None])
    single = [_seconds(search, query[None]) for query in queries]
    starts = range(0, len(queries), batch)
    together = sum(_seconds(search, queries[start : start + batch]) for start in starts)
    p50, p95 = np.percentile(np.array(single) * 1000, [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "batch_ms": together / len(queries) * 1000}


def _seconds(search: Callable[[NDArray[np.float32]], object], queries: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    search(queries)
    return time.perf_counter() - started


def _described(artifact: Any) -> Numbers:
    """What the index is, and the vectors that one query is compared with."""
    known = IndexArtifact(**artifact.model_dump()).attributes
    about = {name: known.get(name) for name in ("index_key", "nprobe", "ef_search", "refine_factor", "tuned_documents", "dimension")}
    documents = artifact.counts["documents"]
    about["comparisons"] = comparisons(str(known["index_key"]), documents, known.get("nprobe"), known.get("ef_search"))  # type: ignore[arg-type]
    return about


def _in_own_process(function: Callable[..., Numbers], *arguments: Any) -> Numbers:
    # Spawned, not forked: a fork would begin with this process's memory, and with its threads' locks.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise MeasurementFailed(
                f"The process that had to {function.__name__.split('_')[0]} the index was killed, most often because memory ran out. "
                "Give smaller study.growth_sizes, or more memory; the sizes that were measured are kept."
            ) from None
