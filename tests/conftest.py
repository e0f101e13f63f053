"""Fixtures that all rings of tests share."""

from __future__ import annotations

import gc
import logging
import os
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import third_party, workers
from tests.browser.chromium import missing
from tests.flows.cli_world import SMALL, Built, at_home, done, write_collection

gc.set_threshold(20_000)  # as `flows.cli.start` has it
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
# No test looks at the clock: hypothesis would fail one that takes 200 ms on a machine with other work.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# Unless somebody named a place: pytest's own variable, or the system's.
if not {"PYTEST_DEBUG_TEMPROOT", "TMPDIR"} & os.environ.keys() and (root := workers.temporary_root()):
    os.environ["PYTEST_DEBUG_TEMPROOT"] = root
if "PYTEST_XDIST_WORKER" in os.environ:  # before a library counts the processors
    os.environ["OMP_NUM_THREADS"] = str(workers.threads_of_a_worker())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    chosen = config.option.keyword or config.option.markexpr or config.option.collectonly or getattr(config.option, "lf", False)
    return workers.number_of_workers(config.args, bool(chosen))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    return workers.by_file(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    return workers.sendable((yield))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shared out among processes, what takes longest begins; in one process files keep their order."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: workers.rank(item.nodeid))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped ring of tests is said in a line of its own, not as one letter among two thousand."""
    if reason := missing():
        terminalreporter.section("BROWSER TESTS DID NOT RUN", sep="!", red=True)
        terminalreporter.write_line(f"{reason} What a reviewer sees in the pages was not tested.")
    if packages := third_party.missing():
        terminalreporter.section("EXPORTS WERE NOT CHECKED BY THE PROGRAMS OF OTHERS", sep="!", red=True)
        terminalreporter.write_line(f"Install {' and '.join(packages)} for that. Our own tests of the formats ran.")


def pytest_unconfigure() -> None:
    """The line of the runner is the last one: threads that log while the process ends write no "Logging error" behind it."""
    logging.raiseExceptions = False


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow SQLite file with its tables and nothing in it: making them takes seconds, copying the file does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow-template") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Built:
    """The first build of the small collection: training it once is enough for all."""
    folder = tmp_path_factory.mktemp("built")
    data = write_collection(folder / "clinic")
    with at_home(folder / "home", mlflow_template) as home:
        return Built(home, data, done("retrain", *SMALL, "--data", data))


@pytest.fixture
def home(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home folder of the test's own, with an MLflow store that is ready for use."""
    from components.tracking.store import clear_caches

    folder = tmp_path / "home"
    store = folder / "mlflow" / "mlflow.db"
    store.parent.mkdir(parents=True)
    shutil.copyfile(mlflow_template, store)
    monkeypatch.setenv("SCALINGNOTE_HOME", str(folder))
    # Set, not deleted: MLflow writes this variable itself, and only a set one is restored after the test.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    # Likewise: `settings.activate` of an earlier test named its own home here, which is gone by now.
    monkeypatch.setenv("PREFECT_HOME", str(folder / "prefect"))
    monkeypatch.setenv("PREFECT_LOCAL_STORAGE_PATH", str(folder / "prefect" / "storage"))
    yield folder
    clear_caches()
