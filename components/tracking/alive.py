"""Which runs still have their process: each holds the lock of a file that names it, and the system frees the lock when it is killed."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from components import settings


@contextmanager
def marked_as_running(run_id: str, about: Mapping[str, Any]) -> Iterator[None]:
    """Mark the run `run_id` as one that has a process, as long as the block runs; `about` is kept with the mark."""
    own = _folder() / f"{run_id}.json"
    own.parent.mkdir(parents=True, exist_ok=True)
    with own.open("w", encoding="utf-8") as handle:
        with suppress(OSError):  # a file system without locks, where no run is ever taken for a killed one
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write(json.dumps(dict(about)))
        handle.flush()
        try:
            yield
        finally:
            own.unlink(missing_ok=True)


def left_behind() -> Iterator[tuple[str, dict[str, Any]]]:
    """The runs whose process was killed, with what was kept; the mark of each is removed once its turn of the loop is over."""
    for path in _folder().glob("*.json"):
        with suppress(OSError), path.open("r+", encoding="utf-8") as handle:  # NFS locks only what may be written
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if text := handle.read():  # else its process is about to take the lock
                with suppress(ValueError):  # torn by a full disk: there is nothing to find the run by but its name
                    yield path.stem, json.loads(text)
                path.unlink(missing_ok=True)


def was_killed(run_id: str) -> bool:
    """Whether the run `run_id`, which its record calls running, has left its mark without a process that holds it."""
    with suppress(OSError), (_folder() / f"{run_id}.json").open(encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return bool(handle.read())
    return False


def _folder() -> Path:
    return settings.work_folder() / "running"
