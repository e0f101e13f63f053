"""Runs whose process was killed, and Prefect's history of long ago."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal
from prefect.utilities.engine import capture_sigterm, is_prefect_sigterm_handler_installed

from components.tracking import live, runs
from components.tracking.live import KILLED, End, end_of, first_started
from components.tracking.provenance import collect_provenance
from components.tracking.runs import CANCELLED, last_flow_run, newest_flow_run, open_flow_run, open_step
from components.tracking.store import TrackingError, client
from flows import cli, reporting, servers
from flows import recorder as recording
from flows.recorder import recorded_flow
from flows.runner import _told_to_end

ROOT = Path(__file__).resolve().parents[3]
LEFT_OPEN = """
import sys, time
from flows.recorder import recorded_flow
with recorded_flow("retriever", "retrain", {}) as recorder:
    print(recorder.run_id, flush=True)
    time.sleep(3600)
"""
IN_A_FLOW = """
import sys, time
from prefect import flow
import flows.cli.operate
from flows.cli import start
from flows.recorder import recorded_flow
from flows.servers import run_flow

@flow(persist_result=False)
def work():
    with recorded_flow("retriever", "retrain", {}) as recorder:
        print(recorder.run_id, flush=True)
        while True:  # a signal between the last look for one and a single long sleep would be seen after that sleep
            time.sleep(0.1)

flows.cli.operate.status = lambda _options: run_flow("__main__:work")
sys.argv[1:] = ["status"]
sys.exit(start())
"""
WITHOUT = """
import os, sys, time
import flows.cli.operate
from flows.cli import start

def work(_options):
    os.write(1, b"works\\n")  # a signal within a print would have it print twice
    while True:  # as above
        time.sleep(0.1)

flows.cli.operate.status = work
sys.argv[1:] = ["status", "--json"]
sys.exit(start())
"""
ENDS = [(signal.SIGTERM, "Told to end (SIGTERM)"), (signal.SIGHUP, "terminal was closed"), (signal.SIGXCPU, "no more processor time")]


def ended(code: str, *numbers: signal.Signals, ignored: signal.Signals | None = None) -> tuple[int, str, str, str]:
    """Exit status, first line, the other output and the messages of a command that gets a signal in the middle of its work."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}

    def before() -> None:  # whatever the tests themselves were started by: under nohup they ignore a closed terminal
        for number, _ in ENDS:
            signal.signal(number, signal.SIG_IGN if number == ignored else signal.SIG_DFL)

    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=variables, text=True, preexec_fn=before, **streams) as process:  # type: ignore[call-overload]
        first = process.stdout.readline().strip()
        for number in numbers:
            process.send_signal(number)
        rest, said = process.communicate(timeout=600)
    assert "Traceback" not in said and "Exception ignored" not in said, said
    return process.returncode, first, rest, said


def status(run_id: str) -> str:
    return str(client().get_run(run_id).info.status)


def test_the_next_flow_closes_the_run_of_a_killed_one_and_leaves_those_that_live(home: Path) -> None:
    command = [sys.executable, "-c", LEFT_OPEN]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        killed, alive = (process.stdout.readline().strip() for process in processes if process.stdout)
        processes[0].send_signal(signal.SIGKILL)
        processes[0].wait(600)
        assert (status(killed), status(alive)) == ("RUNNING", "RUNNING")
        with recorded_flow("retriever", "retrain", {}) as recorder:
            assert (status(killed), status(alive), status(recorder.run_id)) == ("KILLED", "RUNNING", "RUNNING")
        assert status(recorder.run_id) == "FINISHED"
        assert [path.stem for path in (home / "work" / "running").iterdir()] == [alive]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("left", ['{"prefect_flow', "[]", '"x"', '{"prefect_flow_run_id": 5}'])
def test_a_mark_that_was_torn_still_names_the_run_that_it_is_of(left: str, home: Path) -> None:
    """The run stayed open for ever, or every later flow ended in an unexpected failure."""
    run_id = open_flow_run("retriever", "retrain", {}, collect_provenance(), {})
    mark = home / "work" / "running" / f"{run_id}.json"
    mark.parent.mkdir(parents=True)
    mark.write_text(left)
    with recorded_flow("retriever", "retrain", {}):
        assert status(run_id) == "KILLED"
    assert not mark.exists()


def test_an_old_mark_without_a_word_is_that_of_a_killed_run_and_keeps_no_result_from_being_removed(home: Path) -> None:
    """A disk that was full at a flow's start left one: its run stayed open, and prune-work removed nothing any more."""
    run_id = open_flow_run("retriever", "retrain", {}, collect_provenance(), {})
    mark = home / "work" / "running" / f"{run_id}.json"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert end_of(run_id) is None, "its process may be about to write"
    os.utime(mark, (past := time.time() - 86_400, past))
    assert end_of(run_id) == KILLED and first_started() == math.inf
    with recorded_flow("retriever", "retrain", {}):
        assert status(run_id) == "KILLED"
    assert not mark.exists()


def test_a_mark_that_a_full_disk_does_not_take_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(live.json, "dumps", full)
    with pytest.raises(OSError, match="No space left"), live.marked_as_running("1" * 32, {}):
        pytest.fail("it was marked")
    assert not list((home / "work" / "running").iterdir())


def test_a_process_that_is_killed_while_it_writes_its_mark_leaves_one_that_the_next_flow_finds(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left an empty file of another name, which nobody looked for or removed."""
    run_id = open_flow_run("retriever", "retrain", {}, collect_provenance(), {})

    def killed(*_: object) -> str:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(live.json, "dumps", killed)
        with live.marked_as_running(run_id, {}):
            pytest.fail("it was marked")
    (mark,) = (home / "work" / "running").iterdir()
    os.utime(mark, (past := time.time() - 86_400, past))
    with recorded_flow("retriever", "retrain", {}):
        assert status(run_id) == "KILLED"
    assert not list((home / "work" / "running").iterdir())


@pytest.mark.parametrize("where", ["log_dict", "get_run"])
def test_a_run_whose_server_goes_away_at_its_start_is_closed_by_the_next_flow(
    where: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing knew of it before its first step, so that it was shown as running for ever."""

    def gone(*_: object, **__: object) -> None:
        raise TrackingError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(client(), where, gone)
        patch.setattr(client(), "set_terminated", gone)
        with pytest.raises(TrackingError, match="the server is gone"), recorded_flow("retriever", "retrain", {}):
            pytest.fail("it began")
    (run,) = client().search_runs([client().get_experiment_by_name("retriever").experiment_id])
    assert status(run.info.run_id) == "RUNNING"
    with recorded_flow("retriever", "retrain", {}):
        assert status(run.info.run_id) == "FAILED"
    assert not list((home / "work" / "running").iterdir())


def test_a_flow_that_fails_leaves_no_mark(home: Path) -> None:
    with pytest.raises(ValueError, match="broken"), recorded_flow("retriever", "retrain", {}) as recorder:
        raise ValueError("broken")
    assert status(recorder.run_id) == "FAILED" and not list((home / "work" / "running").iterdir())


@pytest.mark.parametrize("disturbed", [KeyboardInterrupt, TrackingError])
def test_a_run_that_could_not_be_closed_is_closed_by_the_next_flow(
    disturbed: type[BaseException], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a second Ctrl-C, or where the server was gone: its mark was removed, and it stayed open for ever."""

    def not_closed(*_: object) -> None:
        raise disturbed("in the midst of it")

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, ValueError)), recorded_flow("retriever", "retrain", {}) as left:
        step = open_step(left.run_id, "train_towers")
        patch.setattr(recording, "close_flow_run", not_closed)
        raise KeyboardInterrupt if disturbed is KeyboardInterrupt else ValueError("broken")
    assert (status(left.run_id), status(step)) == ("RUNNING", "RUNNING")
    ended, why = ("KILLED", CANCELLED) if disturbed is KeyboardInterrupt else ("FAILED", "broken")
    told = last_flow_run("retriever")
    assert told is not None and (told["state"], told["why"]) == ("cancelled" if why == CANCELLED else "failed", why)
    with recorded_flow("retriever", "retrain", {}):
        assert (status(left.run_id), status(step)) == (ended, ended)
        assert client().get_run(left.run_id).data.tags["scalingnote.error"] == why
    assert not list((home / "work" / "running").iterdir())


def test_a_run_that_finished_while_its_server_was_gone_is_closed_as_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It failed at its last word though all was recorded, and the next flow called it killed."""

    def gone(*_: object) -> None:
        raise TrackingError("the server is gone")

    with monkeypatch.context() as patch, recorded_flow("retriever", "retrain", {}) as left:
        patch.setattr(client(), "set_terminated", gone)
    assert status(left.run_id) == "RUNNING" and "All is done and recorded" in capsys.readouterr().out
    told = last_flow_run("retriever")
    assert told is not None and (told["state"], told["why"]) == ("finished", "")
    found = newest_flow_run("retriever", "retrain")  # as a refresh looks for adopted vectors, before it opens a run
    assert found is not None and found.run_id == left.run_id
    with recorded_flow("retriever", "retrain", {}):
        run = client().get_run(left.run_id)
        assert (run.info.status, run.data.tags.get("scalingnote.error")) == ("FINISHED", None)
        assert run.info.end_time < run.info.start_time + 600_000
    assert not list((home / "work" / "running").iterdir())


def test_an_end_that_a_full_disk_has_torn_is_that_of_a_killed_run(home: Path) -> None:
    run_id = open_flow_run("retriever", "retrain", {}, collect_provenance(), {})
    mark = home / "work" / "running" / f"{run_id}.json"
    mark.parent.mkdir(parents=True)
    for torn in ('{}\n{"status": "FINI', '{}\n{"status": "RUNNING", "why": ""}', '{}\n{"status": "FINISHED", "why": 5}', "{}\n"):
        mark.write_text(torn)
        assert end_of(run_id) == KILLED
    with recorded_flow("retriever", "retrain", {}):
        assert status(run_id) == "KILLED"


def test_a_run_whose_end_prefect_could_not_be_told_is_told_by_the_next_flow(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server was gone when the run ended: MLflow called it finished, and Prefect's page running for ever."""
    told: list[Any] = []
    monkeypatch.setattr(recording, "_close_left", lambda *left: told.append(left))
    monkeypatch.setattr(recording, "_ended", {})
    with recorded_flow("retriever", "retrain", {}) as left:
        pass
    recording.leave_untold()
    assert end_of(left.run_id) is not None
    with recorded_flow("retriever", "retrain", {}):
        ((run_id, _, end),) = told
        assert (run_id, end.status) == (left.run_id, "FINISHED")
    assert not list((home / "work" / "running").iterdir())


@pytest.mark.parametrize(
    ("end", "asked", "state"),
    [
        (End("FINISHED", ""), False, "Completed"),
        (End("FAILED", "broken"), False, "Failed"),
        (End("KILLED", CANCELLED), False, "Cancelled"),
        (KILLED, True, "Cancelled"),
        (KILLED, False, "Crashed"),
    ],
)
def test_prefect_is_told_of_a_run_that_was_left_as_it_ended(end: End, asked: bool, state: str) -> None:
    assert recording._in_prefect(end, asked).name == state


def test_a_run_that_said_why_it_ends_before_it_was_disturbed_keeps_that(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a person had cancelled was told as killed."""

    def gone(*_: object) -> None:
        raise TrackingError("the server is gone")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), recorded_flow("retriever", "retrain", {}) as left:
        patch.setattr(client(), "set_terminated", gone)
        raise KeyboardInterrupt
    assert status(left.run_id) == "RUNNING"
    with recorded_flow("retriever", "retrain", {}):
        assert status(left.run_id) == "KILLED" and client().get_run(left.run_id).data.tags["scalingnote.error"] == CANCELLED


@pytest.mark.parametrize("enabled", ["events,flow_runs", "events"])
def test_runs_that_ended_before_the_retention_are_deleted_where_that_is_on(enabled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.client.orchestration
    from prefect.settings import PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED, temporary_settings

    asked: list[Any] = []
    deleted: list[str] = []

    class History:
        def read_flow_runs(self, flow_run_filter: Any, limit: int) -> list[Any]:
            asked.append((flow_run_filter.end_time.before_, limit))
            return [SimpleNamespace(id="old")]

        def delete_flow_run(self, run_id: str) -> None:
            deleted.append(run_id)

    @contextmanager
    def history(sync_client: bool) -> Any:
        yield History()

    monkeypatch.setattr(prefect.client.orchestration, "get_client", history)
    with temporary_settings({PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED: enabled}):
        servers._delete_old_runs()
    assert deleted == (["old"] if "flow_runs" in enabled else [])
    if asked:
        ((before, limit),) = asked
        assert limit == servers.MOST_DELETED
        assert abs(datetime.now(UTC) - timedelta(days=90) - before) < timedelta(minutes=5)


@pytest.mark.server
@pytest.mark.parametrize(("number", "named"), ENDS[:2])
def test_a_flow_that_is_told_to_end_closes_its_run_and_says_how_to_go_on(number: signal.Signals, named: str, home: Path) -> None:
    code, run_id, _, said = ended(IN_A_FLOW, number, number)  # a closed terminal is told twice
    assert code == 128 + number and named in said and "run the same command again" in said
    assert status(run_id) == "KILLED"
    assert client().get_run(run_id).data.tags["scalingnote.error"] == "its process was told to end"
    with recorded_flow("retriever", "retrain", {}):
        assert status(run_id) == "KILLED" and client().get_run(run_id).data.tags["scalingnote.error"] == "its process was told to end"
    assert not list((home / "work" / "running").iterdir())


def test_a_second_signal_does_not_disturb_what_a_flow_tidies_up() -> None:
    """It was raised in the midst of a request to the server, and now and then left a lock of Prefect's client held for good."""
    heard: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("whoever listened before"))
    try:
        with pytest.raises(TerminationSignal), capture_sigterm():
            assert is_prefect_sigterm_handler_installed(), "else a cancellation in Prefect's page would end as a crash"
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                heard.append("tidied up")
        assert heard == ["tidied up", "whoever listened before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cancellation_whose_first_signal_was_lost_is_heard_when_it_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a script's background, where Ctrl-C is ignored, each later one was ignored too, and the run went on."""
    before, done = signal.getsignal(signal.SIGTERM), threading.Event()
    ends, told = [], []

    def interrupt(number: int) -> None:
        told.append(number)
        try:
            signal.getsignal(signal.SIGTERM)(number, None)  # type: ignore[operator, misc, arg-type]
        except TerminationSignal:
            ends.append(number)
        if len(ends) == 2 or len(told) == 50:  # as if the first had been raised within a destructor
            done.set()

    monkeypatch.setattr(reporting, "RETELL_SECONDS", 0.01)
    monkeypatch.setattr("_thread.interrupt_main", interrupt)
    try:
        signal.signal(signal.SIGTERM, _told_to_end)
        reporting._interrupt_until(done)
        interrupt(signal.SIGTERM)
        assert len(ends) == 2 and not reporting.told_again.is_set(), "what others send does not disturb the tidying up"
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(("number", "named"), ENDS)
def test_a_command_that_is_told_to_end_says_so_and_has_its_exit_status(number: signal.Signals, named: str, home: Path) -> None:
    code, _, out, said = ended(WITHOUT, number)
    assert code == 128 + number and named in said and "Finished steps are kept" in said
    assert json.loads(out)["exit_status"] == code


def test_a_command_under_nohup_outlives_its_terminal(home: Path) -> None:
    code, _, _, said = ended(WITHOUT, signal.SIGHUP, signal.SIGTERM, ignored=signal.SIGHUP)
    assert code == 143 and "SIGTERM" in said


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process answers signals as a command does."""
    monkeypatch.setattr(cli, "_told", [])
    monkeypatch.setattr(cli, "_raised", [])
    before = {number: signal.signal(number, cli._end) for number, _ in ENDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGXCPU])
def test_a_command_whose_parent_ignores_sigterm_ends_with_its_terminal(number: signal.Signals, listening: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with pytest.raises(cli.Ended) as told:
        os.kill(os.getpid(), number)
        time.sleep(1)
    assert (told.value.number, told.value.code) == (number, 128 + number)


def test_a_second_signal_does_not_disturb_the_tidying_up(listening: None) -> None:
    with pytest.raises(cli.Ended):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    for number, _ in ENDS:
        os.kill(os.getpid(), number)


def test_a_signal_within_a_callback_of_an_event_loop_is_not_swallowed(listening: None) -> None:
    loop = asyncio.new_event_loop()
    loop.call_soon(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(cli.Ended):
            loop.run_until_complete(asyncio.sleep(1))
    finally:
        loop.close()


@pytest.mark.parametrize(("number", "named"), ENDS)
@pytest.mark.parametrize("module", ["flows.cli.main", "components.promotion.status"])
def test_a_signal_while_modules_are_imported_is_answered_in_words(module: str, number: signal.Signals, named: str, home: Path) -> None:
    code = f"""
import os, sys
class Signal:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signal())
sys.argv[1:] = ["status"]
from flows.cli import start
sys.exit(start())
"""
    status, _, _, said = ended(code)
    assert status == 128 + number and named in said


def test_no_flow_is_tried_again_whatever_the_worker_of_its_deployment_is_told(home: Path) -> None:
    """A worker imports the flows before any of our code runs; wrong data or a refused approval was then said four times."""
    code = """
from flows.adopt import adopt
from flows.promote import promote, promote_newest_approved
from flows.refresh_index import refresh_index
from flows.refresh_query import refresh_query_tower
from flows.retrain import retrain, train
from flows.studies.framework import run_study
print({made.retries for made in (adopt, promote, promote_newest_approved, refresh_index, refresh_query_tower, retrain, train, run_study)})
"""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_FLOWS_DEFAULT_RETRIES": "3", "PREFECT_TASKS_DEFAULT_RETRIES": "3"}
    told = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=600, check=False)
    assert told.stdout.strip() == "{0}", told.stderr


def test_a_left_run_that_this_user_may_not_change_stops_no_flow_and_stays_for_others(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a server with sign-in, as of a retriever of other trainers: every later flow of this home failed at its start."""
    run_id = open_flow_run("other", "retrain", {}, collect_provenance(), {})
    mark = home / "work" / "running" / f"{run_id}.json"
    mark.parent.mkdir(parents=True)
    mark.write_text('{"prefect_flow_run_id": null}\n{"status": "FINISHED", "why": "", "at": 5}')

    def refused(*_: object) -> None:
        raise TrackingError("tina (trainer) has no permission for: get run.")

    with monkeypatch.context() as patch:
        patch.setattr(recording, "close_left_run", refused)
        patch.setattr(runs, "close_left_run", refused)
        with recorded_flow("retriever", "retrain", {}) as recorder:
            pass
        assert status(recorder.run_id) == "FINISHED" and mark.exists()
        found = newest_flow_run("retriever", "retrain")
        assert found is not None and found.run_id == recorder.run_id
    assert f"The run {run_id} of a flow that has ended is still shown as running: tina" in capsys.readouterr().out
    with recorded_flow("retriever", "retrain", {}):
        assert status(run_id) == "FINISHED" and not mark.exists()


def test_a_left_run_of_another_store_waits_for_a_flow_there(home: Path) -> None:
    """Its mark went with the first flow elsewhere, and it was shown as running for ever."""
    marks = home / "work" / "running"
    marks.mkdir(parents=True)
    for run_id, store in (("1" * 32, '"http://mlflow.example"'), ("2" * 32, "null")):
        (marks / f"{run_id}.json").write_text(f'{{"prefect_flow_run_id": null, "store": {store}}}')
    here = open_flow_run("retriever", "retrain", {}, collect_provenance(), {})
    (marks / f"{here}.json").write_text('{"prefect_flow_run_id": null, "store": "http://127.0.0.1:5000"}')  # a server over this very store
    with recorded_flow("retriever", "retrain", {}):
        assert status(here) == "KILLED"
    assert [path.stem for path in marks.iterdir()] == ["1" * 32]
