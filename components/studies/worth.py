"""What a team would pick on its own data: the systems side by side, and what each costs in hours, energy and money.

    energy [kWh] = seconds / 3600 * watts / 1000
    money        = seconds / 3600 * (price of the machine for an hour + watts / 1000 * price of a kilowatt-hour)

The watts are what the whole machine is stated to draw under load; they are not measured.

The rule:
1. In each metric (recall@50, nDCG@10) the best is the system with the highest mean.
2. A system is good enough where the interval of its difference from the best excludes a loss above the margin, in both metrics. The lower
   ends hold for all systems together: one-sided 95 %, corrected for the number of systems by Bonferroni, over seeds and units of queries.
   A system that is best in both is good enough; the best was chosen by the same values, which is to the disadvantage of all others.
3. Of these the one whose building and serving take least hours is deployed. Where none is good enough, it is the one with the highest sum
   of both metrics, and nothing is claimed of the others. A system whose hours nobody knows is not deployed.
Systems trained with one seed are compared like the others, and the sentence then says that it claims nothing; so it does where all queries
are one unit, of which no interval is known, or few units that all say the same, whose interval has no width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from components.errors import DataError
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import RETAINED
from components.evaluation.units import Interval, too_few_alike
from components.studies.report import METRIC_TITLES, beside, compare, differences, seeds_of
from components.studies.scores import Scores

SECONDS_PER_HOUR = 3600
MILLION = 1_000_000


@dataclass(frozen=True)
class Prices:
    """Power of the machine in watts, and prices in one currency."""

    watts: float
    per_kwh: float
    per_hour: float

    @property
    def of_an_hour(self) -> float:
        """An hour of the machine under load, its electricity included."""
        return self.per_hour + self.watts / 1000 * self.per_kwh


def energy_kwh(seconds: float, prices: Prices) -> float:
    """Energy in kilowatt-hours."""
    return seconds / SECONDS_PER_HOUR * prices.watts / 1000


def money(seconds: float, prices: Prices) -> float:
    """Price of so many seconds of the machine under load."""
    return seconds / SECONDS_PER_HOUR * prices.of_an_hour


def money_per_million(queries_per_second: float, prices: Prices) -> float:
    """Price of a million queries on a machine that does nothing else and is never idle."""
    return money(MILLION / queries_per_second, prices)


def break_even(dearer_training: float, cheaper_training: float, dear_serving: float, cheap_serving: float) -> float | None:
    """Million queries after which the dearer training has paid for itself by cheaper serving; None when it never does.

    The trainings are prices, the servings prices per million queries.
    """
    saved = dear_serving - cheap_serving
    return max(0.0, dearer_training - cheaper_training) / saved if saved > 0 else None


# --- Which system to deploy: the cheapest one that is shown to lose no more than a margin against the best.


BM25, WITH_BM25 = "bm25", "+bm25"
_WIDTH = 1e-9  # of an interval that has none
RISK = 0.05  # of taking any system that loses more for good enough


@dataclass(frozen=True)
class Standing:
    """One system: how far it stands from the best by metric (0 or below), hours of building and serving (None: not known), the verdict."""

    behind: Mapping[str, Interval]
    hours: float | None
    good_enough: bool


@dataclass(frozen=True)
class Recommendation:
    """What to deploy, all standings by system, and the best system by metric; `claimed`: of several systems, seeds, units."""

    chosen: str
    standings: Mapping[str, Standing]
    best: Mapping[str, str]
    margin: float
    queries: int
    claimed: bool
    shown: bool
    one_unit: bool = False

    @property
    def sentence(self) -> str:
        """What to deploy and why, for somebody who reads no tables."""
        if len(self.standings) == 1:
            return f"{self.chosen} alone was measured, so nothing is compared, and what to deploy is not said."
        cost = _hours(self.standings[self.chosen].hours, self.queries)
        if not self.shown:
            known = " of known cost" if any(standing.hours is None for standing in self.standings.values()) else ""
            told = (
                f"Deploy {self.chosen}, which has the highest sum of {_titles(' and ')}{' among those' if known else ''}{known} ({cost}): "
                f"of no system{known} a loss above {self.margin:g} against the best can be excluded in both."
            )
        else:
            best = list(dict.fromkeys(self.best.values()))
            loss = f"at most {self.margin:g} in {_titles(' and ')}"
            reason = (
                f"the best in {_titles(' and ')} ({cost}): no cheaper system is shown to lose {loss}"
                if best == [self.chosen]
                else f"the cheapest system whose loss against the best ({', '.join(best)}) is shown to be {loss} ({cost})"
            )
            told = f"{'BM25 is enough: deploy' if self.chosen == BM25 else 'Deploy'} {self.chosen}, {reason}{self._cheaper()}."
        if self.claimed:
            return told
        several = any((found.units or 0) > 1 for standing in self.standings.values() for found in standing.behind.values())
        why = (
            f"All queries are {'few units that all say the same' if several else 'one unit'}, so nothing is claimed; by the means"
            if self.one_unit
            else "With one seed nothing is claimed; by the queries"
        )
        return f"{why} alone: {told if told.startswith('BM25') else told[0].lower() + told[1:]}"

    def _cheaper(self) -> str:
        """What the strongest of the cheaper systems may lose, which is why it is not taken."""
        limit = self.standings[self.chosen].hours
        cheaper = {n: s for n, s in self.standings.items() if s.hours is not None and limit is not None and s.hours < limit}
        if not cheaper:
            return ""
        name = max(cheaper, key=lambda n: sum(found.difference for found in cheaper[n].behind.values()))
        if not all(found.known for found in cheaper[name].behind.values()):
            return ""
        told = {metric: beside(-found.low, self.margin, f"{-found.low:.3f}") for metric, found in cheaper[name].behind.items()}
        lost = ", ".join(f"{words} in {METRIC_TITLES[metric]}" for metric, words in told.items())
        return f"; the strongest of the {len(cheaper)} cheaper ones, {name}, may lose {lost}"


def choose(
    systems: Mapping[str, Sequence[Scores]],
    hours: Mapping[str, float | None],
    margin: float,
    queries: int,
    config: EvaluationConfig,
    fixed: Sequence[str] = (),
) -> Recommendation:
    """Apply the rule to `systems` (name -> scores of each seed) on `config.split`; `hours` are those of building and `queries` queries.

    `fixed` are systems that are not trained and need no seeds; NAME+bm25 is the system NAME of the same trainings. Raises DataError when
    there is none, or the hours of none are known.
    """
    if not systems or all(hours.get(name) is None for name in systems):
        raise DataError("No system has both scores and a known cost, so none can be chosen. Run the study's cell 'cost' too.")
    means = {name: {metric: _mean(runs, metric, config) for metric in RETAINED} for name, runs in systems.items()}
    best = {metric: max(means, key=lambda name: means[name][metric]) for metric in RETAINED}
    confidence = 1 - 2 * RISK / max(1, len(systems) - 1)
    standings = {}
    for name in systems:
        behind = {metric: _behind(systems, name, best[metric], metric, config, confidence) for metric in RETAINED}
        good = all(name == best[metric] or (found.known and found.low > -margin) for metric, found in behind.items())
        standings[name] = Standing(behind, hours.get(name), good)
    affordable = {name: found.hours for name, found in standings.items() if found.good_enough and found.hours is not None}
    known = [name for name in systems if hours.get(name) is not None]
    chosen = min(affordable, key=lambda name: affordable[name]) if affordable else max(known, key=lambda name: sum(means[name].values()))
    compared = [len(seeds_of(systems[name])) for name in {chosen, *best.values()} if name not in fixed]
    gaps = [found for name, standing in standings.items() for metric, found in standing.behind.items() if name != best[metric]]
    one_unit = bool(gaps) and not any(found.known for found in gaps)
    claimed = min(compared, default=2) > 1 and not one_unit and len(systems) > 1
    return Recommendation(chosen, standings, best, margin, queries, claimed, bool(affordable), one_unit)


def hours_of(building_seconds: float | None, queries_per_second: float, queries: int) -> float | None:
    """Hours of one machine for building a system once and answering `queries` queries in full batches."""
    return None if building_seconds is None else (building_seconds + queries / queries_per_second) / SECONDS_PER_HOUR


def _mean(runs: Sequence[Scores], metric: str, config: EvaluationConfig) -> float:
    return float(np.mean([run[config.split, metric].mean() for run in seeds_of(runs)]))


def _behind(
    systems: Mapping[str, Sequence[Scores]], name: str, best: str, metric: str, config: EvaluationConfig, confidence: float
) -> Interval:
    if name == best:
        return Interval(0.0, 0.0, 0.0)
    own, other = systems[name], systems[best]
    same = name.removesuffix(WITH_BM25) == best.removesuffix(WITH_BM25) and len(seeds_of(own)) == len(seeds_of(other))
    runs, reference = (differences(own, other), None) if same else (own, other)
    found = compare(runs, reference, "difference", config, config.split, metric, confidence)
    assert found is not None
    count = len(own[0][config.split, metric]) if found.units is None else found.units
    if found.known and found.high - found.low <= _WIDTH and too_few_alike(count, (1 + confidence) / 2):
        found = replace(found, low=-math.inf, high=math.inf)  # few units that all say the same show nothing
    # A few seeds reach beyond what two means between 0 and 1 can differ by.
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high)) if found.known else found


def _titles(word: str) -> str:
    return word.join(METRIC_TITLES[metric] for metric in RETAINED)


def _hours(hours: float | None, queries: int) -> str:
    return "cost not known" if hours is None else f"{hours:.2f} hours for building and {queries:,} queries"
