"""Where the boxes and arrows of a lineage graph go: rows from the release down, and a lane of its own for every arrow that passes a row.

Layers as in Sugiyama et al. 1981. Arrows to the same thing share their lane, so data that everything came from has one line, not twenty.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from components.lineage.trace_node import Graph

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
