"""What a plan predicts against what happens: seconds, memory and disk of every step of a retraining.

    python -m tests.benchmarks.plan_accuracy --preset demo
    python -m tests.benchmarks.plan_accuracy --preset pages --data DIR --max-documents 1500 --set towers.steps=20
    python -m tests.benchmarks.plan_accuracy --preset demo --measured FILE     # FILE: of --json, here or of demo_stages (seconds alone)

The steps run in this process, one after the other and without Prefect, in a new home folder that borrows the converted base models of
SCALINGNOTE_HOME. Where other programs share the machine, compare processor seconds, and set OMP_NUM_THREADS=1: threads that wait for each
other spin. A processor without bfloat16 is emulated with

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 SCALINGNOTE_PRECISION=float32
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from components import settings


class Stopwatch:
    """Runs the steps as a flow's recorder would, and measures each."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def run(self, step: Any) -> Any:
        """Make a step; wall and processor seconds, peak memory, and bytes on disk."""
        from components.studies import growth_cell as memory
        from flows.runner import make_step

        with suppress(OSError):  # the peak of this step alone, where the system lets a process reset it
            Path("/proc/self/clear_refs").write_text("5")
        wall, cpu = time.perf_counter(), time.process_time()
        made = make_step(step)
        taken = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu, "memory": memory.peak()}
        self.found[step.name] = {**taken, "disk": sum(f.stat().st_size for f in made.path.rglob("*") if f.is_file())}
        return made

    def record_part(self, whole: Any, part: Any, step: Any) -> Any:
        """A part of a finished step."""
        return part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--max-documents", type=int)
    parser.add_argument("--name")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--quick", action="store_true", help="the short calibration of a run instead of a plan's")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a new plan against what an earlier run with --json measured")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    borrowed = settings.models_folder()
    with tempfile.TemporaryDirectory(prefix="plan-accuracy-") as home:
        os.environ["SCALINGNOTE_HOME"] = home
        if borrowed.is_dir():
            settings.models_folder().symlink_to(borrowed)
        settings.activate()
        result = compare(options)
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Plan with the settings as they are, then run them."""
    from components.data.dataset import load_dataset
    from components.planning.calibration import FULL_SECONDS, QUICK_SECONDS, calibrate
    from components.planning.facts import gather_facts
    from components.planning.plan import rows_of
    from flows.cli.prepare import read_config
    from flows.planning import number_bytes
    from flows.retrain import build_parts
    from flows.steps import snapshot_step

    config, watch = read_config(options), Stopwatch()
    data = load_dataset(watch.run(snapshot_step(config)).path)
    taken = dict(watch.found)
    found = calibrate(data, config, QUICK_SECONDS if options.quick else FULL_SECONDS)
    facts = gather_facts(data, config.towers, config.distillation, config.evaluation)
    rows = rows_of(config, facts, found.wall, found.cpu, number_bytes(config))
    if options.measured:
        watch.found = {step: both["measured"] for step, both in json.loads(options.measured.read_text(encoding="utf-8"))["steps"].items()}
    else:
        build_parts(config, watch)  # type: ignore[arg-type]  # all that it asks of a recorder
        watch.found |= taken
    expected = {row.step: {"seconds": row.seconds, "cpu_seconds": row.cpu_seconds, "memory": row.memory, "disk": row.disk} for row in rows}
    steps = {step: {"expected": expected[step], "measured": watch.found[step]} for step in expected if step in watch.found}
    return {"device": found.device, "calibration_seconds": found.seconds, "steps": steps}


def print_table(result: dict[str, Any]) -> None:
    """A line for each step and the sum: expected, measured, and the first over the second."""
    print(f"{result['device']}; calibration {result['calibration_seconds']:.0f} s; each: expected / measured = ratio")
    columns = (("seconds", "wall s", 1.0), ("cpu_seconds", "cpu s", 1.0), ("memory", "GB", 1e9), ("disk", "MB", 1e6))
    print("step".ljust(24) + "".join(title.rjust(26) for _, title, _ in columns))
    for step, both in result["steps"].items():
        print(step.ljust(24) + "".join(_cell(both, key, unit) for key, _, unit in columns))
    sums = {
        side: {key: sum(both[side][key] for both in result["steps"].values()) for key in ("seconds", "cpu_seconds")}
        for side in ("expected", "measured")
    }
    print("all".ljust(24) + "".join(_cell(sums, key, unit) for key, _, unit in columns[:2]))


def _cell(both: dict[str, dict[str, float]], key: str, unit: float) -> str:
    if key not in both["measured"]:
        return "-".rjust(26)
    expected, measured = both["expected"][key] / unit, both["measured"][key] / unit
    return f"{expected:9.1f} /{measured:9.1f} = {expected / max(measured, 1e-9):4.2f}"


if __name__ == "__main__":
    main()
