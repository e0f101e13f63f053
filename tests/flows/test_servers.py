"""The local servers: artifacts of embedded runs can be read in them, and what goes wrong is said in words."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from components.artifacts import Artifact, seal
from components.errors import ConfigError
from flows.cli.main import main
from flows.runner import Step, run_step
from flows.servers import ServerError, ServerPlan, check_ports, mlflow_plan, prefect_plan, running, serve

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1800  # seconds, with a machine whose cores others have taken
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with OPENER.open(urllib.request.Request(url, data, {"content-type": "application/json"}), timeout=600) as response:
        content = response.read()
    return json.loads(content) if response.headers["content-type"].startswith("application/json") else content


@pytest.mark.server
def test_mlflow_server_shows_and_copies_what_was_made_embedded(home: Path, tmp_path: Path) -> None:
    from components.tracking.store import client, experiment_id

    (tmp_path / "report.html").write_text("<b>evidence</b>")
    store = client()
    run = store.create_run(experiment_id("retriever"))
    store.log_artifact(run.info.run_id, str(tmp_path / "report.html"), "report")
    for name in ("retriever-candidate", "retriever-release"):
        store.create_registered_model(name)
    store.create_model_version("retriever-candidate", f"{run.info.artifact_uri}/report", run.info.run_id)

    plan = mlflow_plan(free_port())
    with running([plan]):
        listed = get(f"{plan.url}/api/2.0/mlflow/artifacts/list?run_id={run.info.run_id}&path=report")
        assert [file["path"] for file in listed["files"]] == ["report/report.html"]
        assert get(f"{plan.url}/get-artifact?run_uuid={run.info.run_id}&path=report/report.html") == b"<b>evidence</b>"
        # What the page's "Promote model" sends.
        copy = {"name": "retriever-release", "source": "models:/retriever-candidate/1"}
        assert get(f"{plan.url}/api/2.0/mlflow/model-versions/create", copy)["model_version"]["status"] == "READY"
        assert get(f"{plan.url}/model-versions/get-artifact?name=retriever-release&version=1&path=report.html") == b"<b>evidence</b>"
        made = get(f"{plan.url}/api/2.0/mlflow/experiments/create", {"name": "by hand"})["experiment_id"]
    assert not listens(plan.port)
    # An experiment made in the page stays readable without the server.
    assert store.get_experiment(made).artifact_location.startswith((home / "mlflow" / "artifacts").as_uri())


@pytest.mark.server
def test_ctrl_c_stops_the_server_and_its_children(home: Path) -> None:
    port = free_port()
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:1/api", "PYTHONPATH": str(ROOT)}
    code = f"from flows.servers import serve; serve({port}, {port + 1})"
    command = subprocess.Popen([sys.executable, "-c", code], cwd=home, env=environment, stdout=subprocess.PIPE, text=True)
    with command:
        assert command.stdout is not None
        told = [command.stdout.readline() for _ in range(4)]
        command.send_signal(signal.SIGTERM)  # as Ctrl-C; a shell in the background ignores SIGINT
        assert command.wait(600) == 0
    assert "http://127.0.0.1:1 (from PREFECT_API_URL; not started here, and it does not answer)" in told[0]
    assert f"http://127.0.0.1:{port}" in told[1]
    assert not listens(port)


@pytest.mark.parametrize("ended_by", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_and_its_children_end_with_the_process_that_started_them(home: Path, ended_by: signal.Signals) -> None:
    port = free_port()
    child = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-m', 'http.server', '-b', '127.0.0.1', '{port}']))"
    plan = f"ServerPlan('Test', {port}, (sys.executable, '-c', {child!r}), '/')"
    imports = "import sys, time; from flows.servers import running; from flows.servers import ServerPlan"
    code = f"{imports}\nwith running([{plan}]): print('runs', flush=True); time.sleep(300)"
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with command:
        assert command.stdout is not None and command.stdout.readline() == "runs\n"
        assert listens(port)
        command.send_signal(ended_by)
        assert command.wait(600) == -ended_by
    wait_until_gone(port)


@pytest.mark.server
def test_the_small_server_of_a_killed_command_ends_with_it(home: Path) -> None:
    code = (
        "import time; from components import settings; settings.activate(); from flows.servers import run_flow\n"
        "def flow():\n    from prefect.settings import PREFECT_API_URL\n"
        "    print(PREFECT_API_URL.value(), flush=True)\n    time.sleep(300)\nrun_flow('__main__:flow')"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    with command:
        assert command.stdout is not None
        api = command.stdout.readline().strip()
        assert api.startswith("http://127.0.0.1:") and get(f"{api}/health") is True
        command.kill()
    wait_until_gone(int(api.split(":")[2].removesuffix("/api")))


@pytest.mark.server
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_small_server_that_fails_in_mid_run_costs_no_work(home: Path, how: signal.Signals) -> None:
    """The flow begins again on another server, where its finished steps are found; the caller gets the result."""
    code = (
        "import os, sys; from components import settings; settings.activate(); from flows import servers\n"
        "from prefect import flow, task\nfrom pathlib import Path\n"
        "@task\ndef step():\n    return 7\n"
        "@flow\ndef line():\n    made = Path('made')\n    if not made.exists():\n        made.touch()\n"
        "        guard = servers._small[0].process.pid\n"  # which ends the server with us; the server is its child
        f"        os.kill(int(Path(f'/proc/{{guard}}/task/{{guard}}/children').read_text().split()[0]), {int(how)})\n"
        "    return {'made': step()}\n"
        "print(servers.run_flow('__main__:line'), flush=True)"
    )
    quick = {"PREFECT_CLIENT_MAX_RETRIES": "1", "PREFECT_API_REQUEST_TIMEOUT": "3", "PREFECT_SERVER_API_HOST": "127.0.0.1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")} | quick
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=home, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=600
    )
    assert "{'made': 7}" in done.stdout, done.stderr[-3000:]
    assert "another is started" in done.stderr


def once_told(folder: Path) -> Artifact:
    """A step's work, which lasts until a line comes in."""
    print("working", flush=True)
    sys.stdin.readline()
    return seal(folder, "any")


def line() -> dict[str, str]:
    """A flow of one step."""
    from prefect import flow

    @flow(name="line")
    def of_one_step() -> dict[str, str]:
        return {"made": run_step(Step("snapshot_data", once_told)).artifact.kind}

    return of_one_step()


@pytest.mark.server
@pytest.mark.parametrize("how", ["is silent", "starts again", "is gone"])
def test_a_server_of_a_team_that_fails_in_mid_step_costs_no_work(how: str, home: Path) -> None:
    plan = prefect_plan(free_port())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    impatient = {"is silent": {"PREFECT_API_REQUEST_TIMEOUT": "10"}, "is gone": {"PREFECT_CLIENT_MAX_RETRIES": "1"}}

    def begun(**variables: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        code = f"from components import settings; settings.activate(); from flows import servers; servers.ANSWER_SECONDS = {PATIENCE}; "
        command = [sys.executable, "-c", f"{code} print(servers.run_flow('{__name__}:line'), flush=True)"]
        return subprocess.Popen(command, cwd=home, env=environment | variables, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    with ExitStack() as block:
        (guard,) = block.enter_context(running([plan]))
        command = begun(PREFECT_API_URL=f"{plan.url}/api", **impatient.get(how, {}))
        assert command.stdout is not None and any(text == "working\n" for text in command.stdout), command.communicate()
        server = int(Path(f"/proc/{guard.pid}/task/{guard.pid}/children").read_text().split()[0])
        os.kill(server, signal.SIGSTOP if how == "is silent" else signal.SIGKILL)
        if how == "is silent":
            Timer(15, os.kill, (server, signal.SIGCONT)).start()
        else:
            guard.wait(PATIENCE)
        if how == "starts again":
            block.enter_context(running([plan]))
        out, err = command.communicate("go on\n", timeout=PATIENCE)
    if how == "is gone":
        assert "does not answer as one" in err and "Finished steps are kept: run it again." in err, out + err
        out, err = begun().communicate("", timeout=PATIENCE)
    assert "{'made': 'any'}" in out and "working" not in out, out + err


def test_port_in_use_names_the_option() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--mlflow-port: the port {port} is in use"):
            check_ports([mlflow_plan(port)])


def test_one_port_for_two_servers_is_refused() -> None:
    port = free_port()
    with pytest.raises(ConfigError, match=f"--prefect-port: got {port}, which MLflow takes already"):
        check_ports([mlflow_plan(port), prefect_plan(port)])


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 and at most 65535"):
        check_ports([mlflow_plan(port)])


def test_server_that_ends_while_starting_shows_its_last_words(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.servers.START_SECONDS", 1e6)  # it is not waited for
    plan = ServerPlan("Test", free_port(), (sys.executable, "-c", "import sys; sys.exit('no such database')"), "/health")
    with pytest.raises(ServerError, match="no such database"), running([plan]):
        pass


def test_the_log_of_a_server_that_died_is_kept_when_it_is_started_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.servers.START_SECONDS", 1e6)
    for words in ("the first reason", "the second reason"):
        plan = ServerPlan("Test", free_port(), (sys.executable, "-c", f"import sys; sys.exit('{words}')"), "/health")
        with pytest.raises(ServerError, match=words), running([plan]):
            pass
    kept = [(home / "logs" / name).read_text() for name in ("test-server.log.1", "test-server.log")]
    assert ["the first reason" in kept[0], "the second reason" in kept[1]] == [True, True]


def test_servers_of_a_team_are_shown_not_started(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:2/api")
    serve(free_port(), free_port())
    told = capsys.readouterr().out
    for server in ("http://127.0.0.1:1 (from MLFLOW_TRACKING_URI", "http://127.0.0.1:2 (from PREFECT_API_URL"):
        assert f"{server}; not started here, and it does not answer)" in told


def test_ui_tells_in_json_where_the_servers_are(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:1")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:2/api")
    assert main(["ui", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"mlflow": "http://127.0.0.1:1", "prefect": "http://127.0.0.1:2"}
    assert "not started here" in told.err and "secret" not in told.out + told.err


def wait_until_gone(port: int) -> None:
    deadline = time.monotonic() + 600
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not listens(port)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
