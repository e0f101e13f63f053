"""Scores per query on disk, and the columns made from them, against values worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.artifacts import Artifact, seal
from components.data.snapshot import snapshot
from components.evaluation.comparisons import average, gained, kept, levels
from components.evaluation.config import EvaluationConfig
from components.evaluation.noise import Noise
from components.evaluation.scores import flat_numbers, load_scores, read_result, write_result, write_scores
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
    made = write_scores(Oracle(), {"dataset": data}, CONFIG, _folder(tmp_path / "scores"))
    scores = load_scores(made.path)
    assert scores["test", "recall@50"].tolist() == [1.0] * 120
    assert scores["dev", "ndcg@10"].tolist() == [1.0] * 20
    assert made.counts == {"queries": 140, "dataset_documents": 260}
    assert made.parents == {"dataset": data.digest}
    assert read_result(made.path)["test.recall@50"] == 1.0
    assert flat_numbers(made)["dev.ndcg@10"] == 1.0


def test_noise_reaches_the_ranker(data: Artifact, tmp_path: Path) -> None:
    oracle = Oracle()
    made = write_scores(oracle, {"dataset": data}, CONFIG, _folder(tmp_path / "noisy"), Noise("upper_case", 1.0, 1))
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


def test_seeds_are_averaged_query_by_query() -> None:
    assert average([_scores([0.0, 1.0]), _scores([1.0, 1.0])])["test", "ndcg@10"].tolist() == [0.5, 1.0]


def test_only_numbers_of_a_result_become_metrics(tmp_path: Path) -> None:
    made = write_result({"machine": "a", "systems": {"x": {"qps": 2, "on": True}}}, _folder(tmp_path / "result"), {})
    assert flat_numbers(made) == {"systems.x.qps": 2.0}
    other = _folder(tmp_path / "other")
    pd.DataFrame({"a": [1]}).to_csv(other / "table.csv")
    assert flat_numbers(seal(other, "study")) == {}
