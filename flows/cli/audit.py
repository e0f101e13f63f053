"""The command `trace`: its arguments, and a trace as text, JSON, HTML page, OpenLineage events or CycloneDX bill of materials."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import ConfigError
from components.plain_text import as_json, visible
from flows.cli.output import retriever_name

if TYPE_CHECKING:
    from components.lineage.graph import Trace

FORMATS = ("text", "json", "html", "openlineage", "cyclonedx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be traced, and how it is written."""
    parser.add_argument("ref", help="champion, previous, candidate/N, release/N, model/NAME/N, index/N, answer:ID, or the id of a document")
    parser.add_argument("--release", default="champion", metavar="REF", help="release to look a document id up in (default champion)")
    parser.add_argument("--format", choices=FORMATS, help="text (default); html is a graph on one page; the last two are for other tools")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there instead of to the screen")


def trace(options: argparse.Namespace) -> None:
    """Back from a release, model, index, document or answer to where it came from."""
    form = _format(options)
    if options.output and (options.output.is_dir() or not options.output.absolute().parent.is_dir()):
        wrong = "is a folder" if options.output.is_dir() else "lies in a folder that does not exist"
        raise ConfigError(f"--output {options.output} {wrong}. Give a file in a folder that is there.")
    content = _written(_traced(options), form)
    if options.output is None:
        print(content if form == "html" else visible(content))
        return
    from components.artifacts import is_stdout, write_named

    write_named(options.output, f"{content}\n".encode())
    if is_stdout(options.output):
        return
    written = {"ref": options.ref, "format": form, "output": str(options.output), "bytes": len(content.encode()) + 1}
    print(as_json(written) if options.json else f"{options.ref} traced, as {form}: {options.output}")


def _format(options: argparse.Namespace) -> str:
    """--json without --format is JSON; --json with --output tells in JSON what was written."""
    if options.json and not options.output and options.format not in (None, "json"):
        raise ConfigError(f"--json prints JSON, --format {options.format} something else. Leave one of them out, or give a file with -o.")
    return options.format or ("json" if options.json else "text")


def _traced(options: argparse.Namespace) -> Trace:
    if options.ref.startswith("answer:"):
        from components.serving.trace_answer import trace_answer

        return trace_answer(options.ref, retriever_name(options) if options.name else None)
    from components.lineage.graph import follow

    return follow(retriever_name(options), options.ref, options.release)


def _written(found: Trace, form: str) -> str:
    if form == "text":
        return found.text()
    if form == "html":
        from components.lineage.page import html_of

        return html_of(found)
    return as_json(_values(found, form), indent=2)


def _values(found: Trace, form: str) -> Any:
    if form == "openlineage":
        from components.lineage.openlineage import openlineage_of

        return openlineage_of(found)
    if form == "cyclonedx":
        from components.lineage.cyclonedx import cyclonedx_of

        return cyclonedx_of(found)
    return found.to_json()
