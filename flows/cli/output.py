"""Output of commands: text for people on stdout, or one JSON object with --json; and what a full disk makes of it.

A disk that is too small is noticed before a long command begins.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import resource
import select
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from components import settings
from components.errors import NO_PLACE, ConfigError, ResourceError, ScalingNoteError
from components.settings import checked_retriever_name
from components.text import as_json, visible

DEFAULT_NAME = "retriever"
RED = "\U0001f7e5"  # begins every line about an override


class OutputClosed(Exception):
    """Whoever read our output has read enough, as `head` does."""


class OutputError(ScalingNoteError):
    """Standard output cannot be written."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(f"The output cannot be written: {reason.strerror}. Send it to another place; what the command did is kept.")
        self.exit_code = 9 if reason.errno == errno.ENOSPC else 1


class _Output(io.FileIO):
    """Standard output whose failures can be told from those of files and servers."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # another program made the stream non-blocking, and its reader is slow
                select.select([], [self], [])
            return int(written)
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise OutputError(error) from None


class _Messages(io.FileIO):
    """Standard error: a message or a progress bar that cannot be shown is no reason to stop the work."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(OSError):
            return int(super().write(data) or 0)
        return len(data)


def prepare_streams() -> None:
    """Make output and messages work wherever they go: closed, a full disk, a reader that leaves, a terminal without our letters.

    A closed stream is opened on nothing, else the next file that is opened takes its number and gets what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdin = sys.stdin or open(0, closefd=False, encoding="utf-8")  # noqa: SIM115
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, former: Any) -> io.TextIOWrapper:
    lines = raw.isatty() or isinstance(raw, _Messages)
    return io.TextIOWrapper(io.BufferedWriter(raw), getattr(former, "encoding", "utf-8"), errors="replace", line_buffering=lines)


def finish_streams(status: int) -> int:
    """Write what is still to be written and return the exit status, which is that of the output when it cannot be written."""
    try:
        sys.stdout.flush()
    except OutputClosed:
        drop_output()
    except OutputError as error:
        drop_output()
        print(f"scalingnote: {error}", file=sys.stderr)
        return status or error.exit_code
    return status


def drop_output() -> None:
    """Send the rest of the output nowhere; the interpreter would complain about it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def retriever_name(options: argparse.Namespace) -> str:
    """The retriever that a command is about; raises ConfigError for a name that none can have."""
    name: str = options.name or DEFAULT_NAME
    try:
        return checked_retriever_name(name)
    except ValueError as error:
        raise ConfigError(f"--name: {error}.") from None


def name_option(name: str) -> str:
    """What a command that is proposed to the reader needs behind it to be about the retriever `name`."""
    return "" if name == DEFAULT_NAME else f" --name {name}"


def show(options: argparse.Namespace, value: Any, text: str) -> None:
    """Print `text`, or `value` as JSON; what came from outside cannot command the terminal. Colours of ours are put on by `coloured`."""
    print(json_here(value, 2) if options.json else coloured(visible(text)))


def json_here(value: Any, indent: int | None = None) -> str:
    """JSON for this output, which loses no letter where that cannot show all of them."""
    letters = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    return as_json(value, indent, letters)


def coloured(text: str) -> str:
    """Lines that begin with the red mark, in red where somebody looks at a terminal that has colours."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return "\n".join(f"\033[31m{line}\033[0m" if line.lstrip().startswith(RED) else line for line in text.split("\n"))


def require_file(path: Path, read: Path | None = None) -> None:
    """Raise ConfigError, before the work begins, where `--output` names what cannot be written, or the file that is `read`."""
    from components.artifacts import is_stdout

    if is_stdout(path):
        return
    folder = Path(os.path.realpath(path)).parent
    while not folder.exists():
        folder = folder.parent
    plain = path.is_file() or not path.exists()
    if path.is_dir():
        wrong = "is a folder"
    elif not folder.is_dir():
        wrong = f"lies below {folder}, which is a file"
    elif plain and path.exists() and read is not None and read.exists() and path.samefile(read):
        wrong = "is the file that is read"
    elif plain and not os.access(folder, os.W_OK | os.X_OK):
        wrong = f"lies in {folder}, where you may not write"
    else:
        return
    raise ConfigError(f"--output {path} {wrong}. Give another file.")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What a write to the file that a user named can meet, in words; a reader of a pipe who leaves has read enough."""
    try:
        yield
    except BrokenPipeError:
        return
    except OSError as error:
        said = f"{path} cannot be written: {error.strerror or error}. Send it to another place."
        raise (ResourceError if is_disk_full(error) else ConfigError)(said) from None


@contextlib.contextmanager
def only_result_on_stdout(options: argparse.Namespace) -> Iterator[None]:
    """With --json, what steps print on the way goes to stderr, so that stdout holds the JSON alone."""
    if not options.json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


# --- A full disk, and other limits of the machine: recognised behind the many errors that they make libraries raise.


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


# The libraries of the models and of the index reserve up to 2.8 GiB of addresses; where they get none, they end the process without a word.
RESERVED_BYTES = 3 * 2**30


def require_addresses() -> None:
    """Raise ResourceError when the address space of this process (RLIMIT_AS) has no room for the libraries of models and indexes."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY and allowed < RESERVED_BYTES:
        raise ResourceError(
            f"This process may reserve {allowed / 2**30:.1f} GiB of addresses (`ulimit -v`), and models and indexes need "
            f"{RESERVED_BYTES / 2**30:.0f} GiB, most of which they never use. Raise it (`ulimit -v unlimited`); a container or "
            "a control group limits what is really used."
        )


class DiskFull(ResourceError):
    """No space is left where the home folder lies, or temporary files, the current folder, or a file that was `named`."""

    def __init__(self, named: Sequence[Path] = ()) -> None:
        place = str(settings.home())
        if _free_bytes() >= LOW_BYTES:  # the others that a command writes to
            others = dict.fromkeys(map(str, named), "")
            with suppress(OSError):  # there is none that can be written to
                others[tempfile.gettempdir()] = ", the folder of temporary files (TMPDIR),"
            others[os.curdir] = ", the current folder,"
            with suppress(OSError):  # the current folder was removed
                place = next((f"{folder}{what}" for folder, what in others.items() if _free_bytes(Path(folder)) < LOW_BYTES), place)
        super().__init__(f"The disk of {place} is full. Free some space and run the same command again; finished steps are kept.")


def lacking(error: BaseException, named: Sequence[Path] = ()) -> ResourceError | None:
    """What the machine lacked when `error` was raised, in words, else None. `named`: files that may lie on other disks."""
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
        if NO_PLACE in str(seen).lower():
            if _free_bytes() < LOW_BYTES:
                return DiskFull(named)
            if resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY:
                return ResourceError("Temporary files can be written nowhere here. Name a folder for them in TMPDIR, and run it again.")
            number = errno.EFBIG
        if number in LIMITS:
            said = LIMITS[number].format(files=resource.getrlimit(resource.RLIMIT_NOFILE)[0])
            return ResourceError(f"{said} Then run the same command again; finished steps are kept.")
    return DiskFull(named) if is_disk_full(error) else None


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
