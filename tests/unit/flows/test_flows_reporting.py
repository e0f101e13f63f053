"""What a run tells: lines with levels, names, results, and events that a server may not take."""

from __future__ import annotations

import io
import json
import logging
import shlex
import signal
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

import components.promotion.promote as waiting
import flows.candidate as building
import flows.reporting
from components.errors import ConfigError
from components.gates.decision import GateResult
from components.promotion.approval import Approval
from components.tracking import runs as runs_in_mlflow
from components.tracking.provenance import collect_provenance
from components.tracking.runs import FlowRun
from components.tracking.store import TrackingError
from flows import servers
from flows.adopt import adopted_run
from flows.candidate import CandidateResult, verdict_line
from flows.cli.build import _adopted_text
from flows.cli.main import main
from flows.cli.parser import build_parser
from flows.config import load_config
from flows.parameters import require_steps
from flows.refresh_index import RefreshConfig
from flows.reporting import LOG, logged_lines, run_name, say, tell_approved
from flows.servers import ServerError
from flows.webhook import Watch

DEAD = "http://127.0.0.1:1/api"


@pytest.mark.parametrize("module", ["retrain:retrain", "retrain:train", "refresh_index:refresh_index", "promote:promote"])
def test_a_team_that_keeps_the_results_of_its_flows_keeps_those_of_ours(module: str) -> None:
    """`run_deployment(...).state.result()` found none, whatever the team's settings say."""
    file, name = module.split(":")
    run = getattr(import_module(f"flows.{file}"), name)
    assert run.persist_result is None and run.retries == 0, "the first is the team's to say, the second is not"


def test_links_lead_to_the_address_by_which_browsers_know_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers a worker knows the server by a name that no browser knows."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert flows.reporting.mlflow_address() == "http://mlflow:5000"
    monkeypatch.setenv("SCALINGNOTE_MLFLOW_PAGE", "https://ada:secret@mlflow.example.org/")
    assert flows.reporting.mlflow_address() == "https://mlflow.example.org"
    monkeypatch.setenv("SCALINGNOTE_MLFLOW_PAGE", "")
    assert flows.reporting.mlflow_address() == "http://mlflow:5000"


def test_lines_go_to_the_terminal_once_and_to_the_file_with_their_level(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    before = (list(LOG.handlers), LOG.level, LOG.propagate)
    with logged_lines():
        say("[evaluate] started")
        say("[encode_corpus] a process died", logging.WARNING)
        print("a line", "of a component")
        print("in two ", end="")
        print("parts, \u00e9")
        with logged_lines():
            print("within another flow")
    say("after the run")
    lines = ["[evaluate] started", "[encode_corpus] a process died", "a line of a component", "in two parts, \u00e9", "within another flow"]
    assert capsys.readouterr().out.splitlines() == [*lines, "after the run"]
    kept = (tmp_path / "logs" / "runs.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition("] ")[2] for line in kept] == lines
    assert [" WARNING " in line for line in kept] == [False, True, False, False, False]
    assert (LOG.handlers, LOG.level, LOG.propagate) == before and not isinstance(sys.stdout, flows.reporting._Logged)
    assert LOG.propagate, "who takes this logger's lines elsewhere still gets them after a run"


@pytest.mark.parametrize(
    ("level", "kept"),
    [("debug", ["told", "printed", "careful"]), ("info", ["told", "printed", "careful"]), ("Warning", ["careful"]), ("error", [])],
)
def test_what_is_below_the_level_is_shown_nowhere(
    level: str, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setenv("SCALINGNOTE_LOG_LEVEL", level)
    with logged_lines():
        say("told")
        print("printed")
        say("careful", logging.WARNING)
    print("result")
    assert capsys.readouterr().out.split() == [*kept, "result"]
    file = tmp_path / "logs" / "runs.log"
    assert [line.split()[-1] for line in (file.read_text().splitlines() if file.exists() else [])] == kept


def test_a_level_that_is_none_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setenv("SCALINGNOTE_LOG_LEVEL", "loud")
    message = "SCALINGNOTE_LOG_LEVEL is 'loud', which is no level. Give one of debug, info, warning, error."
    with pytest.raises(ConfigError, match=message), logged_lines():
        pass


def test_lines_of_two_threads_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    both = threading.Barrier(2, timeout=600)

    def tell(word: str) -> None:
        sys.stdout.write(word)
        both.wait()
        sys.stdout.write(f" {word}\n")

    with logged_lines():
        threads = [threading.Thread(target=tell, args=(word,)) for word in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    kept = (tmp_path / "logs" / "runs.log").read_text(encoding="utf-8").splitlines()
    assert sorted(line.partition("] ")[2] for line in kept) == ["one one", "two two"]


def test_commands_that_run_at_once_lose_no_line_when_one_of_them_begins_the_log_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setattr(flows.reporting, "LOG_BYTES", 1000)
    handlers = [flows.reporting._file_handler() for _ in range(3)]  # each with a file of its own, as in processes of their own
    lines = [f"line {number:03}" for number in range(90)]
    for number, line in enumerate(lines):
        handlers[number % 3].handle(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
    for handler in handlers:
        handler.close()
    kept = [path for path in (tmp_path / "logs").glob("runs.log*") if not path.name.endswith(".lock")]
    assert len(kept) > 2 and max(path.stat().st_size for path in kept) <= 1000
    assert sorted(line.partition("] ")[2] for path in kept for line in path.read_text().splitlines()) == lines


def test_a_home_without_room_for_a_log_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    (tmp_path / "logs").write_text("a file where the folder would be")
    with logged_lines():
        say("[evaluate] started")
    said = capsys.readouterr()
    assert said.out == "[evaluate] started\n" and said.err == ""


@pytest.mark.parametrize(
    ("given", "begins"),
    [
        ({"preset": "smoke", "data": "/data/shoes", "name": "shop", "settings": {}, "config": None}, "shop shoes 20"),
        ({"preset": "demo", "data": "", "name": "", "settings": {}, "config": None}, "retriever icd10cm 20"),
        ({"preset": "smoke", "data": "x", "name": "shop", "settings": {"no.such": 1}, "config": None}, "shop x 20"),
        ({"name": "shop", "release": "champion", "data": "", "preset": None, "settings": {}, "request": None}, "shop champion 20"),
        ({"name": "shop", "retry": False, "without_champion": None}, "shop 20"),
    ],
)
def test_a_run_is_named_by_retriever_data_and_date(given: dict[str, Any], begins: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.runtime

    monkeypatch.setattr(prefect.runtime, "flow_run", type("Run", (), {"parameters": given}))
    assert run_name().startswith(begins)


RESULT = CandidateResult(
    name="shop",
    release_type="full",
    candidate="candidate/2",
    version=2,
    digest="d",
    folder="/somewhere",
    verdict="fail",
    first_release=True,
    gates=(
        GateResult(name="retention", status="pass", reason="It holds."),
        GateResult(name="beats_bm25", status="fail", reason="No.", value=0.1),
    ),
    cached=False,
    mlflow_run_id="r",
)


def test_the_result_of_a_run_is_one_line() -> None:
    assert verdict_line(RESULT) == "candidate/2: fail (not passed: beats_bm25)"
    passed = RESULT.model_copy(update={"gates": RESULT.gates[:1], "verdict": "pass", "cached": True})
    assert verdict_line(passed) == "candidate/2: pass, all from the cache"
    assert verdict_line(passed.model_copy(update={"candidate": None})).startswith("no new candidate: pass")


def test_a_result_as_plain_values_says_what_its_flow_set_and_everything_of_each_gate() -> None:
    plain = json.loads(json.dumps(RESULT.as_json()))
    assert not {"base", "changes", "encoded", "guard", "seconds", "split", "cost"} & set(plain)
    assert plain["gates"][0] == GateResult(name="retention", status="pass", reason="It holds.").model_dump()
    unchanged = RESULT.model_copy(update={"base": "release/1", "encoded": 0, "guard": None}).as_json()
    assert (unchanged["base"], unchanged["encoded"], unchanged["guard"]) == ("release/1", 0, None)
    with pytest.raises(ValidationError):
        RESULT.verdict = "pass"  # type: ignore[misc]


def test_an_event_that_no_server_takes_is_one_sentence(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    one = type("Waiting", (), {"versions": [type("Info", (), {"version": 3})]})
    monkeypatch.setattr(waiting, "waiting_for_promotion", lambda name, records: one)
    words = r"did not take the event release.approved .*counts all"
    with temporary_settings({PREFECT_API_URL: DEAD}), pytest.raises(ServerError, match=words):
        tell_approved("retriever")
    with temporary_settings({PREFECT_API_URL: None}):
        assert not tell_approved("retriever")


def approving(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whom the command approved, which is named a Prefect server."""
    approved: list[str] = []

    def approve(name: str, *_: object) -> Approval:
        approved.append(name)
        return Approval(name, 1, 1, "Ada", None, None, created=True)

    monkeypatch.setenv("PREFECT_API_URL", DEAD)
    monkeypatch.setattr("components.promotion.approval.approve", approve)
    return approved


def test_a_wrong_setting_of_prefect_is_said_before_anything_is_approved(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The approval was made and said, and then the command ended with an unexpected failure and a second object of JSON."""

    def wrong() -> None:
        raise ConfigError("Prefect's settings cannot be read")

    approved = approving(monkeypatch)
    monkeypatch.setattr(servers, "require_usable_settings", wrong)
    assert main(["approve", "1", "--as", "Ada", "--json"]) == 2 and approved == []
    assert json.loads(capsys.readouterr().out)["exit_status"] == 2


@pytest.mark.parametrize("error", [ServerError("silent"), TrackingError("No tracking server answers")])
def test_an_approval_that_cannot_be_told_is_one_all_the_same(
    error: Exception, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(_: str) -> bool:
        raise error

    approved = approving(monkeypatch)
    monkeypatch.setattr(servers, "require_usable_settings", lambda: None)
    monkeypatch.setattr(flows.reporting, "tell_approved", tell)
    assert main(["approve", "1", "--as", "Ada", "--json"]) == 0 and approved == ["retriever"]
    said = capsys.readouterr()
    assert json.loads(said.out)["release_version"] == 1 and str(error) in said.err


def test_passwords_in_addresses_stay_out_of_what_could_not_be_shown(caplog: pytest.LogCaptureFixture) -> None:
    """They stood on Prefect's page and in the file of the runs."""
    with caplog.at_level(logging.WARNING), flows.reporting.shown_if_possible():
        raise ValueError("Client error '401' for url 'http://ada:secret@prefect:4200/api/artifacts'")
    assert "http://ada:***@prefect:4200" in caplog.text and "secret" not in caplog.text


def test_json_loses_no_letter_where_the_output_cannot_show_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a trace, and in what a watching promoter and a failure say, question marks stood in their place."""
    monkeypatch.setattr("flows.cli.audit._traced", lambda _: SimpleNamespace(to_json=lambda: {"ref": "Müller"}))
    shown = io.TextIOWrapper(io.BytesIO(), "ascii", errors="replace")
    monkeypatch.setattr(sys, "stdout", shown)
    assert main(["trace", "champion", "--json"]) == 0
    assert main(["status", "--name", "Müller", "--json"]) == 2
    assert main(["trace", "champion", "--format", "json", "-o", str(tmp_path / "trace.json")]) == 0
    shown.flush()
    said = shown.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert said.count("M\\u00fcller") == 2 and "?" not in said
    assert "Müller" in (tmp_path / "trace.json").read_text(encoding="utf-8")


def test_vectors_that_are_adopted_beside_a_release_are_what_the_next_command_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """It started from the champion, and made an encoder for the index of before."""
    told = _adopted_text({"name": "shop", "documents": 9, "queries": 0, "dimension": 4, "index": "shop-index/2"})
    options = build_parser().parse_args(shlex.split(told.splitlines()[-1])[1:])
    run = FlowRun("a1", "adopt", "FINISHED", "now", {}, None, {})
    monkeypatch.setattr("flows.adopt.newest_flow_run", lambda name, flow: run)
    monkeypatch.setattr("flows.adopt._released", lambda name: True)
    found = adopted_run(RefreshConfig(name=options.name, release=options.release))
    assert found is not None and found.run_id == "a1"


@pytest.mark.parametrize(("known", "cached"), [(None, False), (None, True), ("candidate/1", False), ("candidate/1", True)])
def test_people_are_told_of_a_candidate_when_it_is_registered_whatever_was_found_finished(
    known: str | None, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server went away in the midst of the registration, the run that registered it found all finished, and told nobody."""
    told: list[str] = []
    version = SimpleNamespace(name="shop-candidate", version=2, digest="d")
    stubs = ("champion_to_compare_with", "_candidate_step", "sign_release", "ensure_model", "load_release", "load_noise", "describe")
    more = ("evidence_links", "set_description", "candidate_metrics", "evidence_tables", "log_version_metrics", "show_candidate")
    for name in (*stubs, *more):
        monkeypatch.setattr(building, name, lambda *_: None)
    monkeypatch.setattr(building, "with_queries_in_common", lambda _, parts: parts)
    monkeypatch.setattr(building, "_register_parts", lambda *_: {})
    decision = SimpleNamespace(verdict="undecided", first_release=True, gates=())
    monkeypatch.setattr(building, "_decide", lambda *_: SimpleNamespace(decision=decision, outcome=None))
    monkeypatch.setattr(building, "dossier_of", lambda *_: SimpleNamespace(making=SimpleNamespace(costs=(), sizes={})))
    monkeypatch.setattr(building, "model_metrics", lambda _: {"candidate": {}})
    monkeypatch.setattr(building, "find_version", lambda *_: known)
    monkeypatch.setattr(building, "emit", lambda event, *_, **__: told.append(event))
    artifact = SimpleNamespace(path=Path("candidate"), digest="d")
    recorder: Any = SimpleNamespace(run=lambda _: artifact, register=lambda *_: version, all_cached=cached, run_id="r")
    recorder.log_candidate_page = lambda *_: None
    parts: Any = SimpleNamespace(evaluation=artifact, dataset=artifact, release_type="full")
    assert building.register_candidate(load_config("smoke", None, {"name": "shop"}), recorder, parts).version == 2
    assert told == ([] if known else ["candidate.registered"])


def test_telling_prefect_without_a_server_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCALINGNOTE_WEBHOOK_SECRET", "a secret of the webhook")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert main(["webhook", "--port", "8765", "--emit"]) == 2
    said = capsys.readouterr().err
    assert "--emit tells a Prefect server of approvals, and none is named. Set PREFECT_API_URL" in said and "Traceback" not in said


def test_who_only_tells_prefect_tells_it_once_of_each_state_and_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["a", "a", "a", None, "b"])
    monkeypatch.setattr(waiting, "promotion_fingerprint", lambda name: next(states))
    answers: list[Any] = [ServerError("silent"), True, True]

    def tell(name: str) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    monkeypatch.setattr(flows.reporting, "tell_approved", tell)
    told: list[dict[str, Any]] = []
    watch = Watch("retriever", 60, told.append, emit=True)
    with pytest.raises(ServerError):
        watch.look()
    for _ in range(4):
        watch.look()
    assert [change["status"] for change in told] == ["told", "told"] and not answers


@pytest.mark.parametrize(("fails", "last"), [(False, (100.0, "done")), (True, (20.0, "towers: 1 of 5"))])
def test_the_bar_of_a_step_ends_full_where_the_step_was_made_and_stays_where_it_failed(
    fails: bool, last: tuple[float, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[tuple[float, str]] = []

    def show(bar: str, share: float, description: str) -> str:
        shown.append((share, description))
        return bar

    monkeypatch.setattr("prefect.artifacts.create_progress_artifact", lambda share, key, description: show(key, share, description))
    monkeypatch.setattr("prefect.artifacts.update_progress_artifact", show)
    of_a_deployment = SimpleNamespace(flow_run=SimpleNamespace(deployment_id="one"))
    monkeypatch.setattr("prefect.context.FlowRunContext.get", classmethod(lambda cls: of_a_deployment))
    monkeypatch.setattr(flows.reporting, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(flows.reporting, "_progress", lambda: (20.0, "towers: 1 of 5"))
    with suppress(ValueError), flows.reporting.watched("train_towers"):
        watch = next(thread for thread in threading.enumerate() if thread.name == "watch")
        while not shown:
            watch.join(0.01)
        if fails:
            raise ValueError
    watch.join()
    assert shown[-1] == last


@pytest.mark.parametrize(("ctrl_c", "sent"), [(signal.default_int_handler, signal.SIGINT), (signal.SIG_IGN, signal.SIGTERM)])
def test_a_run_in_a_scripts_background_can_be_cancelled_in_the_page(ctrl_c: Any, sent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There Ctrl-C is ignored, and what simulates it did nothing; an interruption within a destructor was lost, and the run went on."""
    run = SimpleNamespace(flow_run=SimpleNamespace(id="1", deployment_id=None))
    monkeypatch.setattr("prefect.context.FlowRunContext.get", classmethod(lambda cls: run))
    monkeypatch.setattr(flows.reporting, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(flows.reporting, "_is_being_cancelled", lambda _run: True)
    monkeypatch.setattr(flows.reporting, "RETELL_SECONDS", 0.01)
    told: list[int] = []
    monkeypatch.setattr("_thread.interrupt_main", told.append)
    before = signal.signal(signal.SIGINT, ctrl_c)
    try:
        with flows.reporting.watched("train_towers"):
            watch = next(thread for thread in threading.enumerate() if thread.name == "watch")
            while len(told) < 3:  # as if two of them had been lost
                watch.join(0.01)
                assert watch.is_alive()
        watch.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert set(told) == {sent}


@pytest.mark.parametrize("name", ["retriever", "retriever-study-scaling_law"])
def test_the_link_to_mlflow_has_a_key_that_prefect_takes(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from prefect.client.schemas.actions import ArtifactCreate

    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:secret@mlflow.example.org/")
    monkeypatch.setattr("prefect.context.FlowRunContext.get", classmethod(lambda cls: cls))
    made: list[dict[str, Any]] = []
    monkeypatch.setattr("prefect.artifacts.create_link_artifact", lambda **given: made.append(given))
    flows.reporting.show_link(f"{name}-mlflow", "#/experiments/1/runs/2", "This run in MLflow")
    assert [given["link"] for given in made] == ["https://mlflow.example.org/#/experiments/1/runs/2"]
    ArtifactCreate(key=made[0]["key"])


@pytest.mark.parametrize(("given", "tries"), [(None, 7), ("2", 2)])
def test_a_run_has_patience_with_a_team_server_unless_a_person_has_set_it(
    given: str | None, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES

    monkeypatch.setattr("flows.servers.answers", lambda url, seconds: True)
    monkeypatch.setattr(flows.servers, "require_usable_settings", lambda: None)
    monkeypatch.setattr(flows.servers, "tries", PREFECT_CLIENT_MAX_RETRIES.value, raising=False)
    own: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: int(given)} if given else {}
    with temporary_settings({PREFECT_API_URL: "http://prefect.example.org/api", **own}):
        assert servers.run_flow("flows.servers:tries") == tries


def test_a_step_that_a_flow_does_not_have_is_refused_with_the_list() -> None:
    require_steps("retrain", ["evaluate"], ("evaluate", "train_towers"))
    with pytest.raises(
        ConfigError, match=r"retrain has no step 'train_tower'; did you mean 'train_towers'.* Steps: evaluate, train_towers"
    ):
        require_steps("retrain", ["train_tower"], ("evaluate", "train_towers"))


class OtherServer(BaseHTTPRequestHandler):
    """Answers as healthy, with a version of its own, and knows no other path."""

    version = "2.20.9"

    def do_GET(self) -> None:
        known = {"/api/health": b"true", "/api/admin/version": f'"{self.version}"'.encode()}
        content = known.get(self.path, b'{"detail": "Not Found"}')
        self.send_response(200 if self.path in known else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(content)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize("version", ["2.20.9", "3.0.0"])
def test_a_server_of_an_older_version_is_one_sentence(version: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OtherServer, "version", version)
    server = ThreadingHTTPServer(("127.0.0.1", 0), OtherServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_address[1]}/api"}),
            pytest.raises(ServerError, match=rf"is of version {version}, this client of .*Run a server of the client's version"),
        ):
            servers.run_flow("flows.promote:promote", "retriever")
    finally:
        server.shutdown()
        server.server_close()


def test_the_page_of_a_server_in_the_place_of_its_api_is_told_as_such(home: Path) -> None:
    """It answers every question with itself, and was called stopped, or another program."""

    class Page(OtherServer):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"true" if self.path == "/api/health" else b"<!DOCTYPE html>")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = f"http://127.0.0.1:{server.server_address[1]}"
        with temporary_settings({PREFECT_API_URL: place}), pytest.raises(ServerError, match=rf"Its API lies at {place}/api: name that"):
            servers.run_flow("flows.promote:promote", "retriever")
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_lets_nobody_in_is_not_taken_for_an_older_one(home: Path) -> None:
    """That of `ui --auth` and of docker/compose.yaml asks for a password, and its version was blamed."""

    class Closed(OtherServer):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 401)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"true")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Closed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with (
            temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_address[1]}/api"}),
            pytest.raises(ServerError, match="Set PREFECT_API_AUTH_STRING to USER:PASSWORD"),
        ):
            servers.run_flow("flows.promote:promote", "retriever")
    finally:
        server.shutdown()
        server.server_close()
    trouble: Any = SimpleNamespace(response=SimpleNamespace(status_code=502))
    assert "a proxy before it, is in trouble (status 502)" in servers._other_version("http://x/api", trouble)


@pytest.mark.parametrize(
    ("status", "why", "state"),
    [
        ("FINISHED", None, "finished"),
        ("FAILED", "the data is wrong", "failed"),
        ("KILLED", runs_in_mlflow.CANCELLED, "cancelled"),
        ("KILLED", "its process was killed", "killed"),
    ],
)
def test_status_has_one_word_for_each_end_of_a_run(
    status: Any, why: str | None, state: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = runs_in_mlflow.open_flow_run("retriever", "retrain", {}, collect_provenance(), {})
    assert main(["status"]) == 0 and ", running\n" in capsys.readouterr().out
    runs_in_mlflow.close_flow_run(run_id, status, why)
    assert main(["status"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Last run: retrain of 20"))
    assert line.endswith(f", {state}{f': {why}' if state in ('failed', 'killed') else ''}")
