from __future__ import annotations

import numpy as np
import pytest

from components.studies import growth_cell as synthetic
from components.studies.growth_cell import random_space, space_like
from components.towers.contract import unit


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "BLOCK", 512)
    monkeypatch.setattr(synthetic, "CLUSTERS", 40)


def test_vectors_are_of_unit_length_and_the_same_for_the_same_seed() -> None:
    space = random_space(32, seed=1)
    together = np.concatenate(list(space.blocks(1100)))
    assert together.shape == (1100, 32) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(together, np.concatenate(list(random_space(32, seed=1).blocks(1100))))
    assert not np.allclose(together, np.concatenate(list(random_space(32, seed=2).blocks(1100))))


def test_a_corpus_is_the_beginning_of_a_larger_one() -> None:
    space = random_space(16)
    small, large = (np.concatenate(list(space.blocks(rows))) for rows in (600, 1500))
    np.testing.assert_array_equal(small, large[:600])


def test_a_query_is_near_a_document_but_none_itself() -> None:
    space = random_space(64)
    documents = np.concatenate(list(space.blocks(2000)))
    queries = space.queries(documents, 50)
    best = (queries @ documents.T).max(axis=1)
    assert (best < 0.999).all() and np.median(best) > 0.6
    assert np.median(queries @ documents.T) < 0.3


def test_a_space_like_real_vectors_has_their_directions() -> None:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.normal(size=(48, 4)))[0].T
    real = unit((rng.normal(size=(300, 4)) @ directions).astype(np.float32))
    made = space_like(real).block(0)
    np.testing.assert_allclose(np.linalg.norm(made @ directions.T, axis=1), 1, atol=1e-2)
    # As far from its nearest real neighbour as a real one from another: not a copy, not a stranger.
    near = np.median((made @ real.T).max(axis=1))
    among = real @ real.T
    np.fill_diagonal(among, -1)
    assert 0.8 * np.median(among.max(axis=1)) < near < 0.9999


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_space_like_very_few_vectors(rows: int) -> None:
    real = unit(np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32))
    made = space_like(real).block(0)
    assert made.shape == (512, 8) and np.isfinite(made).all()
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    if rows > 2:  # with fewer there is no distance between vectors that others could be drawn at
        assert len(np.unique(made.round(5), axis=0)) > 500
    near = np.median((made @ real.T).max(axis=1))
    assert near > 0.5, near
