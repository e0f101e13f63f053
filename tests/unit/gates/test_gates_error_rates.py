"""Error rates of the gate against the champion: no difference, -0.02 and +0.02 on 200, 1,000 and 5,000 queries."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.units import power
from components.gates.config import PolicyConfig
from tests.benchmarks.gate_error_rates import SIZES, rates, simulated

POLICY = PolicyConfig()
ROUNDS = {200: 50, 1000: 20, 5000: 4}  # of the gate itself; the bootstrap takes its time


def test_policy_is_the_one_that_the_bar_names() -> None:
    assert (POLICY.margin, POLICY.confidence, POLICY.min_power) == (0.01, 0.95, 0.8)


@pytest.mark.parametrize("queries", SIZES)
def test_a_true_loss_beyond_the_margin_never_passes(queries: int) -> None:
    found = rates(queries, -0.02, POLICY, ROUNDS[queries])
    assert found.passed == 0
    if queries == 5000:
        assert found.failed == 1


@pytest.mark.parametrize("queries", SIZES)
def test_what_the_queries_cannot_show_is_undecided_and_what_they_can_passes(queries: int) -> None:
    same, better = (rates(queries, difference, POLICY, ROUNDS[queries]) for difference in (0.0, 0.02))
    if queries == 5000:
        assert same.power > POLICY.min_power  # type: ignore[operator]
        assert (same.passed >= 0.75, better.passed) == (True, 1.0)
    else:
        assert same.undecided + better.undecided >= 1.9


@pytest.mark.parametrize("queries", SIZES)
def test_a_true_loss_passes_at_most_one_time_in_a_hundred(queries: int) -> None:
    """The test's closed form on many more rounds than the bootstrap allows; the next test says that both agree."""
    rng, rounds = np.random.default_rng(queries), 1_000_000 // queries
    passed = [_passes(simulated(queries, -0.02, rng)) for _ in range(rounds)]
    assert np.mean(passed) <= 0.01


def test_bootstrap_and_closed_form_agree_on_the_lower_end() -> None:
    from components.evaluation.units import paired_bootstrap

    rng = np.random.default_rng(5)
    for _ in range(20):
        candidate, champion = simulated(1000, 0.0, rng)
        gaps = candidate - champion
        low = paired_bootstrap(candidate, champion, 2000, 0.9, 13).low
        assert low == pytest.approx(gaps.mean() - 1.645 * gaps.std(ddof=1) / np.sqrt(1000), abs=0.001)


def test_without_required_power_luck_lets_more_through() -> None:
    rng = np.random.default_rng(6)
    pairs = [simulated(200, -0.02, rng) for _ in range(4_000)]
    lucky = float(np.mean([_lower(candidate - champion) > -POLICY.margin for candidate, champion in pairs]))
    assert 0.003 < lucky < 0.03
    assert not any(_passes(pair) for pair in pairs)


def _passes(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    gaps = pair[0] - pair[1]
    assert POLICY.min_power is not None
    return power(gaps, POLICY.margin, POLICY.confidence) >= POLICY.min_power and _lower(gaps) > -POLICY.margin


def _lower(gaps: np.ndarray) -> float:
    return float(gaps.mean() - 1.6448536 * gaps.std(ddof=1) / np.sqrt(len(gaps)))


def test_queries_of_one_unit_let_a_loss_of_the_margin_through_no_more_often_than_the_policy_says() -> None:
    """By single queries it passes far more often: that is what the units are for."""
    found = rates(1000, -POLICY.margin, POLICY, 200, units=40)
    assert found.unguarded <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert found.single > 0.1


def test_the_power_of_queries_in_units_is_that_of_their_number() -> None:
    alone, grouped = rates(5000, 0.0, POLICY, 4), rates(5000, 0.0, POLICY, 4, units=100)
    assert POLICY.min_power is not None and grouped.power < POLICY.min_power < alone.power
    assert grouped.undecided == 1
