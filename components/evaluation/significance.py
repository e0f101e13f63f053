"""Bootstrap intervals over the units that were sampled: single queries, or groups of queries (see `components.evaluation.units`).

Units are drawn with replacement and the statistic is computed on each draw; the interval is cut at the percentiles of these values.
Two systems are resampled together (paired), since what is hard for one is mostly hard for the other. Where a training was repeated with
other seeds, its seeds are drawn as well (`seeded_interval`).
Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; Sakai, SIGIR 2006, for retrieval metrics; Davison and
Hinkley, Bootstrap Methods and their Application (1997), section 3.8, for units of several values; Owen, The pigeonhole bootstrap, Annals of
Applied Statistics 1 (2007), for two levels at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.errors import DataError
from components.evaluation.power import standard_error
from components.evaluation.units import Numbers, grouped

# Numbers of queries or units drawn at once; bounds the memory whatever their number.
_DRAWS_AT_ONCE = 2_000_000
Statistic = Literal["mean", "difference", "ratio"]


@dataclass(frozen=True)
class Interval:
    """A measured value (`difference` of two means, or what the function says) and the ends of its two-sided interval.

    `units` is how many were drawn, None where each query was drawn by itself. From a single unit nothing is known about others: the ends
    are infinite then. `p` is the chance of a value as far from no difference (a ratio of 1) if there is none; None where it was not asked.
    """

    difference: float
    low: float
    high: float
    units: int | None = None
    p: float | None = None

    @property
    def known(self) -> bool:
        """Whether the interval says anything."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def ends(self) -> tuple[float, float]:
        """Low and high."""
        return self.low, self.high

    @property
    def share(self) -> Interval:
        """The interval of what lies between 0 and 1: from a few units it would reach beyond."""
        return replace(self, low=max(0.0, self.low), high=min(1.0, self.high)) if self.known else self


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 13, units: Numbers | None = None
) -> Interval:
    """Mean of `a` minus mean of `b`, one value per query in the same order, with a two-sided percentile interval.

    `confidence` 0.95 cuts 2.5 % off each end; for a one-sided bound at confidence c take the low end at 2c - 1. The same seed draws
    the same units; `units` has the unit of each query, None: each is its own. Raises DataError when the lengths differ, are 0, or a value
    is not finite.
    """
    first, second = _paired(a, b)
    gaps = first - second
    return _interval(float(gaps.mean()), resampled_means(gaps, samples, seed, units), confidence, grouped(units, len(gaps)))


def mean_interval(
    values: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 13, units: Numbers | None = None
) -> Interval:
    """The mean over queries (in `difference`) with its two-sided percentile interval; `units` as in `paired_bootstrap`."""
    checked = _values(values)
    return _interval(float(checked.mean()), resampled_means(checked, samples, seed, units), confidence, grouped(units, len(checked)))


def ratio_interval(
    a: ArrayLike, b: ArrayLike, samples: int = 2000, confidence: float = 0.95, seed: int = 13, units: Numbers | None = None
) -> Interval:
    """Mean of `a` over mean of `b` (in `difference`), paired, with its two-sided percentile interval; `units` as in `paired_bootstrap`.

    Raises DataError when the mean of `b` is 0: there is no ratio then. Draws in which it is 0 count as an endless ratio.
    """
    first, second = _paired(a, b)
    if second.mean() == 0:
        raise DataError("A ratio of two means cannot be computed where the second is 0.")
    over, under = resampled_means(first, samples, seed, units), resampled_means(second, samples, seed, units)
    found = _interval(float(first.mean() / second.mean()), _ratios(over, under), confidence, grouped(units, len(first)))
    return _not_below_zero(found, first, second)


def resampled_means(values: NDArray[np.float64], samples: int, seed: int, units: Numbers | None = None) -> NDArray[np.float64]:
    """Means over the queries of `samples` draws with replacement, float64 (samples,); the same seed and units draw the same queries."""
    rng, numbers = np.random.default_rng(seed), grouped(units, len(values))
    if numbers is None:
        parts = _parts(samples, len(values))
        return np.concatenate([values[rng.integers(0, len(values), (part, len(values)))].mean(axis=1) for part in parts])
    sums, sizes = np.bincount(numbers, weights=values), np.bincount(numbers).astype(np.float64)
    drawn = (rng.integers(0, len(sizes), (part, len(sizes))) for part in _parts(samples, len(sizes)))
    return np.concatenate([sums[chosen].sum(axis=1) / sizes[chosen].sum(axis=1) for chosen in drawn])


def seeded_interval(
    first: Sequence[ArrayLike],
    second: Sequence[ArrayLike] | None = None,
    statistic: Statistic = "difference",
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 13,
    units: Numbers | None = None,
) -> Interval:
    """The statistic of systems that were trained with several seeds: `first` and `second` hold one array of values per query for each.

    Seeds and units are drawn at once, the seeds of the two systems apart: another training of either could have come out otherwise. A
    system with one array has no noise of training in its interval, which is right where nothing was trained, and has to be said where
    something was. Resampling a few values makes their spread too small, by the root of (n - 1) / n, and a spread that is known from a
    few seeds is uncertain itself: both are corrected, the latter by Student's t at Satterthwaite's degrees of freedom.
    Raises DataError as the other functions do.
    """
    rows = [_matrix(first), *([] if second is None else [_matrix(second)])]
    if len({row.shape[1] for row in rows}) > 1:
        raise DataError(f"Two systems are compared query by query, but have {rows[0].shape[1]} and {rows[1].shape[1]} values.")
    means = [float(row.mean()) for row in rows]
    if statistic == "ratio" and means[1] == 0:
        raise DataError("A ratio of two means cannot be computed where the second is 0.")
    numbers = grouped(units, rows[0].shape[1])
    count = rows[0].shape[1] if numbers is None else int(numbers.max()) + 1
    value, slopes = _value_of(statistic, means)
    if count < 2:
        return Interval(value, -math.inf, math.inf, count if numbers is not None else None, 1.0)
    drawn = _two_level_means(rows, numbers, samples, seed)
    draws = drawn[0] if statistic == "mean" else drawn[0] - drawn[1] if statistic == "difference" else _ratios(drawn[0], drawn[1])
    freedom = _freedom(rows, slopes, numbers, count)
    found = _scaled(value, draws, confidence, _widening(freedom, confidence))
    no_difference = 1.0 if statistic == "ratio" else 0.0
    chance = _two_sided(value - no_difference, float(draws.std(ddof=1)), freedom) if np.isfinite(draws).all() else None
    measured = Interval(value, *found, None if numbers is None else count, chance)
    return _not_below_zero(measured, *rows) if statistic == "ratio" else measured


def holm(chances: Sequence[float]) -> list[float]:
    """The chances (p values) of one table corrected for their number, in their order, at most 1.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    found, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        found[place] = highest
    return found


def _parts(samples: int, width: int) -> Iterator[int]:
    step = max(1, _DRAWS_AT_ONCE // width)
    return (min(step, samples - start) for start in range(0, samples, step))


def _two_level_means(rows: Sequence[NDArray[np.float64]], numbers: Numbers | None, samples: int, seed: int) -> list[NDArray[np.float64]]:
    """The mean of each system on every draw; the units are the same for all systems, the seeds are drawn for each."""
    rng, queries = np.random.default_rng(seed), rows[0].shape[1]
    numbers = np.arange(queries) if numbers is None else numbers
    sizes = np.bincount(numbers).astype(np.float64)
    sums = [np.stack([np.bincount(numbers, weights=run) for run in row], axis=1) for row in rows]  # units x seeds
    widths = [math.sqrt(size / (size - 1)) if size > 1 else 1.0 for size in (len(sizes), *(len(row) for row in rows))]
    found: list[list[NDArray[np.float64]]] = [[] for _ in rows]
    for part in _parts(samples, len(sizes)):
        counts = _counts(rng, part, len(sizes))
        asked = counts @ sizes
        for place, row in enumerate(rows):
            each = (counts @ sums[place]) / asked[:, None]
            level, mean = each.mean(axis=1), row.mean()
            seeds = (each * _counts(rng, part, len(row))).sum(axis=1) / len(row)
            found[place].append(mean + widths[0] * (level - mean) + widths[1 + place] * (seeds - level))
    return [np.concatenate(part) for part in found]


def _counts(rng: np.random.Generator, samples: int, size: int) -> NDArray[np.float64]:
    """How often each of `size` things is drawn in `size` draws with replacement, float64 (samples, size)."""
    drawn = rng.integers(0, size, (samples, size)) + np.arange(samples)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=samples * size).reshape(samples, size).astype(np.float64)


def _value_of(statistic: Statistic, means: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    """The statistic of the means, and by how much it moves with each of them."""
    if statistic == "mean":
        return means[0], (1.0,)
    first, second = means
    return (first - second, (1.0, -1.0)) if statistic == "difference" else (first / second, (1 / second, -first / second**2))


def _ratios(over: NDArray[np.float64], under: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(over, under, out=np.full_like(over, np.inf), where=under > 0)


def _not_below_zero(ratio: Interval, *values: NDArray[np.float64]) -> Interval:
    """A ratio of values that are none of them below 0 is not either, however few units it is known from."""
    return replace(ratio, low=max(0.0, ratio.low)) if ratio.known and min(found.min() for found in values) >= 0 else ratio


def _freedom(rows: Sequence[NDArray[np.float64]], slopes: Sequence[float], numbers: Numbers | None, count: int) -> float:
    """Satterthwaite's degrees of freedom of the statistic's variance, of which units and the seeds of each system make a part."""
    along = np.sum([slope * row.mean(axis=0) for slope, row in zip(slopes, rows, strict=True)], axis=0)
    parts = [(standard_error(along, numbers) ** 2, count - 1)]
    parts += [(s**2 * row.mean(axis=1).var(ddof=1) / len(row), len(row) - 1) for s, row in zip(slopes, rows, strict=True) if len(row) > 1]
    known = [(variance, freedom) for variance, freedom in parts if variance > 0]
    if not known:
        return float(count - 1)
    return float(sum(variance for variance, _ in known) ** 2 / sum(variance**2 / freedom for variance, freedom in known))


def _widening(freedom: float, confidence: float) -> float:
    """Student's t over the normal quantile at the end of a two-sided interval."""
    from scipy.special import ndtri, stdtrit

    end = (1 + confidence) / 2
    return float(stdtrit(freedom, end) / ndtri(end))


def _two_sided(distance: float, error: float, freedom: float) -> float:
    from scipy.special import stdtr

    if error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * stdtr(freedom, -abs(distance) / error))


def _interval(value: float, draws: NDArray[np.float64], confidence: float, numbers: Numbers | None) -> Interval:
    """Units of several queries are mostly few, so the percentiles are moved away from the value as `seeded_interval` says."""
    if numbers is None:
        return Interval(value, *_scaled(value, draws, confidence, 1.0))
    count = int(numbers.max()) + 1
    if count < 2:
        return Interval(value, -math.inf, math.inf, count)
    widening = _widening(count - 1, confidence) * math.sqrt(count / (count - 1))
    return Interval(value, *_scaled(value, draws, confidence, widening), count)


def _scaled(value: float, draws: NDArray[np.float64], confidence: float, widening: float) -> tuple[float, float]:
    """The percentiles of the draws; with a widening, that many times as far from the value."""
    tail = (1 - confidence) / 2
    # "lower" and "higher" take drawn values and never widen towards nan when a draw is endless.
    low = float(np.quantile(draws, tail, method="lower"))
    high = float(np.quantile(draws, 1 - tail, method="higher"))
    return (low, high) if widening == 1.0 else (value + widening * (low - value), value + widening * (high - value))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = _values(a), _values(b)
    if len(first) != len(second):
        raise DataError(f"Two systems are compared query by query, but one has {len(first)} values and the other {len(second)}.")
    return first, second


def _matrix(runs: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """float64 (seeds, queries)."""
    rows = [_values(run) for run in runs]
    if not rows or len({len(row) for row in rows}) > 1:
        raise DataError(f"Every seed needs a value for each query; the seeds have {[len(row) for row in rows] or 'none'}.")
    return np.stack(rows)


def _values(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        raise DataError(f"A bootstrap needs one value per query and at least one query; it got the shape {array.shape}.")
    if not np.isfinite(array).all():
        raise DataError(f"{int((~np.isfinite(array)).sum())} queries have no finite value; a mean over the others would hide them.")
    return array
