"""One bar over all shards of a corpus, whichever process encodes them.

Each shard's worker writes how many of its documents are done into a small file beside the shards, which whoever waits for the shards
reads once a second: that works alike for this process, for others of this machine and for a cluster, which share the folder anyway.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from components.index.shards import shard_manifest_path
from components.progress import progress_bar

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
