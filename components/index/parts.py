"""Parts of an index: stored vectors and a FAISS file each, made from one template, merged into one file or searched side by side.

    part-00000.json          rows, space and template: FAISS itself checks nothing
    part-00000.vectors.npy   (rows, d) float16, or int8 with part-00000.scales.npy; absent when nothing is refined
    part-00000.faiss         absent for exact search, and for parts that lie in index.faiss
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.index.template import Template

INDEX_FILE = "index.faiss"


@dataclass(frozen=True)
class StoredPart:
    """One part on disk. `template_digest` is None for exact search."""

    number: int
    rows: int
    space_id: str
    template_digest: str | None


def write_part(folder: Path, number: int, template: Template, blocks: Iterable[NDArray[Any]]) -> StoredPart:
    """Write part `number` from blocks of vectors, (m, d) float32 of unit length or float16 as stored, in row order.

    Only one block is held in memory, besides the codes of the part. A single array is given as `[vectors]`.
    """
    raise NotImplementedError


def read_part(folder: Path, number: int) -> StoredPart:
    """What part `number` says about itself; raises ArtifactError when it is missing or broken."""
    raise NotImplementedError


def open_part(folder: Path, number: int) -> Any:
    """The FAISS index of a part, memory-mapped where its type allows it."""
    raise NotImplementedError


def part_files(folder: Path, number: int) -> list[Path]:
    """Every file of part `number` that exists, for linking or removing it."""
    raise NotImplementedError


def stored_vectors(folder: Path, number: int) -> NDArray[Any]:
    """The stored vectors of a part, memory-mapped: (rows, d) float16 or int8; raises ArtifactError when none are kept."""
    raise NotImplementedError


def merge_parts(folder: Path) -> int:
    """Put every part's FAISS index into `index.faiss`, remove their own files, and return the rows.

    Raises SpaceMismatch for a part of another space, ArtifactError for one of another template, each named. Kinds that FAISS cannot
    merge (graphs) are left as they are.
    """
    raise NotImplementedError
