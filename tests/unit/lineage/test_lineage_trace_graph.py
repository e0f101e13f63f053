"""The graph of a trace, and the HTML page that shows it without a script."""

from __future__ import annotations

import itertools
from html.parser import HTMLParser
from pathlib import Path

import pytest

from components.lineage.graph import Trace
from components.lineage.page import HEIGHT, WIDTH, html_of, layout
from components.lineage.release_graph import SHOWN, Node, graph_of, text_of
from tests.unit.trace_world import champion_trace


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trace:
    return champion_trace(tmp_path, monkeypatch)[0]


class Page(HTMLParser):
    """Tags, ids, and places that links lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.ids.add(values.get("id") or "")
        self.links.add(values.get("href") or "")
        if tag not in ("meta", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect"):
            assert self.open.pop() == tag


def test_one_thing_is_one_point_however_often_the_tree_names_it() -> None:
    data = Node("data", {"digest": "d", "rows": 2}, kind="dataset", key="d")
    again = Node("data", {"digest": "d", "note": SHOWN}, kind="dataset", key="d")
    more = Node("data: toy", {"source": "s"}, kind="dataset", key="d")
    graph = graph_of(Node("release", {}, (Node("a", {}, (data,), key="a"), Node("b", {}, (again,), key="b"), more), key="r"))
    assert [point.key for point in graph.points] == ["r", "a", "d", "b"]
    assert graph.points[2].details == {"digest": "d", "rows": 2, "source": "s"}
    assert set(graph.edges) == {("r", "a"), ("a", "d"), ("r", "b"), ("b", "d"), ("r", "d")}


def test_nodes_without_a_key_stay_apart() -> None:
    graph = graph_of(Node("root", {}, (Node("same"), Node("same", {}, (Node("same"),)))))
    assert len(graph.points) == 4 and len(graph.edges) == 3


def test_text_is_a_tree() -> None:
    assert text_of(Node("a", {"x": True, "y": None}, (Node("b"), Node("c", {"z": ["1", "2"]})))) == (
        "a\n│   x: true\n├─ b\n└─ c\n       z: 1, 2"
    )


def test_page_stands_alone_and_every_link_leads_somewhere(found: Trace) -> None:
    text = html_of(found)
    page = Page(text)
    assert not page.open
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "http" not in text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("http-equiv", "")
    assert "svg" in page.tags and "default-src 'none'" in text
    leading = {link for link in page.links if link}
    assert leading and all(link.startswith("#") and link[1:] in page.ids for link in leading)
    for part in ("retriever-query-encoder/1", "vectors: corpus", "contract documents", "record 1: promote", "base model: query_encoder"):
        assert part in text, part


def test_page_escapes_what_people_wrote(found: Trace) -> None:
    text = html_of(found)
    assert "Ada &lt;script&gt;" in text and "<script" not in text


def test_boxes_do_not_lie_on_each_other_and_arrows_lead_down(found: Trace) -> None:
    graph = graph_of(found.root)
    drawn = layout(graph)
    for one, other in itertools.combinations(drawn.boxes.values(), 2):
        assert abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT
    assert all(drawn.boxes[start].y < drawn.boxes[end].y for start, end in graph.edges)
    assert max(box.x for box in drawn.boxes.values()) + WIDTH < drawn.width
    assert sum(arrow.tip for arrow in drawn.arrows) >= len(graph.points) - 1  # every box but the root's is led to


def test_an_arrow_that_passes_a_row_has_a_lane_beside_its_boxes() -> None:
    data = Node("data", {}, kind="dataset", key="d")
    root = Node("r", {}, (Node("a", {}, (Node("b", {}, (data,), key="b"),), key="a"), data), "release", "r")
    drawn = layout(graph_of(root))
    passing = [arrow.path for arrow in drawn.arrows if not arrow.tip]
    assert len(passing) == 2  # beside a and beside b, on the way from the root to the data
    for path, row in zip(passing, ("a", "b"), strict=True):
        x = int(path.rsplit("V", 1)[0].rsplit(" ", 2)[1])
        assert not drawn.boxes[row].x - 2 < x < drawn.boxes[row].x + WIDTH + 2


def test_many_like_things_are_one_box_and_all_stand_below() -> None:
    documents = tuple(Node(f"document d{number}", {"rank": number}, kind="document") for number in range(100))
    text = html_of(Trace("toy", "answer:1", "toy-release", 1, Node("answer 1", {}, documents, "answer", "a")))
    assert text.count("<rect") == 1 + 6 and "and 95 more, below" in text
    assert all(f"<h2>document d{number}</h2>" in text for number in range(100))
    page = Page(text)
    assert all(link[1:] in page.ids for link in page.links if link)


def test_a_wide_row_goes_on_below() -> None:
    kinds = [Node(f"thing {number}", {}, kind=f"kind {number}") for number in range(20)]
    drawn = layout(graph_of(Node("root", {}, tuple(kinds), "release", "r")))
    assert drawn.width < 1366 and len({box.y for box in drawn.boxes.values()}) == 5


def test_a_lineage_in_a_circle_is_drawn() -> None:
    circle = Node("a", {}, (Node("b", {}, (Node("a", {"note": SHOWN}, key="a"),), key="b"),), key="a")
    root = Node("r", {}, (circle,), "release", "r")
    assert html_of(Trace("toy", "champion", "toy-release", 1, root)).count("<rect") == 3
