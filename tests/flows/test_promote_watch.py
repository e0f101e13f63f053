"""promote --watch and the webhook receiver: when they look, what they tell, and what they refuse."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from components.errors import ConfigError, PromotionError
from components.promotion import promote as waiting
from components.signing.keys import make_key
from components.tracking.store import TrackingError
from flows.webhook import DELIVERY_ID, MAX_BODY, SIGNATURE, TIMESTAMP, Deliveries, Watch, receiving, secret, sign
from tests.flows.cli_world import assert_refused, scalingnote

SECRET = "a secret that both sides share"
BODY = json.dumps({"entity": "model_version", "action": "created", "data": {"name": "retriever-release"}}).encode()
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Flow:
    """Stands for the registry (`state`) and the promote flow, which ends as `outcome` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        monkeypatch.setenv("SCALINGNOTE_HOME", str(home))
        self.state: str | None = None
        self.outcome: Exception | None = None
        self.runs = 0
        monkeypatch.setattr("components.promotion.promote.promotion_fingerprint", lambda name: self.state)
        self.looks = 0
        monkeypatch.setattr("components.promotion.promote.note_look", self._looked)
        monkeypatch.setattr("flows.servers.run_flow", lambda _flow, name: self._promote(name))

    def _looked(self, name: str) -> None:
        self.looks += 1

    def _promote(self, name: str) -> dict[str, Any]:
        self.runs += 1
        with waiting.refusal_remembered(name):
            if self.outcome is not None:
                raise self.outcome
        self.state = None
        return {"status": "promoted", "message": f"{name} promoted", "warnings": ()}


@pytest.fixture
def flow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Flow:
    return Flow(monkeypatch, tmp_path)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def watch(flow: Flow, told: list[str]) -> Iterator[Watch]:
    """A watch that looks every minute, running in a thread."""
    made = Watch("retriever", 60, lambda change: told.append(f"{change['status']}: {change['message']}"))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.stop.set()
    made.wake.set()
    thread.join(600)
    assert not thread.is_alive()


def until(condition: Any) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_flow_runs_only_when_something_waits(flow: Flow, told: list[str]) -> None:
    made = Watch("retriever", 60, lambda change: told.append(change["message"]))
    made.look()
    assert flow.runs == 0
    flow.state = "a"
    made.look()
    made.look()
    assert (flow.runs, flow.looks, told) == (1, 1, ["retriever promoted"])


def test_refusal_is_examined_again_when_something_changed_and_after_a_pause_that_grows_to_a_day(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    flow.state, flow.outcome = "a", PromotionError("no reason given")
    examined = []
    for minute in range(3 * 24 * 60):
        now = 1_000_000.0 + 60 * minute
        before = flow.runs
        with contextlib.suppress(PromotionError):
            Watch("retriever", 60, lambda change: None).look()  # a new one each time: a restart forgets nothing
        examined += [minute] if flow.runs > before else []
    assert examined[:4] == [0, 10, 30, 70] and len(examined) == 10 and examined[-1] - examined[-2] == 24 * 60
    flow.state = "b"
    with pytest.raises(PromotionError):
        Watch("retriever", 60, lambda change: None).look()
    now -= 10 * 86_400  # a clock that was set back must not stop the looking
    with pytest.raises(PromotionError):
        Watch("retriever", 60, lambda change: None).look()


def test_what_was_promoted_leaves_no_refusal_behind_and_a_broken_memory_is_none(flow: Flow, tmp_path: Path) -> None:
    flow.state, flow.outcome = "a", PromotionError("no reason given")
    with pytest.raises(PromotionError):
        Watch("retriever", 60, lambda change: None).look()
    assert waiting.refused_before("retriever") == "no reason given" and waiting.refused_before("another") is None
    memory = tmp_path / "promotion" / "retriever.refused.json"
    for content in ("", "[]", '{"state": "a"}', '{"state": "a", "message": "", "at": "noon", "times": 1}'):
        memory.write_text(content)
        assert waiting.refused_before("retriever") is None
    flow.outcome = None
    Watch("retriever", 60, lambda change: None).look()
    assert not memory.exists()


def test_a_refusal_is_examined_again_when_somebody_set_keys_or_policies_right(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry does not show it: the approval waited for up to a day, and was told that nothing had changed."""
    flow.state, flow.outcome = "a", PromotionError("the policy is not one of this installation's")

    def look() -> None:
        with pytest.raises(PromotionError):
            Watch("retriever", 60, lambda change: None).look()
        assert waiting.refused_before("retriever") is not None

    look()
    make_key(tmp_path / "keys" / "signing.pem")
    assert waiting.refused_before("retriever") is None
    look()
    (tmp_path / "policy.yaml").write_text('version: "2"')
    monkeypatch.setenv("SCALINGNOTE_POLICY", str(tmp_path / "policy.yaml"))
    assert waiting.refused_before("retriever") is None
    look()
    (tmp_path / "policy.yaml").write_text('version: "3"')
    assert waiting.refused_before("retriever") is None


def test_a_memory_that_cannot_be_kept_hides_neither_a_refusal_nor_a_promotion(
    flow: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of another user: what had been promoted ended with an error, and a refusal with another one than its own."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    look = Watch("retriever", 60, lambda change: None).look
    flow.state, flow.outcome = "a", PromotionError("no reason given")
    monkeypatch.setattr(waiting, "write_json", refused)
    with pytest.raises(PromotionError, match="no reason given"):
        look()
    flow.outcome = None
    monkeypatch.setattr(Path, "unlink", refused)
    look()
    assert flow.state is None and flow.runs == 2


def test_a_scheduled_run_ends_at_once_where_nothing_changed_since_the_refusal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flows import promote as module

    examined: list[str] = []

    def refuse(name: str, without_champion: str | None) -> dict[str, Any]:
        examined.append(name)
        raise PromotionError("no reason given")

    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setattr("components.promotion.promote.promotion_fingerprint", lambda name: "a")
    looks: list[str] = []
    monkeypatch.setattr("components.promotion.promote.note_look", looks.append)
    monkeypatch.setattr(module, "promote_newest_approved", refuse)
    with pytest.raises(PromotionError):
        module.promote.fn("mine", retry=False)
    ended: Any = module.promote.fn("mine", retry=False)
    assert (ended.name, ended.is_completed(), examined) == ("Refused before", True, ["mine"])
    assert ended.message == "Refused as before, nothing changed since: no reason given"
    with pytest.raises(PromotionError):
        module.promote.fn("mine")  # a person who asks gets it examined
    assert examined == ["mine", "mine"] and looks == ["mine"] * 3


def test_a_look_that_finds_nothing_loads_no_prefect(tmp_path: Path) -> None:
    code = (
        "import sys, components.promotion.promote as w; w.promotion_fingerprint = lambda name: None\n"
        "from flows.webhook import Watch; Watch('retriever', 60, print).look(); print('prefect' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600).stdout == "False\n"


def test_server_that_does_not_answer_is_asked_again_at_every_look(flow: Flow) -> None:
    made = Watch("retriever", 60, lambda change: None)
    flow.state, flow.outcome = "a", TrackingError("no answer")
    for runs in (1, 2):
        with pytest.raises(TrackingError):
            made.look()
        assert flow.runs == runs


def test_webhook_wakes_the_watch_and_refuses_what_is_not_signed_fresh_and_new(flow: Flow, watch: Watch, told: list[str]) -> None:
    with receiving(("127.0.0.1", 0), Deliveries("retriever", SECRET), watch.wake.set) as port:
        flow.state, flow.outcome = "a", PromotionError("no reason given")
        assert post(port, "d-1") == 202
        until(lambda: told == ["refused: no reason given"])
        flow.state, flow.outcome = "b", None
        assert post(port, "d-1") == 409
        assert post(port, "d-2", stamp=int(time.time()) - 3600) == 401
        assert post(port, "d-3", key="another secret of some length") == 401
        assert post(port, "d-4", body=BODY.replace(b"retriever-", b"another-")) == 200
        assert flow.runs == 1
        assert post(port, "d-5") == 202
        until(lambda: told[1:] == ["promoted: retriever promoted"])
    with pytest.raises(OSError):
        post(port, "d-6")


def test_receiver_refuses_other_calls_in_words_and_goes_on(flow: Flow, capfd: pytest.CaptureFixture[str]) -> None:
    woken: list[int] = []
    with receiving(("127.0.0.1", 0), Deliveries("retriever", SECRET), lambda: woken.append(1)) as port:
        for method in ("GET", "PUT", "DELETE", "PATCH", "BREW"):
            assert said(port, "/", method) == (405, "Deliveries are sent with POST.")
        assert said(port, "/", body=b"x" * (MAX_BODY + 1))[0] == 413
        assert said(port, "/", body=b"{}")[0] == 400
        assert said(port, "/elsewhere", body=b"{}") == (404, "Deliveries are received at the path / alone.")
        for length in ("²".encode("latin-1"), "-1", "1 2", "x", "9" * 5000):
            assert said(port, "/", length=length) == (400, "Invalid HTTP request received.")
        hang_up(port)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("flows.webhook.SECONDS", 0.2)
            assert said(port, "/", length="10", body=b"12345") == (408, "The body did not arrive within 0 seconds.")
        for page in ("/docs", "/redoc", "/openapi.json"):
            assert said(port, page, "GET")[0] == 404
        with (
            pytest.raises(ConfigError, match=f"Nothing can listen on 127.0.0.1:{port}"),
            receiving(("127.0.0.1", port), Deliveries("retriever", SECRET), lambda: None),
        ):
            pass
        assert woken == [] and post(port, "d-1") == 202 and woken == [1]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["ä..b", "ä" * 70, "nosuch.invalid"])
def test_a_host_that_is_none_is_said(host: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"Nothing can listen on {host}:8080: .*Choose another"),
        receiving((host, 8080), Deliveries("retriever", SECRET), lambda: None),
    ):
        pass


def said(port: int, path: str, method: str = "POST", body: bytes = b"", length: str | bytes | None = None) -> tuple[int, str]:
    """Status and message of a call by hand, with whatever Content-Length."""
    given = str(len(body)) if length is None else length
    line = given if isinstance(given, bytes) else given.encode()
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
        connection.sendall(head + b"Content-Length: " + line + b"\r\n\r\n" + body)
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    head, _, content = answer.partition(b"\r\n\r\n")
    message = json.loads(content)["message"] if content.startswith(b"{") else content.decode()
    return int(head.split()[1]), str(message)


def hang_up(port: int) -> None:
    """Promise a body, send half of it and reset the connection."""
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n12345")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_commands_refuse_bad_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.delenv("SCALINGNOTE_WEBHOOK_SECRET", raising=False)
    with pytest.raises(ConfigError, match="SCALINGNOTE_WEBHOOK_SECRET is not set"):
        secret()
    assert_refused(scalingnote("webhook", "--port", "8080"), 2, "SCALINGNOTE_WEBHOOK_SECRET")
    monkeypatch.setenv("SCALINGNOTE_WEBHOOK_SECRET", "short")
    assert_refused(scalingnote("webhook", "--port", "8080"), 2, "at least 16")
    for wrong in ("0", "-1", "1.5", "often"):
        assert_refused(scalingnote("promote", f"--watch={wrong}"), 2, "whole seconds from 1 to 86400")


def post(port: int, delivery: str, stamp: int | None = None, key: str = SECRET, body: bytes = BODY) -> int:
    sent = str(stamp or int(time.time()))
    headers = {SIGNATURE: sign(key, delivery, sent, body), TIMESTAMP: sent, DELIVERY_ID: delivery}
    return call(urllib.request.Request(f"http://127.0.0.1:{port}/", body, headers))


def call(request: urllib.request.Request) -> int:
    try:
        with OPENER.open(request, timeout=600) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
