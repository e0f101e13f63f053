"""The policy as data: thresholds of the candidate alone, facts, its version and digest, and what a decision was made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.errors import ArtifactError, ConfigError
from components.evaluation.report import Evaluation, ExtraSummary, HealthSummary, UnitsSummary, load_evaluation, write_report
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs, decide, require_same_inputs
from components.gates.decision import FACTS_FILE, Findings, GateResult, load_facts, write_facts
from components.gates.measures import beside, signed
from components.gates.policy import policy_digest, recorded_policy
from flows.config import load_config
from tests.unit.promotion_world import FACTS, make_comparison, make_evaluation, make_values

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15)
SHIFTED = "off_distribution_retention[shifted]"


def decided(report: Evaluation, facts: Findings | None = FACTS, **changes: Any) -> GateDecision:
    return decide(GateInputs(report, None, None, facts), POLICY.model_copy(update=changes))


def gate(decision: GateDecision, name: str) -> GateResult:
    return next(gate for gate in decision.gates if gate.name == name)


def test_a_gate_of_an_older_version_that_took_dev_is_marked_wherever_it_is_told() -> None:
    result = GateResult(name="off_distribution_retention[dev]", status="pass", reason="The student keeps 97 %.", slice="dev")
    assert result.told == "NOT OFF THE DISTRIBUTION: Checkpoints were chosen on it, so its figures are too good. The student keeps 97 %."
    other = result.model_copy(update={"name": "off_distribution_retention[test_de]", "slice": "test_de"})
    assert (other.mark, other.told) == ("", "The student keeps 97 %.")


def off_distribution(levels: dict[str, float], queries: int = 40) -> Evaluation:
    """A report with an extra split `shifted`, on which every system has this recall@50 and nDCG@10."""
    report, other = make_evaluation(), make_evaluation(levels, queries)
    summary = ExtraSummary(queries=queries, judgements_digest="j9", systems={}, retention=other.summary.retention, retention_intervals={})
    extra = other.per_query.assign(split="shifted")
    return replace(report, extra=extra, summary=report.summary.model_copy(update={"extra": {"shifted": summary}}))


def test_retention_is_held_against_its_lower_end() -> None:
    report = make_evaluation()
    rows = report.per_query
    student = (rows["system"] == "student") & (rows["metric"] == "recall@50")
    rows.loc[student, "value"] = 0.70 + np.tile([-0.3, 0.3], 20)  # 97.2 % on the mean, with a standard error of some 6 %
    result = gate(decided(report), "retention")
    assert result.status == "fail"
    assert result.value is not None and result.value < 0.9
    assert "97.2%" in result.reason and "the lower end" in result.reason
    by_mean = gate(decided(report, retention_by="mean"), "retention")
    assert (by_mean.status, by_mean.value) == ("pass", pytest.approx(0.9722, abs=1e-3))


def test_retention_off_the_training_distribution_has_a_gate_for_each_split() -> None:
    good = gate(
        decided(off_distribution({"student": 0.70, "teacher": 0.72}), min_off_distribution_retention=0.9),
        "off_distribution_retention[shifted]",
    )
    assert (good.status, good.queries) == ("pass", 40)
    bad = decided(off_distribution({"student": 0.50, "teacher": 0.72}), min_off_distribution_retention=0.9)
    assert [gate.name for gate in bad.open_gates()] == [SHIFTED]
    assert bad.verdict == "fail"


def test_retention_off_the_training_distribution_that_was_not_measured_is_never_a_pass() -> None:
    measured = off_distribution({"student": 0.70, "teacher": 0.72})
    few = off_distribution({"student": 0.70, "teacher": 0.72}, queries=10)
    for report in (make_evaluation(), replace(measured, extra=None), few):
        decision = decided(report, min_off_distribution_retention=0.9)
        assert decision.verdict == "not_decidable"
    assert "shifted" in gate(decided(measured), "off_distribution_retention").reason  # switched off, but not passed over in silence


def test_floors_hold_the_lower_end_of_the_student() -> None:
    decision = decided(make_evaluation(), floors={"ndcg@10": 0.6, "recall@50": 0.69})
    assert gate(decision, "floor[ndcg@10]").status == "pass"
    low = gate(decision, "floor[recall@50]")
    assert low.status == "fail"
    assert low.value is not None and 0.6 < low.value < 0.69
    assert "0.7000" in low.reason
    assert gate(decided(make_evaluation(), floors={"mrr@10": 0.1}), "floor[mrr@10]").status == "not_decidable"


@pytest.mark.parametrize(
    ("floors", "words"), [({"ndcg@5": 0.3}, "ndcg@5' is not known; known are recall@1"), ({"ndcg@10": 3}, "between 0 and 1")]
)
def test_a_policy_with_an_unknown_metric_is_refused_before_anything_starts(floors: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=r"policy\.floors") as caught:
        load_config("demo", overrides={"policy": {"floors": floors}})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("health", "status"),
    [
        ({"teacher": (0.3, 100.0), "student": (0.45, 40.0)}, "pass"),
        ({"teacher": (0.3, 100.0), "student": (0.55, 40.0)}, "fail"),
        ({"teacher": (0.3, 100.0), "student": (0.3, 20.0)}, "fail"),
        ({"student": (0.3, 20.0)}, "not_decidable"),
        ({}, "not_decidable"),
    ],
)
def test_collapse_is_told_by_cosine_and_rank_beside_the_teacher(health: dict[str, tuple[float, float]], status: str) -> None:
    report = make_evaluation()
    found = {name: HealthSummary(mean_cosine=cosine, effective_rank=rank, queries=40) for name, (cosine, rank) in health.items()}
    result = gate(decided(replace(report, summary=report.summary.model_copy(update={"health": found}))), "not_collapsed")
    assert result.status == status


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"contract_errors": 1}, "contracts"),
        ({"lineage_gaps": ("The index (abc) is not described in the lineage.",)}, "lineage_complete"),
        ({"space_mismatches": ("The query encoder belongs to the space abc, the index def.",)}, "space_compatible"),
    ],
)
def test_facts_fail_their_gate_and_are_not_decidable_when_nobody_looked(changes: dict[str, Any], name: str) -> None:
    failed = decided(make_evaluation(), FACTS.model_copy(update=changes))
    assert [(gate.name, gate.status) for gate in failed.open_gates()] == [(name, "fail")]
    assert str(next(iter(changes.values()))).strip("(),'") in failed.open_gates()[0].reason
    unknown = decided(make_evaluation(), FACTS.model_copy(update=dict.fromkeys(changes)))
    assert [(gate.name, gate.status) for gate in unknown.open_gates()] == [(name, "not_decidable")]


def test_without_facts_nothing_passes() -> None:
    decision = decided(make_evaluation(), None)
    assert {gate.name for gate in decision.open_gates()} == {"contracts", "lineage_complete", "space_compatible"}
    assert decision.verdict == "not_decidable"


def test_facts_are_read_as_written_and_broken_ones_are_named(tmp_path: Path) -> None:
    assert load_facts(tmp_path) is None
    write_facts(tmp_path, FACTS)
    assert load_facts(tmp_path) == FACTS
    (tmp_path / FACTS_FILE).write_text('{"contract_errors": -1}')
    with pytest.raises(ArtifactError, match="contract_errors"):
        load_facts(tmp_path)
    (tmp_path / FACTS_FILE).write_text('{"schema_version": 99}')
    with pytest.raises(ArtifactError, match="schema version 99"):
        load_facts(tmp_path)


def test_the_decision_names_its_policy_and_its_inputs() -> None:
    evidence = GateInputs(make_evaluation(), make_evaluation(), make_comparison(), FACTS, champion=1)
    decision = decide(evidence, POLICY)
    assert decision.policy_version == POLICY.version
    assert decision.policy_digest == policy_digest(POLICY) == policy_digest(POLICY.model_dump(mode="json"))
    assert set(decision.inputs) == {"evaluation", "baseline", "comparison", "facts"}
    values = make_values(make_evaluation(), make_evaluation())
    assert set(decide(replace(evidence, values=values), POLICY).inputs) == {*decision.inputs, "comparison_values"}
    assert decide(evidence, POLICY.model_copy(update={"margin": 0.02})).policy_digest != decision.policy_digest


def test_any_other_input_has_another_digest_and_the_order_of_rows_none(tmp_path: Path) -> None:
    report = make_evaluation()
    before = decide(GateInputs(report, None), POLICY).inputs["evaluation"]
    assert decide(GateInputs(replace(report, per_query=report.per_query.iloc[::-1]), None), POLICY).inputs["evaluation"] == before
    write_report(tmp_path, report)
    assert decide(GateInputs(load_evaluation(tmp_path), None), POLICY).inputs["evaluation"] == before
    other = report.per_query.copy()
    other.loc[7, "value"] += 1e-12
    assert report.slices is not None
    moved = report.slices.assign(slice="all")
    for changed in (replace(report, per_query=other), replace(report, slices=moved), replace(report, ann=None)):
        assert decide(GateInputs(changed, None), POLICY).inputs["evaluation"] != before


def test_a_decision_that_was_made_from_something_else_is_named() -> None:
    stated = decide(GateInputs(make_evaluation(), None, None, FACTS), POLICY)
    require_same_inputs(stated, stated, policy_digest(POLICY))
    with pytest.raises(ArtifactError, match="names the policy"):
        require_same_inputs(stated, stated, policy_digest(POLICY.model_copy(update={"margin": 0.5})))
    other = decide(GateInputs(make_evaluation(), None, None, Findings()), POLICY)
    with pytest.raises(ArtifactError, match="made from the facts"):
        require_same_inputs(stated, other, policy_digest(POLICY))
    with pytest.raises(ArtifactError, match="made from the facts"):
        require_same_inputs(stated, decide(GateInputs(make_evaluation(), None), POLICY), policy_digest(POLICY))


def test_a_decision_of_an_older_version_is_read_and_decided_again_as_it_was() -> None:
    old = GateDecision.model_validate(
        {"verdict": "pass", "first_release": True, "gates": [{"name": "retention", "status": "pass", "reason": "x"}]}
    )
    assert (old.policy_digest, old.inputs) == (None, {})
    policy = recorded_policy({"policy": {"min_queries": 20, "margin": 0.01}})
    bare = replace(make_evaluation(), slices=None)
    bare = replace(bare, summary=bare.summary.model_copy(update={"health": {}}))
    again = decide(GateInputs(bare, make_evaluation()), policy)
    assert again.verdict == "pass"
    asked = {"enough_queries", "retention", "beats_bm25", "beats_untrained", "champion_non_inferior", "speed_up"}
    assert {gate.name for gate in again.gates if gate.status != "off"} == asked
    require_same_inputs(old, again, "any")


@pytest.mark.parametrize("config", [{}, {"policy": None}, {"policy": {"marginn": 1}}])
def test_a_manifest_without_a_valid_policy_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="policy"):
        recorded_policy(config)


def test_values_of_the_wrong_queries_are_not_averaged() -> None:
    report = off_distribution({"student": 0.70, "teacher": 0.72})
    assert report.extra is not None
    half = report.extra[~((report.extra["system"] == "student") & (report.extra["query_id"] < "q020"))]
    result = gate(
        decided(replace(report, extra=pd.DataFrame(half)), min_off_distribution_retention=0.9), "off_distribution_retention[shifted]"
    )
    assert result.status == "not_decidable"
    assert "20 of 40" in result.reason


def test_a_teacher_that_could_not_be_measured_leaves_its_gates_undecided_with_the_reason() -> None:
    report = make_evaluation()
    absent = report.summary.model_copy(update={"absent": {"teacher": "Its queries have no vectors."}})
    left = replace(report, summary=absent, per_query=report.per_query[report.per_query["system"] != "teacher"])
    decision = decided(left)
    for name in ("retention", "not_collapsed", "speed_up"):
        assert (gate(decision, name).status, gate(decision, name).reason) == ("not_decidable", "Its queries have no vectors.")
    assert decision.verdict == "not_decidable" and gate(decision, "beats_bm25").status == "pass"


def test_a_speed_up_that_nobody_asks_for_is_off() -> None:
    report = make_evaluation(speed_up=0.1)
    assert gate(decided(report), "speed_up").status == "fail"
    assert gate(decided(report, min_speed_up=None), "speed_up").status == "off"


@pytest.mark.parametrize(("switched_off", "left"), [("min_effective_rank_share", "at most"), ("max_mean_cosine_over_teacher", "at least")])
def test_either_sign_of_a_collapse_can_be_asked_for_alone(switched_off: str, left: str) -> None:
    found = gate(decided(make_evaluation(), **{switched_off: None}), "not_collapsed")
    assert found.status == "pass" and f"Asked: {left}" in found.reason


def test_queries_that_belong_together_and_count_one_by_one_leave_a_verdict_undecided_unless_the_policy_allows_it() -> None:
    units = UnitsSummary(rule="each", units=40, largest=1, words="each", taken_apart=7)
    whole = make_evaluation()
    report, policy = replace(whole, summary=whole.summary.model_copy(update={"units": units})), PolicyConfig(min_queries=20)

    def asked(policy: PolicyConfig, taken_apart: int = 7) -> tuple[str, str]:
        told = units.model_copy(update={"taken_apart": taken_apart})
        evidence = GateInputs(replace(report, summary=report.summary.model_copy(update={"units": told})), facts=FACTS)
        decision = decide(evidence, policy)
        return next(gate.status for gate in decision.gates if gate.name == "units"), decision.verdict

    assert asked(policy)[0] == "not_decidable" and asked(policy)[1] != "pass"
    assert asked(policy, 0)[0] == "pass"
    recorded = {key: value for key, value in policy.model_dump(mode="json").items() if key != "own_units"}
    for lenient in (policy.model_copy(update={"own_units": False}), recorded_policy({"policy": recorded})):
        assert asked(lenient)[0] == "off"


def test_a_value_that_misses_its_threshold_does_not_read_as_if_it_reached_it() -> None:
    assert (beside(0.94996, 0.95, 1, percent=True), beside(0.95, 0.95, 1, percent=True)) == ("94.996%", "95.0%")
    assert (beside(1.5004, 1.5, 2), beside(1.4996, 1.5, 2), beside(0.7, 0.65, 4)) == ("1.5004", "1.4996", "0.7000")
    assert (beside(0.3 - 1e-15, 0.3, 4), signed(-0.05004, -0.05, 4), signed(0.0, 0.0, 4)) == ("0.3000", "-0.05004", "+0.0000")
    report = make_evaluation(speed_up=1.9996)
    speed_up = gate(decided(report, min_speed_up=2.0), "speed_up")
    assert speed_up.status == "fail" and "1.9996 times as many queries per second as the teacher; 2 is asked" in speed_up.reason
