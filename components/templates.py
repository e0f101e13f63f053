"""HTML from templates (Jinja2): what is put into one is escaped unless it is `Markup`, and a name that nobody gave is an error.

A template is a file `*.j2` beside the module that fills it, named by its place below `components`. Write that name out in the module:
`components.code` looks for it there, so that a changed template makes the steps again that use it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from components.errors import ArtifactError

if TYPE_CHECKING:
    from jinja2 import Environment


def page(template: str, /, **values: Any) -> str:
    """The whole template filled with `values`; raises ArtifactError where its file, or one that it includes, is gone."""
    with _complete():
        return environment().get_template(template).render(values)


def piece(template: str, macro: str, /, *values: Any) -> Markup:
    """One macro of a template called with `values`, without the white space around it; raises ArtifactError like `page`."""
    with _complete():
        return Markup(getattr(environment().get_template(template).module, macro)(*values)).strip()


def plain(text: str) -> str:
    """Text from anywhere without characters that no page or picture may hold, as zero bytes and halves of pairs; marks stand for them."""
    return "".join(" " if c in "\t\n\r" else "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def shortened(text: str, most: int) -> str:
    """`text` in at most `most` characters, so that one of a million does not fill the page."""
    return text if len(text) <= most else text[: most - 1] + "…"


@cache
def environment() -> Environment:
    """What all templates share."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else plain(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.filters["shortened"] = lambda value, most: shortened(str(value), most)
    made.filters["thousands"] = "{:,}".format
    return made


@contextmanager
def _complete() -> Iterator[None]:
    from jinja2 import TemplateNotFound

    try:
        yield
    except TemplateNotFound as error:
        raise ArtifactError(f"The code is incomplete: there is no template components/{error.name}. Install scalingnote again.") from None
