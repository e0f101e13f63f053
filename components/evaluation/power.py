"""Power of the non-inferiority test on paired differences: could the comparison have shown that an equal candidate is equal?

The test holds the lower end of a one-sided interval of the mean difference against -margin. For a true difference of 0 and a standard
error s it succeeds with probability Phi(margin / s - z), z being the normal quantile of the confidence. Where queries were drawn in units
(see `components.evaluation.units`; None: each by itself), the standard error is that of a cluster sample.
Sources: Julious, Sample sizes for clinical trials with normal data, Statistics in Medicine 23 (2004), section 6; Cameron and Miller, A
practitioner's guide to cluster-robust inference, Journal of Human Resources 50 (2015), section II.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from components.errors import DataError
from components.evaluation.units import Numbers, grouped

_NORMAL = NormalDist()


def power(differences: ArrayLike, margin: float, confidence: float = 0.95, units: Numbers | None = None) -> float:
    """Chance, from 0 to 1, that the test passes when there is no true difference, given the spread of these paired differences.

    Raises DataError for fewer than two values or one that is not finite: a spread cannot be told then.
    """
    error = standard_error(differences, units)
    if error == 0:
        return 1.0
    return _NORMAL.cdf(margin / error - _NORMAL.inv_cdf(confidence))


def min_detectable(differences: ArrayLike, confidence: float = 0.95, wanted: float = 0.8, units: Numbers | None = None) -> float:
    """The smallest margin that the test can show with the power `wanted` on these differences, in their measure; infinite for one unit."""
    return (_NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(wanted)) * standard_error(differences, units)


def queries_needed(
    differences: ArrayLike, margin: float, confidence: float = 0.95, wanted: float = 0.8, units: Numbers | None = None
) -> int:
    """How many queries with the spread of these, in units as large as these, give the power `wanted` at the margin.

    Raises DataError where all are one unit: nothing says how far others would be from it.
    """
    values = np.asarray(differences, dtype=np.float64)
    error = standard_error(values, units)
    if not math.isfinite(error):
        raise DataError("All queries are one unit, so nothing says how many more would be needed. Judge queries of other groups.")
    return queries_for(error * math.sqrt(len(values)), margin, confidence, wanted)


def queries_for(spread: float, margin: float, confidence: float = 0.95, wanted: float = 0.8) -> int:
    """How many queries give the power `wanted` at the margin, when the differences per query have the standard deviation `spread`."""
    return max(2, math.ceil(((_NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(wanted)) * spread / margin) ** 2))


def margin_for(spread: float, queries: int, confidence: float = 0.95, wanted: float = 0.8) -> float:
    """The smallest margin that so many queries can show with the power `wanted`, at that standard deviation of the differences."""
    return (_NORMAL.inv_cdf(confidence) + _NORMAL.inv_cdf(wanted)) * spread / math.sqrt(queries)


def standard_error(differences: ArrayLike, units: Numbers | None = None) -> float:
    """That of the mean: standard deviation (n - 1) over the root of the number of queries; with units, from the sums of their residuals.

    Infinite for a single unit of several queries.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise DataError(f"A spread needs finite differences of at least 2 queries; it got the shape {values.shape}.")
    numbers = grouped(units, len(values))
    if numbers is None:
        return float(values.std(ddof=1) / math.sqrt(len(values)))
    residuals = np.bincount(numbers, weights=values - values.mean())
    count = len(residuals)
    return math.inf if count < 2 else float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / len(values))
