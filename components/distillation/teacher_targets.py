"""The teacher's query vectors, computed once and kept as an artifact: aligning a student needs neither teacher nor documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.artifacts import VectorShards, seal
from components.errors import ArtifactError
from components.towers.contract import TextEncoder

TARGETS = "teacher_targets.parquet"


def write_teacher_targets(
    teacher: TextEncoder, sources: Mapping[str, Sequence[str]], parents: Mapping[str, str], folder: Path
) -> VectorShards:
    """Encode the queries of every source (name -> texts) with the teacher's query tower and keep text, source and vector (fp16).

    A text that stands in two sources counts for the first.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts: dict[str, str] = {}
    for source, members in sources.items():
        for text in members:
            texts.setdefault(text, source)
    vectors = teacher.encode(list(texts), progress="teacher queries").astype(np.float16)
    flat = pa.array(vectors.reshape(-1), type=pa.float16())
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    table = pa.table({"text": list(texts), "source": list(texts.values()), "vector": column})
    pq.write_table(table, folder / TARGETS)
    counts = {f"source_{source}": sum(s == source for s in texts.values()) for source in sources}
    attributes = {"space_id": teacher.space_id, "dimension": vectors.shape[1]}
    made = seal(folder, "vectors", counts={"queries": len(texts), **counts}, parents=parents, attributes=attributes)
    return VectorShards.model_validate(made.model_dump())


def read_teacher_targets(folder: Path) -> tuple[list[str], NDArray[np.float32]]:
    """Texts and unit vectors float32 (n, dimension)."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / TARGETS, columns=["text", "vector"])
    except OSError as error:
        raise ArtifactError(f"{folder / TARGETS} cannot be read ({error}). Run the flow again to make it anew.") from None
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(table), -1)
    return table["text"].to_pylist(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
