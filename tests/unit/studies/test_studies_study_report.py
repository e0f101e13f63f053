"""Tables of the studies: what people read, and the numbers beside it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.artifacts import verify
from components.evaluation.units import Interval
from components.studies.report import (
    CLAIM,
    NO_CLAIM,
    apart,
    bars,
    claim_of,
    corrected,
    markdown_table,
    number,
    quality_over,
    with_interval,
    write_study_report,
)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (float("nan"), "-"),
        ("base", "base"),
        (12345, "12,345"),
        (12345.6, "12,346"),
        (45.67, "45.7"),
        (0.98765, "0.988"),
        (-0.5, "-0.500"),
        (0.000123, "0.00012"),
        (0.0, "0.000"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_as_people_read_them(value: object, shown: str) -> None:
    assert number(value) == shown


def _frame() -> pd.DataFrame:
    rows = [
        {"system": "teacher", "queries/s": 10.0, **with_interval("R@50", Interval(0.5, 0.4, 0.6))},
        {
            "system": "a|b",
            "queries/s": 1000.0,
            **with_interval("R@50", Interval(0.25, 0.2, 0.3)),
            **with_interval("kept", Interval(0.5, 0, 1)),
        },
    ]
    return pd.DataFrame(rows)


def test_names_from_outside_end_no_cell_and_no_row() -> None:
    frame = pd.DataFrame([{"system": "a\nb | c", "R@50 (ood|x\ny)": 0.5}])
    lines = markdown_table(frame).split("\n")
    assert len(lines) == 3 and lines[0].startswith("| system") and "R@50 (ood\\|x y) |" in lines[0] and "a b \\| c" in lines[2]


def test_intervals_stand_behind_their_values() -> None:
    lines = markdown_table(_frame()).splitlines()
    assert lines[0].split("|")[1:-1] == [" system  ", " queries/s ", " R@50                ", " kept                "]
    assert lines[1] == "| ------- | --------: | ------------------: | ------------------: |"
    assert lines[2] == "| teacher |      10.0 | 0.500 [0.400 0.600] |                   - |"
    assert lines[3] == "| a\\|b    |     1,000 | 0.250 [0.200 0.300] | 0.500 [0.000 1.000] |"


def test_chances_of_a_table_are_corrected_together_but_for_rows_that_claim_nothing() -> None:
    rows = [
        {"system": "base"},
        {"system": "a", "x": 0.1, "x p": 0.01, "y": 0.1, "y p": 0.3},
        {"system": "b", "x": -0.1, "x p": 0.02, "y": 0.2, "y p": 0.001},
        {"system": "c", "x": 0.5, "x p": 0.0001, "y": 0.5, "y p": 0.0001, **claim_of(1, 3)},
    ]
    found = corrected(pd.DataFrame(rows)).set_index("system")
    assert found.loc[["a", "b"], ["x p", "y p"]].to_numpy().tolist() == [[pytest.approx(0.03), 0.3], [pytest.approx(0.04), 0.004]]
    assert found.loc["c", ["x p", "y p"]].isna().all() and found.loc["c", CLAIM] == NO_CLAIM
    told = {str(row["system"]): apart(row, "x") for row in found.reset_index().to_dict("records")}
    assert told == {"base": False, "a": True, "b": True, "c": False}
    assert claim_of(2, 3) == {}


def test_a_table_without_chances_is_left_as_it_is() -> None:
    frame = _frame()
    assert corrected(frame) is frame


def test_an_interval_of_a_single_unit_is_shown_as_none(tmp_path: Path) -> None:
    frame = pd.DataFrame([{"system": "a", "queries/s": 2.0, **with_interval("R@50", Interval(0.5, float("-inf"), float("inf"), 1))}])
    assert "0.500 [no interval]" in markdown_table(frame)
    quality_over(frame, "queries/s", ("R@50",), tmp_path / "over.png", "t")
    bars(frame, "system", ("R@50",), tmp_path / "bars.png", "t")


def test_a_report_is_sealed_with_table_numbers_and_plot(tmp_path: Path) -> None:
    frame = _frame()
    report = write_study_report(
        "retention",
        frame,
        ["two systems"],
        lambda table, path: quality_over(table, "queries/s", ("R@50",), path, "t"),
        {"x": "d"},
        tmp_path,
    )
    assert verify(tmp_path).digest == report.digest
    assert (report.kind, report.counts) == ("study", {"rows": 2})
    assert (tmp_path / "table.md").read_text().splitlines()[-1] == "- two systems"
    assert list(pd.read_csv(tmp_path / "table.csv")["R@50 high"]) == [0.6, 0.3]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_table_gives_the_same_artifact(tmp_path: Path) -> None:
    def write(folder: Path) -> str:
        folder.mkdir()
        return write_study_report(
            "x", _frame(), [], lambda table, path: bars(table, "system", ("R@50",), path, "t", series="system"), {}, folder
        ).digest

    assert write(tmp_path / "one") == write(tmp_path / "two")
