"""Bootstrap intervals over queries.

Queries are drawn with replacement and the statistic computed on each draw; the interval is cut at the percentiles of these values.
Two systems are resampled together (paired), since what is hard for one is mostly hard for the other.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Sakai, SIGIR 2006, for retrieval metrics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.errors import DataError

# Query numbers drawn at once; bounds the memory whatever the number of queries.
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A measured value (`difference` of two means, or what the function says) and the ends of its two-sided interval."""

    difference: float
    low: float
    high: float


def paired_bootstrap(a: ArrayLike, b: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 13) -> Interval:
    """Mean of `a` minus mean of `b`, one value per query in the same order, with a two-sided percentile interval.

    `confidence` 0.95 cuts 2.5 % off each end; for a one-sided bound at confidence c take the low end at 2c - 1. The same seed draws
    the same queries. Raises DataError when the lengths differ, are 0, or a value is not finite.
    """
    first, second = _paired(a, b)
    gaps = first - second
    return _interval(float(gaps.mean()), resampled_means(gaps, samples, seed), confidence)


def mean_interval(values: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 13) -> Interval:
    """The mean over queries (in `difference`) with its two-sided percentile interval."""
    checked = _values(values)
    return _interval(float(checked.mean()), resampled_means(checked, samples, seed), confidence)


def ratio_interval(a: ArrayLike, b: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 13) -> Interval:
    """Mean of `a` over mean of `b` (in `difference`), paired, with its two-sided percentile interval.

    Raises DataError when the mean of `b` is 0: there is no ratio then. Draws in which it is 0 count as an endless ratio.
    """
    first, second = _paired(a, b)
    if second.mean() == 0:
        raise DataError("The ratio of two means was asked for, but the second is 0.")
    over, under = resampled_means(first, samples, seed), resampled_means(second, samples, seed)
    ratios = np.divide(over, under, out=np.full_like(over, np.inf), where=under > 0)
    return _interval(float(first.mean() / second.mean()), ratios, confidence)


def resampled_means(values: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    """Means of `samples` draws with replacement, float64 (samples,); the same seed and length draw the same queries."""
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // len(values))
    chunks = [min(step, samples - start) for start in range(0, samples, step)]
    return np.concatenate([values[rng.integers(0, len(values), (chunk, len(values)))].mean(axis=1) for chunk in chunks])


def _interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    # "lower" and "higher" take drawn values and never widen towards nan when a draw is endless.
    low = float(np.quantile(draws, tail, method="lower"))
    high = float(np.quantile(draws, 1 - tail, method="higher"))
    return Interval(value, low, high)


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _values(a), _values(b)
    if len(first) != len(second):
        raise DataError(f"Two systems are compared query by query, but one has {len(first)} values and the other {len(second)}.")
    return first, second


def _values(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"A bootstrap needs one value per query and at least one query; it got the shape {array.shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"{int((~np.isfinite(array)).sum())} queries have no finite value; a mean over the others would hide them.")
    return array
