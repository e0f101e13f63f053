"""A retraining that is killed in each step in turn, then finished: nothing is done twice, and the result is that of a straight run."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import file_sha256
from flows.servers import prefect_plan, running
from tests.flows.cli_world import SMALL, environment, free_port, write_collection

ROOT = Path(__file__).resolve().parents[2]
STEPS = (
    "snapshot_data", "validate_data", "train_towers", "encode_corpus", "build_index",
    "encode_teacher_queries", "distil_query_tower", "evaluate", "write_candidate",
)  # fmt: skip
COMPARED = ("snapshot_data", "train_towers", "encode_corpus", "build_index", "encode_teacher_queries", "distil_query_tower")
pytestmark = [pytest.mark.server, pytest.mark.slow]


@dataclass(frozen=True)
class Place:
    """A home folder, the data, and the environment of the processes that work there."""

    home: Path
    data: Path
    environment: dict[str, str]

    def start(self, *more: str, errors: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        command = (sys.executable, "-m", "flows.cli.main", "retrain", *SMALL, "--data", str(self.data), *more)
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True)

    def finish(self) -> tuple[dict[str, Any], str]:
        """The result, and what the steps printed on the way."""
        out, err = self.start("--json", errors=subprocess.PIPE).communicate(timeout=600)
        return json.loads(out), err

    def kill_in(self, step: str) -> list[str]:
        """Start a run, kill it when `step` has begun, and return the lines it had printed."""
        process, lines = self.start(), []
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.strip())
            if lines[-1] == f"[{step}] started":
                self._wait_for_work(step)
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait(timeout=600) == -signal.SIGKILL, lines
        process.stdout.close()
        return lines

    def _wait_for_work(self, step: str) -> None:
        """Training is killed when it has something to continue from, every other step at its beginning."""
        deadline = time.monotonic() + 600
        while step == "train_towers" and not list((self.home / "work" / step).rglob("checkpoint*")) and time.monotonic() < deadline:
            time.sleep(0.02)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[tuple[Place, Place]]:
    """Two homes for the same data, sharing a Prefect server that outlives the killed runs."""
    folder = tmp_path_factory.mktemp("killed")
    data = write_collection(folder / "clinic")
    variables = {name: environment(folder / name, mlflow_template) for name in ("killed", "straight")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(folder / "server"))
        patch.setenv("PREFECT_HOME", str(folder / "server" / "prefect"))
        (folder / "server" / "prefect").mkdir(parents=True)
        plan = prefect_plan(free_port())
        with running([plan]):
            shared = {"PREFECT_API_URL": f"{plan.url}/api"}
            killed, straight = (Place(folder / name, data, {**found, **shared}) for name, found in variables.items())
            yield killed, straight


def test_killed_in_each_step_and_finished_it_equals_a_straight_run(places: tuple[Place, Place]) -> None:
    killed, straight = places
    for number, step in enumerate(STEPS):
        lines = killed.kill_in(step)
        unchanged = [line for line in lines if line.endswith("unchanged, taken from the cache")]
        started = [line for line in lines if line.endswith("started")]
        # Only the step that the run before was killed in is made, then this run's own begins. The data are read before the flow, for its
        # estimate, so the run that was killed at their line had finished them.
        first = 1 if number == 1 else max(0, number - 1)
        assert unchanged == [f"[{done}] unchanged, taken from the cache" for done in STEPS[:first]]
        assert started == [f"[{name}] started" for name in STEPS[first : number + 1]]
    result, printed = killed.finish()
    assert result["candidate"] == "candidate/1"
    assert printed.count("unchanged, taken from the cache") == len(STEPS) - 1
    with sqlite3.connect(killed.home / "mlflow" / "mlflow.db") as store:
        states = [status for (status,) in store.execute("SELECT status FROM runs")]
    assert "RUNNING" not in states and "KILLED" in states, "the runs of killed processes are closed by the next one"
    assert not list((killed.home / "work" / "running").iterdir())
    # The tokenizer of the tiny models is not trained alike in two processes, so both homes take the same base models.
    shutil.copytree(killed.home / "models", straight.home / "models")
    expected, _ = straight.finish()
    assert (result["verdict"], result["name"]) == (expected["verdict"], expected["name"])
    found, wanted = contents(killed.home), contents(straight.home)
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == [], "a continued run gives the very bytes of a straight one"


def contents(home: Path) -> dict[str, str]:
    """sha256 of what the release is made of, by step and file; without the files that name their own folder or other artifacts."""
    files = [path for step in COMPARED for path in (home / "work" / step).rglob("*") if path.is_file()]
    named = {"manifest.json", "adapter_config.json"}
    beside = (".lock", ".timing.json", ".key.json")
    chosen = [path for path in files if path.name not in named and not path.name.endswith(beside) and not path.name.startswith(".")]
    assert chosen
    return {_place(home, path): file_sha256(path) for path in chosen}


def _place(home: Path, path: Path) -> str:
    step, _key, *rest = path.relative_to(home / "work").parts
    return "/".join([step, *rest])
