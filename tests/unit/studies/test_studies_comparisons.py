"""Scores per query on disk, and the columns made from them, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.artifacts import Artifact, seal
from components.data.snapshot import snapshot
from components.distillation.query_sources import Noise
from components.errors import DataError
from components.evaluation.config import EvaluationConfig
from components.studies.report import gained, kept, levels, told_worth
from components.studies.scores import Scores, flat_numbers, load_scores, read_result, write_result, write_scores
from tests.data_world import write_folder

CONFIG = EvaluationConfig(bootstrap_samples=200, extra_splits=("dev",))


class Oracle:
    """Finds the document that the judged query asks for, when the query's wording is intact."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        self.asked += queries
        found = [q.removeprefix("where is number ").removesuffix("?") for q in queries]
        return [[(f"d{number}", 1.0)] if number.isdigit() else [] for number in found]


@pytest.fixture
def data(tmp_path: Path) -> Artifact:
    from components.data.config import DataConfig

    folder = tmp_path / "snapshot"
    folder.mkdir()
    return snapshot(DataConfig(source=str(write_folder(tmp_path / "data"))), folder)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def test_scores_of_all_splits_are_read_back_in_the_order_of_the_query_ids(data: Artifact, tmp_path: Path) -> None:
    made = write_scores(Oracle, {"dataset": data}, CONFIG, _folder(tmp_path / "scores"))
    scores = load_scores(made.path)
    assert scores["test", "recall@50"].tolist() == [1.0] * 120
    assert {split: len(numbers) for split, numbers in scores.units.items()} == {"test": 120, "dev": 20}
    assert scores["dev", "ndcg@10"].tolist() == [1.0] * 20
    assert made.counts == {"queries": 140, "dataset_documents": 260}
    assert made.parents == {"dataset": data.digest}
    assert read_result(made.path)["test.recall@50"] == 1.0
    assert flat_numbers(made)["dev.ndcg@10"] == 1.0


def test_noise_reaches_the_ranker(data: Artifact, tmp_path: Path) -> None:
    oracle = Oracle()
    made = write_scores(lambda: oracle, {"dataset": data}, CONFIG, _folder(tmp_path / "noisy"), Noise("upper_case", 1.0, 1))
    assert oracle.asked[0].startswith("WHERE IS")
    assert load_scores(made.path)["test", "recall@50"].sum() == 0


def _scores(values: Sequence[float]) -> dict[tuple[str, str], np.ndarray]:
    return {(split, metric): np.array(values) for split in ("test", "dev") for metric in ("recall@50", "ndcg@10")}


def test_columns_name_metric_and_split() -> None:
    own, teacher = _scores([0.5, 0.0, 1.0, 0.5]), _scores([1.0, 1.0, 1.0, 1.0])
    assert levels(own, CONFIG)["R@50"] == 0.5
    assert kept(own, teacher, CONFIG)["kept nDCG@10 (dev)"] == 0.5
    change = gained(own, teacher, CONFIG, "change ")
    assert change["change R@50"] == -0.5
    assert change["change R@50 low"] < -0.5 < change["change R@50 high"]
    assert set(levels(own, CONFIG)) == {f"{m}{s}{e}" for m in ("R@50", "nDCG@10") for s in ("", " (dev)") for e in ("", " low", " high")}


def test_nothing_is_kept_of_a_teacher_that_finds_nothing() -> None:
    assert kept(_scores([0.5, 1.0]), _scores([0.0, 0.0]), CONFIG) == {}


def test_the_value_of_several_seeds_is_their_mean_and_trainings_that_differ_widen_its_interval() -> None:
    values = np.linspace(0, 1, 40)
    alone = levels(_scores(values.tolist()), CONFIG)
    both = levels([_scores((values + shift).tolist()) for shift in (-0.2, 0.2)], CONFIG)
    assert both["nDCG@10"] == pytest.approx(alone["nDCG@10"])
    assert both["nDCG@10 high"] - both["nDCG@10 low"] > 2 * (alone["nDCG@10 high"] - alone["nDCG@10 low"])


def test_only_a_difference_has_a_chance() -> None:
    own, other = _scores([0.5, 0.0, 1.0, 0.5]), _scores([1.0, 1.0, 1.0, 1.0])
    assert 0 <= gained(own, other, CONFIG)["gain R@50 p"] <= 1
    assert not [column for row in (levels(own, CONFIG), kept(own, other, CONFIG)) for column in row if column.endswith(" p")]


def test_the_same_trainings_asked_twice_are_paired_by_seed() -> None:
    """Trainings far apart, each of which loses the same: their distance is no noise of the loss."""
    values = np.linspace(0, 0.5, 40)
    before = [_scores((values + shift).tolist()) for shift in (0.0, 0.2, 0.4)]
    after = [_scores((values + shift - 0.1).tolist()) for shift in (0.0, 0.2, 0.4)]
    paired, apart = gained(after, before, CONFIG, "", same_trainings=True), gained(after, before, CONFIG, "")
    assert (paired["R@50"], apart["R@50"]) == (pytest.approx(-0.1), pytest.approx(-0.1))
    assert paired["R@50 high"] == pytest.approx(-0.1) and apart["R@50 high"] > 0


def test_intervals_of_a_study_resample_the_units_of_its_queries() -> None:
    values = {key: np.repeat(found, 10) for key, found in _scores(np.linspace(0, 1, 12).tolist()).items()}
    units = {split: np.repeat(np.arange(12), 10) for split in ("test", "dev")}
    alone, grouped = levels(Scores(values), CONFIG), levels(Scores(values, units), CONFIG)
    assert grouped["R@50 high"] - grouped["R@50 low"] > 2 * (alone["R@50 high"] - alone["R@50 low"])
    assert "120 queries in 12 units of up to 10" in told_worth(Scores(values, units), CONFIG)
    assert told_worth(Scores(values), CONFIG) == ""
    other = Scores(values, {split: np.arange(120) for split in units})
    with pytest.raises(DataError, match="other units"):
        gained(Scores(values, units), other, CONFIG)


def test_only_numbers_of_a_result_become_metrics(tmp_path: Path) -> None:
    numbers = {"machine": "a", "systems": {"x": {"qps": 2, "on": True}}}
    made = write_result(lambda folder: numbers, {}, _folder(tmp_path / "result"))
    assert flat_numbers(made) == {"systems.x.qps": 2.0}
    other = _folder(tmp_path / "other")
    pd.DataFrame({"a": [1]}).to_csv(other / "table.csv")
    assert flat_numbers(seal(other, "study")) == {}
