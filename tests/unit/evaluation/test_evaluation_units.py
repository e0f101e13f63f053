"""Units of queries: which were drawn together, what that makes of intervals and power, and what data without groups gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import ndtri, stdtrit

from components.data.dataset import Dataset
from components.errors import DataError
from components.evaluation.summarize import judged_split
from components.evaluation.table import told_units
from components.evaluation.units import (
    Interval,
    Units,
    compact,
    design_effect,
    effective_queries,
    mean_interval,
    min_detectable,
    paired_bootstrap,
    power,
    queries_for,
    queries_needed,
    query_units,
    ratio_interval,
    resampled_means,
    standard_error,
    too_few_alike,
    units_alike,
    units_in,
)


def world(answers: dict[str, list[str]], fields: dict[str, object] | None = None, groups: str = "") -> Dataset:
    """Queries with the documents that answer them; `fields` maps a document to its metadata."""
    documents = sorted({document for found in answers.values() for document in found})
    metadata = [found if isinstance(found := (fields or {}).get(d, {}), str) else json.dumps(found) for d in documents]
    rows = [(query, document, 1, "test") for query, found in answers.items() for document in found]
    return Dataset(
        documents=pd.DataFrame({"doc_id": documents, "title": documents, "text": "", "metadata": metadata}),
        queries=pd.DataFrame({"query_id": list(answers), "text": list(answers)}),
        all_judgements=pd.DataFrame(rows, columns=["query_id", "doc_id", "score", "split"]),
        unlabelled=pd.DataFrame({"query_id": [], "text": []}),
        query_groups=groups,
    )


def units(dataset: Dataset, groups: str = "auto") -> dict[str, int]:
    found = query_units(judged_split(dataset, "test"), dataset, groups)
    return dict(zip(found.query_ids, found.numbers.tolist(), strict=True))


def test_queries_with_an_answer_in_common_are_one_unit_also_through_a_third_one() -> None:
    data = world({"q1": ["a"], "q2": ["a", "b"], "q3": ["b"], "q4": ["c"], "q5": ["d"]})
    assert units(data) == {"q1": 0, "q2": 0, "q3": 0, "q4": 1, "q5": 2}


def test_a_document_that_is_not_relevant_joins_nothing() -> None:
    data = world({"q1": ["a"], "q2": ["b"]})
    rows = pd.concat([data.all_judgements, pd.DataFrame([("q1", "b", 0, "test")], columns=data.all_judgements.columns)])
    assert units(Dataset(data.documents, data.queries, rows, data.unlabelled)) == {"q1": 0, "q2": 1}


def test_the_group_that_the_source_splits_by_joins_queries_of_different_answers() -> None:
    fields: dict[str, object] = {"a": {"page": 1}, "b": {"page": 1}, "c": {"page": 2}, "d": {}}
    answers = {"q1": ["a"], "q2": ["b"], "q3": ["c"], "q4": ["d"], "q5": ["d"]}
    assert units(world(answers, fields, "page")) == {"q1": 0, "q2": 0, "q3": 1, "q4": 2, "q5": 2}
    assert units(world(answers, fields)) == {"q1": 0, "q2": 1, "q3": 2, "q4": 3, "q5": 3}
    assert units(world(answers, fields), "page") == units(world(answers, fields, "page"))
    assert units(world(answers, fields, "page"), "queries") == {f"q{n + 1}": n for n in range(5)}


@pytest.mark.parametrize("metadata", ["broken", "[1]", '"text"', "{}", '{"page": null}', '{"page": ""}'])
def test_metadata_that_says_nothing_joins_nothing(metadata: str) -> None:
    assert units(world({"q1": ["a"], "q2": ["b"]}, {"a": metadata, "b": metadata}, "page")) == {"q1": 0, "q2": 1}


def test_a_field_that_no_answer_has_is_refused_with_what_to_name_instead() -> None:
    with pytest.raises(DataError, match=r"query_groups is 'pgae', but no relevant document.*'auto'.*'queries'"):
        units(world({"q1": ["a"]}, {"a": {"page": 1}}), "pgae")


def test_the_built_in_set_groups_its_queries_by_category(tmp_path: Path) -> None:
    pytest.importorskip("simple_icd_10_cm")
    from components.data.config import DataConfig
    from components.data.dataset import load_dataset
    from components.data.snapshot import snapshot

    dataset = load_dataset(snapshot(DataConfig(scope="quick", max_documents=3000), tmp_path).path)
    judged = judged_split(dataset, "test")
    found = query_units(judged, dataset)
    answers = judged.judgements.assign(category=[code.split(".")[0] for code in judged.judgements["doc_id"]])
    by_category = answers.groupby("category")["query_id"].agg(set)
    assert all(len(set(found.of(queries).tolist())) == 1 for queries in by_category)
    assert 1 < found.count <= len(by_category) < len(judged.query_ids)
    assert "same category" in found.rule


def test_units_are_read_back_and_asked_for_by_query() -> None:
    found = Units(("q1", "q2", "q3"), np.array([0, 0, 1]), "rule")
    again = units_in(pd.concat([found.table("test"), Units(("q1",), np.array([0])).table("dev")]), "test")
    assert again is not None and again.of(["q3", "q1"]).tolist() == [1, 0] and (again.count, again.largest) == (2, 2)
    assert units_in(None, "test") is None
    table = found.table("test")
    wrong = (table.assign(unit=np.nan), table.assign(unit=0.5), table.assign(unit="a"), pd.concat([table, table.assign(unit=7)]))
    for name, spoiled in (("nl", table), *(("test", spoiled) for spoiled in wrong)):
        with pytest.raises(DataError, match=f"not say of every query of '{name}' in which one unit it was drawn"):
            units_in(spoiled, name)
    with pytest.raises(DataError, match="'q9' is in no unit"):
        again.of(["q1", "q9"])


def test_numbers_are_compact_and_in_the_order_of_the_queries() -> None:
    assert compact(np.array([7, 7, 3, 9, 3])).tolist() == [0, 0, 1, 2, 1]


GAPS = np.random.default_rng(1).normal(0.02, 0.2, 120)


def test_one_query_a_unit_gives_what_queries_alone_give() -> None:
    alone = np.random.default_rng(2).permutation(120)
    zeros = np.zeros(120)
    for measure in (paired_bootstrap, ratio_interval):
        assert measure(GAPS + 1, zeros + 1, units=alone) == measure(GAPS + 1, zeros + 1)
    assert mean_interval(GAPS, units=alone) == mean_interval(GAPS)
    assert standard_error(GAPS, alone) == standard_error(GAPS)
    assert (power(GAPS, 0.01, units=alone), queries_needed(GAPS, 0.01, units=alone)) == (power(GAPS, 0.01), queries_needed(GAPS, 0.01))
    assert design_effect(GAPS, alone) == 1.0


def test_repeating_every_query_ten_times_leaves_interval_and_power_as_they_were() -> None:
    """Ten copies of a query know no more than one; by single queries the interval would be a third as wide."""
    copies, groups = np.repeat(GAPS, 10), np.repeat(np.arange(120), 10)
    once, grouped, naive = mean_interval(GAPS, 4000), mean_interval(copies, 4000, units=groups), mean_interval(copies, 4000)
    assert grouped.units == 120 and grouped.difference == pytest.approx(once.difference)
    assert grouped.high - grouped.low == pytest.approx(once.high - once.low, rel=0.05)
    assert naive.high - naive.low < 0.4 * (grouped.high - grouped.low)
    assert standard_error(copies, groups) == pytest.approx(standard_error(GAPS))
    assert power(copies, 0.05, units=groups) == pytest.approx(power(GAPS, 0.05), abs=0.01)
    assert min_detectable(copies, units=groups) == pytest.approx(min_detectable(GAPS), rel=0.01)
    assert queries_needed(copies, 0.05, units=groups) == pytest.approx(10 * queries_needed(GAPS, 0.05), rel=0.02)
    assert design_effect(copies, groups) == pytest.approx(10, rel=0.01)
    assert effective_queries(1200, design_effect(copies, groups)) == pytest.approx(120, abs=1)


def test_of_a_single_unit_nothing_is_known() -> None:
    one = np.zeros(120, np.int64)
    found = paired_bootstrap(GAPS, np.zeros(120), units=one)
    assert (found.difference, found.units, found.known) == (pytest.approx(GAPS.mean()), 1, False)
    assert standard_error(GAPS, one) == np.inf and power(GAPS, 0.01, units=one) == pytest.approx(0.05)
    with pytest.raises(DataError, match="one unit"):
        queries_needed(GAPS, 0.01, units=one)


@pytest.mark.parametrize("alone", [None, np.zeros(1, np.int64)])
def test_of_a_single_query_nothing_is_known(alone: np.ndarray | None) -> None:
    for found in (
        paired_bootstrap([0.9], [0.4], units=alone),
        mean_interval([0.5], units=alone),
        ratio_interval([0.5], [0.4], units=alone),
    ):
        assert (found.units, found.known) == (1, False)


@pytest.mark.parametrize("count", [4, 12])
def test_stated_power_is_how_often_an_equal_candidate_passes_also_in_few_units(count: int) -> None:
    """The interval is wider by Student's quantile there, so the power has to know it too."""
    rng, groups = np.random.default_rng(3), np.repeat(np.arange(count), 10)
    margin = 2.5 * (0.05**2 / count + 0.1**2 / len(groups)) ** 0.5
    passed, stated = [], []
    for seed in range(250):
        gaps = rng.normal(0, 0.05, count)[groups] + rng.normal(0, 0.1, len(groups))
        passed.append(paired_bootstrap(gaps, np.zeros_like(gaps), 300, 0.9, seed, groups).low > -margin)
        stated.append(power(gaps, margin, 0.95, groups))
    assert float(np.median(stated)) == pytest.approx(float(np.mean(passed)), abs=0.08)
    assert power(gaps, min_detectable(gaps, units=groups), units=groups) == pytest.approx(0.8)
    assert power(gaps, margin / 3, units=groups) < 0.8 and queries_needed(gaps, margin / 3, units=groups) > len(gaps)


def test_queries_of_which_one_unit_holds_nearly_all_say_no_more_than_few_units() -> None:
    """As of nl2bash, whose queries of one command after the other share their answers: 2,013 of 2,131 are one unit."""
    numbers = np.repeat(np.arange(24), [2013, 25, 25, 20, 11, 7, 5, *[4] * 4, *[1] * 13])
    rng, sizes = np.random.default_rng(3), np.bincount(numbers)
    true = 0.02 * np.sqrt((sizes**2).sum()) / sizes.sum()
    drawn = [rng.normal(0, 0.02, 24)[numbers] + rng.normal(0, 0.1, len(numbers)) for _ in range(100)]
    assert np.mean([standard_error(gaps, numbers) for gaps in drawn]) == pytest.approx(true, rel=0.3)
    assert np.mean([power(gaps, 0.02, 0.95, numbers) for gaps in drawn]) < 0.7
    assert np.median([effective_queries(len(gaps), design_effect(gaps, numbers)) for gaps in drawn]) < 200
    # By residuals, as the first decisions were made, its own is next to nothing.
    assert np.mean([standard_error(gaps, numbers, "residuals") for gaps in drawn]) < 0.1 * true


def test_few_units_that_all_say_the_same_show_nothing() -> None:
    assert [too_few_alike(units, 0.95) for units in (1, 4, 5, 100)] == [True, True, False, False]
    assert (units_alike(0.95), units_alike(0.99), units_alike(0.999)) == (5, 7, 10)


def test_units_of_another_number_of_queries_are_refused() -> None:
    with pytest.raises(DataError, match="120 queries and units of the shape \\(119,\\)"):
        mean_interval(GAPS, units=np.arange(119))


def test_the_same_seed_draws_the_same_units_whatever_their_numbers_are() -> None:
    groups = np.arange(120) // 7
    first, second = (paired_bootstrap(GAPS, np.zeros(120), units=numbers) for numbers in (groups, groups * 5 + 3))
    assert first == second and first != paired_bootstrap(GAPS, np.zeros(120), units=groups, seed=14)


def test_effects_that_are_no_number_of_queries_are_kept_within_what_there_is() -> None:
    assert [effective_queries(100, effect) for effect in (0.0, 0.5, 1.0, 3.0, 1000.0, np.inf)] == [100, 100, 100, 33, 1, 1]
    assert design_effect(np.ones(4), np.array([0, 0, 1, 1])) == 1.0


def test_what_is_told_names_units_rule_and_worth() -> None:
    grouped = Units(tuple("abcd"), np.array([0, 0, 0, 1]), "queries of one page are one unit")
    told = told_units(grouped, {"ndcg@10": 2.0})
    assert told == (
        "4 queries in 2 units of up to 3: queries of one page are one unit. They say as much as independent queries: 2 by ndcg@10 "
        "(design effect 2.0)."
    )
    one = told_units(Units(("a", "b"), np.zeros(2, np.int64), "a rule"), {})
    assert one == "All 2 queries are one unit (a rule), so no interval can be given."
    assert told_units(Units(("a", "b"), np.arange(2), "a rule"), {}) == "2 queries, each a unit of its own: a rule."


def test_many_draws_of_many_units_are_drawn_in_parts() -> None:
    values, groups = np.random.default_rng(3).random(6410), np.random.default_rng(4).integers(0, 3000, 6410)
    means = resampled_means(values, 2_000, 13, groups)
    assert means.shape == (2_000,)
    assert means.std() == pytest.approx(standard_error(values, groups), rel=0.1)


def test_units_that_the_settings_take_apart_are_told_with_what_the_data_makes_of_them() -> None:
    fields: dict[str, object] = {"a": {"page": 1, "book": 1}, "b": {"page": 2, "book": 1}, "c": {"page": 3, "book": 2}, "d": {}}
    data = world({"q1": ["a"], "q2": ["b"], "q3": ["c"], "q4": ["d"]}, fields, "book")

    def asked(groups: str) -> Units:
        return query_units(judged_split(data, "test"), data, groups)

    assert [asked(groups).taken_apart for groups in ("auto", "book", "queries", "page")] == [0, 0, 3, 3]
    told = told_units(asked("queries"), {})
    assert (
        "each was drawn" not in told and "each query was drawn by itself, as evaluation.query_groups says, though the data makes 3" in told
    )
    lone = world({"q1": ["a"], "q2": ["b"]})
    assert query_units(judged_split(lone, "test"), lone, "queries").taken_apart == 0, "nothing belongs together here"


@pytest.mark.parametrize(("queries", "least"), [(6, 0.93), (12, 0.93)])
def test_intervals_over_few_single_queries_hold_the_truth_as_often_as_they_say(queries: int, least: float) -> None:
    """By the percentiles alone 85 to 92 of a hundred did."""
    rng = np.random.default_rng(5)
    samples = rng.normal(0.0, 0.2, (1500, queries))
    found = {
        ends: np.mean([_holds(mean_interval(row, 300, 0.95, 13, None, ends)) for row in samples]) for ends in ("student", "percentile")
    }
    assert found["student"] >= least > 0.925 >= found["percentile"]


def _holds(found: Interval) -> bool:
    return found.low <= 0 <= found.high


@pytest.mark.parametrize("units", [2, 3, 4, 40])
@pytest.mark.parametrize("spread", [0.1, 0.7, 3.0])
def test_the_queries_that_are_needed_are_the_fewest_that_are_enough_for_more_come_in_more_units(units: int, spread: float) -> None:
    """For two units a plan told fifteen times as many, and the reason of a gate now and then fewer than there were."""
    size, margin = 100 / units, 0.05
    needed = queries_for(spread, margin, size=size)

    def enough(queries: int) -> bool:
        return bool(((stdtrit(queries / size - 1, 0.95) + ndtri(0.8)) * spread / margin) ** 2 <= queries)

    assert enough(needed + 1) and (needed <= 2 * size or not enough(needed - 1))
