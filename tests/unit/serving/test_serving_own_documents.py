"""Run files and smoke queries of queries that are documents of the release."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from components.data.dataset import Dataset, write_table
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import symmetric_ranker
from components.index.build import build_index, display_titles
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.index.rows import Rows, read_rows
from components.release.manifest import EVALUATION_FOLDER
from components.serving import loader
from components.serving.loader import own_documents
from components.serving.promotion_checks import record_smoke
from components.serving.retriever import Retriever
from tests.encoders import WordEncoder, dataset_of

TITLES = {"1": "apple", "2": "Cheese", "3": "Figs", "4": ""}
TEXTS = {"1": "bread", "2": "dates eggs", "3": "figs", "4": "grape honey"}
QUERIES = {"1": "apple bread", "2": "cheese?", "3": "figs", "4": "grape honey", "9": "grape"}
JUDGEMENTS = [("1", "2", 1), ("2", "1", 1), ("3", "4", 1), ("4", "1", 1)]


def titled(judgements: list[tuple[str, str, int]]) -> Dataset:
    dataset = dataset_of(TEXTS, QUERIES, judgements)
    from components.data.dataset import content_hash, document_text

    hashes = [content_hash(document_text(TITLES[i], text)) for i, text in TEXTS.items()]
    return replace(dataset, documents=dataset.documents.assign(title=list(TITLES.values()), content_hash=hashes))


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A release that answers, as far as it is looked at; `evaluated(dataset)` gives it an evaluation."""
    for name in ("vectors", "index"):
        (tmp_path / name).mkdir()
    dataset = titled(JUDGEMENTS)
    vectors = encode_corpus(WordEncoder("document"), dataset, {}, EncodingConfig(), tmp_path / "vectors")
    write_table(dataset.documents, tmp_path / "documents.parquet")
    index = build_index(vectors, IndexConfig(), tmp_path / "index", display_titles(tmp_path / "documents.parquet"))
    monkeypatch.setattr(loader, "registry_folder", lambda pin: index.path)
    monkeypatch.setattr(loader.registry, "artifact_folder", lambda model, version: tmp_path)
    rows = read_rows(index.path)

    def evaluated(dataset: Dataset) -> None:
        folder = tmp_path / EVALUATION_FOLDER
        folder.mkdir()
        config = EvaluationConfig(latency_queries=20, bootstrap_samples=200)
        evaluate({"bm25": symmetric_ranker(WordEncoder(), dataset)}, dataset, config, folder, {})

    pins = SimpleNamespace(index="index")
    searched = SimpleNamespace(index=SimpleNamespace(rows=rows))
    return SimpleNamespace(model="m", version=1, retriever=searched, manifest=SimpleNamespace(pins=pins), evaluated=evaluated)


def test_where_own_documents_were_left_out_of_the_evaluation_a_title_is_enough(opened: Any) -> None:
    opened.evaluated(titled(JUDGEMENTS))
    assert own_documents(opened, QUERIES) == {"1", "2", "3", "4"}


def test_where_no_query_was_a_document_all_of_it_has_to_be_said(opened: Any) -> None:
    opened.evaluated(dataset_of({"d": "apple"}, {"q": "apple"}, [("q", "d", 1)]))
    assert own_documents(opened, QUERIES) == {"1", "3", "4"}


def test_where_all_were_judged_relevant_to_themselves_they_are_answers(opened: Any) -> None:
    opened.evaluated(titled([(i, i, 1) for i in TEXTS]))
    assert own_documents(opened, QUERIES) == frozenset()


@pytest.mark.parametrize(("policy", "own"), [("same_text", {"1", "2", "3", "4"}), ("always", {"1", "2", "3", "4"}), ("never", set())])
def test_a_policy_of_the_command_line_needs_no_evaluation(opened: Any, policy: Any, own: set[str]) -> None:
    assert own_documents(opened, QUERIES, policy) == own
    other = {"1": "figs", "9": "figs"}
    assert own_documents(opened, other, policy) == ({"1"} if policy == "always" else set())


def test_a_deleted_document_is_nobodys_own() -> None:
    rows = Rows.of(["a", "b", "c", "b"])
    deleted = Rows(rows.doc_ids, rows.order, np.array([1, 2], np.int64))
    assert rows.live_rows_of(["a", "x"]) == {"a": 0}
    assert deleted.live_rows_of(["a", "b", "c"]) == {"a": 0, "b": 3}
    assert rows.live_rows_of([]) == {}


def test_a_smoke_answer_leaves_out_the_document_that_asks() -> None:
    dataset = dataset_of({"a": "apple", "b": "apple bread", "c": "figs"}, {}, [])
    retriever = Retriever(WordEncoder(), symmetric_ranker(WordEncoder(), dataset).index)
    with_own, without = record_smoke(retriever, ["apple", "apple"], [None, "a"])
    assert with_own.doc_ids == ("a", "b", "c")
    assert without.doc_ids == ("b", "c")
    assert record_smoke(retriever, ["figs"])[0].doc_ids[0] == "c"
