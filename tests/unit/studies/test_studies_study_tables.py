"""Tables and sentences of the studies baselines and scaling_law, from numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.evaluation.config import EvaluationConfig
from components.studies.report import METRICS, corrected, markdown_table, side_by_side, verdict
from components.studies.scaling_cell import fit_all, foretell
from components.studies.scaling_law import draw_scaling, fit_notes, prediction_notes, scaling_table
from flows.studies.framework import decided_note

CONFIG = EvaluationConfig(bootstrap_samples=200)


def scores(values: list[float]) -> Any:
    """The same values again and again, so that there are queries enough to claim something by."""
    return {("test", metric): np.array(values * 8) for metric in METRICS}


def test_systems_stand_beside_the_reference_with_paired_intervals() -> None:
    systems = {"worse": scores([0.0, 0.5, 0.0, 0.5]), "same": scores([0.5, 1.0, 0.5, 1.0]), "student": scores([0.5, 1.0, 0.5, 1.0])}
    worse, same, student = side_by_side(systems, "student", CONFIG, untrained=tuple(systems))
    assert (worse["nDCG@10"], student["nDCG@10"]) == (0.25, 0.75)
    column = "student - system, nDCG@10"
    assert [worse[column], worse[column + " low"], worse[column + " high"]] == pytest.approx([0.5] * 3)  # every query gains the same
    assert column not in student
    assert verdict(worse, "student", "nDCG@10") == "above"
    assert verdict(same, "student", "nDCG@10") == "not apart from"


def test_a_difference_of_systems_that_were_trained_once_claims_nothing() -> None:
    systems = {"bm25": scores([0.0, 0.5]), "once": [scores([0.0, 0.5])], "student": [scores([0.5, 1.0]), scores([0.5, 1.0])]}
    bm25, once, student = side_by_side(systems, "student", CONFIG, untrained=("bm25",))
    assert (bm25["seeds"], once["seeds"], student["seeds"]) == (0, 1, 2)
    assert [row.get("claim") for row in (bm25, once, student)] == [None, "one seed: no claim", None]
    assert verdict(bm25, "student", "nDCG@10") == "above"
    assert verdict(once, "student", "nDCG@10") == "not compared (one seed) with"


def cell(parameters: int, pairs: int, entropy: float) -> dict[str, Any]:
    interval = {"entropy_low": entropy - 0.01, "entropy_high": entropy + 0.01}
    about = {"model": f"m{parameters}", "parameters": parameters, "share": pairs / 4000, "pairs": pairs, "steps": 10}
    return {**about, "entropy": entropy, **interval, "R@50": 0.5, "nDCG@10": 0.4}


def law(parameters: float, pairs: float) -> float:
    return float(((2e4 / parameters) ** 0.5 + 100 / pairs) ** 1.2 + 0.2)


GRID = [cell(n, d, law(n, d)) for n in (10_000, 40_000, 160_000, 640_000, 2_560_000) for d in (1000, 2000, 3000, 4000)]


def test_a_prediction_stands_beside_what_was_measured_and_says_how_far_it_was_off(tmp_path: Path) -> None:
    small, large = GRID[:-4], GRID[-4:]
    foretold = foretell(small, [(c["parameters"], c["pairs"]) for c in large], 13, 20)
    assert [p["law"] for p in foretold["predictions"]] == ["model_size", *["joint"] * 4]
    frame = scaling_table(GRID, foretold)
    assert frame["predicted"].notna().sum() == 4
    assert frame["predicted"].iloc[-1] == pytest.approx(law(2_560_000, 4000), rel=1e-2)
    lines = prediction_notes(frame, foretold)
    assert len(lines) == 5 and all("before it was run: m2560000" in line for line in lines)
    assert "measured 0.273" in lines[-1]
    draw_scaling(frame, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_laws_are_told_with_their_intervals_or_with_the_reason_why_not() -> None:
    fits = {name: fit.describe() for name, fit in fit_all(GRID, 13, 20).items()}
    told = fit_notes(fits)
    assert told[0].startswith("Model size, on the most pairs: L(N) = (A/N)^a + d with A = ") and "R2 of log L 1.000 on 5 points." in told[0]
    assert "on 4 points" in told[1] and told[2].startswith("Both, over all cells")
    few = {name: fit.describe() for name, fit in fit_all(GRID[:2], 13, 20).items()}
    assert fit_notes(few)[0].endswith("was not fitted: 1 points for 3 parameters; at least 4 are needed.")


def test_a_prediction_of_what_was_measured_as_nothing_is_off_by_no_share() -> None:
    foretold = foretell(GRID[:-4], [(2_560_000, 4000)], 13, 20)
    lines = prediction_notes(scaling_table([*GRID[:-1], cell(2_560_000, 4000, 0.0)], foretold), foretold)
    assert len(lines) == 2 and all(line.endswith("measured 0.000.") for line in lines)


def test_nothing_is_foretold_from_too_few_cells() -> None:
    foretold = foretell(GRID[:2], [(2_560_000, 4000)], 13, 20)
    assert foretold["predictions"] == []
    lines = prediction_notes(scaling_table(GRID, foretold), foretold)
    assert lines[0].startswith("No prediction by L(N) = (A/N)^a + d: 1 points")
    assert foretell([], [(2_560_000, 4000)], 13, 20)["predictions"] == []


def test_the_law_of_model_size_foretells_nothing_at_other_data_than_it_was_fitted_at() -> None:
    """It would foretell what the largest size gives on the fewer pairs; the joint law knows of both."""
    cells = [found for found in GRID if found["parameters"] < 2_560_000]
    less = [found for found in cells if found["pairs"] < max(found["pairs"] for found in cells)]
    for known, asked, laws in ((cells, 4000, {"model_size", "joint"}), (less, 4000, {"joint"}), (cells, 1000, {"joint"})):
        assert {found["law"] for found in foretell(known, [(2_560_000, asked)], 13, 20)["predictions"]} == laws


def test_cells_without_an_interval_can_be_shown_and_drawn(tmp_path: Path) -> None:
    frame = scaling_table([{**found, "entropy_low": None, "entropy_high": None} for found in GRID[:4]], {"predictions": []})
    assert frame["entropy low"].isna().all()
    draw_scaling(frame, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()


def test_a_single_cell_can_still_be_drawn(tmp_path: Path) -> None:
    draw_scaling(scaling_table(GRID[:1], {"predictions": []}), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()


def test_a_few_queries_that_all_gain_the_same_claim_nothing() -> None:
    """They have no spread, so that their interval has no width; four coins fall on one side once in eight times."""
    few = {name: {("test", m): np.full(4, level) for m in METRICS} for name, level in (("bm25", 0.2), ("student", 0.7))}
    row = corrected(pd.DataFrame(side_by_side(few, "student", CONFIG, untrained=tuple(few)))).to_dict("records")[0]
    assert row["student - system, nDCG@10 p"] >= 0.125 and verdict(row, "student", "nDCG@10") == "not apart from"


def test_the_note_of_an_ablation_names_both_metrics_and_their_directions() -> None:
    rows = [{"system": "base"}, {"system": "deeper", "over base R@50": -0.03, "over base R@50 p": 0.01, "over base nDCG@10": 0.02}]
    rows[1] |= {"over base nDCG@10 p": 0.02, "claim": ""}
    note = decided_note(pd.DataFrame(rows))
    assert "in R@50 deeper (below); in nDCG@10 deeper (above)" in note


def test_a_chance_does_not_read_as_if_it_lay_on_the_other_side_of_what_is_claimed() -> None:
    frame = pd.DataFrame({"system": ["a", "b", "c"], "x": [0.1, 0.1, 0.1], "x p": [0.0496, 0.0504, 0.2]})
    lines = markdown_table(frame).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["0.0496", "0.0504", "0.200"]
