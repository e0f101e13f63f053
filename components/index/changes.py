"""What changed since an index was made: documents added, changed and removed, by content hash and without loading a vector."""

from __future__ import annotations

import hashlib
from binascii import unhexlify
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.data.dataset import open_table
from components.index.rows import IDS_FILE, LOOKED_UP, live_marks, looked_up, only_rows, read_deleted

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("doc_id", "content_hash")
_AT_ONCE = 2**20  # rows that are converted or compared in one go
_DIGITS = np.full(256, 255, np.uint8)  # the value of each hexadecimal digit
_DIGITS[list(b"0123456789abcdefABCDEF")] = [*range(16), *range(10, 16)]
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
    """How `documents` (columns doc_id, content_hash; unique ids) differ from those in the index in `index_folder`.

    The index's rows are read a piece at a time: in memory stand 52 bytes a document with an id of 12 letters, and 9 more while it runs.
    Raises ArtifactError when the index's table cannot be read.
    """
    with open_table(index_folder / IDS_FILE) as file:
        rows = file.metadata.num_rows
        batches = file.iter_batches(batch_size=_AT_ONCE, columns=list(COLUMNS))
        return _compared(batches, live_marks(rows, read_deleted(index_folder, rows)), documents)


def read_documents(dataset_folder: Path) -> pa.Table:
    """The columns doc_id and content_hash (its 32 bytes) of a dataset artifact, in the order of its documents."""
    with open_table(dataset_folder / "documents.parquet") as file:
        return _compact(file.iter_batches(batch_size=_AT_ONCE, columns=list(COLUMNS)))


def find_changes(index: pa.Table, deleted: RowNumbers, documents: pa.Table) -> Changes:
    """Compare the rows of an index, `deleted` ones left out, with documents; both are tables of doc_id and content_hash.

    A document whose id was deleted from the index before counts as added: its old vector is not looked at again.
    """
    return _compared(index.to_batches(max_chunksize=_AT_ONCE), live_marks(index.num_rows, deleted), documents)


def _compared(batches: Iterable[pa.RecordBatch], live: NDArray[np.bool_], documents: pa.Table) -> Changes:
    """Compare the rows that are `live` among those of the `batches` of an index with the documents."""
    after = _compact(documents.to_batches(max_chunksize=_AT_ONCE))
    places, same, start = np.full(len(after), -1, np.int64), np.zeros(len(after), bool), 0
    for piece in _pieces(batches):
        stop = start + len(piece)
        rows = start + np.flatnonzero(live[start:stop])
        before = piece if len(rows) == len(piece) else only_rows(piece, rows - start)
        found, here = looked_up(after["doc_id"], before["doc_id"])
        places[found] = rows[here]
        same[found] = _equal(after["content_hash"], found, before["content_hash"], here)
        start = stop
    known = places >= 0
    gone = live.copy()
    gone[places[known]] = False
    changed = np.flatnonzero(known & ~same)
    return Changes(
        added=np.flatnonzero(~known),
        changed=changed,
        removed=np.flatnonzero(gone),
        replaced=np.sort(places[changed]),
        unchanged=int(same.sum()),
    )


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The batches as tables of at least LOOKED_UP rows, the last one shorter: a table of hashes is made for each."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= LOOKED_UP:
            yield _compact(held)
            held = []
    if held:
        yield _compact(held)


def _compact(batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """doc_id as large_string, and content_hash as its 32 bytes: half the memory of the digits, and no limit of 2 GiB."""
    import pyarrow as pa

    schema = pa.schema([("doc_id", pa.large_string()), ("content_hash", pa.binary(32))])
    found = []
    for batch in batches:
        ids, hashes = batch.column("doc_id").cast(pa.large_string()), batch.column("content_hash")
        if hashes.type != schema.field("content_hash").type:
            hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(hashes), [None, pa.py_buffer(_hash_bytes(hashes))])
        found.append(pa.record_batch([ids, hashes], schema=schema))
    return pa.Table.from_batches(found, schema)


def _hash_bytes(hashes: pa.Array) -> NDArray[np.uint8]:
    """The 32 bytes of each sha256 in hexadecimal digits, of any other text its own sha256; uint8 (n, 32)."""
    import pyarrow as pa

    texts = hashes.cast(pa.large_string())
    if not len(texts):
        return np.empty((0, 32), np.uint8)
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if not texts.null_count and (np.diff(ends) == 64).all():
        values = _DIGITS[np.frombuffer(texts.buffers()[2], np.uint8)[ends[0] : ends[-1]].reshape(-1, 2)]
        if (values < 16).all():
            return (16 * values[:, 0] + values[:, 1]).reshape(-1, 32)
    return np.frombuffer(b"".join(_bytes_of(value) for value in texts.to_pylist()), np.uint8).reshape(-1, 32)


def _bytes_of(content_hash: str) -> bytes:
    try:
        found = unhexlify(content_hash)
    except ValueError:
        found = b""
    return found if len(found) == 32 else hashlib.sha256(content_hash.encode()).digest()


def _equal(ours: pa.ChunkedArray, rows: RowNumbers, theirs: pa.ChunkedArray, other_rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the 32 bytes of each of the `rows` are those of the row beside it in `theirs`."""
    same = np.empty(len(rows), bool)
    for start in range(0, len(rows), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        same[some] = (_words(ours, rows[some]) == _words(theirs, other_rows[some])).all(axis=1)
    return same


def _words(column: pa.ChunkedArray, rows: NDArray[Any]) -> NDArray[np.uint64]:
    """Rows of a column of 32 bytes each as numbers, uint64 (len(rows), 4); its chunks stay where they are."""
    found, first = np.empty((len(rows), 4), np.uint64), 0
    for chunk in column.chunks:
        mine = np.flatnonzero((rows >= first) & (rows < first + len(chunk)))
        if len(mine):
            words = np.frombuffer(chunk.buffers()[1], np.uint64)[4 * chunk.offset :][: 4 * len(chunk)].reshape(-1, 4)
            found[mine] = words[rows[mine] - first]
        first += len(chunk)
    return found
