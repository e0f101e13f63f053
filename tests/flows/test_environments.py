"""The command line in the environments that people have: a sentence, or it works, and never a traceback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.flows.cli_world import Built, at_home, environment, scalingnote

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-c", "import sys; from flows.cli import start; sys.exit(start())")
NO_SERVER = "http://127.0.0.1:1"
pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def served(built: Built, tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Path:
    """A home with a champion."""
    home = tmp_path_factory.mktemp("places") / "home"
    shutil.copytree(built.home, home)
    with at_home(home, mlflow_template):
        assert scalingnote("approve", "1", "--as", "Ada").status == 0
        assert scalingnote("promote").status == 0
    return home


@pytest.fixture
def variables(served: Path, mlflow_template: Path) -> dict[str, str]:
    """The environment of a process that works there."""
    return {**environment(served, mlflow_template), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def silent() -> Iterator[str]:
    """Address of a server that takes connections and never says a word."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def run(arguments: Sequence[str | bytes], variables: Mapping[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
    """One command in a process of its own; its output is kept unless it is sent elsewhere."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    done = subprocess.run([*PROGRAM, *arguments], env=variables, text=True, errors="replace", timeout=600, check=False, **streams)
    assert "Traceback" not in (done.stderr or "") and "Exception ignored" not in (done.stderr or ""), done.stderr
    return done


def test_a_company_proxy_is_not_asked_for_our_own_servers(variables: dict[str, str], tmp_path: Path) -> None:
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = run(["promote"], {**variables, **proxies, "NO_PROXY": "", "no_proxy": ""}, cwd=tmp_path)
    assert done.returncode == 0 and "Status: nothing" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("change", "status", "named"),
    [
        ({"PREFECT_API_URL": f"{NO_SERVER}/api"}, 8, f"Prefect's server {NO_SERVER}/api does not answer"),
        ({"MLFLOW_TRACKING_URI": "http://ann:s3cr3t@127.0.0.1:1"}, 8, f"No tracking server answers at {NO_SERVER}"),
        ({"PREFECT_API_ENABLE_HTTP2": "perhaps"}, 2, "Prefect's settings cannot be read"),
        ({"HTTP_PROXY": "ftp://proxy.example.org"}, 2, "No connection can be made with HTTP_PROXY"),
        ({"HTTPS_PROXY": "http://proxy.example.org:port"}, 2, "No connection can be made with HTTPS_PROXY"),
        ({"SSL_CERT_FILE": "/nowhere/certificates.pem"}, 2, "No connection can be made with SSL_CERT_FILE"),
    ],
)
def test_servers_and_settings_that_do_not_work_are_named(
    change: dict[str, str], status: int, named: str, variables: dict[str, str], tmp_path: Path
) -> None:
    without = {name: value for name, value in variables.items() if not name.upper().endswith("PROXY") and name != "SSL_CERT_FILE"}
    done = run(["promote"], {**without, **change}, cwd=tmp_path)
    assert done.returncode == status and named in done.stderr, done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "content", "status", "named"),
    [
        (".env", f"PREFECT_API_URL={NO_SERVER}/api".encode(), 8, f"{NO_SERVER}/api does not answer"),
        (".env", b"PREFECT_API_URL=caf\xff", 2, "Prefect's settings cannot be read"),
        ("prefect.toml", f'[api]\nurl = "{NO_SERVER}/api"'.encode(), 8, f"{NO_SERVER}/api does not answer"),
        ("prefect.toml", b"[api\n", 2, "Prefect's settings cannot be read"),
    ],
)
def test_settings_of_prefect_in_the_current_folder_are_named(
    file: str, content: bytes, status: int, named: str, variables: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / file).write_bytes(content)
    done = run(["promote"], variables, cwd=tmp_path)
    assert done.returncode == status and named in done.stderr and file in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("command", "change", "named"),
    [
        (["ui"], {"PREFECT_HOME": "/proc/gone/prefect"}, "PREFECT_HOME: the folder '/proc/gone/prefect' cannot be made"),
        (["promote"], {"PREFECT_HOME": "/etc/passwd"}, "PREFECT_HOME: the folder '/etc/passwd' cannot be made"),
        (["ui"], {"PREFECT_API_REQUEST_TIMEOUT": "soon"}, "Prefect's settings cannot be read"),
        (["demo"], {"PREFECT_API_REQUEST_TIMEOUT": "soon"}, "Prefect's settings cannot be read"),
        (["prune-work"], {"PREFECT_API_REQUEST_TIMEOUT": "soon"}, "Prefect's settings cannot be read"),
    ],
)
def test_variables_of_prefect_that_cannot_be_used_are_named(
    command: list[str], change: dict[str, str], named: str, variables: dict[str, str], tmp_path: Path
) -> None:
    done = run(command, variables | change, cwd=tmp_path)
    assert done.returncode == 2 and named in done.stderr, done.stderr


def test_a_server_that_never_answers_is_not_waited_for(variables: dict[str, str], silent: str) -> None:
    done = run(["status"], {**variables, "MLFLOW_TRACKING_URI": silent})
    assert done.returncode == 8 and f"No tracking server answers at {silent}" in done.stderr
    done = run(["promote"], {**variables, "PREFECT_API_URL": f"{silent}/api"})
    assert done.returncode == 8 and "does not answer" in done.stderr


def test_two_first_starts_at_once_both_find_a_store(tmp_path: Path, variables: dict[str, str]) -> None:
    code = (
        "from components import settings; settings.activate(); from components.tracking.store import client; client().search_experiments()"
    )
    new = {**variables, "SCALINGNOTE_HOME": str(tmp_path / "new")}
    both = [subprocess.Popen([sys.executable, "-c", code], env=new, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("Waiting: another command is opening MLflow" in text for text in said), said


@pytest.mark.parametrize(
    "arguments", [["search", b"caf\xff"], ["validate", "--data", b"data-\xff"], [b"\xff"], ["status", "--name", b"\xff"]]
)
def test_bytes_that_are_no_text_are_shown_and_refused(arguments: list[str | bytes], variables: dict[str, str]) -> None:
    done = run(arguments, variables)
    assert done.returncode == 2 and "\\xff' holds bytes that are no text" in done.stderr, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_our_letters_gets_others(encoding: str, variables: dict[str, str]) -> None:
    narrow = {**variables, "PYTHONIOENCODING": encoding}
    told = run(["history"], narrow)
    assert told.returncode == 0 and "promote" in told.stdout
    assert "query" in (answer := run(["search", "→ Ménière", "--json"], narrow).stdout) and "\\u2192 M" in answer  # JSON loses nothing
    assert run(["search", "→ Ménière"], narrow).returncode == 0


def test_a_reader_that_leaves_early_is_no_failure(variables: dict[str, str]) -> None:
    for arguments in (["history"], ["--help"], ["search", "heart stone"]):
        reading, writing = os.pipe()
        os.close(reading)
        assert run(arguments, variables, stdout=writing).returncode == 0
        os.close(writing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_named_and_not_the_home_folder(variables: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        for arguments in (["status"], ["--help"], ["search", "heart stone", "--json"]):
            done = run(arguments, variables, stdout=full)
            assert done.returncode == 9 and "The output cannot be written" in done.stderr
        assert run(["status"], variables, stderr=full).returncode == 0


def test_closed_streams_get_nothing_and_no_file_takes_their_place(variables: dict[str, str], served: Path) -> None:
    command = " ".join(f"'{word}'" for word in PROGRAM)
    for arguments, status in (("status", 0), ("history", 0), ("search heart", 0), ("search ''", 3)):
        done = subprocess.run(["sh", "-c", f"{command} {arguments} <&- >&- 2>&-"], env=variables, timeout=600, check=False)
        assert done.returncode == status
    assert run(["verify"], variables).returncode == 0  # nothing was printed into the store


@pytest.mark.parametrize("module", ["flows.cli.main", "components.settings", "components.promotion.status", "pandas"])
def test_ctrl_c_while_modules_are_imported_is_answered_in_words(module: str, variables: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _interrupted_at(module)], env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.strip() == "scalingnote: Interrupted. Run the same command again to continue where it was."


def test_ctrl_c_while_the_program_ends_is_answered_in_words(variables: dict[str, str]) -> None:
    code = "import atexit, os, signal, sys; atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT)); sys.argv[1:] = ['status']\n"
    done = subprocess.run(
        [sys.executable, "-c", code + PROGRAM[2]], env=variables, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr and "Interrupted" in done.stderr


def test_whoever_may_only_read_the_home_gets_answers(variables: dict[str, str], served: Path, tmp_path: Path) -> None:
    before = _seen(served)
    reader = _as_reader(served)
    known = {**variables, "HOME": "", "TMPDIR": str(tmp_path / "nowhere")}
    known.pop("HOME")
    for arguments, named in (
        (["search", "heart stone"], "heart"),
        (["verify"], "checks hold"),
        (["status"], "release/1"),
        (["history"], "Ada"),
    ):
        done = subprocess.run([*reader, *PROGRAM, *arguments], env=known, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0 and named in done.stdout, done.stderr
        assert ("Not logged" in done.stderr) == (arguments[0] == "search")
    assert _seen(served) == before


def test_a_private_umask_keeps_a_home_private_and_usable(variables: dict[str, str], tmp_path: Path) -> None:
    private = {**variables, "SCALINGNOTE_HOME": str(tmp_path / "private")}
    shutil.copytree(variables["SCALINGNOTE_HOME"], tmp_path / "private")
    done = run(["search", "heart stone"], private, umask=0o077)
    assert done.returncode == 0 and "answer:" in done.stdout


def _as_reader(home: Path) -> list[str]:
    """The start of a command whose user may read everything and write nothing in `home`."""
    if os.geteuid() == 0 and shutil.which("setpriv"):
        capabilities = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
        command = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", *capabilities]
        if subprocess.run([*command, "true"], capture_output=True, timeout=600, check=False).returncode == 0:
            return command
    pytest.skip("another user can be played by root with setpriv alone")


def _interrupted_at(module: str) -> str:
    return f"""
import os, signal, sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
sys.argv[1:] = ["status"]
{PROGRAM[2]}
"""


def _seen(folder: Path) -> dict[str, int]:
    """Path -> time of the last change, of everything in `folder`."""
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_run_is_written_where_it_was_asked_for(variables: dict[str, str], tmp_path: Path) -> None:
    queries, file, link = tmp_path / "queries.jsonl", tmp_path / "run.trec", tmp_path / "link"
    queries.write_text('{"_id": "q1", "text": "heart stone"}\n', encoding="utf-8")
    link.symlink_to(file)
    asked = ["run", "--queries", str(queries), "-k", "3", "--output"]
    assert run([*asked, str(link)], variables).returncode == 0
    written = file.read_text(encoding="utf-8")
    assert link.is_symlink() and len(written.splitlines()) == 3 and written.startswith("q1 Q0 ")
    for place in ("-", "/dev/stdout"):
        done = run([*asked, place], variables, cwd=tmp_path)
        assert done.stdout == written and "1 queries answered" in done.stderr
    with queries.open(encoding="utf-8") as asking:
        assert run([*asked[:1], "--queries", "-", *asked[3:], "-"], variables, stdin=asking).stdout == written
    assert run([*asked, str(queries)], variables).returncode == 2 and "heart stone" in queries.read_text(encoding="utf-8")
    assert run([*asked, str(tmp_path)], variables).returncode == 2
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True) as reader:
        assert run([*asked, str(tmp_path / "pipe")], variables).returncode == 0
        assert reader.communicate(timeout=600)[0] == written
    assert {path.name for path in tmp_path.iterdir()} == {"queries.jsonl", "run.trec", "link", "pipe"}
    assert run(["trace", "champion", "--output", "-"], variables).stdout == run(["trace", "champion"], variables).stdout
