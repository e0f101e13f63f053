"""Two rankings made one, by hand; the choice on dev; the row of an evaluation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from components.evaluation.bm25 import Bm25Ranker, bm25_as, bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import FUSED, evaluate
from components.evaluation.rankers import GRID, FusedRanker, best_on_dev, fuse, fused_ranker, symmetric_ranker
from components.evaluation.report import FusionSetup, load_evaluation
from components.evaluation.speed import answering, bytes_of
from components.evaluation.summarize import judged_split
from components.evaluation.table import fusion_sentence, gain_sentence, render_table
from tests.encoders import WORDS, WordEncoder, dataset_of

CONFIG = EvaluationConfig(latency_queries=20, throughput_batch=4, bootstrap_samples=200)
DATASET = dataset_of({f"d{i}": word for i, word in enumerate(WORDS)}, {f"q{i}": word for i, word in enumerate(WORDS)}, [
    (f"q{i}", f"d{i}", 1) for i in range(len(WORDS))
])  # fmt: skip
WITH_DEV = replace(DATASET, all_judgements=pd.concat([DATASET.all_judgements, DATASET.all_judgements.assign(split="dev")]))


def test_reciprocal_ranks_by_hand() -> None:
    found = fuse([("a", 0.9), ("b", 0.8)], [("b", 7.0), ("c", 3.0)], FusionSetup(k=60, weight=0.5))
    expected = {"a": 0.5 / 61, "b": 0.5 / 62 + 0.5 / 61, "c": 0.5 / 62}
    assert [doc_id for doc_id, _ in found] == ["b", "a", "c"] and dict(found) == pytest.approx(expected)
    heavy = fuse([("a", 0.9), ("b", 0.8)], [("b", 7.0), ("c", 3.0)], FusionSetup(k=5, weight=0.9))
    assert dict(heavy) == pytest.approx({"a": 0.9 / 6, "b": 0.9 / 7 + 0.1 / 6, "c": 0.1 / 7})


def test_scores_on_one_scale_by_hand() -> None:
    setup = FusionSetup(method="scores", weight=0.25)
    found = fuse([("a", 0.9), ("b", 0.5), ("c", 0.7)], [("b", 8.0), ("d", 6.0), ("e", 4.0)], setup)
    assert dict(found) == pytest.approx({"a": 0.25, "c": 0.125, "b": 0.75, "d": 0.375, "e": 0.0})
    assert [doc_id for doc_id, _ in found] == ["b", "d", "a", "c", "e"]
    assert fuse([("a", 0.4), ("b", 0.4)], [], setup) == [("a", 0.25), ("b", 0.25)]  # all equal: all the best


def test_equals_stand_in_the_order_of_their_ids_and_a_document_counts_once() -> None:
    assert [doc for doc, _ in fuse([("b", 1.0), ("a", 0.9)], [("a", 2.0), ("b", 1.0)], FusionSetup())] == ["a", "b"]
    assert dict(fuse([("a", 1.0), ("a", 0.9), ("b", 0.8)], [], FusionSetup())) == pytest.approx({"a": 0.5 / 61, "b": 0.5 / 62})
    assert fuse([], [], FusionSetup()) == fuse([], [], FusionSetup(method="scores")) == []


@pytest.mark.parametrize("better", ["dense", "lexical"])
def test_the_weight_follows_what_is_good_on_dev(better: str) -> None:
    judged = judged_split(WITH_DEV, "dev")
    right = {query: [(f"d{i}", 1.0), ("x", 0.5)] for i, query in enumerate(judged.query_ids)}
    wrong = {query: [("x", 1.0), ("y", 0.9), (f"d{i}", 0.8)] for i, query in enumerate(judged.query_ids)}
    found = best_on_dev(*((right, wrong) if better == "dense" else (wrong, right)), judged)
    assert (found.weight > 0.5) == (better == "dense") and found.dev_queries == len(WORDS)
    same = best_on_dev(right, right, judged)
    assert same == GRID[0].model_copy(update={"dev_queries": len(WORDS)})  # of equals Cormack's


def test_nothing_is_chosen_without_dev_queries() -> None:
    dense, lexical = symmetric_ranker(WordEncoder(), DATASET), bm25_ranker(DATASET, progress=False)
    assert fused_ranker(dense, lexical, DATASET).setup == FusionSetup(k=60, weight=0.5, dev_queries=0)
    assert "not chosen, since no dev query is judged" in FusionSetup().words
    assert fused_ranker(dense, lexical, WITH_DEV).setup.dev_queries == len(WORDS)


def test_a_fusion_is_chosen_on_more_dev_queries_than_the_settings_of_bm25(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.evaluation.bm25.DEV_QUERIES", len(WORDS) - 1)
    ranker = bm25_ranker(WITH_DEV, progress=False)
    assert 0 < ranker.setup.dev_queries < len(WORDS)
    assert fused_ranker(symmetric_ranker(WordEncoder(), WITH_DEV), ranker, WITH_DEV).setup.dev_queries == len(WORDS)
    monkeypatch.setattr("components.evaluation.rankers.FUSION_QUERIES", len(WORDS) - 1)  # a corpus of many dev queries
    found = fused_ranker(symmetric_ranker(WordEncoder(), WITH_DEV), ranker, WITH_DEV).setup
    assert 0 < found.dev_queries < len(WORDS)


def test_the_test_queries_are_not_looked_at_to_choose() -> None:
    """Their judgements are turned round, so that a choice by them would fall otherwise."""
    reversed_rows = DATASET.all_judgements.assign(doc_id=[f"d{len(WORDS) - 1 - i}" for i in range(len(WORDS))])
    turned = replace(WITH_DEV, all_judgements=pd.concat([reversed_rows, DATASET.all_judgements.assign(split="dev")]))
    rankers = symmetric_ranker(WordEncoder(), DATASET), bm25_ranker(DATASET, progress=False)
    assert fused_ranker(*rankers, turned).setup == fused_ranker(*rankers, WITH_DEV).setup


def test_an_evaluation_has_a_row_of_the_student_with_bm25(tmp_path: Path) -> None:
    bm25, student = bm25_ranker(WITH_DEV, progress=False), symmetric_ranker(WordEncoder(), WITH_DEV)
    encoder = student.encoder
    systems = {"bm25": bm25, "teacher": symmetric_ranker(WordEncoder(), WITH_DEV), "student": student}
    fused = fused_ranker(student, bm25, WITH_DEV)
    assert isinstance(encoder, WordEncoder)
    before = encoder.texts_seen
    evaluate({**systems, FUSED: fused}, WITH_DEV, CONFIG, tmp_path, {})
    found = load_evaluation(tmp_path)
    assert found.summary.fusion == fused.setup
    values = found.per_query[found.per_query["system"] == FUSED]
    assert set(values["query_id"]) == {f"q{i}" for i in range(len(WORDS))}  # a value for each query
    expected = judged_split(WITH_DEV, "test").rankings(fused.rank(list(WORDS), 100), 100)
    lines = [line.split(" ") for line in (tmp_path / f"{FUSED}.trec").read_text().splitlines()]
    assert [line[2] for line in lines if line[0] == "q3"] == [doc_id for doc_id, _ in expected["q3"]]
    assert before < encoder.texts_seen and found.summary.speed is not None
    assert set(found.summary.speed.answers) == {"student", FUSED}
    pairs = {(c.system, c.baseline) for c in found.summary.comparisons}
    assert {(FUSED, "bm25"), (FUSED, "student")} <= pairs
    table = render_table(found.summary)
    assert "student + BM25" in table and "whole answers: student" in table and f"{fused.setup.words}." in table
    assert fusion_sentence(found.summary).startswith("Fused with BM25, against BM25, it shows no difference in recall@50")
    assert "BM25, against" not in gain_sentence(found.summary)


def test_without_a_fused_system_nothing_is_said_of_it(tmp_path: Path) -> None:
    evaluate({"bm25": bm25_ranker(DATASET, progress=False)}, DATASET, CONFIG, tmp_path, {})
    found = load_evaluation(tmp_path)
    assert found.summary.fusion is None and fusion_sentence(found.summary) == ""


def test_a_recorded_bm25_is_the_same_when_it_is_read_again() -> None:
    first = bm25_ranker(WITH_DEV, progress=False)
    again = bm25_as(WITH_DEV, first.setup, progress=False)
    queries = ["apple bread", "honey", "zebra"]
    assert again.setup == first.setup and again.rank(queries, 5) == first.rank(queries, 5)


def test_both_parts_answer_when_the_speed_is_measured_and_both_are_counted() -> None:
    dense, lexical = symmetric_ranker(WordEncoder(), DATASET), bm25_ranker(DATASET, progress=False)
    fused = FusedRanker(dense, lexical, FusionSetup())
    timed = answering(fused, 5)
    assert timed.answer(["apple", "honey"]) == fused.rank(["apple", "honey"], 5)
    assert len(timed.others) == len(answering(dense, 5).others)
    assert all(other(["apple", "honey", "figs"]) == fused.rank(["apple", "honey", "figs"], 5) for other in timed.others)
    sizes = [bytes_of(ranker) for ranker in (dense, lexical, fused)]
    assert sizes[0] == len(WORDS) * (len(WORDS) + 1) * 4 and sizes[2] == sizes[0] + (sizes[1] or 0)
    assert isinstance(lexical, Bm25Ranker) and sizes[1] == lexical.nbytes > 0
