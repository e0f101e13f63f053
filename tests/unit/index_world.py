"""Small corpora of random vectors in shards, for tests of indexes whose answers are computed exactly beside them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.artifacts import IndexArtifact, VectorShards, seal
from components.index.build import build_index
from components.index.config import IndexConfig
from components.index.rows import write_deleted
from components.index.shards import ShardKeys, write_shard

SPACE = "a" * 64
DIMENSION = 16


def clustered(rows: int, seed: int = 0, centres: int = 12, dimension: int = DIMENSION) -> NDArray[np.float32]:
    """Unit vectors, float32 (rows, dimension), around a few centres."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(99).normal(size=(centres, dimension))
    vectors = means[rng.integers(centres, size=rows)] + 0.6 * rng.normal(size=(rows, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def ids_of(rows: int) -> list[str]:
    """Ids whose order is not that of the rows."""
    return [f"d{(i * 7919) % rows:05d}" if rows % 7919 else f"d{i:05d}" for i in range(rows)]


def shards_of(folder: Path, vectors: NDArray[np.float32], sizes: Sequence[int], doc_ids: Sequence[str] = ()) -> VectorShards:
    """The vectors as an artifact of shards of these sizes, the last holding the rest."""
    folder.mkdir(parents=True)
    ids, starts = list(doc_ids) or ids_of(len(vectors)), [0, *np.cumsum(sizes), len(vectors)]
    count = 0
    for first, last in pairwise(starts):
        if first < last:
            keys = ShardKeys(count, ids[first:last], [f"h{i}" for i in ids[first:last]])
            write_shard(folder, keys, vectors[first:last], SPACE)
            count += 1
    counts = {"documents": len(vectors), "shards": count}
    made = seal(folder, "vectors", counts=counts, attributes={"space_id": SPACE, "dimension": vectors.shape[1]})
    return VectorShards(**made.model_dump())


def built(folder: Path, vectors: VectorShards, config: IndexConfig, queries: NDArray[np.float32] | None = None) -> IndexArtifact:
    """An index over the shards, in a new folder."""
    folder.mkdir(parents=True)
    return build_index(vectors, config, folder, queries=queries)


def exact_ids(vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int) -> list[list[str]]:
    """The k nearest ids by the vectors as they are stored, equal scores (six decimals) in the order of the ids."""
    stored = vectors.astype(np.float16).astype(np.float64)
    stored /= np.linalg.norm(stored, axis=1, keepdims=True)
    ids = ids_of(len(vectors))
    scores = np.round(queries @ stored.T, 6)
    return [[ids[row] for row in sorted(range(len(ids)), key=lambda row: (-line[row], ids[row]))[:k]] for line in scores]


def sealed_again(artifact: IndexArtifact, **changes: object) -> IndexArtifact:
    """The same folder, sealed after a change of its files, with other attributes or counts."""
    values = artifact.model_dump()
    counts = {name: changes.pop(name, value) for name, value in values["counts"].items()}
    made = seal(artifact.path, "index", counts=counts, parents=values["parents"], attributes={**values["attributes"], **changes})
    return IndexArtifact(**made.model_dump())


def without(artifact: IndexArtifact, rows: Sequence[int]) -> IndexArtifact:
    """The index with some rows deleted."""
    write_deleted(artifact.path, np.array(rows, np.int64))
    return sealed_again(artifact, deleted=len(rows), documents=artifact.counts["rows"] - len(rows))
