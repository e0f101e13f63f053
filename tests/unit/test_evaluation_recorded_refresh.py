"""Rankings of an earlier evaluation stand in for systems that did not change."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import symmetric_ranker
from components.evaluation.recorded import recorded_ranker
from components.evaluation.report import load_evaluation
from tests.encoders import WordEncoder, dataset_of

DATASET = dataset_of(
    {"d1": "apple", "d2": "apple bread", "d3": "cheese", "d0": "apple"},
    {"q1": "apple", "q2": "bread", "q3": "cheese"},
    [("q1", "d2", 1), ("q2", "d2", 1), ("q3", "d3", 1)],
)
CONFIG = EvaluationConfig(latency_queries=20)


def test_a_recorded_system_measures_as_it_did(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    evaluate({"student_untrained": symmetric_ranker(WordEncoder(), DATASET)}, DATASET, CONFIG, folders[0], {})
    recorded = recorded_ranker(folders[0], "student_untrained", DATASET, CONFIG)
    assert recorded is not None
    assert [doc for doc, _ in recorded.rank(["apple"], 3)[0]] == ["d0", "d1", "d2"]
    evaluate({"student_untrained": recorded}, DATASET, CONFIG, folders[1], {})
    first, second = (load_evaluation(folder) for folder in folders)
    pd.testing.assert_frame_equal(first.per_query, second.per_query)
    assert first.summary.systems == second.summary.systems
    assert (folders[0] / "student_untrained.trec").read_bytes() == (folders[1] / "student_untrained.trec").read_bytes()


def test_what_was_not_measured_is_not_there(tmp_path: Path) -> None:
    evaluate({"bm25": symmetric_ranker(WordEncoder(), DATASET)}, DATASET, CONFIG, tmp_path, {})
    assert recorded_ranker(tmp_path, "student_untrained", DATASET, CONFIG) is None
    grown = dataset_of({"d1": "apple"}, {"q1": "apple", "q9": "figs"}, [("q1", "d1", 1), ("q9", "d1", 1)])
    assert recorded_ranker(tmp_path, "bm25", grown, CONFIG) is None
