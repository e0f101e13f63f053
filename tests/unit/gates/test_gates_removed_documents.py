"""Documents that are gone: how many the policy lets pass, what stands in their place, and the comparison on what both hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.evaluation.champion_comparison import CANDIDATE, CHAMPION, SERVED, SHARED
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs, decide
from components.gates.decision import Findings, GateResult
from tests.unit.promotion_world import FACTS, make_comparison, make_evaluation, make_values

POLICY = PolicyConfig(min_queries=20, min_slice_queries=15)
ON_SHARED = "champion_non_inferior[documents=only those that both hold]"


def evidence(removed: int | None = 0, facts: Findings = FACTS, **changes: Any) -> GateInputs:
    found = GateInputs(make_evaluation(), make_evaluation(), make_comparison(removed=removed), facts, champion=1)
    return replace(found, **changes)


def result(found: GateInputs, name: str = "removed_documents", policy: PolicyConfig = POLICY) -> GateResult:
    return next(gate for gate in decide(found, policy).gates if gate.name == name)


def names(decision: GateDecision) -> set[str]:
    return {gate.name for gate in decision.gates}


@pytest.mark.parametrize(("removed", "status"), [(0, "pass"), (50, "pass"), (51, "not_decidable"), (1000, "not_decidable")])
def test_more_documents_gone_than_the_policy_allows_cannot_be_decided_on(removed: int, status: str) -> None:
    gate = result(evidence(removed))
    assert gate.status == status
    assert f"Of the 1,000 documents of the champion {removed:,} are gone ({removed / 1000:.1%}; 5% allowed)" in gate.reason


def test_another_share_and_none_at_all_can_be_asked() -> None:
    assert result(evidence(51), policy=POLICY.model_copy(update={"max_removed_share": 0.06})).status == "pass"
    assert result(evidence(1), policy=POLICY.model_copy(update={"max_removed_share": 0.0})).status == "not_decidable"
    assert result(evidence(900), policy=POLICY.model_copy(update={"max_removed_share": None})).status == "off"


def test_a_first_release_has_nothing_to_lose() -> None:
    assert result(GateInputs(make_evaluation(), facts=FACTS)).status == "first_release"


def test_a_refresh_without_a_champion_is_held_against_the_release_that_it_started_from() -> None:
    facts = FACTS.model_copy(update={"removed_documents": 200, "documents_before": 400})
    gate = result(GateInputs(make_evaluation(), facts=facts))
    assert (gate.status, gate.value) == ("not_decidable", 0.5)
    assert "of the release that was refreshed 200 are gone" in gate.reason
    assert result(evidence(0, facts)).status == "not_decidable"  # the larger of both shares counts


@pytest.mark.parametrize(
    "changes",
    [
        {"comparison": None},
        {"comparison": make_comparison(removed=None)},
        {"comparison": make_comparison().model_copy(update={"sizes": {}})},
        {"comparison": make_comparison().model_copy(update={"baseline_version": 7})},
    ],
)
def test_documents_that_nobody_counted_never_pass(changes: dict[str, Any]) -> None:
    assert result(evidence(**changes)).status == "not_decidable"


def test_a_champion_that_is_lost_later_does_not_change_what_was_counted() -> None:
    assert result(evidence(baseline=None, lost="release/1 was deleted.")).status == "pass"


def with_shared(candidate: float, champion: float, queries: int = 40) -> GateInputs:
    """Both equal over all documents; among those that both hold as given."""
    ids, spread = [f"q{n:03d}" for n in range(queries)], np.linspace(-0.2, 0.2, queries)
    tables = [
        pd.DataFrame({"query_id": ids, "system": who, "metric": SHARED, "value": level + spread})
        for who, level in ((CANDIDATE, candidate), (CHAMPION, champion))
    ]
    values = pd.concat([make_values(make_evaluation(), make_evaluation()), *tables], ignore_index=True)
    return evidence(40, values=values)


def test_a_gain_that_comes_from_fewer_documents_fails_on_what_both_hold() -> None:
    found = with_shared(0.60, 0.65)
    assert result(found, "champion_non_inferior").status == "pass"
    gate = result(found, ON_SHARED)
    assert (gate.status, gate.value) == ("fail", pytest.approx(-0.05))
    assert "the documents alone that both hold" in gate.reason
    assert result(with_shared(0.65, 0.65), ON_SHARED).status == "pass"


def test_where_nothing_is_gone_there_is_no_such_comparison() -> None:
    assert ON_SHARED not in names(decide(evidence(values=make_values(make_evaluation(), make_evaluation())), POLICY))


def test_queries_that_are_left_out_of_what_both_hold_or_are_nobodys_are_not_decidable() -> None:
    """A loss could be hidden by leaving the queries out that have it."""
    found = with_shared(0.65, 0.65)
    assert found.values is not None
    ids = sorted(set(found.values["query_id"]))
    shares = [pd.DataFrame({"query_id": ids, "system": who, "metric": SERVED, "value": 1.0}) for who in (CANDIDATE, CHAMPION)]
    whole = pd.concat([found.values, *shares], ignore_index=True)
    assert result(replace(found, values=whole), ON_SHARED).status == "pass"
    of_both = whole["metric"] == SHARED
    foreign = whole.assign(query_id=whole["query_id"].where(~of_both | (whole["query_id"] != "q003"), "stranger"))
    for values in (whole[~(of_both & (whole["query_id"] == "q003"))], whole[~of_both], foreign):
        assert result(replace(found, values=values), ON_SHARED).status == "not_decidable"


def test_documents_that_are_gone_since_a_later_champion_are_not_passed_over_in_silence() -> None:
    late = evidence(40)
    assert result(late, ON_SHARED).status == "not_decidable"
    shared = with_shared(0.60, 0.65).values
    assert shared is not None
    told = replace(late, shared=shared[shared["metric"] == SHARED])
    assert (result(told, ON_SHARED).status, result(told, ON_SHARED).value) == ("fail", pytest.approx(-0.05))
    unsaid = result(replace(evidence(0, comparison=None), shared=shared.iloc[:0]), ON_SHARED)
    assert unsaid.status == "not_decidable" and "keeps no rankings (student.trec, qrels.trec)" in unsaid.reason
    assert result(replace(told, shared=told.shared.astype({"value": object}).assign(value="much")), ON_SHARED).status == "not_decidable"
    assert "shared_documents" in decide(told, POLICY).inputs and ON_SHARED not in names(decide(evidence(0), POLICY))


def test_too_few_or_unpaired_queries_on_what_both_hold_are_not_decidable() -> None:
    assert result(with_shared(0.65, 0.65, queries=14), ON_SHARED).status == "not_decidable"
    found = with_shared(0.65, 0.65)
    assert found.values is not None
    of_both = (found.values["metric"] == SHARED) & (found.values["query_id"] == "q003")
    lost, strange = of_both & (found.values["system"] == CHAMPION), [np.nan, np.inf]
    for values in (
        found.values[~lost],
        *(found.values.assign(value=found.values["value"].where(~rows, none)) for rows in (lost, of_both) for none in strange),
        pd.concat([found.values, found.values[of_both]]),
    ):
        assert result(replace(found, values=values), ON_SHARED).status == "not_decidable"
