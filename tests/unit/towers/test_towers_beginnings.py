"""Trees of tokens: every text is read back from its path, none is lost, and common beginnings stand in a tree once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from components.planning.facts import Texts, passed
from components.towers.encoder import Bundle, bundles_of, common_lengths, numbers_of, worth_sharing

ROWS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=40)


def read_back(bundle: Bundle, end: int) -> list[int]:
    row = []
    while end >= 0:
        row.append(bundle.ids[end])
        end = bundle.parents[end]
    return row[::-1]


@given(ROWS, st.integers(1, 30))
def test_every_text_is_the_path_to_its_end(rows: list[list[int]], nodes: int) -> None:
    bundles = bundles_of(rows, nodes)
    assert sorted(numbers_of(bundles)) == list(range(len(rows)))
    for bundle in bundles:
        assert len(bundle.ids) <= max(nodes, *(len(rows[n]) for n in bundle.texts))
        for number, end in zip(bundle.texts, bundle.ends, strict=True):
            assert read_back(bundle, end) == rows[number]
            assert bundle.depths[end] == len(rows[number]) - 1
        assert len({(bundle.parents[n], bundle.ids[n]) for n in range(len(bundle.ids))}) == len(bundle.ids), (
            "a beginning stands there twice"
        )


@given(ROWS)
def test_a_node_sees_itself_and_what_stands_before_it_in_its_texts(rows: list[list[int]]) -> None:
    (bundle,) = bundles_of(rows, 10_000)
    seen = bundle.seen()
    assert seen.sum(1).tolist() == [depth + 1 for depth in bundle.depths]
    for number, end in zip(bundle.texts, bundle.ends, strict=True):
        assert [bundle.ids[node] for node in np.flatnonzero(seen[end])] == rows[number]


@given(ROWS)
def test_one_tree_over_all_holds_as_many_tokens_as_a_plan_counts(rows: list[list[int]]) -> None:
    (bundle,) = bundles_of(rows, 10_000)
    common = np.zeros(len(rows), np.int64)
    for number, length in common_lengths(rows):
        common[number] = length
    assert len(bundle.ids) == sum(map(len, rows)) - common.sum()


def test_sharing_is_left_where_it_saves_little() -> None:
    apart = [[n, n + 1, n + 2] for n in range(0, 300, 3)]
    assert not worth_sharing(apart, bundles_of(apart))
    prompted = [[*range(1000, 1020), *row] for row in apart]
    assert worth_sharing(prompted, bundles_of(prompted))
    assert sum(len(bundle.ids) for bundle in bundles_of(prompted)) < 0.3 * sum(map(len, prompted))


def test_a_plan_counts_common_beginnings_once_for_a_causal_teacher_and_only_there() -> None:
    lengths, common = np.full(100, 30), np.full(100, 20)
    texts = Texts(1_000, 100_000, lengths, lengths, common)
    assert passed(texts, 1_000, 64, 2048, "causal") == 10_000
    assert passed(texts, 1_000, 64, 2048, "bidirectional") == 30_000
    assert passed(texts, 1_000, 25, 2048, "causal") == 5_000  # cut texts have their beginnings still
    assert passed(Texts(1_000, 100_000, lengths, lengths, np.full(100, 1)), 1_000, 64, 2048, "causal") == 30_000, "too little to share"
    assert passed(Texts(1_000, 100_000, lengths, lengths), 1_000, 64, 2048, "causal") == 30_000, "nobody looked"
