"""Output of commands: text for people on stdout, or one JSON object with --json."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from components.config import RETRIEVER_NAME
from components.errors import ConfigError

DEFAULT_NAME = "retriever"


def retriever_name(options: argparse.Namespace) -> str:
    """The retriever that a command is about; raises ConfigError for a name that none can have."""
    name: str = options.name or DEFAULT_NAME
    if not re.fullmatch(RETRIEVER_NAME, name):
        raise ConfigError(f"--name: got '{name}'; allowed: small letters, digits and hyphens, at most 60.")
    return name


def name_option(name: str) -> str:
    """What a command that is proposed to the reader needs behind it to be about the retriever `name`."""
    return "" if name == DEFAULT_NAME else f" --name {name}"


def show(options: argparse.Namespace, value: Any, text: str) -> None:
    """Print `text`, or `value` as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str) if options.json else text)


@contextlib.contextmanager
def only_result_on_stdout(options: argparse.Namespace) -> Iterator[None]:
    """With --json, what steps print on the way goes to stderr, so that stdout holds the JSON alone."""
    if not options.json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield
