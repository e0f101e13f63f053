"""Opening of an index, memory-mapped: seconds to the first answer in a fresh process, with its files in the system's cache and without.

    python tests/benchmarks/index_opening.py --folder FOLDER [--documents 1000000] [--index INDEX_FOLDER]

Without --index the corpus and the index of `index_frontier.py` in the same folder are used, or made. Every opening is a process of its
own. `first answer` begins before the index's files are touched and ends with the ids of the first query's documents; `with imports` also
counts the libraries; `hashed` is the opening that hashes every file first, as after a download.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from index_world import DEPTH, SHARDS, add_world_arguments, in_own_process, prepare

WAYS = {"cached": "sizes", "not cached": "sizes", "hashed": "full"}


def main() -> None:
    """Open the index several times each way and print the medians."""
    options = _arguments()
    if options.job:
        print(json.dumps(JOBS[options.job](options)))
        return
    if not _index(options).is_dir():
        options.folder.mkdir(parents=True, exist_ok=True)
        in_own_process("prepare", one_thread=False)
        in_own_process("build", one_thread=False)
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, found in runs.items():
            if way == "not cached":
                forget(_index(options))
            found.append(in_own_process("open", way))
    about = runs["cached"][0]
    print(f"{about['documents']:,} x {about['dimension']} vectors, {about['key']}, {about['bytes'] / 2**30:.2f} GiB of files")
    print(f"{'files are':12} {'first answer s':>15} {'with imports s':>15} {'slowest s':>10}")
    for way, found in runs.items():
        first, imported = ([run[name] for run in found] for name in ("first", "imported"))
        print(f"{way:12} {statistics.median(first):15.3f} {statistics.median(imported):15.3f} {max(first):10.3f}")


def build(options: argparse.Namespace) -> dict[str, Any]:
    """The index over the prepared corpus, with the automatic key."""
    from index_systems import build_ours

    folder = _index(options)
    folder.mkdir(parents=True)
    return {"about": build_ours(options, folder)}


def open_once(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the start of this process's work, and from the touch of the first file, to the first answer."""
    began = time.perf_counter()
    import faiss  # noqa: F401  the index imports both when it is opened; a server has them by then
    import numpy as np
    import pyarrow.parquet  # noqa: F401

    from components.artifacts import open_artifact
    from components.index.search import load_index

    artifact = open_artifact(_index(options))
    query = np.random.default_rng(options.seed).standard_normal((1, int(artifact.attributes["dimension"])), np.float32)
    started = time.perf_counter()
    index = load_index(artifact.path, artifact.space_id, artifact.digest, check=WAYS[options.system])
    index.search(query / np.linalg.norm(query), DEPTH)
    ended = time.perf_counter()
    known, size = artifact.attributes, sum(path.stat().st_size for path in artifact.path.iterdir())
    about = {"documents": len(index), "dimension": known["dimension"], "key": known["index_key"], "bytes": size}
    return {"first": ended - started, "imported": ended - began, **about}


def forget(folder: Path) -> None:
    """Drop the folder's files from the system's cache, which needs no rights: pages that are written and unused may be dropped."""
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _index(options: argparse.Namespace) -> Path:
    return Path(options.index or options.folder / "index-scalingnote")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_world_arguments(parser)
    parser.add_argument("--index", type=Path, help=f"index folder to open, instead of one over {SHARDS} in --folder")
    parser.add_argument("--rounds", type=int, default=5, help="openings each way")
    parser.add_argument("--key", default="auto", help="index_key of an index that is made here")
    parser.add_argument("--exact-below", type=int, default=100_000, help="its index.exact_below; 0 for an approximate index in a trial")
    return parser.parse_args()


JOBS = {"prepare": prepare, "build": build, "open": open_once}

if __name__ == "__main__":
    main()
