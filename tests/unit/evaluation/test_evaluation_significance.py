from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from components.errors import DataError
from components.evaluation.units import mean_interval, paired_bootstrap, ratio_interval, resampled_means


def test_a_constant_gap_has_an_interval_without_width() -> None:
    a = np.linspace(0, 1, 50)
    found = paired_bootstrap(a + 0.1, a)
    assert found.difference == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)


def test_the_interval_agrees_with_the_normal_one_for_many_queries() -> None:
    gaps = np.random.default_rng(1).normal(0.02, 0.2, 1000)
    found = paired_bootstrap(gaps, np.zeros(1000), samples=4000, confidence=0.95)
    half = 1.96 * gaps.std() / np.sqrt(1000)
    assert found.low == pytest.approx(gaps.mean() - half, abs=0.002)
    assert found.high == pytest.approx(gaps.mean() + half, abs=0.002)


def test_the_intervals_agree_with_those_of_scipy() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.beta(2, 3, 300), rng.beta(2, 3, 300)
    units = np.sort(rng.integers(0, 60, 300))
    draw = {"n_resamples": 8000, "method": "percentile", "rng": np.random.default_rng(5)}
    theirs = stats.bootstrap((a - b,), np.mean, **draw).confidence_interval
    ours = paired_bootstrap(a, b, samples=8000)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.001)
    sums, sizes = np.bincount(units, weights=a - b), np.bincount(units)
    kept = sizes > 0
    theirs = stats.bootstrap(
        (sums[kept], sizes[kept]), lambda total, size, axis: total.sum(axis) / size.sum(axis), paired=True, vectorized=True, **draw
    ).confidence_interval
    drawn = resampled_means(a - b, 8000, seed=13, units=units)  # the interval itself is wider, as few units want it
    assert tuple(np.quantile(drawn, [0.025, 0.975])) == pytest.approx((theirs.low, theirs.high), abs=0.001)


def test_about_confidence_of_the_intervals_hold_the_true_value() -> None:
    rng = np.random.default_rng(2)
    found = [paired_bootstrap(rng.random(80), rng.random(80), samples=400, confidence=0.9, seed=i) for i in range(300)]
    held = np.mean([interval.low <= 0 <= interval.high for interval in found])
    assert 0.84 <= held <= 0.95


def test_higher_confidence_is_wider_and_the_same_seed_repeats() -> None:
    a, b = np.random.default_rng(3).random((2, 60))
    narrow, wide = paired_bootstrap(a, b, confidence=0.8), paired_bootstrap(a, b, confidence=0.99)
    assert wide.low < narrow.low < narrow.difference < narrow.high < wide.high
    assert paired_bootstrap(a, b, seed=4) == paired_bootstrap(a, b, seed=4) != paired_bootstrap(a, b, seed=5)
    assert paired_bootstrap(a, b).low == pytest.approx(-paired_bootstrap(b, a).high)


def test_many_queries_are_drawn_in_parts() -> None:
    values = np.random.default_rng(5).random(30_000)
    means = resampled_means(values, 200, seed=1)
    assert means.shape == (200,)
    assert means.std() == pytest.approx(values.std() / np.sqrt(len(values)), rel=0.25)


def test_mean_and_ratio() -> None:
    values = np.array([0.0, 1.0] * 100)
    mean = mean_interval(values)
    assert mean.difference == 0.5
    assert mean.low < 0.5 < mean.high
    ratio = ratio_interval(values * 0.9, values)
    assert (ratio.difference, ratio.low, ratio.high) == pytest.approx((0.9, 0.9, 0.9))


def test_bad_values_are_refused() -> None:
    with pytest.raises(DataError, match="one has 2 values and the other 3"):
        paired_bootstrap([1, 2], [1, 2, 3])
    with pytest.raises(DataError, match="at least one query"):
        paired_bootstrap([], [])
    with pytest.raises(DataError, match="1 queries have no finite value"):
        paired_bootstrap([1, float("nan")], [1, 2])
    with pytest.raises(DataError, match="second is 0"):
        ratio_interval([1.0], [0.0])
