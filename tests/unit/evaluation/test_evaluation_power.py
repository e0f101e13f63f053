"""Power of the non-inferiority test: known values, and what it says about samples."""

from __future__ import annotations

import numpy as np
import pytest

from components.errors import DataError
from components.evaluation.units import min_detectable, power, queries_needed, standard_error


def spread(queries: int, deviation: float) -> np.ndarray:
    """Differences with exactly this standard deviation and the mean 0."""
    values = np.tile([-1.0, 1.0], queries // 2)
    return values * deviation / values.std(ddof=1)


def test_power_of_a_textbook_case() -> None:
    # Standard error 0.2 / sqrt(2473) = 0.004022, so that margin / error = 1.645 + 0.842.
    assert power(spread(2474, 0.2), 0.01, 0.95) == pytest.approx(0.80, abs=0.001)
    assert power(spread(642, 0.2), 0.01, 0.95) == pytest.approx(0.353, abs=0.002)


def test_more_queries_a_wider_margin_or_less_confidence_give_more_power() -> None:
    base = power(spread(400, 0.2), 0.01, 0.95)
    assert base < power(spread(800, 0.2), 0.01, 0.95)
    assert base < power(spread(400, 0.2), 0.02, 0.95)
    assert base < power(spread(400, 0.2), 0.01, 0.9)


def test_the_smallest_margin_has_exactly_the_wanted_power() -> None:
    gaps = spread(640, 0.22)
    assert power(gaps, min_detectable(gaps, 0.95, 0.8), 0.95) == pytest.approx(0.8)
    needed = queries_needed(gaps, 0.01, 0.95, 0.8)
    assert power(spread(needed + needed % 2, 0.22), 0.01, 0.95) == pytest.approx(0.8, abs=0.005)


def test_equal_systems_have_full_power_at_any_margin() -> None:
    assert (power(np.zeros(10), 0.001), min_detectable(np.zeros(10)), queries_needed(np.zeros(10), 0.01)) == (1.0, 0.0, 2)


def test_stated_power_is_the_share_of_equal_candidates_that_pass() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.2, (4000, 1500))
    lower = samples.mean(axis=1) - 1.6449 * samples.std(axis=1, ddof=1) / np.sqrt(1500)
    assert power(samples[0], 0.01, 0.95) == pytest.approx(float((lower > -0.01).mean()), abs=0.05)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, float("nan")], [[0.1, 0.2]]])
def test_a_spread_that_cannot_be_told_is_refused(values: list[float]) -> None:
    with pytest.raises(DataError, match="at least 2 queries"):
        standard_error(values)
