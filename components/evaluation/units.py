"""The units that were sampled, single queries or groups of them: bootstrap intervals over them, and the power of a comparison.

The test holds the lower end of a one-sided interval of the mean difference against -margin. For a true difference of 0 and a standard
error s it succeeds with probability Phi(margin / s - z), z being Student's quantile of the confidence, by which the interval is
widened. Where queries were drawn in units (None: each by itself), the standard error is that of a cluster sample.
Sources: Julious, Sample sizes for clinical trials with normal data, Statistics in Medicine 23 (2004), section 6; Cameron and Miller, A
practitioner's guide to cluster-robust inference, Journal of Human Resources 50 (2015), section II; MacKinnon, Nielsen and Webb,
Cluster-robust inference: a guide to empirical practice, Journal of Econometrics 232 (2023), for the jackknife over units of unlike sizes.

Queries that ask for one document, or for documents of the group that the splits were made by, succeed and fail together, so 641 of them
may say no more than 120 that were drawn one by one. The data names its group as a metadata field of the documents (the built-in set: the
three-character category); `evaluation.query_groups` names another, or says that each query was drawn by itself. Without a group, queries
that have a relevant document in common are one unit, and so are those that are linked through others. Source: Kish, Survey Sampling
(1965), chapter 8, for the design effect.

Units are drawn with replacement and the statistic is computed on each draw; the interval is cut at the percentiles of these values, and
its ends are moved away as `seeded_interval` says. Two systems are resampled together (paired), since what is hard for one is mostly hard
for the other. Where a training was repeated with other seeds, its seeds are drawn as well. Sources: Efron and Tibshirani, An Introduction
to the Bootstrap (1993), chapter 13; Sakai, SIGIR 2006, for retrieval metrics; Davison and Hinkley, Bootstrap Methods and their Application
(1997), section 3.8, for units of several values; Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007), for two levels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.evaluation.metrics import JudgedSplit


_NORMAL = NormalDist()
Spread = Literal["left_out", "residuals"]  # how a standard error over units is told; by the second the first decisions were made
Ends = Literal["student", "percentile"]  # of an interval over single queries; by the second the decisions of before were made


def power(
    differences: ArrayLike,
    margin: float,
    confidence: float = 0.95,
    units: Numbers | None = None,
    spread: Spread = "left_out",
    ends: Ends = "student",
) -> float:
    """Chance, from 0 to 1, that the test passes when there is no true difference, given the spread of these paired differences.

    Raises DataError for fewer than two values or one that is not finite: a spread cannot be told then.
    """
    error = standard_error(differences, units, spread)
    if error == 0:
        return 1.0
    return _NORMAL.cdf(margin / error - _end(confidence, _count(units, len(np.asarray(differences)), ends)))


def min_detectable(differences: ArrayLike, confidence: float = 0.95, wanted: float = 0.8, units: Numbers | None = None) -> float:
    """The smallest margin that the test can show with the power `wanted` on these differences, in their measure; infinite for one unit."""
    error = standard_error(differences, units)
    return (_end(confidence, _count(units, len(np.asarray(differences)))) + _NORMAL.inv_cdf(wanted)) * error


def queries_needed(
    differences: ArrayLike,
    margin: float,
    confidence: float = 0.95,
    wanted: float = 0.8,
    units: Numbers | None = None,
    spread: Spread = "left_out",
) -> int:
    """How many queries with the spread of these, in units as large as these, give the power `wanted` at the margin.

    Raises DataError where all are one unit: nothing says how far others would be from it.
    """
    values = np.asarray(differences, dtype=np.float64)
    error, count = standard_error(values, units, spread), _count(units, len(values))
    if not math.isfinite(error) or count is None:
        raise DataError("All queries are one unit, so nothing says how many more would be needed. Judge queries of other groups.")
    return queries_for(error * math.sqrt(len(values)), margin, confidence, wanted, len(values) / count)


def queries_for(spread: float, margin: float, confidence: float = 0.95, wanted: float = 0.8, size: float = 1.0) -> int:
    """How many queries, in units of `size` on the average, give the power `wanted` at the margin.

    `spread` is the standard error of their mean times the root of their number: the standard deviation of single queries' differences.
    """
    beyond = _NORMAL.inv_cdf(wanted)

    def enough(queries: int) -> bool:
        return ((_end(confidence, queries / size) + beyond) * spread / margin) ** 2 <= queries

    # More queries come in more units, of which Student's quantile is smaller: the first number that is enough, for fewer never are.
    few, many = 1, max(2, math.ceil(2 * size))
    while not enough(many):
        few, many = many, 2 * many
    while many - few > 1 and few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(middle) else (middle, many)
    return many


def margin_for(spread: float, queries: int, confidence: float = 0.95, wanted: float = 0.8, units: int | None = None) -> float:
    """The smallest margin that so many queries, in so many units, can show with the power `wanted`, at that `spread` of `queries_for`."""
    return (_end(confidence, queries if units is None else units) + _NORMAL.inv_cdf(wanted)) * spread / math.sqrt(queries)


def _end(confidence: float, units: float | None) -> float:
    """Student's quantile for so many units, at which the test's interval ends; the normal one where it ends at percentiles (None)."""
    normal = _NORMAL.inv_cdf(confidence)
    return normal if units is None or units < 2 else normal * _widening(units - 1, 2 * confidence - 1)


def _count(units: Numbers | None, queries: int, ends: Ends = "student") -> int | None:
    numbers = grouped(units, queries)
    return (queries if ends == "student" else None) if numbers is None else int(numbers.max()) + 1


def standard_error(differences: ArrayLike, units: Numbers | None = None, spread: Spread = "left_out") -> float:
    """That of the mean: standard deviation (n - 1) over the root of the number of queries; with units, from the means without each of them.

    Infinite for a single unit of several queries. By `residuals`, the sums of each unit's, it is the same for units of one size, and too
    small where one holds most of the queries and draws the mean to itself: 2,300 queries that are all but one unit would look like 2,300.

    Raises DataError for fewer than two finite values.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise DataError(f"A spread needs finite differences of at least 2 queries; it got the shape {values.shape}.")
    numbers = grouped(units, len(values))
    if numbers is None:
        return float(values.std(ddof=1) / math.sqrt(len(values)))
    residuals, sizes = np.bincount(numbers, weights=values - values.mean()), np.bincount(numbers)
    if (count := len(sizes)) < 2:
        return math.inf
    if spread == "residuals":
        return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / len(values))
    moved = residuals / (len(values) - sizes)  # by how much the mean falls where a unit is left out
    return float(math.sqrt((count - 1) / count * (moved**2).sum()))


def units_alike(confidence: float) -> int:
    """The fewest units that show something by all saying the same: coins fall alike as often, and no interval over them has a width."""
    return math.ceil(-math.log2(1 - confidence) - _ROUNDING)


def too_few_alike(units: int, confidence: float) -> bool:
    """Whether so many units that all say the same may do so by chance."""
    return units < units_alike(confidence)


# --- Which judged queries were drawn together: the units that every interval, power and gate resamples.


AUTO, SINGLE = "auto", "queries"  # values of evaluation.query_groups beside the names of metadata fields
COLUMNS = ("split", "query_id", "unit")
# Correlation of nDCG@10 within a unit, where no values are known yet: measured .22 on the demo, .30 on tldr, .20 on squad, all by BM25.
WITHIN = 0.25
Numbers = NDArray[np.int64]  # the unit of each query, in the order of its values


@dataclass(frozen=True)
class Units:
    """The unit of every judged query: `numbers`, int64 (queries,), from 0 on and in the order of `query_ids`; `rule` is a clause.

    `taken_apart`: how many units the data itself would give, where the rule takes some of these apart; 0 where it takes none.
    """

    query_ids: tuple[str, ...]
    numbers: Numbers
    rule: str = ""
    taken_apart: int = 0

    def __deepcopy__(self, _: object) -> Units:
        return self  # pandas copies what is attached to a series with every operation

    @property
    def count(self) -> int:
        """How many units there are."""
        return len(np.unique(self.numbers))

    @property
    def largest(self) -> int:
        """Queries of the largest unit."""
        return int(np.bincount(self.numbers).max(initial=0))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {query: place for place, query in enumerate(self.query_ids)}

    def of(self, query_ids: Iterable[object]) -> Numbers:
        """The units of these queries, in their order; raises DataError for a query that is in none."""
        try:
            return self.numbers[[self._places[str(query)] for query in query_ids]]
        except KeyError as error:
            raise DataError(f"The query {error} is in no unit, so it cannot be resampled. Evaluate again.") from None

    def table(self, split: str) -> pd.DataFrame:
        """DataFrame[split, query_id, unit], as a report keeps them."""
        import pandas as pd

        return pd.DataFrame({"split": split, "query_id": list(self.query_ids), "unit": self.numbers})


def units_in(table: pd.DataFrame | None, split: str) -> Units | None:
    """The units of one split of a report's table; None for reports of before there were any, whose queries count one by one.

    Raises DataError where the table has none of this split, a query twice, or a unit that is no whole number: counted one by one such
    queries would have too narrow an interval.
    """
    import pandas as pd

    if table is None:
        return None
    rows = table[table["split"] == split]
    numbers = pd.to_numeric(rows["unit"], errors="coerce").to_numpy(np.float64)
    if not len(rows) or not np.array_equal(numbers, np.floor(numbers)) or not rows["query_id"].is_unique:
        raise DataError(f"The report does not say of every query of '{split}' in which one unit it was drawn. Evaluate again.")
    return Units(tuple(str(query) for query in rows["query_id"]), rows["unit"].to_numpy(np.int64))


def query_units(judged: JudgedSplit, dataset: Dataset, groups: str = AUTO) -> Units:
    """The units of a split's judged queries; `groups` is `evaluation.query_groups`.

    Raises DataError for a metadata field that no relevant document has.
    """
    queries = tuple(judged.query_ids)
    if groups == SINGLE:
        single = Units(queries, np.arange(len(queries)), "each query was drawn by itself, as evaluation.query_groups says")
        return _held_against(query_units(judged, dataset), single)
    field = dataset.query_groups if groups == AUTO else groups
    rows = judged.judgements[judged.judgements["score"] > 0]
    asked, answers = [str(query) for query in rows["query_id"]], [str(document) for document in rows["doc_id"]]
    links = list(zip(asked, (("document", answer) for answer in answers), strict=True))
    if field:
        named = _groups_of(dataset, set(answers), field)
        _require_known(named, field, groups)
        links += [(query, ("group", named[answer])) for query, answer in zip(asked, answers, strict=True) if answer in named]
    shared = "queries that have a relevant document in common are one unit"
    rule = f"queries whose relevant documents have the same {field}, or one in common, are one unit" if field else shared
    found = Units(queries, _connected(queries, links), rule)
    return found if field == dataset.query_groups else _held_against(query_units(judged, dataset), found)


def _held_against(own: Units, asked: Units) -> Units:
    """The units that were asked for, with a word where they take apart what the data itself holds together."""
    if len(set(zip(own.numbers.tolist(), asked.numbers.tolist(), strict=True))) == own.count:
        return asked
    rule = f"{asked.rule}, though the data makes {own.count:,} unit{'' if own.count == 1 else 's'} of them ({own.rule})"
    return replace(asked, rule=rule, taken_apart=own.count)


def _require_known(named: dict[str, str], field: str, groups: str) -> None:
    if not named and groups != AUTO:
        raise DataError(
            f"evaluation.query_groups is '{field}', but no relevant document has a metadata field of that name. Name the field that the "
            f"splits were made by, or '{AUTO}' (queries with an answer in common are one unit), or '{SINGLE}' (each was drawn by itself)."
        )


def _groups_of(dataset: Dataset, documents: set[str], field: str) -> dict[str, str]:
    """The value of a metadata field for those of the documents that have one."""
    rows = dataset.documents[dataset.documents["doc_id"].isin(documents)]
    found: dict[str, str] = {}
    for document, metadata in zip(rows["doc_id"], rows["metadata"], strict=True):
        try:
            value = json.loads(metadata).get(field) if isinstance(metadata, str) else None
        except (ValueError, AttributeError):
            value = None
        if value is not None and value != "":
            found[str(document)] = str(value)
    return found


def _connected(queries: Sequence[str], links: Sequence[tuple[str, tuple[str, str]]]) -> Numbers:
    """Numbers of the connected parts of the graph of queries and what they are linked to, in the order of their first query."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places = {query: place for place, query in enumerate(queries)}
    nodes = {node: len(queries) + place for place, node in enumerate(dict.fromkeys(node for _, node in links))}
    size = len(queries) + len(nodes)
    ends = [places[query] for query, _ in links], [nodes[node] for _, node in links]
    labels = connected_components(coo_array((np.ones(len(links)), ends), shape=(size, size)), directed=False)[1]
    return compact(labels[: len(queries)])


def compact(numbers: Numbers) -> Numbers:
    """The same partition with the numbers 0, 1, ... in the order in which its parts first occur."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def grouped(numbers: Numbers | None, queries: int) -> Numbers | None:
    """The units of so many queries, without gaps; None where each query is a unit of its own, so that both are computed in one way.

    A query that is alone is one unit: nothing says how far others would be from it. Raises DataError when there is not one number for
    each query.
    """
    if numbers is None:
        return np.zeros(1, np.int64) if queries == 1 else None
    array = np.asarray(numbers)
    if array.shape != (queries,):
        raise DataError(f"Every query needs a unit; there are {queries} queries and units of the shape {array.shape}.")
    found = compact(array)
    return None if len(found) > 1 and int(found.max()) + 1 == queries else found


def design_effect(values: NDArray[np.float64], numbers: Numbers | None) -> float:
    """The variance of the mean with the units as they are over that of as many queries drawn one by one; infinite for a single unit."""
    alone = standard_error(values) if len(values) > 1 else 0.0
    return (standard_error(values, numbers) / alone) ** 2 if alone > 0 else 1.0


def expected_effect(units: Units) -> float:
    """The design effect that values not yet measured are likely to have, by the sizes of the units and a usual correlation within them."""
    sizes = np.bincount(units.numbers)
    return float(1 + WITHIN * ((sizes**2).sum() / sizes.sum() - 1))


def effective_queries(queries: int, effect: float) -> int:
    """How many queries drawn one by one would say as much; never more than there are."""
    return max(1, min(queries, round(queries / effect))) if effect > 0 else queries


# --- Bootstrap intervals over the units that were sampled: single queries, or groups of queries.


# Numbers of queries or units drawn at once; bounds the memory whatever their number.
_DRAWS_AT_ONCE = 2_000_000
_ROUNDING = 1e-12  # the same values summed over two and over three seeds differ by about 1e-17
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
    a: ArrayLike,
    b: ArrayLike,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 13,
    units: Numbers | None = None,
    ends: Ends = "student",
) -> Interval:
    """Mean of `a` minus mean of `b`, one value per query in the same order, with a two-sided interval.

    `confidence` 0.95 cuts 2.5 % off each end; for a one-sided bound at confidence c take the low end at 2c - 1. The same seed draws
    the same units; `units` has the unit of each query, None: each is its own, and `ends` says how they end then. Raises DataError when the
    lengths differ, are 0, or a value is not finite.
    """
    first, second = _paired(a, b)
    gaps = first - second
    return _interval(float(gaps.mean()), resampled_means(gaps, samples, seed, units), confidence, len(gaps), units, ends)


def mean_interval(
    values: ArrayLike,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 13,
    units: Numbers | None = None,
    ends: Ends = "student",
) -> Interval:
    """The mean over queries (in `difference`) with its two-sided interval; `units` and `ends` as in `paired_bootstrap`."""
    checked = _values(values)
    return _interval(float(checked.mean()), resampled_means(checked, samples, seed, units), confidence, len(checked), units, ends)


def ratio_interval(
    a: ArrayLike,
    b: ArrayLike,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 13,
    units: Numbers | None = None,
    ends: Ends = "student",
) -> Interval:
    """Mean of `a` over mean of `b` (in `difference`), paired, with its two-sided interval; `units` and `ends` as in `paired_bootstrap`.

    Raises DataError when the mean of `b` is 0: there is no ratio then. Draws in which it is 0 count as an endless ratio.
    """
    first, second = _paired(a, b)
    if second.mean() == 0:
        raise DataError("A ratio of two means cannot be computed where the second is 0.")
    over, under = resampled_means(first, samples, seed, units), resampled_means(second, samples, seed, units)
    found = _interval(float(first.mean() / second.mean()), _ratios(over, under), confidence, len(first), units, ends)
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
    spread = float(draws.std(ddof=1)) if np.isfinite(draws).all() else math.nan
    chance = None if math.isnan(spread) else _two_sided(value - no_difference, spread, freedom)
    if chance is not None and spread < 1e-9:
        # Few units that all say the same have no spread, and chance is not nothing: signs alone would fall so once in 2 ** (count - 1).
        chance = min(1.0, max(chance, 2.0 ** (1 - count)))
    measured = Interval(value, *found, None if numbers is None else count, chance)
    return _not_below_zero(measured, *rows) if statistic == "ratio" else measured


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
    return replace(ratio, low=max(0.0, ratio.low)) if math.isfinite(ratio.low) and min(found.min() for found in values) >= 0 else ratio


def _freedom(rows: Sequence[NDArray[np.float64]], slopes: Sequence[float], numbers: Numbers | None, count: int) -> float:
    """Satterthwaite's degrees of freedom of the statistic's variance, of which units and the seeds of each system make a part."""
    along = np.sum([slope * row.mean(axis=0) for slope, row in zip(slopes, rows, strict=True)], axis=0)
    parts = [(standard_error(along, numbers, "residuals") ** 2, count - 1)]  # as every published table of a study was computed
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

    if abs(distance) < _ROUNDING:
        return 1.0
    if error == 0:
        return 0.0
    return float(2 * stdtr(freedom, -abs(distance) / error))


def _interval(value: float, draws: NDArray[np.float64], confidence: float, queries: int, units: Numbers | None, ends: Ends) -> Interval:
    """The percentiles are moved away from the value as `seeded_interval` says, for those of a few units lie too near to it."""
    numbers = grouped(units, queries)
    if numbers is None and ends == "percentile":
        return Interval(value, *_scaled(value, draws, confidence, 1.0))
    count = queries if numbers is None else int(numbers.max()) + 1
    if count < 2:
        return Interval(value, -math.inf, math.inf, count)
    widening = _widening(count - 1, confidence) * math.sqrt(count / (count - 1))
    return Interval(value, *_scaled(value, draws, confidence, widening), None if numbers is None else count)


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
