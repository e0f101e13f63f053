"""The plan of batches: what every epoch holds, windows of similar length, data sets kept apart."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.errors import ModelError
from components.towers.config import TowerConfig
from components.towers.pairs import BatchPlan, Pairs


def world(count: int, origins: list[str] | None = None) -> Pairs:
    """`count` pairs of a query and a document of the same number."""
    texts = [str(n) for n in range(count)]
    return Pairs(texts, texts, [(n, n) for n in range(count)], {n: frozenset([n]) for n in range(count)}, origins or ())


def plan(count: int, origins: list[str] | None = None, **fields: object) -> BatchPlan:
    """A plan over documents of random lengths, most of them different."""
    lengths = np.random.default_rng(1).integers(1, 1000, count).tolist()
    queries = np.random.default_rng(2).permutation(count).tolist()
    return BatchPlan(world(count, origins), TowerConfig(**fields), queries, lengths)  # type: ignore[arg-type]


@settings(max_examples=40)
@given(count=st.integers(4, 90), size=st.integers(2, 9), window=st.integers(1, 5), seed=st.integers(0, 9), mixed=st.booleans())
def test_an_epoch_holds_whole_batches_of_different_pairs(count: int, size: int, window: int, seed: int, mixed: bool) -> None:
    origins = ["a" if n % 3 else "b" for n in range(count)] if mixed else None
    groups = Counter(origins or [""] * count)
    if min(groups.values()) < size:
        with pytest.raises(ModelError):
            plan(count, origins, batch_size=size, length_window=window, homogeneous_batches=mixed)
        return
    found = plan(count, origins, batch_size=size, length_window=window, seed=seed, homogeneous_batches=mixed)
    assert found.steps_per_epoch == sum(members // size for members in groups.values())
    for epoch in range(2):
        batches = [found.of_step(epoch * found.steps_per_epoch + slot) for slot in range(found.steps_per_epoch)]
        seen = [number for batch in batches for number in batch]
        assert len(set(seen)) == len(seen) == found.steps_per_epoch * size
        assert all(len(batch) == size for batch in batches)


def test_every_pair_comes_once_when_the_batches_come_out_even() -> None:
    found = plan(60, batch_size=10, length_window=3)
    for epoch in range(3):
        seen = [number for slot in range(6) for number in found.of_step(epoch * 6 + slot)]
        assert sorted(seen) == list(range(60))
    assert found.of_step(0) != found.of_step(6)


def test_a_batch_follows_from_seed_and_step_whatever_was_asked_before() -> None:
    fields = {"batch_size": 8, "length_window": 2, "seed": 5}
    forwards, backwards = plan(50, **fields), plan(50, **fields)
    straight = [forwards.of_step(step) for step in range(20)]
    assert [backwards.of_step(step) for step in reversed(range(20))] == straight[::-1]
    assert plan(50, **{**fields, "seed": 6}).of_step(0) != straight[0]


def test_without_a_window_a_batch_is_a_slice_of_a_permutation() -> None:
    order = np.random.default_rng([3, 1]).permutation(50)
    assert plan(50, batch_size=10, seed=3).of_step(7) == order[20:30].tolist()


def test_the_batches_of_a_window_are_slices_of_its_sorted_lengths() -> None:
    lengths = np.random.default_rng(1).integers(1, 1000, 48)
    found = plan(48, batch_size=4, length_window=3)
    for window in range(4):
        batches = [sorted(lengths[found.of_step(window * 3 + slot)].tolist()) for slot in range(3)]
        assert list(chain(*sorted(batches))) == sorted(chain(*batches))
    in_order = [min(lengths[found.of_step(step)]) for step in range(12)]
    # The batches of a window come in random order, or the shortest texts would always be learned first.
    assert any(in_order[start : start + 3] != sorted(in_order[start : start + 3]) for start in range(0, 12, 3))


def test_pairs_of_documents_of_one_length_are_sorted_by_query() -> None:
    pairs = world(40)
    queries = list(np.random.default_rng(2).permutation(40))
    found = BatchPlan(pairs, TowerConfig(batch_size=10, length_window=4), queries, [7] * 40)
    batches = sorted(sorted(queries[n] for n in found.of_step(step)) for step in range(4))
    assert list(chain(*batches)) == list(range(40))


@settings(max_examples=40)
@given(kinds=st.lists(st.sampled_from("aaaabbbccd"), min_size=4, max_size=60), size=st.integers(2, 6), seed=st.integers(0, 9))
def test_batches_of_one_kind_lose_no_kind_and_less_than_a_batch_of_each(kinds: list[str], size: int, seed: int) -> None:
    pairs = replace(world(len(kinds)), kinds=kinds)
    if len(kinds) < size:
        return
    found = BatchPlan(pairs, TowerConfig(batch_size=size, seed=seed), [1] * len(kinds), [1] * len(kinds))
    batches = [found.of_step(slot) for slot in range(found.steps_per_epoch)]
    seen = [number for batch in batches for number in batch]
    assert len(set(seen)) == len(seen) and all(len(batch) == size for batch in batches)
    counts = Counter(kinds)
    alone = [kind for kind in counts if counts[kind] >= size]
    mixed = [batch for batch in batches if len({kinds[i] for i in batch}) > 1]
    # Only kinds of less than a batch are mixed, and one large kind at most with them.
    assert len({kinds[i] for batch in mixed for i in batch} & set(alone)) <= 1
    assert len(seen) >= len(kinds) - (len(alone) + 1) * (size - 1)


def test_one_kind_alone_makes_the_batches_of_none() -> None:
    plain, named = (BatchPlan(replace(world(40), kinds=kinds), TowerConfig(batch_size=8), [1] * 40, [1] * 40) for kinds in ((), ["x"] * 40))
    assert [plain.of_step(step) for step in range(10)] == [named.of_step(step) for step in range(10)]


@pytest.mark.parametrize(("kinds", "expected"), [("abcdefgh", True), ("a", False), ("abbbbbbb", False), ("", False)])
def test_kinds_that_are_all_too_small_for_a_batch_are_known(kinds: str, expected: bool) -> None:
    named = replace(world(40), kinds=list(kinds) * (40 // len(kinds)) if kinds else ())
    assert BatchPlan(named, TowerConfig(batch_size=8), [1] * 40, [1] * 40).kinds_are_too_small is expected


def test_kinds_that_are_too_small_within_each_data_set_are_known() -> None:
    named = replace(world(40), kinds=list("abcd") * 10, origins=["x"] * 20 + ["y"] * 20)
    for homogeneous in (False, True):
        plan = BatchPlan(named, TowerConfig(batch_size=8, homogeneous_batches=homogeneous), [1] * 40, [1] * 40)
        assert plan.kinds_are_too_small is homogeneous


def test_homogeneous_batches_hold_one_data_set_and_come_in_random_order() -> None:
    origins = ["a"] * 40 + ["b"] * 24
    found = plan(64, origins, batch_size=8, homogeneous_batches=True)
    for epoch in range(2):
        names = [{origins[n] for n in found.of_step(epoch * 8 + slot)} for slot in range(8)]
        assert sorted(chain(*names)) == ["a"] * 5 + ["b"] * 3
        assert names != sorted(names, key=sorted)
    mixed = plan(64, origins, batch_size=8)
    assert any(len({origins[n] for n in mixed.of_step(step)}) == 2 for step in range(8))


def test_too_few_pairs_for_a_batch_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"batch_size is 16, but there are only 10 training pairs"):
        plan(10, batch_size=16)
    with pytest.raises(ModelError, match=r"needs 8 training pairs of every data set .*, but 'b' has only 4"):
        plan(20, ["a"] * 16 + ["b"] * 4, batch_size=8, homogeneous_batches=True)
