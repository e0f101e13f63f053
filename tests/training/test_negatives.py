"""Mined negatives and false negatives of a batch, on vectors whose scores are chosen by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.towers import negatives
from components.towers.config import TowerConfig
from components.towers.negatives import Mined, known_false_negatives, mine, nearest
from components.towers.pairs import Pairs

QUERY = np.array([[1.0, 0.0]], np.float32)
SCORES = (0.8, 0.77, 0.75, 0.9, 0.79, 0.5, 0.1)
TEXTS = ("positive", "too near", "just below", " positive\n", "also judged", "far", "farthest")


def at(*cosines: float) -> np.ndarray:
    """Unit vectors in the plane with these cosines to the query."""
    return np.array([[c, math.sqrt(1 - c * c)] for c in cosines], np.float32)


def mined(pairs: Pairs, vectors: np.ndarray, round: int = 0, queries: np.ndarray = QUERY, **fields: Any) -> Mined:
    return mine(queries, vectors, pairs, TowerConfig(**{"hard_negatives": 1, "mining_depth": 6, **fields}), round)


@pytest.fixture
def pairs() -> Pairs:
    return Pairs(["query"], TEXTS, [(0, 0)], {0: frozenset([0, 4])})


def test_the_filter_drops_exactly_the_right_documents(pairs: Pairs) -> None:
    # The positive scores 0.8, so 0.76 is the highest that may stay; the farthest is not among the nearest six.
    found = mined(pairs, at(*SCORES), hard_negatives=3)
    assert set(found.negatives[0].tolist()) == {2, 5, -1}
    assert found.negatives[0, 2] == -1
    counts = {name: found.report[name] for name in ("pairs", "candidates", "kept", "dropped", "drawn", "pairs_with_too_few")}
    assert counts == {
        "pairs": 1,
        "candidates": 6,
        "kept": 2,
        "dropped": {"relevant": 2, "same_text": 1, "above_positive_share": 1},
        "drawn": 2,
        "pairs_with_too_few": 1,
    }


def test_examples_name_candidate_scores_and_reason(pairs: Pairs) -> None:
    examples = mined(pairs, at(*SCORES)).report["examples"]
    assert [(e["reason"], e["candidate"], e["candidate_score"]) for e in examples] == [
        ("kept", "just below", 0.75),
        ("relevant", "positive", 0.8),
        ("same_text", " positive\n", 0.9),
        ("above_positive_share", "too near", 0.77),
    ]
    assert {(e["query"], e["positive"], e["positive_score"]) for e in examples} == {("query", "positive", 0.8)}


def test_a_mining_that_leaves_nothing_says_so(pairs: Pairs, capsys: pytest.CaptureFixture[str]) -> None:
    assert mined(pairs, at(*SCORES)).report["drawn"] and not capsys.readouterr().out
    assert not mined(pairs, at(*SCORES), mining_depth=4).report["drawn"]
    assert "Of the 4 nearest documents none may be a negative of any pair" in capsys.readouterr().out


def test_another_share_and_none(pairs: Pairs) -> None:
    looser = mined(pairs, at(*SCORES), positive_share=0.97, hard_negatives=4)
    assert set(looser.negatives[0].tolist()) == {1, 2, 5, -1}
    none = mined(pairs, at(*SCORES[:3], 0.9, *SCORES[4:]), positive_share=None, hard_negatives=4)
    assert set(none.negatives[0].tolist()) == {1, 2, 5, -1}
    assert none.report["dropped"]["above_positive_share"] == 0


def test_each_pair_of_a_query_has_a_bound_of_its_own() -> None:
    pairs = Pairs(["q"], list("abcd"), [(0, 0), (0, 1)], {0: frozenset([0, 1])})
    found = mined(pairs, at(0.9, 0.5, 0.7, 0.4), mining_depth=4, hard_negatives=2)
    assert set(found.negatives[0].tolist()) == {2, 3}
    assert found.negatives[1].tolist() == [3, -1]


def test_a_positive_that_scores_below_zero_still_has_a_bound_below_it() -> None:
    pairs = Pairs(["q"], list("abc"), [(0, 0)], {0: frozenset([0])})
    found = mined(pairs, at(-0.5, -0.51, -0.55), mining_depth=3, hard_negatives=2)
    assert found.negatives.tolist() == [[2, -1]]


def test_the_draw_follows_from_seed_and_round() -> None:
    pairs = Pairs(["q"], [str(n) for n in range(40)], [(0, 0)] * 30, {0: frozenset([0])})
    vectors = at(0.9, *np.linspace(0.8, 0.1, 39))
    fields: dict[str, Any] = {"hard_negatives": 3, "mining_depth": 10}
    first = mined(pairs, vectors, 0, **fields).negatives
    np.testing.assert_array_equal(mined(pairs, vectors, 0, **fields).negatives, first)
    assert (mined(pairs, vectors, 1, **fields).negatives != first).any()
    assert (mined(pairs, vectors, 0, seed=14, **fields).negatives != first).any()
    assert all(len(set(row)) == 3 for row in first.tolist())
    assert set(first.ravel().tolist()) == set(range(1, 10))  # 30 draws of 3 from the nine near ones reach them all


def test_fewer_documents_than_are_asked_for() -> None:
    pairs = Pairs(["q"], ["a", "b"], [(0, 0)], {0: frozenset([0])})
    found = mined(pairs, at(0.9, 0.1), hard_negatives=5, mining_depth=50)
    assert found.negatives.tolist() == [[1, -1, -1, -1, -1]]


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([None, 0.5, 0.95]))
def test_mining_in_chunks_keeps_what_a_plain_loop_keeps(seed: int, share: float | None) -> None:
    rng = np.random.default_rng(seed)
    queries, documents = (_unit(rng.normal(size=(n, 4))) for n in (6, 15))
    texts = [f"text {rng.integers(10)}" for _ in range(15)]
    links = sorted({(int(rng.integers(6)), int(rng.integers(15))) for _ in range(9)})
    relevant = {q: frozenset(d for p, d in links if p == q) for q, _ in links}
    pairs = Pairs([f"q{n}" for n in range(6)], texts, links, relevant)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "_SCORES_AT_ONCE", {"cpu": 30})
        patch.setattr(negatives, "_DOCUMENTS_AT_ONCE", {"cpu": 3})
        patch.setattr(negatives, "_PAIRS_AT_ONCE", 2)
        found = mined(pairs, documents, queries=queries, hard_negatives=8, mining_depth=8, positive_share=share).negatives
    for row, (query, positive) in zip(found, links, strict=True):
        scores = documents @ queries[query]
        known = {texts[d] for d in relevant[query]}
        bound = np.inf if share is None else scores[positive] - (1 - share) * abs(scores[positive])
        expected = {d for d in np.argsort(-scores)[:8] if texts[d] not in known and scores[d] <= bound}
        assert set(row[row >= 0].tolist()) == expected


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_nearest_is_exact_and_best_first() -> None:
    scores, numbers = nearest(QUERY, at(0.1, 0.9, -1.0, 0.5), 3)
    assert numbers.tolist() == [[1, 3, 0]]
    assert scores[0].tolist() == pytest.approx([0.9, 0.5, 0.1])


def test_false_negatives_are_told_by_judgement_and_by_text() -> None:
    relevant = {0: frozenset([0, 3]), 1: frozenset([1]), 2: frozenset([2]), 3: frozenset([4])}
    documents = ["a", "b", "c", "d", "e", "a "]
    pairs = Pairs(["one", "two", "three", "two"], documents, [(0, 0), (0, 3), (1, 1), (2, 2), (3, 4)], relevant)
    # A batch of the pairs (0, 0), (1, 1), (2, 2), then negatives: another relevant one of query 0, one that a query of the same text
    # as query 1 has, one with the text of document 0, and a gap.
    found = known_false_negatives(pairs, [0, 1, 2], [0, 1, 2, 3, 4, 5, -1])
    assert found.astype(int).tolist() == [
        [0, 0, 0, 1, 0, 1, 1],
        [0, 0, 0, 0, 1, 0, 1],
        [0, 0, 0, 0, 0, 0, 1],
    ]


def test_a_batch_may_hold_two_pairs_of_one_document() -> None:
    pairs = Pairs(["one", "two"], ["a", "b"], [(0, 0), (1, 0)], {0: frozenset([0]), 1: frozenset([0])})
    assert known_false_negatives(pairs, [0, 1], [0, 0]).tolist() == [[False, True], [True, False]]
    shifted = known_false_negatives(pairs, [1], [1, 0, 0], targets=[2])
    assert shifted.tolist() == [[False, True, False]]
