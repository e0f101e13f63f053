from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.index.build import mean_recall, recall_against_exact, smallest_reaching, tune
from components.index.config import IndexConfig
from components.index.engine import Settings
from components.index.search import VectorIndex, load_index
from tests.unit.index_world import SPACE, built, clustered, shards_of

QUERIES = clustered(30, seed=7)


def index_of(folder: Path, **changes: object) -> VectorIndex:
    vectors = shards_of(folder / "vectors", clustered(600), [300])
    asked = IndexConfig(**{"index_key": "IVF16,PQ4x4fsr", "recall_at": 10, "target_recall": 0.9, **changes})  # type: ignore[arg-type]
    return load_index(built(folder / "index", vectors, asked, QUERIES).path, SPACE)


def test_recall_by_hand() -> None:
    found = recall_against_exact([["a", "b", "c"], ["x"], ["q"], []], [["c", "a", "z", "y"], ["x"], [], ["r"]])
    assert found.tolist() == [0.5, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("answer", range(1, 41))
def test_bisection_finds_every_answer_with_few_questions_none_far_wider(answer: int) -> None:
    asked: list[int] = []

    def reaches(width: int) -> bool:
        asked.append(width)
        return width >= answer

    assert smallest_reaching(reaches, 40) == answer
    assert len(asked) <= 12
    assert max(asked) < 2 * answer or max(asked) == 1


def test_bisection_says_when_the_widest_does_not_reach() -> None:
    assert smallest_reaching(lambda width: False, 40) is None


def test_the_parameters_reach_the_target_and_one_list_fewer_does_not(tmp_path: Path) -> None:
    index = index_of(tmp_path, index_key="IVF32,PQ4x4fsr", target_recall=0.97, refine_factor=16)
    about, truth = index.artifact.attributes, index.exact_rows(QUERIES, 10)  # type: ignore[union-attr]
    assert (about["tuned_on"], about["tuning_queries"], about["tuned_documents"], about["ann_recall_at"]) == ("dev queries", 30, 600, 10)
    assert about["ann_recall"] == mean_recall(index, QUERIES, truth) >= 0.97
    assert index.settings == Settings(about["nprobe"], None, about["refine_factor"])  # type: ignore[arg-type]
    fewer = replace(index.settings, nprobe=index.settings.nprobe - 1)  # type: ignore[operator]
    assert fewer.nprobe and mean_recall(replace(index, settings=fewer), QUERIES, truth) < 0.97


def test_recall_grows_with_lists_and_candidates_to_one(tmp_path: Path) -> None:
    index = index_of(tmp_path)
    truth = index.exact_rows(QUERIES, 10)

    def recall(nprobe: int, factor: int) -> float:
        return mean_recall(replace(index, settings=Settings(nprobe, None, factor)), QUERIES, truth)

    by_lists = [recall(nprobe, 60) for nprobe in (1, 2, 4, 8, 16)]
    assert by_lists == sorted(by_lists) and by_lists[-1] == 1.0
    assert recall(16, 1) < recall(16, 2) <= recall(16, 8)


def test_parameters_that_are_given_are_kept(tmp_path: Path) -> None:
    index = index_of(tmp_path, nprobe=3, refine_factor=5)
    assert index.settings == Settings(3, None, 5)


def test_a_target_out_of_reach_takes_the_widest_search_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = index_of(tmp_path, refine="none", target_recall=1.0)
    assert index.settings == Settings(16, None, None)
    assert index.artifact.attributes["ann_recall"] < 1  # type: ignore[operator, union-attr]
    assert "below index.target_recall 1" in capsys.readouterr().out


def test_a_graph_is_tuned_by_its_width(tmp_path: Path) -> None:
    index = index_of(tmp_path, index_key="HNSW8", refine_factor=1, target_recall=0.95)
    assert index.settings.nprobe is None and index.settings.ef_search is not None
    assert mean_recall(index, QUERIES, index.exact_rows(QUERIES, 10)) >= 0.95


def test_without_queries_documents_stand_in(tmp_path: Path) -> None:
    vectors = shards_of(tmp_path / "vectors", clustered(300), [100])
    artifact = built(tmp_path / "index", vectors, IndexConfig(index_key="IVF8,Flat", tuning_queries=20, recall_at=5))
    assert artifact.attributes["tuned_on"] == "documents"
    assert artifact.attributes["tuning_queries"] == 20


def test_tuning_again_with_a_higher_target_never_narrows(tmp_path: Path) -> None:
    index = index_of(tmp_path)
    found = [tune(index, QUERIES, IndexConfig(target_recall=t, recall_at=10, refine_factor=8)) for t in (0.5, 0.8, 0.9, 0.99)]
    widths = [tuned.nprobe for tuned in found]
    assert widths == sorted(widths)  # type: ignore[type-var]
    assert all(tuned.recall >= target for tuned, target in zip(found, (0.5, 0.8, 0.9, 0.99), strict=True))
    assert np.isfinite([tuned.recall for tuned in found]).all()
