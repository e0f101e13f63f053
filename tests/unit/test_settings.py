"""The home folder and the environment of the libraries."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from unittest import mock

import pytest
from pydantic import ValidationError

from components import settings
from components.data.config import DataConfig
from components.distillation.config import DistillationConfig
from components.errors import ConfigError
from components.evaluation.config import EvaluationConfig
from components.index.config import IndexConfig
from components.towers.config import TowerConfig
from components.tracking import store
from flows.cli.main import main
from flows.servers import mlflow_plan, require_usable_settings


@pytest.mark.parametrize("name", ["a?b", "a\udcffb"])
def test_a_home_that_no_database_can_lie_in_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / name))
    with pytest.raises(ConfigError, match="Choose another folder with SCALINGNOTE_HOME"):
        settings.activate()
    assert not list(tmp_path.iterdir())


def test_a_home_of_a_user_who_does_not_exist_is_refused_and_such_data_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", "~nosuchuser/home")
    with pytest.raises(ConfigError, match="'~nosuchuser/home', but there is no such user"):
        settings.home()
    assert settings.expanded("~nosuchuser/data") == Path("~nosuchuser/data")


def test_without_a_home_folder_and_a_temporary_one_those_of_the_installation_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path)}):
        os.environ.pop("HOME", None)
        monkeypatch.setattr(Path, "home", unknown)
        monkeypatch.setattr(settings.tempfile, "gettempdir", nowhere)
        settings.activate()
        assert os.environ["HOME"] == str(tmp_path)
        assert Path(os.environ["TMPDIR"]).is_dir() and Path(os.environ["TMPDIR"]).is_relative_to(tmp_path)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, no variable about threads, and a folder in the place of /sys/fs/cgroup, whose group of ours is /team/job."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(settings, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(settings, "_OWN_CGROUP", tmp_path / "own")
    (tmp_path / "own").write_text("0::/team/job\n")
    (tmp_path / "cgroup" / "team" / "job").mkdir(parents=True)
    for variable in settings.THREADS:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cgroup"


def test_processors_are_those_of_the_affinity_where_nothing_limits_them(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.usable_processors() == 8
    (machine / "team" / "job" / "cpu.max").write_text("max 100000\n")
    assert settings.usable_processors() == 8
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert settings.usable_processors() == 5
    monkeypatch.setattr(settings, "_OWN_CGROUP", machine / "nothing")
    assert settings.usable_processors() == 5


@pytest.mark.parametrize(
    ("place", "quota", "processors"),
    [
        ("team/job", "200000 100000", 2),
        ("team", "350000 100000", 3),
        (".", "150000 100000", 1),
        ("team/job", "5000 100000", 1),
        ("team/job", "999999999 100000", 8),
        ("team/job", "garbage", 8),
        ("team/job", "100000 0", 8),
    ],
)
def test_a_quota_of_a_container_or_of_a_group_above_limits_the_processors(place: str, quota: str, processors: int, machine: Path) -> None:
    (machine / place / "cpu.max").write_text(f"{quota}\n")
    assert settings.usable_processors() == processors


@pytest.mark.parametrize("own", ["0::/", "0::/../../elsewhere", "0::", "nonsense", "", "1:name=systemd:/a\n0::/team"])
def test_within_a_container_the_group_may_lie_at_the_root(own: str, machine: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(f"{own}\n" if own else "")
    (machine / "cpu.max").write_text("400000 100000\n")
    assert settings.usable_processors() == (4 if own.startswith(("0:", "1:")) else settings.usable_processors())


@pytest.mark.parametrize(("quota", "processors"), [("300000", 3), ("-1", 8)])
def test_the_first_version_of_control_groups_is_read_too(quota: str, processors: int, machine: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/team/job\n3:cpu,cpuacct:/team/job\n")
    folder = machine / "cpu" / "team" / "job"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert settings.usable_processors() == processors


@pytest.mark.parametrize(
    ("asked", "quota", "given"),
    [
        (None, None, None),
        (None, "200000", "2"),
        ("64", None, "8"),
        ("64", "200000", "2"),
        ("4,2", None, "4,2"),
        ("4,2", "200000", "2"),
        ("1", "200000", "1"),
        ("", None, "8"),
        ("many", None, "8"),
        ("-3", None, "8"),
        ("0", None, "8"),
        ("\u00b2", None, "8"),
    ],
)
def test_libraries_start_no_more_threads_than_may_run(
    asked: str | None, quota: str | None, given: str | None, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path / "home"), **({} if asked is None else {"OMP_NUM_THREADS": asked})}):
        if quota:
            (machine / "cpu.max").write_text(f"{quota} 100000\n")
        settings.activate()
        assert os.environ.get("OMP_NUM_THREADS") == given
        assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_other_libraries_variables_are_held_to_the_processors_too(machine: Path, tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path / "home"), "OPENBLAS_NUM_THREADS": "64", "MKL_NUM_THREADS": "3"}):
        settings.activate()
        assert (os.environ["OPENBLAS_NUM_THREADS"], os.environ["MKL_NUM_THREADS"]) == ("8", "3")


def test_prefects_history_has_a_retention_that_is_on(tmp_path: Path) -> None:
    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path / "home")}):
        os.environ.pop("PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED", None)
        settings.activate()
        from prefect.settings import Settings

        assert "flow_runs" in Settings().server.services.db_vacuum.enabled_vacuum_types


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, 2**62),
        ({"team/job/memory.max": "max", "team/job/memory.current": "5"}, 2**62),
        ({"team/job/memory.max": "1000", "team/job/memory.current": "400"}, 600),
        ({"team/job/memory.max": "1000", "team/job/memory.current": "1400"}, 0),
        # What was read of files is given up when memory is asked for.
        ({"team/job/memory.max": "1000", "team/job/memory.current": "900", "team/job/memory.stat": "anon 5\ninactive_file 350\n"}, 450),
        ({"team/memory.max": "800", "team/memory.current": "100", "team/job/memory.max": "max", "team/job/memory.current": "1"}, 700),
        ({"memory.max": "300", "memory.current": "100"}, 200),  # of a container
        ({"team/job/memory.max": "many", "team/job/memory.current": "1", "memory.max": "300", "memory.current": "100"}, 200),
    ],
)
def test_the_memory_that_a_group_or_one_above_it_leaves_is_what_may_be_taken(files: dict[str, str], left: int, machine: Path) -> None:
    for name, content in files.items():
        (machine / name).write_text(f"{content}\n")
    assert settings._group_limit() == left


def test_the_memory_of_the_first_version_of_control_groups_is_read_too(machine: Path, tmp_path: Path) -> None:
    (tmp_path / "own").write_text("4:memory:/team/job\n3:cpu,cpuacct:/elsewhere\n")
    (folder := machine / "memory" / "team" / "job").mkdir(parents=True)
    for name, content in (("limit_in_bytes", "1000"), ("usage_in_bytes", "900"), ("stat", "cache 500\ntotal_inactive_file 300")):
        (folder / f"memory.{name}").write_text(f"{content}\n")
    assert settings._group_limit() == 400


@pytest.mark.parametrize("name", ["work", "models", "mlflow"])
def test_a_folder_of_the_home_that_is_a_link_to_nowhere_is_named_with_its_target(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "disk" / "that" / "is" / "not" / "mounted")
    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path)}):
        with pytest.raises(ConfigError, match=f"{name}' is a link to '.*/not/mounted', which is not there. Make or mount"):
            settings.activate()
        (tmp_path / "disk" / "that" / "is" / "not" / "mounted").mkdir(parents=True)
        settings.activate()


def test_a_variable_that_is_empty_is_one_that_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("MLFLOW_TRACKING_URI", "PREFECT_HOME", "PREFECT_LOCAL_STORAGE_PATH", "MPLCONFIGDIR", "IR_DATASETS_HOME")
    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(tmp_path / "home"), **dict.fromkeys(names, "")}):
        settings.activate()
        assert all(str(tmp_path / "home") in os.environ[name] for name in names)


@pytest.mark.parametrize("kind", [DataConfig, TowerConfig, DistillationConfig, EvaluationConfig, IndexConfig])
def test_a_seed_is_no_larger_than_torch_takes_it(kind: type[settings.StepConfig]) -> None:
    assert kind.model_validate({"seed": 2**63 - 1})
    with pytest.raises(ValidationError, match="less than or equal to 9223372036854775807"):
        kind.model_validate({"seed": 2**63})


@pytest.mark.parametrize("given", [" ", "\t", "/data/home\r", "/data/home\n", "a\x1bb"])
def test_a_home_that_is_blank_or_ends_as_lines_of_windows_do_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name was made, and nothing of the true home was found in it."""
    monkeypatch.setenv("SCALINGNOTE_HOME", given)
    with pytest.raises(ConfigError, match="SCALINGNOTE_HOME is '"):
        settings.activate()


def test_a_home_below_which_no_database_can_be_opened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small server of Prefect was waited for, for five minutes, and then its log told of an unknown file."""
    longest = settings.LONGEST_HOME - len(os.fsencode(tmp_path)) - 1
    for place, fits in ((f"{'d' * 200}/{'é' * ((longest - 201) // 2)}", True), (f"{'d' * 200}/{'e' * (longest - 200)}", False)):
        monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / place))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        if not fits:
            with pytest.raises(ConfigError, match=r"path of the home folder has 484 bytes"):
                settings.activate()
            continue
        settings.activate()
        for name in ("mlflow/mlflow.db", "mlflow/basic_auth.db", "prefect/prefect.db"):
            with closing(sqlite3.connect(settings.home() / name)) as database:
                database.execute("CREATE TABLE there (x)")


def test_a_store_in_a_file_is_named_by_its_whole_path_for_all_that_start_elsewhere(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ui` starts MLflow in the home folder, where `sqlite:///store.db` was another file."""
    monkeypatch.chdir(tmp_path)
    for given, meant in (
        ("sqlite:///store.db", f"sqlite:///{tmp_path}/store.db"),
        ("sqlite:///a/b.db?timeout=5", f"sqlite:///{tmp_path}/a/b.db?timeout=5"),
        ("sqlite:////var/store.db", "sqlite:////var/store.db"),
        ("sqlite:///file:/data/m.db?mode=rw&uri=true", "sqlite:///file:/data/m.db?mode=rw&uri=true"),
        ("http://mlflow:5000", "http://mlflow:5000"),
        ("postgresql+psycopg://u:p@db/x?y=sqlite:///", "postgresql+psycopg://u:p@db/x?y=sqlite:///"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
        settings.activate()
        assert settings.tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == meant
    assert mlflow_plan(5000).environment["MLFLOW_BACKEND_STORE_URI"] == meant
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///store.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///store.db")
    store._require_one_store(settings.tracking_uri())


@pytest.mark.parametrize("given", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///?timeout=5"])
def test_a_store_that_ends_with_the_command_is_refused(given: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour of training was registered in it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    with pytest.raises(ConfigError, match="a store in memory that ends with every command"):
        settings.activate()


@pytest.mark.parametrize("words", [("status",), ("history",), ("promote",), ("verify",), ("search", "heart"), ("trace", "champion")])
def test_a_store_that_is_not_there_is_not_told_as_an_empty_one(
    words: tuple[str, ...], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/typo.db")
    assert main(words) == 2
    assert f"The tracking store {tmp_path}/typo.db is not there" in capsys.readouterr().err
    assert not (tmp_path / "typo.db").exists()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "new"))
    assert main(["status"]) == 0  # a new home is no mistake


@pytest.mark.parametrize(("uri", "server"), [("HTTP://127.0.0.1:5000", True), ("Https://x", True), ("sqlite:////http://x", False)])
def test_a_server_is_one_in_capitals_too(uri: str, server: bool) -> None:
    assert store.is_server(uri) is server


def test_a_folder_of_prefect_of_a_user_who_does_not_exist_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", "~nosuchuser/prefect")
    with pytest.raises(ConfigError, match="PREFECT_HOME is '~nosuchuser/prefect', but there is no such user"):
        require_usable_settings()
    assert not (tmp_path / "~nosuchuser").exists()


@pytest.mark.parametrize("how", ["gone", "empty"])
@pytest.mark.parametrize("words", [("status",), ("promote",), ("history",), ("approve", "1", "--as", "Ada"), ("ui",)])
def test_a_home_whose_database_is_gone_is_not_taken_for_a_new_one(
    how: str, words: tuple[str, ...], home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was begun anew: nothing had ever been promoted, and the next candidate was number 1."""
    made = home / "mlflow" / "artifacts" / "retriever" / "run"
    made.mkdir(parents=True)
    database = home / "mlflow" / "mlflow.db"
    database.unlink()
    if how == "empty":
        database.touch()
    assert main(words) == 6
    said = capsys.readouterr().err
    assert f"mlflow.db is {how}, though files of 'retriever' lie in" in said and "Restore it from a backup" in said
    assert (database.stat().st_size if database.exists() else 0) == 0
    made.rmdir()
    assert main(["status"]) == 0


@pytest.mark.parametrize(("made", "said"), [("folder", "is no plain file"), ("pipe", "is no plain file"), ("loop", "leads back to itself")])
def test_what_stands_in_the_place_of_the_database_is_named(made: str, said: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe was waited for without an end, and a link to itself was an unexpected failure."""
    database = home / "mlflow" / "mlflow.db"
    database.unlink()
    {"folder": database.mkdir, "pipe": lambda: os.mkfifo(database), "loop": lambda: database.symlink_to(database)}[made]()
    assert main(["status"]) == 6
    assert said in capsys.readouterr().err


def test_a_damaged_database_is_said_with_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mlflow" / "mlflow.db").write_bytes(b"no database" * 1000)
    assert main(["status"]) == 8
    assert "the database is damaged (file is not a database). Restore it from a backup" in capsys.readouterr().err
