"""The deployments of prefect.yaml on a real local Prefect server: schedules make runs, and a worker finishes one."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.server_plans import prefect_plan
from flows.servers import running

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("retrain", "refresh-index", "refresh-query-tower", "promote")
pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(180)]


@dataclass(frozen=True)
class Installation:
    """A Prefect server with our deployments, and the environment of its clients."""

    api: str
    environment: dict[str, str]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.api}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as response:
            return json.load(response)

    def runs(self, deployment: str, *states: str) -> list[dict[str, Any]]:
        """Flow runs of a deployment in any of `states`, the earliest first."""
        body = {
            "deployments": {"name": {"any_": [deployment]}},
            "flow_runs": {"state": {"type": {"any_": list(states)}}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        found: list[dict[str, Any]] = self.post("/flow_runs/filter", body)
        return found

    def prefect(self, *arguments: str) -> str:
        """Output of a `prefect` command; the test fails when it does."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Installation]:
    """Server, work pool and deployments, in a home folder of their own."""
    folder = tmp_path_factory.mktemp("deployed")
    store = folder / "mlflow" / "mlflow.db"
    store.parent.mkdir()
    store.write_bytes(mlflow_template.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _environment(folder, store).items():
            patch.setenv(name, value)
        plan = prefect_plan(_free_port())
        with running([plan]):
            environment = {**os.environ, "PREFECT_API_URL": f"{plan.url}/api"}
            installed = Installation(f"{plan.url}/api", environment)
            installed.prefect("work-pool", "create", "scalingnote", "--type", "process")
            installed.prefect("deploy", "--all")
            yield installed


def test_schedules_limits_and_types_are_deployed(installation: Installation) -> None:
    deployments = {found["name"]: found for found in installation.post("/deployments/filter", {})}
    assert {name: found["global_concurrency_limit"]["limit"] for name, found in deployments.items()} == dict.fromkeys(NAMES, 1)
    assert [s["schedule"]["cron"] for s in deployments["retrain"]["schedules"]] == ["0 3 * * 0"]
    assert deployments["retrain"]["enforce_parameter_schema"]
    schema = deployments["retrain"]["parameter_openapi_schema"]
    assert schema["definitions"]["TowerConfig"]["properties"]["batch_size"]["minimum"] == 2


def test_a_wrong_parameter_is_refused_before_a_run(installation: Installation) -> None:
    deployment = next(d for d in installation.post("/deployments/filter", {}) if d["name"] == "retrain")
    body = {"parameters": {"config": {"towers": {"batch_size": 0}}}, "state": {"type": "SCHEDULED"}}
    with pytest.raises(urllib.error.HTTPError) as caught:
        installation.post(f"/deployments/{deployment['id']}/create_flow_run", body)
    assert caught.value.code == 409 and "minimum" in caught.value.read().decode()


@pytest.mark.parametrize("deployment", ["retrain", "promote"])
def test_the_schedule_makes_runs(installation: Installation, deployment: str) -> None:
    # With a library that Prefect cannot work with, all looks well and no run is ever made.
    assert _wait_for(lambda: installation.runs(deployment, "SCHEDULED", "PENDING", "RUNNING", "COMPLETED"), 45)


def test_a_worker_completes_a_run(installation: Installation, tmp_path: Path) -> None:
    installation.prefect("deployment", "run", "promote/promote", "--param", "name=nothing-yet")
    log = tmp_path / "worker.log"
    with log.open("wb") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "scalingnote", "--type", "process"],
            cwd=tmp_path,
            env={**installation.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        finished = _wait_for(lambda: installation.runs("promote", "COMPLETED", "FAILED", "CRASHED"), 75)
    finally:
        _stop(worker)
    text = log.read_text(encoding="utf-8", errors="replace")
    assert finished and finished[0]["state_type"] == "COMPLETED", text[-3000:]
    assert "Nothing to promote" in text


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """End the worker; one that was just given the next minute's run first waits for it, and this test does not."""
    worker.terminate()
    try:
        worker.wait(10)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def _environment(folder: Path, store: Path) -> dict[str, str]:
    return {
        "SCALINGNOTE_HOME": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{store}",
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(folder / "prefect" / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
        "DO_NOT_TRACK": "true",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait_for(ask: Callable[[], list[dict[str, Any]]], seconds: float) -> list[dict[str, Any]]:
    deadline = time.monotonic() + seconds
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found
