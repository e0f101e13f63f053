"""Processes that encode shards side by side: how many threads each takes, and the progress that they show.

Each shard's worker writes how many of its documents are done into a small file beside the shards, which whoever waits for the shards
reads once a second: that works alike for this process, for others of this machine and for a cluster, which share the folder anyway.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from components.index.shards import shard_manifest_path
from components.progress import progress_bar
from components.settings import asked_threads, usable_processors

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

INTERVAL = 1.0  # seconds


class ShardProgress:
    """What a worker has done of one shard, written at most once in `INTERVAL`."""

    def __init__(self, folder: Path, number: int) -> None:
        self._path = _path(folder, number)
        self._done = 0
        self._written = time.monotonic()

    @property
    def done(self) -> int:
        """Documents of the shard that are done."""
        return self._done

    def add(self, documents: int) -> None:
        """Count `documents` as done."""
        self._done += documents
        if time.monotonic() - self._written < INTERVAL:
            return
        self._written = time.monotonic()
        # A bar that stands still is no reason to fail: a full disk is said when the shard itself is written.
        with suppress(OSError):
            self._path.write_text(str(self._done), encoding="ascii")

    def remove(self) -> None:
        """Remove the file; the finished shard speaks for itself."""
        self._path.unlink(missing_ok=True)


@contextmanager
def shown_progress(folder: Path, todo: Mapping[int, int], finished: int) -> Iterator[None]:
    """A bar (or lines) with rate and time left. `todo`: shard number -> its documents; `finished`: documents of the other shards."""
    total, stop = finished + sum(todo.values()), threading.Event()
    with progress_bar(total, "Encoding documents", "doc", initial=finished, smoothing=0.05) as bar:

        def show() -> None:
            bar.update(finished + documents_done(folder, todo) - bar.n)

        watcher = threading.Thread(target=lambda: _until(stop, show), name="encoding-progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            show()


def documents_done(folder: Path, todo: Mapping[int, int]) -> int:
    """Documents encoded so far of the shards `todo` (number -> documents)."""
    return sum(size if shard_manifest_path(folder, number).exists() else _reported(folder, number) for number, size in todo.items())


def _until(stop: threading.Event, show: Callable[[], None]) -> None:
    while not stop.wait(INTERVAL):
        show()


def _reported(folder: Path, number: int) -> int:
    try:
        return int(_path(folder, number).read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there yet, or just being written
        return 0


def _path(folder: Path, number: int) -> Path:
    return folder / f".progress-{number:05d}"


# --- What a process that encodes shards does before it begins: its share of the machine, and an end when its parent ends.


def prepare_worker(worker: int, workers: int) -> None:
    """Make this process the worker number `worker` of `workers`, which ends with its parent."""
    take_share(worker, workers)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


def take_share(worker: int, workers: int) -> None:
    """Give this process its share of the processors, and a GPU of its own where there are any; torch must not be imported yet."""
    os.environ["OMP_NUM_THREADS"] = str(threads_of(workers))
    device = device_of(worker, os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus_here())
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def threads_of(workers: int) -> int:
    """Threads for each of `workers` processes: together they use the processors of this process, or fewer if OMP_NUM_THREADS says so."""
    share = max(1, usable_processors() // workers)
    return min(share, asked_threads() or share)


def useful_workers(asked: int) -> int:
    """How many of `asked` processes may encode on this machine: one for each GPU, where there are any.

    Two models on one GPU do not encode faster, and their batches may not fit beside each other.
    """
    names = _named(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus_here())
    return min(asked, len(names)) if names else asked


def device_of(worker: int, visible: str | None, gpus: int) -> str | None:
    """The GPU of a worker for CUDA_VISIBLE_DEVICES, each in turn; None where there is none. `visible`: that variable as it is."""
    names = _named(visible, gpus)
    return names[worker % len(names)] if names else None


def _named(visible: str | None, gpus: int) -> list[str]:
    return [name.strip() for name in visible.split(",") if name.strip()] if visible is not None else [str(n) for n in range(gpus)]


def _gpus_here() -> int:
    """GPUs of this machine, counted without torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def kill_processes(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool in the middle of their work: a pool that is left waits for it, though nobody wants it any more."""
    for process in list((pool._processes or {}).values()):  # before Python 3.14 a pool has no public way to its processes
        process.kill()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and keep its model in memory."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
