"""Proof on one card, whole in 12 minutes: throughput, query towers on the data sets given, scaling over layers and data.

    bash tests/benchmarks/gpu_proof.sh --data FOLDER [--data FOLDER] [--out FOLDER] [--minutes 12] [--dry-run]

Parts, each a command of its own with a limit, so that one that fails or takes too long does not end the rest:
- throughput: `tower_training`, Gemma 3 270M against sentence-transformers' cached loss in the same setting;
- query towers: `study retention` on each data set, the warmed-up Gemma 3 270M at a batch of 1,024 pairs with cached gradients, students of
  1, 2 and 4 layers and static, queries/s at batch 32 and p50 at batch 1, as in the paper's table;
- scaling: `study scaling_law` on the first data set, over layer subsets and shares of the data.
One seed each, so nothing is claimed of differences. Writes gpu_proof.json and gpu_proof.md into --out (default: the current folder), with
hardware, versions, command and seconds of each part. `--dry-run` takes tiny models and made-up data. Exit status 1 when a part failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from components.artifacts import write_atomic
from components.studies.report import markdown_table
from tests.benchmarks.gpu_smoke import describe

STUDY = (sys.executable, "-c", "from flows.cli import start; start()", "study")
LIBRARIES = ("torch", "transformers", "peft", "sentence-transformers", "faiss-cpu", "bm25s", "numpy")
ONE_SEED = {"study.seeds": "[13]"}
CARD = {  # laid over the preset pages, which spares a processor what a card has time for; of the LLM alone, as the paper's table
    "towers.base_model": "gemma3-270m-warm",
    "towers.lora_layers": "null",
    "towers.learning_rate": 0.0003,
    "towers.companion.base_model": "",
    "towers.batch_size": 1024,
    "towers.chunk_size": 128,
    "towers.steps": 100,
    "towers.precision": "bfloat16",
    "distillation.epochs": 4,
    "distillation.layers": "null",
    "study.layers": "[1, 2, 4]",
}
SCALING = {
    "towers.base_model": "gemma3-270m",
    "towers.learning_rate": 0.0003,
    "towers.batch_size": 256,
    "towers.chunk_size": 128,
    "towers.steps": 30,
    "towers.precision": "bfloat16",
    "study.scaling_layers": "[4, 8]",
    "study.scaling_shares": "[0.25, 0.5, 1.0]",
}
TINY = {  # laid over the preset smoke
    "towers.steps": 6,
    "distillation.epochs": 1,
    "distillation.titles": 40,
    "distillation.max_mean_cosine": 1.0,
    "distillation.min_effective_rank": 1.0,
    "study.layers": "[1]",
    "study.scaling_models": "[decoder-32x1, decoder-64x1]",
    "study.scaling_shares": "[0.5, 1.0]",
    "study.scaling_negatives": 32,
}


@dataclass(frozen=True)
class Part:
    """One command: its name, what it is called with, the seconds that it may take, and the file that its JSON is in (None: on stdout)."""

    name: str
    command: tuple[str, ...]
    limit: float
    result: Path | None = None


def main() -> int:
    """Run the parts, write what they gave, print the table."""
    options = _arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-proof-") as scratch:
        sets = [_made_up(Path(scratch))] if options.dry_run else options.data
        parts = parts_of(sets, Path(scratch), options.dry_run)
        found = run_all(parts, Path(scratch), 60 * options.minutes)
    proof = {"machine": machine(), "dry_run": options.dry_run, "seconds": round(time.monotonic() - started, 1), "parts": found}
    text = table(proof)
    write_atomic(options.out / "gpu_proof.json", json.dumps(proof, indent=1).encode())
    write_atomic(options.out / "gpu_proof.md", text.encode())
    print(text)
    failed = [part["name"] for part in found if part["failed"]]
    print(f"{len(found) - len(failed)} of {len(found)} parts done" + (f"; not done: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def parts_of(sets: Sequence[Path], scratch: Path, dry_run: bool) -> list[Part]:
    """The commands, cheapest to lose last; their limits add up to 12 minutes for two data sets."""
    speeds = scratch / "throughput.json"
    size = ("--base", "tiny-decoder", "--batch", "4", "--chunk", "2", "--steps", "1", "--rounds", "1", "--precision", "float32")
    if not dry_run:
        size = ("--batch", "256", "--chunk", "64", "--steps", "6", "--rounds", "2", "--precision", "bfloat16")
    training = (sys.executable, "-m", "tests.benchmarks.tower_training", "--data", str(sets[0]), "--json", str(speeds), *size)
    parts = [Part("throughput", training, 110, speeds)]
    parts += [Part(f"query towers, {path.name}", study("retention", path, TINY if dry_run else CARD, dry_run), 230) for path in sets]
    return [*parts, Part("scaling", study("scaling_law", sets[0], TINY if dry_run else SCALING, dry_run), 150)]


def study(name: str, data: Path, settings: dict[str, Any], dry_run: bool) -> tuple[str, ...]:
    """The command of a study that prints its rows as JSON."""
    given = [word for field, value in {**settings, **ONE_SEED}.items() for word in ("--set", f"{field}={value}")]
    return (*STUDY, name, "--json", "--preset", "smoke" if dry_run else "pages", "--data", str(data), *given)


def run_all(parts: Sequence[Part], scratch: Path, seconds: float) -> list[dict[str, Any]]:
    """Run one after the other; none goes on beyond its own limit or that of all together."""
    environment = {**os.environ, "SCALINGNOTE_HOME": str(scratch / "home")}
    end, found = time.monotonic() + seconds, []
    for part in parts:
        found.append(run(part, environment, min(part.limit, end - time.monotonic())))
        state = found[-1]["failed"] or "done"
        print(f"{part.name}: {state.splitlines()[-1] if state else ''} in {found[-1]['seconds']} s", file=sys.stderr, flush=True)
    return found


def run(part: Part, environment: dict[str, str], limit: float) -> dict[str, Any]:
    """What the part gave: command, seconds, `result`, and why it `failed`, None where it did not."""
    about = {"name": part.name, "command": shlex.join(["python", *part.command[1:]]), "seconds": 0.0, "result": None}
    if limit <= 0:
        return {**about, "failed": "not begun: the time was used up"}
    started = time.monotonic()
    # A group of its own, so that the servers and workers of a part that takes too long end with it.
    process = subprocess.Popen(
        part.command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        out, errors = process.communicate(timeout=limit)
        failed = None if process.returncode == 0 else f"exit status {process.returncode}: {errors[-800:] or out[-800:]}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
        failed = f"not done within {limit:.0f} s"
    seconds = round(time.monotonic() - started, 1)
    result = None if failed else json.loads(part.result.read_text(encoding="utf-8") if part.result else out)
    return {**about, "seconds": seconds, "result": result, "failed": failed}


def machine() -> dict[str, Any]:
    """Device, processor, versions, commit and date."""
    from components.evaluation.speed import describe_machine

    asked = ("git", "rev-parse", "HEAD")
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() if shutil.which("git") else ""
    return {
        "device": describe(),
        "processor": describe_machine(),
        "python": sys.version.split()[0],
        "libraries": {name: version(name) for name in LIBRARIES},
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


def table(proof: dict[str, Any]) -> str:
    """What was found, in Markdown; the JSON has all of it."""
    about = proof["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["libraries"].items())
    lines = [
        "# Proof on one card" + (" (dry run: tiny models, made-up data)" if proof["dry_run"] else ""),
        f"{about['device']}; {about['processor']}; Python {about['python']}; {versions}; commit {about['commit'][:12]}, {about['date']}",
    ]
    for part in proof["parts"]:
        lines.append(f"## {part['name']} ({part['seconds']} s)")
        lines.append(f"not done: {part['failed']}" if part["failed"] else markdown_table(pd.DataFrame(rows_of(part["result"]))))
    return "\n\n".join(lines) + "\n"


def rows_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a study, or those of the throughput."""
    return [{column: value for column, value in row.items() if not str(column).endswith(" p")} for row in result["rows"]]


def _made_up(scratch: Path) -> Path:
    from tests.flows.cli_world import write_collection

    return write_collection(scratch / "clinic")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="folder with documents, queries and judgements; repeatable")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for gpu_proof.json and gpu_proof.md")
    parser.add_argument("--minutes", type=float, default=12.0, help="for all parts together")
    parser.add_argument("--dry-run", action="store_true", help="tiny models on made-up data")
    options = parser.parse_args()
    if not options.dry_run and not options.data:
        parser.error("give the data sets with --data, or --dry-run for a trial on tiny models")
    if missing := [str(path) for path in options.data if not path.is_dir()]:
        parser.error(f"no such folder: {', '.join(missing)}")
    if options.minutes <= 0:
        parser.error("--minutes must be above 0")
    return options


if __name__ == "__main__":
    sys.exit(main())
