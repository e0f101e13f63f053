"""Training pairs: which texts count as equal, and where a pair comes from."""

from __future__ import annotations

import pandas as pd
import pytest

from components.data.dataset import Dataset, judgement_table, query_table
from components.towers.pairs import Pairs, training_pairs


def test_texts_that_differ_by_white_space_are_one_group() -> None:
    pairs = Pairs(["q"], ["a b", "c", " a\nb ", "A b"], [(0, 0)], {0: frozenset([0])})
    assert pairs.document_groups.tolist() == [0, 1, 0, 2]
    assert pairs.origins == [""]


def test_known_are_documents_of_the_query_and_of_queries_of_its_text() -> None:
    relevant = {0: frozenset([3, 0]), 1: frozenset([1]), 2: frozenset([2])}
    pairs = Pairs(["one", "two", "one", "none"], ["a", "b", "c", "a"], [(0, 0), (0, 3), (1, 1), (2, 2)], relevant)
    queries, groups = pairs.known_groups
    # Documents 0 and 3 are of one text (group 0); queries 0 and 2 are of one text, so each knows the documents of both.
    assert list(zip(queries.tolist(), groups.tolist(), strict=True)) == [(0, 0), (0, 2), (1, 1), (2, 0), (2, 2)]


def test_a_pair_knows_the_kind_of_its_document_and_data_without_the_field_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    metadata = ['{"chapter": "9"}', '{"chapter": 10}', "{}"]
    documents = pd.DataFrame({"doc_id": ["a", "b", "c"], "title": "", "text": ["t", "u", "v"], "metadata": metadata})
    judged = judgement_table([("q1", "b", 1), ("q2", "c", 1), ("q1", "a", 1)], "train")
    dataset = Dataset(documents, query_table(["q1", "q2"], ["one", "two"]), judged, query_table([], []))
    assert training_pairs(dataset, "chapter").kinds == ["10", "", "9"]
    assert training_pairs(dataset).kinds == ["", "", ""]
    assert capsys.readouterr().out == ""
    assert training_pairs(dataset, "shelf").kinds == ["", "", ""]
    assert "No document's metadata has the field 'shelf'" in capsys.readouterr().out


def test_a_pair_knows_the_data_set_of_its_query() -> None:
    documents = pd.DataFrame({"doc_id": ["1", "b/1", "x/1"], "title": "", "text": ["t", "u", "v"], "metadata": "{}"})
    queries = query_table(["q1", "b/q1", "x/q"], ["one", "two", "three"])
    judged = judgement_table([("q1", "1", 1), ("b/q1", "b/1", 1), ("x/q", "x/1", 2), ("q1", "x/1", 0)], "train")
    dataset = Dataset(documents, queries, judged, query_table([], []), ("a", "b"))
    pairs = training_pairs(dataset)
    assert pairs.pairs == [(0, 0), (1, 1), (2, 2)]
    assert pairs.origins == ["a", "b", "a"]  # a slash in an id of the first data set means nothing
    assert training_pairs(Dataset(documents, queries, judged, query_table([], []))).origins == ["", "", ""]
