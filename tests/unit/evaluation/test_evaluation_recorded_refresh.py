"""Rankings of an earlier evaluation stand in for systems that did not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from components.evaluation.bm25 import bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import DenseRanker, recorded_ranker, symmetric_ranker
from components.evaluation.report import UntrainedSetup, load_evaluation
from tests.encoders import WordEncoder, dataset_of

DATASET = dataset_of(
    {"d1": "apple", "d2": "apple bread", "d3": "cheese", "d0": "apple"},
    {"q1": "apple", "q2": "bread", "q3": "cheese"},
    [("q1", "d2", 1), ("q2", "d2", 1), ("q3", "d3", 1)],
)
CONFIG = EvaluationConfig(latency_queries=20)
SETUP = UntrainedSetup(
    encoder="words", published=True, layers=1, pooling="mean", query_prompt="", document_prompt="", max_length=32
)  # fmt: skip


def untrained() -> DenseRanker:
    return replace(symmetric_ranker(WordEncoder(), DATASET), setup=SETUP)


def test_a_recorded_system_measures_as_it_did(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    evaluate({"student_untrained": untrained()}, DATASET, CONFIG, folders[0], {})
    recorded = recorded_ranker(folders[0], "student_untrained", DATASET, CONFIG)
    assert recorded is not None
    assert [doc for doc, _ in recorded.rank(["apple"], 3)[0]] == ["d0", "d1", "d2"]
    evaluate({"student_untrained": recorded}, DATASET, CONFIG, folders[1], {})
    first, second = (load_evaluation(folder) for folder in folders)
    pd.testing.assert_frame_equal(first.per_query, second.per_query)
    assert first.summary.systems == second.summary.systems and first.summary.untrained == second.summary.untrained
    assert (folders[0] / "student_untrained.trec").read_bytes() == (folders[1] / "student_untrained.trec").read_bytes()


def test_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    evaluate({"student_untrained": untrained()}, DATASET, CONFIG, tmp_path, {})
    assert recorded_ranker(tmp_path, "bm25", DATASET, CONFIG) is None
    grown = dataset_of({"d1": "apple"}, {"q1": "apple", "q9": "figs"}, [("q1", "d1", 1), ("q9", "d1", 1)])
    assert recorded_ranker(tmp_path, "student_untrained", grown, CONFIG) is None
    (tmp_path / "student_untrained.trec").unlink()
    assert recorded_ranker(tmp_path, "student_untrained", DATASET, CONFIG) is None


def test_bm25_is_taken_over_with_the_queries_that_found_nothing(tmp_path: Path) -> None:
    dataset = dataset_of({"d1": "apple", "d2": "bread"}, {"q1": "apple", "q2": "zebra"}, [("q1", "d1", 1), ("q2", "d2", 1)])
    evaluate({"bm25": bm25_ranker(dataset, progress=False)}, dataset, CONFIG, tmp_path, {})
    assert "q2" not in (tmp_path / "bm25.trec").read_text()
    recorded = recorded_ranker(tmp_path, "bm25", dataset, CONFIG)
    assert recorded is not None and [len(found) for found in recorded.rank(["apple", "zebra"], 5)] == [1, 0]
    (tmp_path / "second").mkdir()
    evaluate({"bm25": recorded}, dataset, CONFIG, tmp_path / "second", {})
    first, second = load_evaluation(tmp_path), load_evaluation(tmp_path / "second")
    pd.testing.assert_frame_equal(first.per_query, second.per_query)
    assert first.summary.bm25 == second.summary.bm25 is not None


@pytest.mark.parametrize("asked", ["english", "none"])
def test_another_bm25_than_the_recorded_one_is_made_anew(tmp_path: Path, asked: str) -> None:
    evaluate({"bm25": bm25_ranker(DATASET, progress=False)}, DATASET, CONFIG, tmp_path, {})
    assert recorded_ranker(tmp_path, "bm25", DATASET, CONFIG) is not None
    assert recorded_ranker(tmp_path, "bm25", DATASET, CONFIG.model_copy(update={"bm25_stemmer": asked})) is None


@pytest.mark.parametrize("system", ["bm25", "student_untrained"])
def test_a_report_that_does_not_say_what_it_measured_is_not_taken_over(tmp_path: Path, system: str) -> None:
    evaluate({system: symmetric_ranker(WordEncoder(), DATASET)}, DATASET, CONFIG, tmp_path, {})
    assert recorded_ranker(tmp_path, system, DATASET, CONFIG) is None


def test_the_same_queries_with_other_judgements_in_an_extra_split_are_asked_anew(tmp_path: Path) -> None:
    rows = pd.concat([DATASET.all_judgements, DATASET.all_judgements.assign(split="shift")])
    config = CONFIG.model_copy(update={"extra_splits": ("shift",)})
    dataset = replace(DATASET, all_judgements=rows)
    evaluate({"bm25": bm25_ranker(dataset, progress=False)}, dataset, config, tmp_path, {})
    assert recorded_ranker(tmp_path, "bm25", dataset, config) is not None
    assert recorded_ranker(tmp_path, "bm25", replace(dataset, all_judgements=rows.assign(score=2)), config) is None
    assert recorded_ranker(tmp_path, "bm25", DATASET, CONFIG) is not None
