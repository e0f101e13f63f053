"""Merging of an index's parts against FAISS's own `merge_from`, as it was done before: seconds, processor seconds, memory, same codes.

    python tests/benchmarks/index_merge.py --folder FOLDER [--documents 200000] [--dimension 384] [--key IVF1024,PQ96x4fsr] [--parts 4]

What is timed is all that turns part files into a merged file: reading, merging, writing, and for `merge_parts` its check, too. Each way
runs in a process of its own, in turns. FAISS's way is only run where no list meets the condition under which it destroys memory, which is
worked out beforehand from the parts.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from index_world import SPACE_ID, document_blocks, in_own_process

from components.index.engine import empty_index, list_sizes, read_faiss, write_faiss
from components.index.merging import Merge
from components.index.parts import INDEX_FILE, merge_parts, open_part, train_template, write_part
from components.studies.growth_cell import peak

PARTS, WORK, MERGES = "parts", "merged", 4


def main() -> None:
    """Make the parts once, merge them in both ways in turns, print the ratio."""
    options = _arguments()
    if options.job:
        print(json.dumps(_merged(options)))
        return
    _require_safe(options, _make_parts(options))
    runs: dict[str, list[dict[str, Any]]] = {"by_faiss": [], "merge_parts": []}
    for number in range(options.rounds):
        for way, measured in runs.items():
            measured.append(in_own_process(way, one_thread=False))
            print(f"round {number + 1}, {way}: {measured[-1]}", flush=True)
    same = len({run["codes"] for measured in runs.values() for run in measured}) == 1
    print(f"{options.documents:,} x {options.dimension}, {options.key}, {options.parts} parts; the same codes: {same}")
    for name in ("seconds", "processor_seconds", "peak_mib"):
        before, now = (statistics.median(run[name] for run in runs[way]) for way in ("by_faiss", "merge_parts"))
        print(f"{name}: merge_from {before:.3f}, merge_parts {now:.3f}, {now / before:.2f} times")


def _make_parts(options: argparse.Namespace) -> Path:
    folder = _empty(options.folder / PARTS)
    blocks = np.concatenate(list(document_blocks(options)))
    some = blocks[np.random.default_rng(options.seed).choice(len(blocks), min(len(blocks), options.train), replace=False)]
    template = train_template(options.key, some, SPACE_ID, "none", folder)
    for number, vectors in enumerate(np.array_split(blocks, options.parts)):
        write_part(folder, number, template, [vectors])
    return folder


def _require_safe(options: argparse.Namespace, folder: Path) -> None:
    """End when a list of FAISS's merged index would hold a non-zero multiple of its block size where a part is put in."""
    import faiss

    template = empty_index(options.key, options.dimension)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(template).invlists)
    held = np.zeros(lists.nlist, np.int64)
    for number in range(options.parts):
        sizes = list_sizes(open_part(folder, number))
        if hasattr(lists, "block_size") and np.any((held > 0) & (held % lists.block_size == 0) & (sizes > 0)):
            raise SystemExit(f"Before part {number} a list holds a multiple of {lists.block_size}, which FAISS writes past. Change --seed.")
        held += sizes


def _merged(options: argparse.Namespace) -> dict[str, Any]:
    """The best of several merges: the first one also loads libraries and asks the system for memory."""
    folder, merge, times = options.folder / WORK, merge_parts if options.job == "merge_parts" else _by_faiss, []
    for _ in range(MERGES):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(options.folder / PARTS, folder)
        started, used = time.perf_counter(), time.process_time()
        merge(folder, options.parts)
        times.append((time.perf_counter() - started, time.process_time() - used))
    (seconds, processor), most = map(min, zip(*times, strict=True)), peak() / 2**20
    whole = Merge()
    whole.append(read_faiss(folder / INDEX_FILE))
    codes = whole.contents.digest
    return {"seconds": round(seconds, 4), "processor_seconds": round(processor, 4), "peak_mib": round(most), "codes": codes}


def _by_faiss(folder: Path, count: int) -> None:
    """The former `merge_parts`."""
    from components.artifacts import file_sha256
    from components.index.parts import TEMPLATE_FILE, read_part, read_parts

    parts = read_parts(folder, count, read_part(folder, 0).space_id, file_sha256(folder / TEMPLATE_FILE))
    read_faiss(folder / TEMPLATE_FILE)
    merged = read_faiss(folder / "part-00000.faiss")
    for part in parts[1:]:
        merged.merge_from(read_faiss(folder / f"part-{part.number:05d}.faiss"), merged.ntotal)
    write_faiss(merged, folder / INDEX_FILE)
    for part in parts:
        (folder / f"part-{part.number:05d}.faiss").unlink()


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="working folder; what it holds under parts/ and merged/ is replaced")
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--vectors", type=Path, metavar="FILE.npy", help="real vectors (n, d) instead of synthetic ones")
    parser.add_argument("--queries", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--key", default="IVF1024,PQ96x4fsr", help="index key of an inverted file")
    parser.add_argument("--train", type=int, default=40_000, help="vectors that train the template")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--job", help=argparse.SUPPRESS)  # what a process that this script starts has to do
    return parser.parse_args()


if __name__ == "__main__":
    main()
