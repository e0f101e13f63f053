"""Attacks on what must stay private: passwords in addresses, logs that others on the machine may read, answers that are kept for ever."""

from __future__ import annotations

import argparse
import json
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.errors import ConfigError, DataError, ScalingNoteError
from components.serving import answer_log as answers
from components.serving.answer_log import Answer, answers_file, find_answer, prune_answers, pruned_file
from components.tracking.audit_log import append_entry, head_file
from components.tracking.server.bootstrap import Prepared
from components.tracking.store import TrackingError, translated
from flows import recorder
from flows.cli import main
from flows.servers import mlflow_plan

SECRET = "hunter2-s3cret"
ADDRESSES = [
    f"postgresql://ada:{SECRET}@db:5432/mlflow",
    f"postgresql+psycopg2://ada:{SECRET}%40x@db/mlflow?sslmode=require",
    f"https://ada:{SECRET}@tracking.example:8443",
    f"mysql+pymysql://:{SECRET}@db/mlflow",
    f"https://ada:{SECRET}@home@tracking.example",
    f"postgresql://ada:{SECRET}/x?y#z@db/mlflow",
]
IN_QUERY = [
    f"postgresql://db/mlflow?user=ada&password={SECRET}&sslmode=require",
    f"postgresql+psycopg2://db/mlflow?sslpassword={SECRET}",
    f"https://qdrant.example:6333?api_key={SECRET}",
    f"https://store.example/a?X-Amz-Security-Token={SECRET}&X-Amz-Signature={SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("kind", [ScalingNoteError, TrackingError, ConfigError])
def test_no_error_shows_a_password(kind: type[ScalingNoteError], address: str) -> None:
    shown = str(kind(f"Could not reach {address}: no route. Check {address}."))
    assert SECRET not in shown and shown.count(":***@") == 2 and "no route" in shown


def test_no_error_shows_a_token_that_stands_alone_before_a_host() -> None:
    shown = str(ConfigError(f"Could not reach https://{SECRET}@hub.example/a, nor postgresql://ada@db/mlflow of a@b.example."))
    assert shown == "Could not reach https://***@hub.example/a, nor postgresql://ada@db/mlflow of a@b.example."


@pytest.mark.parametrize("address", IN_QUERY)
def test_no_error_shows_a_password_behind_a_question_mark(address: str) -> None:
    shown = str(ConfigError(f"Could not reach {address}: no route."))
    assert SECRET not in shown and "=***" in shown and shown.endswith(" no route.")


def test_an_error_that_nobody_expected_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(f"no dialect for {IN_QUERY[0]}, {ADDRESSES[0]}")
    except RuntimeError as error:
        assert main._explain(argparse.Namespace(json=True, verbose=False), error) == 1
        assert SECRET not in str(recorder._ended_by(error))
    shown = capsys.readouterr()
    assert SECRET not in shown.out + shown.err and "ada:***@db" in shown.err


def test_an_error_of_the_store_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    with pytest.raises(TrackingError) as raised, translated("open the tracking store"):
        raise OperationalError(f"cannot connect to {ADDRESSES[0]}", None, Exception("refused"))
    assert SECRET not in str(raised.value) and "ada:***@db" in str(raised.value)


PLAIN = ["http://localhost:5000/a@b", "sqlite:////srv/a:b@c/mlflow.db", "postgresql://db:5432/mlflow", "http://x/?q=password"]


@pytest.mark.parametrize("text", [*PLAIN, "12:30 at a@b", "models:/x@champion"])
def test_what_is_no_password_stays_readable(text: str) -> None:
    assert str(ScalingNoteError(text)) == text


def test_what_a_bootstrap_made_shows_no_password() -> None:
    assert Prepared(ADDRESSES[2]).to_json()["server"] == "https://tracking.example:8443"


def test_the_password_of_the_store_is_no_argument_of_the_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    plan = mlflow_plan(5000)
    assert not any(SECRET in argument for argument in plan.command)
    assert plan.environment["MLFLOW_BACKEND_STORE_URI"] == ADDRESSES[0]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_logs_are_their_owners_alone_and_those_of_older_versions_become_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    settings.activate()
    assert mode(tmp_path / "home") == 0o700
    audit = settings.audit_log()
    audit.parent.mkdir(parents=True, exist_ok=True)
    audit.touch(0o644)
    call = {"user": "ada", "method": "POST", "path": "/x", "action": "x", "status": 200, "outcome": "ok"}
    append_entry(audit, call)
    log(1)
    assert [mode(path) for path in (audit, head_file(audit), answers_file("mine"))] == [0o600] * 3


def log(*ages: int) -> list[str]:
    """Answers of so many days ago, appended to the log."""
    ids = []
    for number, age in enumerate(ages):
        ids.append(f"{number:08x}{age:08x}")
        at = (datetime.now(UTC) - timedelta(days=age)).isoformat(timespec="milliseconds")
        fields = {"id": ids[-1], "at": at, "retriever": "mine", "model": "mine-release", "version": 1, "digest": "d"}
        answer = Answer(**fields, query="private words", query_digest="q", doc_ids=(), scores=())  # type: ignore[arg-type]
        answers._append(answers_file("mine"), answer.model_dump_json() + "\n")
    return ids


def test_answers_older_than_the_retention_go_and_leave_a_record_without_their_words(home: Path) -> None:
    ids = log(400, 200, 182, 0)
    done = prune_answers("mine")
    assert (done.removed, done.kept) == (2, 2)
    assert find_answer(ids[2]).id == ids[2]
    with pytest.raises(DataError, match="were removed by a pruning"):
        find_answer(ids[0])
    (line,) = pruned_file("mine").read_text().splitlines()
    record = json.loads(line)
    assert (record["removed"], record["days"], record["last"]) == (2, 183, done.last) and len(record["sha256"]) == 64
    assert "private words" not in line and mode(pruned_file("mine")) == mode(answers_file("mine")) == 0o600
    assert prune_answers("mine").removed == 0 and len(pruned_file("mine").read_text().splitlines()) == 1


def test_a_pruning_that_is_killed_loses_no_answer_that_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = log(400, 0)

    def killed(path: Path, *_: object) -> None:
        if path == answers_file("mine"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(answers, "write_atomic", killed)
        prune_answers("mine", gap=True)
    assert {find_answer(answer).id for answer in ids} == set(ids)
    assert prune_answers("mine", gap=True).removed == 1


def test_an_answer_that_is_written_during_a_pruning_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log(400)
    write, started = answers.write_atomic, threading.Event()
    writer = threading.Thread(target=lambda: (started.wait(), log(1)))
    writer.start()

    def slow(*arguments: object) -> None:
        started.set()
        writer.join(0.5)  # it waits for the lock that is held here
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(answers, "write_atomic", slow)
    prune_answers("mine", gap=True)
    writer.join()
    assert len(answers_file("mine").read_text().splitlines()) == 1


def test_a_retention_that_no_calendar_holds_keeps_every_answer_and_an_empty_setting_is_none(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(400, 0)
    assert [prune_answers("mine", days)[::3] for days in (800_000, 10**12)] == [(0, 2), (0, 2)]
    monkeypatch.setenv(answers.SETTING, "")  # as a compose file leaves what nobody has set
    assert answers.log_mode() == "ids"


def test_a_clock_that_jumped_ahead_removes_no_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=3650)

    log(40, 20, 10)
    kept = answers_file("mine").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(answers, "datetime", Ahead)
        for days in (183, 7):
            with pytest.raises(ConfigError, match=r"3 answers of 'mine' would be removed, and 0 stay.*jumped ahead"):
                prune_answers("mine", days)
    log(-3640)  # what was answered meanwhile
    assert answers_file("mine").read_bytes().startswith(kept)
    with monkeypatch.context() as patch:
        patch.setattr(answers, "datetime", Ahead)
        with pytest.raises(ConfigError, match=r"and 1 stay\..*the next is of 20"):
            prune_answers("mine")
    assert not pruned_file("mine").exists() and len(answers_file("mine").read_bytes().splitlines()) == 4
    assert prune_answers("mine", 15).removed == 2  # gaps of a use now and then ask nobody


@pytest.mark.parametrize("days", [0, -1])
def test_a_retention_of_no_day_is_refused(home: Path, days: int) -> None:
    log(400)
    with pytest.raises(ConfigError, match="at least one day"):
        prune_answers("mine", days)
    assert prune_answers("none").removed == 0
