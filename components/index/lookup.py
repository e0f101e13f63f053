"""The vectors of single documents, read from what an index keeps of them: nothing is encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.errors import ArtifactError

if TYPE_CHECKING:
    from components.index.search import VectorIndex


def vectors_of(index: VectorIndex, doc_ids: Sequence[str]) -> NDArray[np.float32]:
    """Unit vectors of the documents, float32 (len(doc_ids), d), in their order.

    Raises ArtifactError when the index keeps no vectors (`refine: none`) or lacks one of the documents.
    """
    rows = rows_of(index, doc_ids)
    if index.stored is not None:
        return index.stored.unit_vectors(rows)
    if not index.flat:
        raise ArtifactError(
            "The index keeps no vectors (index.refine is none), so nothing can be learned from its documents. "
            "Retrain with index.refine=fp16."
        )
    kept: NDArray[np.float32] = index.pieces[0].index.reconstruct_batch(rows)  # the first layout has its vectors in FAISS alone
    return kept


def rows_of(index: VectorIndex, doc_ids: Sequence[str]) -> NDArray[np.int64]:
    """The row of each document, int64 (len(doc_ids),), deleted rows left out; raises ArtifactError for a document without one."""
    found = index.rows.live_rows_of(doc_ids)
    missing = next((doc_id for doc_id in doc_ids if doc_id not in found), None)
    if missing is not None:
        raise ArtifactError(f"The index holds no document '{missing}'. Refresh it with the data that it is used with.")
    return np.array([found[doc_id] for doc_id in doc_ids], np.int64)
