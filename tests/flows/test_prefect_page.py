"""What engineers find on Prefect's page: the flow as a graph, states that agree with MLflow and `status`, lines, results, events."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import flows.runner
from components.artifacts import Artifact, seal
from components.errors import DataError
from components.tracking.store import clear_caches, client
from flows.runner import Step, run_step
from flows.servers import prefect_plan, running
from flows.why import STEPS
from tests.flows.cli_world import SMALL, environment, free_port, write_collection

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.server, pytest.mark.slow]
TO_INDEX = {
    ("snapshot_data", "validate_data"), ("snapshot_data", "train_towers"), ("validate_data", "train_towers"),
    ("snapshot_data", "encode_corpus"), ("train_towers", "encode_corpus"),
    ("snapshot_data", "build_index"), ("encode_corpus", "build_index"),
    ("snapshot_data", "encode_teacher_queries"), ("train_towers", "encode_teacher_queries"),
}  # fmt: skip
MEASURED = {("snapshot_data", "evaluate"), ("evaluate", "write_candidate"), ("validate_data", "write_candidate")}
STUDENT = {("distil_query_tower", "evaluate"), ("distil_query_tower", "write_candidate"), ("encode_teacher_queries", "distil_query_tower")}
COMPARED = {("snapshot_data", "compare_with_champion"), ("compare_with_champion", "write_candidate")}
RETRAIN = TO_INDEX | MEASURED | STUDENT | {
    *((step, "distil_query_tower") for step in ("snapshot_data", "train_towers", "encode_corpus", "build_index")),
    ("train_towers", "evaluate"), ("build_index", "evaluate"), ("build_index", "write_candidate"),
}  # fmt: skip
REFRESHED_INDEX = MEASURED | COMPARED | {
    ("snapshot_data", "validate_data"), ("snapshot_data", "encode_changes"), ("validate_data", "encode_changes"),
    ("snapshot_data", "refresh_index"), ("encode_changes", "refresh_index"),
    ("refresh_index", "evaluate"), ("refresh_index", "compare_with_champion"), ("refresh_index", "write_candidate"),
}  # fmt: skip
REFRESHED_STUDENT = MEASURED | COMPARED | STUDENT | {
    ("snapshot_data", "validate_data"), ("snapshot_data", "encode_teacher_queries"), ("validate_data", "encode_teacher_queries"),
    ("snapshot_data", "distil_query_tower"), ("distil_query_tower", "compare_with_champion"),
}  # fmt: skip


@dataclass(frozen=True)
class Page:
    """A Prefect server that outlives the commands, their home and their data."""

    api: str
    home: Path
    data: Path
    variables: dict[str, str]

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"content-type": "application/json"})
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600) as response:
            return json.load(response)

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "flows.cli.main", *map(str, words)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self.variables, stdout=pipe, stderr=pipe, text=True)

    def done(self, *words: str | Path, status: int = 0) -> tuple[str, str]:
        """Output and messages of a command that has to end with `status`."""
        process = self.start(*words)
        out, err = process.communicate(timeout=600)
        assert process.returncode == status, out + err
        return out, err

    def retrain(self, *more: str | Path) -> tuple[str, ...]:
        return ("retrain", *SMALL, "--data", str(self.data), *map(str, more))

    def runs(self) -> list[dict[str, Any]]:
        """All flow runs, the newest first."""
        found: list[dict[str, Any]] = self.ask("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC"})
        return found

    def tasks(self, run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        found = self.ask("/task_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return {task["name"]: task for task in found}

    @contextmanager
    def taking_events(self) -> Iterator[None]:
        """Flows of this process run on this server, and what becomes of their tasks goes there: Prefect's thread for events would go on
        sending to the server of the test that began it."""
        from prefect.events.worker import EventsWorker
        from prefect.settings import PREFECT_API_URL, temporary_settings

        EventsWorker.drain_all(timeout=30)
        with temporary_settings({PREFECT_API_URL: self.api}):
            yield
            EventsWorker.drain_all(timeout=30)

    def ended_tasks(self, count: int) -> dict[str, dict[str, Any]]:
        """Tasks of the newest run, which was of this process: it sends what became of them as events, and the server reads those later."""
        found: dict[str, dict[str, Any]] = {}
        deadline = time.monotonic() + 600
        while len(found) < count or any(task["state_type"] not in ("COMPLETED", "FAILED") for task in found.values()):
            assert time.monotonic() < deadline, found
            time.sleep(0.2)
            found = self.tasks(self.runs()[0])
        return found

    def edges(self, run: dict[str, Any]) -> set[tuple[str, str]]:
        nodes = self.ask(f"/flow_runs/{run['id']}/graph-v2")["nodes"]
        names = {key: node["label"] for key, node in nodes}
        assert len(set(names.values())) == len(names)
        return {(names[parent["id"]], node["label"]) for _, node in nodes for parent in node["parents"]}

    def lines(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("/logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        found = self.ask("/events/filter", {"filter": {"event": {"name": [f"scalingnote.{name}"]}}})
        return list(found["events"])

    def last_run(self) -> dict[str, str]:
        """What `status` says."""
        found: dict[str, str] = json.loads(self.done("status", "--json")[0])["last_run"]
        return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    home = folder / "home"
    variables = environment(home, mlflow_template)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"SCALINGNOTE_HOME": str(folder / "server"), "PREFECT_HOME": str(folder / "server" / "prefect")}.items():
            patch.setenv(name, value)
        (folder / "server" / "prefect").mkdir(parents=True)
        plan = prefect_plan(free_port())
        with running([plan]):
            api = f"{plan.url}/api"
            yield Page(api, home, write_collection(folder / "clinic"), {**variables, "PREFECT_API_URL": api})


@pytest.fixture(scope="module")
def released(page: Page) -> Page:
    """A first release, made on this server: the newest run is its promotion, the one before it its retraining."""
    page.done(*page.retrain())
    page.done("approve", "candidate/1", "--as", "Ada", "--override", "its gates do not matter here")
    page.done("promote")
    return page


def of_flow(page: Page, tag: str, number: int = 0) -> dict[str, Any]:
    """The newest run whose steps have one of this name, or the n-th before it."""
    return [run for run in page.runs() if tag in page.tasks(run)][number]


def test_the_graph_of_a_retraining_is_the_flow(released: Page) -> None:
    run = of_flow(released, "write_candidate")
    assert released.edges(run) == RETRAIN
    tasks = released.tasks(run)
    assert {task["task_key"] for task in tasks.values()} == {f"scalingnote.{name}" for name in tasks}
    assert set(tasks) <= set(STEPS) and {task["state_name"] for task in tasks.values()} == {"Completed"}


def test_a_run_has_a_name_tags_a_result_lines_and_tables(released: Page) -> None:
    run = of_flow(released, "write_candidate")
    assert run["name"].startswith("retriever clinic 20") and set(run["tags"]) == {"scalingnote", "retriever:retriever"}
    assert run["state"]["message"].startswith("candidate/1: ")
    told = [line["message"] for line in released.lines(run)]
    assert "[train_towers] started" in told and any(line.startswith("[evaluate] done in ") for line in told)
    by_step = {line["task_run_id"] for line in released.lines(run) if line["message"] == "[evaluate] started"}
    assert by_step == {released.tasks(run)["evaluate"]["id"]}
    kept = (released.home / "logs" / "runs.log").read_text(encoding="utf-8")
    assert " INFO " in kept and "[train_towers] started" in kept
    artifacts = released.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    shown = {artifact["key"]: artifact["data"] for artifact in artifacts if artifact["type"] != "progress"}  # of a step that was slow
    assert set(shown) == {"retriever-gates", "retriever-candidate", "retriever-mlflow"}
    assert {"retention", "ann_recall"} <= {gate["gate"] for gate in json.loads(shown["retriever-gates"])}
    assert "/#/experiments/" in shown["retriever-mlflow"] and "](#/" not in shown["retriever-candidate"]


def test_events_tell_of_candidate_approval_and_promotion(released: Page) -> None:
    (candidate,), (promoted,) = (wait_for(lambda name=name: released.events(name)) for name in ("candidate.registered", "release.promoted"))
    assert candidate["resource"]["scalingnote.name"] == "retriever" and candidate["payload"]["candidate"] == 1
    assert "candidate/1: " in candidate["resource"]["scalingnote.message"]
    assert promoted["resource"]["prefect.resource.id"] == "scalingnote.retriever.retriever" and promoted["payload"] == {"release": 1}
    (approved,) = wait_for(lambda: released.events("release.approved"))
    assert approved["payload"]["waiting"] == [1]


def test_cached_steps_keep_their_edges_and_a_step_is_made_again_on_request(released: Page) -> None:
    out, err = released.done(*released.retrain("--again", "build_index", "--again", "evaluate"))
    assert "[build_index] started: it was asked for again" in out and "[train_towers] unchanged, taken from the cache" in out, out + err
    run = of_flow(released, "build_index")
    asked = {(step, "compare_with_champion") for step in ("distil_query_tower", "build_index")}
    assert released.edges(run) == RETRAIN | COMPARED | asked
    states = {name: task["state_name"] for name, task in released.tasks(run).items()}
    assert states["train_towers"] == states["distil_query_tower"] == "Cached"
    assert states["build_index"] == states["evaluate"] == "Completed"


def test_the_graphs_of_both_refreshes_are_their_flows(released: Page, tmp_path: Path) -> None:
    newer = write_collection(tmp_path / "newer")
    corpus = newer / "corpus.jsonl"
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("A patient with stone", "A person with stone"), encoding="utf-8")
    released.done("refresh-index", "--data", newer)
    assert released.edges(of_flow(released, "refresh_index")) == REFRESHED_INDEX
    assert "changed" in of_flow(released, "refresh_index")["state"]["message"]
    released.done("refresh-query-tower", "--set", "distillation.epochs=2")
    assert released.edges(of_flow(released, "write_candidate")) == REFRESHED_STUDENT


@pytest.mark.parametrize("command", ["retrain", "refresh-index", "refresh-query-tower"])
def test_a_step_that_does_not_exist_is_one_sentence(released: Page, command: str) -> None:
    words = released.retrain() if command == "retrain" else (command, "--data", str(released.data))
    _, err = released.done(*words, "--again", "evaluat", status=2)
    assert f"{command} has no step 'evaluat'; did you mean 'evaluate'" in err and len(err.strip().splitlines()) == 1


def test_the_step_that_found_the_fault_is_the_red_one(page: Page, tmp_path: Path) -> None:
    broken = write_collection(tmp_path / "broken")
    with (broken / "qrels" / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("q1\tnowhere\t1\n")
    # As a worker does: the command line finds such data before it begins a run.
    call = f"from flows.retrain import retrain; retrain('smoke', {str(broken)!r}, 'broken')"
    code = f"from components import settings; settings.activate(); {call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=page.variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "breaks 1 rule" in done.stderr
    run = page.runs()[0]
    states = {name: (task["state_name"], task["state"]["message"]) for name, task in page.tasks(run).items()}
    assert run["state_name"] == states["validate_data"][0] == "Failed" and set(states) == {"snapshot_data", "validate_data"}
    assert "breaks 1 rule" in states["validate_data"][1]
    last = json.loads(page.done("status", "--name", "broken", "--json")[0])["last_run"]
    assert last["state"] == "failed" and "breaks 1 rule" in last["why"]
    assert in_mlflow(page, last["run_id"])[0] == "FAILED"
    assert step_in_mlflow(page, last["run_id"], "validate_data")[0] == "FAILED"
    artifacts = page.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    links = {artifact["key"]: artifact["data"] for artifact in artifacts}
    assert f"/runs/{last['run_id']})" in links["broken-mlflow"] and "/artifacts/validation/report.html)" in links["broken-report"]


def wait_for(ask: Callable[[], list[Any]]) -> list[Any]:
    deadline = time.monotonic() + 600
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def in_mlflow(page: Page, run_id: str) -> tuple[str, str]:
    """Status and reason of a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(page.home))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{page.home / 'mlflow' / 'mlflow.db'}")
        clear_caches()
        run = client().get_run(run_id)
        clear_caches()
    return run.info.status, run.data.tags.get("scalingnote.error", "")


def step_in_mlflow(page: Page, run_id: str, step: str) -> tuple[str, str]:
    """Status and reason of the newest run of a step of a flow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(page.home))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{page.home / 'mlflow' / 'mlflow.db'}")
        clear_caches()
        condition = f"tags.`mlflow.parentRunId` = '{run_id}' and tags.`scalingnote.step` = '{step}'"
        (found, *_) = client().search_runs([client().get_run(run_id).info.experiment_id], condition)
        clear_caches()
    return found.info.status, found.data.tags.get("scalingnote.error", "")


def begun(page: Page, *more: str) -> subprocess.Popen[str]:
    """A retraining whose towers are being trained for much longer than any test lasts."""
    process = page.start(*page.retrain("--set", "towers.steps=100000", *more))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[train_towers] started"):
            return process
    raise AssertionError(process.communicate())


def test_a_run_of_the_command_line_can_be_cancelled_in_the_page_and_shows_its_progress_there(page: Page) -> None:
    process = begun(page)
    run = page.runs()[0]

    def bars() -> list[dict[str, Any]]:
        found = page.ask("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        return [bar for bar in found if bar["type"] == "progress" and bar["data"] > 0]

    (bar,) = wait_for(bars)
    assert bar["key"] == "train-towers" and bar["description"].endswith(" of 100,000")
    assert wait_for(lambda: [later for later in bars() if later["data"] > bar["data"]]), "it moves"
    page.ask(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    process.communicate(timeout=600)
    assert process.returncode == 130
    assert page.ask(f"/flow_runs/{run['id']}")["state_name"] == "Cancelled"
    assert page.last_run()["state"] == "cancelled"


def test_a_step_whose_connection_fails_is_tried_again_and_one_with_wrong_data_is_not(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow

    attempts: dict[str, int] = {"flaky": 0, "wrong": 0}
    monkeypatch.setenv("SCALINGNOTE_HOME", str(page.home))
    monkeypatch.setattr(flows.runner, "RETRY_DELAYS", (0, 0))

    def flaky(folder: Path) -> Artifact:
        attempts["flaky"] += 1
        if attempts["flaky"] < 3:
            raise ConnectionResetError("reset by peer")
        return seal(folder, "any")

    def wrong(folder: Path) -> Artifact:
        attempts["wrong"] += 1
        raise DataError("the data is wrong")

    @flow(name="line")
    def line() -> None:
        run_step(Step("flaky", flaky))
        run_step(Step("wrong", wrong))

    with page.taking_events(), pytest.raises(DataError, match="the data is wrong"):
        line()
    assert attempts == {"flaky": 3, "wrong": 1}
    ends = {name: (task["state_name"], task["run_count"]) for name, task in page.ended_tasks(2).items()}
    assert ends == {"flaky": ("Completed", 3), "wrong": ("Failed", 1)}


def test_steps_that_use_the_card_have_its_tag_where_prefect_limits_it(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect import flow

    monkeypatch.setenv("SCALINGNOTE_HOME", str(page.home))

    @flow(name="line")
    def line() -> None:
        for name in ("encode_changes", "compare_with_champion"):
            run_step(Step(name, lambda folder: seal(folder, "any"), config={"of": "this test"}))

    with page.taking_events():
        line()
        assert [task["tags"] for task in page.ended_tasks(2).values()] == [[], []]
        limit = page.ask("/concurrency_limits/", {"tag": "gpu", "concurrency_limit": 1})
        line()
        assert {name: task["tags"] for name, task in page.ended_tasks(2).items()} == {
            "encode_changes": ["gpu"], "compare_with_champion": [],
        }  # fmt: skip
        assert limit["tag"] == "gpu"
        delete_limit(page)


def delete_limit(page: Page) -> None:
    request = urllib.request.Request(f"{page.api}/concurrency_limits/tag/gpu", method="DELETE")
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=600).close()


def test_killed_and_cancelled_mean_the_same_in_prefect_in_mlflow_and_in_status(page: Page) -> None:
    first = begun(page)
    time.sleep(1)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(timeout=600)
    killed, last = page.runs()[0], page.last_run()
    assert last["state"] == "killed", "status sees that its process is gone before anything else does"
    second = begun(page)  # whose start closes the run of the first
    run = page.ask(f"/flow_runs/{killed['id']}")
    assert run["state_name"] == "Crashed" and "was killed" in run["state"]["message"]
    assert page.tasks(run)["train_towers"]["state_name"] == "Crashed"
    assert in_mlflow(page, last["run_id"]) == ("KILLED", "its process was killed")
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=600)
    assert second.returncode == 130
    run, last = page.runs()[0], page.last_run()
    assert run["state_name"] == "Cancelled" and page.tasks(run)["train_towers"]["state_name"] == "Cancelled"
    assert last["state"] == "cancelled" and in_mlflow(page, last["run_id"]) == ("KILLED", "cancelled")
