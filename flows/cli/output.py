"""Output of commands: text for people on stdout, or one JSON object with --json."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from components.config import checked_retriever_name
from components.errors import ConfigError
from components.plain_text import as_json, visible

DEFAULT_NAME = "retriever"
RED = "\U0001f7e5"  # begins every line about an override


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
    print(as_json(value, indent=2) if options.json else coloured(visible(text)))


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
