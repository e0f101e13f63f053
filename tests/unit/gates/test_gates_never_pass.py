"""Property: whatever is missing, doubled or no number, the gate that needs it never passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluation.report import Evaluation, ExtraSummary, UnitsSummary
from components.gates.config import PolicyConfig
from components.gates.decide import GateInputs, decide
from tests.unit.promotion_world import FACTS, make_comparison, make_evaluation, make_values

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15, floors={"ndcg@10": 0.5}, min_off_distribution_retention=0.9)
CHAMPION = ("champion_non_inferior", "champion_non_inferior[half=even]", "champion_non_inferior[half=odd]")
SHIFTED = "off_distribution_retention[shifted]"
# (table, system, metric) -> the gates that rest on it
WORTH = ("teacher_worth[bm25]", "teacher_worth[student_untrained]")
NEEDED = {
    ("per_query", "student", "ndcg@10"): ("beats_bm25", "beats_untrained", "floor[ndcg@10]", *CHAMPION),
    ("per_query", "student", "recall@50"): ("beats_bm25", "beats_untrained", "retention"),
    ("per_query", "bm25", "ndcg@10"): ("beats_bm25", WORTH[0]),
    ("per_query", "bm25", "recall@50"): ("beats_bm25", WORTH[0]),
    ("per_query", "student_untrained", "ndcg@10"): ("beats_untrained", WORTH[1]),
    ("per_query", "student_untrained", "recall@50"): ("beats_untrained", WORTH[1]),
    ("per_query", "teacher", "recall@50"): ("retention", *WORTH),
    ("per_query", "teacher", "ndcg@10"): WORTH,
    ("values", "champion", "ndcg@10"): CHAMPION,
    ("values", "candidate", "ndcg@10"): CHAMPION,
    ("ann", None, "recall@100"): ("ann_recall",),
    ("extra", "teacher", "recall@50"): (SHIFTED,),
}
SPOILS = st.sampled_from(["drop", "double", "rename", "nan", "inf", "-inf"])
NO_NUMBERS = st.sampled_from([float("nan"), float("inf"), float("-inf"), None])


def whole() -> GateInputs:
    """Evidence with which every gate passes."""
    report = make_evaluation()
    extra = report.per_query.assign(split="shifted")
    split = ExtraSummary(queries=40, judgements_digest="j9", systems={}, retention=report.summary.retention, retention_intervals={})
    units = UnitsSummary(rule="each", units=40, largest=1, words="each")
    report = replace(report, extra=extra, summary=report.summary.model_copy(update={"extra": {"shifted": split}, "units": units}))
    values = make_values(report, make_evaluation())
    return GateInputs(
        report, make_evaluation(judgements="j0"), make_comparison(), FACTS.model_copy(update={"foreign_policy": ""}), values, 1
    )


def statuses(evidence: GateInputs) -> dict[str, str]:
    return {gate.name: gate.status for gate in decide(evidence, POLICY).gates}


def spoiled(table: pd.DataFrame, system: str | None, metric: str, queries: set[int], how: str) -> pd.DataFrame:
    """The table with the values of these queries (by their place) spoiled."""
    chosen = table[(table["metric"] == metric) & (True if system is None else table["system"] == system)].index[sorted(queries)]
    if how == "drop":
        return table.drop(index=chosen)
    if how == "double":
        return pd.concat([table, table.loc[chosen]], ignore_index=True)
    if how == "rename":
        names = table["query_id"].where(~table.index.isin(chosen), "another " + table["query_id"])
        return table.assign(query_id=names)
    return table.assign(value=table["value"].where(~table.index.isin(chosen), float(how)))


def with_table(evidence: GateInputs, name: str, table: pd.DataFrame) -> GateInputs:
    if name == "values":
        return replace(evidence, values=table)
    return replace(evidence, report=replace(evidence.report, **{name: table}))


def test_untouched_evidence_passes_every_gate() -> None:
    assert set(statuses(whole()).values()) == {"pass"}


@settings(max_examples=24)
@given(where=st.sampled_from(sorted(NEEDED, key=str)), queries=st.sets(st.integers(0, 39), min_size=1, max_size=40), how=SPOILS)
def test_values_of_queries(where: tuple[str, str | None, str], queries: set[int], how: str) -> None:
    name, system, metric = where
    evidence = whole()
    table = evidence.values if name == "values" else getattr(evidence.report, name)
    if name == "ann" and how == "rename":
        return  # its queries stand alone: other names change no mean
    found = statuses(with_table(evidence, name, spoiled(table, system, metric, queries, how)))
    if name == "per_query" and how == "rename" and queries == set(range(40)):
        return  # every query of one system under another name: seen in the gates that pair it only
    for gate in NEEDED[where]:
        if how == "rename" and gate.startswith("floor"):
            continue  # it stands on the mean of one system alone, too
        assert found[gate] != "pass", gate


@settings(max_examples=20)
@given(section=st.sampled_from(["speed", "health", "retention", "systems", "ann", "candidate", "champion"]), value=NO_NUMBERS)
def test_figures_of_the_summaries(section: str, value: float | None) -> None:
    evidence = whole()
    summary, comparison = evidence.report.summary, make_comparison()
    if section in ("candidate", "champion"):
        if value is None:
            changed = replace(evidence, comparison=None)
        else:
            speed = getattr(comparison, section).model_copy(update={"p95_ms": value, "qps": value})
            changed = replace(evidence, comparison=comparison.model_copy(update={section: speed}))
        needed: tuple[str, ...] = ("champion_p95", "champion_qps") + (("removed_documents",) if value is None else ())
    else:
        changes: dict[str, Any] = {
            "speed": summary.speed.model_copy(update={"speed_up": value}) if summary.speed else None,
            "health": {name: found.model_copy(update={"effective_rank": value}) for name, found in summary.health.items()},
            "retention": {"recall@50": value},
            "systems": {name: found.model_copy(update={"metrics": {"ndcg@10": value}}) for name, found in summary.systems.items()},
            "ann": summary.ann.model_copy(update={"recall": {"recall@100": value}}) if summary.ann else None,
        }
        report = replace(evidence.report, summary=summary.model_copy(update={section: changes[section]}))
        changed = replace(evidence, report=report)
        gates = {"speed": ("speed_up",), "health": ("not_collapsed",), "retention": ("retention",), "ann": ("ann_recall",)}
        needed = gates.get(section, ("retention", "beats_bm25", *WORTH, "floor[ndcg@10]", *CHAMPION))
    found = statuses(changed)
    for gate in needed:
        assert found[gate] != "pass", gate


def units(**changes: Any) -> pd.DataFrame:
    """Every query of both splits in a unit of its own."""
    rows = [
        (split, query, place)
        for split in ("test", "shifted")
        for place, query in enumerate(make_evaluation().per_query["query_id"].unique())
    ]
    return pd.DataFrame(rows, columns=["split", "query_id", "unit"]).assign(**changes)


@pytest.mark.parametrize("how", ["nan", "text", "doubled", "of another split"])
def test_units_that_are_not_said_of_every_query_decide_nothing(how: str) -> None:
    whole_table = units()
    table = {
        "nan": units(unit=whole_table["unit"].where(whole_table["unit"] != 3)),
        "text": units(unit="a"),
        "doubled": pd.concat([whole_table, units(unit=0)]),
        "of another split": units(split="dev"),
    }[how]
    assert "fail" not in statuses(with_table(whole(), "units", whole_table)).values()
    found = statuses(with_table(whole(), "units", table))
    for gate in {gate for gates in NEEDED.values() for gate in gates}:
        assert found.get(gate) != "pass", gate


@pytest.mark.parametrize("column", ["query_id", "dimension", "slice"])
def test_slices_without_a_name_are_not_passed_over(column: str) -> None:
    table = whole().report.slices
    assert table is not None
    for spoiled_table in (table.assign(**{column: None}), table.assign(**{column: table[column].where(table["query_id"] != "q000")})):
        decision = decide(with_table(whole(), "slices", spoiled_table), POLICY)
        assert decision.verdict == "not_decidable"
        assert "without a name" in next(gate.reason for gate in decision.gates if gate.slice == "all")


@pytest.mark.parametrize("queries", [0, 1, 19])
def test_no_or_few_queries(queries: int) -> None:
    report = make_evaluation(queries=40)
    ids = sorted(report.per_query["query_id"].unique())[:queries]
    few = replace(
        report,
        per_query=report.per_query[report.per_query["query_id"].isin(ids)],
        slices=None if report.slices is None else report.slices[report.slices["query_id"].isin(ids)],
        summary=report.summary.model_copy(update={"queries": queries}),
    )
    decision = decide(replace(whole(), report=few), POLICY)
    assert decision.verdict != "pass"
    assert not [gate.name for gate in decision.gates if gate.slice and gate.status == "pass"]
    assert next(gate for gate in decision.gates if gate.name == "enough_queries").status == "not_decidable"


def test_slices_without_a_query_or_of_unknown_queries() -> None:
    evidence = whole()
    assert evidence.report.slices is not None
    for slices in (evidence.report.slices.iloc[:0], evidence.report.slices.assign(query_id="x"), None):
        report: Evaluation = replace(evidence.report, slices=slices)
        found = statuses(replace(evidence, report=report))
        assert found["champion_non_inferior[all]"] == "not_decidable"


def test_the_same_values_in_another_order_give_the_same_decision() -> None:
    evidence = whole()
    assert evidence.values is not None
    shuffled = evidence.values.sample(frac=1, random_state=np.random.RandomState(3))
    assert decide(replace(evidence, values=shuffled), POLICY) == decide(evidence, POLICY)
