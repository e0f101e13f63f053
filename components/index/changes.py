"""What changed since an index was made: documents added, changed and removed, by content hash and without loading a vector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.index.rows import read_rows, read_table

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("doc_id", "content_hash")
RowNumbers = NDArray[np.int64]


@dataclass(frozen=True)
class Changes:
    """Row numbers, int64 and ascending: `added` and `changed` of the documents, `removed` and `replaced` of the index.

    `replaced` are the rows that held the former content of the `changed` documents. `unchanged` counts the documents that stay.
    """

    added: RowNumbers
    changed: RowNumbers
    removed: RowNumbers
    replaced: RowNumbers
    unchanged: int

    def __bool__(self) -> bool:
        """Whether anything changed."""
        return bool(len(self.encoded) or len(self.deleted))

    @property
    def encoded(self) -> RowNumbers:
        """Rows of the documents that have to be encoded, in their order."""
        return np.sort(np.concatenate([self.added, self.changed]))

    @property
    def deleted(self) -> RowNumbers:
        """Rows of the index that may no longer be returned."""
        return np.sort(np.concatenate([self.removed, self.replaced]))

    @property
    def counts(self) -> dict[str, int]:
        """How many documents were added, changed and removed, and how many stay as they are."""
        return {"added": len(self.added), "changed": len(self.changed), "removed": len(self.removed), "unchanged": self.unchanged}


def changes_since(index_folder: Path, documents: pa.Table) -> Changes:
    """How `documents` (columns doc_id, content_hash; unique ids) differ from those in the index in `index_folder`."""
    return find_changes(read_table(index_folder, COLUMNS), read_rows(index_folder).deleted, documents)


def read_documents(dataset_folder: Path) -> pa.Table:
    """The columns doc_id and content_hash of a dataset artifact, in the order of its documents."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(dataset_folder / "documents.parquet").read(columns=list(COLUMNS))


def find_changes(index: pa.Table, deleted: RowNumbers, documents: pa.Table) -> Changes:
    """Compare the rows of an index, `deleted` ones left out, with documents; both are tables of doc_id and content_hash.

    A document whose id was deleted from the index before counts as added: its old vector is not looked at again.
    """
    live = np.setdiff1d(np.arange(index.num_rows, dtype=np.int64), deleted, assume_unique=True)
    before = index.select(list(COLUMNS)).take(live)
    places = _places(documents["doc_id"], before["doc_id"])
    known = np.flatnonzero(places >= 0)
    same = _equal(documents["content_hash"].take(known), before["content_hash"].take(places[known]))
    gone = np.ones(len(live), bool)
    gone[places[known]] = False
    return Changes(
        added=np.flatnonzero(places < 0),
        changed=known[~same],
        removed=live[gone],
        replaced=np.sort(live[places[known[~same]]]),
        unchanged=int(same.sum()),
    )


def _places(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> RowNumbers:
    """For each of `ids` its place `among` the others, -1 where it is not there."""
    import pyarrow.compute as pc

    found = pc.fill_null(pc.index_in(ids, value_set=among.combine_chunks()), -1)
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _equal(ours: pa.ChunkedArray, theirs: pa.ChunkedArray) -> NDArray[np.bool_]:
    import pyarrow.compute as pc

    return np.asarray(pc.equal(ours, theirs).to_numpy(), dtype=bool)
