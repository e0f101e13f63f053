"""The vectors of single documents, read from what an index stores of them: nothing is encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.artifacts import open_artifact
from components.errors import ArtifactError
from components.index.refine import open_stored
from components.index.rows import read_rows, read_table


def vectors_of(index_folder: Path, doc_ids: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of the documents, float32 (len(doc_ids), d), in their order.

    Raises ArtifactError when the index keeps no vectors (`refine: none`) or lacks one of the documents.
    """
    artifact = open_artifact(index_folder)
    stored = open_stored(index_folder, artifact.counts.get("parts", 1))
    if stored is None:
        raise ArtifactError(
            f"{index_folder}: the index keeps no vectors (index.refine is none), and nothing can be learned from its documents. "
            "Retrain with index.refine=fp16."
        )
    return stored.unit_vectors(rows_of(index_folder, doc_ids))


def rows_of(index_folder: Path, doc_ids: Sequence[str]) -> NDArray[np.int64]:
    """The row of each document, int64 (len(doc_ids),), deleted rows left out; raises ArtifactError for a document without one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ids = read_table(index_folder, ["doc_id"])["doc_id"]
    live = np.setdiff1d(np.arange(len(ids), dtype=np.int64), read_rows(index_folder).deleted, assume_unique=True)
    found = pc.index_in(pa.array(list(doc_ids), pa.string()), value_set=ids.take(live).combine_chunks())
    if found.null_count:
        missing = next(doc_id for doc_id, place in zip(doc_ids, found.to_pylist(), strict=True) if place is None)
        raise ArtifactError(f"{index_folder}: the index holds no document '{missing}'. Refresh it with the data it is used with.")
    return np.asarray(live[found.to_numpy()], dtype=np.int64)
