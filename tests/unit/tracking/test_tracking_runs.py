"""Runs of flows and steps: parameters, metrics, lineage and files, as MLflow gives them back."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from components import settings
from components.artifacts import Artifact, seal
from components.tracking import labels, runs
from components.tracking.provenance import Provenance, collect_provenance
from components.tracking.registry import register
from components.tracking.runs import StepRecord, close_flow_run, close_left_run, log_evidence, open_flow_run, record_step
from components.tracking.store import TrackingError, client
from flows.cli.main import main

PROVENANCE = Provenance(
    code_revision="abc",
    dirty=True,
    patch_digest="d" * 64,
    code_digest="c" * 64,
    lock_digest=None,
    python="3.11",
    packages={},
    platform="test",
    user="somebody",
)


def make_artifact(folder: Path, kind: str, content: str = "x", **attributes: Any) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text(content)
    return seal(folder, kind, counts={"rows": 3}, attributes=attributes)


def open_run(**parameters: Any) -> str:
    return open_flow_run("retriever", "retrain", parameters, PROVENANCE, {"release_type": "full"})


def test_flow_run_carries_parameters_provenance_and_status(home: Path) -> None:
    run_id = open_run(towers={"steps": 7, "base_model": "tiny"})
    close_flow_run(run_id, "FAILED", "no space left")
    run = client().get_run(run_id)
    assert run.data.params == {"towers.steps": "7", "towers.base_model": "tiny"}
    assert run.data.tags["scalingnote.dirty"] == "true"
    assert run.data.tags["scalingnote.code_revision"] == "abc"
    assert run.data.tags["scalingnote.release_type"] == "full"
    assert run.data.tags["mlflow.user"] == "somebody"
    assert run.data.tags["scalingnote.error"] == "no space left"
    assert run.info.status == "FAILED"
    assert {entry.path for entry in client().list_artifacts(run_id)} == {"provenance.json", "config.json"}
    assert run.info.artifact_uri.startswith((home / "mlflow" / "artifacts").as_uri())


def test_an_experiment_says_what_it_is_of(home: Path) -> None:
    from components.tracking.promotion_records import ensure_chain

    open_run()
    ensure_chain("retriever")
    for name, words in (("retriever", "A run for each flow of `retriever`"), ("retriever-promotions", "Who promoted which release")):
        tags = client().get_experiment_by_name(name).tags
        assert words in tags["mlflow.note.content"] and tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_run_that_its_process_left_open_is_closed_with_its_steps(home: Path) -> None:
    left, finished = open_run(), open_run()
    experiment = client().get_run(left).info.experiment_id
    step = client().create_run(experiment, tags={"mlflow.parentRunId": left}).info.run_id
    close_flow_run(finished, "FINISHED")
    for run_id in (left, finished, "0" * 32):
        close_left_run(run_id)
    assert [client().get_run(run_id).info.status for run_id in (left, step, finished)] == ["KILLED", "KILLED", "FINISHED"]
    assert client().get_run(left).data.tags["scalingnote.error"] == "its process was killed"


def test_a_flow_that_fails_leaves_no_step_open(home: Path) -> None:
    failed, other = open_run(), open_run()
    experiment = client().get_run(failed).info.experiment_id
    steps = [client().create_run(experiment, tags={"mlflow.parentRunId": run}).info.run_id for run in (failed, failed, other)]
    client().set_terminated(steps[0], "FINISHED")
    close_flow_run(failed, "FAILED", "no space left")
    assert [client().get_run(run_id).info.status for run_id in steps] == ["FINISHED", "FAILED", "RUNNING"]


def test_step_is_nested_with_numbers_data_and_report(home: Path, tmp_path: Path) -> None:
    parent = open_run()
    dataset = make_artifact(tmp_path / "data", "dataset", name="icd10cm")
    report = make_artifact(tmp_path / "report", "evaluation")
    record = StepRecord("evaluate", {"depth": 100}, report, {"dataset": dataset}, {"ndcg@10": 0.5}, 2.5, flow_run_id="flow-1")
    run = client().get_run(record_step(parent, record))
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert run.data.tags[labels.DIGEST] == report.digest
    assert run.data.tags["scalingnote.input.dataset"] == dataset.digest
    assert run.data.tags["scalingnote.flow_run_id"] == "flow-1"
    assert run.data.metrics == {"ndcg_at_10": 0.5, "count.rows": 3.0, "seconds": 2.5}
    assert run.data.params["depth"] == "100"
    assert run.info.status == "FINISHED"
    assert run.info.end_time - run.info.start_time == 2500
    used = run.inputs.dataset_inputs[0]
    assert used.dataset.name == "icd10cm"
    assert dataset.digest.startswith(used.dataset.digest)
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "dataset", "sha256": dataset.digest}
    assert {entry.path for entry in client().list_artifacts(run.info.run_id, "evaluation")} == {
        "evaluation/data.txt",
        "evaluation/manifest.json",
    }


def test_a_list_becomes_a_curve_that_is_thinned_when_it_is_long(home: Path, tmp_path: Path) -> None:
    towers = make_artifact(tmp_path / "towers", "towers")
    curves = {"loss": [3.0, 2.5, 2.0], "long": [float(n) for n in range(2_500)], "none": []}
    run_id = record_step(open_run(), StepRecord("train_towers", {}, towers, metrics=curves))
    history = client().get_metric_history(run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.5), (3, 2.0)]
    long = {point.step: point.value for point in client().get_metric_history(run_id, "long")}
    assert len(long) <= 1001
    assert (long[1], long[2_500]) == (0.0, 2_499.0)
    assert "none" not in client().get_run(run_id).data.metrics


def test_the_page_of_the_flow_shows_the_evidence(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "candidate"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "1.svg").write_text("<svg/>")
    (folder / "report.html").write_text("<p>evidence</p>")
    (folder / "release.json").write_text("{}")
    run_id = open_run()
    log_evidence(run_id, folder, {"minus_champion/ndcg@10": -0.1}, "## Verdict")
    run = client().get_run(run_id)
    assert run.data.metrics == {"minus_champion/ndcg_at_10": -0.1}
    assert run.data.tags["mlflow.note.content"] == "## Verdict"
    paths = {entry.path for entry in client().list_artifacts(run_id)} | {entry.path for entry in client().list_artifacts(run_id, "plots")}
    assert {"report.html", "plots/1.svg"} <= paths and "release.json" not in paths


def test_cached_step_points_to_the_run_with_its_files(home: Path, tmp_path: Path) -> None:
    report = make_artifact(tmp_path / "report", "validation")
    first = record_step(open_run(), StepRecord("validate", {}, report))
    again = record_step(open_run(), StepRecord("validate", {}, report, cached=True))
    assert client().get_run(again).data.tags[labels.FILES_RUN] == first
    assert client().list_artifacts(again) == []


def test_cached_step_uploads_when_no_run_holds_its_files(home: Path, tmp_path: Path) -> None:
    report = make_artifact(tmp_path / "report", "validation")
    run_id = record_step(open_run(), StepRecord("validate", {}, report, cached=True))
    assert labels.FILES_RUN not in client().get_run(run_id).data.tags
    assert [entry.path for entry in client().list_artifacts(run_id)] == ["validation"]


def test_model_registered_after_its_consumer_is_linked_to_it(home: Path, tmp_path: Path) -> None:
    parent = open_run()
    tower = make_artifact(tmp_path / "tower", "encoder", "tower", space_id="s")
    student = make_artifact(tmp_path / "student", "encoder", "student", space_id="s")
    made = record_step(parent, StepRecord("train", {}, tower))
    used = record_step(parent, StepRecord("distil", {}, student, {"teacher": tower}))
    version = register("retriever-query-tower", tower, made, {}, {})
    register("retriever-query-encoder", student, used, {"teacher": version}, {})
    produced = client().get_run(made).outputs.model_outputs
    consumed = client().get_run(used).inputs.model_inputs
    assert [model.model_id for model in produced] == [model.model_id for model in consumed]
    assert not client().get_run(used).inputs.dataset_inputs
    later = client().get_run(record_step(open_run(), StepRecord("distil", {}, student, {"teacher": tower}, cached=True)))
    assert [model.model_id for model in later.inputs.model_inputs] == [model.model_id for model in produced]
    assert len(later.outputs.model_outputs) == 1


def test_no_active_run_is_left_and_other_threads_work(home: Path, tmp_path: Path) -> None:
    import mlflow

    parent = open_run()
    artifact = make_artifact(tmp_path / "a", "dataset")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(record_step(parent, StepRecord("snapshot", {}, artifact))))
    thread.start()
    thread.join()
    assert client().get_run(found[0]).data.tags["mlflow.parentRunId"] == parent
    assert mlflow.active_run() is None


def test_names_and_long_values_are_made_acceptable() -> None:
    assert labels.name("recall@10/é*") == "recall_at_10/é_"
    flat = labels.flatten({"a": {"b": [1, 2]}, "long": "x" * 7000})
    assert flat["a.b"] == "[1, 2]"
    assert len(flat["long"]) == labels.MAX_PARAMETER
    assert flat["long"].endswith("[cut off]")
    assert labels.prefixed({"a": True, "mlflow.user": "u", "none": None}) == {"scalingnote.a": "true", "mlflow.user": "u"}


def test_provenance_of_this_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    provenance = collect_provenance()
    assert provenance.user == "ada"
    assert len(provenance.code_digest) == 64
    assert provenance.dirty == (provenance.patch_digest is not None)
    assert "pydantic" in provenance.packages


def dated(flow: str, start: int) -> str:
    """The finished run of a flow that began then, in milliseconds, by the clock of its machine."""
    run_id = open_flow_run("retriever", flow, {"seed": start}, PROVENANCE, {})
    with sqlite3.connect(settings.tracking_uri().removeprefix("sqlite:///")) as store:
        store.execute("UPDATE runs SET start_time = ? WHERE run_uuid = ?", (start, run_id))
    close_flow_run(run_id, "FINISHED")
    return run_id


@pytest.mark.parametrize("far", [3_600_000, 10**13, 10**17])
@pytest.mark.parametrize("read", ["without MLflow", "by MLflow"])
def test_a_run_whose_start_is_still_to_come_is_not_the_newest_for_ever(
    read: str, far: int, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if read == "by MLflow":
        monkeypatch.setattr(runs, "reader", lambda: None)
    now = int(time.time() * 1000)
    dated("adopt", now - 120_000)
    ahead = dated("adopt", min(now + far, 253_402_300_799_000))
    assert (last := runs.last_flow_run("retriever")) and (last["run_id"], bool(last["ahead"])) != (ahead, False)
    second = dated("adopt", now - 60_000)
    last = runs.last_flow_run("retriever")
    assert last and last["run_id"] == second and last["ahead"].startswith("2" if far < 10**17 else "9999")
    found = runs.newest_flow_run("retriever", "adopt")
    assert found and found.run_id == second
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert f"Warning: a run is dated {last['ahead']} UTC, which is still to come" in said and f"of {last['started']} UTC, finished" in said


def test_where_all_runs_are_still_to_come_the_newest_of_them_is_told(home: Path) -> None:
    """The clock of this machine is behind."""
    only = dated("adopt", int(time.time() * 1000) + 86_400_000)
    last, found = runs.last_flow_run("retriever"), runs.newest_flow_run("retriever", "adopt")
    assert last and found and last["run_id"] == found.run_id == only and last["ahead"] == last["started"]


def test_a_store_in_trouble_is_not_taken_for_one_without_the_configuration_of_a_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adopted vectors were said not to be there, where the server answered with an error."""
    run_id = open_flow_run("retriever", "adopt", {"name": "retriever"}, PROVENANCE, {})
    close_flow_run(run_id, "FINISHED")
    trouble = requests.HTTPError("500 Server Error for url: http://ada:secret@mlflow:5000/api")

    def download(*_: object) -> str:
        raise trouble

    monkeypatch.setattr(runs, "local_path", lambda _: None)
    monkeypatch.setattr(client(), "download_artifacts", download)
    with pytest.raises(TrackingError, match=r"Could not read a run at .*500 Server Error") as told:
        runs.newest_flow_run("retriever", "adopt")
    assert "secret" not in str(told.value) and "free space" not in str(told.value)
    monkeypatch.setattr(client(), "list_artifacts", lambda _: [])
    found = runs.newest_flow_run("retriever", "adopt")
    assert found is not None and found.config is None
