"""`docker/compose.yaml` as far as it can be tried without a container engine: by the schema of compose files, and by starting its servers.

The servers run here with the commands and settings of the file. Three things stand in for what only containers have: a folder for each
volume, SQLite for Postgres, and loopback with a free port for the network.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest
import yaml

from tests.auth_world import OPENER, ROOT, free_port, know_the_app

BUSY_CALLS = 60  # Prefect answers 503 while its database is busy, and its own client asks again as well
pytestmark = [pytest.mark.server, pytest.mark.slow]
SCHEMA = ROOT / "tests" / "compose" / "compose-spec.json"
REQUIRED = ("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "PREFECT_DB_PASSWORD", "PREFECT_API_PASSWORD")
GIVEN = {  # what docker/README.md puts into docker/.env
    **dict.fromkeys(REQUIRED, "0123456789abcdef"),
    "MLFLOW_APP_NAME": "scalingnote",
    "MLFLOW_AUTH_ADMIN_PASSWORD": "a password of the administrator",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "fedcba9876543210",
    "MLFLOW_TRAINER_USERNAME": "training",
    "MLFLOW_TRAINER_PASSWORD": "a password of the trainer",
    "MLFLOW_PROMOTER_USERNAME": "promotion",
    "MLFLOW_PROMOTER_PASSWORD": "a password of the promoter",
    "SCALINGNOTE_POLICY": "/policies",
}
_VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?+])([^}]*))?\}")


def filled(text: str, given: Mapping[str, str]) -> str:
    """`text` with its variables, as compose puts them in; KeyError names one that is required and not given."""

    def value(found: re.Match[str]) -> str:
        name, how, other = found.groups()
        there = given.get(name, "")
        if how == ":?" and not there:
            raise KeyError(name)
        return (other if there else "") if how == ":+" else there or (other if how == ":-" else "")

    return _VARIABLE.sub(value, text)


def compose(given: Mapping[str, str]) -> Any:
    """The file as compose reads it."""

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: fill(value) for key, value in part.items()}
        if isinstance(part, list):
            return [fill(value) for value in part]
        return filled(part, given) if isinstance(part, str) else part

    return fill(yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")))


def problems(file: Any) -> list[str]:
    from jsonschema import Draft7Validator

    found = Draft7Validator(json.loads(SCHEMA.read_text(encoding="utf-8"))).iter_errors(file)
    return [f"{'/'.join(map(str, error.path))}: {error.message[:200]}" for error in found]


@pytest.mark.parametrize("given", [GIVEN, {name: GIVEN[name] for name in REQUIRED}])
def test_the_file_is_valid_with_sign_in_and_without(given: dict[str, str]) -> None:
    assert problems(compose(given)) == []
    wrong = copy.deepcopy(compose(given))
    wrong["services"]["worker"]["comand"] = "no such field"
    assert problems(wrong)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_password_stops_it_by_name(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose({key: value for key, value in GIVEN.items() if key != name})


def test_whoever_trains_has_another_account_pool_and_volume_than_whoever_promotes() -> None:
    services = compose(GIVEN)["services"]
    trainer, promoters = services["worker"], (services["promote"], services["promotion-worker"])
    name = "MLFLOW_TRACKING_USERNAME"
    assert trainer["environment"][name] == "training" and {p["environment"][name] for p in promoters} == {"promotion"}
    assert GIVEN["MLFLOW_PROMOTER_PASSWORD"] not in str(trainer) + str(services["deploy"])
    assert all(GIVEN["MLFLOW_TRAINER_PASSWORD"] not in str(p) for p in promoters)
    volumes = {v.split(":")[0] for v in trainer["volumes"] if not v.startswith(".")}
    assert volumes.isdisjoint(v.split(":")[0] for p in promoters for v in p["volumes"] if not v.startswith("."))
    pools = set(re.findall(r"work-pool create (\S+)", services["deploy"]["command"][2]))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert {entry["work_pool"]["name"] for entry in deployments} <= pools
    served = {service["command"][4] for service in (trainer, services["promotion-worker"])}
    assert served == {"scalingnote", "scalingnote-promote"} <= pools
    policies = [v for v in services["mlflow"]["volumes"] if ":/policies" in v]
    assert policies and policies[0].endswith(":ro") and services["mlflow"]["environment"]["SCALINGNOTE_POLICY"] == "/policies"
    assert all(policies[0] in p["volumes"] for p in promoters) and policies[0] not in trainer["volumes"]


def test_runs_in_containers_use_the_image_the_network_and_the_volume_of_the_file() -> None:
    """They named `scalingnote:latest`, which compose does not build, and were never to fetch one."""
    file, docker = compose(GIVEN), yaml.safe_load((ROOT / "docker" / "work-pools.yaml").read_text(encoding="utf-8"))["docker"]
    built = {service["image"] for service in file["services"].values() if "build" in service}
    assert built == {docker["image"]} and docker["networks"] == [f"{file['name']}_default"]
    named = [volume.partition(":")[0] for volume in docker["volumes"] if not volume.startswith("/")]
    assert named == [f"{file['name']}_state"] and "state" in file["volumes"]
    assert f"-t {docker['image']} " in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_models_of_a_hub_outlive_the_container_and_may_be_gated() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    (home,), (cache,) = (re.findall(rf"\b{name}=(\S+)", text) for name in ("SCALINGNOTE_HOME", "HF_HOME"))
    services = compose({**GIVEN, "HF_TOKEN": "hf_abc"})["services"]
    for name in ("worker", "promote", "promotion-worker"):
        assert any(volume.endswith(f":{home}") for volume in services[name]["volumes"]) and cache.startswith(f"{home}/")
        assert services[name]["environment"]["HF_TOKEN"] == "hf_abc"


def test_links_of_runs_lead_to_the_port_of_the_host() -> None:
    services = compose(GIVEN)["services"]
    published = services["mlflow"]["ports"][0].removesuffix(":5000")
    for name in ("worker", "promote", "promotion-worker"):
        assert services[name]["environment"]["SCALINGNOTE_MLFLOW_PAGE"] == f"http://{published}"


def test_no_service_leaves_a_volume_without_a_name_or_a_process_without_a_parent() -> None:
    file, text = compose(GIVEN), (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert not re.search(r"^VOLUME", text, re.MULTILINE)
    assert all(service["init"] is True for service in file["services"].values() if "build" in service)
    homes = {"worker", "promote", "promotion-worker", "prefect"}  # what keeps something below /state has it on a volume
    assert homes == {name for name, service in file["services"].items() if any(":/state" in v for v in service.get("volumes", ()))}


def test_what_is_secret_does_not_get_into_the_image() -> None:
    left_out = (ROOT / "docker" / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert {".env", "docker/.env", "**/*.pem", ".scalingnote"} <= set(left_out)


@dataclass(frozen=True)
class Service:
    """A server of the file that runs here; `volumes` maps a folder of its container to one of the test."""

    url: str
    volumes: Mapping[str, Path]

    def call(self, method: str, path: str, account: str = "", body: Any = None) -> tuple[int, Any]:
        headers = {"content-type": "application/json"}
        if account:
            headers["authorization"] = "Basic " + b64encode(account.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        for again in range(BUSY_CALLS, -1, -1):
            status, content = self._answered(Request(self.url + path, data, headers, method=method))
            if status != 503 or not again:
                break
            time.sleep(1)
        return status, content

    def _answered(self, request: Request) -> tuple[int, Any]:
        try:
            with OPENER.open(request, timeout=600) as answer:
                content = answer.read()
                return answer.status, json.loads(content) if content.startswith((b"{", b"[")) else content
        except HTTPError as error:
            return error.code, error.read()


@contextmanager
def started(name: str, folder: Path, database: str, volumes: Mapping[str, Path]) -> Iterator[Service]:
    """The service `name`, until the block ends."""
    service, port = compose(GIVEN)["services"][name], free_port()

    def here(text: str, spelled: Callable[[str], str] = str) -> str:
        for place, local in {**volumes, "/app": ROOT}.items():
            text = re.sub(rf"(?<![\w/]){place}(?=/|\s|$)", lambda _, local=local: spelled(str(local)), text)  # type: ignore[misc]
        text = re.sub(r"postgresql\+\w+://\S+", lambda _: spelled(database), text)
        return re.sub(r"(--port )\S+", rf"\g<1>{port}", text.replace("0.0.0.0", "127.0.0.1"))

    given = {key: here(str(value)) for key, value in service["environment"].items()}
    if file := service.get("env_file"):
        lines = (ROOT / "docker" / file).read_text(encoding="utf-8").splitlines()
        given |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    spelled = shlex.quote if service["command"][:2] == ["sh", "-c"] else str
    command = [here(part, spelled) for part in service["command"]]
    command = [str(port) if part.isdigit() else part for part in command]
    kept = ("PATH", "HOME", "PYTHONPATH", "LANG", "TMPDIR", "NO_PROXY", "no_proxy")
    environment = {key: os.environ[key] for key in kept if key in os.environ} | given
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    at = Path(here(service["working_dir"])) if "working_dir" in service else folder
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=at, env=environment, stdout=log, stderr=log, start_new_session=True)
    running = Service(f"http://127.0.0.1:{port}", volumes)
    asked = re.findall(r"http://127.0.0.1:\d+(/\S+?)'", service["healthcheck"]["test"][3])[0]
    try:
        while not _answers(running, asked):
            assert process.poll() is None, (folder / f"{name}.log").read_text(errors="replace")[-2000:]
            time.sleep(0.3)
        yield running
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(600)


def _answers(service: Service, path: str) -> bool:
    try:
        return service.call("GET", path)[0] == 200
    except (URLError, OSError):
        return False


def test_mlflow_asks_who_you_are_and_hands_out_the_policies(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_the_app(tmp_path / "app", monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}{os.pathsep}{ROOT}")
    volumes = {f"/{name}": tmp_path / name for name in ("artifacts", "audit", "policies")}
    for place in volumes.values():
        place.mkdir()
    (volumes["/policies"] / "ours.yaml").write_text("version: ours\n")
    database = tmp_path / "mlflow.db"
    database.write_bytes(mlflow_template.read_bytes())
    with started("mlflow", tmp_path, f"sqlite:///{database}", volumes) as server:
        asked = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        assert server.call("GET", asked)[0] == 401
        admin = f"admin:{GIVEN['MLFLOW_AUTH_ADMIN_PASSWORD']}"
        assert server.call("GET", asked, admin)[0] == 200
        policies = "/ajax-api/2.0/scalingnote/policies"
        assert server.call("GET", policies)[0] == 401
        assert server.call("GET", policies, admin) == (200, {"policies": {"ours.yaml": {"version": "ours"}}})
        assert server.call("POST", "/api/2.0/mlflow/experiments/create", admin, {"name": "one"})[0] == 200
        assert (volumes["/audit"] / "audit.jsonl").read_text().count('"create_experiment"') == 1
        assert (volumes["/audit"] / "basic_auth.db").exists()  # users lie on the volume too


def test_prefect_asks_for_a_password_and_keeps_its_leases_on_the_volume(tmp_path: Path) -> None:
    volumes = {"/state": tmp_path / "state"}
    volumes["/state"].mkdir()
    account = f"prefect:{GIVEN['PREFECT_API_PASSWORD']}"
    with started("prefect", tmp_path, f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}", volumes) as server:
        assert server.call("POST", "/api/deployments/filter", body={})[0] == 401
        assert server.call("POST", "/api/deployments/filter", "prefect:wrong", {})[0] == 401
        assert server.call("POST", "/api/deployments/filter", account, {}) == (200, [])
        limit = {"name": "gpu", "limit": 1, "active": True}
        assert server.call("POST", "/api/v2/concurrency_limits/", account, limit)[0] == 201
        taken = {"names": ["gpu"], "slots": 1, "mode": "concurrency", "lease_duration": 300}
        assert server.call("POST", "/api/v2/concurrency_limits/increment-with-lease", account, taken)[0] == 200
        assert list((volumes["/state"] / "prefect" / "concurrency_leases").glob("*.json"))
