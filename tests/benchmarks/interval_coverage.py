"""Coverage of the 95 % intervals on simulated data whose truth is known: groups of queries, trainings with several seeds, both.

    python -m tests.benchmarks.interval_coverage [--rounds 2000] [--samples 1000]

Each round draws a data set as the built-in set's scope `demo` is (641 queries of 62 categories of very different sizes, values between 0
and 1, a third of them 0) and asks whether the interval holds the true value; 93 to 97 % of them have to. Beside it stands what intervals
over single queries would have held. Ends with status 1 when one is out of that range.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.evaluation.units import Interval, Numbers, mean_interval, paired_bootstrap, ratio_interval, seeded_interval

CONFIDENCE, LOWEST, HIGHEST = 0.95, 0.93, 0.97
QUERIES, CATEGORIES = 641, 62
_LARGE = 4_000_000  # values that a true mean is taken from
Values = NDArray[np.float64]
Measure = Callable[["World", np.random.Generator, int, Numbers | None], Interval]


@dataclass(frozen=True)
class World:
    """How values come about: latent qualities of a query, of its group and of a training, cut to values between 0 and 1.

    `group` and `own_group` are variances that the queries of a unit have in common, of what is hard for all systems and for the first
    alone; `seed_spread` is the standard deviation of a training's quality.
    """

    units: int = CATEGORIES
    queries: int = QUERIES
    group: float = 0.3
    own_group: float = 0.15
    seed_spread: float = 0.0

    def numbers(self, rng: np.random.Generator) -> Numbers:
        """The unit of each query; sizes as uneven as those of the categories, and none of them empty."""
        shares = rng.lognormal(0, 1, self.units)
        rest = rng.choice(self.units, self.queries - self.units, p=shares / shares.sum())
        return np.sort(np.concatenate([np.arange(self.units), rest]))

    def latent(self, rng: np.random.Generator, numbers: Numbers) -> tuple[Values, Values]:
        """What is hard about each query for all systems, and what only for the first of two."""
        size = len(numbers)
        shared = np.sqrt(self.group) * rng.standard_normal(self.units)[numbers] + np.sqrt(1 - self.group) * rng.standard_normal(size)
        own = np.sqrt(self.own_group) * rng.standard_normal(self.units)[numbers] + np.sqrt(0.3) * rng.standard_normal(size)
        return shared, own

    def system(self, shared: Values, own: Values, lead: float, seeds: int, rng: np.random.Generator) -> list[Values]:
        """Values per query of each training of a system; a training differs by its quality and by chance in single queries."""
        qualities = self.seed_spread * rng.standard_normal(seeds)
        noise = 0.2 * rng.standard_normal((seeds, len(shared))) if self.seed_spread else np.zeros((seeds, len(shared)))
        return [_value(shared + own + lead + quality + by_chance) for quality, by_chance in zip(qualities, noise, strict=True)]

    def truth(self, lead: float, own: bool) -> float:
        """The mean of a system over all queries and trainings that there could be."""
        rng = np.random.default_rng(99)
        chance = (0.04 + self.seed_spread**2) * (self.seed_spread > 0)
        spread = np.sqrt(1 + (self.own_group + 0.3) * own + chance)
        return float(_value(lead + spread * rng.standard_normal(_LARGE)).mean())


LEAD = 0.2


def _value(latent: Values) -> Values:
    return np.clip(0.4 + 0.6 * latent, 0, 1)


def grouped_mean(world: World, rng: np.random.Generator, samples: int, numbers: Numbers | None) -> Interval:
    """A level over groups of queries."""
    units = world.numbers(rng)
    values = world.system(*world.latent(rng, units), LEAD, 1, rng)[0]
    return mean_interval(values, samples, CONFIDENCE, _seed(rng), units if numbers is None else numbers)


def grouped_difference(world: World, rng: np.random.Generator, samples: int, numbers: Numbers | None) -> Interval:
    """A paired difference over groups of queries."""
    first, second, units = _pair(world, rng, 1, 1)
    return paired_bootstrap(first[0], second[0], samples, CONFIDENCE, _seed(rng), units if numbers is None else numbers)


def grouped_ratio(world: World, rng: np.random.Generator, samples: int, numbers: Numbers | None) -> Interval:
    """A share kept over groups of queries."""
    first, second, units = _pair(world, rng, 1, 1)
    return ratio_interval(first[0], second[0], samples, CONFIDENCE, _seed(rng), units if numbers is None else numbers)


def seeded_both(world: World, rng: np.random.Generator, samples: int, numbers: Numbers | None) -> Interval:
    """A difference of two systems that were trained with three seeds each."""
    first, second, units = _pair(world, rng, 3, 3)
    return _difference(first, second, samples, rng, units, numbers)


def seeded_one(world: World, rng: np.random.Generator, samples: int, numbers: Numbers | None) -> Interval:
    """A difference of a system that was trained with three seeds from one that takes no training."""
    units = world.numbers(rng)
    shared, own = world.latent(rng, units)
    first, fixed = world.system(shared, own, LEAD, 3, rng), [_value(shared)]
    return _difference(first, fixed, samples, rng, units, numbers)


def seeded_level(world: World, rng: np.random.Generator, samples: int, numbers: Numbers | None) -> Interval:
    """The level of a system that was trained with three seeds."""
    units = world.numbers(rng)
    first = world.system(*world.latent(rng, units), LEAD, 3, rng)
    if numbers is not None:
        return mean_interval(np.mean(first, axis=0), samples, CONFIDENCE, _seed(rng))
    return seeded_interval(first, None, "mean", samples, CONFIDENCE, _seed(rng), units)


def _pair(world: World, rng: np.random.Generator, seeds: int, others: int) -> tuple[list[Values], list[Values], Numbers]:
    units = world.numbers(rng)
    shared, own = world.latent(rng, units)
    return world.system(shared, own, LEAD, seeds, rng), world.system(shared, np.zeros_like(own), 0.0, others, rng), units


def _difference(
    first: list[Values], second: list[Values], samples: int, rng: np.random.Generator, units: Numbers, numbers: Numbers | None
) -> Interval:
    """Over seeds and units; with `numbers` over single queries, of the mean of the seeds."""
    if numbers is not None:
        return paired_bootstrap(np.mean(first, axis=0), np.mean(second, axis=0), samples, CONFIDENCE, _seed(rng))
    return seeded_interval(first, second, "difference", samples, CONFIDENCE, _seed(rng), units)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _lead(world: World) -> float:
    return world.truth(LEAD, True) - world.truth(0.0, False)


def _over_fixed(world: World) -> float:
    return world.truth(LEAD, True) - World(world.units, world.queries, world.group, world.own_group).truth(0.0, False)


def _ratio(world: World) -> float:
    return world.truth(LEAD, True) / world.truth(0.0, False)


def _level(world: World) -> float:
    return world.truth(LEAD, True)


ALONE = World(units=QUERIES)
# Name -> the world, what is measured in it, and the true value.
CASES: dict[str, tuple[World, Measure, Callable[[World], float]]] = {
    "level, each query a unit": (ALONE, grouped_mean, _level),
    "difference, each query a unit": (ALONE, grouped_difference, _lead),
    "level, 62 units": (World(), grouped_mean, _level),
    "difference, 62 units": (World(), grouped_difference, _lead),
    "share kept, 62 units": (World(), grouped_ratio, _ratio),
    "difference, 337 units": (World(units=337), grouped_difference, _lead),
    "difference, 12 units": (World(units=12), grouped_difference, _lead),
    "level, 3 seeds, 62 units": (World(seed_spread=0.05), seeded_level, _level),
    "difference of 3 and 3 seeds, small noise of training, 62 units": (World(seed_spread=0.03), seeded_both, _lead),
    "difference of 3 and 3 seeds, as large as that of queries, 62 units": (World(seed_spread=0.1), seeded_both, _lead),
    "difference of 3 and 3 seeds, far larger, 62 units": (World(seed_spread=0.4), seeded_both, _lead),
    "difference of 3 seeds and none, as large, 62 units": (World(seed_spread=0.1), seeded_one, _over_fixed),
    "difference of 3 seeds and none, each query a unit": (World(units=QUERIES, seed_spread=0.05), seeded_one, _over_fixed),
}


def coverage(case: str, rounds: int, samples: int, naive: bool = False, seed: int = 5) -> tuple[float, float]:
    """The share of `rounds` intervals that hold the true value, and their mean width; `naive`: over single queries."""
    world, measure, true = CASES[case]
    rng, value = np.random.default_rng([seed, list(CASES).index(case)]), true(world)
    single = np.arange(world.queries) if naive else None
    found = [measure(world, rng, samples, single) for _ in range(rounds)]
    held = float(np.mean([interval.low <= value <= interval.high for interval in found]))
    return held, float(np.mean([interval.high - interval.low for interval in found]))


def main() -> int:
    """Print the table; 1 when a coverage is out of range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000)
    options = parser.parse_args()
    print("| intervals | held the truth | mean width | held by single queries |")
    print("|---|---|---|---|")
    outside = 0
    for case in CASES:
        held, width = coverage(case, options.rounds, options.samples)
        single = coverage(case, options.rounds // 4, options.samples, naive=True)[0]
        wrong = not LOWEST <= held <= HIGHEST
        outside += wrong
        print(f"| {case} | {held:.1%}{' OUT OF RANGE' if wrong else ''} | {width:.3f} | {single:.1%} |", flush=True)
    print(f"{len(CASES) - outside} of {len(CASES)} between {LOWEST:.0%} and {HIGHEST:.0%}, {options.rounds:,} rounds each")
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
