"""The teacher's query vectors, computed once and kept as an artifact: aligning a student needs neither teacher nor documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.artifacts import VectorShards, seal
from components.data.dataset import TRANSLATED
from components.errors import ArtifactError
from components.towers.contract import TextEncoder, unit
from components.towers.trained.stored import read_table, write_table

if TYPE_CHECKING:
    import pyarrow as pa

TARGETS = "teacher_targets.parquet"
HELD_OUT = "held out"  # source of the queries that are only compared with, never learned from


def write_teacher_targets(
    teacher: TextEncoder,
    sources: Mapping[str, Sequence[str]],
    parents: Mapping[str, str],
    folder: Path,
    held_out: Sequence[str] = (),
    left_out: Mapping[str, int] | None = None,
    originals: Mapping[str, str] | None = None,
) -> VectorShards:
    """Encode the queries of every source (name -> texts) with the teacher's query tower and keep text, source and vector (fp16).

    A text that stands in two sources counts for the first. `held_out` texts are encoded too, but are no targets. The artifact counts
    the queries of each source and names its share of all, and counts those `left_out` of each. Of the source translated the teacher reads
    the text's entry in `originals`, so that another language gets the vector of what it means.
    """
    first = first_sources(sources)
    texts, origins = [*first, *held_out], [*first.values(), *[HELD_OUT] * len(held_out)]
    same = originals or {}
    asked = [same[text] if origin == TRANSLATED else text for text, origin in zip(texts, origins, strict=True)]
    vectors = teacher.encode(asked, progress="teacher queries").astype(np.float16)
    write_table(folder / TARGETS, {"text": texts, "source": origins}, vectors)
    found = Counter(first.values())
    sizes = {source: found[source] for source in sources}
    counts = {"queries": len(first), **{f"source_{source}": size for source, size in sizes.items()}}
    counts |= {f"left_out_{source}": size for source, size in (left_out or {}).items() if size}
    shares = {f"share_{source}": round(size / max(1, len(first)), 4) for source, size in sizes.items()}
    attributes = {"space_id": teacher.space_id, "dimension": vectors.shape[1], **shares}
    made = seal(folder, "vectors", counts=counts, parents=parents, attributes=attributes)
    return VectorShards.model_validate(made.model_dump())


def first_sources(sources: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Each different text with the source that it counts for, which is the first that has it."""
    first: dict[str, str] = {}
    for source, members in sources.items():
        for text in members:
            first.setdefault(text, source)
    return first


def read_teacher_targets(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Texts to learn from and their unit vectors, float32 (n, dimension)."""
    table = _read(folder, held_out=False)
    return table["text"].to_pylist(), _unit_vectors(table)


def read_sources(folder: Path) -> list[str]:
    """The source of each text, in the order of `read_teacher_targets`."""
    sources: list[str] = _read(folder, held_out=False)["source"].to_pylist()
    return sources


def read_held_out(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Held-out texts with their unit vectors, float32 (dimension,)."""
    table = _read(folder, held_out=True)
    return dict(zip(table["text"].to_pylist(), _unit_vectors(table), strict=True))


def held_out_vectors(folder: Path) -> NDArray[np.float32] | None:
    """Unit vectors of the held-out texts alone, float32 (n, dimension); None when there are none."""
    table = _read(folder, held_out=True)
    return _unit_vectors(table) if len(table) else None


def _read(folder: Path, held_out: bool) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        table = read_table(folder / TARGETS)
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{folder / TARGETS} cannot be read ({error}). Run the flow again to make it anew.") from None
    of_held_out = pc.equal(table["source"], HELD_OUT)
    return table.filter(of_held_out if held_out else pc.invert(of_held_out))


def _unit_vectors(table: pa.Table) -> NDArray[np.float32]:
    column, first = table["vector"], 0
    vectors = np.empty((len(table), column.type.list_size), np.float32)
    for chunk in column.chunks:
        vectors[first : first + len(chunk)] = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, vectors.shape[1])
        first += len(chunk)
    return unit(vectors)
