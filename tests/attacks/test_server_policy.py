"""Attacks on the administrator's policy: a trainer or promoter whose own machine would choose the gates, and a server that does not say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.errors import ConfigError, PromotionError
from components.gates.config import PolicyConfig
from components.gates.policy import allowed_policies, foreign_policy, policy_digest
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.promotion.verification import verify_release
from components.tracking.server import permissions as policies
from components.tracking.server.permissions import POLICY_VARIABLE
from components.tracking.store import TrackingError
from flows.servers import auth_plan
from tests.unit.promotion_world import NAME, POLICY, MemoryTracking, World, no_smoke

STRICT = POLICY.model_copy(update={"version": "strict", "min_retention": 0.99})


class Server:
    """The route of our plug-in on a server of loopback, and the folder of policies that its administrator filled."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url

    def allow(self, *allowed: PolicyConfig) -> None:
        for file in self.folder.glob("*.yaml"):
            file.unlink()
        for number, policy in enumerate(allowed):
            (self.folder / f"{number}.yaml").write_text(yaml.safe_dump(policy.model_dump(mode="json")))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """In the environment of the server the variable is read when it is asked, so a client's own is laid over it by `own`."""
    folder = tmp_path / "administrator"
    folder.mkdir()
    real = policies.local_files
    here = threading.get_ident()

    def of_each_process() -> dict[str, dict[str, Any]] | None:
        """The client has the thread of the test; whatever else asks is the server, whose variable names the folder."""
        if threading.get_ident() == here:
            return real()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(POLICY_VARIABLE, str(folder))
            return real()

    yield from _running(of_each_process, Server(folder, ""), monkeypatch)


def _running(local_files: Any, served: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from flask import Flask
    from werkzeug.serving import make_server

    served.allow(STRICT)
    monkeypatch.setattr(policies, "local_files", local_files)
    monkeypatch.delenv(POLICY_VARIABLE, raising=False)
    app = Flask("mlflow of a test")
    policies.serve(app)
    app.add_url_rule("/health", "health", lambda: "OK")
    running = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    try:
        yield served
    finally:
        running.shutdown()
        thread.join(10)
        running.server_close()


def test_a_promoter_without_a_policy_of_its_own_follows_the_servers(world: World, server: Server) -> None:
    server.allow(POLICY)
    approve(NAME, world.candidate(), "Ada")
    server.allow(STRICT)
    with pytest.raises(PromotionError, match=f"none of this installation's, by the server {server.url}"):
        promote(NAME, no_smoke)
    assert world.tracking.records == []
    server.allow(STRICT, POLICY)  # a file that was added counts at once
    assert promote(NAME, no_smoke).status == "promoted"


def test_no_machine_allows_for_itself_what_the_server_does_not(
    world: World, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = world.candidate()
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(POLICY.model_dump(mode="json")))
    monkeypatch.setenv(POLICY_VARIABLE, str(own))  # a trainer's own machine, or a reviewer's
    assert allowed_policies() == {}
    with pytest.raises(PromotionError, match="none of this installation's, by the server"):
        approve(NAME, number, "Ada")
    server.allow(POLICY)
    own.write_text(yaml.safe_dump(STRICT.model_dump(mode="json")))
    assert f"by {POLICY_VARIABLE}" in str(foreign_policy(POLICY))  # it may ask for more, never for less
    own.write_text(yaml.safe_dump(POLICY.model_dump(mode="json")))
    assert allowed_policies() == {policy_digest(POLICY): "own.yaml"}


def test_a_release_by_a_policy_that_the_server_does_not_allow_shows_in_verify(world: World, server: Server) -> None:
    server.allow(POLICY)
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)
    assert next(check.ok for check in verify_release(NAME, "champion") if check.name == "policy")
    server.allow(STRICT)
    assert not next(check.ok for check in verify_release(NAME, "champion") if check.name == "policy")


def test_verify_asks_the_server_once_for_its_policies(world: World, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two answers the second could be another."""
    server.allow(POLICY)
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)
    asked, real = [], policies._of_server
    monkeypatch.setattr(policies, "_of_server", lambda uri: asked.append(uri) or real(uri))
    verify_release(NAME, "champion")
    assert len(asked) == 1


def test_what_is_recorded_of_a_foreign_policy_names_no_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("http://", "http://ada:not-for-records@"))
    said = str(foreign_policy(POLICY))
    assert f"by the server {server.url}" in said and "not-for-records" not in said and "ada" not in said


@pytest.mark.parametrize(
    ("file", "content"), [("0.yaml", b"a: ["), ("0.yaml", b"[1]"), ("0.yaml", b"\xff"), ("0.yaml", b""), ("0.txt", b"min_queries: 1")]
)
def test_a_server_that_lost_its_policy_is_never_taken_for_one_without(server: Server, file: str, content: bytes) -> None:
    server.allow()
    (server.folder / file).write_bytes(content)
    with pytest.raises(TrackingError, match="could not give the policies of the installation"):
        foreign_policy(POLICY)


def test_a_policy_of_the_server_with_a_field_that_is_none_decides_nothing(server: Server) -> None:
    server.allow()
    (server.folder / "0.yaml").write_text("min_retention: .nan")
    with pytest.raises((ConfigError, TrackingError), match=r"no policy|could not give"):
        foreign_policy(POLICY)
    (server.folder / "0.yaml").write_text("min_retentoin: 0.9")
    with pytest.raises(ConfigError, match=r"0.yaml .the server .* is no policy: min_retentoin"):
        foreign_policy(POLICY)


@pytest.mark.parametrize("answer", [{"policies": {}}, {"policies": []}, {"policies": {"a.yaml": None}}, {}, [], "text"])
def test_an_answer_that_names_no_policies_in_the_agreed_form_allows_nothing(
    monkeypatch: pytest.MonkeyPatch, server: Server, answer: Any
) -> None:
    from mlflow.utils import rest_utils

    class Answer:
        status_code, text = 200, json.dumps(answer)

        def json(self) -> Any:
            return answer

    monkeypatch.setattr(rest_utils, "http_request", lambda *_, **__: Answer())
    with pytest.raises(TrackingError, match="Nothing is decided without them"):
        foreign_policy(POLICY)


def test_a_server_that_is_to_start_with_a_policy_that_is_not_there_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flask import Flask

    monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path / "gone.yaml"))
    with pytest.raises(ConfigError, match="no YAML file with a policy"):
        policies.serve(Flask("mlflow of a test"))
    monkeypatch.setattr("flows.servers.entry_points", lambda group: type("Found", (), {"names": {"scalingnote"}}))
    with pytest.raises(ConfigError, match="no YAML file with a policy"):
        auth_plan(5000)
