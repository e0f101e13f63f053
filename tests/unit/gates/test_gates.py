"""The gates: every way to pass, to fail, and to be unable to decide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from components.evaluation.report import Evaluation
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs
from components.gates.decide import decide as decide_on
from components.gates.decision import GateResult
from tests.unit.promotion_world import FACTS, GOOD, make_comparison, make_evaluation, with_ann

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15)


def decide(report: Evaluation, baseline: Evaluation | None, policy: PolicyConfig) -> GateDecision:
    comparison = make_comparison(queries=report.summary.queries) if baseline else None
    return decide_on(GateInputs(report, baseline, comparison, FACTS, champion=1 if baseline else None), policy)


def gate(decision: GateDecision, name: str) -> GateResult:
    return next(gate for gate in decision.gates if gate.name == name)


def with_summary(report: Evaluation, **changes: Any) -> Evaluation:
    return replace(report, summary=report.summary.model_copy(update=changes))


def without(report: Evaluation, system: str) -> Evaluation:
    return replace(report, per_query=report.per_query[report.per_query["system"] != system])


def test_good_first_release_passes_and_says_that_a_person_is_needed() -> None:
    decision = decide(make_evaluation(), None, POLICY)
    assert (decision.verdict, decision.first_release) == ("pass", True)
    champion = gate(decision, "champion_non_inferior")
    assert champion.status == "first_release"
    assert "person" in champion.reason
    assert decision.open_gates() == []


def test_good_candidate_passes_against_an_equal_champion() -> None:
    decision = decide(make_evaluation(), make_evaluation(), POLICY)
    assert {gate.name for gate in decision.gates if gate.status != "pass"} == {"off_distribution_retention", "policy", "units"}  # not asked
    assert decision.verdict == "pass"
    assert not decision.first_release
    assert gate(decision, "champion_non_inferior").threshold == -POLICY.margin


def test_same_input_gives_the_same_decision_and_survives_json() -> None:
    first = decide(make_evaluation(), make_evaluation(), POLICY)
    assert first == decide(make_evaluation(), make_evaluation(), POLICY)
    assert GateDecision.model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize(
    ("levels", "names"),
    [
        ({**GOOD, "student": 0.60}, ["retention"]),
        ({**GOOD, "bm25": 0.70}, ["beats_bm25"]),
        ({**GOOD, "bm25": 0.75}, ["beats_bm25", "teacher_worth[bm25]"]),
        ({**GOOD, "student_untrained": 0.71}, ["beats_untrained"]),
    ],
)
def test_bad_level_fails_its_gate(levels: dict[str, float], names: list[str]) -> None:
    decision = decide(make_evaluation(levels), None, POLICY)
    assert decision.verdict == "fail"
    assert [gate.name for gate in decision.open_gates()] == names


def test_a_higher_mean_alone_does_not_beat_bm25() -> None:
    report = make_evaluation({**GOOD, "bm25": 0.69})
    rows = report.per_query
    for metric in ("ndcg@10", "recall@50"):
        rows.loc[(rows["system"] == "bm25") & (rows["metric"] == metric), "value"] = 0.69 + np.tile([-0.3, 0.3], 20)
    result = gate(decide(report, None, POLICY), "beats_bm25")
    assert result.status == "fail"
    assert result.value is not None and result.value < 0


def test_slow_student_fails() -> None:
    assert gate(decide(make_evaluation(speed_up=0.9), None, POLICY), "speed_up").status == "fail"


def test_worse_than_the_champion_by_more_than_the_margin_fails() -> None:
    better = make_evaluation({**GOOD, "student": 0.715})
    result = gate(decide(make_evaluation(), better, POLICY), "champion_non_inferior")
    assert (result.status, result.value) == ("fail", pytest.approx(-0.015))
    within = make_evaluation({**GOOD, "student": 0.705})
    assert gate(decide(make_evaluation(), within, POLICY), "champion_non_inferior").status == "pass"


def test_champion_on_other_judgements_is_not_decidable() -> None:
    decision = decide(make_evaluation(), make_evaluation(judgements="j2"), POLICY)
    assert decision.verdict == "not_decidable"
    assert "other judgements" in gate(decision, "champion_non_inferior").reason


def test_champion_without_the_metric_is_not_decidable() -> None:
    decision = decide(make_evaluation(), without(make_evaluation(), "student"), POLICY)
    assert gate(decision, "champion_non_inferior").status == "not_decidable"
    assert "champion" in gate(decision, "champion_non_inferior").reason


@pytest.mark.parametrize(
    ("system", "names"),
    [
        ("teacher", {"retention", "teacher_worth[bm25]", "teacher_worth[student_untrained]"}),
        ("bm25", {"beats_bm25", "teacher_worth[bm25]"}),
        ("student_untrained", {"beats_untrained", "teacher_worth[student_untrained]"}),
        ("student", {"retention", "beats_bm25", "beats_untrained"}),
    ],
)
def test_missing_system_is_never_a_pass(system: str, names: set[str]) -> None:
    for report in (without(make_evaluation(), system), make_evaluation({k: v for k, v in GOOD.items() if k != system})):
        decision = decide(report, None, POLICY)
        assert decision.verdict == "not_decidable"
        assert {gate.name for gate in decision.open_gates()} == names


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_not_decidable(bad: float) -> None:
    report = make_evaluation()
    report.per_query.loc[(report.per_query["system"] == "bm25") & (report.per_query["query_id"] == "q003"), "value"] = bad
    result = gate(decide(report, None, POLICY), "beats_bm25")
    assert result.status == "not_decidable"
    assert "not a number for 1 queries" in result.reason


def test_missing_queries_are_not_averaged_away() -> None:
    report = make_evaluation()
    kept = report.per_query[~((report.per_query["system"] == "student") & (report.per_query["query_id"] == "q003"))]
    result = gate(decide(replace(report, per_query=kept), None, POLICY), "beats_bm25")
    assert result.status == "not_decidable"
    assert "39 of 40" in result.reason


def test_doubled_query_is_not_decidable() -> None:
    report = make_evaluation()
    rows = report.per_query.copy()
    rows.loc[(rows["system"] == "student") & (rows["query_id"] == "q003"), "query_id"] = "q002"
    assert "more than one" in gate(decide(replace(report, per_query=rows), None, POLICY), "beats_bm25").reason


def test_empty_report_is_not_decidable() -> None:
    report = make_evaluation()
    empty = replace(report, per_query=report.per_query.iloc[:0])
    decision = decide(empty, None, POLICY)
    assert decision.verdict == "not_decidable"
    assert gate(decision, "enough_queries").status == "not_decidable"


def test_too_few_queries_is_not_decidable() -> None:
    decision = decide(make_evaluation(queries=19), None, POLICY)
    assert decision.verdict == "not_decidable"
    assert "at least 20" in gate(decision, "enough_queries").reason


def test_summary_that_tells_another_story_is_not_decidable() -> None:
    report = make_evaluation()
    systems = {**report.summary.systems, "bm25": report.summary.systems["student_untrained"]}
    assert "states" in gate(decide(with_summary(report, systems=systems), None, POLICY), "beats_bm25").reason
    retention = with_summary(report, retention={"recall@50": 1.2})
    assert gate(decide(retention, None, POLICY), "retention").status == "not_decidable"


@pytest.mark.parametrize("changes", [{"speed": None}, {"retention": {}}, {"systems": {}}])
def test_missing_section_of_the_summary_is_not_decidable(changes: dict[str, Any]) -> None:
    assert decide(with_summary(make_evaluation(), **changes), None, POLICY).verdict == "not_decidable"


def test_speed_that_is_not_a_number_is_not_decidable() -> None:
    report = make_evaluation()
    assert report.summary.speed is not None
    speed = report.summary.speed.model_copy(update={"speed_up": float("nan")})
    assert gate(decide(with_summary(report, speed=speed), None, POLICY), "speed_up").status == "not_decidable"


@pytest.mark.parametrize("changes", [{"speed_up": 50.0}, {"student": 0.0}, {"teacher": 0.0}, {"teacher": 1000.0}])
def test_a_speed_up_that_is_not_that_of_the_two_speeds_beside_it_is_not_decidable(changes: dict[str, float]) -> None:
    report = make_evaluation()
    speed = report.summary.speed
    assert speed is not None and speed.teacher is not None
    told = {name: getattr(speed, name).model_copy(update={"qps": value}) for name, value in changes.items() if name != "speed_up"}
    told |= {name: value for name, value in changes.items() if name == "speed_up"}
    found = gate(decide(with_summary(report, speed=speed.model_copy(update=told)), None, POLICY), "speed_up")
    assert (found.status, "states a speed-up of" in found.reason) == ("not_decidable", True)


@pytest.mark.parametrize("value", [1.5, -0.5, "much", None])
def test_a_value_that_is_no_share_is_not_decidable_whatever_the_mean(value: Any) -> None:
    report = make_evaluation()
    rows = report.per_query.astype({"value": object})
    chosen = rows.index[(rows["system"] == "student") & (rows["metric"] == "recall@50")]
    rows.loc[chosen[3], "value"] = value
    other = 2 * GOOD["student"] - value if isinstance(value, float) else GOOD["student"]
    rows.loc[chosen[4], "value"] = other + (rows.loc[chosen[4], "value"] + report.per_query.loc[chosen[3], "value"] - 2 * GOOD["student"])
    decision = decide(replace(report, per_query=rows), None, POLICY)
    assert gate(decision, "retention").status == gate(decision, "beats_bm25").status == "not_decidable"


def test_teacher_that_finds_nothing_is_not_decidable() -> None:
    report = make_evaluation()
    rows = report.per_query.copy()
    rows.loc[rows["system"] == "teacher", "value"] = 0.0
    systems = {**report.summary.systems}
    systems["teacher"] = systems["teacher"].model_copy(update={"metrics": {"recall@50": 0.0, "ndcg@10": 0.0}})
    changed = with_summary(replace(report, per_query=rows), systems=systems)
    assert "nothing to retain" in gate(decide(changed, None, POLICY), "retention").reason


def test_a_failure_outweighs_what_cannot_be_decided() -> None:
    report = without(make_evaluation({**GOOD, "student": 0.60}), "bm25")
    assert decide(report, None, POLICY).verdict == "fail"


def test_gates_that_the_policy_switches_off_are_shown_as_off() -> None:
    policy = POLICY.model_copy(update={"beat_bm25": False, "beat_untrained": False, "teacher_worth": False})
    decision = decide(make_evaluation({k: GOOD[k] for k in ("student", "teacher")}), None, policy)
    assert decision.verdict == "pass"
    assert {gate(decision, name).status for name in ("beats_bm25", "beats_untrained", "teacher_worth")} == {"off"}


def test_an_index_that_loses_too_much_fails_its_own_gate_and_no_other() -> None:
    decision = decide(with_ann(make_evaluation(), np.full(40, 0.9)), make_evaluation(), POLICY)
    assert decision.verdict == "fail"
    assert [gate.name for gate in decision.open_gates()] == ["ann_recall"]
    result = gate(decision, "ann_recall")
    assert (result.value, result.threshold) == (pytest.approx(0.9), 0.95)
    assert "the index, not the models" in result.reason
    assert "90.0%" in result.reason and "40 queries" in result.reason


def test_worse_models_on_a_perfect_index_do_not_fail_the_gate_of_the_index() -> None:
    decision = decide(make_evaluation({**GOOD, "student": 0.2}), make_evaluation(), POLICY)
    assert {"retention", "champion_non_inferior"} <= {gate.name for gate in decision.open_gates()}
    assert (gate(decision, "ann_recall").status, gate(decision, "ann_recall").value) == ("pass", 1.0)


def test_the_lower_end_of_the_recall_decides_not_its_mean() -> None:
    spread = np.tile([1.0, 0.92], 20)
    result = gate(decide(with_ann(make_evaluation(), spread), None, POLICY), "ann_recall")
    # Standard error 0.04 / sqrt(40): one-sided at 95 % the lower end is 0.96 - 1.645 * 0.0063.
    assert result.value == pytest.approx(0.9496, abs=0.002)
    lenient = POLICY.model_copy(update={"min_ann_recall": 0.94})
    assert gate(decide(with_ann(make_evaluation(), spread), None, lenient), "ann_recall").status == "pass"
    strict = POLICY.model_copy(update={"min_ann_recall": 0.955})
    assert gate(decide(with_ann(make_evaluation(), spread), None, strict), "ann_recall").status == "fail"


def test_an_index_that_was_not_measured_is_not_decidable() -> None:
    measured = make_evaluation()
    for report in (with_summary(measured, ann=None), replace(measured, ann=None)):
        decision = decide(report, None, POLICY)
        assert decision.verdict == "not_decidable"
        assert [gate.name for gate in decision.open_gates()] == ["ann_recall"]
        assert "against exact search" in gate(decision, "ann_recall").reason


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda rows: rows.iloc[:39], "39 of 40"),
        (lambda rows: rows.iloc[:0], "0 of 40"),
        (lambda rows: rows.assign(metric="recall@10"), "0 of 40"),
        (lambda rows: rows.assign(query_id="q001"), "more than one"),
        (lambda rows: rows.assign(value=np.nan), "between 0 and 1"),
        (lambda rows: rows.assign(value=1.5), "between 0 and 1"),
        (lambda rows: rows.assign(value=0.97), "states"),
    ],
)
def test_a_strange_recall_of_the_index_is_not_decidable(spoil: Any, reason: str) -> None:
    measured = make_evaluation()
    result = gate(decide(replace(measured, ann=spoil(measured.ann)), None, POLICY), "ann_recall")
    assert result.status == "not_decidable"
    assert reason in result.reason


def test_the_gate_of_the_index_can_be_switched_off() -> None:
    policy = POLICY.model_copy(update={"min_ann_recall": None})
    decision = decide(replace(with_summary(make_evaluation(), ann=None), ann=None), None, policy)
    assert (decision.verdict, gate(decision, "ann_recall").status) == ("pass", "off")
