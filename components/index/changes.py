"""What changed since an index was made: documents added, changed and removed, by content hash and without loading a vector."""

from __future__ import annotations

import hashlib
from binascii import unhexlify
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.data.dataset import reading
from components.index.rows import IDS_FILE, live_rows, only_rows, read_deleted, rows_among

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("doc_id", "content_hash")
_AT_ONCE = 2**20  # rows that are converted or compared in one go
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
    index = _read(index_folder / IDS_FILE)
    return find_changes(index, read_deleted(index_folder, index.num_rows), documents)


def read_documents(dataset_folder: Path) -> pa.Table:
    """The columns doc_id and content_hash (its 32 bytes) of a dataset artifact, in the order of its documents."""
    return _read(dataset_folder / "documents.parquet")


def find_changes(index: pa.Table, deleted: RowNumbers, documents: pa.Table) -> Changes:
    """Compare the rows of an index, `deleted` ones left out, with documents; both are tables of doc_id and content_hash.

    A document whose id was deleted from the index before counts as added: its old vector is not looked at again.
    """
    live = live_rows(index.num_rows, deleted)
    before, after = _compact(index.to_batches()), _compact(documents.to_batches())
    if len(deleted):
        before = only_rows(before, live)
    places = rows_among(after["doc_id"], before["doc_id"])
    known = np.flatnonzero(places >= 0)
    same = _equal(after["content_hash"], known, before["content_hash"], places[known])
    gone = np.ones(len(live), bool)
    gone[places[known]] = False
    return Changes(
        added=np.flatnonzero(places < 0),
        changed=known[~same],
        removed=live[gone],
        replaced=np.sort(live[places[known[~same]]]),
        unchanged=int(same.sum()),
    )


def _read(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path) as file:
        return _compact(file.iter_batches(batch_size=_AT_ONCE, columns=list(COLUMNS)))


def _compact(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """doc_id as large_string, and content_hash as its 32 bytes: half the memory of the digits, and no limit of 2 GiB."""
    import pyarrow as pa

    schema = pa.schema([("doc_id", pa.large_string()), ("content_hash", pa.binary(32))])
    found = []
    for batch in batches:
        ids, hashes = batch.column("doc_id").cast(pa.large_string()), batch.column("content_hash")
        if hashes.type != schema.field("content_hash").type:
            hashes = pa.array([_bytes_of(value) for value in hashes.to_pylist()], pa.binary(32))
        found.append(pa.record_batch([ids, hashes], schema=schema))
    return pa.Table.from_batches(found, schema)


def _bytes_of(content_hash: str) -> bytes:
    """The 32 bytes of a sha256 in hexadecimal digits; of any other text its own sha256."""
    try:
        found = unhexlify(content_hash)
    except ValueError:
        found = b""
    return found if len(found) == 32 else hashlib.sha256(content_hash.encode()).digest()


def _equal(ours: pa.ChunkedArray, rows: RowNumbers, theirs: pa.ChunkedArray, other_rows: RowNumbers) -> NDArray[np.bool_]:
    """Whether the 32 bytes of each of the `rows` are those of the row beside it in `theirs`."""
    same = np.empty(len(rows), bool)
    for start in range(0, len(rows), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        same[some] = (_words(ours, rows[some]) == _words(theirs, other_rows[some])).all(axis=1)
    return same


def _words(column: pa.ChunkedArray, rows: RowNumbers) -> NDArray[np.uint64]:
    """Rows of a column of 32 bytes each as numbers, uint64 (len(rows), 4); its chunks stay where they are."""
    found, first = np.empty((len(rows), 4), np.uint64), 0
    for chunk in column.chunks:
        mine = np.flatnonzero((rows >= first) & (rows < first + len(chunk)))
        if len(mine):
            words = np.frombuffer(chunk.buffers()[1], np.uint64)[4 * chunk.offset :][: 4 * len(chunk)].reshape(-1, 4)
            found[mine] = words[rows[mine] - first]
        first += len(chunk)
    return found
