from __future__ import annotations

import numpy as np

from components.index import parts as refine
from components.index.parts import StoredVectors
from components.index.shards import to_float32, to_int8, unit_rows
from tests.unit.index_world import clustered


def test_halves_become_the_same_numbers_as_by_numpys_cast() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    np.testing.assert_array_equal(to_float32(finite), finite.astype(np.float32))
    np.testing.assert_array_equal(to_float32(finite.reshape(2, -1)[:, ::2]), finite.reshape(2, -1)[:, ::2].astype(np.float32))


def test_scores_are_cosines_with_the_rows_asked_for_across_parts(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    vectors = clustered(50).astype(np.float16)
    queries, rows = clustered(3, seed=1), np.array([[0, 49, 20], [-1, 3, 19], [20, 20, 49]])
    unit = unit_rows(vectors).astype(np.float64)
    expected = np.einsum("nd,ncd->nc", queries, unit[rows])
    expected[1, 0] = -np.inf
    for parts in ([vectors], [vectors[:20], vectors[20:]]):
        np.testing.assert_allclose(StoredVectors(parts).scores(queries, rows), expected, atol=1e-6)
    monkeypatch.setattr(refine, "_AT_ONCE", 1)  # a query at a time
    np.testing.assert_allclose(StoredVectors([vectors]).scores(queries, rows), expected, atol=1e-6)


def test_blocks_hold_all_rows_in_order_and_stop_at_parts() -> None:
    vectors = clustered(50).astype(np.float16)
    blocks = list(StoredVectors([vectors[:20], vectors[20:]]).blocks(15))
    assert [len(block) for block in blocks] == [15, 5, 15, 15]
    np.testing.assert_array_equal(np.concatenate(blocks), unit_rows(vectors))


def test_int8_keeps_the_direction_to_half_a_step() -> None:
    vectors = clustered(100)
    coded = to_int8(vectors)
    assert np.abs(coded).max(axis=1).tolist() == [127] * 100
    steps = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(coded * steps - vectors) <= steps * 0.5001).all()
    cosines = np.einsum("nd,nd->n", unit_rows(coded), vectors)
    assert cosines.min() > 0.9999
