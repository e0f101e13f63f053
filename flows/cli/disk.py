"""A full disk, and other limits of the machine: recognised behind the many errors that they make libraries raise.

A disk that is too small is noticed before a long command begins.
"""

from __future__ import annotations

import errno
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from components import settings
from components.errors import ResourceError, ScalingNoteError

LOW_BYTES = 4 * 1024 * 1024
# What the system, SQLite and torch's writer of checkpoints say of a write that found no room.
FULL = ("no space left", "disk is full", "iostream error", "inline_container")
# The two databases alone take 10 MB. Prefect's server, started on a disk that is too small for its own, tries for ever.
NEEDED_BYTES = 48 * 1024 * 1024


# What else a machine can lack, by the error's number: what it is, and what to do.
LIMITS = {
    errno.EMFILE: "This process may not open more files ({files} at most, `ulimit -n`). Allow 1,024: `ulimit -n 1024`.",
    errno.ENFILE: "This machine has no more files to open (fs.file-max). Stop other programs.",
    errno.EFBIG: "A file would become larger than this process may write (`ulimit -f`). Raise the limit.",
    errno.EAGAIN: "This process may start no more processes or threads (`ulimit -u`, or pids.max of its container). Raise the limit.",
    errno.ENOMEM: "This machine has no memory left. Stop other programs, or take smaller batches (encoding.tokens_per_batch).",
}
_NO_THREADS = ("can't start new thread", "pthread_create")
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "bad_alloc", "malloc of size", "failed to map segment")


class DiskFull(ResourceError):
    """No space is left where the home folder lies, or temporary files."""

    def __init__(self) -> None:
        place = settings.home()
        if _free_bytes() >= LOW_BYTES and _free_bytes(Path(tempfile.gettempdir())) < LOW_BYTES:
            place = Path(f"{tempfile.gettempdir()}, the folder of temporary files (TMPDIR),")
        super().__init__(f"The disk of {place} is full. Free some space and run the same command again; finished steps are kept.")


def lacking(error: BaseException) -> ResourceError | None:
    """What the machine lacked when `error` was raised, in words; None where it was something else."""
    for seen in _chain(error):
        number = getattr(seen, "errno", None)
        if isinstance(seen, MemoryError) or any(said in str(seen).lower() for said in _NO_MEMORY):
            number = errno.ENOMEM
        if "too many open files" in str(seen).lower():
            number = errno.EMFILE
        if any(said in str(seen).lower() for said in _NO_THREADS):
            number = errno.EAGAIN
        elif number == errno.EAGAIN and seen is not error:
            number = None  # a connection that was waited for, and not a fork that failed
        if number in LIMITS:
            said = LIMITS[number].format(files=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            return ResourceError(f"{said} Then run the same command again; finished steps are kept.")
    return DiskFull() if is_disk_full(error) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def require_space() -> None:
    """Raises DiskFull when the home folder's disk has no room for even the smallest build."""
    if _free_bytes() < NEEDED_BYTES:
        raise DiskFull


def is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or one that led to it, comes from a full disk."""
    for seen in _chain(error):
        words = str(seen).lower()
        if getattr(seen, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(said in words for said in FULL):
            return True
    if isinstance(error, OSError) and error.errno not in (None, errno.EIO):
        return False  # the system said what it was
    # Writers in C++ report a failed write without saying why.
    with suppress(OSError, ScalingNoteError):
        return not isinstance(error, ScalingNoteError) and _free_bytes() < LOW_BYTES
    return False


def _free_bytes(probe: Path | None = None) -> int:
    """Bytes that are free where `probe` lies, the home folder by default."""
    probe = probe or settings.home()
    while probe != probe.parent:
        try:
            return shutil.disk_usage(probe).free
        except OSError:  # it is not there yet, or cannot be
            probe = probe.parent
    return shutil.disk_usage(probe).free
