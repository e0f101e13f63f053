"""The command line: a module for each family of commands; `start` is what the program `scalingnote` calls.

Nothing heavy is imported before a command is known: `--help` has to answer at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

# What each signal that ends us from outside says; the system alone would end us without a word, and process 1 of a container not at all.
ENDINGS: dict[int, str] = {
    signal.SIGINT: "Interrupted. Run the same command again to continue where it was.",
    signal.SIGTERM: "Told to end (SIGTERM). Finished steps are kept: run the same command again to continue where it was.",
    signal.SIGHUP: "Its terminal was closed (SIGHUP). Finished steps are kept: run the same command again to continue where it was.",
    signal.SIGXCPU: "It may take no more processor time (`ulimit -t`). Finished steps are kept: raise the limit and run it again.",
}
_told: list[int] = []  # the signals that came while a command ran, the first of which counts
_raised: list[int] = []  # the one of them that ended it


class Ended(SystemExit):
    """A signal has told the command to end, and it does so as at Ctrl-C.

    A SystemExit, since an event loop swallows whatever else a callback raises. `main` and `start` look for it before any other.
    """

    def __init__(self, number: int) -> None:
        super().__init__(ENDINGS[number])
        self.number, self.code = number, 128 + number


def start() -> int:
    """Run the command of `sys.argv` and return its exit status.

    Ctrl-C and what else ends us from outside is answered in words from the first import to the last exit handler: `main` tidies up, before
    and after it we leave at once (servers that we started end with us). The libraries would show a traceback.
    """
    heard = [number for number in ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]  # as by nohup, or in a script's background
    _answer(heard, _leave)
    # The libraries make a million objects that stay; looking through them again and again took a sixth of the time until they are there.
    gc.set_threshold(20_000)
    _keep_docstrings()
    _require_own_packages()
    from flows.cli.main import main
    from flows.cli.output import finish_streams, prepare_streams

    prepare_streams()
    try:
        _answer(heard, _end)
        if signal.SIGINT in heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # which the libraries look for
        status = main()
    except KeyboardInterrupt:
        _leave(signal.SIGINT)
    except Ended as ended:
        _leave(ended.number)
    except SystemExit as stop:  # of argparse
        status = stop.code if isinstance(stop.code, int) else 0
    _answer(heard, _leave)
    return finish_streams(status)


def _answer(numbers: Iterable[int], handler: Callable[[int, Any], Any] | signal.Handlers) -> None:
    for number in numbers:
        signal.signal(number, handler)


def _end(number: int, _frame: Any) -> None:
    """Raise what ends the command where it is.

    A flow, or torch's launcher, listens to SIGTERM itself, to close its run or its processes before it hands the signal on: so it is told
    of any other one by that, if anybody listens (our parent may have had us ignore it). A closed terminal is told twice, a spent limit
    every second, and `timeout` tells us and our group: whatever comes after the first must not disturb the tidying up.
    """
    if _raised:
        return
    _told.append(number)
    _answer([signal.SIGHUP, signal.SIGXCPU], signal.SIG_IGN)
    listening = signal.getsignal(signal.SIGTERM)
    if number != signal.SIGTERM and listening is not _end and callable(listening):
        os.kill(os.getpid(), signal.SIGTERM)
        return
    _raised.append(number)
    raise Ended(_told[0])


def _keep_docstrings() -> None:
    """Start again with `-O` where Python was told `-OO`: several libraries read their own docstrings and fail without them."""
    given = sys.orig_argv[1:]
    if sys.flags.optimize > 1 and ("-OO" in given or os.environ.get("PYTHONOPTIMIZE", "") not in ("", "0", "1")):
        os.environ["PYTHONOPTIMIZE"] = "1"
        os.execv(sys.executable, [sys.executable, *("-O" if word == "-OO" else word for word in given)])


def _require_own_packages() -> None:
    """Leave with a sentence when a package called `components` that is not ours comes first on the path: no command could be imported."""
    import components

    found = Path(components.__path__[0]).resolve()
    if found.parent != Path(__file__).resolve().parents[2]:
        os.write(2, f"scalingnote: {found} hides our own package of this name. Take its folder out of PYTHONPATH.\n".encode())
        os._exit(2)


def _leave(number: int, _frame: Any = None) -> NoReturn:
    os.write(2, f"scalingnote: {ENDINGS[number]}\n".encode())
    os._exit(128 + number)
