"""A full disk: noticed before a long command begins, and recognised behind the many errors that it makes libraries raise."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from components import settings
from components.errors import ResourceError, ScalingNoteError

LOW_BYTES = 4 * 1024 * 1024
# What the system, SQLite and torch's writer of checkpoints say of a write that found no room.
FULL = ("no space left", "disk is full", "iostream error", "inline_container")
# The two databases alone take 10 MB. Prefect's server, started on a disk that is too small for its own, tries for ever.
NEEDED_BYTES = 48 * 1024 * 1024


class DiskFull(ResourceError):
    """No space is left where the home folder lies."""

    def __init__(self) -> None:
        place = settings.home()
        super().__init__(f"The disk of {place} is full. Free some space and run the same command again; finished steps are kept.")


def require_space() -> None:
    """Raises DiskFull when the home folder's disk has no room for even the smallest build."""
    if _free_bytes() < NEEDED_BYTES:
        raise DiskFull


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or one that led to it, comes from a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        words = str(seen).lower()
        if getattr(seen, "errno", None) == errno.ENOSPC or any(said in words for said in FULL):
            return True
        seen = seen.__cause__ or seen.__context__
    # Writers in C++ report a failed write without saying why.
    return not isinstance(error, ScalingNoteError) and _free_bytes() < LOW_BYTES


def _free_bytes() -> int:
    probe: Path = settings.home()
    while not probe.exists():
        probe = probe.parent
    return shutil.disk_usage(probe).free
