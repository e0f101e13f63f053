"""Contrastive entropy against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from components.errors import DataError
from components.studies.scaling_cell import contrastive_entropy, draw_negatives, relevant_rows

DOCUMENTS = np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32)
QUERY = np.array([[1, 0]], np.float32)


def test_entropy_of_a_query_with_one_relevant_document() -> None:
    # Logits at temperature 0.5: 2 for the positive and 0 for both negatives.
    found = contrastive_entropy(QUERY, DOCUMENTS, [frozenset([0])], [np.array([1, 2])], 0.5)
    assert found == pytest.approx([-math.log(math.exp(2) / (math.exp(2) + 2))])


def test_entropy_is_the_mean_over_relevant_documents() -> None:
    found = contrastive_entropy(QUERY, DOCUMENTS, [frozenset([0, 1])], [np.array([3])], 1.0)
    near, far = -math.log(math.e / (2 * math.e)), -math.log(1 / (1 + math.e))
    assert found == pytest.approx([(near + far) / 2])


def test_knowing_nothing_gives_the_logarithm_of_the_choices() -> None:
    same = np.tile(np.array([[1, 0]], np.float32), (300, 1))
    found = contrastive_entropy(QUERY, same, [frozenset([0])], draw_negatives([frozenset([0])], 300, 256, 1), 0.03)
    assert found == pytest.approx([math.log(257)])


def test_negatives_are_different_not_relevant_and_the_same_for_every_model() -> None:
    relevant = [frozenset([0, 3]), frozenset([7])]
    first, again, other = (draw_negatives(relevant, 40, 30, seed) for seed in (5, 5, 6))
    for drawn, wanted in zip(first, relevant, strict=True):
        assert len(set(drawn.tolist())) == 30 and not wanted & set(drawn.tolist())
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(DataError, match="only 2 documents that are not relevant"):
        draw_negatives([frozenset([0, 1])], 4, 3, 1)


def test_relevant_documents_are_found_by_their_rows() -> None:
    assert relevant_rows({"q": ["b"], "r": ["c", "a"]}, ["a", "b", "c"]) == [frozenset([1]), frozenset([0, 2])]
