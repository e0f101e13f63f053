"""The deployments of prefect.yaml on a real local Prefect server: schedules make runs, and a worker finishes one."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from components.release.open import load_manifest
from components.tracking.runs import last_flow_run
from flows.config import load_config, preset_names
from flows.parameters import requested_config
from flows.servers import prefect_plan, running
from tests.browser.chromium import chromium, missing
from tests.browser.pages import Person
from tests.flows.cli_world import write_collection

ROOT = Path(__file__).resolve().parents[2]
POOLS = ("scalingnote", "scalingnote-gpu", "scalingnote-promote")
NAMES = ("retrain", "train", "refresh-index", "refresh-query-tower", "promote")
STATES = ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED", "CRASHED")
pytestmark = [pytest.mark.server, pytest.mark.slow]


@dataclass(frozen=True)
class Installation:
    """A Prefect server with our deployments, and the environment of its clients."""

    api: str
    environment: dict[str, str]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(f"{self.api}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(120):
            try:
                with opener.open(request, timeout=600) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if error.code != 503:  # its database is locked by another request
                    raise
            time.sleep(1)
        raise AssertionError(f"{path} was not answered: the server's database stayed locked")

    def get(self, path: str) -> Any:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.api}{path}", timeout=600) as response:
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

    def start(self, name: str, parameters: dict[str, Any]) -> str:
        """Make a run of the deployment `name`, to be started at once, and give its id."""
        deployment = next(found for found in self.post("/deployments/filter", {}) if found["name"] == name)
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.post(f"/deployments/{deployment['id']}/create_flow_run", body)["id"])

    def prefect(self, *arguments: str) -> str:
        """Output of a `prefect` command; the test fails when it does."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
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
            for pool in POOLS:
                installed.prefect("work-pool", "create", pool, "--type", "process")
            installed.prefect("deploy", "--all")
            yield installed


def test_schedules_limits_and_types_are_deployed(installation: Installation) -> None:
    deployments = {found["name"]: found for found in installation.post("/deployments/filter", {})}
    assert {name: found["global_concurrency_limit"]["limit"] for name, found in deployments.items()} == dict.fromkeys(NAMES, 1)
    crons = {name: [s["schedule"]["cron"] for s in found["schedules"] if s["active"]] for name, found in deployments.items()}
    assert crons == {"retrain": [], "train": [], "refresh-index": [], "refresh-query-tower": [], "promote": ["30 * * * *"]}
    assert {name: found["work_pool_name"] for name, found in deployments.items() if found["work_pool_name"] != "scalingnote"} == {
        "train": "scalingnote-gpu", "promote": "scalingnote-promote",
    }  # fmt: skip
    patient = {name for name, found in deployments.items() if found["job_variables"].get("env") == {"PREFECT_CLIENT_MAX_RETRIES": "7"}}
    assert patient == {*NAMES} - {"promote"}, "a server that restarts costs no training"
    assert all(found["enforce_parameter_schema"] for found in deployments.values())
    for name in ("retrain", "refresh-index", "refresh-query-tower"):
        form = deployments[name]["parameter_openapi_schema"]["properties"]
        assert form["preset"]["anyOf"][0]["enum"] == preset_names()
        assert all(form[parameter]["description"] for parameter in ("preset", "data", "name", "settings"))
    field = deployments["retrain"]["parameter_openapi_schema"]["properties"]["settings"]["properties"]["towers"]["properties"]["batch_size"]
    assert (field["minimum"], field["description"]) == (
        2,
        "Pairs that are negatives for each other (a whole number, at least 2 and at most 1000000; default 32)",
    )


def test_the_page_that_asks_a_host_of_its_makers_is_not_the_one_that_opens(installation: Installation) -> None:
    page = Installation(installation.api.removesuffix("/api"), installation.environment).get("/ui-settings")
    assert page["default_ui"] == "v1"


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("retrain", {"settings": {"towers.batch_size": 0}}, "less than the minimum of 2"),
        ("retrain", {"settings": {"towers": {"batch_size": 0}}}, "less than the minimum of 2"),
        ("retrain", {"settings": {"towers": {"stepz": 5}}}, "'stepz' was unexpected"),
        ("retrain", {"settings": "towers.steps=5"}, "is not of type 'object'"),
        ("retrain", {"preset": "dmo"}, "is not one of ['adopt', 'cluster', 'demo'"),
        (
            "refresh-query-tower",
            {"settings": {"encoding.shard_size": 5}},
            "one of the sections data, towers, distillation, evaluation, policy",
        ),
        ("retrain", {"again": ["evaluat"]}, "'evaluat' is not one of ['snapshot_data', "),
        ("train", {"again": ["evaluate"]}, "'evaluate' is not one of"),
        ("refresh-index", {"again": ["train_towers"]}, "'train_towers' is not one of"),
        ("promote", {"name": "My Retriever"}, "does not match"),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_run(installation: Installation, name: str, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        installation.start(name, parameters)
    assert caught.value.code == 409 and words in json.loads(caught.value.read())["detail"]


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_form_that_nobody_touched_asks_for_nothing_beside_the_deployments_own_parameters(
    installation: Installation, tmp_path: Path
) -> None:
    found = next(found for found in installation.post("/deployments/filter", {}) if found["name"] == "refresh-query-tower")
    with chromium(tmp_path / "profile") as browser:
        page = Person(browser, installation.api.removesuffix("/api"))
        browser.get(f"{page.url}/deployments/deployment/{found['id']}/run")
        page.see("Passes over the alignment queries (a whole number, at least 1 and at most 10000; default 4)", "Beat Bm25")
        browser.execute_script("[...document.querySelectorAll('button')].find(b => b.innerText.trim() == 'Submit').click()")
        runs = _wait_for(lambda: installation.runs("refresh-query-tower", "SCHEDULED", "PENDING", "RUNNING", "FAILED"))
    asked = runs[0]["parameters"]
    # A switch that the page sent as false without anybody's doing would switch gates off.
    assert [field for section in asked.pop("settings").values() for field, given in section.items() if given != {}] == []
    nothing = {"data": "", "preset": None, "new_teacher": False, "request": None, "again": []}
    assert asked == {"name": "retriever", "release": "champion", **nothing}


def test_the_schedule_makes_runs_and_one_that_is_off_makes_none(installation: Installation) -> None:
    # With a library that Prefect cannot work with, all looks well and no run is ever made.
    assert _wait_for(lambda: installation.runs("promote", "SCHEDULED", "PENDING", "RUNNING", "COMPLETED"))
    assert not installation.runs("retrain", "SCHEDULED", "PENDING", "RUNNING", "COMPLETED")


@pytest.fixture(scope="module")
def worker(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A worker of each pool; gives the file of what they and their runs print."""
    folder = tmp_path_factory.mktemp("worker")
    log = folder / "worker.log"
    with log.open("wb") as out:
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"],
                cwd=folder,
                env={**installation.environment, "PREFECT_WORKER_QUERY_SECONDS": "1"},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
            for pool in POOLS
        ]
    try:
        yield log
    finally:
        for process in processes:
            _stop(process)


def finished(installation: Installation, run_id: str) -> dict[str, Any]:
    """The flow run once it has ended."""
    body = {"flow_runs": {"id": {"any_": [run_id]}, "state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}}
    return next(iter(_wait_for(lambda: installation.post("/flow_runs/filter", body))), {})


def test_a_worker_completes_a_run(installation: Installation, worker: Path) -> None:
    run = finished(installation, installation.start("promote", {"name": "nothing-yet"}))
    text = worker.read_text(encoding="utf-8", errors="replace")
    assert run.get("state_type") == "COMPLETED", text[-3000:]
    assert "Nothing to promote" in text


@pytest.fixture(scope="module")
def built_run(installation: Installation, worker: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was asked of a run of the deployment `retrain`, and that run, which a worker has completed."""
    data = str(write_collection(tmp_path_factory.mktemp("data") / "clinic"))
    settings = {"towers": {"steps": 4, "batch_size": 8}, "distillation.epochs": 1, "evaluation.latency_queries": 20}
    asked = {"preset": "smoke", "data": data, "name": "deployed", "settings": settings}
    words = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in asked.items()]
    installation.prefect("deployment", "run", "retrain/retrain", *(part for word in words for part in ("-p", word)))
    waiting = _wait_for(lambda: [run for run in installation.runs("retrain", *STATES) if run["parameters"]["name"] == "deployed"])
    run = finished(installation, waiting[0]["id"])
    assert run.get("state_type") == "COMPLETED", worker.read_text(encoding="utf-8", errors="replace")[-3000:]
    return asked, run


def test_a_run_by_preset_data_name_and_settings_builds_what_the_command_line_would(
    installation: Installation, built_run: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SCALINGNOTE_HOME", "MLFLOW_TRACKING_URI"):
            patch.setenv(name, installation.environment[name])
        recorded = load_manifest("deployed", "candidate/1").config
    assert recorded == requested_config(**built_run[0]).model_dump(mode="json")


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_a_run_is_read_in_its_page_and_run_again_from_there(
    installation: Installation, built_run: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    run = built_run[1]["id"]
    asked = {"artifacts": {"flow_run_id": {"any_": [run]}, "key": {"any_": ["deployed-gates"]}}}
    (gates,) = installation.post("/artifacts/filter", asked)
    with chromium(tmp_path / "profile") as browser:
        page = Person(browser, installation.api.removesuffix("/api"))
        browser.get(f"{page.url}/runs/flow-run/{run}")
        page.see("retrain", "deployed clinic 20", "Completed", "[train_towers] started", "[evaluate] done in")
        assert _wait_for(lambda: _drawn(page, 9)), "a box for each step; which it is, the server's own graph says in test_prefect_page"
        _keep(browser, tmp_path / "logs.png")
        page.press("Artifacts")
        page.see("deployed-gates", "deployed-candidate", "deployed-mlflow", "Gates of candidate/1: ")
        _keep(browser, tmp_path / "artifacts.png")
        page.press("Retry")
        page.see("This will retry flow run")
        page.press("Retry")
        assert _wait_for(lambda: [found for found in [installation.get(f"/flow_runs/{run}")] if found["run_count"] == 2])
        again = finished(installation, run)
        page.press("Task Runs")
        page.see("Cached")
        _keep(browser, tmp_path / "again.png")
        browser.get(f"{page.url}/artifacts/artifact/{gates['id']}")
        page.see("retention", "ann_recall")
        _keep(browser, tmp_path / "gates.png")
    assert again["state_type"] == "COMPLETED" and again["run_count"] == 2
    tasks = installation.post("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}, "sort": "EXPECTED_START_TIME_DESC"})
    assert {task["state_name"] for task in tasks if task["name"] == "train_towers"} >= {"Cached"}, "made once: the second time it is found"


def _drawn(page: Person, count: int) -> bool:
    """Whether the graph shows so many steps that ended well: green boxes that are higher than a line and its arrows."""
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    picture = np.asarray(Image.open(io.BytesIO(page.find("canvas").screenshot_as_png)).convert("RGB"))
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    boxes = ndimage.find_objects(ndimage.label((green > 130) & (red < 70) & (blue < 110))[0])
    return sum(down.stop - down.start > 10 for down, _ in boxes) == count


def _keep(browser: Any, file: Path) -> None:
    """A screenshot, in the folder that pytest keeps of its last runs."""
    assert browser.save_screenshot(str(file)) and file.stat().st_size > 10_000


def test_an_approval_starts_the_promotion_of_its_retriever(installation: Installation) -> None:
    emit(installation, "release.approved", "shoes", "release/3 of 'shoes' is approved and waits to be promoted.")
    states = ("SCHEDULED", "PENDING", "RUNNING", "COMPLETED", "FAILED")
    runs = _wait_for(lambda: [run for run in installation.runs("promote", *states) if run["parameters"]["name"] == "shoes"])
    assert runs and runs[0]["parameters"] == {"name": "shoes", "retry": False}


def test_automations_tell_people_that_a_candidate_waits(installation: Installation, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []

    class People(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), People)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    code = f"from prefect.blocks.webhook import Webhook; print(Webhook(url={address!r}).save('scalingnote-people', overwrite=True))"
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, env=installation.environment, capture_output=True, text=True, timeout=600, check=True).stdout
    block = told.split()[-1]
    given = (ROOT / "docker" / "automations.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(given.replace("00000000-0000-0000-0000-000000000000", block), encoding="utf-8")
    installation.prefect("automation", "create", "--from-file", str(tmp_path / "mine.yaml"))
    made = {found["name"] for found in installation.post("/automations/filter", {})}
    assert {entry["name"] for entry in yaml.safe_load(given)["automations"]} < made
    said = 'candidate/2: pass. It waits for a "reviewer"'
    emit(installation, "candidate.registered", "shoes", said)
    try:
        assert _wait_for(lambda: heard) == [{"text": said}]
    finally:
        server.shutdown()
        server.server_close()


def emit(installation: Installation, event: str, name: str, message: str) -> None:
    """Send the event as a process of ours does."""
    code = f"from flows.reporting import EVENTS, _resource; from prefect.events import Event; e = Event(event=EVENTS + {event!r}, "
    code += f"resource=_resource({name!r}, {message!r})); from prefect.client.orchestration import get_client\n"
    code += "with get_client(sync_client=True) as c: c.request('POST', '/events', json=[e.model_dump(mode='json')])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=installation.environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_examples_of_job_variables_fit_the_templates_of_their_pools(installation: Installation, kind: str) -> None:
    installation.prefect("work-pool", "create", f"in-{kind}", "--type", kind)
    flow = installation.post("/flows/", {"name": "retrain"})["id"]
    variables = yaml.safe_load((ROOT / "docker" / "work-pools.yaml").read_text(encoding="utf-8"))[kind]
    asked = {"name": f"in-{kind}", "flow_id": flow, "work_pool_name": f"in-{kind}", "job_variables": variables}
    assert installation.post("/deployments/", asked)["job_variables"] == variables
    pool = installation.get(f"/work_pools/in-{kind}")["base_job_template"]["variables"]
    jsonschema.validate(variables, {**pool, "additionalProperties": False})  # the server lets a misspelt one pass
    with pytest.raises(urllib.error.HTTPError) as refused:
        installation.post("/deployments/", {**asked, "job_variables": {**variables, "image_pull_policy": "Sometimes"}})
    assert b"is not one of" in refused.value.read()


def test_a_run_that_is_cancelled_in_the_page_is_cancelled_in_mlflow_too(installation: Installation, worker: Path, tmp_path: Path) -> None:
    data = str(write_collection(tmp_path / "clinic"))
    asked = {"preset": "smoke", "data": data, "name": "stopped", "settings": {"towers": {"steps": 100_000, "batch_size": 8}}}
    run_id = installation.start("retrain", asked)
    task = {"flow_runs": {"id": {"any_": [run_id]}}, "task_runs": {"name": {"any_": ["train_towers"]}}}
    assert _wait_for(lambda: [found for found in installation.post("/task_runs/filter", task) if found["state_name"] == "Running"])
    if missing():
        installation.post(f"/flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    else:
        with chromium(tmp_path / "profile") as browser:
            page = Person(browser, installation.api.removesuffix("/api"))
            browser.get(f"{page.url}/runs/flow-run/{run_id}")
            page.press("Cancel")
            page.see("Cancel Flow Run")
            page.press("Confirm")
            finished(installation, run_id)
            page.see("Cancelled")
            _keep(browser, tmp_path / "cancelled.png")
    run = finished(installation, run_id)
    assert run["state_type"] == "CANCELLED", worker.read_text(encoding="utf-8", errors="replace")[-3000:]
    assert _wait_for(lambda: [found for found in installation.post("/task_runs/filter", task) if found["state_name"] == "Cancelled"])
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SCALINGNOTE_HOME", "MLFLOW_TRACKING_URI"):
            patch.setenv(name, installation.environment[name])
        last = last_flow_run("stopped")
    assert last is not None and (last["flow"], last["state"]) == ("retrain", "cancelled")


def test_parameters_that_only_the_flow_can_judge_fail_the_run_in_words(installation: Installation, worker: Path) -> None:
    both = {"preset": "smoke", "config": load_config("smoke").model_dump(mode="json")}
    run = finished(installation, installation.start("retrain", both))
    assert run.get("state_type") == "FAILED", worker.read_text(encoding="utf-8", errors="replace")[-3000:]
    assert "Both preset (smoke) and config are given" in run["state"]["message"]


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


def _wait_for(ask: Callable[[], Any]) -> Any:
    """What `ask` finds in the end; nothing after ten minutes."""
    deadline = time.monotonic() + 600
    while not (found := ask()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found
