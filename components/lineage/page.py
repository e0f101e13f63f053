"""A trace as one HTML page that stands alone: the graph as inline SVG, below it all that is known of each node; no script, no font."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from components.lineage.graph import Trace
from components.lineage.trace_layout import HEIGHT, WIDTH, Box, layout
from components.lineage.trace_node import Graph, Point, graph_of, value_text
from components.templates import page

LETTERS = 22  # that fit into a box
MANY = 6  # like things that are drawn side by side
LEGEND = {"release": "release", "model": "model or index", "data": "data", "proof": "evidence and people", "note": "code, run, settings"}
_FAMILIES = {
    "release": "release", "answer": "release", "document": "release",
    "encoder": "model", "query_tower": "model", "document_tower": "model", "query_encoder": "model", "towers": "model",
    "index": "model", "base_model": "model",
    "dataset": "data", "vectors": "data", "queries": "data", "contract": "data",
    "evaluation": "proof", "comparison": "proof", "validation": "proof", "approval": "proof", "record": "proof",
}  # fmt: skip


class Shape(NamedTuple):
    """A box of the graph: where a click leads, what it says, and its upper left corner."""

    anchor: str
    title: str
    family: str
    x: int
    y: int
    lines: tuple[str, ...]


class Section(NamedTuple):
    """All that is known of a thing: its details in words, and by label the other things (anchor, title) that it is tied to."""

    anchor: str
    title: str
    details: list[tuple[str, str]]
    links: list[tuple[str, list[tuple[str, str]]]]


def html_of(trace: Trace) -> str:
    """The page; every text in it is escaped."""
    graph = graph_of(trace.root)
    names = {point.key: f"n{number}" for number, point in enumerate(graph.points)}
    shown = _without_many(graph)
    drawn = layout(shown)
    return page(
        "lineage/page.html.j2",
        ref=trace.ref,
        about=f"Retriever {trace.name}, {trace.model}/{trace.version}. An arrow leads to what a thing came from.",
        legend=LEGEND,
        drawn=drawn,
        box_width=WIDTH,
        box_height=HEIGHT,
        shapes=[_shape(point, drawn.boxes[point.key], names.get(point.key, "")) for point in shown.points],
        sections=[_section(point, graph, names) for point in graph.points],
    )


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


def _shape(point: Point, box: Box, name: str) -> Shape:
    role, _, title = point.title.rpartition(": ")
    digest = str(point.details.get("digest") or point.details.get("version") or "")
    lines = (role or point.kind.replace("_", " "), title, " ".join(filter(None, (str(point.details.get("name") or ""), digest[:12]))))
    return Shape(name, point.title, _FAMILIES.get(point.kind, "note"), box.x, box.y, tuple(map(_shortened, lines)))


def _shortened(text: str) -> str:
    """Without its middle when it is long: a version stands at the end."""
    return text if len(text) <= LETTERS else f"{text[: LETTERS // 2]}…{text[-(LETTERS // 2 - 1) :]}"


def _section(point: Point, graph: Graph, names: Mapping[str, str]) -> Section:
    titles = {other.key: other.title for other in graph.points}
    ends = {
        "came from": [end for start, end in graph.edges if start == point.key],
        "used in": [start for start, end in graph.edges if end == point.key],
    }
    details = [(str(key), value_text(value)) for key, value in point.details.items() if value is not None]
    links = [(label, [(names[key], titles[key]) for key in found]) for label, found in ends.items() if found]
    return Section(names[point.key], point.title, details, links)
