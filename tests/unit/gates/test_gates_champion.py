"""The gates against the champion: non-inferiority with power, overall and in slices, and speed in the same run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.errors import ArtifactError
from components.evaluation.report import Evaluation
from components.evaluation.units import Units
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs, decide
from components.gates.decision import GateResult
from components.gates.measures import METHOD
from tests.unit.promotion_world import FACTS, GOOD, make_comparison, make_evaluation

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15)


def decided(report: Evaluation, baseline: Evaluation | None, policy: PolicyConfig = POLICY, **changes: Any) -> GateDecision:
    evidence = GateInputs(report, baseline, make_comparison(queries=report.summary.queries), FACTS, champion=1)
    return decide(replace(evidence, **changes), policy)


def gate(decision: GateDecision, name: str) -> GateResult:
    return next(gate for gate in decision.gates if gate.name == name)


def named(decision: GateDecision, start: str) -> list[GateResult]:
    return [gate for gate in decision.gates if gate.name.startswith(start)]


def shifted(gaps: np.ndarray) -> Evaluation:
    """A report whose student differs from that of `make_evaluation` by these values per query."""
    report = make_evaluation(queries=len(gaps))
    rows = report.per_query
    chosen = (rows["system"] == "student") & (rows["metric"] == "ndcg@10")
    rows.loc[chosen, "value"] = rows.loc[chosen, "value"].to_numpy() + gaps
    mean = float(rows.loc[chosen, "value"].mean())
    systems = dict(report.summary.systems)
    systems["student"] = systems["student"].model_copy(update={"metrics": {**systems["student"].metrics, "ndcg@10": mean}})
    return replace(report, summary=report.summary.model_copy(update={"systems": systems}))


def in_slices(report: Evaluation, **sizes: int) -> Evaluation:
    """The report with one dimension, `language`, of these slices and numbers of queries."""
    names = [name for name, size in sizes.items() for _ in range(size)]
    ids = sorted(report.per_query["query_id"].unique())[: len(names)]
    return replace(report, slices=pd.DataFrame({"query_id": ids, "dimension": "language", "slice": names}))


@pytest.mark.parametrize("margin", [1e-9, 1e-200, 5e-324])
def test_a_margin_of_next_to_nothing_decides_nothing_and_ends_in_no_traceback(margin: float) -> None:
    """0 is refused as a setting; of less than 1e-154 no number of queries could be told, and the training was over by then."""
    policy = POLICY.model_copy(update={"margin": margin, "slice_margin": margin})
    decision = decided(shifted(np.tile([-0.1, 0.1, 0.1, -0.1], 50)), make_evaluation(queries=200), policy)
    result = gate(decision, "champion_non_inferior")
    assert result.status == "not_decidable"
    assert "That takes more than 1,000,000,000,000 queries, or a larger margin" in result.reason


def test_too_little_power_decides_nothing_even_when_the_interval_is_on_the_right_side() -> None:
    gaps = np.tile([-0.1, 0.1], 100) + 0.03  # better by 0.03 with an interval from about 0.018: shown, but by luck as much as by merit
    result = gate(decided(shifted(gaps), make_evaluation(queries=200)), "champion_non_inferior")
    assert (result.status, result.queries) == ("not_decidable", 200)
    assert result.value is not None and result.value > 0
    assert result.power is not None and result.power == pytest.approx(0.408, abs=0.01)
    assert "about 623 queries" in result.reason
    unasked = POLICY.model_copy(update={"min_power": None})
    assert gate(decided(shifted(gaps), make_evaluation(queries=200), unasked), "champion_non_inferior").status == "pass"


def test_a_loss_that_is_shown_fails_however_little_power_there_is() -> None:
    gaps = np.tile([-0.1, 0.1], 20) - 0.2
    result = gate(decided(shifted(gaps), make_evaluation()), "champion_non_inferior")
    assert result.status == "fail"
    assert result.power is not None and result.power < 0.2
    assert "Shown to be worse" in result.reason


def test_one_bad_slice_fails_though_the_mean_over_all_is_fine() -> None:
    gaps = np.where(np.arange(400) % 20 == 0, -0.1, 0.005)
    report = in_slices(shifted(gaps), latin=400)
    bad = pd.DataFrame({"query_id": [f"q{n:03d}" for n in range(0, 400, 20)], "dimension": "word", "slice": "rare"})
    assert report.slices is not None
    both = replace(report, slices=pd.concat([report.slices, bad], ignore_index=True))
    decision = decided(both, make_evaluation(queries=400))
    assert gate(decision, "champion_non_inferior").status == "pass"
    result = gate(decision, "champion_non_inferior[word=rare]")
    assert (result.status, result.slice, result.queries, result.threshold) == ("fail", "word=rare", 20, -0.05)
    assert decision.verdict == "fail"


def test_a_slice_that_is_called_the_others_hides_none_that_are_judged_together() -> None:
    report = in_slices(make_evaluation(), latin=20, greek=10, thai=10)
    assert report.slices is not None
    named_so = report.slices.assign(slice=report.slices["slice"].where(report.slices["slice"] != "latin", "the others"))
    found = named(decided(replace(report, slices=named_so), make_evaluation()), "champion_non_inferior[")
    assert [gate.slice for gate in found] == ["language=the others", "language=the others together"]


def test_small_slices_are_judged_together() -> None:
    decision = decided(in_slices(make_evaluation(), latin=20, greek=10, thai=10), make_evaluation())
    found = {gate.slice: (gate.status, gate.queries) for gate in named(decision, "champion_non_inferior[")}
    assert found == {"language=latin": ("pass", 20), "language=the others": ("pass", 20)}


def test_slices_that_are_too_small_even_together_are_shown_and_not_judged() -> None:
    decision = decided(in_slices(make_evaluation(), latin=38, thai=2), make_evaluation())
    result = gate(decision, "champion_non_inferior[language=thai]")
    assert (result.status, result.queries) == ("off", 2)
    assert "2 queries, fewer than the 15" in result.reason
    assert decision.verdict == "pass"


@pytest.mark.parametrize("required", [("language=thai",), ("language",), ("language=klingon",), ("domain",)])
def test_a_required_slice_that_is_small_or_empty_is_never_passed_over(required: tuple[str, ...]) -> None:
    policy = POLICY.model_copy(update={"required_slices": required})
    decision = decided(in_slices(make_evaluation(), latin=38, thai=2), make_evaluation(), policy)
    assert decision.verdict == "not_decidable"
    assert len(decision.open_gates()) == 1


def test_a_dimension_without_any_slice_large_enough_is_not_decidable() -> None:
    decision = decided(in_slices(make_evaluation(), latin=8, thai=6), make_evaluation())
    assert [(gate.slice, gate.status) for gate in decision.open_gates()] == [("language=the others", "not_decidable")]


@pytest.mark.parametrize("slices", [None, pd.DataFrame(columns=["query_id", "dimension", "slice"])])
def test_a_report_without_slices_is_not_decidable(slices: pd.DataFrame | None) -> None:
    decision = decided(replace(make_evaluation(), slices=slices), make_evaluation())
    assert [gate.name for gate in decision.open_gates()] == ["champion_non_inferior[all]"]
    unasked = POLICY.model_copy(update={"slice_margin": None})
    assert decided(replace(make_evaluation(), slices=slices), make_evaluation(), unasked).verdict == "pass"


def test_slices_of_other_queries_are_not_decidable() -> None:
    strange = pd.DataFrame({"query_id": ["x"], "dimension": "language", "slice": "latin"})
    assert decided(replace(make_evaluation(), slices=strange), make_evaluation()).verdict == "not_decidable"


def test_a_slice_needs_power_too() -> None:
    gaps = np.tile([-0.15, 0.15], 1000)
    report = in_slices(shifted(gaps), latin=1980, thai=20)
    decision = decided(report, make_evaluation(queries=2000), POLICY.model_copy(update={"margin": 0.02}))
    assert gate(decision, "champion_non_inferior").status == "pass"
    assert gate(decision, "champion_non_inferior[language=thai]").status == "not_decidable"


@pytest.mark.parametrize(
    ("comparison", "failing"),
    [({"p95_ms": 3.1}, ["champion_p95"]), ({"qps": 60.0}, ["champion_qps"]), ({"p95_ms": 2.9, "qps": 70.0}, [])],
)
def test_speed_is_held_against_the_champion_of_the_same_run(comparison: dict[str, float], failing: list[str]) -> None:
    decision = decided(make_evaluation(), make_evaluation(), comparison=make_comparison(**comparison))
    assert [gate.name for gate in decision.open_gates()] == failing


def test_times_that_are_missing_or_of_another_evaluation_are_not_decidable() -> None:
    other = make_comparison().model_copy(update={"judgements_digest": "j2"})
    still = make_comparison(p95_ms=0.0, qps=0.0)
    for comparison in (None, other, still):
        decision = decided(make_evaluation(), make_evaluation(), comparison=comparison)
        counted = [] if comparison is still else [("removed_documents", "not_decidable")]
        assert [(gate.name, gate.status) for gate in decision.open_gates()] == [
            ("champion_p95", "not_decidable"),
            ("champion_qps", "not_decidable"),
            *counted,
        ]


def test_a_first_release_is_marked_in_every_gate_against_the_champion() -> None:
    decision = decided(make_evaluation(), None)
    names = {gate.name for gate in decision.gates if gate.status == "first_release"}
    assert names == {"champion_non_inferior", "champion_non_inferior_in_slices", "champion_p95", "champion_qps"}
    assert decision.verdict == "pass"


def test_every_gate_has_a_name_of_its_own_and_says_why() -> None:
    decision = decided(in_slices(make_evaluation(GOOD), latin=20, greek=20), make_evaluation())
    names = [gate.name for gate in decision.gates]
    assert len(names) == len(set(names))
    assert all(gate.reason.endswith(".") for gate in decision.gates)


def in_units(report: Evaluation, numbers: np.ndarray) -> Evaluation:
    """The report, its queries drawn in these units."""
    ids = sorted(report.per_query["query_id"].unique())
    return replace(report, units=Units(tuple(ids), numbers).table(report.summary.split))


def test_queries_that_were_drawn_together_decide_together() -> None:
    """Twenty copies of ten queries: by single queries the gate passes, by units it knows that ten are too few."""
    gaps = np.tile(np.repeat([-0.02, 0.02], 20), 10)
    report, champion = shifted(gaps), make_evaluation(queries=400)
    policy = POLICY.model_copy(update={"slice_margin": None})
    assert gate(decided(report, champion, policy), "champion_non_inferior").status == "pass"
    result = gate(decided(in_units(report, np.arange(400) // 20), champion, policy), "champion_non_inferior")
    assert result.status == "not_decidable"
    assert "400 queries in 20 units" in result.reason and "queries in units like these" in result.reason
    single = gate(decided(in_units(report, np.arange(400)), champion, policy), "champion_non_inferior")
    assert single == gate(decided(report, champion, policy), "champion_non_inferior")


def test_slices_know_the_units_of_their_queries() -> None:
    gaps = np.tile(np.repeat([-0.1, 0.1], 20), 10)
    report, champion = in_slices(shifted(gaps), latin=200, thai=200), make_evaluation(queries=400)
    both = (report, in_units(report, np.arange(400) // 20))
    alone, grouped = (gate(decided(found, champion), "champion_non_inferior[language=thai]") for found in both)
    assert alone.power is not None and grouped.power is not None and grouped.power < 0.5 < alone.power
    assert "200 queries in 10 units" in grouped.reason


def test_all_queries_in_one_unit_decide_nothing_and_say_why() -> None:
    report, policy = in_units(make_evaluation(), np.zeros(40, np.int64)), POLICY.model_copy(update={"slice_margin": None})
    decision = decided(report, make_evaluation(), policy)
    opened = {gate.name: gate for gate in decision.open_gates()}
    assert decision.verdict == "not_decidable"
    assert {"champion_non_inferior", "retention", "beats_bm25"} <= set(opened)
    assert all("All these queries are one unit" in gate.reason for gate in opened.values())


def test_units_that_lack_a_query_are_not_decidable() -> None:
    report = in_units(make_evaluation(), np.arange(40))
    assert report.units is not None
    decision = decided(replace(report, units=report.units.iloc[1:]), make_evaluation())
    assert "does not say which unit" in gate(decision, "champion_non_inferior").reason
    assert decision.verdict == "not_decidable"


def test_units_are_an_input_of_the_decision_and_their_lack_is_none() -> None:
    report = make_evaluation()
    before, after = (decided(found, make_evaluation()).inputs["evaluation"] for found in (report, in_units(report, np.arange(40))))
    assert before != after
    assert before == decided(replace(report, units=None), make_evaluation()).inputs["evaluation"]


MOSTLY_ONE = np.repeat(np.arange(24), [366, *[2] * 11, *[1] * 12])  # of 400 queries


def test_power_counts_a_unit_of_nearly_all_queries_as_one_and_old_decisions_are_made_again_as_they_were() -> None:
    gaps = np.where(MOSTLY_ONE == 0, 0.006, 0.0) + np.tile([-0.05, 0.05], 200)
    report, policy = in_units(shifted(gaps), MOSTLY_ONE), POLICY.model_copy(update={"slice_margin": None})
    evidence = GateInputs(report, make_evaluation(queries=400), make_comparison(queries=400), FACTS, champion=1)
    now, before = decide(evidence, policy), decide(evidence, policy, 1)
    assert (now.method, before.method, now.policy_digest) == (METHOD, 1, before.policy_digest)
    found, former = (gate(decision, "champion_non_inferior") for decision in (now, before))
    assert (found.status, former.status) == ("not_decidable", "pass") and found.value == former.value
    assert found.power is not None and former.power is not None and found.power < 0.8 < former.power
    assert decide(evidence, policy) == now and GateDecision.model_validate({**before.model_dump(exclude={"method"})}) == before
    with pytest.raises(ArtifactError, match=f"by the method {METHOD + 1}, and this version knows those up to {METHOD}"):
        decide(evidence, policy, METHOD + 1)


@pytest.mark.parametrize(("units", "status"), [(4, "not_decidable"), (5, "pass")])
def test_few_units_that_all_say_the_same_decide_nothing(units: int, status: str) -> None:
    report = in_units(shifted(np.zeros(400)), np.arange(400) * units // 400)
    evidence = GateInputs(report, make_evaluation(queries=400), make_comparison(queries=400), FACTS, champion=1)
    result = gate(decide(evidence, POLICY), "champion_non_inferior")
    assert result.status == status
    assert status == "pass" or ("All 4 units of these queries say the same, 0.0000" in result.reason and "at least 5" in result.reason)
    assert gate(decide(evidence, POLICY, 1), "champion_non_inferior").status == "pass"
    assert gate(decide(evidence, POLICY), "ann_recall").status == "pass"
