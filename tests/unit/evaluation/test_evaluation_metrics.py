from __future__ import annotations

import math

import pandas as pd
import pytest

from components.evaluation.metrics import METRICS, per_query_metrics


def judgements(*rows: tuple[str, str, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "score"])


def values(rows: pd.DataFrame, rankings: dict[str, list[tuple[str, float]]]) -> dict[tuple[str, str], float]:
    table = per_query_metrics(rows, rankings)
    return {(q, m): v for q, m, v in zip(table["query_id"], table["metric"], table["value"], strict=True)}


def test_values_by_hand() -> None:
    found = values(judgements(("q", "a", 1), ("q", "b", 1)), {"q": [("x", 3.0), ("a", 2.0), ("y", 1.0)]})
    ideal = 1 + 1 / math.log2(3)
    assert found["q", "recall@1"] == 0
    assert found["q", "recall@10"] == 0.5
    assert found["q", "mrr@10"] == 0.5
    assert found["q", "ndcg@10"] == pytest.approx(1 / math.log2(3) / ideal)


def test_ndcg_takes_the_score_as_gain() -> None:
    found = values(judgements(("q", "a", 1), ("q", "b", 2)), {"q": [("a", 2.0), ("b", 1.0)]})
    assert found["q", "ndcg@10"] == pytest.approx((1 + 2 / math.log2(3)) / (2 + 1 / math.log2(3)))


def test_a_judged_query_without_a_ranking_counts_zero() -> None:
    found = values(judgements(("q1", "a", 1), ("q2", "a", 1), ("q3", "a", 1)), {"q1": [("a", 1.0)], "q2": []})
    assert [found[q, "recall@10"] for q in ("q1", "q2", "q3")] == [1, 0, 0]
    assert len(found) == 3 * len(METRICS)


def test_an_unjudged_query_is_left_out_and_a_score_of_zero_or_less_is_not_relevant() -> None:
    found = values(judgements(("q", "a", 0), ("q", "c", -1), ("q", "b", 1)), {"q": [("a", 9.0), ("c", 8.0), ("b", 7.0)], "z": [("a", 1.0)]})
    assert {query for query, _ in found} == {"q"}
    assert found["q", "mrr@10"] == pytest.approx(1 / 3)
    assert found["q", "recall@1"] == 0


def test_the_order_of_the_ranking_counts_even_when_scores_are_equal() -> None:
    for ranking in ([("a", 1.0), ("b", 1.0)], [("z", 1.0), ("a", 1.0)]):
        found = values(judgements(("q", "a", 1)), {"q": ranking})
        assert found["q", "mrr@10"] == 1 / (1 + [d for d, _ in ranking].index("a"))
        assert found["q", "recall@1"] == float(ranking[0][0] == "a")


def test_cut_offs() -> None:
    ranking = [(f"x{i}", -float(i)) for i in range(100)]
    ranking[10] = ("a", ranking[10][1])
    ranking[60] = ("b", ranking[60][1])
    found = values(judgements(("q", "a", 1), ("q", "b", 1)), {"q": ranking})
    assert [found["q", m] for m in METRICS] == [0, 0, 0.5, 1, 0, 0]


def test_a_document_that_stands_twice_in_a_ranking_counts_at_its_first_place() -> None:
    twice = [("a", 9.0), ("x", 8.0), ("a", 7.0), ("y", 6.0), ("b", 5.0)]
    once = [("a", 9.0), ("x", 8.0), ("y", 6.0), ("b", 5.0)]
    rows = judgements(("q", "a", 2), ("q", "b", 1))
    assert values(rows, {"q": twice}) == values(rows, {"q": once})
    assert values(rows, {"q": twice})["q", "mrr@10"] == 1
    assert values(judgements(("q", "c", 1)), {"q": [("a", 1.0)] * 9 + [("b", 0.5), ("c", 0.1)]})["q", "recall@10"] == 1
