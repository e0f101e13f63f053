"""Runs whose process was killed, and Prefect's history of long ago."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.tracking.store import client
from flows import servers
from flows.recorder import recorded_flow

ROOT = Path(__file__).resolve().parents[3]
LEFT_OPEN = """
import sys, time
from flows.recorder import recorded_flow
with recorded_flow("retriever", "retrain", {}) as recorder:
    print(recorder.run_id, flush=True)
    time.sleep(3600)
"""


def status(run_id: str) -> str:
    return str(client().get_run(run_id).info.status)


def test_the_next_flow_closes_the_run_of_a_killed_one_and_leaves_those_that_live(home: Path) -> None:
    command = [sys.executable, "-c", LEFT_OPEN]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, alive = (process.stdout.readline().strip() for process in processes if process.stdout)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait(600)
        assert (status(killed), status(alive)) == ("RUNNING", "RUNNING")
        with recorded_flow("retriever", "retrain", {}) as recorder:
            assert (status(killed), status(alive), status(recorder.run_id)) == ("KILLED", "RUNNING", "RUNNING")
        assert status(recorder.run_id) == "FINISHED"
        assert [path.stem for path in (home / "work" / "running").iterdir()] == [alive]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_flow_that_fails_leaves_no_mark(home: Path) -> None:
    with pytest.raises(ValueError, match="broken"), recorded_flow("retriever", "retrain", {}) as recorder:
        raise ValueError("broken")
    assert status(recorder.run_id) == "FAILED" and not list((home / "work" / "running").iterdir())


@pytest.mark.parametrize("enabled", ["events,flow_runs", "events"])
def test_runs_that_ended_before_the_retention_are_deleted_where_that_is_on(enabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.client.orchestration
    from prefect.settings import PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED, temporary_settings

    asked: list[Any] = []
    deleted: list[str] = []

    class History:
        def read_flow_runs(self, flow_run_filter: Any, limit: int) -> list[Any]:
            asked.append((flow_run_filter.end_time.before_, limit))
            return [SimpleNamespace(id="old")]

        def delete_flow_run(self, run_id: str) -> None:
            deleted.append(run_id)

    @contextmanager
    def history(sync_client: bool) -> Any:
        yield History()

    monkeypatch.setattr(prefect.client.orchestration, "get_client", history)
    with temporary_settings({PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED: enabled}):
        servers._delete_old_runs()
    assert deleted == (["old"] if "flow_runs" in enabled else [])
    if asked:
        ((before, limit),) = asked
        assert limit == servers.MOST_DELETED
        assert abs(datetime.now(UTC) - timedelta(days=90) - before) < timedelta(minutes=5)
