"""The command line: a module for each family of commands; `start` is what the program `scalingnote` calls.

Nothing heavy is imported before a command is known: `--help` has to answer at once.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = "Interrupted. Run the same command again to continue where it was."


def start() -> int:
    """Run the command of `sys.argv` and return its exit status.

    Ctrl-C is answered in words from the first import to the last exit handler: `main` tidies up, before and after it we leave at once
    (servers that we started end with us). The libraries would show a traceback.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as in the background of a shell script
    if not ignored:
        signal.signal(signal.SIGINT, _leave)
    # The libraries make a million objects that stay; looking through them again and again took a sixth of the time until they are there.
    gc.set_threshold(20_000)
    _keep_docstrings()
    _require_own_packages()
    from flows.cli.main import main
    from flows.cli.output import finish_streams, prepare_streams

    prepare_streams()
    try:
        if not ignored:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = main()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as stop:  # of argparse
        status = stop.code if isinstance(stop.code, int) else 0
    if not ignored:
        signal.signal(signal.SIGINT, _leave)
    return finish_streams(status)


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


def _leave(*_: Any) -> NoReturn:
    os.write(2, f"scalingnote: {INTERRUPTED}\n".encode())
    os._exit(130)
