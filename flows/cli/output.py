"""Output of commands: text for people on stdout, or one JSON object with --json."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any

from components.config import checked_retriever_name
from components.errors import ConfigError, ScalingNoteError
from components.plain_text import as_json, visible

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
    """Print `text`, or `value` as JSON; what came from outside cannot command the terminal. Colours of ours are put on by `coloured`.

    JSON loses no letter where the output cannot show all of them.
    """
    letters = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    print(as_json(value, 2, letters) if options.json else coloured(visible(text)))


def coloured(text: str) -> str:
    """Lines that begin with the red mark, in red where somebody looks at a terminal that has colours."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return "\n".join(f"\033[31m{line}\033[0m" if line.lstrip().startswith(RED) else line for line in text.split("\n"))


@contextlib.contextmanager
def only_result_on_stdout(options: argparse.Namespace) -> Iterator[None]:
    """With --json, what steps print on the way goes to stderr, so that stdout holds the JSON alone."""
    if not options.json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield
