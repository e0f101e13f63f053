"""The nodes of a trace and how they are told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from components.text import one_line

SHOWN = "shown above"


@dataclass(frozen=True)
class Node:
    """One line of a trace, what is known about it, and what it came from.

    Nodes with the same `key` are the same thing: what was shown before is only named again. `kind` says what it is, such as encoder.
    """

    title: str
    details: Mapping[str, Any] = field(default_factory=dict)
    children: tuple[Node, ...] = ()
    kind: str = "note"
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The node and all below it as plain values."""
        children = [child.to_dict() for child in self.children]
        return {"title": self.title, "kind": self.kind, "key": self.key, "details": dict(self.details), "children": children}


@dataclass(frozen=True)
class Point:
    """A node of the graph: everything that the tree says about one thing."""

    key: str
    kind: str
    title: str
    details: Mapping[str, Any]


@dataclass(frozen=True)
class Graph:
    """Points in the order of the tree, the root first, and edges (key, key of what it came from)."""

    points: tuple[Point, ...]
    edges: tuple[tuple[str, str], ...]


def graph_of(root: Node) -> Graph:
    """The graph of a tree; nodes without a key are things of their own."""
    points: dict[str, Point] = {}
    edges: dict[tuple[str, str], None] = {}
    for key, node, parent in _walk(root):
        if key not in points:
            points[key] = Point(key, node.kind, node.title, dict(node.details))
        elif node.details.get("note") != SHOWN:
            points[key] = Point(key, node.kind, points[key].title, {**points[key].details, **node.details})
        if parent is not None:
            edges[parent, key] = None
    return Graph(tuple(points.values()), tuple(edges))


def text_of(root: Node) -> str:
    """The tree with indented lines."""
    return "\n".join(_lines(root))


def value_text(value: Any) -> str:
    """A detail as text: booleans as true and false, lists with commas, mappings as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return json.dumps(dict(value), ensure_ascii=False, default=str)
    return ", ".join(str(part) for part in value) if isinstance(value, (list, tuple)) else str(value)


def time_text(milliseconds: int) -> str:
    """A time of the registry, in milliseconds since 1970, as ISO text in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")


def moment(text: Any, milliseconds: int) -> str:
    """`text`, if it is a time with its zone, else that of the registry: tags and records of others can hold anything."""
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
        return time_text(milliseconds) if found is None or found.tzinfo is None else found.astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return time_text(milliseconds)


def _walk(root: Node) -> Iterator[tuple[str, Node, str | None]]:
    """Every node with its key and that of its parent, in the order of the text; nodes without a key get one of their place."""
    waiting: list[tuple[str, Node, str | None]] = [(root.key or root.title, root, None)]
    while waiting:
        key, node, parent = waiting.pop()
        yield key, node, parent
        places = [(child.key or f"{key}/{number} {child.title}", child, key) for number, child in enumerate(node.children, start=1)]
        waiting += reversed(places)


def _lines(node: Node, indent: str = "", branch: str = "", below: str = "") -> list[str]:
    lines = [f"{indent}{branch}{one_line(node.title)}"]
    inner = indent + below
    bar = "│ " if node.children else "  "
    lines += [f"{inner}{bar}  {one_line(key)}: {one_line(value_text(value))}" for key, value in node.details.items() if value is not None]
    for number, child in enumerate(node.children, start=1):
        last = number == len(node.children)
        lines += _lines(child, inner, "└─ " if last else "├─ ", "   " if last else "│  ")
    return lines
