"""Attacks on the audit log, with the real commands: whoever looks at the status or the history is told, not only who verifies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.release.champion import servable_release
from components.tracking import audit_log as audit
from components.tracking.audit_log import Head, append_entry, head_bytes, head_file, read_audit
from components.tracking.server import plugin
from tests.flows.cli_world import scalingnote
from tests.unit.promotion_world import NAME
from tests.unit.proof_world import Proven, call, proven_home


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Proven]:
    """Record 3 of 3 rests on entry 3 of 5 in the log."""
    with proven_home(tmp_path_factory.mktemp("log"), mlflow_template) as world:
        yield world


@pytest.fixture
def log(proven: Proven) -> Iterator[Path]:
    path = settings.audit_log()
    kept = {file: file.read_bytes() for file in (path, head_file(path))}
    yield path
    for file, content in kept.items():
        file.write_bytes(content)


def without(path: Path, *gone: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for number, line in enumerate(lines, 1) if number not in gone))


def replaced(path: Path) -> None:
    """A whole log of another history, as whoever may write both files can make."""
    for file in (path, head_file(path)):
        file.unlink()
    for number in range(6):
        append_entry(path, call(number))


def set_back(path: Path, entries: int) -> None:
    without(path, *range(entries + 1, 10))
    head_file(path).write_bytes(head_bytes(Head(sequence=entries, digest=read_audit_without_head(path)[-1])))


def read_audit_without_head(path: Path) -> list[str]:
    return [audit.AuditEntry.model_validate_json(line).digest for line in path.read_bytes().splitlines()]


CUTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "in the middle": (lambda path: without(path, 2, 3), "in place of entry 2 stands entry 4"),
    "at its beginning": (lambda path: without(path, 1), "in place of entry 1 stands entry 2"),
    "at its end": (lambda path: without(path, 4, 5), "entries 4 to 5 were cut off"),
    "within a line at its end": (lambda path: path.write_bytes(path.read_bytes()[:-40]), "entries 5 to 5 were cut off"),
    "within a line in the middle": (lambda path: path.write_bytes(path.read_bytes().replace(b'"ada"', b"", 1)), "entry 1 was edited"),
    "one name in it": (lambda path: path.write_bytes(path.read_bytes().replace(b'"ada"', b'"eve"', 1)), "entry 1 was edited"),
    "all of it": (lambda path: path.write_bytes(b""), "entries 1 to 5 were cut off"),
    "the file": (lambda path: path.unlink(), "entries 1 to 5 were cut off"),
    "its head": (lambda path: head_file(path).unlink(), "the head file is missing"),
    "both files": (lambda path: [file.unlink() for file in (path, head_file(path))], "promotion record 3 rests on it, and it is not here"),
    "log and head together": (lambda path: set_back(path, 2), "does not hold the entry 3 that promotion record 3 rests on"),
    "all, with another log in its place": (replaced, "does not hold the entry 3 that promotion record 3 rests on"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_log_that_was_cut_is_an_alarm_of_status_and_history_and_fails_verify(log: Path, cut: str) -> None:
    damage, said = CUTS[cut]
    damage(log)
    status, history = scalingnote("status", "--name", NAME), scalingnote("history", "--name", NAME)
    for told in (status, history):
        alarm = next(line for line in told.out.splitlines() if line.startswith("ALARM: "))
        assert told.status == 1 and said in alarm and "back from a backup" in alarm
    assert scalingnote("history", "--name", NAME, "--json").result["alarm"] in history.out
    assert any(line.startswith("FAIL  audit log: ") for line in scalingnote("verify", "--name", NAME).out.splitlines())
    assert servable_release(NAME) == (2, None)  # what serves does not ask for the log


def test_a_whole_log_and_what_a_killed_server_leaves_are_no_alarm(log: Path) -> None:
    quiet = scalingnote("status", "--name", NAME)
    assert quiet.status == 0 and "ALARM" not in quiet.out + scalingnote("history", "--name", NAME).out
    head = head_file(log).read_bytes()
    append_entry(log, call(8))
    head_file(log).write_bytes(head)  # killed between the entry and its head
    with log.open("ab") as file:
        file.write(b'{"action":"create_run"')  # and within a line
    assert scalingnote("status", "--name", NAME).status == 0


def test_the_quick_look_at_a_log_finds_every_changed_byte_and_parses_nothing(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, digests = log.read_bytes(), [entry.digest for entry in read_audit(log)]
    for position in range(0, len(good), 7):
        log.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        assert audit.state_of(log, "the log").fault, position
    log.write_bytes(good)
    monkeypatch.setattr(audit, "verified", None)
    assert [audit.state_of(log, "the log", number).digest for number in range(7)] == [None, *digests, None]


def test_a_server_looks_again_at_a_log_whose_time_was_set_back_after_a_change(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flask import Flask
    from mlflow.server import auth

    from components.tracking.server.permissions import load_permissions

    monkeypatch.setattr(auth, "BEFORE_REQUEST_VALIDATORS", {})
    app = Flask("server")
    plugin._serve_audit(app, log, load_permissions())
    asked = app.test_client()
    before = log.stat()
    assert asked.get(f"{audit.STATE_ENDPOINT}?entry=3").json == {"fault": "", "digest": read_audit(log)[2].digest}
    log.write_bytes(log.read_bytes().replace(b'"ada"', b'"eve"', 1))
    os.utime(log, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert log.stat().st_mtime_ns == before.st_mtime_ns and log.stat().st_size == before.st_size
    assert "entry 1 was edited" in asked.get(f"{audit.STATE_ENDPOINT}?entry=3").json["fault"]


def test_what_only_reads_is_answered_while_the_log_is_cut(tmp_path: Path) -> None:
    """MLflow asks for runs by POST: refused, a client could not read the promotion records, and nothing would serve."""
    from flask import Flask

    app = Flask("server")
    for view in ("search_runs", "create_run"):
        app.add_url_rule(f"/{view}", f"_{view}", lambda: "done", methods=["POST"])
    log = tmp_path / "audit.jsonl"
    for number in range(3):
        append_entry(log, call(number))
    without(log, 3)
    reached, answers = [], []

    async def inner(scope: dict[str, Any], receive: Any, send: Any) -> None:
        reached.append(scope["path"])
        plugin._seen.get().changes = scope["path"] != "/search_runs"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def send(message: dict[str, Any]) -> None:
        answers.append(message.get("status") or message["body"])

    layer = plugin.AuditLayer(inner, log, partial(plugin._may_read, app))
    for path in ("/search_runs", "/create_run", "/elsewhere"):
        asyncio.run(layer({"type": "http", "method": "POST", "path": path, "headers": []}, None, send))
    assert reached == ["/search_runs"] and answers[0::2] == [200, 503, 503]
    assert all(b"Nothing can be changed while the audit log cannot be written" in body for body in answers[3::2])


ODD: dict[str, tuple[dict[str, str], bytes]] = {
    "half a character in a field": ({"model": "retriever-release", "artifact": "\ud800"}, b"{}"),
    "an answer of another form": ({}, b'{"model": "gpt", "run": [1], "model_version": "2"}'),
}


@pytest.mark.parametrize("odd", ODD)
def test_no_field_or_answer_of_an_odd_form_keeps_an_act_out_of_the_log(tmp_path: Path, odd: str) -> None:
    """The call was carried out, and its entry could not be written: MLflow passes over fields that it does not know."""
    subject, body = ODD[odd]
    answers = []

    async def inner(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen = plugin._seen.get()
        seen.changes, seen.action, seen.subject, seen.user, seen.roles = True, "set_alias", subject, "pat", ("promoter",)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    async def send(message: dict[str, Any]) -> None:
        answers.append(message.get("status") or message["body"])

    layer = plugin.AuditLayer(inner, tmp_path / "audit.jsonl")
    asyncio.run(layer({"type": "http", "method": "POST", "path": "/alias", "headers": []}, None, send))
    (entry,) = read_audit(tmp_path / "audit.jsonl")
    assert answers == [200, body] and (entry.user, entry.action, entry.outcome) == ("pat", "set_alias", "ok")
    assert entry.subject == {key: value.replace("\ud800", "\\ud800") for key, value in subject.items()}
