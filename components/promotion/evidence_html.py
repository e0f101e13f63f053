"""Pieces of the reviewer's report: a page, sections, tables and lists of facts, everything escaped unless it was made here."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

from components.data.report_html import STYLE

_COLOURS = """
:root { --blue: #2457c5; --orange: #b45309; --violet: #7a3fb8; --teal: #0f766e; }
@media (prefers-color-scheme: dark) { :root { --blue: #8ab0ff; --orange: #f0a35e; --violet: #c9a2f5; --teal: #5fd0c5; } }
"""
_PLOTS = """
svg text { fill: var(--ink); } svg .note, svg .axis { fill: var(--soft); } svg .title { font-size: 14.5px; font-weight: 600; }
svg .paper { fill: var(--card); } svg line, svg polyline { fill: none; stroke-width: 2; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .zero { stroke: var(--ink); stroke-width: 1.2; }
svg .margin { stroke: var(--warn); stroke-width: 2; stroke-dasharray: 4 3; }
svg .kept { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 2 3; }
svg line.better { stroke: var(--good); } svg line.worse { stroke: var(--bad); } svg line.open { stroke: var(--soft); }
svg path.better { fill: var(--good); } svg path.worse { fill: var(--bad); }
svg circle.open { fill: var(--card); stroke: var(--soft); stroke-width: 2; }
svg .line1 { stroke: var(--blue); } svg .line2 { stroke: var(--orange); stroke-dasharray: 9 4; }
svg .line3 { stroke: var(--violet); stroke-dasharray: 2 3; } svg .line4 { stroke: var(--teal); stroke-dasharray: 9 3 2 3; }
svg .fill1 { fill: var(--blue); } svg .fill2 { fill: var(--orange); } svg .fill3 { fill: var(--violet); } svg .fill4 { fill: var(--teal); }
"""
PLOT_STYLE = STYLE + _COLOURS + _PLOTS  # all that a plot needs, also one that stands alone
_OWN_STYLE = """
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; } h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; } main { max-width: 76rem; }
h1, p, li, summary, td, th, caption { overflow-wrap: break-word; } p, li, summary { overflow-wrap: anywhere; }
.banner { border: 1px solid var(--line); border-left: .5rem solid var(--soft); border-radius: .4rem; background: var(--card);
  padding: .7rem 1rem; margin: 1rem 0; }
.banner b { font-size: 1.25rem; } .banner p + p { margin-top: .4rem; } .banner ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.banner.good { border-left-color: var(--good); } .banner.bad { border-left-color: var(--bad); }
.banner.warn { border-left-color: var(--warn); } .banner.good b { color: var(--good); } .banner.bad b { color: var(--bad); }
.banner.warn b { color: var(--warn); } .banner p, .banner li { color: var(--ink); }
.wide { margin: .6rem 0; }
.tiles li { flex: 1 1 11rem; } .tiles span { display: block; color: var(--soft); font-size: .85rem; }
.halves { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem; } .halves > div { min-width: 0; } .halves h3 { margin-top: .4rem; }
caption { text-align: left; padding: .5rem .8rem; color: var(--soft); }
thead th { background: var(--card); vertical-align: bottom; } th.number { text-align: right; }
tbody th { color: var(--ink); font-weight: 500; font-size: inherit; min-width: 7rem; }
tr + tr th, thead + tbody th { border-top: 1px solid var(--line); }
td.good, td.bad, td.warn { font-weight: 600; white-space: nowrap; } td.good { color: var(--good); } td.bad { color: var(--bad); }
td.warn { color: var(--warn); }
td.number, td.tight { white-space: nowrap; font-variant-numeric: tabular-nums; } td.words { min-width: 20rem; }
.plot { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: .6rem 0; }
.plot svg { display: block; width: 100%; min-width: 40rem; max-width: 64rem; font: 12.5px system-ui, sans-serif; }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: .5rem 0; padding: .4rem .9rem; }
summary { cursor: pointer; } details.section > summary > h2 { display: inline; }
details.section { background: none; border: 0; border-top: 1px solid var(--line); border-radius: 0; margin: 1.2rem 0 0; padding: 1rem 0 0; }
.halves ol { margin: .2rem 0; padding-left: 1.6rem; } .halves li.right { font-weight: 600; } .mark { color: var(--good); }
.figure { font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .7rem; font-size: .85rem; }
@media (max-width: 44rem) { .halves { grid-template-columns: 1fr; } main { padding: 1rem .7rem 3rem; } td.words { min-width: 13rem; } }
@page { size: A4 landscape; margin: 12mm; }
@media print { body { background: none; } main { max-width: none; padding: 0; } .plot svg { min-width: 0; }
  .wide, .plot { overflow: visible; }
  .wide table, .wide th { font-size: .72rem; } .wide th, .wide td { padding: .25rem .4rem; } td.words { min-width: 18rem; }
  .hint { display: none; }
  tr, .plot { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; } * { print-color-adjust: exact; } }
"""


class Safe(str):
    """HTML that was made here; any other text is escaped before it comes into the page."""


Cell = str | tuple[str, str]  # the text, or its class (good, bad, warn, words) and the text


def page(title: str, body: Sequence[str]) -> str:
    """The whole document: styles inline, nothing from outside, no script."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{PLOT_STYLE}{_OWN_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def section(anchor: str, title: str, *blocks: str) -> Safe:
    """A heading that folds its blocks; blocks that are plain text become paragraphs.

    There are no links from a table of contents: the sandbox of MLflow's artifact viewer does not follow them, folding works there.
    """
    inner = "\n".join(block if isinstance(block, Safe) else paragraph(block) for block in blocks if block)
    head = f'<summary><h2 id="{anchor}">{escape(title)}</h2></summary>'
    return Safe(f'<section aria-labelledby="{anchor}"><details class="section" open>{head}\n{inner}</details></section>')


def plain(text: str) -> str:
    """Text from anywhere without characters that no page or picture may hold, as zero bytes and halves of pairs; marks stand for them."""
    return "".join(" " if c in "\t\n\r" else "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def shortened(text: str, most: int) -> str:
    """`text` in at most `most` characters, so that one of a million does not fill the page."""
    return text if len(text) <= most else text[: most - 1] + "…"


def foreign(text: str, most: int) -> Safe:
    """Text from the data: cut, and kept from turning the direction in which the words around it are read."""
    return Safe(f"<bdi>{escape(plain(shortened(text, most)))}</bdi>")


def paragraph(text: str) -> Safe:
    """A paragraph of plain text."""
    return Safe(f"<p>{_made(text)}</p>")


def heading(text: str) -> Safe:
    """A heading within a section."""
    return Safe(f"<h3>{_made(text)}</h3>")


def bullets(items: Sequence[str]) -> Safe:
    """A list of plain texts."""
    return Safe("<ul>" + "".join(f"<li>{_made(item)}</li>" for item in items) + "</ul>")


def details(summary: str, inner: Safe, opened: bool = False) -> Safe:
    """A block that opens on a click, without a script."""
    return Safe(f"<details{' open' if opened else ''}><summary>{_made(summary)}</summary>{inner}</details>")


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], numbers: int | None = None) -> Safe:
    """A table that scrolls by itself when it is wide. The first column names the row; columns from `numbers` on stand right."""
    start = len(columns) if numbers is None else numbers
    head = "".join(f'<th scope="col"{_right(i, start)}>{escape(name)}</th>' for i, name in enumerate(columns))
    body = "".join(f"<tr>{_row(row, start)}</tr>" for row in rows)
    return Safe(
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[Cell], start: int) -> str:
    first, *others = row
    cells = [f'<th scope="row">{_text(first)}</th>']
    for i, cell in enumerate(others, start=1):
        style = cell[0] if isinstance(cell, tuple) else "number" if i >= start else ""
        cells.append(f"<td{f' class={chr(34)}{style}{chr(34)}' if style else ''}>{_text(cell)}</td>")
    return "".join(cells)


def _text(cell: Cell) -> str:
    return _made(cell[1] if isinstance(cell, tuple) else cell)


def _made(text: str) -> str:
    """HTML that was made here as it is, any other text escaped."""
    return text if isinstance(text, Safe) else escape(plain(text))


def _right(column: int, start: int) -> str:
    return ' class="number"' if column >= start else ""
