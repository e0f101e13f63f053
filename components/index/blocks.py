"""What a build reads from the shards of vectors, one shard at a time: ids, a sample, and blocks of vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import VectorShards
from components.errors import ArtifactError
from components.index.numbers import unit_rows
from components.index.shards import half_vectors, read_shard, read_shard_manifest

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Survey:
    """One reading of all shards: doc_id and content_hash of every row, and a sample of the vectors, float32 (n, d) of unit length."""

    documents: pa.Table
    sample: NDArray[np.float32]


def shard_sizes(vectors: VectorShards) -> list[int]:
    """Rows of each shard; raises ArtifactError when there are none."""
    sizes = [read_shard_manifest(vectors.path, n).rows for n in range(vectors.counts["shards"])]
    if not sum(sizes):
        raise ArtifactError(f"{vectors.path} holds no vectors; encode the documents again.")
    return sizes


def survey(vectors: VectorShards, sizes: Sequence[int], sampled: int, seed: int) -> Survey:
    """Read every shard once; the sample is drawn by `seed` from all rows alike, at most `sampled` of them, in row order.

    Raises ArtifactError for a shard that is missing or changed, and for ids that occur twice, SpaceMismatch for a shard of another space.
    """
    import pyarrow as pa

    rows = sum(sizes)
    chosen = np.sort(np.random.default_rng(seed).choice(rows, min(sampled, rows), replace=False))
    tables, sample, first = [], [], 0
    for number, size in enumerate(sizes):
        table = read_shard(vectors, number)
        tables.append(table.select(["doc_id", "content_hash"]))
        mine = chosen[(chosen >= first) & (chosen < first + size)] - first
        sample.append(half_vectors(table)[mine])
        first += size
    documents = pa.concat_tables(tables)
    _require_unique(documents, vectors)
    return Survey(documents, unit_rows(np.concatenate(sample)))


def half_blocks(vectors: VectorShards, shards: Sequence[int]) -> Iterator[NDArray[np.float16]]:
    """The vectors of some shards as they are stored, float16 (rows, d), a shard at a time."""
    for number in shards:
        yield half_vectors(read_shard(vectors, number))


def unit_blocks(vectors: VectorShards, shards: Sequence[int]) -> Iterator[NDArray[np.float32]]:
    """The same as float32 of unit length."""
    return (unit_rows(block) for block in half_blocks(vectors, shards))


def parts_of(sizes: Sequence[int], part_size: int) -> list[list[int]]:
    """Numbers of consecutive shards that make one part each: as many as it takes to hold `part_size` rows."""
    parts: list[list[int]] = [[]]
    rows = 0
    for number, size in enumerate(sizes):
        if rows >= part_size:
            parts.append([])
            rows = 0
        parts[-1].append(number)
        rows += size
    return parts


def _require_unique(documents: pa.Table, vectors: VectorShards) -> None:
    counts = documents.group_by("doc_id").aggregate([("doc_id", "count")])
    twice = counts.filter(counts["doc_id_count"].to_numpy() > 1)
    if twice.num_rows:
        raise ArtifactError(
            f"{vectors.path}: {twice.num_rows} document ids occur more than once, the first is '{twice['doc_id'][0].as_py()}'. "
            "An answer could not be traced to one document: make the ids unique and encode again."
        )
