"""The course of a distillation: phases, learning rates, and the share of each source."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from components.distillation.config import DistillationConfig
from components.distillation.plan import Epoch, learning_rate, make_plan, order_of, texts_per_source
from components.errors import DataError
from components.towers.schedule import cyclic, one_cycle

SOURCES = ["train"] * 60 + ["titles"] * 30 + ["sentences"] * 10


def test_one_cycle_rises_for_three_tenths_and_falls_to_nothing() -> None:
    factors = [one_cycle(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.04)
    assert factors[15] == pytest.approx(0.04 + 0.96 / 2)
    assert factors[30] == 1
    assert factors[65] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert np.argmax(factors) == 30


def test_a_cyclic_rate_repeats_its_triangle() -> None:
    factors = [cyclic(step, 40, 4) for step in range(40)]
    assert factors[0] == pytest.approx(0.04)
    assert factors[5] == 1
    assert factors[2] == pytest.approx(0.04 + 0.96 * 0.4)
    assert factors[8] == pytest.approx(factors[2])
    assert factors[10:20] == pytest.approx(factors[:10])


def test_the_plan_aligns_prunes_and_aligns_again_then_refines() -> None:
    config = DistillationConfig(epochs=2, prune_to=(4, 2), prune_epochs=1, refine_epochs=2)
    plan = make_plan(100, 30, config)
    assert [(e.phase.name, e.number, e.phase.rows, e.phase.prune_to) for e in plan] == [
        ("align", 0, 100, None),
        ("align", 1, 100, None),
        ("align at 4 layers", 0, 100, 4),
        ("align at 2 layers", 0, 100, 2),
        ("refine", 0, 30, None),
        ("refine", 1, 30, None),
    ]
    assert [e.place for e in plan] == [0, 0, 1, 2, 3, 3]
    assert all(epoch.phase.kind == "align" for epoch in make_plan(100, 0, config))


def test_each_phase_has_a_whole_course_of_the_rate() -> None:
    config = DistillationConfig(epochs=2, prune_to=(2,), schedule="one_cycle", learning_rate=0.5, refine_learning_rate=0.25)
    first, second, pruned, *refining = make_plan(100, 50, config)
    assert learning_rate(first, 0, config) == learning_rate(pruned, 0, config) == pytest.approx(0.02)
    assert learning_rate(first, 60, config) == 0.5
    assert learning_rate(second, 30, config) == pytest.approx(0.25)
    assert max(learning_rate(epoch, row, config) for epoch in refining for row in range(0, 50, 5)) == 0.25
    cyclical = config.model_copy(update={"schedule": "cyclic", "cycles": 2})
    assert learning_rate(first, 50, cyclical) == learning_rate(second, 50, cyclical) == 0.5


def test_without_shares_an_epoch_is_every_text_once_in_an_order_of_its_own() -> None:
    first, second, *_ = make_plan(100, 0, config := DistillationConfig(epochs=2))
    assert sorted(order_of(first, SOURCES, config)) == list(range(100))
    assert order_of(first, SOURCES, config).tolist() == order_of(first, SOURCES, config).tolist()
    assert order_of(first, SOURCES, config).tolist() != order_of(second, SOURCES, config).tolist()


def test_shares_are_kept_in_every_epoch() -> None:
    config = DistillationConfig(epochs=3, source_shares={"train": 0.3, "titles": 0.2, "sentences": 0.5})
    epochs = make_plan(100, 0, config)
    orders = [order_of(epoch, SOURCES, config) for epoch in epochs]
    for order in orders:
        assert Counter(SOURCES[i] for i in order) == {"train": 30, "titles": 20, "sentences": 50}
        assert set(Counter(i for i in order if SOURCES[i] == "sentences").values()) == {5}
        assert set(Counter(i for i in order if SOURCES[i] == "train").values()) == {1}
    assert {i for i in orders[0] if SOURCES[i] == "train"} != {i for i in orders[1] if SOURCES[i] == "train"}


def test_shares_need_not_add_up_and_leave_nothing_over() -> None:
    sizes = {"train": 5, "titles": 3, "sentences": 2}
    assert texts_per_source(sizes, {}) == sizes
    assert texts_per_source(sizes, {"train": 1.0, "titles": 1.0, "sentences": 1.0}) == {"train": 4, "titles": 3, "sentences": 3}
    assert texts_per_source(sizes, {"train": 0.2, "titles": 0.0}) == {"train": 10}


def test_a_share_that_comes_to_less_than_a_text_gives_none() -> None:
    config = DistillationConfig(epochs=1, source_shares={"train": 1.0, "sentences": 0.001})
    order = order_of(make_plan(100, 0, config)[0], SOURCES, config)
    assert Counter(SOURCES[i] for i in order) == {"train": 100}


def test_a_share_of_a_source_without_texts_is_refused() -> None:
    with pytest.raises(DataError, match=r"'unlabelled' a share of 0\.5, but there are no such queries \(train: 5, unlabelled: 0\)"):
        texts_per_source({"train": 5, "unlabelled": 0}, {"train": 0.5, "unlabelled": 0.5})


def test_refinement_ignores_the_shares() -> None:
    config = DistillationConfig(epochs=1, source_shares={"titles": 1.0})
    refining: Epoch = make_plan(100, 7, config)[1]
    assert sorted(order_of(refining, SOURCES, config)) == list(range(7))
