"""A candidate against a champion whose rankings can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.artifacts import read_json, verify, write_json
from components.errors import ArtifactError
from components.evaluation.champion_comparison import (
    COMPARISON_FILE,
    LOGGED,
    SERVED,
    SHARED,
    SHOWN,
    SIDE_BY_SIDE_FILE,
    STUDENT_RUN,
    ComparisonPlan,
    Side,
    compare_in_one_run,
    load_comparison,
    load_tables,
    load_values,
    values_of_runs,
)
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import QRELS, JudgedSplit, per_query_metrics, write_trec_qrels, write_trec_run
from components.evaluation.rankers import DenseRanker
from components.evaluation.report import Evaluation, write_report
from components.evaluation.summarize import summarize
from components.evaluation.units import Units
from components.index.search import index_in_memory
from tests.encoders import WORDS, WordEncoder

CONFIG = EvaluationConfig(latency_queries=20, throughput_batch=4, bootstrap_samples=200)
SIZES = {"index": 100, "encoder": 10, "documents": len(WORDS)}


def contender(texts: dict[str, str]) -> Side:
    """A release that knows `texts` by id; the title of a document is its text in capitals."""
    encoder = WordEncoder()
    index = index_in_memory(WordEncoder("document").encode(list(texts.values())), list(texts), encoder.space_id)
    return Side(DenseRanker(encoder, index), {i: text.upper() for i, text in texts.items()}, SIZES)


def judged(relevant: dict[str, str]) -> JudgedSplit:
    """Queries that are their own id, with one relevant document each."""
    rows = pd.DataFrame([(q, d, 1) for q, d in relevant.items()], columns=["query_id", "doc_id", "score"])
    return JudgedSplit(sorted(relevant), sorted(relevant), rows.sort_values("query_id", ignore_index=True))


# The champion has apple and bread under each other's ids, the candidate cheese and dates; eggs both have right.
RIGHT = {f"d-{word}": word for word in WORDS[:5]}
CHAMPION = {**RIGHT, "d-apple": "bread", "d-bread": "apple"}
CANDIDATE = {**RIGHT, "d-cheese": "dates", "d-dates": "cheese"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    asked = judged({word: f"d-{word}" for word in WORDS[:5]})
    contest = ComparisonPlan(contender(CANDIDATE), contender(CHAMPION), 3, asked, ["eggs", "cheese"], LOGGED)
    compare_in_one_run(contest, CONFIG, {"index": "i" * 64}, tmp_path)
    return tmp_path


def test_the_figures_are_those_worked_out_by_hand(folder: Path) -> None:
    artifact, summary = verify(folder), load_comparison(folder)
    assert summary is not None
    assert (artifact.kind, artifact.parents, artifact.counts) == ("comparison", {"index": "i" * 64}, {"queries": 5, "replayed": 2})
    assert (summary.baseline_version, summary.queries) == (3, 5)
    # Each has two of five first documents wrong, so the mean is equal and its interval goes both ways.
    first = next(found for found in summary.metrics if found.metric == "recall@1")
    assert (first.difference, first.queries, first.system, first.baseline) == (0.0, 5, "candidate", "champion")
    assert first.low is not None and first.high is not None and first.low < 0 < first.high
    assert summary.agreement["judged queries@1"].mean == pytest.approx(1 / 5)
    assert summary.agreement["logged queries@1"].mean == pytest.approx(1 / 2)  # eggs found alike, cheese not
    assert summary.agreement["logged queries@10"].mean == 1.0  # there are five documents only
    assert summary.sizes == {"candidate": SIZES, "champion": SIZES}


def test_relevant_documents_that_a_release_lacks_are_kept_beside_the_metrics(tmp_path: Path) -> None:
    asked = judged({word: f"d-{word}" for word in WORDS[:5]})
    before = {doc_id: text for doc_id, text in RIGHT.items() if doc_id != "d-eggs"}
    compare_in_one_run(ComparisonPlan(contender(RIGHT), contender(before), 3, asked), CONFIG, {}, tmp_path)
    table = load_values(tmp_path)
    served = table[table["metric"] == SERVED].pivot(index="query_id", columns="system", values="value")
    assert served["candidate"].tolist() == [1.0] * 5
    assert served["champion"][served["champion"] < 1].to_dict() == {"eggs": 0.0}


def test_both_are_timed_with_the_same_queries(folder: Path) -> None:
    summary = load_comparison(folder)
    assert summary is not None
    # Timing may end before all of the 20 queries: both then end with the same round.
    assert summary.candidate.queries == summary.champion.queries
    for speed in (summary.candidate, summary.champion):
        assert 10 <= speed.queries <= 20
        assert speed.batch_size == 4
        assert 0 < speed.p50_ms <= speed.p95_ms
        assert np.isfinite(speed.qps)


def test_losses_and_gains_stand_side_by_side_with_titles(folder: Path) -> None:
    table = load_tables(folder).side_by_side
    assert table["query_id"].tolist() == ["cheese", "dates", "apple", "bread"]  # eggs did not change
    assert (table["difference"] < 0).tolist() == [True, True, False, False]
    lost = table.iloc[0]
    assert lost["candidate"][0] == {"doc_id": "d-dates", "title": "CHEESE", "score": 1.0, "relevant": False}
    assert lost["champion"][0] == {"doc_id": "d-cheese", "title": "CHEESE", "score": 1.0, "relevant": True}
    assert [document["doc_id"] for document in lost["relevant"]] == ["d-cheese"]


def test_no_more_than_twenty_each_way_are_shown(tmp_path: Path) -> None:
    ids = [f"q{n:02d}" for n in range(30)]
    asked = JudgedSplit(ids, ["apple"] * 30, pd.DataFrame({"query_id": ids, "doc_id": "d-apple", "score": 1}))
    compare_in_one_run(ComparisonPlan(contender(CANDIDATE), contender(CHAMPION), 1, asked), CONFIG, {}, tmp_path)
    assert len(load_tables(tmp_path).side_by_side) == SHOWN


def test_the_text_of_a_logged_query_is_not_copied(folder: Path) -> None:
    rows = load_tables(folder).agreement
    named = set(rows.loc[rows["source"] == LOGGED, "query"])
    assert len(named) == 2
    assert not named & {"eggs", "cheese"}


def test_no_comparison_is_none_and_a_broken_one_is_refused(folder: Path, tmp_path: Path) -> None:
    assert load_comparison(tmp_path / "nowhere") is None
    content = read_json(folder / COMPARISON_FILE)
    write_json(folder / COMPARISON_FILE, {**content, "schema_version": 99})
    with pytest.raises(ArtifactError, match="schema version 99"):
        load_comparison(folder)
    write_json(folder / COMPARISON_FILE, {**content, "baseline_version": 0})
    with pytest.raises(ArtifactError, match="baseline_version"):
        load_comparison(folder)
    (folder / SIDE_BY_SIDE_FILE).write_bytes(b"no table")
    with pytest.raises(ArtifactError, match=SIDE_BY_SIDE_FILE):
        load_tables(folder)


def test_the_judged_queries_of_a_comparison_are_resampled_by_their_units(tmp_path: Path) -> None:
    asked = judged({word: f"d-{word}" for word in WORDS[:5]})
    units = Units(tuple(asked.query_ids), np.array([0, 0, 1, 1, 1]))
    compare_in_one_run(
        ComparisonPlan(contender(CANDIDATE), contender(CHAMPION), 3, asked, ["eggs", "cheese"], LOGGED, units), CONFIG, {}, tmp_path
    )
    summary = load_comparison(tmp_path)
    assert summary is not None and {found.units for found in summary.metrics} == {2}
    one = ComparisonPlan(contender(CANDIDATE), contender(CHAMPION), 3, asked, units=Units(units.query_ids, np.zeros(5, np.int64)))
    compare_in_one_run(one, CONFIG, {}, tmp_path)
    alone = load_comparison(tmp_path)
    assert alone is not None and {(found.low, found.high, found.units) for found in alone.metrics} == {(None, None, 1)}
    assert (alone.agreement["judged queries@1"].low, alone.agreement["judged queries@1"].high) == (0.0, 1.0)


def test_documents_that_are_gone_are_counted_and_both_are_compared_on_what_both_hold(tmp_path: Path) -> None:
    # The candidate lacks cheese and dates, so its only wrong documents are gone with them; it has a new one in the way of eggs.
    fewer = {doc_id: text for doc_id, text in RIGHT.items() if doc_id not in ("d-cheese", "d-dates")} | {"d-new": "eggs"}
    asked = judged({word: f"d-{word}" for word in WORDS[:5]})
    compare_in_one_run(ComparisonPlan(contender(fewer), contender(CHAMPION), 3, asked), CONFIG, {}, tmp_path)
    summary, table = load_comparison(tmp_path), load_values(tmp_path)
    assert summary is not None and summary.removed == 2
    shared = table[table["metric"] == SHARED].pivot(index="query_id", columns="system", values="value")
    assert sorted(shared.index) == ["apple", "bread", "eggs"]  # nobody can find the documents of the others on both sides
    assert shared["candidate"].tolist() == [1.0, 1.0, 1.0]  # the new document is left out as well
    assert shared["champion"].loc["eggs"] == 1.0 and (shared["champion"].loc[["apple", "bread"]] < 1).all()


def evaluated(side: Side, asked: JudgedSplit, folder: Path, depth: int = 100) -> Path:
    """What an evaluation of the side leaves in its folder."""
    folder.mkdir()
    found = asked.rankings(side.ranker.rank(asked.texts, depth), depth)
    write_trec_run(folder / STUDENT_RUN, found, "student")
    write_trec_qrels(folder / QRELS, asked.judgements)
    scores = pd.concat([per_query_metrics(asked.judgements, found).assign(system="student")], ignore_index=True)
    summary = summarize(scores, asked, len(side.titles), CONFIG.model_copy(update={"depth": depth}))
    write_report(folder, Evaluation(summary, scores[["query_id", "system", "metric", "value"]]))
    return folder


def test_rankings_that_two_evaluations_wrote_down_say_of_what_both_hold_what_one_run_says(tmp_path: Path) -> None:
    fewer = {doc_id: text for doc_id, text in RIGHT.items() if doc_id not in ("d-cheese", "d-dates")} | {"d-new": "eggs"}
    asked, sides = judged({word: f"d-{word}" for word in WORDS[:5]}), {"candidate": contender(fewer), "champion": contender(CHAMPION)}
    compare_in_one_run(ComparisonPlan(sides["candidate"], sides["champion"], 3, asked), CONFIG, {}, tmp_path / "run")
    folders = {name: evaluated(side, asked, tmp_path / name) for name, side in sides.items()}
    rows = {name: side.ranker.index.rows for name, side in sides.items()}
    found, wanted = values_of_runs(folders, rows), load_values(tmp_path / "run")
    assert found is not None
    order = ["metric", "system", "query_id"]
    wanted = wanted[wanted["metric"].isin([SERVED, SHARED])].sort_values(order, ignore_index=True)
    pd.testing.assert_frame_equal(found.sort_values(order, ignore_index=True), wanted)
    assert SHARED not in set(values_of_runs(folders, {"candidate": rows["champion"], "champion": rows["champion"]})["metric"])  # type: ignore[index]
    (folders["champion"] / STUDENT_RUN).unlink()
    assert values_of_runs(folders, {"candidate": rows["champion"], "champion": rows["champion"]}) is None
    unsaid = values_of_runs(folders, rows)
    assert unsaid is not None and not len(unsaid)


def test_a_query_of_which_too_few_documents_were_written_down_is_in_no_comparison_of_what_both_hold(tmp_path: Path) -> None:
    many = {f"x{n:03d}": "apple" for n in range(300)} | {"d-apple": "bread apple", "d-bread": "bread"}
    fewer = {"d-apple": "bread apple", "d-bread": "bread"}
    asked, sides = judged({"apple": "d-apple", "bread": "d-bread"}), {"candidate": contender(fewer), "champion": contender(many)}
    folders = {name: evaluated(side, asked, tmp_path / name) for name, side in sides.items()}
    found = values_of_runs(folders, {name: side.ranker.index.rows for name, side in sides.items()})
    assert found is not None and "apple" not in set(found.loc[found["metric"] == SHARED, "query_id"])


def test_without_documents_that_are_gone_nothing_is_ranked_twice(folder: Path) -> None:
    summary, table = load_comparison(folder), load_values(folder)
    assert summary is not None and summary.removed == 0
    assert SHARED not in set(table["metric"])


def test_what_both_hold_is_ranked_deep_enough_where_most_documents_are_gone(tmp_path: Path) -> None:
    many = {f"x{n:03d}": "apple" for n in range(300)} | {"d-apple": "bread apple"}
    compare_in_one_run(
        ComparisonPlan(contender({"d-apple": "bread apple"}), contender(many), 3, judged({"apple": "d-apple"})), CONFIG, {}, tmp_path
    )
    table = load_values(tmp_path)
    shared = table[table["metric"] == SHARED].set_index("system")["value"]
    assert shared.to_dict() == {"candidate": 1.0, "champion": 1.0}  # 300 better ones stood before it
    whole = table[(table["metric"] == "ndcg@10") & (table["system"] == "champion")]["value"]
    assert whole.tolist() == [0.0]
