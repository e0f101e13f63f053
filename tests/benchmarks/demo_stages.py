"""Stages of the demo: seconds by the clock and of the processors, with the processor's own instructions and held to AVX2 in float32.

    python -m tests.benchmarks.demo_stages [--form native] [--form avx2] [--set FIELD=VALUE ...] [--json FILE]

Each form runs `scalingnote demo` in an empty home folder of its own, so nothing comes from a cache but the installed packages. A stage
reaches from the line that begins it to the line that ends it; what lies between two stages (imports, the servers' start, records) is
shown as `between`. CPU seconds are those of the command and of all processes that it started, read from /proc, since other work on
the machine stretches the clock and not them. Not measured: the installation. With --json the seconds of the last form are also written
down, for `python -m tests.benchmarks.plan_accuracy --preset demo --measured FILE`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# What keeps torch's own kernels, oneDNN and MKL from using more than AVX2, and the number format of a processor without bfloat16.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "SCALINGNOTE_PRECISION": "float32",
}
FORMS: dict[str, dict[str, str]] = {"native": {}, "avx2": AVX2}
BEGUN = re.compile(r"\[(\w+)\] started")
ENDED = re.compile(r"\[(\w+)\] (?:done in|unchanged)")
ASK = """
import torch
from components.towers.device import pick_dtype
have = {name: getattr(torch.cpu, f"_is_{name}_supported")() for name in ("avx2", "avx512", "avx512_bf16", "amx_tile")}
print(f"torch kernels {torch.backends.cpu.get_cpu_capability()}, format {pick_dtype('auto')}, {torch.get_num_threads()} threads; "
      f"the processor has {', '.join(name for name, there in have.items() if there)}")
"""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Clock:
    """Seconds by the clock and of the processors that each stage took, in the order of their first appearance."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)
    _last: tuple[float, float] = (0.0, 0.0)

    def charge(self, stage: str, wall: float, cpu: float) -> None:
        """All that passed since the last call belongs to `stage`."""
        before_wall, before_cpu = self._last
        self.wall[stage] = self.wall.get(stage, 0.0) + wall - before_wall
        self.cpu[stage] = self.cpu.get(stage, 0.0) + max(0.0, cpu - before_cpu)
        self._last = (wall, cpu)


def main() -> None:
    """Run the forms one after the other and print a table of each."""
    options = _arguments()
    for form in options.form or list(FORMS):
        environment = {**os.environ, **FORMS[form]}
        print(f"\n{form}: {_asked(environment)}", flush=True)
        with tempfile.TemporaryDirectory(prefix="demo-") as home:
            clock, output = run_demo({**environment, "SCALINGNOTE_HOME": home}, options.set)
        print(table(clock), flush=True)
        print("\n".join(output), flush=True)
        if options.json:
            steps = {step: {"measured": {"seconds": clock.wall[step], "cpu_seconds": clock.cpu[step]}} for step in clock.wall}
            options.json.write_text(json.dumps({"form": form, "steps": steps}, indent=2), encoding="utf-8")


def run_demo(environment: dict[str, str], settings: list[str]) -> tuple[Clock, list[str]]:
    """Run the demo and follow its lines; returns its stages, and what it printed after the last one."""
    changed = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-c", "from flows.cli.main import main; raise SystemExit(main())", "demo", *changed]
    clock, stage, rest, started = Clock(), "between", list[str](), time.monotonic()
    before = _ended_seconds()
    written = Path(environment["SCALINGNOTE_HOME"]) / "stdout.txt"
    written.parent.mkdir(parents=True, exist_ok=True)
    with written.open("w") as out:
        process = subprocess.Popen(command, env={**environment, "PYTHONUNBUFFERED": "1"}, stdout=out)
    for line in _lines(process, written):
        begun, ended = BEGUN.match(line), ENDED.match(line)
        if begun or ended:
            clock.charge(stage, time.monotonic() - started, cpu_seconds(process.pid))
            stage, rest = begun[1] if begun else "between", []
            print(f"  {time.monotonic() - started:7.1f} s  {line.rstrip()}", flush=True)
        else:
            rest.append(line.rstrip())
    if process.wait():
        raise SystemExit(f"The demo ended with exit status {process.returncode}; see its messages above.")
    clock.charge("between", time.monotonic() - started, _ended_seconds() - before)
    return clock, rest


def _lines(process: subprocess.Popen[bytes], written: Path) -> Iterator[str]:
    """The lines of a file as they come, until the process has ended: a pipe would stay open in servers that outlive a killed command."""
    begun = ""
    with written.open() as text:
        while True:
            ended = process.poll() is not None
            for part in text:
                begun += part
                if begun.endswith("\n"):
                    yield begun
                    begun = ""
            if ended:
                return
            time.sleep(0.1)


def _ended_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process and of all below it, ended ones included as far as their parents have waited for them."""
    return sum(_own_seconds(process) for process in _family(pid))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            below = (thread / "children").read_text().split()
        except OSError:  # ended while we looked
            continue
        for child in below:
            yield from _family(int(child))


def _own_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS  # utime, stime, and both of the children that were waited for


def table(clock: Clock) -> str:
    """A line a stage, and their sum."""
    rows = [f"| {stage} | {clock.wall[stage]:.0f} | {clock.cpu[stage]:.0f} |" for stage in clock.wall]
    total = f"| all | {sum(clock.wall.values()):.0f} | {sum(clock.cpu.values()):.0f} |"
    return "\n".join(["", "| stage | seconds | CPU seconds |", "|---|---|---|", *rows, total])


def _asked(environment: dict[str, str]) -> str:
    asked = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    return asked.stdout.strip()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--form", action="append", choices=list(FORMS), help="may be given twice; all forms when it is not given")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of the demo")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds of the last form")
    return parser.parse_args()


if __name__ == "__main__":
    main()
