"""A trace as one HTML page: a drawing without scripts, and its layout.

Layers as in Sugiyama et al. 1981. Arrows to the same thing share their lane, so data that everything came from has one line, not twenty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from components.lineage.graph import Trace
from components.lineage.release_graph import Graph, Point, graph_of, value_text
from components.templates import page

WIDTH, HEIGHT = 172, 56  # of a box, in pixels
LANE = 8  # width of a lane
GAP, ROW, MARGIN = 9, HEIGHT + 52, 12
IN_ROW = 6  # boxes that a page of 1400 pixels shows side by side
SWEEPS = 8  # each sorts all rows once by where their arrows come from, or lead to

Slot = tuple[str, int]  # a box, or the lane of an arrow to it: key of the box, and row
Link = tuple[Slot, Slot]


class Box(NamedTuple):
    """Left upper corner, in pixels."""

    x: int
    y: int


class Arrow(NamedTuple):
    """A part of an arrow, as the path of an SVG; the last part has the tip."""

    path: str
    tip: bool


class Layout(NamedTuple):
    """All that is drawn, in pixels."""

    boxes: dict[str, Box]
    arrows: list[Arrow]
    width: int
    height: int


def layout(graph: Graph) -> Layout:
    """Place the graph; no box or lane lies on another."""
    depths = _depths(graph)
    links = _links(graph.edges, depths)
    rows = _ordered(_rows(graph, depths, links), links)
    places = {slot: box for number, row in enumerate(rows) for slot, box in _row(row, number, depths)}
    width = max(_width(row, depths) for row in rows)
    shifted = {slot: Box(box.x + MARGIN + (width - _width(rows[slot[1]], depths)) // 2, box.y + MARGIN) for slot, box in places.items()}
    boxes = {key: shifted[key, depth] for key, depth in depths.items()}
    return Layout(boxes, list(_arrows(links, shifted, depths)), width + 2 * MARGIN, (len(rows) - 1) * ROW + HEIGHT + 2 * MARGIN)


def _depths(graph: Graph) -> dict[str, int]:
    """The longest way from the root to each node, at most as long as there are nodes: a broken lineage may go in a circle."""
    depths = {point.key: 0 for point in graph.points}
    for _ in graph.points:
        moved = {end: depths[start] + 1 for start, end in graph.edges if depths[end] <= depths[start] < len(graph.points)}
        if not moved:
            break
        depths |= moved
    _spread(depths, {start for start, _ in graph.edges})
    ranks = {depth: rank for rank, depth in enumerate(sorted(set(depths.values())))}  # a circle leaves rows empty
    return {key: ranks[depth] for key, depth in depths.items()}


def _spread(depths: dict[str, int], starts: Collection[str]) -> None:
    """Rows with many boxes leave those that lead nowhere to the next row; changes `depths`."""
    depth = 0
    while depth <= max(depths.values()):
        row = [key for key, own in depths.items() if own == depth]
        ends = [key for key in row if key not in starts]
        for key in ends[max(0, len(ends) - max(0, len(row) - IN_ROW)) :]:
            depths[key] += 1
        depth += 1


def _links(edges: Iterable[tuple[str, str]], depths: Mapping[str, int]) -> list[Link]:
    """Each edge from row to row, through the lane of its end; those of a circle that lead up are not drawn."""
    found: dict[Link, None] = {}
    for start, end in edges:
        above = (start, depths[start])
        for depth in range(depths[start] + 1, depths[end] + 1):
            below = (end, depth)
            found[above, below] = None
            above = below
    return list(found)


def _rows(graph: Graph, depths: Mapping[str, int], links: Iterable[Link]) -> list[list[Slot]]:
    slots = dict.fromkeys([*((point.key, depths[point.key]) for point in graph.points), *(below for _, below in links)])
    rows: list[list[Slot]] = [[] for _ in range(max(depths.values()) + 1)]
    for slot in slots:
        rows[slot[1]].append(slot)
    return rows


def _ordered(rows: list[list[Slot]], links: Sequence[Link]) -> list[list[Slot]]:
    """Rows sorted so that arrows cross little: by the mean place of the neighbours above, then of those below, in turns."""
    above, below = defaultdict(list), defaultdict(list)
    for start, end in links:
        above[end].append(start)
        below[start].append(end)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for number in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            row, other = rows[number], rows[number - 1 if down else number + 1]
            place = {slot: index / max(len(other) - 1, 1) for index, slot in enumerate(other)}
            own = {slot: index / max(len(row) - 1, 1) for index, slot in enumerate(row)}
            near = above if down else below
            row.sort(key=lambda slot: _mean([place[end] for end in near[slot]], own[slot]))
    return rows


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _row(row: Sequence[Slot], number: int, depths: Mapping[str, int]) -> Iterable[tuple[Slot, Box]]:
    x = 0
    for slot in row:
        yield slot, Box(x, number * ROW)
        x += _slot_width(slot, depths) + GAP


def _width(row: Sequence[Slot], depths: Mapping[str, int]) -> int:
    return sum(_slot_width(slot, depths) + GAP for slot in row) - GAP


def _slot_width(slot: Slot, depths: Mapping[str, int]) -> int:
    return WIDTH if depths[slot[0]] == slot[1] else LANE


def _arrows(links: Iterable[Link], places: Mapping[Slot, Box], depths: Mapping[str, int]) -> Iterable[Arrow]:
    for start, end in links:
        x1, x2 = (places[slot].x + _slot_width(slot, depths) // 2 for slot in (start, end))
        y1, y2 = places[start].y + HEIGHT, places[end].y
        middle, tip = (y1 + y2) // 2, depths[end[0]] == end[1]
        path = f"M{x1} {y1}C{x1} {middle} {x2} {middle} {x2} {y2}"
        yield Arrow(path if tip else f"{path}V{y2 + HEIGHT}", tip)


# --- A trace as one HTML page that stands alone: the graph as inline SVG, below it all that is known of each node; no script, no font.


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
