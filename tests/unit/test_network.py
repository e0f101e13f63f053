"""Connections in the environments that people have: a company's proxy, and servers that are gone."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from unittest import mock

import httpx
import pytest
import requests
from mlflow.exceptions import MlflowException

from components.settings import answers, is_healthy, spare_loopback, without_user
from components.tracking import store

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


class _Status(BaseHTTPRequestHandler):
    """Answers `/503` with the status 503 and everything else with 200."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/503" else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What is set here is gone after each test."""
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def server() -> Iterator[str]:
    """Address of a server on loopback."""
    found = HTTPServer(("127.0.0.1", 0), _Status)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


@pytest.fixture
def dead_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy for everything, on a port where nobody listens, and no exceptions."""
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")


@pytest.mark.usefixtures("dead_proxy")
def test_no_client_asks_the_proxy_for_loopback(server: str) -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get(server)
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get(server, timeout=600)
    spare_loopback()
    assert httpx.get(server).status_code == 200
    assert requests.get(server, timeout=600).status_code == 200
    assert is_healthy(server)


def test_what_the_team_spares_from_the_proxy_stays_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "mlflow.example.org, localhost")
    for _ in range(2):  # a command that starts another adds nothing more
        spare_loopback()
        assert _spared("no_proxy") == _spared("NO_PROXY") == ["mlflow.example.org", "localhost", "127.0.0.1", "::1"]


def test_small_letters_win_over_capitals_as_in_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "small.example.org")
    monkeypatch.setenv("NO_PROXY", "capital.example.org")
    spare_loopback()
    assert _spared("NO_PROXY")[0] == "small.example.org"


def test_a_star_that_spares_everything_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    spare_loopback()
    assert _spared("NO_PROXY") == ["*"]


def test_any_status_is_an_answer_and_only_200_is_healthy(server: str) -> None:
    assert answers(f"{server}/503") and not is_healthy(f"{server}/503")
    assert answers(f"{server}/x") and is_healthy(f"{server}/x")


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://", "nonsense", "http://[", "http://127.0.0.1:port", "ftp://127.0.0.1:1/x"])
def test_nobody_answers_where_there_is_no_server(url: str) -> None:
    assert not answers(url)


def test_a_server_that_says_nothing_is_not_waited_for() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.3)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert without_user("http://ann:s3cr3t@127.0.0.1:5000/x") == "http://127.0.0.1:5000/x"
    assert without_user("http://127.0.0.1:5000/a@b") == "http://127.0.0.1:5000/a@b"
    assert without_user("postgresql+psycopg://ann:s3@cr3t@db/x") == "postgresql+psycopg://db/x"


def _spared(name: str) -> list[str]:
    return os.environ[name].split(",")


def test_a_silent_server_is_told_with_the_proxy_that_it_is_asked_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "answers", lambda url: False)
    for name in (*PROXIES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://ann:s3cr3t@127.0.0.1:9")
    for uri, told in (("https://mlflow.example", True), ("https://127.0.0.1:1", False), ("http://mlflow.example", False)):
        store.clear_caches()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(store.TrackingError, match=f"No tracking server answers at {uri}") as said:
            store.require_answer()
        assert ("It is asked through the proxy http://127.0.0.1:9," in str(said.value)) is told
    store.clear_caches()


def test_a_token_that_is_refused_is_no_user_name_or_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "run out")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    with pytest.raises(store.TrackingError, match="does not accept the token in MLFLOW_TRACKING_TOKEN"), store.translated("read a run"):
        raise MlflowException("API request to endpoint /x failed with error code 401 != 200. Response body: ''")
