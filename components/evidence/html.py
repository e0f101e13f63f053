"""Pieces of the reviewer's report: sections, tables and lists of facts, everything escaped unless it was made here."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from components.templates import piece

PIECES = "evidence/pieces.html.j2"
Cell = str | tuple[str, str]  # the text, or its class (good, bad, warn, words) and the text


def section(anchor: str, title: str, *blocks: str) -> Markup:
    """A heading that folds its blocks; blocks that are plain text become paragraphs, empty ones are left out."""
    return piece(PIECES, "section", anchor, title, blocks)


def foreign(text: str, most: int) -> Markup:
    """Text from the data: cut, and kept from turning the direction in which the words around it are read."""
    return piece(PIECES, "foreign", text, most)


def paragraph(text: str) -> Markup:
    """A paragraph of plain text."""
    return piece(PIECES, "paragraph", text)


def heading(text: str) -> Markup:
    """A heading within a section."""
    return piece(PIECES, "heading", text)


def bullets(items: Sequence[str]) -> Markup:
    """A list of plain texts; nothing where there are none."""
    return piece(PIECES, "bullets", items) if items else Markup()


def details(summary: str, inner: Markup, opened: bool = False) -> Markup:
    """A block that opens on a click, without a script."""
    return piece(PIECES, "details", summary, inner, opened)


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: int | None = None) -> Markup:
    """A table that scrolls by itself when it is wide. The first column names the row; columns from `numbers` on stand right."""
    return piece(PIECES, "table", caption, columns, rows, len(columns) if numbers is None else numbers)
