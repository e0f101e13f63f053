"""The demo's examples: three systems side by side."""

from __future__ import annotations

from flows.cli.build import _side_by_side


def hit(doc_id: str, title: str) -> dict[str, str]:
    return {"doc_id": doc_id, "title": title}


def test_systems_stand_side_by_side_and_one_that_finds_less_leaves_its_column_empty() -> None:
    answers = {
        "BM25": [hit("N17", "Other acute kidney failure")],
        "untrained encoder": [hit("N27.9", "Small kidney, unspecified"), hit("N26.2", "A title that is far too long for the column")],
        "candidate/1": [hit("N20.0", "Calculus of kidney"), hit("N20", "Calculus of kidney and ureter")],
    }
    lines = _side_by_side("kidney stone", answers).splitlines()
    assert lines[0] == "'kidney stone'"
    assert lines[1].split() == ["BM25", "untrained", "encoder", "candidate/1"]
    assert lines[2].startswith("1  N17 Other acute kidney failure") and lines[2].endswith("N20.0 Calculus of kidney")
    assert lines[3].startswith("2    ") and "N26.2 A title that is far too long for..." in lines[3]
    starts = [line.index(word) for line, word in zip(lines[1:], ("candidate/1", "N20.0", "N20 Calc"), strict=True)]
    assert len(set(starts)) == 1
    assert max(map(len, lines)) < 140


def test_a_query_without_any_answer_is_shown_as_such() -> None:
    assert _side_by_side("flu", {"BM25": [], "candidate/1": []}).splitlines()[0] == "'flu'"
