"""A trace as one HTML page that stands alone: the graph as inline SVG, below it all that is known of each node; no script, no font."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from components.promotion.trace import Trace
from components.promotion.trace_node import Graph, Point, graph_of, value_text

WIDTH, HEIGHT = 230, 46  # of a box, in pixels
COLUMN, ROW = WIDTH + 80, HEIGHT + 16
MARGIN, LETTERS = 16, 32
_FAMILIES = {
    "release": "release", "answer": "release", "document": "release",
    "encoder": "model", "query_tower": "model", "document_tower": "model", "query_encoder": "model", "towers": "model",
    "index": "model", "base_model": "model",
    "dataset": "data", "vectors": "data", "queries": "data", "contract": "data",
    "evaluation": "proof", "validation": "proof", "approval": "proof", "record": "proof",
}  # fmt: skip
_STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#b9c2cd;--page:#fff;--release:#dbe7ff;--model:#e6f4e1;--data:#fff0d6;--proof:#f3e3f7;--note:#eceff3}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3adba;--line:#4c5663;--page:#14181d;--release:#24385e;--model:#23402a;
--data:#4a3a1b;--proof:#432c4c;--note:#2a3038}}
body{margin:24px;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
h1{font-size:20px;margin:0 0 4px}h2{font-size:15px;margin:24px 0 6px}p{color:var(--soft);margin:0 0 12px}
.graph{overflow:auto;border:1px solid var(--line);border-radius:6px}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft);font-size:11px}
svg path{fill:none;stroke:var(--line);stroke-width:1.4}svg rect{stroke:var(--line)}svg a:hover rect,svg a:focus rect{stroke:var(--ink)}
.release{fill:var(--release)}.model{fill:var(--model)}.data{fill:var(--data)}.proof{fill:var(--proof)}.note{fill:var(--note)}
table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:2px 14px 2px 0;overflow-wrap:anywhere}
th{font-weight:500;color:var(--soft);white-space:nowrap}section:target h2{text-decoration:underline}
a{color:inherit}
"""


class _Box(NamedTuple):
    x: int
    y: int


def html_of(trace: Trace) -> str:
    """The page; every text in it is escaped."""
    graph = graph_of(trace.root)
    names = {point.key: f"n{number}" for number, point in enumerate(graph.points)}
    title = escape(f"Lineage of {trace.ref}")
    about = escape(f"Retriever {trace.name}, {trace.model}/{trace.version}. An arrow leads to what a thing came from.")
    sections = "\n".join(_section(point, graph, names) for point in graph.points)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1><p>{about}</p>\n"
        f'<div class="graph">{_svg(graph, names)}</div>\n{sections}\n</body></html>\n'
    )


def _svg(graph: Graph, names: Mapping[str, str]) -> str:
    boxes = _layout(graph)
    width = max(box.x for box in boxes.values()) + WIDTH + MARGIN
    height = max(box.y for box in boxes.values()) + HEIGHT + MARGIN
    arrows = "".join(_arrow(boxes[start], boxes[end]) for start, end in graph.edges)
    shapes = "".join(_shape(point, boxes[point.key], names[point.key]) for point in graph.points)
    head = '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path d="M1 1L7 4L1 7"/></marker>'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Lineage graph" {size}><defs>{head}</defs>{arrows}{shapes}</svg>'


def _layout(graph: Graph) -> dict[str, _Box]:
    """A column for each step away from the root; in a column, what came to the same things stands together."""
    columns: dict[int, list[str]] = defaultdict(list)
    for key, depth in _depths(graph).items():
        columns[depth].append(key)
    children = defaultdict(list)
    for start, end in graph.edges:
        children[end].append(start)
    boxes: dict[str, _Box] = {}
    for depth in sorted(columns):
        ordered = sorted(columns[depth], key=lambda key: _middle([boxes[start].y for start in children[key] if start in boxes]))
        boxes |= {key: _Box(MARGIN + depth * COLUMN, MARGIN + row * ROW) for row, key in enumerate(ordered)}
    return boxes


def _depths(graph: Graph) -> dict[str, int]:
    """The longest way from the root to each node, at most as long as there are nodes: a broken lineage may go in a circle."""
    depths = {point.key: 0 for point in graph.points}
    for _ in graph.points:
        moved = {end: depths[start] + 1 for start, end in graph.edges if depths[end] <= depths[start] < len(graph.points)}
        if not moved:
            break
        depths |= moved
    return depths


def _middle(values: Sequence[int]) -> float:
    return sum(values) / len(values) if values else 0.0


def _arrow(start: _Box, end: _Box) -> str:
    x1, y1, x2, y2 = start.x + WIDTH, start.y + HEIGHT // 2, end.x, end.y + HEIGHT // 2
    bend = max(30, (x2 - x1) // 2)
    return f'<path d="M{x1} {y1}C{x1 + bend} {y1} {x2 - bend} {y2} {x2} {y2}" marker-end="url(#tip)"/>'


def _shape(point: Point, box: _Box, name: str) -> str:
    digest = str(point.details.get("digest") or point.details.get("version") or "")
    below = f"{point.kind.replace('_', ' ')} {digest[:12]}".strip()
    return (
        f'<a href="#{name}"><title>{escape(point.title)}</title>'
        f'<rect class="{_FAMILIES.get(point.kind, "note")}" x="{box.x}" y="{box.y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        f'<text x="{box.x + 10}" y="{box.y + 19}">{escape(_shortened(point.title))}</text>'
        f'<text class="soft" x="{box.x + 10}" y="{box.y + 36}">{escape(_shortened(below))}</text></a>'
    )


def _shortened(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"


def _section(point: Point, graph: Graph, names: Mapping[str, str]) -> str:
    titles = {other.key: other.title for other in graph.points}
    ends = {
        "came from": [end for start, end in graph.edges if start == point.key],
        "used in": [start for start, end in graph.edges if end == point.key],
    }
    rows = [(key, escape(value_text(value))) for key, value in point.details.items() if value is not None]
    links = {label: [f'<a href="#{names[key]}">{escape(titles[key])}</a>' for key in found] for label, found in ends.items()}
    rows += [(label, ", ".join(found)) for label, found in links.items() if found]
    table = "".join(f"<tr><th>{escape(str(key))}</th><td>{value}</td></tr>" for key, value in rows)
    return f'<section id="{names[point.key]}"><h2>{escape(point.title)}</h2><table>{table}</table></section>'
