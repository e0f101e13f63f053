"""Which server a command is sent to: the one that runs over this home folder, and not whoever came after it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import stat
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest

from components.artifacts import write_json
from components.tracking import sign_in
from components.tracking.store import TrackingError
from flows import servers as auth_server
from flows.servers import ServerError, prefect_plan

URL = "http://127.0.0.1:5000"


@pytest.fixture
def note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # first, so that what `sign_in` sets is taken back after the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(sign_in, "answers", lambda url: url == f"{URL}/health")
    return tmp_path / "mlflow" / "server.json"


def test_running_server_is_found_as_long_as_it_is_announced(note: Path) -> None:
    assert sign_in.running_server() is None
    with sign_in.announced(URL):
        assert sign_in.running_server() == URL
    assert sign_in.running_server() is None and not note.exists()


def test_a_client_that_looks_at_the_note_for_an_instant_leaves_it_locked(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock was not waited for: the note said that it was locked, and nobody found the server."""
    write, looking = sign_in.write_json, Timer(0.2, lambda: fcntl.flock(client, fcntl.LOCK_UN))

    def looked_at(path: Path, content: object) -> None:
        nonlocal client
        write(path, content)
        client = os.open(path, os.O_RDONLY)
        fcntl.flock(client, fcntl.LOCK_SH)
        looking.start()

    client = -1
    monkeypatch.setattr(sign_in, "write_json", looked_at)
    with sign_in.announced(URL):
        assert sign_in.running_server() == URL
    looking.join()
    os.close(client)


def test_nobody_is_sent_a_password_after_the_server_was_killed(note: Path) -> None:
    gone = multiprocessing.get_context("fork").Process(target=os.getpid)
    gone.start()
    gone.join()
    for left in (
        {"url": URL, "pid": gone.pid},
        {"url": URL},
        {"url": URL, "pid": "x"},
        {"url": URL, "pid": 0},
        {"url": URL, "pid": -1},
        {"url": URL, "pid": 2**80},
        {"url": URL, "pid": os.getpid(), "locked": True},  # another process has the number, as after a restart of the machine
        {"url": "http://127.0.0.1:1", "pid": os.getpid()},
        [],
    ):
        write_json(note, left)
        assert sign_in.running_server() is None
    sign_in.sign_in("trainer")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_server_that_is_busy_is_waited_for_and_never_gone_around(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its silence was taken for its absence: what was built past it could never be approved, and no audit entry told of it."""
    answered = iter([False, False, True])
    for variable in (sign_in.USERNAME, sign_in.PASSWORD):
        monkeypatch.setenv(variable, "")  # so that what `sign_in` sets is taken back after the test
    sign_in.keep_secret(sign_in.password_file("promoter"))
    with sign_in.announced(URL):
        monkeypatch.setattr(sign_in, "answers", lambda url: next(answered))
        sign_in.sign_in("promoter")
        assert os.environ["MLFLOW_TRACKING_URI"] == URL
        for variable in ("MLFLOW_TRACKING_URI", sign_in.USERNAME, sign_in.PASSWORD):
            os.environ.pop(variable)
        monkeypatch.setattr(sign_in, "answers", lambda url: False)
        monkeypatch.setattr(sign_in, "BUSY_SECONDS", 0.0)
        with pytest.raises(TrackingError, match=f"{URL}, runs and has not answered.*MLFLOW_TRACKING_URI"):
            sign_in.sign_in("promoter")
        monkeypatch.setattr(auth_server, "entry_points", lambda group: SimpleNamespace(names=(auth_server.APP,)))
        with pytest.raises(ServerError, match=f"already: {URL}"):
            auth_server.auth_plan(5001)
    assert sign_in.announced_server() is None
    sign_in.sign_in("promoter")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_second_server_over_one_home_is_refused(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Known:
        names = (auth_server.APP,)

    monkeypatch.setattr(auth_server, "entry_points", lambda group: Known)
    with sign_in.announced(URL), pytest.raises(ServerError, match=f"already: {URL}"):
        auth_server.auth_plan(5001)
    (note.parent / "basic_auth.db").write_bytes(b"")
    assert auth_server.auth_plan(5001).command[-1] == "--uvicorn-opts=--no-proxy-headers"
    assert stat.S_IMODE((note.parent / "basic_auth.db").stat().st_mode) == 0o600  # also where an older version had left it open


def test_no_stored_password_makes_a_person_of_whoever_trains_or_approves(note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a shared account for training a reviewer approves their own work, and the log says that somebody else had made it."""
    monkeypatch.delenv(sign_in.USERNAME, raising=False)
    for user in ("trainer", "reviewer", "promoter"):
        sign_in.keep_secret(sign_in.password_file(user))
    with sign_in.announced(URL):
        for person in ("trainer", "reviewer"):
            with pytest.raises(TrackingError, match=f"asks who you are.*an account with the role {person}"):
                sign_in.sign_in(person)
            assert sign_in.USERNAME not in os.environ
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        monkeypatch.setenv(sign_in.USERNAME, "ada")
        monkeypatch.setenv(sign_in.PASSWORD, "known to ada")
        sign_in.sign_in("trainer")
        assert (os.environ["MLFLOW_TRACKING_URI"], os.environ[sign_in.USERNAME]) == (URL, "ada")


@pytest.mark.parametrize("named", [sign_in.USERNAME, sign_in.PASSWORD])
def test_half_an_account_is_not_replaced_by_the_stored_one(named: str, note: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever had named themselves, and forgot the password, promoted as `promoter`."""
    for name in (sign_in.USERNAME, sign_in.PASSWORD):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(named, "ada")
    sign_in.keep_secret(sign_in.password_file("promoter"))
    with sign_in.announced(URL), pytest.raises(TrackingError, match="belong together"):
        sign_in.sign_in("promoter")
    assert os.environ[named] == "ada"


def test_prefect_asks_for_a_password_where_mlflow_does(note: Path) -> None:
    account = sign_in.prefect_account()
    assert account == sign_in.prefect_account() and len(account) > 20
    assert stat.S_IMODE(sign_in.password_file("prefect").stat().st_mode) == 0o600
    assert prefect_plan(4200, account).environment["PREFECT_SERVER_API_AUTH_STRING"] == account
    assert not any(account in word for word in prefect_plan(4200, account).command)  # arguments are everybody's
    assert "PREFECT_SERVER_API_AUTH_STRING" not in prefect_plan(4200).environment


def test_who_holds_a_limited_slot_outlives_the_server_that_people_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a restart of the machine in the middle of a run its slot was taken for ever."""
    name = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    monkeypatch.delenv(name, raising=False)
    assert prefect_plan(4200).environment[name] == "prefect.server.concurrency.lease_storage.filesystem"
    monkeypatch.setenv(name, "a.team.has.its.own")
    assert prefect_plan(4200).environment[name] == "a.team.has.its.own"


def test_leases_lie_where_a_profile_of_prefect_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE, temporary_settings

    monkeypatch.delenv("PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", raising=False)
    with temporary_settings({PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: "a.team.has.its.own"}):
        assert prefect_plan(4200).environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"] == "a.team.has.its.own"
