"""Laws of an index's growth against values worked out by hand, and the warning about a tuning that no longer holds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from components.studies.growth_law import Extrapolation, comparisons, extrapolate, extrapolate_latency, fit_growth, tuning_warning

SIZES = [10_000, 100_000, 1_000_000]


def test_a_line_is_found_and_goes_on() -> None:
    law = fit_growth("line", SIZES, [5_000_000 + 800 * n for n in SIZES])
    assert law.supported and law.reasons == ()
    assert law.parameters == pytest.approx({"a": 5_000_000, "b": 800})
    found = extrapolate(law, 1e9)
    assert found is not None and found.value == pytest.approx(8e11 + 5e6, rel=1e-6)
    assert found.low == pytest.approx(found.high, rel=1e-6) and found.decides


def test_a_power_is_found_and_goes_on() -> None:
    law = fit_growth("power", SIZES, [2e-5 * n**1.5 for n in SIZES])
    assert law.parameters == pytest.approx({"c": 2e-5, "p": 1.5})
    assert law.r2 == pytest.approx(1)
    found = extrapolate(law, 1e8)
    assert found is not None and found.value == pytest.approx(2e-5 * 1e12)


def test_the_interval_is_that_of_a_regression_on_logarithms() -> None:
    sizes, values = np.array([1e4, 3e4, 1e5, 3e5, 1e6]), np.array([1.0, 3.5, 9.0, 33.0, 95.0])
    x, y = np.log(sizes), np.log(values)
    line = stats.linregress(x, y)
    at = np.log(1e8)
    error = np.sqrt(((y - line.intercept - line.slope * x) ** 2).sum() / 3)
    off = stats.t.ppf(0.975, 3) * error * np.sqrt(1 + 1 / 5 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    middle = line.intercept + line.slope * at
    found = extrapolate(fit_growth("power", sizes, values), 1e8)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx(tuple(np.exp([middle, middle - off, middle + off])))


def test_noisy_lines_give_an_interval_around_the_truth() -> None:
    rng = np.random.default_rng(5)
    sizes = np.geomspace(1e4, 1e6, 6)
    inside = 0
    for _ in range(200):
        values = (1e6 + 900 * sizes) * rng.normal(1, 0.02, len(sizes))
        found = extrapolate(fit_growth("line", sizes, values), 1e8)
        assert found is not None
        inside += found.low <= (1e6 + 9e10) * rng.normal(1, 0.02) <= found.high
    assert 180 <= inside <= 200  # 95% of 200 are 190


@pytest.mark.parametrize(
    ("sizes", "values", "reason"),
    [
        ([1e4, 1e5], [1.0, 2.0], "2 points for 2 parameters; at least 3 are needed"),
        ([1e4, 1e4, 1e4], [1.0, 2.0, 3.0], "all points have the same size"),
        ([1e4, 1e5, 1e6], [1.0, 0.0, 3.0], "not above 0"),
        ([1e4, 1e5, 1e6], [3.0, 2.0, 1.0], "do not grow"),
        ([1e4, 2e4, 3e4], [1.0, 2.0, 3.0], "span a factor of 3"),
        ([1e4, 1e5, 1e6, 1e7], [1.0, 30.0, 1.0, 30.0], "explains"),
    ],
)
def test_points_that_do_not_carry_a_law_are_named(sizes: list[float], values: list[float], reason: str) -> None:
    law = fit_growth("power", sizes, values)
    assert not law.supported and any(reason in said for said in law.reasons), law.reasons
    if len(sizes) < 3:
        assert extrapolate(law, 1e8) is None


def test_a_wide_interval_decides_nothing() -> None:
    assert Extrapolation(5, 1, 10).decides and not Extrapolation(5, 1, 11).decides and not Extrapolation(5, 0, 1).decides


def test_latency_follows_the_comparisons() -> None:
    works = [4_000.0, 12_000.0, 40_000.0]  # w = 4 n^0.75
    sizes = [(w / 4) ** (4 / 3) for w in works]
    latency = fit_growth("line", works, [0.2 + 1e-5 * w for w in works])
    work = fit_growth("power", sizes, works)
    found = extrapolate_latency(latency, work, 1e8)
    assert found is not None and found.value == pytest.approx(0.2 + 1e-5 * 4 * 1e6)
    assert extrapolate_latency(latency, fit_growth("power", [1.0], [1.0]), 1e8) is None


@pytest.mark.parametrize(
    ("key", "nprobe", "ef", "expected"),
    [
        ("Flat", None, None, 1e6),
        ("IVF1000,PQ48x4fs", 20, None, 1000 + 20 * 1e6 / 1000),
        ("IVF1000,Flat", 5000, None, 1000 + 1e6),
        ("OPQ48,IVF500,PQ48x4fs", 1, None, 500 + 2000),
        ("HNSW32", None, 100, 100 * np.log2(1e6)),
    ],
)
def test_comparisons_of_a_query(key: str, nprobe: int | None, ef: int | None, expected: float) -> None:
    assert comparisons(key, 1_000_000, nprobe, ef) == pytest.approx(expected)


def test_a_corpus_outside_of_the_tuned_range_is_named() -> None:
    assert tuning_warning(400_000, 100_000) is None and tuning_warning(25_000, 100_000) is None
    assert tuning_warning(10**9, None) is None
    grown, shrunk = tuning_warning(400_001, 100_000), tuning_warning(24_999, 100_000)
    assert grown is not None and "400,001 documents" in grown and "25,000 to 400,000" in grown and "slower" in grown
    assert shrunk is not None and "lower recall" in shrunk
