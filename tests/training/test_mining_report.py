"""The report of the minings: rounds kept in order, a round mined again after a kill, readable Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError
from components.towers.negatives import REPORT_MD, add_round, load_rounds, render


def report(number: int, **changes: Any) -> dict[str, Any]:
    example = {"query": "where `is`\nit", "positive": "here " * 60, "candidate": "there", "reason": "above_positive_share"}
    return {
        "round": number,
        "hard_negatives": 2,
        "mining_depth": 50,
        "positive_share": 0.95,
        "pairs": 1000,
        "candidates": 50_000,
        "kept": 45_678,
        "dropped": {"relevant": 1001, "same_text": 21, "above_positive_share": 3300},
        "drawn": 1999,
        "pairs_with_too_few": 1,
        "examples": [{**example, "positive_score": 0.5, "candidate_score": 0.4876}],
        **changes,
    }


def test_rounds_are_kept_in_order_and_a_repeated_one_takes_its_place(tmp_path: Path) -> None:
    for number in (1, 0, 2):
        add_round(tmp_path, report(number))
    add_round(tmp_path, report(1, kept=7))
    assert [(r["round"], r["kept"]) for r in load_rounds(tmp_path)] == [(0, 45_678), (1, 7), (2, 45_678)]
    assert (tmp_path / REPORT_MD).read_text() == render(load_rounds(tmp_path))


def test_the_markdown_says_counts_settings_and_examples() -> None:
    lines = render([report(0)]).splitlines()
    assert "2 for each pair, from the nearest 50 documents, none above 0.95 of the positive's score." in lines
    assert "| 0 | 1,000 | 50,000 | 45,678 | 1,001 | 21 | 3,300 | 1,999 | 1 |" in lines
    assert "### Dropped: too near to the positive's score" in lines
    assert "### Kept: could be drawn" not in lines
    assert "- query: `where 'is' it`" in lines
    assert "  - candidate (0.488): `there`" in lines
    assert max(map(len, lines)) < 200
    assert "no bound on their score" in render([report(0, positive_share=None)])


def test_no_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"mining_report\.json is missing"):
        load_rounds(tmp_path)
