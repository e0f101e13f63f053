"""The run of a step while it works, as MLflow shows it."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components.progress import begin_step, measured
from components.tracking import live
from components.tracking.live import live_step, scratch
from components.tracking.runs import StepRecord, open_flow_run, open_step, record_step
from components.tracking.store import client
from tests.unit.tracking.test_tracking_runs import PROVENANCE, make_artifact


@pytest.fixture
def parent(home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The flow's run; every point is sent at once, and the machine is not watched."""
    monkeypatch.setattr(live, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(live, "_monitor", lambda run_id: None)
    return open_flow_run("retriever", "retrain", {}, PROVENANCE, {})


def nested(parent: str) -> list[Any]:
    experiment = client().get_run(parent).info.experiment_id
    return list(client().search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"))


def test_a_step_is_seen_while_it_trains_each_point_with_its_own_time(parent: str, tmp_path: Path) -> None:
    with live_step(partial(open_step, parent, "train_towers")) as step:
        assert not nested(parent), "a step that may be found finished has no run yet"
        begin_step()
        for number in (1, 2):
            measured(number, {"training/loss": 3.0 - number, "ndcg@10": 0.5})
            time.sleep(0.005)
            (run,) = nested(parent)
            assert (run.info.status, run.data.metrics["training/loss"]) == ("RUNNING", 3.0 - number)
    record = StepRecord("train_towers", {"steps": 2}, make_artifact(tmp_path / "x", "towers"), metrics={"training/loss": [2.0, 1.0]})
    assert record_step(parent, record, step) == step.run_id
    (run,) = nested(parent)
    history = client().get_metric_history(run.info.run_id, "training/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    assert history[0].timestamp < history[1].timestamp <= run.info.end_time
    assert (run.info.status, run.data.params["steps"], run.data.tags["scalingnote.step"]) == ("FINISHED", "2", "train_towers")
    assert run.data.tags["mlflow.source.name"] == "scalingnote retrain" and "ndcg_at_10" in run.data.metrics


def test_points_of_an_earlier_attempt_are_written_when_the_step_has_ended(parent: str, tmp_path: Path) -> None:
    with live_step(partial(open_step, parent, "train_towers")) as step:
        begin_step()
        measured(3, {"loss": 1.0})
    record = StepRecord("train_towers", {}, make_artifact(tmp_path / "x", "towers"), metrics={"loss": [3.0, 2.0, 1.0]})
    history = client().get_metric_history(record_step(parent, record, step), "loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_points_that_come_too_fast_are_thinned_but_the_last_stays(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FLUSH_SECONDS", 3600.0)
    with live_step(partial(open_step, parent, "train_towers")) as step:
        begin_step()
        for number in range(1, 501):
            measured(number, {"loss": float(number)})
    assert step.run_id is not None
    assert [point.step for point in client().get_metric_history(step.run_id, "loss")] == [1, 500]


@pytest.mark.parametrize("said", ["false", "0", None])
def test_the_machine_is_watched_unless_mlflows_own_variable_says_no(home: Path, monkeypatch: pytest.MonkeyPatch, said: str | None) -> None:
    if said is None:
        monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    else:
        monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", said)
    with live_step(partial(open_step, open_flow_run("retriever", "retrain", {}, PROVENANCE, {}), "train_towers")) as step:
        begin_step()
        assert (step._monitor is None) == (said is not None)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize(("error", "status"), [(ValueError("the loss is not a number"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_failed_step_has_a_run_that_says_why(parent: str, begun: bool, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), live_step(partial(open_step, parent, "validate_data")):
        if begun:
            begin_step()
        raise error
    (run,) = nested(parent)
    assert (run.info.run_name, run.info.status) == ("validate_data", status)
    assert run.data.tags["scalingnote.error"] == (str(error) or "KeyboardInterrupt")


def test_a_step_that_was_found_finished_opens_no_run_of_its_own(parent: str, tmp_path: Path) -> None:
    with live_step(partial(open_step, parent, "train_towers")) as step:
        measured(1, {"loss": 1.0})
    record = StepRecord("train_towers", {}, make_artifact(tmp_path / "x", "towers"), cached=True)
    record_step(parent, record, step)
    (run,) = nested(parent)
    assert step.run_id is None and "loss" not in run.data.metrics and run.data.tags["scalingnote.cached"] == "true"


def test_a_store_that_does_not_answer_costs_the_curve_and_not_the_training(
    parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def silent(*_: Any, **__: Any) -> None:
        raise ConnectionError("API request to http://ada:secret@mlflow:5000/api failed")

    with caplog.at_level(logging.WARNING), live_step(partial(open_step, parent, "train_towers")) as step:
        begin_step()
        with monkeypatch.context() as patched:
            patched.setattr(type(client()), "log_batch", silent)
            measured(1, {"loss": 2.0})
            measured(2, {"loss": 1.0})
    said = "MLflow does not show how this step goes on: API request to http://ada:***@mlflow:5000/api failed"
    assert [record.message for record in caplog.records] == [said], "no password, which would stand in the log of a worker"
    record = StepRecord("train_towers", {}, make_artifact(tmp_path / "x", "towers"), metrics={"loss": [2.0, 1.0]})
    history = client().get_metric_history(record_step(parent, record, step), "loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]


def test_without_an_observer_nothing_is_told() -> None:
    begin_step()
    measured(1, {"loss": 1.0})


def test_folders_of_killed_processes_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    """A killed `replay --build` left a whole home in the work folder for ever."""
    code = (
        "import sys, time; from pathlib import Path; from components.tracking.live import scratch\n"
        "with scratch(Path(sys.argv[1]), 'replay-') as folder:\n"
        "    (folder / 'home').mkdir(); print(folder.name, flush=True); time.sleep(600)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    killed, living = (process.stdout.readline().strip() for process in processes if process.stdout)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].communicate()
    (tmp_path / "replay-of-an-earlier-version").mkdir()  # nothing says whether somebody works there
    with scratch(tmp_path, "replay-") as own, scratch(tmp_path, "replay-") as other:
        assert own.is_dir() and other.is_dir() and not (tmp_path / killed).exists() and (tmp_path / living / "home").is_dir()
    assert not own.exists()
    processes[1].kill()
    processes[1].communicate()
    with pytest.raises(ValueError, match="of the block"), scratch(tmp_path, "replay-"):
        raise ValueError("of the block")
    assert [path.name for path in tmp_path.iterdir()] == ["replay-of-an-earlier-version"]
