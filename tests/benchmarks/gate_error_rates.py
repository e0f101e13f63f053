"""Error rates of the gate `champion_non_inferior`, by simulation: how often candidates of a known quality pass.

    python -m tests.benchmarks.gate_error_rates [--rounds 1000] [--margin 0.01] [--confidence 0.95] [--power 0.8] [--per-unit 10]

Each round draws the ranks at which champion and candidate find the answer of every query, turns them into nDCG@10 (one relevant document)
and puts the pairs through the gate itself. The ranks are log-normal and correlated, set to what two trainings of the demo show: mean nDCG
0.5, a third zeros, a third ones, paired differences with a standard deviation of 0.2, of which 60 % are 0. A true difference comes from
ranks that are worse or better throughout; with none, both are exchangeable.

With --per-unit the queries are drawn in units of about so many that succeed and fail together, as those of one category do. A loss of
exactly the margin is what the gate may let through in (1 - confidence) of all rounds at most: the last two columns say how often it would
if no power were asked, by units and, as before there were any, by single queries.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.evaluation.units import Numbers, Units
from components.gates.champion import non_inferior
from components.gates.config import PolicyConfig
from components.gates.measures import Outcome, in_units

SIZES = (200, 1000, 5000)
DIFFERENCES = (-0.02, 0.0, 0.02)
LOG_RANK = (1.2, 2.6)  # mean and standard deviation of the logarithm of the answer's rank
CORRELATION = 0.92
WITHIN = 0.3  # share of the variance of a log rank that is common to the queries of a unit
_CALIBRATION = 400_000


@dataclass(frozen=True)
class Rates:
    """Shares of rounds by outcome; `unguarded` is what would pass if no power were asked, `single` if units were not known either."""

    passed: float
    failed: float
    undecided: float
    unguarded: float
    power: float
    single: float


def main() -> None:
    """Print the table."""
    options = _arguments()
    policy = PolicyConfig(margin=options.margin, confidence=options.confidence, min_power=options.power)
    print("| queries | units | true difference | pass | fail | not decidable | median power | pass if no power were asked | by queries |")
    print("|---|---|---|---|---|---|---|---|---|")
    for queries in SIZES:
        for difference in (*DIFFERENCES, -options.margin):
            units = queries // options.per_unit
            found = rates(queries, difference, policy, options.rounds, units=units)
            shown = (found.passed, found.failed, found.undecided, found.power, found.unguarded, found.single)
            print(f"| {queries:,} | {units:,} | {difference:+.2f} | {' | '.join(f'{share:.1%}' for share in shown)} |", flush=True)


def rates(queries: int, difference: float, policy: PolicyConfig, rounds: int, seed: int = 7, units: int | None = None) -> Rates:
    """The gate's outcomes over `rounds` simulated comparisons, of queries that were drawn in so many units (None: each by itself)."""
    rng = np.random.default_rng([seed, queries, round(difference * 1000) + 1000])
    count = queries if units is None else units
    drawn = [_numbers(queries, count, rng) for _ in range(rounds)]
    pairs = [simulated(queries, difference, rng, numbers if count < queries else None) for numbers in drawn]
    outcomes = [_outcome(pair, policy, numbers) for pair, numbers in zip(pairs, drawn, strict=True)]
    alone = outcomes if count == queries else [_outcome(pair, policy, None) for pair in pairs]
    statuses = Counter(outcome.status for outcome in outcomes)
    unguarded, single = (
        float(np.mean([outcome.value is not None and outcome.value > -policy.margin for outcome in found])) for found in (outcomes, alone)
    )
    shares = [statuses[status] / rounds for status in ("pass", "fail", "not_decidable")]
    power = float(np.median([outcome.power or 0.0 for outcome in outcomes]))
    return Rates(shares[0], shares[1], shares[2], unguarded, power, single)


def simulated(
    queries: int, difference: float, rng: np.random.Generator, numbers: Numbers | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """nDCG@10 of candidate and champion for as many queries, their true means `difference` apart; `numbers` has the unit of each query."""
    first, second = _log_ranks(queries, rng, numbers)
    return _ndcg(first - _shift(difference)), _ndcg(second)


def _numbers(queries: int, units: int, rng: np.random.Generator) -> Numbers:
    """The unit of each query: sizes are uneven, and none is empty."""
    if units == queries:
        return np.arange(queries)
    shares = rng.lognormal(0, 0.7, units)
    return np.concatenate([np.arange(units), rng.choice(units, queries - units, p=shares / shares.sum())])


def _outcome(pair: tuple[NDArray[np.float64], NDArray[np.float64]], policy: PolicyConfig, numbers: Numbers | None) -> Outcome:
    names = [f"q{place}" for place in range(len(pair[0]))]
    candidate, champion = (pd.Series(values, index=names) for values in pair)
    units = None if numbers is None else Units(tuple(names), numbers)
    return non_inferior(in_units(candidate, units), champion, policy.margin, policy)


def _log_ranks(queries: int, rng: np.random.Generator, numbers: Numbers | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mean, spread = LOG_RANK
    shared, own = rng.standard_normal((2, queries))
    if numbers is not None:
        common = rng.standard_normal((2, int(numbers.max()) + 1))[:, numbers]
        shared, own = (np.sqrt(WITHIN) * group + np.sqrt(1 - WITHIN) * each for group, each in zip(common, (shared, own), strict=True))
    other = CORRELATION * shared + np.sqrt(1 - CORRELATION**2) * own
    return mean + spread * other, mean + spread * shared


def _ndcg(log_ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = np.clip(np.ceil(np.exp(log_ranks)), 1, 11)
    return np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0.0)


@cache
def _shift(difference: float) -> float:
    """By how much all log ranks have to fall for the mean to rise by `difference`; found by bisection on one large sample."""
    if difference == 0:
        return 0.0
    ranks = _log_ranks(_CALIBRATION, np.random.default_rng(1))[0]
    low, high = -3.0, 3.0
    before = _ndcg(ranks).mean()
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _ndcg(ranks - middle).mean() - before < difference else (low, middle)
    return (low + high) / 2


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--margin", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--power", type=float, default=0.8)
    parser.add_argument("--per-unit", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
