"""What the gates compare: the values of the run that asked both, else those of the two evaluations, and never another champion's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.evaluation.champion_comparison import AGREEMENT_COLUMNS, SERVED, SIDE_COLUMNS, ComparisonTables, write_comparison
from components.evaluation.report import load_evaluation
from components.gates.champion import SERVED_BY_BOTH
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs, decide
from components.gates.decision import GateResult
from components.promotion.verification import decide_on
from components.release.manifest import COMPARISON_FOLDER, EVALUATION_FOLDER, load_release
from tests.unit.promotion_world import FACTS, GOOD, MemoryTracking, World, make_comparison, make_evaluation, make_values

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15)
OLD = make_evaluation(judgements="j0")  # the champion's own evaluation, from before the judgements changed
KNOWN = f"champion_non_inferior[{SERVED_BY_BOTH}]"


def evidence(champion: float = 0.70, served: np.ndarray | None = None, **changes: Any) -> GateInputs:
    """A good candidate against a champion that reaches this level on the candidate's judgements, in the same run."""
    report = make_evaluation()
    values = make_values(report, make_evaluation({**GOOD, "student": champion}), served)
    return replace(GateInputs(report, OLD, make_comparison(), FACTS, values, 1), **changes)


def gate(decision: GateDecision, name: str = "champion_non_inferior") -> GateResult:
    return next(gate for gate in decision.gates if gate.name == name)


def test_a_champion_of_older_judgements_is_compared_by_its_answers_to_todays() -> None:
    decision = decide(evidence(), POLICY)
    assert decision.verdict == "pass"
    assert "Both were asked in one run, each with the documents that it serves." in gate(decision).reason
    worse = decide(evidence(champion=0.74), POLICY)
    assert {gate.name for gate in worse.open_gates()} == {"champion_non_inferior"}  # 0.05 is what a slice may lose
    assert gate(worse).value == pytest.approx(-0.04)


def test_the_run_counts_also_where_the_registered_evaluation_is_comparable() -> None:
    assert gate(decide(evidence(champion=0.75, baseline=make_evaluation()), POLICY)).status == "fail"
    assert gate(decide(evidence(champion=0.70, baseline=make_evaluation({**GOOD, "student": 0.75})), POLICY)).status == "pass"


def test_a_champion_that_was_not_asked_is_compared_by_its_evaluation_or_not_at_all() -> None:
    unasked = evidence(values=None, comparison=None, facts=FACTS.model_copy(update={"uncompared": "Its files are gone. Restore them."}))
    decision = decide(unasked, POLICY)
    assert decision.verdict == "not_decidable"
    for name in ("champion_non_inferior", "champion_p95", "champion_qps"):
        assert gate(decision, name).status == "not_decidable"
        assert "Its files are gone. Restore them." in gate(decision, name).reason
    assert gate(decision, "champion_non_inferior[half=even]").status == "not_decidable"
    assert "the reason that champion_non_inferior gives" in gate(decision, "champion_non_inferior[half=even]").reason
    assert "Build the candidate again" in gate(decide(replace(unasked, facts=FACTS), POLICY)).reason
    same = gate(decide(replace(unasked, baseline=make_evaluation()), POLICY))
    assert (same.status, "From the evaluations of both" in same.reason) == ("pass", True)


def test_a_decision_is_made_again_from_the_values_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    folder = tmp_path / str(World(tracking, tmp_path).candidate()) / "candidate"
    found = evidence(champion=0.74)
    assert found.values is not None
    empty = pd.DataFrame(columns=[*SIDE_COLUMNS, *AGREEMENT_COLUMNS])
    (folder / COMPARISON_FOLDER).mkdir()
    write_comparison(folder / COMPARISON_FOLDER, make_comparison(), ComparisonTables(found.values, empty, empty))
    report = load_evaluation(folder / EVALUATION_FOLDER)
    stated = decide(replace(found, report=report), POLICY)
    config = {"policy": POLICY.model_dump(mode="json")}
    manifest = load_release(folder).model_copy(update={"decision": stated, "baseline_version": 1, "config": config})
    assert decide_on("retriever", manifest, folder, lambda _: OLD) == stated
    # A decision of an older version was made without them, though they lay there: it has to come out as it did.
    before = stated.model_copy(update={"inputs": {name: digest for name, digest in stated.inputs.items() if name != "comparison_values"}})
    again = decide_on("retriever", manifest.model_copy(update={"decision": before}), folder, lambda _: OLD)
    assert (gate(stated).status, gate(again).status) == ("fail", "not_decidable")
    assert set(again.inputs) == set(before.inputs)
    first = stated.model_copy(update={"method": 1})
    older = manifest.model_copy(update={"decision": first})
    assert decide_on("retriever", older, folder, lambda _: OLD).method == 1


def rows(column: str, value: Any, count: int = 1, system: str = "champion") -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Put `value` into a column of the first rows of a system's nDCG@10."""

    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        chosen = table.index[(table["system"] == system) & (table["metric"] == "ndcg@10")][:count]
        table.loc[chosen, column] = value
        return table

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda table: table.iloc[:0], "no ndcg@10 of the candidate"),
        (lambda table: table[table["system"] != "champion"], "no ndcg@10 of the champion"),
        (lambda table: table.iloc[:-1], "39 of 40"),
        (rows("value", np.nan), "not a number for 1 queries"),
        (rows("value", -np.inf), "not a number"),
        (rows("query_id", "q001"), "more than one"),
        (rows("query_id", "another"), "different queries"),
        (rows("system", "somebody"), "39 of 40"),
        (rows("value", 0.0, 40, "candidate"), "measured something else"),
        (rows("value", np.nan, 1, "candidate"), "not a number"),
    ],
)
def test_values_that_are_missing_or_strange_decide_nothing(spoil: Callable[[pd.DataFrame], pd.DataFrame], words: str) -> None:
    found = evidence()
    assert found.values is not None
    decision = decide(replace(found, values=spoil(found.values.copy())), POLICY)
    assert words in gate(decision).reason
    for name in ("champion_non_inferior", "champion_non_inferior[half=even]", "champion_non_inferior[half=odd]"):
        assert gate(decision, name).status == "not_decidable"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline_version": 2}, "compared with release/2, which is not the champion"),
        ({"judgements_digest": "j7"}, "other judgements"),
        ({"queries": 39}, "other judgements"),
        (None, "without the comparison"),
    ],
)
def test_a_comparison_of_another_champion_or_other_judgements_decides_nothing(changes: dict[str, Any] | None, words: str) -> None:
    comparison = None if changes is None else make_comparison().model_copy(update=changes)
    decision = decide(evidence(comparison=comparison), POLICY)
    assert words in gate(decision).reason
    names = ("champion_non_inferior", "champion_non_inferior[half=even]", "champion_p95", "champion_qps")
    assert {gate(decision, name).status for name in names} == {"not_decidable"}


@pytest.mark.parametrize("changes", [{"queries": 0}, {"queries": 1}, {"batch_size": 1}])
def test_times_of_no_or_other_queries_or_of_other_batches_decide_nothing(changes: dict[str, int]) -> None:
    comparison = make_comparison()
    comparison = comparison.model_copy(update={"champion": comparison.champion.model_copy(update=changes)})
    decision = decide(evidence(comparison=comparison), POLICY)
    assert {gate(decision, name).status for name in ("champion_p95", "champion_qps")} == {"not_decidable"}


@pytest.mark.parametrize("how", ["missing", "nan", "above 1", "doubled"])
def test_a_slice_is_not_spared_by_a_share_of_served_documents_that_is_none(how: str) -> None:
    found = evidence(served=np.ones(40))
    table = found.values
    assert table is not None
    odd = (table["metric"] == SERVED) & table["query_id"].isin(sorted(set(table["query_id"]))[1::2])
    worse = (table["metric"] == "ndcg@10") & (table["system"] == "champion") & table["query_id"].isin(table.loc[odd, "query_id"])
    table = table.assign(value=table["value"] + 0.15 * worse)  # the champion is far better in one half
    assert gate(decide(replace(found, values=table), POLICY), "champion_non_inferior[half=odd]").status == "fail"
    spoiled = {
        "missing": table[~odd],
        "nan": table.assign(value=table["value"].where(~odd)),
        "above 1": table.assign(value=table["value"] + 1.0 * odd),
        "doubled": pd.concat([table, table[odd].assign(value=0.0)]),
    }[how]
    assert gate(decide(replace(found, values=spoiled), POLICY), KNOWN).status == "not_decidable"


def test_documents_that_the_champion_lacks_are_told_and_hide_no_loss_on_the_others() -> None:
    served = np.where(np.arange(40) < 20, 1.0, 0.0)
    assert KNOWN not in {gate.name for gate in decide(evidence(served=np.ones(40)), POLICY).gates}
    fair = decide(evidence(served=served), POLICY)
    assert (fair.verdict, gate(fair, KNOWN).queries) == ("pass", 20)
    assert "For 20 of the queries the champion lacks a relevant document" in gate(fair).reason
    halves = gate(fair, "champion_non_inferior[half=the others]")  # ten known queries in each half are too few alone
    assert (halves.status, halves.queries) == ("pass", 20)
    hidden = evidence(served=served)
    assert hidden.values is not None
    table = hidden.values.copy()
    ours = (table["system"] == "champion") & (table["metric"] == "ndcg@10")
    gaps = np.where(np.arange(40) < 20, 0.03, -0.3)  # it was better by 0.03 on what it knows, and finds little of the rest
    table.loc[ours, "value"] = table.loc[ours, "value"].to_numpy() + gaps
    decision = decide(replace(hidden, values=table), POLICY)
    assert gate(decision).status == "pass"
    assert (gate(decision, KNOWN).status, decision.verdict) == ("fail", "fail")
    assert gate(decision, KNOWN).threshold == -POLICY.margin


def test_new_documents_take_no_power_away_from_an_equal_candidate() -> None:
    served = np.where(np.arange(40) < 30, 1.0, 0.0)
    found = evidence(served=served)
    assert found.values is not None
    table = found.values.copy()
    ours = (table["system"] == "champion") & (table["metric"] == "ndcg@10")
    table.loc[ours, "value"] = np.where(served == 1, table.loc[ours, "value"], 0.0)
    decision = decide(replace(found, values=table), POLICY)
    assert decision.verdict == "pass"
    assert gate(decision).power == pytest.approx(1.0)
    assert gate(decision).value is not None and gate(decision).value > 0  # type: ignore[operator]


def test_a_slice_that_is_new_to_the_champion_is_shown_and_not_judged() -> None:
    found = evidence(served=np.where(np.arange(40) < 20, 1.0, 0.0))
    ids = [f"q{n:03d}" for n in range(40)]
    slices = pd.DataFrame({"query_id": ids, "dimension": "domain", "slice": ["old"] * 20 + ["new"] * 20})
    found = replace(found, report=replace(found.report, slices=slices))
    decision = decide(found, POLICY)
    fresh = gate(decision, "champion_non_inferior[domain=new]")
    assert (decision.verdict, fresh.status, fresh.queries) == ("pass", "off", 20)
    assert "lacks the documents of all its 20 queries" in fresh.reason
    for required in ("domain=new", "domain"):
        assert decide(found, POLICY.model_copy(update={"required_slices": (required,)})).verdict == "not_decidable"


def test_a_champion_of_another_collection_decides_nothing() -> None:
    decision = decide(evidence(served=np.zeros(40)), POLICY)
    assert gate(decision).status == gate(decision, KNOWN).status == "not_decidable"
    assert "serves none of the documents" in gate(decision).reason
    few = np.where(np.arange(40) < 5, 1.0, 0.0)
    assert gate(decide(evidence(served=few), POLICY), KNOWN).status == "not_decidable"
