"""Synthetic document vectors, where a measurement needs more than there are: a mixture of clusters on few dimensions, and noise.

    x = unit(basis * (centre of a cluster + spread of that cluster * normal) + noise * normal)

The basis spans far fewer dimensions than the vector has and the spreads differ by direction and cluster, as with texts: a query finds
many near neighbours in its own cluster and the rest of the corpus at a distance. Isotropic vectors would make every index look bad,
a few round clusters would make it look perfect. Vectors come in blocks of a fixed size, each from a seed of its own, so that a
corpus of n vectors is the beginning of every larger one and never has to be in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK = 16_384
RANK, CLUSTERS = 96, 4096
# Shares of the variance: of the centres, of the spread within a cluster, of the noise over all dimensions.
CENTRES, WITHIN, NOISE = 0.50, 0.42, 0.08
DECAY = 0.7  # the spread falls with the number of the direction to the power of this
QUERY_NOISE = 0.75  # length of what separates a query from a document, over the document's
MOST_CENTRES = 4096

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SyntheticSpace:
    """Where synthetic vectors are drawn from: basis (rank, d), centres and spreads (clusters, rank), weights (clusters,), noise."""

    basis: Floats
    centres: Floats
    spreads: Floats
    weights: NDArray[np.float64]
    noise: float
    seed: int

    def block(self, number: int) -> Floats:
        """The vectors number * BLOCK to (number + 1) * BLOCK - 1, float32 (BLOCK, d) of unit length."""
        rng = np.random.default_rng([self.seed, 1, number])
        cluster = rng.choice(len(self.weights), BLOCK, p=self.weights)
        inner = self.centres[cluster] + self.spreads[cluster] * rng.standard_normal((BLOCK, len(self.basis)), np.float32)
        return unit(inner @ self.basis + np.float32(self.noise) * rng.standard_normal((BLOCK, self.basis.shape[1]), np.float32))

    def blocks(self, rows: int) -> Iterator[Floats]:
        """The first `rows` vectors, block by block; the last block is cut."""
        for number in range(-(-rows // BLOCK)):
            yield self.block(number)[: rows - number * BLOCK]

    def queries(self, documents: Floats, count: int) -> Floats:
        """float32 (count, d): documents drawn from `documents` (n, d), moved in the space by QUERY_NOISE of their length."""
        rng = np.random.default_rng([self.seed, 2])
        near = documents[rng.integers(len(documents), size=count)]
        step = rng.standard_normal((count, len(self.basis)), np.float32) @ self.basis
        step += np.float32(self.noise) * rng.standard_normal(near.shape, np.float32)
        return unit(near + np.float32(QUERY_NOISE) * unit(step))


def random_space(dimension: int, seed: int = 13) -> SyntheticSpace:
    """A space of `dimension` dimensions with CLUSTERS clusters of very different sizes on RANK of them (fewer in a small space)."""
    rng = np.random.default_rng([seed, 0])
    rank = min(RANK, dimension)
    basis = np.linalg.qr(rng.standard_normal((dimension, rank)))[0].T
    spectrum = np.arange(1, rank + 1) ** -DECAY
    spectrum /= np.sqrt((spectrum**2).sum())
    centres = rng.standard_normal((CLUSTERS, rank)) * spectrum * np.sqrt(CENTRES)
    # Each cluster has its own widest directions, and is wider or narrower as a whole.
    within = np.array([rng.permutation(spectrum) for _ in range(CLUSTERS)]) * rng.lognormal(0, 0.3, (CLUSTERS, 1)) * np.sqrt(WITHIN)
    weights = rng.lognormal(0, 1, CLUSTERS)
    noise = float(np.sqrt(NOISE / dimension))
    return SyntheticSpace(_single(basis), _single(centres), _single(within), weights / weights.sum(), noise, seed)


def space_like(vectors: Floats, seed: int = 13) -> SyntheticSpace:
    """A space whose vectors resemble the real ones, float32 (n, d): some of them are its centres, the distances between them its spread.

    The basis holds the main directions of the real vectors, the noise what lies off them.
    """
    rng = np.random.default_rng([seed, 0])
    rows = vectors[rng.permutation(len(vectors))[: 2 * MOST_CENTRES]]
    rank = max(1, min(RANK, vectors.shape[1], len(rows) - 1))
    basis = np.linalg.svd(rows, full_matrices=False)[2][:rank]
    centres = rows[: max(1, min(MOST_CENTRES, len(rows) // 2))] @ basis.T
    spread = _distance_to_centres(rows @ basis.T, centres)
    off = rows - (rows @ basis.T) @ basis
    weights = np.full(len(centres), 1 / len(centres))
    return SyntheticSpace(_single(basis), _single(centres), _single(np.tile(spread, (len(centres), 1))), weights, float(off.std()), seed)


def unit(vectors: Floats) -> Floats:
    """The vectors at length 1; float32 like them."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))


def _distance_to_centres(rows: Floats, centres: Floats) -> NDArray[np.float64]:
    """By direction, the root mean square of what separates a row from the nearest centre that is not itself."""
    similarity = unit(rows) @ unit(centres).T
    similarity[np.arange(len(centres)), np.arange(len(centres))] = -np.inf if len(centres) > 1 else 0
    nearest = centres[similarity.argmax(axis=1)]
    return np.sqrt(((rows - nearest) ** 2).mean(axis=0, dtype=np.float64))


def _single(values: NDArray[np.floating]) -> Floats:
    return np.ascontiguousarray(values, np.float32)
