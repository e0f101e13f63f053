"""A trace as one HTML page that stands alone: the graph as inline SVG, below it all that is known of each node; no script, no font."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from components.promotion.trace import Trace
from components.promotion.trace_layout import HEIGHT, WIDTH, Box, layout
from components.promotion.trace_node import Graph, Point, graph_of, value_text

LETTERS = 22  # that fit into a box
MANY = 6  # like things that are drawn side by side
TIP, SOFT = ' marker-end="url(#tip)"', ' class="soft"'
LEGEND = {"release": "release", "model": "model or index", "data": "data", "proof": "evidence and people", "note": "code, run, settings"}
_FAMILIES = {
    "release": "release", "answer": "release", "document": "release",
    "encoder": "model", "query_tower": "model", "document_tower": "model", "query_encoder": "model", "towers": "model",
    "index": "model", "base_model": "model",
    "dataset": "data", "vectors": "data", "queries": "data", "contract": "data",
    "evaluation": "proof", "comparison": "proof", "validation": "proof", "approval": "proof", "record": "proof",
}  # fmt: skip
_STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#b9c2cd;--page:#fff;--release:#dbe7ff;--model:#e6f4e1;--data:#fff0d6;--proof:#f3e3f7;--note:#eceff3}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#a3adba;--line:#4c5663;--page:#14181d;--release:#24385e;--model:#23402a;
--data:#4a3a1b;--proof:#432c4c;--note:#2a3038}}
body{margin:16px;background:var(--page);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
h1{font-size:20px;margin:0 0 4px}h2{font-size:15px;margin:24px 0 6px}p{color:var(--soft);margin:0 0 12px}
.graph{overflow:auto;border:1px solid var(--line);border-radius:6px}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}svg .soft{fill:var(--soft);font-size:11px}
svg path{fill:none;stroke:var(--line);stroke-width:1.4}svg rect{stroke:var(--line)}svg a:hover rect,svg a:focus rect{stroke:var(--ink)}
.release{fill:var(--release);background:var(--release)}.model{fill:var(--model);background:var(--model)}
.data{fill:var(--data);background:var(--data)}.proof{fill:var(--proof);background:var(--proof)}
.note{fill:var(--note);background:var(--note)}
table{border-collapse:collapse}th,td{text-align:left;vertical-align:top;padding:2px 14px 2px 0;overflow-wrap:anywhere}
th{font-weight:500;color:var(--soft);white-space:nowrap}section:target h2{text-decoration:underline}
a{color:inherit}
.legend span{display:inline-block;margin:0 12px 4px 0;padding:1px 8px;border-radius:4px;color:var(--ink)}
@media(max-width:600px){svg{width:100%;height:auto}th,td{display:block;padding-right:0}th{padding-top:8px}}
"""


def html_of(trace: Trace) -> str:
    """The page; every text in it is escaped."""
    graph = graph_of(trace.root)
    names = {point.key: f"n{number}" for number, point in enumerate(graph.points)}
    title = escape(f"Lineage of {trace.ref}")
    about = escape(f"Retriever {trace.name}, {trace.model}/{trace.version}. An arrow leads to what a thing came from.")
    legend = "".join(f'<span class="{family}">{words}</span>' for family, words in LEGEND.items())
    sections = "\n".join(_section(point, graph, names) for point in graph.points)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1><p>{about}</p>\n"
        f'<p class="legend">{legend}</p>\n'
        f'<div class="graph">{_svg(graph, names)}</div>\n{sections}\n</body></html>\n'
    )


def _svg(graph: Graph, names: Mapping[str, str]) -> str:
    shown = _without_many(graph)
    drawn = layout(shown)
    arrows = "".join(f'<path d="{arrow.path}"{TIP if arrow.tip else ""}/>' for arrow in drawn.arrows)
    shapes = "".join(_shape(point, drawn.boxes[point.key], names.get(point.key, "")) for point in shown.points)
    head = '<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto"><path d="M1 1L7 4L1 7"/></marker>'
    size = f'width="{drawn.width}" height="{drawn.height}" viewBox="0 0 {drawn.width} {drawn.height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Lineage graph" {size}><defs>{head}</defs>{arrows}{shapes}</svg>'


def _without_many(graph: Graph) -> Graph:
    """The graph with one box in the place of many like ones that came from or led to one thing; the text below has them all."""
    points = {point.key: point for point in graph.points}
    groups: dict[tuple[str, str], list[str]] = {}
    for start, end in graph.edges:
        groups.setdefault((start, points[end].kind), []).append(end)
    edges: list[tuple[str, str]] = []
    for (start, kind), ends in groups.items():
        kept = ends if len(ends) <= MANY else ends[: MANY - 1]
        edges += [(start, end) for end in kept]
        if len(ends) > MANY:
            more = Point(f"{start}/more {kind}", kind, f"and {len(ends) - len(kept)} more, below", {})
            points[more.key] = more
            edges.append((start, more.key))
    reached = _reached(graph.points[0].key, edges)
    return Graph(tuple(point for key, point in points.items() if key in reached), tuple(edge for edge in edges if edge[0] in reached))


def _reached(root: str, edges: Sequence[tuple[str, str]]) -> set[str]:
    found, waiting = {root}, [root]
    while waiting:
        place = waiting.pop()
        new = [end for start, end in edges if start == place and end not in found]
        found.update(new)
        waiting += new
    return found


def _shape(point: Point, box: Box, name: str) -> str:
    role, _, title = point.title.rpartition(": ")
    digest = str(point.details.get("digest") or point.details.get("version") or "")
    lines = (role or point.kind.replace("_", " "), title, " ".join(filter(None, (str(point.details.get("name") or ""), digest[:12]))))
    written = "".join(
        f'<text{SOFT if number != 1 else ""} x="{box.x + 10}" y="{box.y + 17 + 16 * number}">{escape(_shortened(line))}</text>'
        for number, line in enumerate(lines)
    )
    shape = f'x="{box.x}" y="{box.y}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
    family = _FAMILIES.get(point.kind, "note")
    return f'<a href="#{name}"><title>{escape(point.title)}</title><rect class="{family}" {shape}/>{written}</a>'


def _shortened(text: str) -> str:
    """Without its middle when it is long: a version stands at the end."""
    return text if len(text) <= LETTERS else f"{text[: LETTERS // 2]}…{text[-(LETTERS // 2 - 1) :]}"


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
