"""Gates against the baselines: both metrics, the teacher's worth, and how decisions of older policies stay as they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from components.errors import ConfigError
from components.evaluation.report import Evaluation
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs, decide, require_measured
from components.gates.decision import GateResult
from components.gates.policy import recorded_policy
from components.gates.quality import quality_gates
from flows.config import load_config
from tests.unit.promotion_world import FACTS, GOOD, make_evaluation

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15)
NOISE = np.tile([-0.12, 0.12], 20)  # over 40 queries: a standard error of .019


def evaluation(changes: Mapping[tuple[str, str], ArrayLike]) -> Evaluation:
    """The good evaluation with `changes` added to the values of (system, metric), and a summary that says the same."""
    report = make_evaluation(GOOD)
    rows, systems = report.per_query, dict(report.summary.systems)
    for (system, metric), added in changes.items():
        chosen = (rows["system"] == system) & (rows["metric"] == metric)
        rows.loc[chosen, "value"] += added
        mean = float(rows.loc[chosen, "value"].mean())
        systems[system] = systems[system].model_copy(update={"metrics": {**systems[system].metrics, metric: mean}})
    kept = systems["student"].metrics["recall@50"] / systems["teacher"].metrics["recall@50"]
    return replace(report, summary=report.summary.model_copy(update={"systems": systems, "retention": {"recall@50": kept}}))


def decided(report: Evaluation, policy: PolicyConfig = POLICY) -> GateDecision:
    return decide(GateInputs(report, facts=FACTS), policy)


def gate(decision: GateDecision, name: str) -> GateResult:
    return next(gate for gate in decision.gates if gate.name == name)


def test_a_student_that_is_worse_than_doing_nothing_in_recall_fails_though_its_ndcg_is_better() -> None:
    decision = decided(evaluation({("student_untrained", "recall@50"): 0.42}))
    result = gate(decision, "beats_untrained")
    assert (decision.verdict, result.status) == ("fail", "fail")
    assert result.reason.startswith("Not shown to be no worse in recall@50.")
    assert "nDCG@10 of the student minus student_untrained: +0.4000" in result.reason
    assert "recall@50 of the student minus student_untrained: -0.0200" in result.reason
    assert gate(decision, "beats_bm25").status == "pass"


@pytest.mark.parametrize("loss", [0.0, 0.005])
def test_better_in_one_metric_and_not_worse_in_the_other_passes(loss: float) -> None:
    result = gate(decided(evaluation({("bm25", "recall@50"): 0.30 + loss})), "beats_bm25")
    assert result.status == "pass"
    assert result.value == pytest.approx(0.30)  # the lower end of the metric in which it is better


def test_a_loss_within_a_wider_margin_of_the_policy_passes() -> None:
    report = evaluation({("bm25", "recall@50"): 0.32})
    assert gate(decided(report), "beats_bm25").status == "fail"
    assert gate(decided(report, POLICY.model_copy(update={"baseline_margin": 0.03})), "beats_bm25").status == "pass"


def test_better_in_none_fails() -> None:
    result = gate(decided(evaluation({("bm25", "recall@50"): 0.30, ("bm25", "ndcg@10"): 0.30})), "beats_bm25")
    assert result.status == "fail" and result.reason.startswith("Not shown to be better")


def test_a_loss_that_nobody_could_see_or_rule_out_is_not_decidable() -> None:
    result = gate(decided(evaluation({("bm25", "recall@50"): 0.30 + NOISE})), "beats_bm25")
    assert result.status == "not_decidable"
    assert "Too few queries to tell whether it is worse in recall@50" in result.reason


def test_the_teacher_is_held_against_both_baselines() -> None:
    decision = decided(evaluation({("student_untrained", "recall@50"): 0.45}))
    assert gate(decision, "teacher_worth[student_untrained]").status == "fail"
    assert "recall@50 of the teacher minus student_untrained: -0.0300" in gate(decision, "teacher_worth[student_untrained]").reason
    assert gate(decision, "teacher_worth[bm25]").status == "pass"


def as_downloaded(added: ArrayLike = 0.0) -> Evaluation:
    """The untrained encoder answers as the teacher does, but for what is `added` to its recall@50."""
    gap = GOOD["teacher"] - GOOD["student_untrained"]
    return evaluation({("student_untrained", "recall@50"): gap + np.asarray(added), ("student_untrained", "ndcg@10"): gap})


def test_a_teacher_that_is_the_downloaded_encoder_is_no_worse_than_doing_nothing() -> None:
    decision = decided(as_downloaded())
    result = gate(decision, "teacher_worth[student_untrained]")
    assert (result.status, result.value, result.queries) == ("pass", 0.0, 40)
    assert "answers 40 of 40 queries as student_untrained does: it is that encoder" in result.reason
    assert gate(decision, "beats_untrained").status == "fail"  # a student of the same quality gains nothing here


def test_a_teacher_that_was_asked_other_queries_than_the_downloaded_encoder_is_not_taken_for_it() -> None:
    report = as_downloaded()
    other = report.per_query["system"] == "student_untrained"
    rows = report.per_query.assign(query_id=report.per_query["query_id"].where(~other, "other-" + report.per_query["query_id"]))
    result = gate(decided(replace(report, per_query=rows, units=None)), "teacher_worth[student_untrained]")
    assert result.status == "not_decidable" and "measured on different queries" in result.reason


def test_a_teacher_that_differs_from_the_downloaded_encoder_in_one_query_of_forty_has_to_be_better() -> None:
    one = np.zeros(40)
    one[0] = 0.1
    result = gate(decided(as_downloaded(one)), "teacher_worth[student_untrained]")
    assert result.status == "fail" and result.reason.startswith("Not shown to be better")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_two_encoders_that_find_all_queries_or_none_are_not_taken_for_one(value: float) -> None:
    """On such data any two would be: it passed as the encoder that it was not shown to be better than, and later it failed as worse."""
    report = as_downloaded()
    both = report.per_query["system"].isin(["teacher", "student_untrained"])
    table = report.per_query.assign(value=report.per_query["value"].where(~both, value))
    systems = {
        name: found.model_copy(update={"metrics": dict.fromkeys(found.metrics, value)})
        if name in ("teacher", "student_untrained")
        else found
        for name, found in report.summary.systems.items()
    }
    easy = replace(report, per_query=table, summary=report.summary.model_copy(update={"systems": systems}))
    result = gate(decided(easy), "teacher_worth[student_untrained]")
    assert result.status == "not_decidable" and "40 of 40 queries as student_untrained does, but in all but 0 both" in result.reason
    before = [gate(decide(GateInputs(easy, facts=FACTS), POLICY, method), "teacher_worth[student_untrained]") for method in (1, 2)]
    assert [found.status for found in before] == ["pass", "fail"] and before[1].reason.startswith("Not shown to be better")


def test_how_alike_a_teacher_has_to_be_to_count_as_the_downloaded_encoder_is_the_policys_to_say() -> None:
    one = np.zeros(40)
    one[0] = 0.1
    for share, status in ((0.97, "pass"), (0.98, "fail"), (None, "fail")):
        decision = decided(as_downloaded(one), POLICY.model_copy(update={"same_teacher_share": share}))
        assert gate(decision, "teacher_worth[student_untrained]").status == status


def test_a_teacher_that_answers_as_bm25_does_is_no_encoder() -> None:
    gap = GOOD["teacher"] - GOOD["bm25"]
    result = gate(decided(evaluation({("bm25", metric): gap for metric in POLICY.baseline_metrics})), "teacher_worth[bm25]")
    assert result.status == "fail" and result.reason.startswith("Not shown to be better")


def test_a_teacher_that_was_not_measured_is_never_worth_it() -> None:
    report = make_evaluation({name: level for name, level in GOOD.items() if name != "teacher"})
    assert {gate(decided(report), f"teacher_worth[{rival}]").status for rival in ("bm25", "student_untrained")} == {"not_decidable"}


def test_the_policy_of_an_older_release_asks_ndcg_alone_and_nothing_of_the_teacher() -> None:
    new = ("teacher_worth", "same_teacher_share", "baseline_metrics", "baseline_margin", "max_removed_share")
    recorded = {key: value for key, value in POLICY.model_dump(mode="json").items() if key not in new}
    policy = recorded_policy({"policy": recorded})
    assert (policy.baseline_metrics, policy.teacher_worth, policy.max_removed_share) == (("ndcg@10",), False, None)
    decision = decided(evaluation({("student_untrained", "recall@50"): 0.45}), policy)
    assert (decision.verdict, gate(decision, "beats_untrained").status) == ("pass", "pass")
    assert gate(decision, "beats_untrained").value == pytest.approx(0.40)
    assert gate(decision, "teacher_worth").status == gate(decision, "removed_documents").status == "off"


def test_the_same_rows_and_policy_recorded_today_fail() -> None:
    policy = recorded_policy({"policy": POLICY.model_dump(mode="json")})
    assert policy == POLICY
    assert decided(evaluation({("student_untrained", "recall@50"): 0.45}), policy).verdict == "fail"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"baseline_metrics": ["ndcg@5"]}, "the metric 'ndcg@5' is not known; known are recall@1"),
        ({"baseline_metrics": []}, "policy.baseline_metrics"),
        ({"baseline_margin": 0}, "policy.baseline_margin"),
        ({"max_removed_share": 1.5}, "policy.max_removed_share"),
    ],
)
def test_a_policy_that_asks_for_what_is_not_measured_is_refused_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("demo", overrides={"policy": changes})
    assert words in str(caught.value)


def test_a_comparison_with_an_encoder_that_is_not_measured_is_refused_before_the_run() -> None:
    config = load_config("demo", overrides={"evaluation.untrained_student": False})
    with pytest.raises(ConfigError, match=r"compares with the untrained encoder.*policy\.beat_untrained and policy\.teacher"):
        require_measured(config.policy, config.evaluation)
    without = config.policy.model_copy(update={"beat_untrained": False, "teacher_worth": False})
    require_measured(without, config.evaluation)


@pytest.mark.parametrize(("split", "why"), [("test", r"'test', evaluation\.split itself"), ("dev", "'dev', the split that checkpoints")])
def test_retention_on_other_queries_is_not_asked_of_the_same_ones(split: str, why: str) -> None:
    config = load_config("demo", overrides={"evaluation.extra_splits": ["test_de", split], "policy.min_off_distribution_retention": 0.9})
    with pytest.raises(ConfigError, match=why):
        require_measured(config.policy, config.evaluation)
    require_measured(config.policy.model_copy(update={"min_off_distribution_retention": None}), config.evaluation)
    require_measured(config.policy, config.evaluation.model_copy(update={"extra_splits": ("test_de",)}))


def test_slices_that_the_policy_requires_are_judged() -> None:
    config = load_config("demo", overrides={"policy.required_slices": ["language"], "policy.slice_margin": None})
    with pytest.raises(ConfigError, match=r"required_slices names 'language', but policy\.slice_margin is null"):
        require_measured(config.policy, config.evaluation)


def test_chance_has_no_more_tries_for_having_two_metrics() -> None:
    # A lower end just above 0 at 95 %, and below it at 97.5 %: enough for one metric, not for one of two.
    spread = np.tile([-0.1, 0.1], 20)  # a standard error of .016
    added = {("bm25", "ndcg@10"): 0.30 - 0.028 + spread, ("bm25", "recall@50"): 0.30}
    alone = POLICY.model_copy(update={"baseline_metrics": ("ndcg@10",)})
    assert gate(decided(evaluation(added), alone), "beats_bm25").status == "pass"
    result = gate(decided(evaluation(added)), "beats_bm25")
    assert result.status == "fail" and "with 97.5% confidence" in result.reason


def test_equal_systems_are_seldom_called_better() -> None:
    rng, passed = np.random.default_rng(3), 0
    policy = POLICY.model_copy(update={"baseline_margin": 0.5, "min_power": None})
    for _ in range(200):
        report = evaluation({("bm25", metric): 0.30 + rng.normal(0, 0.1, 40) for metric in policy.baseline_metrics})
        passed += next(found for found in quality_gates(report, policy) if found.name == "beats_bm25").status == "pass"
    assert passed <= 19  # 5 % and three standard errors above it; without the correction some 25 pass


def test_few_single_queries_are_known_as_badly_as_few_units_and_decisions_of_before_are_made_again_as_they_were() -> None:
    evidence, policy = GateInputs(make_evaluation(queries=12), facts=FACTS), POLICY.model_copy(update={"min_queries": 5})

    def floor(asked: float, method: int) -> GateResult:
        return gate(decide(evidence, policy.model_copy(update={"floors": {"ndcg@10": asked}}), method), "floor[ndcg@10]")

    today, before = (float(floor(0.1, method).value or 0.0) for method in (3, 2))
    assert GOOD["student"] - today > 1.1 * (GOOD["student"] - before)
    between = (today + before) / 2
    assert [floor(between, method).status for method in (3, 2, 1)] == ["fail", "pass", "pass"]
