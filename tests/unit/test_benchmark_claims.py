"""The table of claims: a sentence holds only when the whole interval says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from components.artifacts import write_json
from components.evaluation.report import REPORT_FILE, Comparison
from tests.benchmarks.claims import Claim, Measured, main, measured, outcome
from tests.unit.promotion_world import make_evaluation


def claim(expects: str, margin: float | None = None) -> Claim:
    return Claim.model_validate({"says": "x", "expects": expects, "margin": margin, "table": "t.csv", "row": "r", "column": "c"})


@pytest.mark.parametrize(
    ("expects", "margin", "low", "high", "found"),
    [
        ("above", None, 0.001, 0.2, "holds"),
        ("above", None, 0.0, 0.2, "not decidable"),
        ("above", None, -0.2, -0.001, "does not hold"),
        ("below", None, -0.2, -0.001, "holds"),
        ("below", None, 0.01, 0.2, "does not hold"),
        ("level", 0.02, -0.01, 0.019, "holds"),
        ("level", 0.02, -0.01, 0.03, "not decidable"),
        ("level", 0.02, 0.021, 0.03, "does not hold"),
        ("above", None, None, None, "not decidable"),
    ],
)
def test_an_interval_decides(expects: str, margin: float | None, low: float | None, high: float | None, found: str) -> None:
    assert outcome(claim(expects, margin), Measured(0.1, low, high)) == found


def entry(**changes: object) -> dict[str, object]:
    return {"says": "Heads gain", "expects": "above", "table": "table.csv", "row": "two_layer", "column": "gain R@50", **changes}


def write(folder: Path, *entries: object) -> str:
    (folder / "table.csv").write_text("student,gain R@50,gain R@50 low,gain R@50 high\nbase,,,\ntwo_layer,0.015,0.005,0.025\n")
    summary = make_evaluation().summary
    low = Comparison(system="student", baseline="bm25", metric="ndcg@10", difference=0.0, low=-0.1, high=0.1, confidence=0.95, queries=40)
    write_json(folder / REPORT_FILE, summary.model_copy(update={"comparisons": (low,)}).model_dump(mode="json"))
    (folder / "claims.yaml").write_text(yaml.safe_dump(list(entries)))
    return str(folder / "claims.yaml")


def test_tables_and_evaluations_are_read_and_strictness_is_an_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_report = {"says": "Above BM25", "expects": "above", "evaluation": ".", "system": "student", "baseline": "bm25", "metric": "ndcg@10"}
    file = write(tmp_path, entry(), of_report)
    assert main([file]) == 0 and main([file, "--strict"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "| Heads gain | above | +0.015 [+0.005 +0.025] | holds |" in lines
    assert "| Above BM25 | above | +0.000 [-0.100 +0.100] | not decidable |" in lines
    assert main([write(tmp_path, entry()), "--strict"]) == 0


def test_a_table_that_claims_nothing_or_leaves_it_to_chance_decides_nothing(tmp_path: Path) -> None:
    head, ends = "system,gain R@50,gain R@50 low,gain R@50 high,gain R@50 p,claim", "0.015,0.005,0.025"
    rows = {"many": f"{ends},0.01,", "chance": f"{ends},0.2,", "alone": f"{ends},,one seed: no claim"}
    (tmp_path / "table.csv").write_text("\n".join([head, *(f"{name},{row}" for name, row in rows.items())]))
    claims = {name: Claim.model_validate(entry(row=name)) for name in rows}
    found = {name: outcome(one, measured(one, tmp_path)) for name, one in claims.items()}
    assert found == {"many": "holds", "chance": "not decidable", "alone": "not decidable"}
    level = Claim.model_validate(entry(row="chance", expects="level", margin=0.03))
    assert outcome(level, measured(level, tmp_path)) == "holds"  # no chance of a difference is asked there


def test_a_row_that_stands_twice_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, entry())
    with (tmp_path / "table.csv").open("a") as table:
        table.write("two_layer,-0.5,-0.6,-0.4\n")
    assert main([file]) == 2 and "2 rows 'two_layer'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"row": "three_layer"}, "no row 'three_layer'"),
        ({"row": "base"}, "holds no number"),
        ({"column": "gain"}, "a column 'gain'"),
        ({"table": "nowhere.csv"}, "cannot be read"),
        ({"expects": "better"}, "entry 0.expects"),
        ({"margin": 0.1}, "level needs a margin"),
        ({"evaluation": "."}, "either evaluation or table"),
        ({"column": ""}, "name column too"),
    ],
)
def test_a_claim_without_a_measurement_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], words: str
) -> None:
    assert main([write(tmp_path, entry(**changes))]) == 2
    assert words in capsys.readouterr().err
