"""The studies baselines and scaling_law over a small collection: tables, files, what is refused before training, and the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.cli_world import SMALL, at_home, done, scalingnote, write_collection

pytestmark = [pytest.mark.server, pytest.mark.slow]
LESS = (
    "--set",
    "towers.steps=4",
    "--set",
    "distillation.max_mean_cosine=1.0",
    "--set",
    "study.scaling_negatives=64",
    "--set",
    "study.scaling_refits=20",
)
MODELS = ("--set", "study.scaling_models=[decoder-32x1, decoder-64x1]", "--set", "study.scaling_shares=[0.5, 1.0]")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Path]:
    """A collection, in a home folder that all tests here share."""
    folder = tmp_path_factory.mktemp("studies")
    with at_home(folder / "home", mlflow_template):
        yield write_collection(folder / "data")


def test_every_baseline_stands_beside_the_student(data: Path) -> None:
    cut = ("--set", "distillation.layers=1", "--set", "study.small_learning_rates=[0.001, 0.003]", "--set", "study.seeds=[13, 14]")
    result = done("study", "baselines", *SMALL, *LESS, *cut, "--data", data)
    small = [f"{name}{form}" for name in ("untrained", "symmetric", "end-to-end") for form in ("", "-cut")]
    rows = {row["system"]: row for row in result["rows"]}
    assert list(rows) == ["bm25", *small, "teacher", "student-aligned", "student"]
    for name, row in rows.items():
        assert row["nDCG@10 low"] <= row["nDCG@10"] <= row["nDCG@10 high"]
        assert row["seeds"] == (0 if name in ("bm25", "untrained", "untrained-cut") else 2)
        assert row["queries/s"] > 0 and row["documents s"] > 0
        assert (row["training s"] is None) == (name in ("bm25", "untrained", "untrained-cut"))
        assert (row["M parameters"] is None) == (name == "bm25")
    assert all(rows[name]["M parameters"] > rows[f"{name}-cut"]["M parameters"] for name in small[::2])
    assert rows["student"]["training s"] > rows["teacher"]["training s"]
    assert "with the seeds 13, 14" in result["text"] and "by Holm" in result["text"]
    # 294 train judgements and 200 of the titles, once, as in the student's refinement.
    assert "saw the train judgements and titles in 1 pass, batches of 8 (as many as the student's refinement)" in result["text"]
    assert "symmetric 496 of 494 pairs" in result["text"]
    assert done("study", "baselines", *SMALL, *LESS, *cut, "--data", data)["cached"]


def test_baselines_without_costs_time_nothing_and_take_as_many_passes_as_asked(data: Path) -> None:
    few = (
        "--cells",
        "symmetric",
        "--set",
        "study.seeds=[13]",
        "--set",
        "study.pair_passes=0.1",
        "--set",
        "distillation.refine_titles=false",
    )
    result = done("study", "baselines", *SMALL, *LESS, *few, "--data", data)
    assert [row["system"] for row in result["rows"]] == ["symmetric", "student"]
    assert "queries/s" not in result["rows"][0]
    assert "saw the train judgements in 0.1 passes, batches of 8 (not as many as the student's refinement)" in result["text"]


def test_the_largest_size_is_predicted_before_it_is_run(data: Path) -> None:
    result = done("study", "scaling_law", *SMALL, *LESS, *MODELS, "--data", data)
    rows = result["rows"]
    assert [(row["model"], row["share"], row["steps"]) for row in rows] == [
        ("decoder-32x1", 0.5, 2), ("decoder-32x1", 1.0, 4), ("decoder-64x1", 0.5, 2), ("decoder-64x1", 1.0, 4),
    ]  # fmt: skip
    assert [row["D"] for row in rows] == [16, 32, 16, 32] and rows[0]["N"] < rows[2]["N"]
    assert all(row["entropy low"] <= row["entropy"] <= row["entropy high"] for row in rows)
    folder = Path(result["folder"])
    fits, prediction = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("fits.json", "prediction.json"))
    assert fits["joint"]["reasons"] == ["4 points for 5 parameters; at least 6 are needed"]
    assert prediction["predictions"] == [] and prediction["fits"]["model_size"]["points"] == 1
    assert "was not fitted: 2 points for 3 parameters" in result["text"]


@pytest.mark.parametrize(
    ("setting", "told", "status"),
    [
        ("study.scaling_shares=[0.01]", "fewer than a batch", 2),
        ("study.scaling_shares=[0.5, 1.5]", "every share must be above 0 and at most 1", 2),
        ("study.scaling_models=[tiny-decoder, decoder-64x2]", "have the same size", 2),
        ("study.scaling_models=[tiny-decoder@2]", "ask for 1 to 1", 4),
        ("study.scaling_negatives=256", "only 209 documents that are not relevant", 3),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_training(data: Path, setting: str, told: str, status: int) -> None:
    outcome = scalingnote("study", "scaling_law", *SMALL, *LESS, *MODELS, "--data", data, "--set", setting)
    assert outcome.status == status, outcome.err
    assert told in outcome.err and "train_towers" not in outcome.out


def test_baselines_need_an_encoder_of_their_own(data: Path) -> None:
    outcome = scalingnote("study", "baselines", *SMALL, *LESS, "--data", data, "--set", "distillation.student=teacher")
    assert outcome.status == 2 and "set study.small_encoder" in outcome.err
