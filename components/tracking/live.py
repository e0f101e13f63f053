"""The run of a step while it works: opened first, fed with what the step tells, closed with the reason where it fails.

Which runs, and which scratch folders, still have their process is known by a lock that each holds: the system frees it when the process
is killed.

What cannot be shown stops nothing: a store that does not answer costs the curve, not the training.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TextIO

from components import settings
from components.errors import masked
from components.progress import observed_by
from components.tracking import labels
from components.tracking.store import client

if TYPE_CHECKING:
    from mlflow.entities import Metric

WRITTEN_SECONDS = 60.0  # in which a mark has its words
_HELD = ".held"  # ends the name of the locked file beside a folder that a process works in


class End(NamedTuple):
    """How a run ended: a status of MLflow, why (empty where it finished), and when (milliseconds since 1970; None: nobody knows)."""

    status: Literal["FINISHED", "FAILED", "KILLED"]
    why: str
    at: int | None = None


KILLED = End("KILLED", "its process was killed")


class Mark:
    """The mark of a run that has a process: a line about it, and one more on how it ended."""

    def __init__(self, path: Path, handle: TextIO) -> None:
        self._path, self._handle = path, handle

    def keep(self, end: End) -> None:
        """Keep how the run ended, for whoever has to close it where the store cannot be written now."""
        with suppress(OSError):  # a full disk: then it is closed as one that was killed. Past the buffer, which closing would write again
            os.write(self._handle.fileno(), f"\n{json.dumps(end._asdict())}".encode())

    def remove(self) -> None:
        """The run is closed."""
        self._path.unlink(missing_ok=True)


@contextmanager
def marked_as_running(run_id: str, about: Mapping[str, Any]) -> Iterator[Mark]:
    """Mark the run `run_id` as one that has a process, as long as the block runs; `about` is kept with the mark.

    The block removes it once the run is closed. A mark whose run was not is left, and the next flow closes it.
    """
    own = _folder() / f"{run_id}.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    with own.open("w", encoding="utf-8") as handle:  # under its own name: one that is killed here leaves a mark that is found, if empty
        with suppress(OSError):  # a file system without locks, where no run is ever taken for a killed one
            fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            handle.write(json.dumps(dict(about)))
            handle.flush()
        except OSError:  # a full disk
            own.unlink(missing_ok=True)
            raise
        yield Mark(own, handle)


def leave_mark(run_id: str, about: Mapping[str, Any], end: End) -> None:
    """Leave the mark of a run that has ended, where Prefect could not be told: the next flow tells it."""
    with suppress(OSError):
        _folder().mkdir(parents=True, exist_ok=True)
        (_folder() / f"{run_id}.json").write_text(f"{json.dumps(dict(about))}\n{json.dumps(end._asdict())}", encoding="utf-8")


def left_behind(but: str = "") -> Iterator[tuple[str, dict[str, Any], End, Mark]]:
    """The runs that have no process any more, with what was kept, and the mark, which whoever has closed the run removes.

    `but`: the run of the flow that asks.
    """
    for path in (path for path in _folder().glob("*.json") if path.stem != but):
        with suppress(OSError), path.open("r+", encoding="utf-8") as handle:  # NFS locks only what may be written
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_left(handle, text := handle.read()):
                yield path.stem, _line(text.partition("\n")[0]), _end(text), Mark(path, handle)


def _is_left(mark: TextIO, text: str) -> bool:
    """Whether a mark that nobody holds was left. One without a word may be written just now; an old one a full disk has kept empty."""
    return bool(text) or time.time() - os.fstat(mark.fileno()).st_mtime > WRITTEN_SECONDS


def _line(text: str) -> dict[str, Any]:
    """What a line of a mark says; nothing where a full disk has torn it: the run is known by the mark's name all the same."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _end(text: str) -> End:
    """How a run ended, by its mark; it was killed where nothing is said of it."""
    found = _line(text.rpartition("\n")[2])
    status, why, at = (found.get(field) for field in End._fields)
    if status not in ("FINISHED", "FAILED", "KILLED") or not isinstance(why, str):
        return KILLED
    return End(status, why, at if type(at) is int else None)


def end_of(run_id: str) -> End | None:
    """How the run `run_id` ended, which its record calls running; None while a process holds its mark, and where there is none."""
    with suppress(OSError), (_folder() / f"{run_id}.json").open(encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return _end(text) if _is_left(handle, text := handle.read()) else None
    return None


def finished_runs() -> dict[str, End]:
    """The runs that finished and whose store could not be told: their marks stay, for Prefect."""
    ended = {path.stem: end_of(path.stem) for path in _folder().glob("*.json")}
    return {run_id: end for run_id, end in ended.items() if end is not None and end.status == "FINISHED"}


def first_started() -> float:
    """When the flow began that has run longest of those that run now, in seconds since 1970; infinite where none does."""
    began = [math.inf]
    for path in _folder().glob("*.json"):
        with suppress(OSError):
            began += [] if end_of(path.stem) else [path.stat().st_mtime]
    return min(began)


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `prefix`... in `parent` for this block, removed at its end; those that killed processes left there are removed now."""
    parent.mkdir(parents=True, exist_ok=True)
    for mark in parent.glob(f"{prefix}*{_HELD}"):
        with suppress(OSError), mark.open("r+", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if handle.read():  # else its process is about to take the lock
                shutil.rmtree(mark.with_name(mark.name.removesuffix(_HELD)), ignore_errors=True)
                mark.unlink(missing_ok=True)
    made = tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True)
    mark = Path(f"{made.name}{_HELD}")
    with mark.open("w", encoding="utf-8") as handle:
        with suppress(OSError):  # a file system without locks, where no folder is ever taken for one that was left
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("held")
        handle.flush()
        try:
            with made as folder:
                yield Path(folder)
        finally:
            mark.unlink(missing_ok=True)


def _folder() -> Path:
    return settings.work_folder() / "running"


# --- The run of a step while it works: opened when its making begins, fed with what the making tells, closed with the reason where it
# --- fails.


FLUSH_SECONDS = 1.0  # between two calls to the store, and between two points of one curve
_METRICS = 1000  # the most metrics that MLflow takes in one call
_log = logging.getLogger(__name__)


class LiveStep:
    """A step's run in MLflow; `run_id` is None until its making begins, and for a step that was found finished.

    `first` has, for each curve that was fed, the step at which that began: what came before it belongs to an earlier attempt.
    """

    def __init__(self, open_run: Callable[[], str]) -> None:
        self.run_id: str | None = None
        self.first: dict[str, int] = {}
        self._open, self._broken = open_run, False
        self._waiting: list[Metric] = []
        self._held: dict[str, Metric] = {}  # the newest point of a curve that came too soon after the one before it
        self._shown: dict[str, float] = {}
        self._flushed = time.monotonic()
        self._monitor: Any = None

    def started(self) -> None:
        """Open the run, and watch processor, memory and GPU as long as it is open. A step that is tried again keeps its run."""
        if self.run_id is None and not self._broken:
            with self._shown_or_not():
                self.run_id = self._open()
                self._monitor = _monitor(self.run_id)

    def measured(self, values: Mapping[str, float], step: int) -> None:
        """Keep the values with the time at which they came, and send them with what came in the same second."""
        from mlflow.entities import Metric

        if self.run_id is None or self._broken:
            return
        now = time.monotonic()
        for key, value in values.items():
            name = labels.name(key)
            self.first.setdefault(name, step)
            point = Metric(name, float(value), int(time.time() * 1000), step)
            if now - self._shown.get(name, -FLUSH_SECONDS) >= FLUSH_SECONDS:
                self._shown[name] = now
                self._waiting.append(point)
                self._held.pop(name, None)
            else:
                self._held[name] = point
        if now - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Send what waits."""
        waiting, self._waiting, self._flushed = self._waiting, [], time.monotonic()
        for start in range(0, len(waiting), _METRICS):
            with self._shown_or_not():
                client().log_batch(self.run_id, metrics=waiting[start : start + _METRICS])

    def finish(self) -> None:
        """Send the ends of all curves and stop watching the machine."""
        self._waiting += self._held.values()
        self._held = {}
        if self._monitor is not None:
            with suppress(Exception):
                self._monitor.finish()
        if self.run_id is not None and not self._broken:
            self.flush()

    def failed(self, error: BaseException) -> None:
        """Close the run with the reason; one that had not begun is opened for it."""
        self.started()
        self.finish()
        if self.run_id is not None:
            with self._shown_or_not():
                client().set_tag(self.run_id, labels.ERROR, labels.cut(masked(str(error)) or type(error).__name__, labels.MAX_TAG))
                client().set_terminated(self.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")

    @contextmanager
    def _shown_or_not(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._broken = True
            self.first.clear()  # so that the whole curve is written when the step has ended
            _log.warning("MLflow does not show how this step goes on: %s", masked(str(error).partition("\n")[0]))


@contextmanager
def live_step(open_run: Callable[[], str]) -> Iterator[LiveStep]:
    """A step whose making runs in this block; `open_run` opens its run in MLflow and returns the run's id."""
    live = LiveStep(open_run)
    try:
        with observed_by(live):
            yield live
    except BaseException as error:
        live.failed(error)
        raise
    live.finish()


def _monitor(run_id: str) -> Any:
    """MLflow's own, started; None where its packages are missing, or where MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING is false."""
    try:
        from mlflow.environment_variables import MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING as WANTED
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if WANTED.is_set() and not WANTED.get():
            return None
        monitor = SystemMetricsMonitor(run_id)
        monitor.start()
    except Exception:
        return None
    return monitor
