"""Vectors that exist get small query encoders: what each keeps, how fast it is, and how long it took.

    python -m tests.benchmarks.adopted --data DIR [--set FIELD=VALUE ...] [--home FOLDER]

MiniLM, as published, encodes the documents and queries of DIR once: these are the index that a team has. `adopt` takes it over, and
`refresh-query-tower` makes one query encoder after the other for it, each by its own command in an empty home folder. Seconds are those
of the clock; those of the processors, which other work does not stretch, stand in brackets. Queries/s and p50 are of encoding alone,
tokenisation included, all systems in turns in one process without padding; MiniLM's are what a query costs before. The first encoder's
refresh also evaluates the vectors themselves and BM25.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from components.settings import activate

NAME = "mine"
STUDENTS = {
    "one layer": ("distillation.form=transformer", "distillation.layers=1"),
    "static": ("distillation.form=static", "distillation.layers=null"),
}
SHOWN = ("recall@50", "ndcg@10")


def main() -> None:
    """Adopt, make the students, and print a line for each."""
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="adopted-") as scratch:
        os.environ["SCALINGNOTE_HOME"] = str(options.home or Path(scratch) / "home")
        activate()
        from components.evaluation.speed import describe_machine
        from flows.adopt import existing_vectors
        from flows.config import RetrainConfig, layers_of, settle

        config = settle(RetrainConfig, layers_of("adopt", overrides={"data.source": options.data}))
        started, before = time.monotonic(), os.times()
        vectors = existing_vectors(config)
        taken = os.times()
        print(describe_machine())
        print(told("MiniLM's vectors", time.monotonic() - started, taken.user + taken.system - before.user - before.system), flush=True)
        seconds = {"adopt": run("adopt", "--vectors", str(vectors), "--data", options.data, "--name", NAME)[1:]}
        print(told("adopt", *seconds["adopt"]), flush=True)
        made = {}
        for name, settings in STUDENTS.items():
            words = [word for setting in (*settings, *options.set) for word in ("--set", setting)]
            made[name], *seconds[name] = run("refresh-query-tower", "--name", NAME, "--release", "adopted", *words)
            print(told(name, *seconds[name]) + f", verdict {made[name]['verdict']}", flush=True)
        print(table(config, made, seconds))


def run(*words: str) -> tuple[Any, float, float]:
    """The JSON of a command of ours, and its seconds by the clock and of the processors."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", "from flows.cli import start; start()", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with exit status {done.returncode}; see its messages above.")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return json.loads(done.stdout), time.monotonic() - started, used


def told(what: str, wall: float, cpu: float) -> str:
    """Seconds by the clock and, in brackets, of the processors."""
    return f"{what}: {wall:.0f} s ({cpu:.0f} CPU seconds)"


def table(config: Any, made: dict[str, Any], seconds: dict[str, Any]) -> str:
    """A row for BM25, for the vectors that existed, and for each student."""
    from components.evaluation.report import load_summary
    from components.release.manifest import EVALUATION_FOLDER

    speeds = speeds_of(config, {name: result["candidate"] for name, result in made.items()})
    summaries = {name: load_summary(Path(result["folder"]) / EVALUATION_FOLDER) for name, result in made.items()}
    first = next(iter(summaries.values()))
    rows = [
        "| | recall@50 | nDCG@10 | keeps of recall@50 | of nDCG@10 | queries/s, batch 32 | p50, ms | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows.append(f"| BM25, stemmed | {quality(first, 'bm25')} | | | | | |")
    rows.append(f"| the vectors that exist (MiniLM) | {quality(first, 'teacher')} | | | {speed(speeds['MiniLM'])} | |")
    for name, summary in summaries.items():
        kept = " | ".join(share(summary.retention[metric], summary.retention_intervals.get(metric)) for metric in SHOWN)
        minutes = f"{seconds[name][0] / 60:.1f} ({seconds[name][1] / 60:.1f})"
        rows.append(f"| {name} | {quality(summary, 'student')} | {kept} | {speed(speeds[name])} | {minutes} |")
    units = first.units.words if first.units else "each query is a unit"
    return "\n".join(["", *rows, "", f"{first.queries:,} {first.split} queries, {first.documents:,} documents; {units}"])


def speeds_of(config: Any, candidates: dict[str, str]) -> dict[str, Any]:
    """Speeds of MiniLM as published and of the candidates' query encoders, measured in turns."""
    from components.data.dataset import load_dataset
    from components.distillation.student import as_published, load_student, untrained_student
    from components.evaluation.speed import encoding, measure_speeds
    from components.evaluation.summarize import judged_split
    from components.release.open import open_pinned
    from flows.runner import make_step
    from flows.steps import snapshot_step

    queries = judged_split(load_dataset(make_step(snapshot_step(config)).path), config.evaluation.split).texts
    settings = config.distillation
    encoders: dict[str, Any] = {"MiniLM": untrained_student(as_published(settings), [], None, settings.max_query_length)}
    for name, candidate in candidates.items():
        encoders[name] = load_student(open_pinned(NAME, candidate).query_encoder.path)
    return measure_speeds({name: encoding(encoder) for name, encoder in encoders.items()}, queries, config.evaluation)


def quality(summary: Any, system: str) -> str:
    """The two metrics of a system, each with its interval."""
    found = summary.systems[system]
    ends = {metric: found.intervals.get(metric) for metric in SHOWN}
    return " | ".join(f"{found.metrics[m]:.3f}" + (f" [{ends[m][0]:.3f} {ends[m][1]:.3f}]" if ends[m] else "") for m in SHOWN)


def share(value: float, ends: tuple[float, float] | None) -> str:
    """A share with its interval."""
    return f"{value:.1%}" + (f" [{ends[0]:.1%} {ends[1]:.1%}]" if ends else "")


def speed(found: Any) -> str:
    """Queries a second, and milliseconds of one."""
    return f"{found.qps:,.0f} | {found.p50_ms:.2f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with documents, queries and judgements, or icd10cm")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of every refresh")
    parser.add_argument("--home", type=Path, help="home folder to work in and to keep (default: one that goes when it ends)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
