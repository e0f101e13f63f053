"""Coverage of the intervals on a few simulated data sets: they hold the truth about as often as they say, by single queries they do not."""

from __future__ import annotations

import numpy as np
import pytest

from components.errors import DataError
from components.evaluation.units import mean_interval, paired_bootstrap, ratio_interval, seeded_interval
from components.studies.report import holm
from tests.benchmarks.interval_coverage import CASES, HIGHEST, LOWEST, coverage

ROUNDS, SAMPLES = 400, 400
# Three standard errors of a share of 95 % in so many rounds.
SLACK = 3 * (0.95 * 0.05 / ROUNDS) ** 0.5 - 0.01


@pytest.mark.parametrize("case", CASES)
def test_about_ninety_five_of_a_hundred_intervals_hold_the_truth(case: str) -> None:
    held = coverage(case, ROUNDS, SAMPLES)[0]
    assert LOWEST - SLACK <= held <= min(1.0, HIGHEST + SLACK)


@pytest.mark.parametrize("case", ["level, 62 units", "level, 3 seeds, 62 units", "difference of 3 and 3 seeds, far larger, 62 units"])
def test_by_single_queries_they_hold_it_far_less_often(case: str) -> None:
    assert coverage(case, 200, SAMPLES, naive=True)[0] < 0.9


RNG = np.random.default_rng(11)
HARD = RNG.random(200)
GROUPS = np.arange(200) // 4


def test_one_seed_of_systems_that_take_none_is_the_paired_interval_of_groups() -> None:
    other = HARD + RNG.normal(0, 0.2, 200)
    found, paired = seeded_interval([HARD], [other], units=GROUPS), paired_bootstrap(HARD, other, units=GROUPS)
    assert found.difference == pytest.approx(paired.difference)
    assert found.high - found.low == pytest.approx(paired.high - paired.low, rel=0.1)
    assert found.units == paired.units == 50


def test_trainings_that_lie_apart_widen_the_interval_and_equal_ones_do_not() -> None:
    apart = [HARD + shift for shift in (-0.05, 0.0, 0.05)]
    equal = seeded_interval([HARD] * 3, None, "mean", units=GROUPS)
    alone = mean_interval(HARD, units=GROUPS)
    wide = seeded_interval(apart, None, "mean", units=GROUPS)
    assert equal.high - equal.low == pytest.approx(alone.high - alone.low, rel=0.1)
    # Three trainings with a standard deviation of 0.05: their mean is known to 0.029, and that from two degrees of freedom alone.
    assert wide.high - wide.low > 2 * (equal.high - equal.low)
    assert wide.difference == equal.difference


def test_a_difference_of_nothing_has_a_large_chance_and_a_large_one_a_small_chance() -> None:
    runs = [HARD + RNG.normal(0, 0.1, 200) for _ in range(3)]
    others = [HARD + RNG.normal(0, 0.1, 200) for _ in range(3)]
    nothing, much = seeded_interval(runs, others).p, seeded_interval([run + 0.2 for run in runs], others).p
    assert nothing is not None and much is not None and nothing > 0.05 > 0.001 > much
    same = seeded_interval([HARD], [HARD])
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)


def test_the_same_values_in_more_seeds_are_no_difference() -> None:
    """Sums of three and of two equal rows differ by rounding alone, and so do all their draws: that is no small chance."""
    for seed in range(40):
        values = np.random.default_rng(seed).random(300)
        found = seeded_interval([values] * 3, [values] * 2, samples=200, units=np.arange(300) % 40)
        assert found.p == 1.0 and abs(found.difference) < 1e-12


def test_a_ratio_over_seeds_and_its_lack() -> None:
    found = seeded_interval([HARD * 0.9, HARD * 0.92], [HARD], "ratio", units=GROUPS)
    assert found.difference == pytest.approx(0.91) and found.low < 0.91 < found.high
    with pytest.raises(DataError, match="second is 0"):
        seeded_interval([HARD], [HARD * 0], "ratio")


def test_a_share_kept_is_not_below_zero_however_few_units_it_is_known_from() -> None:
    few, units = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 0.0]), np.arange(6) // 2
    assert ratio_interval(few, few + 0.5, units=units).low == 0.0
    assert seeded_interval([few, few], [few + 0.5], "ratio", units=units).low == 0.0
    endless = ratio_interval([0.1, 0.5, 0.5, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0, 0.0])
    assert (endless.low, endless.high) == (0.0, np.inf), "a draw without any of the second leaves the upper end open, not the lower"


def test_the_chance_of_chance_is_what_it_says() -> None:
    """Under no difference p is below 0.05 in about one of twenty tables of trainings and queries."""
    rng, below = np.random.default_rng(12), 0
    for round_ in range(300):
        hard, groups = rng.standard_normal(25)[GROUPS // 2] + rng.standard_normal(200), GROUPS // 2
        first, second = ([hard + 0.1 * rng.standard_normal() + 0.3 * rng.standard_normal(200) for _ in range(3)] for _ in range(2))
        chance = seeded_interval(first, second, samples=300, seed=round_, units=groups).p
        below += chance is not None and chance < 0.05
    assert 0.015 <= below / 300 <= 0.09


def test_seeds_of_other_queries_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[200, 199\]"):
        seeded_interval([HARD, HARD[1:]])
    with pytest.raises(DataError, match="have 200 and 199 values"):
        seeded_interval([HARD], [HARD[1:]])
    with pytest.raises(DataError, match="none"):
        seeded_interval([])


def test_of_a_single_unit_no_seeds_make_an_interval() -> None:
    found = seeded_interval([HARD, HARD + 0.1], [HARD], units=np.zeros(200, np.int64))
    assert (found.known, found.units, found.p) == (False, 1, 1.0)


def test_chances_of_a_table_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 times 0.01, 2 times 0.03, and never below the one before
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_few_units_with_a_spread_have_the_chance_that_their_spread_says() -> None:
    """Signs alone would give four units no chance below 0.125; that is asked of differences without any spread."""
    gains = np.array([0.50, 0.51, 0.49, 0.50])
    spread, none = seeded_interval([gains], [gains * 0]).p, seeded_interval([np.full(4, 0.5)], [np.zeros(4)]).p
    assert spread is not None and spread < 0.01 and none == 0.125
