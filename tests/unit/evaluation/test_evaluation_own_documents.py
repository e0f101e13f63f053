"""A query that is a document itself: its own document is no answer to it, no negative of it, and no hit in a run file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from components.data.config import DataConfig
from components.data.dataset import Dataset, identical_ids, load_dataset
from components.data.snapshot import snapshot
from components.distillation.objectives import Refinement
from components.distillation.plan import dev_metrics
from components.distillation.train import dev_set, own_pairs
from components.evaluation.bm25 import bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import FUSED, evaluate
from components.evaluation.rankers import DenseRanker, FusedRanker, recorded_ranker, symmetric_ranker
from components.evaluation.report import FusionSetup, load_evaluation, load_summary
from components.evaluation.summarize import judged_split
from components.evaluation.table import render_table
from components.studies.report import mean_metrics
from components.towers.config import TowerConfig
from components.towers.launch import read_pairs
from components.towers.negatives import known_false_negatives, mine
from components.towers.pairs import training_pairs
from components.towers.processes import write_pairs
from tests.data_world import write_lines, write_rows
from tests.encoders import WordEncoder, dataset_of

CONFIG = EvaluationConfig(latency_queries=20, bootstrap_samples=200)
SETTINGS = TowerConfig(hard_negatives=2, mining_depth=3, positive_share=None)


def duplicates(count: int = 400) -> Dataset:
    """Questions in pairs: each is a document and a query under one id, and the other of its pair answers it."""
    texts = {f"d{n}": f"word{n // 2} question{n // 2} {'again' if n % 2 else 'first'}" for n in range(count)}
    return dataset_of(texts, texts, [(f"d{n}", f"d{n ^ 1}", 1) for n in range(count)])


def test_bm25_finds_the_other_question_of_400_first() -> None:
    assert mean_metrics(bm25_ranker(duplicates(), progress=False), duplicates(), "test", 100)["mrr@10"] == 1.0
    kept = replace(duplicates(), ignore_identical_ids="never")
    assert mean_metrics(bm25_ranker(kept, progress=False), kept, "test", 100)["mrr@10"] == 0.5


def test_equal_numbers_are_a_coincidence_and_no_answer_is_lost() -> None:
    texts = {str(n): f"document about topic{n}" for n in range(1, 6)}
    queries = {str(n): f"where is topic{n}?" for n in range(1, 6)}
    numbered = dataset_of(texts, queries, [(str(n), str(n), 1) for n in range(1, 5)] + [("5", "4", 1)])
    own = numbered.own_documents("test")
    assert (own.left_out, own.same_text, own.relevant, own.other_text) == (frozenset(), 0, 0, 5)
    assert mean_metrics(bm25_ranker(numbered, progress=False), numbered, "test", 100)["recall@1"] == 0.8
    as_beir = replace(numbered, ignore_identical_ids="always")
    assert as_beir.own_documents("test").left_out == frozenset(texts)


def test_a_document_that_is_judged_relevant_to_itself_is_an_answer() -> None:
    titled = dataset_of(
        {"1": "apple bread", "2": "cheese"}, {"1": "Apple, bread", "2": "Cheese!"}, [("1", "1", 1), ("2", "1", 1), ("2", "2", 0)]
    )
    own = titled.own_documents("test")
    assert (own.left_out, own.same_text, own.relevant) == (frozenset({"2"}), 2, 1)
    assert mean_metrics(symmetric_ranker(WordEncoder(), titled), titled, "test", 100)["recall@1"] == 1.0


@pytest.mark.parametrize(("query", "title", "text", "own"), [
    ("Kidney stone?", "", "kidney  stone", True),
    ("Kidney stone", "Kidney stone", "Concretions of minerals", True),
    ("Kidney stone concretions", "Kidney stone", "Concretions", True),
    ("Kidney stone", "", "Kidney stones", False),
    ("Kidney stone", "Heart", "", False),
    ("कल", "", "कला", False),
    ("??", "", "??", True),
    ("", "", "", False),
])  # fmt: skip
def test_a_document_is_own_when_title_text_or_both_read_as_the_query(query: str, title: str, text: str, own: bool) -> None:
    documents = pd.DataFrame({"doc_id": ["a"], "title": [title], "text": [text]})
    found = identical_ids(documents, pd.DataFrame({"query_id": ["a"], "text": [query]}))
    assert found == (frozenset({"a"} if own else ()), frozenset(() if own else {"a"}))


def test_broken_tables_are_left_to_the_contracts() -> None:
    documents = pd.DataFrame({"doc_id": ["a", None, "a", ""], "title": [None, "x", "", ""], "text": ["x", None, "y", None]}).astype("str")
    documents.loc[1, "doc_id"] = None
    queries = pd.DataFrame({"query_id": ["a", None, "b", ""], "text": ["x", None, "y", None]})
    assert identical_ids(documents, queries).same_text == frozenset({"a"})
    assert identical_ids(documents.iloc[:0], queries) == identical_ids(documents, queries.iloc[:0]) == (frozenset(), frozenset())


def reported(dataset: Dataset, folder: Path) -> Any:
    folder.mkdir()
    evaluate(
        {"bm25": bm25_ranker(dataset, progress=False), "student": symmetric_ranker(WordEncoder(), dataset)}, dataset, CONFIG, folder, {}
    )
    return load_evaluation(folder)


WORDS = {"1": "apple bread", "2": "apple bread figs", "3": "cheese dates", "4": "cheese", "9": "grape"}
PAIRED = dataset_of(WORDS, {"1": "apple bread", "2": "apple bread figs", "3": "cheese dates", "9": "honey", "q": "grape"}, [
    ("1", "2", 1), ("2", "1", 1), ("3", "4", 1), ("9", "9", 1), ("q", "9", 1),
])  # fmt: skip


def test_the_report_says_how_many_queries_are_documents(tmp_path: Path) -> None:
    report = reported(PAIRED, tmp_path / "report")
    own = report.summary.own_documents
    assert (own.left_out, own.same_text, own.relevant, own.other_text) == (3, 3, 0, 1)
    assert "3 queries are documents themselves" in render_table(report.summary)
    assert "1 queries have the id of a document that reads otherwise" in own.words
    ranked = [line.split() for line in (tmp_path / "report" / "bm25.trec").read_text().splitlines()]
    assert not any(query == doc_id for query, _, doc_id, *_ in ranked if query in "123")
    values = report.per_query.set_index(["query_id", "system", "metric"])["value"]
    assert values["1", "bm25", "mrr@10"] == values["3", "student", "mrr@10"] == 1.0
    without = reported(replace(PAIRED, ignore_identical_ids="never"), tmp_path / "never")
    assert without.summary.judgements_digest != report.summary.judgements_digest
    assert "stays in what they find" in without.summary.own_documents.words


class Fixed:
    """Finds the same for every query."""

    def __init__(self, found: list[tuple[str, float]]) -> None:
        self.found = found

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        return [self.found[:k] for _ in queries]


@pytest.mark.parametrize("asked_before", [True, False])
def test_an_own_document_takes_no_part_in_a_fusion(tmp_path: Path, asked_before: bool) -> None:
    """Where the fusion is chosen it is left out first; with it the others would lie close together on the encoder's scale."""
    dataset = dataset_of({"1": "apple bread", "2": "apple", "3": "bread"}, {"1": "apple bread"}, [("1", "3", 1)])
    dense, lexical = Fixed([("1", 1.0), ("3", 0.5), ("2", 0.4)]), Fixed([("1", 9.0), ("2", 8.0), ("3", 1.0)])
    fused = FusedRanker(dense, lexical, FusionSetup(method="scores", weight=0.65))
    evaluate({**({"bm25": lexical, "student": dense} if asked_before else {}), FUSED: fused}, dataset, CONFIG, tmp_path, {})
    values = load_evaluation(tmp_path).per_query.set_index(["system", "metric"])["value"]
    assert values[FUSED, "mrr@10"] == 1.0


def test_a_report_without_such_queries_is_as_it_was(tmp_path: Path) -> None:
    dataset = dataset_of({"d1": "apple", "d2": "bread"}, {"q1": "apple"}, [("q1", "d1", 1)])
    report = reported(dataset, tmp_path / "report")
    assert report.summary.own_documents is None
    judged = judged_split(dataset, "test")
    assert judged.asked(100) == 100
    assert judged.digest == judged_split(replace(dataset, ignore_identical_ids="never"), "test").digest


def test_as_many_documents_are_left_as_were_asked_for() -> None:
    texts = {f"d{n}": "apple bread" for n in range(120)}
    dataset = dataset_of(texts, {"d7": "apple bread", "q": "apple"}, [("d7", "d8", 1), ("q", "d1", 1)])
    judged, ranker = judged_split(dataset, "test"), symmetric_ranker(WordEncoder(), dataset)
    rankings = judged.rankings(ranker.rank(judged.texts, judged.asked(100)), 100)
    assert [len(ranking) for ranking in rankings.values()] == [100, 100]
    assert "d7" not in [doc_id for doc_id, _ in rankings["d7"]]
    assert "d7" in [doc_id for doc_id, _ in rankings["q"]]


def test_recorded_rankings_are_not_taken_for_another_query_of_the_same_text(tmp_path: Path) -> None:
    dataset = dataset_of({"1": "apple", "2": "apple"}, {"1": "apple", "x": "apple"}, [("1", "2", 1), ("x", "1", 1)])
    reported(dataset, tmp_path / "report")
    assert recorded_ranker(tmp_path / "report", "bm25", dataset, CONFIG) is None
    reported(PAIRED, tmp_path / "other")
    recorded = recorded_ranker(tmp_path / "other", "bm25", PAIRED, CONFIG)
    assert recorded is not None
    assert mean_metrics(recorded, PAIRED, "test", 100) == mean_metrics(bm25_ranker(PAIRED, progress=False), PAIRED, "test", 100)


def test_the_recall_of_the_index_is_not_judged_by_own_documents(tmp_path: Path) -> None:
    report = reported(PAIRED, tmp_path / "report")
    assert report.summary.ann is None or report.summary.ann.ndcg_lost == 0.0


def of_split(dataset: Dataset, split: str) -> Dataset:
    return replace(dataset, all_judgements=dataset.all_judgements.assign(split=split))


def test_an_own_document_is_never_a_mined_negative_nor_one_of_the_batch(tmp_path: Path) -> None:
    pairs = training_pairs(of_split(PAIRED, "train"))
    own = {pairs.queries.index(text): pairs.documents.index(text) for text in ("apple bread", "apple bread figs", "cheese dates")}
    assert dict(pairs.own) == own
    vectors = [WordEncoder().encode(texts) for texts in (pairs.queries, pairs.documents)]
    mined = mine(vectors[0], vectors[1], pairs, SETTINGS, 0)
    for (query, _), negatives in zip(pairs.pairs, mined.negatives, strict=True):
        assert own.get(query, -2) not in negatives
    assert mined.report["dropped"]["same_text"] >= 3
    queries, documents = list(own), list(own.values())
    blocked = known_false_negatives(pairs, queries, [*documents, pairs.documents.index("grape")], targets=[3, 3, 3])
    assert all(blocked[row, row] for row in range(3))
    write_pairs(pairs, tmp_path / "pairs.json")
    assert read_pairs(tmp_path / "pairs.json") == replace(pairs, queries=list(pairs.queries), documents=list(pairs.documents))
    kept = training_pairs(of_split(replace(PAIRED, ignore_identical_ids="never"), "train"))
    assert not kept.own


@pytest.mark.parametrize("mined", [False, True])
def test_an_own_document_is_no_negative_of_the_refinement(mined: bool) -> None:
    train = of_split(PAIRED, "train")
    texts = train.queries["text"].tolist()
    own = own_pairs(train, [*texts[:2], texts[3]])
    assert own == [(0, 0), (1, 1)]
    documents = torch.eye(5)
    refinement = Refinement(documents, torch.ones(3, 5), [(0, 1), (1, 0), (2, 4)], None, own)
    if mined:
        refinement.mine(torch.ones(3, 5), 5)
    blocked = refinement.candidates(np.array([0, 1, 2])).blocked
    assert blocked.tolist() == [
        [True, False, False, False, False],
        [False, True, False, False, False],
        [False, False, False, False, False],
    ]


def test_checkpoints_are_chosen_without_own_documents() -> None:
    dev = of_split(PAIRED, "dev")
    index = symmetric_ranker(WordEncoder(), dev).index
    chosen = dev_set(dev, lambda vectors, k: index.search(vectors, k)[1])
    metrics = dev_metrics(WordEncoder().encode(chosen.queries), chosen)
    kept = replace(dev, ignore_identical_ids="never")
    worse = dev_metrics(WordEncoder().encode(chosen.queries), dev_set(kept, chosen.search))
    assert metrics["ndcg@10"] > worse["ndcg@10"]
    assert dict(chosen.own) == {0: "1", 1: "2", 2: "3"}


def test_the_policy_travels_with_the_data_and_older_data_is_measured_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_rows(folder / "corpus.jsonl", [{"_id": str(n), "title": f"Word{n // 2}", "text": f"of {n}"} for n in range(60)])
    write_rows(folder / "queries.jsonl", [{"_id": str(n), "text": f"word{n // 2}"} for n in range(60)])
    for split, numbers in {"train": range(30), "dev": range(30, 34), "test": range(34, 60)}.items():
        write_lines(folder / "qrels" / f"{split}.tsv", [f"{n}\t{n ^ 1}\t1" for n in numbers])
    for policy, count in (("same_text", 26), ("never", 0)):
        (tmp_path / policy).mkdir()
        made = snapshot(DataConfig(source=str(folder), ignore_identical_ids=policy), tmp_path / policy)
        assert made.counts["queries_that_are_documents"] == 60
        assert len(load_dataset(made).own_documents("test").left_out) == count
    old = made.model_copy(update={"attributes": {k: v for k, v in made.attributes.items() if k != "ignore_identical_ids"}})
    assert load_dataset(old).ignore_identical_ids == "never"


def test_a_summary_of_before_is_read(tmp_path: Path) -> None:
    reported(PAIRED, tmp_path / "report")
    path = tmp_path / "report" / "report.json"
    import json

    content = json.loads(path.read_text())
    del content["own_documents"]
    path.write_text(json.dumps(content))
    assert load_summary(tmp_path / "report").own_documents is None


def test_a_ranker_with_an_approximate_answer_that_misses_the_own_document_loses_nothing() -> None:
    judged = judged_split(PAIRED, "test")
    rankings = judged.rankings([[("2", 1.0), ("9", 0.5)]] * len(judged.query_ids), 1)
    assert rankings["1"] == [("2", 1.0)]
    assert isinstance(symmetric_ranker(WordEncoder(), PAIRED), DenseRanker)
