"""A corpus of any size for the study of growth: the real document vectors in a fixed random order, and beyond them synthetic ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.artifacts import VectorShards, seal
from components.index.shards import DocumentVectors, ShardKeys, read_vectors, write_shard
from components.studies.synthetic_vectors import BLOCK, SyntheticSpace, space_like

Floats = NDArray[np.float32]


def write_growth_corpus(real: VectorShards, documents: int, seed: int, folder: Path) -> VectorShards:
    """Write shards of `documents` vectors into `folder`; a corpus is the beginning of every larger one with the same seed.

    The ids of synthetic documents begin with `synthetic-`; `counts` says how many there are.
    """
    rows = read_vectors(real)
    order = np.random.default_rng(seed).permutation(len(rows.doc_ids))[:documents]
    synthetic = documents - len(order)
    more = synthetic_blocks(space_like(rows.vectors, seed), synthetic) if synthetic else iter(())
    return write_blocks(chain(_real_blocks(rows, order), more), real.space_id, folder, {"synthetic": synthetic})


def synthetic_blocks(space: SyntheticSpace, rows: int) -> Iterator[tuple[list[str], Floats]]:
    """Ids and vectors of the first `rows` documents of a synthetic space, block by block."""
    first = 0
    for block in space.blocks(rows):
        yield [f"synthetic-{first + i:010d}" for i in range(len(block))], block
        first += len(block)


def write_blocks(blocks: Iterator[tuple[list[str], Floats]], space_id: str, folder: Path, counts: dict[str, int]) -> VectorShards:
    """Write each block of ids and vectors as a shard and seal the folder; an id stands for the content too."""
    documents, number, dimension = 0, 0, 0
    for number, (ids, vectors) in enumerate(blocks, start=1):
        write_shard(folder, ShardKeys(number - 1, ids, ids), vectors, space_id)
        documents, dimension = documents + len(ids), vectors.shape[1]
    artifact = seal(
        folder,
        "vectors",
        counts={"documents": documents, "shards": number, **counts},
        attributes={"space_id": space_id, "dimension": dimension},
    )
    return VectorShards(**artifact.model_dump())


def _real_blocks(rows: DocumentVectors, order: NDArray[np.int64]) -> Iterator[tuple[list[str], Floats]]:
    for start in range(0, len(order), BLOCK):
        chosen = order[start : start + BLOCK]
        yield [rows.doc_ids[row] for row in chosen], rows.vectors[chosen]
