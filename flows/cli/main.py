"""Entry point of `scalingnote`: arguments, quiet libraries, and errors as messages with an exit status.

Exit status: 0 done; 1 unexpected failure or a finding; 2 wrong arguments or configuration; 3 data; 4 models; 5 collapse; 6 artifacts;
7 approval and promotion; 8 tracking server; 9 too little disk or memory; 130 interrupted; 129, 143, 152 ended by another signal.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components import settings
from components.errors import ConfigError, ResourceError, ScalingNoteError, masked
from components.text import visible
from components.tracking.embedded import require_named_store
from components.tracking.sign_in import sign_in
from flows.cli import ENDINGS, Ended, start
from flows.cli.output import OutputClosed, OutputError, drop_output, json_here, lacking, require_addresses
from flows.cli.parser import build_parser

# Commands that change something go through a running `scalingnote ui --auth`, as an account with this role. A rotation does not: it must
# not miss a retriever that the account cannot see, whose champion the withdrawn key would then have signed.
ROLES = {
    **dict.fromkeys(("demo", "retrain", "adopt", "study", "refresh-index", "refresh-query-tower"), "trainer"),
    "approve": "reviewer",
    **dict.fromkeys(("promote", "webhook", "rollback", "keys sign", "history --strike"), "promoter"),
}
# Commands that load models or indexes.
LOADING = ("demo", "retrain", "adopt", "study", "refresh-index", "refresh-query-tower", "replay", "search", "run")
# Commands about what was made and recorded before.
RECORDED = (
    *("status", "history", "search", "run", "export", "trace", "replay", "approve", "promote", "rollback", "webhook"),
    *("refresh-index", "refresh-query-tower", "keys sign", "keys rotate", "history --strike"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = argparse.Namespace(json="--json" in given, verbose="--verbose" in given)
    try:
        _require_text(given)
        options = build_parser().parse_args(given)
        _quiet_libraries(options.verbose)
        if level := getattr(options, "log_level", None):
            os.environ[settings.LOG_LEVEL] = level
        named = _named(options)
        if role := ROLES.get(named):
            sign_in(role)
        if options.command in LOADING:
            require_addresses()
            _require_current_folder()
        settings.activate()
        if {options.command, named} & {*RECORDED} or (options.command == "verify" and options.folder is None):
            require_named_store()
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        return _fail(options, ENDINGS[signal.SIGINT], 128 + signal.SIGINT)
    except Ended as ended:
        return _fail(options, str(ended), 128 + ended.number)
    except OutputClosed:
        drop_output()
        return 0
    except Exception as error:
        return _explain(options, error)


def _named(options: argparse.Namespace) -> str:
    """The command with what it is to do, where that makes a difference: `keys rotate` and `history --strike` change something."""
    if getattr(options, "strike", None) is not None:
        return f"{options.command} --strike"
    return f"{options.command} {getattr(options, 'action', '')}".strip()


def _require_text(arguments: Sequence[str]) -> None:
    """Bytes that are no text here stand in the arguments as half surrogates, which no file, database or tokenizer takes."""
    for argument in arguments:
        if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise ConfigError(
                f"The argument '{shown}' holds bytes that are no text in {sys.getfilesystemencoding()}, the encoding here. Give it as text."
            )


def _require_current_folder() -> None:
    """The libraries of the models ask where they are, and their errors would be taken for a release that cannot be loaded."""
    try:
        Path.cwd()
    except OSError:
        raise ConfigError("The current folder was removed, or may not be read. Change to one that is there, such as your home.") from None


def _explain(options: argparse.Namespace, error: Exception) -> int:
    """A user's mistake or the machine's state in words; the rest with its place, which a report of the failure needs."""
    named = [value for value in vars(options).values() if isinstance(value, Path)]
    if isinstance(error, OutputError):
        drop_output()
    elif not isinstance(error, ResourceError):
        error = lacking(error, named) or error
    if isinstance(error, ScalingNoteError):
        return _fail(options, str(error), error.exit_code)
    if isinstance(error, OSError) and error.filename:
        place = error.filename2 or error.filename  # the first is the name that a file had while it was written
        status = 2 if str(place) in map(str, named) else 1
        return _fail(options, f"{place}: {error.strerror}. Check that it exists and that you may use it.", status)
    if options.verbose:
        traceback.print_exc()
    where = traceback.extract_tb(error.__traceback__)[-1]
    message = f"Unexpected failure: {type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})."
    return _fail(options, f"{message} Run it again with --verbose for the details; finished steps are kept.", 1)


def _fail(options: argparse.Namespace, message: str, status: int) -> int:
    message = masked(message)  # a library's error too may name an address
    if getattr(options, "json", False):
        try:
            print(json_here({"error": message, "exit_status": status}))
        except (OutputClosed, OutputError):  # as of a terminal that was closed
            drop_output()
    print(f"scalingnote: {visible(message)}", file=sys.stderr)
    return status


def _quiet_libraries(verbose: bool) -> None:
    """Prefect prints a traceback for every failed task and MLflow a line for every call; our own messages say what is needed.

    Prefect keeps them for its page, where people look for them.
    """
    values: dict[str, Any] = {
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO" if verbose else "CRITICAL",
        "PREFECT_LOGGING_INTERNAL_LEVEL": "ERROR" if verbose else "CRITICAL",  # of what it says when a server is gone
        "PREFECT_LOGGING_LOG_PRINTS": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING" if verbose else "CRITICAL",  # it logs a traceback for a database that cannot be written
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "default" if verbose else "ignore",
    }
    for name, value in values.items():
        os.environ[name] = os.environ.get(name) or value
    if not verbose:
        import logging
        import warnings

        # Where MLflow is loaded already, it does not look at the variable again.
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        logging.raiseExceptions = False  # lines that a server does not take any more are no message for people
        warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(start())
