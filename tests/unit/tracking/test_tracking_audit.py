"""The audit log: a chain that grows across processes and kills, and in which any change is found."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.artifacts import digest_of
from components.errors import ArtifactError
from components.release.reviewers import _why_expected
from components.tracking import store
from components.tracking.audit_log import actions_on, append_entry, check_end, creation_of, head_file, kept_by_server, read_audit, trail


def fields(number: int = 1, **changes: object) -> dict[str, object]:
    base = {"user": "ada", "roles": ("trainer",), "method": "POST", "path": "/api/2.0/mlflow/runs/create", "status": 200, "outcome": "ok"}
    return {**base, "action": "create_run", "subject": {"run": f"run {number} ü"}, **changes}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "logs" / "audit.jsonl"
    for number in range(1, 6):
        append_entry(path, fields(number))
    return path


def test_entries_are_chained_and_read_back(log: Path) -> None:
    entries = read_audit(log)
    assert [entry.sequence for entry in entries] == [1, 2, 3, 4, 5]
    assert entries[0].previous is None
    assert [entry.previous for entry in entries[1:]] == [entry.digest for entry in entries[:-1]]
    last = entries[-1]
    assert last.digest == digest_of({key: value for key, value in last.model_dump().items() if key != "digest"})
    assert (last.user, last.roles, last.subject) == ("ada", ("trainer",), {"run": "run 5 ü"})


def test_every_change_of_one_byte_is_detected(log: Path) -> None:
    chance = random.Random(7)
    for path in (log, head_file(log)):
        good = path.read_bytes()
        for position in chance.sample(range(len(good)), min(100, len(good))):
            changed = bytearray(good)
            changed[position] ^= 1 << chance.randrange(8)
            path.write_bytes(bytes(changed))
            with pytest.raises(ArtifactError):
                read_audit(log)
        path.write_bytes(good)
    assert len(read_audit(log)) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:1] + lines[2:], "in place of entry 2 stands entry 3"),
        (lambda lines: lines[1:], "in place of entry 1 stands entry 2"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "in place of entry 2 stands entry 3"),
        (lambda lines: lines[:3], "entries 4 to 5 were cut off"),
        (lambda lines: [], "entries 1 to 5 were cut off"),
        (lambda lines: [lines[0].replace(b"ada", b"eve"), *lines[1:]], "entry 1 was edited"),
        (lambda lines: [*lines[:2], b"not json", *lines[3:]], "entry 3 was edited"),
    ],
)
def test_cut_edited_and_reordered_logs_name_the_entry(log: Path, change: Callable[[list[bytes]], list[bytes]], message: str) -> None:
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"".join(line + b"\n" for line in change(lines)))
    with pytest.raises(ArtifactError, match=message):
        read_audit(log)


def test_an_entry_that_was_edited_with_its_digest_breaks_the_next(log: Path) -> None:
    lines = log.read_bytes().splitlines()
    entry = json.loads(lines[1]) | {"user": "eve"}
    entry["digest"] = digest_of({key: value for key, value in entry.items() if key != "digest"})
    lines[1] = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    log.write_bytes(b"".join(line + b"\n" for line in lines))
    with pytest.raises(ArtifactError, match="in place of entry 3"):
        read_audit(log)


def test_missing_head_and_missing_log_are_said(log: Path) -> None:
    head_file(log).unlink()
    with pytest.raises(ArtifactError, match="the head file is missing"):
        read_audit(log)
    log.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        read_audit(log)


def test_nothing_is_appended_to_a_damaged_log(log: Path) -> None:
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    for act in (lambda: append_entry(log, fields()), lambda: check_end(log)):
        with pytest.raises(ArtifactError, match="was cut or edited; nothing is added"):
            act()


def test_a_torn_line_and_a_late_head_are_what_a_kill_leaves(log: Path) -> None:
    head = head_file(log).read_bytes()
    append_entry(log, fields(6))
    head_file(log).write_bytes(head)  # killed between the entry and its head
    assert len(read_audit(log)) == 6
    with log.open("ab") as file:
        file.write(b'{"action":"create_run","at":"20')  # killed inside the line
    assert len(read_audit(log)) == 6
    assert append_entry(log, fields(7)).sequence == 7
    assert len(read_audit(log)) == 7


def test_lines_longer_than_a_block_are_read_from_the_end(log: Path) -> None:
    append_entry(log, fields(subject={"value": "x" * 50_000}))
    assert append_entry(log, fields()).sequence == 7
    assert len(read_audit(log)) == 7


def write_many(path: Path, count: int) -> None:
    for number in range(count):
        append_entry(path, fields(number))


def test_processes_write_one_chain(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    writers = [multiprocessing.get_context("fork").Process(target=write_many, args=(log, 15)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_audit(log)) == 45


def test_a_newer_schema_is_refused_by_name(log: Path) -> None:
    lines = log.read_bytes().splitlines()
    log.write_bytes(lines[0].replace(b'"schema_version":1', b'"schema_version":9') + b"\n")
    with pytest.raises(ArtifactError, match="schema version 9; this program reads up to 1"):
        read_audit(log)


def test_the_creation_of_a_version_is_its_newest_successful_one(tmp_path: Path) -> None:
    log, subject = tmp_path / "audit.jsonl", {"model": "r-candidate", "version": "3"}
    for user, action, outcome in (
        ("ada", "create_model_version", "ok"),
        ("eve", "create_model_version", "refused"),
        ("ben", "set_alias", "ok"),
    ):
        append_entry(log, fields(user=user, action=action, outcome=outcome, subject=subject))
    append_entry(log, fields(user="cy", action="create_model_version", subject={"model": "r-candidate", "version": "4"}))
    entries = read_audit(log)
    made = creation_of(entries, "r-candidate", 3)
    assert made is not None and made.user == "ada"
    assert [entry.user for entry in actions_on(entries, "r-candidate", 3)] == ["ada", "eve", "ben"]
    assert creation_of(entries, "r-candidate", 5) is None


def test_the_embedded_store_has_no_trail_until_a_server_wrote_one(home: Path) -> None:
    assert trail() is None
    append_entry(home / "mlflow" / "audit.jsonl", fields())
    found = trail()
    assert found is not None and found[0].user == "ada"


def test_a_variable_of_the_log_that_is_set_to_nothing_counts_as_unset(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there was read in place of the server's log, and `status` told that the log was gone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    for given, asked in (("", True), ("/logs/audit.jsonl", False)):
        monkeypatch.setenv("SCALINGNOTE_AUDIT_LOG", given)
        assert kept_by_server() is asked
        assert (_why_expected([]) is None) is asked


def test_variables_of_mlflow_that_are_set_to_nothing_count_as_unset(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`int('')` was an unexpected failure of every command."""
    for name in store._MLFLOW:
        monkeypatch.setenv(name, "")
    store.clear_caches()
    assert store.client().search_registered_models() == []
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b"\n<!doctype html>\n<html>\n", b'{"message": "sign in"}', b"<html>\n<body>\n"])
def test_a_page_of_a_proxy_is_no_audit_log_that_somebody_changed(page: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended in an unexpected failure, or told to restore the log from a backup."""
    from mlflow.utils import rest_utils

    answer = SimpleNamespace(status_code=200, content=page, text=page.decode())
    monkeypatch.setattr(rest_utils, "http_request", lambda *_, **__: answer)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    monkeypatch.delenv("SCALINGNOTE_AUDIT_LOG", raising=False)
    with pytest.raises(store.TrackingError, match="gave something else than its audit log"):
        trail()
    answer.content = b"\n" + b"{}\n"  # the log of a server whose head file is gone
    with pytest.raises(ArtifactError, match="entry 1 was edited"):
        trail()
