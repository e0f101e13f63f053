"""The presets' policies against the data they are meant for: a candidate that is no better and no worse has to have a fair chance."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluation.units import WITHIN, power
from components.gates.config import PolicyConfig
from flows.config import load_config, preset_names

# Judged test queries: of the built-in set (demo has the scope quick, gpu full), of tldr (pages), and what the preset's comment asks for
# (cluster).
QUERIES = {"demo": 683, "gpu": 1437, "pages": 1537, "cluster": 3100, "qwen3-embedding": 1437}
# Queries of the unit of a query, on average: of the categories of the built-in set, of the pages of tldr; cluster asks for single ones.
UNIT = {"demo": 21.8, "gpu": 20.7, "pages": 2.7, "cluster": 1.0, "qwen3-embedding": 20.7}
ON_THE_DEMO = ("adopt", "embeddinggemma", "endpoint", "harrier")
QUERIES |= dict.fromkeys(ON_THE_DEMO, 641)  # of the scope demo
UNIT |= dict.fromkeys(ON_THE_DEMO, UNIT["demo"])
SPREAD = 0.2  # standard deviation of nDCG@10 per query between two trainings of the demo


def chance(queries: int, margin: float, policy: PolicyConfig, unit: float = 1.0) -> float:
    """The chance that an equal candidate passes, for differences with this spread, whose queries were drawn in units of this size."""
    gaps = np.tile([-1.0, 1.0], queries // 2) * SPREAD * (1 + WITHIN * (unit - 1)) ** 0.5
    return power(gaps, margin, policy.confidence)


def test_every_preset_that_asks_for_power_is_looked_at() -> None:
    asking = {name for name in preset_names() if load_config(name).policy.min_power is not None}
    assert asking == set(QUERIES)


@pytest.mark.parametrize("preset", sorted(QUERIES))
def test_an_equal_candidate_can_pass(preset: str) -> None:
    policy = load_config(preset).policy
    assert policy.min_power is not None and policy.slice_margin is not None
    assert QUERIES[preset] >= policy.min_queries
    assert chance(QUERIES[preset], policy.margin, policy, UNIT[preset]) >= policy.min_power
    share = policy.min_slice_queries / QUERIES[preset]  # the queries of a unit lie in all slices alike
    assert chance(policy.min_slice_queries, policy.slice_margin, policy, max(1.0, share * UNIT[preset])) >= policy.min_power


def test_the_smoke_preset_decides_on_a_handful_of_queries() -> None:
    policy = load_config("smoke").policy
    assert (policy.min_power, policy.min_queries, policy.min_slice_queries) == (None, 5, 5)
