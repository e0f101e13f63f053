"""What the benchmarks of the index share: a corpus of vectors with queries and their exact answers, and jobs in processes of their own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
SPACE_ID = "benchmark"
DEPTH = 100  # documents of each answer: recall is that of the first hundred
SHARDS, QUERIES, TUNING, EXACT = "vectors", "queries.npy", "tuning.npy", "exact.npy"
ID = "document-{:010d}"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_NUM_THREADS")


def add_world_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say which corpus is measured."""
    parser.add_argument("--documents", type=int, default=1_000_000, help="size of the corpus; 20000 for a trial")
    parser.add_argument("--dimension", type=int, default=384, help="of synthetic vectors")
    parser.add_argument("--queries", type=int, default=500, help="queries that are measured; as many others tune our index")
    parser.add_argument("--vectors", type=Path, metavar="FILE.npy", help="real vectors (n, d) in random order; the last are queries")
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--folder", type=Path, required=True, help="where corpus and indexes are kept; what is finished there is reused")
    parser.add_argument("--job", help=argparse.SUPPRESS)  # what a process that this script starts has to do
    parser.add_argument("--system", help=argparse.SUPPRESS)


def in_own_process(job: str, system: str | None = None, one_thread: bool = True) -> dict[str, Any]:
    """Run a job of the script that was started, with its options, in a new process, and return what it prints last."""
    command = [sys.executable, *sys.argv, "--job", job, *(["--system", system] if system else [])]
    threads = dict.fromkeys(ONE_THREAD, "1") if one_thread else {}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **threads})
    if done.returncode:
        sys.exit(f"The job '{job}' of {system or 'the corpus'} failed with status {done.returncode}; its messages stand above.")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Write corpus, queries and exact answers; returns how near the answers are, which says how hard the corpus is."""
    from components.artifacts import is_complete
    from components.studies.growth_cell import write_blocks

    shards = options.folder / SHARDS
    if not is_complete(shards):
        shards.mkdir(parents=True, exist_ok=True)
        write_blocks(_numbered(document_blocks(options)), SPACE_ID, shards, {})
    queries = _held_out(options)
    np.save(options.folder / QUERIES, queries[: options.queries])
    np.save(options.folder / TUNING, queries[options.queries :])
    return _answer(options, queries[: options.queries])


def document_blocks(options: argparse.Namespace) -> Iterator[Floats]:
    """The corpus block by block, float32 of unit length."""
    from components.studies.growth_cell import BLOCK, random_space
    from components.towers.contract import unit

    if options.vectors is None:
        yield from random_space(options.dimension, options.seed).blocks(options.documents)
        return
    real = np.load(options.vectors, mmap_mode="r")
    for start in range(0, min(options.documents, len(real) - 2 * options.queries), BLOCK):
        stop = min(start + BLOCK, options.documents, len(real) - 2 * options.queries)
        yield unit(real[start:stop].astype(np.float32))


def _numbered(blocks: Iterator[Floats]) -> Iterator[tuple[list[str], Floats]]:
    first = 0
    for block in blocks:
        yield [ID.format(first + i) for i in range(len(block))], block
        first += len(block)


def _held_out(options: argparse.Namespace) -> Floats:
    """Twice as many queries as are measured: near documents but none of them; of real vectors those that are no documents."""
    from components.studies.growth_cell import random_space
    from components.towers.contract import unit

    if options.vectors is not None:
        return unit(np.load(options.vectors, mmap_mode="r")[-2 * options.queries :].astype(np.float32))
    space = random_space(options.dimension, options.seed)
    rows = min(options.documents, len(space.block(0)))
    return space.queries(space.block(0)[:rows], 2 * options.queries)


def corpus_blocks(folder: Path) -> Iterator[Floats]:
    """The corpus as every system gets it: rounded to fp16 and brought back to unit length."""
    from components.artifacts import open_artifact
    from components.index.shards import read_shard, unit_vectors

    shards = open_artifact(folder / SHARDS)
    for number in range(shards.counts["shards"]):
        yield unit_vectors(read_shard(shards, number))


def _answer(options: argparse.Namespace, queries: Floats) -> dict[str, Any]:
    """Write the row numbers of the DEPTH best documents of each query, by comparing it with all of them."""
    best, rows, first, mean = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64), 0, 0.0
    for block in corpus_blocks(options.folder):
        scores = queries @ block.T
        mean += float(scores.sum())
        best = np.concatenate([best, scores], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(first, first + len(block)), scores.shape)], axis=1)
        order = np.argpartition(-best, min(DEPTH, best.shape[1]) - 1, axis=1)[:, :DEPTH]
        best, rows, first = np.take_along_axis(best, order, 1), np.take_along_axis(rows, order, 1), first + len(block)
    np.save(options.folder / EXACT, rows)
    near = -np.sort(-best, axis=1)
    nearness = {
        name: float(np.median(near[:, min(place, near.shape[1]) - 1])) for name, place in (("1st", 1), ("10th", 10), ("100th", 100))
    }
    return {"documents": first, "dimension": queries.shape[1], "cosines": {**nearness, "mean": mean / first / len(queries)}}


def recall(found: NDArray[np.int64], exact: NDArray[np.int64]) -> float:
    """Mean share of the exact answers that were found."""
    return float(np.mean([len(np.intersect1d(some, true)) / len(true) for some, true in zip(found, exact, strict=True)]))
