"""The index against hnswlib and usearch: recall over queries per second, build time and memory, one thread everywhere.

    python tests/benchmarks/index_frontier.py --folder FOLDER [--documents 1000000] [--vectors FILE.npy] [--plot frontier.png]

Needs the extra `benchmarks`. Every system gets the same vectors, synthetic ones unless --vectors names real ones, and builds and searches
in processes of its own, which take turns over several rounds; medians are compared. The graphs are asked with each --ef; our index is
tuned at its build to a recall of 0.95 on other queries than those that are measured, and asked around that point. Queries per second
are given one query at a time and in batches; where systems are compared at equal recall, the value lies on the line between the two
points of the frontier beside it. Memory is counted without the libraries: at its peak, mapped files included, and without these.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from index_systems import BUILD, LIBRARY, OPEN, Point
from index_world import DEPTH, EXACT, QUERIES, add_world_arguments, in_own_process, prepare, recall

OURS = "scalingnote"
GIB = 2**30
Rows = list[dict[str, Any]]


def main() -> None:
    """Measure all systems in turns, or do one job of that in this process."""
    options = _arguments()
    if options.job:
        print(json.dumps(JOBS[options.job](options)))
        return
    _require_installed(options.systems)
    options.folder.mkdir(parents=True, exist_ok=True)
    corpus = in_own_process("prepare", one_thread=False)
    source = f"of {options.vectors}" if options.vectors else "synthetic"
    cosines = ", ".join(f"{name} {value:.2f}" for name, value in corpus["cosines"].items())
    print(f"{corpus['documents']:,} x {corpus['dimension']} vectors ({source}); cosines of a query's answers: {cosines}", flush=True)
    built = {system: _announced(system, in_own_process("build", system)) for system in options.systems}
    searched: dict[str, Rows] = {system: [] for system in options.systems}
    for number in range(options.rounds):
        for system in options.systems:
            searched[system].append(in_own_process("search", system))
            print(f"round {number + 1} of {options.rounds}, {system}: searched", flush=True)
    _report(built, searched, options)


def build(options: argparse.Namespace) -> dict[str, Any]:
    """Build one system's index; seconds and peak memory. One that is finished in the folder is not built again."""
    folder, note = _index_folder(options), _index_folder(options) / ".built.json"
    if note.is_file():
        found: dict[str, Any] = json.loads(note.read_text())
        return found
    from components.studies.growth_cell import peak, resident

    folder.mkdir(parents=True, exist_ok=True)
    _load_libraries(options.system)
    before, started = resident(), time.perf_counter()
    about = BUILD[options.system](options, folder)
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.iterdir())
    result = {"seconds": seconds, "peak": peak() - before, "process": peak(), "files": size, "about": about}
    note.write_text(json.dumps(result))
    return result


def search(options: argparse.Namespace) -> dict[str, Any]:
    """Recall and queries per second of every setting of one system, and the memory that searching took."""
    from components.studies.growth_cell import anonymous, peak, resident

    _load_libraries(options.system)
    queries, exact = np.load(options.folder / QUERIES), np.load(options.folder / EXACT)
    before, fixed = resident(), anonymous()
    points, most = [], 0
    for point in OPEN[options.system](options, _index_folder(options)):
        points.append(_measure(point, queries, exact, options))
        most = max(most, anonymous() - fixed)  # while the index is open: after the loop it is gone
    return {"points": points, "peak": peak() - before, "anonymous": most}


def _measure(point: Point, queries: Any, exact: Any, options: argparse.Namespace) -> dict[str, Any]:
    found = np.concatenate([point.rows(point.search(queries[i : i + options.batch])) for i in range(0, len(queries), options.batch)])
    started = time.perf_counter()
    for query in queries:
        point.search(query[None])
    single = time.perf_counter()
    for start in range(0, len(queries), options.batch):
        point.search(queries[start : start + options.batch])
    ended = time.perf_counter()
    speeds = {"single": len(queries) / (single - started), "batch": len(queries) / (ended - single)}
    return {"setting": point.setting, "recall": recall(found, exact), **speeds}


def at_recall(points: Rows, target: float, speed: str) -> float | None:
    """Queries per second at a recall, between the points of the frontier (on the logarithm); None when no point reaches it."""
    frontier = [p for p in points if not any(q["recall"] >= p["recall"] and q[speed] > p[speed] for q in points)]
    ordered = sorted(frontier, key=lambda p: p["recall"])
    if not ordered or ordered[-1]["recall"] < target:
        return None
    logs = np.interp(target, [p["recall"] for p in ordered], np.log([p[speed] for p in ordered]))
    return float(np.exp(logs))


def _report(built: dict[str, Any], searched: dict[str, Rows], options: argparse.Namespace) -> None:
    points = {system: _medians(rounds) for system, rounds in searched.items()}
    print(f"\n{'system':12} {'setting':20} {f'recall@{DEPTH}':>10} {'queries/s':>10} {f'batch {options.batch}':>10}")
    for system, rows in points.items():
        for row in sorted(rows, key=lambda p: p["recall"]):
            print(f"{system:12} {row['setting']:20} {row['recall']:10.4f} {row['single']:10.0f} {row['batch']:10.0f}")
    print(f"\n{'system':12} {'build s':>10} {'build GiB':>10} {'process':>10} {'files GiB':>10} {'search GiB':>10} {'unmapped':>10}")
    memory = {system: statistics.median(r["peak"] for r in rounds) for system, rounds in searched.items()}
    for system, made in built.items():
        unmapped = statistics.median(r["anonymous"] for r in searched[system])
        sizes = [value / GIB for value in (made["peak"], made["process"], made["files"], memory[system], unmapped)]
        print(f"{system:12} {made['seconds']:10.0f} " + " ".join(f"{size:10.2f}" for size in sizes))
    for peer in (system for system in points if system != OURS and OURS in points):
        _compare(points, memory, peer, options)
    if options.plot:
        draw(points, options)


def _compare(points: dict[str, Rows], memory: dict[str, float], peer: str, options: argparse.Namespace) -> None:
    for speed, words in (("single", "one query at a time"), ("batch", f"batches of {options.batch}")):
        ours, theirs = (at_recall(points[system], options.recall, speed) for system in (OURS, peer))
        if ours is None or theirs is None:
            print(f"ours / {peer}, {words}: {OURS if ours is None else peer} does not reach a recall of {options.recall}")
            continue
        print(f"ours / {peer} at recall {options.recall}, {words}: {ours:.0f} / {theirs:.0f} queries/s = {ours / theirs:.2f}", end="")
        print(f", memory of searching {memory[OURS] / memory[peer]:.2f}")


def _medians(rounds: Rows) -> Rows:
    """Each setting with the medians of its speeds; its recall is the same in every round."""
    first = rounds[0]["points"]
    return [
        {**row, **{s: statistics.median(r["points"][place][s] for r in rounds) for s in ("single", "batch")}}
        for place, row in enumerate(first)
    ]


def draw(points: dict[str, Rows], options: argparse.Namespace) -> None:
    """The frontiers: recall across, queries per second up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"{options.documents:,} vectors{'' if options.vectors else ' (synthetic)'}, one thread")
    titles = {"single": "one query at a time", "batch": f"batches of {options.batch}"}
    for axes, (speed, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for system, rows in points.items():
            ordered = sorted(rows, key=lambda p: p["recall"])
            axes.plot([p["recall"] for p in ordered], [p[speed] for p in ordered], "o-", label=system)
        axes.axvline(options.recall, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlabel=f"recall@{DEPTH} against exact search", ylabel="queries per second", yscale="log", title=title)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(options.plot, dpi=120)
    print(f"frontier: {options.plot}")


def _announced(system: str, made: dict[str, Any]) -> dict[str, Any]:
    print(f"{system}: built in {made['seconds']:.0f} s ({made['about']})", flush=True)
    return made


def _load_libraries(system: str) -> None:
    """What every process of a system holds before memory is counted."""
    import pyarrow.parquet  # noqa: F401

    import components.index.build
    import components.index.search  # noqa: F401

    importlib.import_module(LIBRARY[system])


def _index_folder(options: argparse.Namespace) -> Path:
    return Path(options.folder) / f"index-{options.system}"


def _require_installed(systems: list[str]) -> None:
    missing = [system for system in systems if importlib.util.find_spec(LIBRARY[system]) is None]
    if missing:
        sys.exit(f"Not installed: {', '.join(missing)}. Run pip install 'scalingnote[benchmarks]', or leave them out with --systems.")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_world_arguments(parser)
    parser.add_argument("--systems", nargs="+", choices=list(BUILD), default=[OURS, "hnswlib", "usearch"])
    parser.add_argument("--recall", type=float, default=0.95, help="where the systems are compared")
    parser.add_argument("--rounds", type=int, default=3, help="search runs of each system")
    parser.add_argument("--batch", type=int, default=100, help="queries in a batch")
    parser.add_argument("--ef", type=int, nargs="+", default=[100, 120, 150, 200, 300, 400, 600, 800, 1200], help="of the graphs")
    parser.add_argument("--links", type=int, default=16, help="links of a graph's node")
    parser.add_argument("--ef-construction", type=int, default=200, help="of the graphs")
    parser.add_argument("--key", default="auto", help="our index_key")
    parser.add_argument("--exact-below", type=int, default=100_000, help="our index.exact_below; 0 for an approximate index in a trial")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    return parser.parse_args()


JOBS = {"prepare": prepare, "build": build, "search": search}

if __name__ == "__main__":
    main()
