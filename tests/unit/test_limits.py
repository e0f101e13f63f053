"""Limits of a machine behind the errors of many libraries, and locks where a file system has none."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import resource
import sqlite3
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from components import settings
from components.artifacts import write_atomic
from components.data.jsonl import read_queries
from components.errors import ArtifactError, ConfigError, DataError, ModelError, ResourceError, ScalingNoteError
from components.gates.config import PolicyConfig
from components.index.export import require_empty
from components.promotion.verification import _Report
from components.release.champion import ChampionEvaluation, lost
from components.serving import answer_log as answers
from components.serving.promotion_checks import compare_again
from components.tracking import embedded as moved
from components.tracking import packaging
from components.tracking.audit_log import append_entry, read_audit
from components.tracking.runs import open_flow_run
from components.tracking.store import TrackingError, client, require_driver, translated
from flows.candidate import compare_with_champion
from flows.cli import output
from flows.cli import output as disk
from flows.cli.main import main
from flows.cli.output import DiskFull, lacking, require_file, writing
from flows.cli.parser import build_parser
from flows.recorder import recorded_flow
from tests.unit.promotion_world import PROVENANCE

ENTRY = {"user": "ada", "roles": ("trainer",), "method": "POST", "path": "/runs/create", "status": 200, "outcome": "ok"}
ENTRY |= {"action": "create_run", "subject": {"run": "1"}}


def raised(error: Exception, within: type[Exception] | None = None) -> Exception:
    """The error as it is caught, or another that was raised from it."""
    try:
        try:
            raise error
        except Exception as first:
            if within is None:
                raise
            raise within("the step failed") from first
    except Exception as caught:
        return caught


@pytest.mark.parametrize("within", [None, RuntimeError, TrackingError])
@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("Error 24: Too many open files [/a/b]"), "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "ulimit -n"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (MemoryError(), "no memory left"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "no memory left"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "no memory left"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (ImportError("libx.so: failed to map segment from shared object"), "no memory left"),
        (OSError(errno.ENOSPC, "No space left on device"), "is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "is full"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']"), "TMPDIR"),
    ],
)
def test_what_the_machine_lacks_is_said_and_the_exit_status_is_9(
    error: Exception, named: str, within: type[Exception] | None, home: Path
) -> None:
    found = lacking(raised(error, within))
    assert found is not None and found.exit_code == 9 and named in str(found)


@pytest.mark.parametrize(
    "command", [("search", "heart"), ("retrain", "--preset", "smoke"), ("run", "--queries", "nosuch.jsonl", "--output", "out.trec")]
)
def test_models_are_not_loaded_where_their_libraries_get_no_addresses(
    command: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The libraries crash there without a word: seen with `ulimit -v` of 1.5, 1.6 and 2.5 million."""
    monkeypatch.setattr(output.resource, "getrlimit", lambda _: (1_500_000 * 1024, -1))
    assert main(command) == 9
    assert "may reserve 1.4 GiB of addresses (`ulimit -v`)" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [resource.RLIM_INFINITY, 3 * 2**30, 2**40])
def test_an_address_space_that_is_large_enough_is_not_refused(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output.resource, "getrlimit", lambda _: (limit, limit))
    output.require_addresses()


def test_a_limit_on_files_is_what_leaves_no_place_for_temporary_ones(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `ulimit -f 0` a search blamed the versions of the libraries."""
    error = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")
    monkeypatch.setattr(output.resource, "getrlimit", lambda _: (0, 0))
    assert "ulimit -f" in str(lacking(raised(error, ModelError)))
    monkeypatch.setattr(disk, "_free_bytes", lambda probe=None: 0)
    monkeypatch.setattr(disk.tempfile, "gettempdir", lambda: (_ for _ in ()).throw(error))
    assert "is full" in str(lacking(raised(error, ModelError)))
    monkeypatch.setattr(disk, "_free_bytes", lambda probe=None: 10**12)
    assert str(home) in str(DiskFull())  # the folder of temporary files cannot be asked


@pytest.mark.parametrize("within", [None, ArtifactError])
@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, "Too many open files"), MemoryError(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_what_the_machine_lacks_is_no_finding_about_a_release(error: Exception, within: type[Exception] | None) -> None:
    """`verify` said that the release was not verified, and `promote` refused it."""

    def lacks() -> None:
        raise raised(error, within)

    with pytest.raises(ResourceError, match="check 'files' could not be made on this machine, which says nothing of the release"):
        _Report().run("files", lacks)
    report = _Report()
    assert report.run("files", lambda: (_ for _ in ()).throw(OSError(errno.ENOENT, "No such file"))) is None
    assert [check.ok for check in report.checks] == [False]


def test_what_the_machine_lacks_makes_no_champion_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates were undecided for ever, and a promotion asked for --without-champion."""
    full = raised(OSError(errno.EMFILE, "Too many open files"), ArtifactError)

    def lacks(*_: object, **__: object) -> None:
        raise full

    monkeypatch.setattr("components.release.champion.baseline_evaluation", lacks)
    with pytest.raises(ArtifactError):
        lost("retriever", 1)
    monkeypatch.setattr("flows.candidate._comparison_step", lambda *_: None)
    with pytest.raises(ArtifactError):
        compare_with_champion(None, SimpleNamespace(run=lacks), None, ChampionEvaluation(1, None))  # type: ignore[arg-type]
    monkeypatch.setattr("components.serving.promotion_checks.time_both", lacks)
    manifest = SimpleNamespace(config={"policy": {**PolicyConfig().model_dump(mode="json"), "max_p95_ratio": 2.0}})
    monkeypatch.setattr("components.serving.promotion_checks.load_release", lambda _: manifest)
    with pytest.raises(ArtifactError):
        compare_again(Path("release"), 1)
    full = ArtifactError("changed")
    assert "changed" in lost("retriever", 1)


def test_other_errors_are_not_taken_for_limits(home: Path) -> None:
    for error in (DataError("The column is too long."), OSError(errno.ENOENT, "No such file"), KeyError("x")):
        assert lacking(raised(error)) is None


def test_a_fork_that_fails_is_told_from_a_connection_that_is_waited_for(home: Path) -> None:
    refused = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    assert "ulimit -u" in str(lacking(raised(refused)))
    assert lacking(raised(refused, within=ConnectionError)) is None


def test_the_disk_that_is_full_is_the_one_that_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def free(probe: Path | None = None) -> int:
        return 0 if probe == tmp_path / "tmp" else 10**12

    monkeypatch.setattr(disk, "_free_bytes", free)
    monkeypatch.setattr(disk.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    assert "TMPDIR" in str(DiskFull())
    monkeypatch.setattr(disk, "_free_bytes", lambda probe=None: 0)
    assert str(home) in str(DiskFull()) and "TMPDIR" not in str(DiskFull())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_stops_nothing(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with (tmp_path / "lock").open("w") as handle:
        assert settings.locked(handle) and settings.locked(handle, wait=False) and settings.locked(handle, wait=False, shared=True)


@pytest.fixture
def network_drive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as NFS gives them: a shared one to whoever may read the file, an exclusive one to whoever may write to it."""
    real = fcntl.flock

    def flock(handle: IO[Any], how: int) -> None:
        mode = fcntl.fcntl(handle.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
        if mode not in (os.O_RDWR, os.O_RDONLY if how & fcntl.LOCK_SH else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)


def test_locks_are_had_on_a_network_drive(network_drive: None, home: Path, tmp_path: Path) -> None:
    moved.forget()  # the store is opened, and marked as in use, anew
    left = open_flow_run("retriever", "retrain", {}, PROVENANCE, {})
    (home / "work" / "running").mkdir(parents=True)
    (home / "work" / "running" / f"{left}.json").write_text('{"prefect_flow_run_id": null}')
    with recorded_flow("retriever", "retrain", {}):
        assert client().get_run(left).info.status == "KILLED"
    append_entry(tmp_path / "audit.jsonl", ENTRY)
    answers._append(tmp_path / "answers.jsonl", "{}\n")


def test_the_audit_log_is_written_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    append_entry(tmp_path / "audit.jsonl", ENTRY)
    assert len(read_audit(tmp_path / "audit.jsonl")) == 1


def test_a_lock_that_another_holds_is_told_from_one_that_is_had(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as first, path.open("w") as second:
        assert settings.locked(first, wait=False, shared=True) and settings.locked(second, wait=False, shared=True)
        assert not settings.locked(second, wait=False)
        first.close()
        assert settings.locked(second, wait=False)


@pytest.mark.parametrize(
    ("address", "package"),
    [
        ("postgresql+psycopg://u:s3cr3t@db/x", "scalingnote[postgres]"),
        ("postgresql://u:s3cr3t@db/x", "psycopg2-binary"),
        ("mysql+pymysql://u:s3cr3t@db/x", "pymysql"),
    ],
)
def test_a_database_without_its_driver_is_said_with_what_to_install(address: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    name = address.partition("://")[0].partition("+")[2] or "psycopg2"
    with pytest.raises(ConfigError) as caught, translated("open the tracking store"):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    assert package in str(caught.value) and "s3cr3t" not in str(caught.value)
    with pytest.raises(ModuleNotFoundError), translated("open the tracking store"):
        raise ModuleNotFoundError("No module named 'mlflow.nothing'", name="mlflow.nothing")


def test_a_database_that_another_holds_is_said_with_what_to_do(home: Path) -> None:
    with pytest.raises(TrackingError, match="fuser") as caught, translated("open the tracking store"):
        raise sqlite3.OperationalError("database is locked")
    assert caught.value.exit_code == 8 and "open the tracking store" in str(caught.value)


def test_a_database_that_may_only_be_read_is_said_with_what_to_do(home: Path) -> None:
    with pytest.raises(TrackingError, match=r"may only read the database\. See whose it is"), translated("tag a model version"):
        raise sqlite3.OperationalError("attempt to write a readonly database")


@pytest.mark.parametrize(("name", "said"), [("x" * 300, "name too long"), ("deep/" * 900, "name too long"), ("file", "is a file")])
def test_a_home_that_cannot_be_is_refused_in_words(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for place in (name, *([f"{name}/below"] if name == "file" else [])):
        monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / place))
        with pytest.raises(ConfigError, match=said) as caught:
            settings.activate()
        assert len(str(caught.value)) < 400
        assert lacking(caught.value) is None


@pytest.mark.parametrize(
    ("place", "said"), [("/dev/null", "is a file"), ("/dev/null/x", "is a file"), ("/proc/nosuch", "cannot be made: No such file")]
)
def test_a_home_that_is_no_folder_of_a_disk_is_refused_in_words(place: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", place)
    with pytest.raises(ConfigError, match=said) as caught:
        settings.activate()
    assert lacking(caught.value) is None


@pytest.mark.parametrize("name", ["work", "prefect", "mlflow"])
def test_a_file_in_the_place_of_a_folder_of_the_home_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError, match=f"holds a file in the place of the folder {name}"):
        settings.activate()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_home_that_lies_on_a_read_only_disk_is_opened(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setattr(Path, "mkdir", refused)
    settings.activate()


def test_a_disk_without_room_is_not_blamed_for_what_the_system_explains(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_free_bytes", lambda probe=None: 0)
    assert lacking(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
    assert isinstance(lacking(RuntimeError("write failed")), DiskFull)


def test_a_current_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.delenv("SCALINGNOTE_HOME", raising=False)
    (tmp_path / "gone").rmdir()
    with pytest.raises(ScalingNoteError, match="the current folder was removed"):
        settings.home()


def test_a_file_with_as_many_names_as_there_can_be_is_uploaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former, staged = tmp_path / "former", tmp_path / "staged"
    for folder in (former, staged):
        folder.mkdir()
    for name in ("a.bin", "b.bin"):
        (former / name).write_text(name)
        os.link(former / name, staged / name)
    real = os.link

    def link(source: Path, target: Path) -> None:
        if Path(source).name == "a.bin":
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    packaging._share(staged, tmp_path / "place", former)
    assert [path.name for path in staged.iterdir()] == ["a.bin"]  # what is left there is uploaded
    assert (tmp_path / "place" / "b.bin").samefile(former / "b.bin") and not (tmp_path / "place" / "a.bin").exists()


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        write_atomic(tmp_path / name, b"content")
        assert (tmp_path / name).read_bytes() == b"content"
    assert len(list(tmp_path.iterdir())) == 2


def test_processes_of_one_number_in_two_containers_write_one_file_whole(tmp_path: Path) -> None:
    failed: list[Exception] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(50):
                write_atomic(tmp_path / "file", content)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(bytes([65 + number]) * 5000,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and (tmp_path / "file").read_bytes() in [bytes([65 + number]) * 5000 for number in range(4)]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_output_that_another_program_made_non_blocking_is_written_whole() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    read: list[bytes] = []

    def drain() -> None:
        while some := os.read(reading, 1000):
            read.append(some)

    reader = threading.Thread(target=drain)
    reader.start()
    stream = output._text(output._Output(writing, "w", closefd=True), None)
    stream.write("x" * 1_000_000)
    stream.close()
    reader.join(600)
    os.close(reading)
    assert b"".join(read) == b"x" * 1_000_000


FILES = (
    ("trace", "champion", "-o"),
    ("run", "--queries", "q", "--output"),
    ("run", "--output", "o", "--queries"),
    ("export", "--to"),
    ("export", "--router"),
    ("export", "--signed"),
    ("config", "show", "--write"),
    ("retrain", "--config"),
    ("history", "--anchor"),
    ("keys", "new", "--to"),
    ("validate", "--gx-project"),
    ("verify", "--folder"),
    ("bootstrap", "--users"),
)


@pytest.mark.parametrize("words", FILES, ids=lambda words: f"{words[0]} {words[-1]}")
def test_a_tilde_is_the_home_folder_in_every_option_and_never_a_folder_here(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell leaves it alone in `--to=~/x`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path / "x" in vars(build_parser().parse_args([*words[:-1], words[-1], "~/x"])).values()
    with pytest.raises(ConfigError, match="no such user as in '~nosuch/x'"):
        build_parser().parse_args([*words[:-1], words[-1], "~nosuch/x"])


@pytest.mark.parametrize(
    "words", [*FILES, ("validate", "--data"), ("refresh-index", "--data"), ("adopt", "--vectors", "nosuch", "--data")], ids=" ".join
)
def test_a_link_that_leads_back_to_itself_is_said(
    words: tuple[str, ...], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path.resolve` raises a RuntimeError for it."""
    monkeypatch.setattr("flows.cli.build._request", lambda options, _: settings.expanded(options.data))  # no release is asked for
    (tmp_path / "loop").symlink_to("loop")
    assert main([*words, str(tmp_path / "loop")]) == 2
    assert "is a link that leads back to itself" in capsys.readouterr().err


def test_a_home_that_is_a_link_to_itself_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "loop"))
    with pytest.raises(ConfigError, match="leads back to itself"):
        settings.activate()


@pytest.mark.parametrize("given", ["٣", "1_000", "1e3", "", "9" * 30, "010"])
def test_a_whole_number_has_plain_digits(given: str) -> None:
    with pytest.raises(ConfigError, match=f"expected a whole number, not '{given}'"):
        build_parser().parse_args(["config", "show", "--max-documents", given])
    assert build_parser().parse_args(["config", "show", "--max-documents", "-5"]).max_documents == -5  # refused with the bounds
    for words in (["history", "--strike"], ["search", "x", "-k"], ["promote", "--watch"], ["ui", "--mlflow-port"]):
        with pytest.raises(ConfigError, match=rf"expected (a whole number|whole seconds|a port) from 1 to \d+, not '{given}'"):
            build_parser().parse_args([*words, given])


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder", "is a folder"), ("read", "is the file that is read"), ("link", "is the file that is read"), ("read/x", "lies below")],
)
def test_an_output_that_cannot_be_is_refused_before_the_work(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "read").write_text("{}")
    (tmp_path / "link").symlink_to("read")
    with pytest.raises(ConfigError, match=said):
        require_file(tmp_path / name, tmp_path / "read")


@pytest.mark.parametrize("name", ["-", "/dev/stdout", "/dev/null", "/dev/fd/1", "new", "no/such/new", "old"])
def test_an_output_that_can_be_is_not_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("{}")
    require_file(Path(name) if name.startswith(("-", "/")) else tmp_path / name, tmp_path / "missing")
    require_file(Path("/dev/null"), Path("/dev/null"))


@pytest.mark.parametrize(
    ("number", "kind", "status"), [(errno.ENOSPC, ResourceError, 9), (errno.EDQUOT, ResourceError, 9), (errno.ENOENT, ConfigError, 2)]
)
def test_an_output_that_is_full_is_named_and_not_the_home(number: int, kind: type[ScalingNoteError], status: int, home: Path) -> None:
    with pytest.raises(kind, match=r"^/dev/full cannot be written: ") as caught, writing(Path("/dev/full")):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == status and str(home) not in str(caught.value)


def test_a_reader_of_a_pipe_that_leaves_is_no_failure() -> None:
    with writing(Path("pipe")):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_current_folder_that_is_full_is_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(disk, "_free_bytes", lambda probe=None: 0 if probe == Path(os.curdir) else 10**12)
    assert "the current folder" in str(DiskFull()) and str(home) not in str(DiskFull())


def test_a_full_disk_is_that_of_the_file_that_was_named(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other" / "x"
    monkeypatch.setattr(disk, "_free_bytes", lambda probe=None: 0 if probe == file else 10**12)
    found = lacking(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), [file])
    assert str(file) in str(found) and str(home) not in str(found)


@pytest.mark.parametrize("words", [("config", "show", "--write"), ("trace", "champion", "-o"), ("history", "--anchor")])
def test_a_name_that_is_too_long_is_an_argument_that_is_wrong(
    words: tuple[str, ...], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, str(tmp_path / ("x" * 256))]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_a_file_is_named_by_the_name_that_it_gets(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENAMETOOLONG, "File name too long", ".1-ab.tmp", None, "wanted.pem")

    monkeypatch.setattr("flows.cli.audit.keys", refused)
    assert main(["keys", "list"]) == 1
    assert "wanted.pem: File name too long" in capsys.readouterr().err


def test_a_file_that_may_not_be_made_is_named_by_the_name_that_it_was_to_get(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message named the hidden file that is written first, and the exit status was that of an unexpected failure."""
    real = os.open

    def refused(path: Any, flags: int, *more: int) -> int:
        if str(path).startswith(str(tmp_path)) and flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *more)

    monkeypatch.setattr(os, "open", refused)
    assert main(["config", "show", "--write", str(tmp_path / "mine.yaml")]) == 2
    assert f"scalingnote: {tmp_path / 'mine.yaml'}: Permission denied" in capsys.readouterr().err


def test_a_failure_whose_json_nobody_can_read_keeps_its_exit_status(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a terminal that was closed: the message ended in a traceback."""

    class Gone(io.StringIO):
        def write(self, _text: str) -> int:
            raise output.OutputError(OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["statsu", "--json"]) == 2
    assert "statsu" in capsys.readouterr().err


def test_a_folder_in_the_place_of_a_file_is_not_called_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_queries(tmp_path)


def test_an_export_into_a_link_to_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nothing")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        require_empty(tmp_path / "link")


@pytest.mark.parametrize(("address", "package"), [("mssql+pyodbc://u:s3cr3t@db/x", "pip install pyodbc"), ("sqlite:////x.db", "")])
def test_a_server_is_not_started_on_a_database_without_its_driver(address: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log ended in a ModuleNotFoundError."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    if not package:
        require_driver()
        return
    with pytest.raises(ConfigError, match=package) as caught:
        require_driver()
    assert "s3cr3t" not in str(caught.value)
