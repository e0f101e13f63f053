"""Data sets of the package ir_datasets, by a module that stands for it: it is no requirement, and its sets come from the network."""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.data import sources as ir_sets
from components.data.config import DataConfig
from components.data.sources import read_source, remarks_on, source_digest, source_name
from components.errors import DataError
from tests.flows.cli_world import assert_refused, scalingnote

Titled = namedtuple("Titled", "doc_id text title")
Judged = namedtuple("Judged", "query_id doc_id relevance iteration")


class Page(namedtuple("Page", "doc_id url body")):
    def default_text(self) -> str:
        return self.body


class Topic(namedtuple("Topic", "query_id title narrative")):
    def default_text(self) -> str:
        return self.title


def part(documents: list[Any], queries: list[Any], judged: list[Any]) -> Any:
    return SimpleNamespace(
        has_docs=lambda: bool(documents),
        has_queries=lambda: bool(queries),
        has_qrels=lambda: bool(judged),
        docs_iter=lambda: iter(documents),
        queries_iter=lambda: iter(queries),
        qrels_iter=lambda: iter(judged),
    )


TEXTS = [Titled(f"d{n}", f"text {n}", f"title {n}") for n in range(60)]
PAGES = [Page("p1", "http://x", "a body"), Page("p2", "http://y", "another body")]
SETS = {
    "beir/toy": part(TEXTS, [], []),
    "beir/toy/train": part(TEXTS, [Topic("q1", "one", "")], [Judged("q1", "d1", 1, "0")]),
    "beir/toy/test": part(
        TEXTS, [Topic("q2", "two", "long"), Topic("q3", "three", "")], [Judged("q2", "d2", 2, "0"), Judged("q3", "d3", -1, "0")]
    ),
    "web/pages": part(PAGES, [Topic("q1", "one", "")], [Judged("q1", "p1", 1, "0")]),
    "web/bare": part(PAGES, [], []),
}


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    ir_sets.ir_set_digest.cache_clear()
    monkeypatch.setitem(sys.modules, "ir_datasets", SimpleNamespace(registry=list(SETS), load=SETS.__getitem__))


def of(name: str, **changes: Any) -> DataConfig:
    return DataConfig(source=f"ir_datasets:{name}", **changes)


def test_a_set_is_read_with_the_splits_that_the_package_has_of_it(package: None) -> None:
    tables = ir_sets.read_ir_set("ir_datasets:beir/toy")
    assert tables.documents.iloc[1].tolist() == ["d1", "title 1", "text 1", "{}"]
    assert tables.queries.to_dict("records")[-1] == {"query_id": "q3", "text": "three"}
    assert sorted(tables.judgements.itertuples(index=False, name=None)) == [
        ("q1", "d1", 1, "train"),
        ("q2", "d2", 2, "test"),
        ("q3", "d3", -1, "test"),
    ]
    assert source_name(of("beir/toy")) == "beir-toy" and remarks_on(of("beir/toy")) == []
    assert set(read_source(of("beir/toy/test")).judgements["split"]) == {"test"}


def test_documents_without_a_title_have_the_text_that_the_package_names(package: None) -> None:
    tables = ir_sets.read_ir_set("ir_datasets:web/pages")
    assert tables.documents[["title", "text"]].values.tolist() == [["", "a body"], ["", "another body"]]
    assert tables.judgements["split"].tolist() == ["test"]


def test_the_digest_is_of_what_is_read(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    first = source_digest(of("beir/toy"))
    monkeypatch.setitem(SETS, "beir/toy/train", part(TEXTS, [Topic("q1", "other words", "")], [Judged("q1", "d1", 1, "0")]))
    ir_sets.ir_set_digest.cache_clear()
    assert source_digest(of("beir/toy")) != first != source_digest(of("beir/toy/test"))


def test_a_set_can_be_mixed_into_another(package: None) -> None:
    tables = read_source(of("beir/toy", mix=("ir_datasets:web/pages",)))
    assert tables.sources == ("beir-toy", "web-pages") and "web-pages/p1" in set(tables.documents["doc_id"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("beir/tyo", r"no data set 'beir/tyo'\. Names that are near: beir/toy"),
        ("", r"no data set ''\. Names that are near: see https"),
        ("web/bare", "no documents with judged queries"),
    ],
)
def test_a_name_that_is_not_there_is_one_sentence(name: str, words: str, package: None) -> None:
    with pytest.raises(DataError, match=words):
        ir_sets.read_ir_set(f"ir_datasets:{name}")


def test_queries_that_each_split_numbers_anew_are_refused(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the last split was judged by the documents of both."""
    again = [Topic("q1", "one", ""), Topic("q2", "two", "")]
    monkeypatch.setitem(SETS, "beir/toy/test", part(TEXTS, again, [Judged("q2", "d2", 1, "0")]))
    assert len(ir_sets.read_ir_set("ir_datasets:beir/toy").queries) == 2
    monkeypatch.setitem(SETS, "beir/toy/test", part(TEXTS, [Topic("q1", "another", "")], [Judged("q1", "d2", 1, "0")]))
    with pytest.raises(DataError, match=r"'ir_datasets:beir/toy' has two queries of the id 'q1' in its splits"):
        ir_sets.read_ir_set("ir_datasets:beir/toy")


def test_two_splits_that_both_mean_dev_are_refused(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for end in ("dev", "validation"):
        monkeypatch.setitem(SETS, f"beir/toy/{end}", SETS["beir/toy/train"])
    monkeypatch.setattr(sys.modules["ir_datasets"], "registry", list(SETS))
    with pytest.raises(DataError, match="has the split 'dev' twice: dev and validation"):
        ir_sets.read_ir_set("ir_datasets:beir/toy")


def test_a_set_that_cannot_be_fetched_is_one_sentence(package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise RuntimeError("All download sources failed\n  http://...")

    monkeypatch.setitem(SETS, "web/pages", SimpleNamespace(**{**vars(SETS["web/pages"]), "docs_iter": fail}))
    with pytest.raises(DataError, match=r"cannot be fetched or read: All download sources failed\. Check the network"):
        ir_sets.read_ir_set("ir_datasets:web/pages")


def test_without_the_package_the_command_says_what_to_install(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    outcome = scalingnote("validate", "--preset", "smoke", "--data", "ir_datasets:beir/scifact")
    assert_refused(outcome, 3, "pip install ir-datasets")
    assert (outcome.out + outcome.err).count("\n") <= 2
