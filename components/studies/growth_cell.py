"""Measurement of one corpus size: real vectors, beyond them synthetic ones, indexed and searched in processes of their own.

    x = unit(basis * (centre of a cluster + spread of that cluster * normal) + noise * normal)

The basis spans far fewer dimensions than the vector has and the spreads differ by direction and cluster, as with texts: a query finds
many near neighbours in its own cluster and the rest of the corpus at a distance. Isotropic vectors would make every index look bad, a few
round clusters would make it look perfect. Vectors come in blocks of a fixed size, each from a seed of its own, so that a corpus of n
vectors is the beginning of every larger one and never has to be in memory.
"""

from __future__ import annotations

import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, IndexArtifact, VectorShards, open_artifact, seal
from components.data.dataset import load_dataset
from components.distillation.query_sources import dev_queries
from components.errors import ScalingNoteError
from components.evaluation.summarize import judged_split
from components.evaluation.units import query_units
from components.index.config import IndexConfig
from components.index.shards import DocumentVectors, ShardKeys, read_vectors, write_shard
from components.index.workers import kill_processes, prepare_worker
from components.studies.growth_law import comparisons
from components.towers.contract import unit
from components.towers.encoder import load_tower

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Memory that is in use now, mapped files included."""
    return _field("VmRSS")


def anonymous() -> int:
    """The part of it that belongs to no file: pages of a mapped file can be dropped when memory is short, these cannot."""
    return _field("RssAnon")


def peak() -> int:
    """The most that was in use. Not getrusage's, where the kernel counts what the parent held when it started this process."""
    return _field("VmHWM")


def _field(name: str) -> int:
    try:
        return int(re.findall(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):  # not a Linux machine: the peak is all there is
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


# --- Synthetic document vectors, where a measurement needs more than there are: a mixture of clusters on few dimensions, and noise.


BLOCK = 16_384
RANK, CLUSTERS = 96, 4096
# Shares of the variance: of the centres, of the spread within a cluster, of the noise over all dimensions.
CENTRES, WITHIN, NOISE = 0.50, 0.42, 0.08
DECAY = 0.7  # the spread falls with the number of the direction to the power of this
QUERY_NOISE = 0.75  # length of what separates a query from a document, over the document's
MOST_CENTRES = 4096

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SyntheticSpace:
    """Where synthetic vectors are drawn from: basis (rank, d), centres and spreads (clusters, rank), weights (clusters,), noise."""

    basis: Floats
    centres: Floats
    spreads: Floats
    weights: NDArray[np.float64]
    noise: float
    seed: int

    def block(self, number: int) -> Floats:
        """The vectors number * BLOCK to (number + 1) * BLOCK - 1, float32 (BLOCK, d) of unit length."""
        rng = np.random.default_rng([self.seed, 1, number])
        cluster = rng.choice(len(self.weights), BLOCK, p=self.weights)
        inner = self.centres[cluster] + self.spreads[cluster] * rng.standard_normal((BLOCK, len(self.basis)), np.float32)
        return unit(inner @ self.basis + np.float32(self.noise) * rng.standard_normal((BLOCK, self.basis.shape[1]), np.float32))

    def blocks(self, rows: int) -> Iterator[Floats]:
        """The first `rows` vectors, block by block; the last block is cut."""
        for number in range(-(-rows // BLOCK)):
            yield self.block(number)[: rows - number * BLOCK]

    def queries(self, documents: Floats, count: int) -> Floats:
        """float32 (count, d): documents drawn from `documents` (n, d), moved in the space by QUERY_NOISE of their length."""
        rng = np.random.default_rng([self.seed, 2])
        near = documents[rng.integers(len(documents), size=count)]
        step = rng.standard_normal((count, len(self.basis)), np.float32) @ self.basis
        step += np.float32(self.noise) * rng.standard_normal(near.shape, np.float32)
        return unit(near + np.float32(QUERY_NOISE) * unit(step))


def random_space(dimension: int, seed: int = 13) -> SyntheticSpace:
    """A space of `dimension` dimensions with CLUSTERS clusters of very different sizes on RANK of them (fewer in a small space)."""
    rng = np.random.default_rng([seed, 0])
    rank = min(RANK, dimension)
    basis = np.linalg.qr(rng.standard_normal((dimension, rank)))[0].T
    spectrum = np.arange(1, rank + 1) ** -DECAY
    spectrum /= np.sqrt((spectrum**2).sum())
    centres = rng.standard_normal((CLUSTERS, rank)) * spectrum * np.sqrt(CENTRES)
    # Each cluster has its own widest directions, and is wider or narrower as a whole.
    within = np.array([rng.permutation(spectrum) for _ in range(CLUSTERS)]) * rng.lognormal(0, 0.3, (CLUSTERS, 1)) * np.sqrt(WITHIN)
    weights = rng.lognormal(0, 1, CLUSTERS)
    noise = float(np.sqrt(NOISE / dimension))
    return SyntheticSpace(_single(basis), _single(centres), _single(within), weights / weights.sum(), noise, seed)


def space_like(vectors: Floats, seed: int = 13) -> SyntheticSpace:
    """A space whose vectors resemble the real ones, float32 (n, d): some of them are its centres, the distances between them its spread.

    The basis holds the main directions of the real vectors, the noise what lies off them.
    """
    rng = np.random.default_rng([seed, 0])
    rows = vectors[rng.permutation(len(vectors))[: 2 * MOST_CENTRES]]
    rank = max(1, min(RANK, vectors.shape[1], len(rows) - 1))
    basis = np.linalg.svd(rows, full_matrices=False)[2][:rank]
    centres = rows[: max(1, min(MOST_CENTRES, len(rows) // 2))] @ basis.T
    spread = _distance_to_centres(rows @ basis.T, centres)
    off = rows - (rows @ basis.T) @ basis
    weights = np.full(len(centres), 1 / len(centres))
    return SyntheticSpace(_single(basis), _single(centres), _single(np.tile(spread, (len(centres), 1))), weights, float(off.std()), seed)


def _distance_to_centres(rows: Floats, centres: Floats) -> NDArray[np.float64]:
    """By direction, the root mean square of what separates a row from the nearest centre that is not itself."""
    similarity = unit(rows) @ unit(centres).T
    similarity[np.arange(len(centres)), np.arange(len(centres))] = -np.inf if len(centres) > 1 else 0
    nearest = centres[similarity.argmax(axis=1)]
    return np.sqrt(((rows - nearest) ** 2).mean(axis=0, dtype=np.float64))


def _single(values: NDArray[np.floating]) -> Floats:
    return np.ascontiguousarray(values, np.float32)


# --- A corpus of any size for the study of growth: the real document vectors in a fixed random order, and beyond them synthetic ones.


def write_growth_corpus(real: VectorShards, documents: int, seed: int, folder: Path) -> VectorShards:
    """Write shards of `documents` vectors into `folder`; a corpus is the beginning of every larger one with the same seed.

    The ids of synthetic documents begin with `synthetic-`; `counts` says how many there are.
    """
    rows = read_vectors(real)
    order = np.random.default_rng(seed).permutation(len(rows.doc_ids))[:documents]
    synthetic = documents - len(order)
    more = synthetic_blocks(space_like(rows.vectors, seed), synthetic) if synthetic else iter(())
    return write_blocks(chain(_real_blocks(rows, order), more), real.space_id, folder, {"synthetic": synthetic})


def synthetic_blocks(space: SyntheticSpace, rows: int) -> Iterator[tuple[list[str], Floats]]:
    """Ids and vectors of the first `rows` documents of a synthetic space, block by block."""
    first = 0
    for block in space.blocks(rows):
        yield [f"synthetic-{first + i:010d}" for i in range(len(block))], block
        first += len(block)


def write_blocks(blocks: Iterator[tuple[list[str], Floats]], space_id: str, folder: Path, counts: dict[str, int]) -> VectorShards:
    """Write each block of ids and vectors as a shard and seal the folder; an id stands for the content too."""
    documents, number, dimension = 0, 0, 0
    for number, (ids, vectors) in enumerate(blocks, start=1):
        write_shard(folder, ShardKeys(number - 1, ids, ids), vectors, space_id)
        documents, dimension = documents + len(ids), vectors.shape[1]
    artifact = seal(
        folder,
        "vectors",
        counts={"documents": documents, "shards": number, **counts},
        attributes={"space_id": space_id, "dimension": dimension},
    )
    return VectorShards(**artifact.model_dump())


def _real_blocks(rows: DocumentVectors, order: NDArray[np.int64]) -> Iterator[tuple[list[str], Floats]]:
    for start in range(0, len(order), BLOCK):
        chosen = order[start : start + BLOCK]
        yield [rows.doc_ids[row] for row in chosen], rows.vectors[chosen]


# --- Query vectors for the study of growth, encoded once for all sizes.


def write_growth_queries(
    dataset: Artifact, tower: Artifact, split: str, rule: tuple[int, int, int], folder: Path, groups: str
) -> dict[str, Any]:
    """Write queries.npy, vectors of judged queries of `split`, units.npy, their units, and tuning.npy, vectors of dev queries.

    Vectors are float32 (n, d), units int64 (n,). `rule`: at most so many queries, at most so many for the tuning, and the seed that draws
    them. `groups` is evaluation.query_groups. Returns how many there are.
    """
    count, tuning, seed = rule
    data, encoder = load_dataset(dataset.path), load_tower(tower.path)
    judged = judged_split(data, split)
    chosen = _drawn(len(judged.texts), count, seed)
    asked = [judged.texts[place] for place in chosen]
    np.save(folder / UNITS_FILE, query_units(judged, data, groups).numbers[chosen])
    # A query that is measured must not have tuned the index.
    others = sorted(set(dev_queries(data)) - set(asked))
    tuned = [others[place] for place in _drawn(len(others), tuning, seed)]
    for name, texts in ((QUERIES_FILE, asked), (TUNING_FILE, tuned)):
        vectors = encoder.encode(texts) if texts else np.empty((0, encoder.contract.dimension), np.float32)
        np.save(folder / name, vectors)
    return {"queries": len(asked), "tuning_queries": len(tuned)}


def _drawn(there: int, count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(there)[:count]


# --- Measurement of one corpus size: build an index and search it, each in a process of its own so that memory can be told apart.


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
    from components.index.build import build_index
    from components.index.engine import engine_version

    engine_version()  # the library belongs to every process that searches, so it is loaded before memory is counted
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
    from components.evaluation.units import mean_interval
    from components.index.build import recall_against_exact
    from components.index.engine import engine_version
    from components.index.search import load_index

    engine_version()
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
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare_worker, initargs=(0, 1)) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise MeasurementFailed(
                f"The process that had to {function.__name__.split('_')[0]} the index was killed, most often because memory ran out. "
                "Give smaller study.growth_sizes, or more memory; the sizes that were measured are kept."
            ) from None
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, or a signal that reaches this process alone
                kill_processes(pool)
            raise
