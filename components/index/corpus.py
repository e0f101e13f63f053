"""The documents of a corpus in shards, all or those that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from components.data.dataset import document_text, open_table
from components.errors import DataError
from components.index.shards import ShardKeys

if TYPE_CHECKING:
    import pyarrow as pa

    from components.data.dataset import Dataset


class Documents(Protocol):
    """Documents cut into shards of `shard_size`, the last one shorter. Picklable, since workers get it."""

    @property
    def shard_size(self) -> int:
        """Documents in a shard."""
        ...

    @property
    def count(self) -> int:
        """Documents in all."""
        ...

    def keys(self, number: int) -> ShardKeys:
        """Ids and content hashes of shard `number`."""
        ...

    def texts(self, number: int) -> list[str]:
        """What an encoder reads of each document of shard `number`."""
        ...


@dataclass(frozen=True)
class StoredDocuments:
    """The `documents.parquet` of a dataset artifact. Raises ArtifactError that names the file when it cannot be read."""

    path: Path
    shard_size: int

    @property
    def count(self) -> int:
        """Rows of the table."""
        with open_table(self.path) as file:
            return int(file.metadata.num_rows)

    def keys(self, number: int) -> ShardKeys:
        """Ids and content hashes; texts are not read."""
        table = self._rows(number, ["doc_id", "content_hash"])
        return ShardKeys(number, table.column("doc_id").to_pylist(), table.column("content_hash").to_pylist())

    def texts(self, number: int) -> list[str]:
        """Title and text of each document of the shard as one text."""
        table = self._rows(number, ["title", "text"])
        titles, texts = (table.column(name).to_pylist() for name in ("title", "text"))
        return [document_text(title, text) for title, text in zip(titles, texts, strict=True)]

    def _rows(self, number: int, columns: list[str]) -> pa.Table:
        start = number * self.shard_size
        with open_table(self.path) as file:
            return read_slice(file, columns, start, min(start + self.shard_size, file.metadata.num_rows))


@dataclass(frozen=True, eq=False)
class LoadedDocuments:
    """The documents of a data set that is in memory."""

    dataset: Dataset
    shard_size: int

    @property
    def count(self) -> int:
        """Rows of the table."""
        return len(self.dataset.documents)

    def keys(self, number: int) -> ShardKeys:
        """Ids and content hashes."""
        rows = self.dataset.documents.iloc[number * self.shard_size : (number + 1) * self.shard_size]
        return ShardKeys(number, [str(i) for i in rows["doc_id"]], [str(h) for h in rows["content_hash"]])

    def texts(self, number: int) -> list[str]:
        """Title and text of each document of the shard as one text."""
        rows = self.dataset.documents.iloc[number * self.shard_size : (number + 1) * self.shard_size].fillna("")
        return [document_text(title, text) for title, text in zip(rows["title"], rows["text"], strict=True)]


def shard_sizes(documents: Documents) -> list[int]:
    """Documents of each shard; raises DataError when there are none at all."""
    count, size = documents.count, documents.shard_size
    if not count:
        raise DataError("The data set has no documents, so there is nothing to encode or to search.")
    return [min(size, count - start) for start in range(0, count, size)]


def require_unique(documents: Documents, shards: int) -> None:
    """Raises DataError with both places of an id that occurs twice, in one shard or in two. Holds 8 bytes a document, not the ids."""
    hashes = np.sort(np.concatenate([_hashes(documents.keys(number).doc_ids) for number in range(shards)]))
    suspects = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not suspects:
        return
    seen: dict[str, str] = {}
    for number in range(shards):
        doc_ids = documents.keys(number).doc_ids
        for row, mark in enumerate(_hashes(doc_ids).tolist()):
            place = f"row {number * documents.shard_size + row + 1} (shard {number})"
            # Two ids may share a hash, so what counts is the id.
            if mark in suspects and seen.setdefault(doc_ids[row], place) != place:
                raise DataError(
                    f"The document id '{doc_ids[row]}' stands twice in the corpus: in {seen[doc_ids[row]]} and in {place}. "
                    "An answer could not be traced to one document: make the ids unique."
                )


def _hashes(doc_ids: list[str]) -> NDArray[np.uint64]:
    import pandas as pd

    return np.asarray(pd.util.hash_array(np.array(doc_ids, dtype=object), categorize=False), dtype=np.uint64)


def read_slice(file: pa.parquet.ParquetFile, columns: list[str], start: int, stop: int) -> pa.Table:
    """Rows start to stop, at least one, of a Parquet file; only the row groups that hold some of them are read."""
    import pyarrow as pa

    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    ends = np.cumsum(sizes)
    groups = [i for i, end in enumerate(ends) if end > start and end - sizes[i] < stop]
    at = int(ends[groups[0]]) - sizes[groups[0]]
    pieces = []
    for batch in file.iter_batches(batch_size=min(stop - start, 8192), row_groups=groups, columns=columns):
        low, high = max(start - at, 0), min(stop - at, batch.num_rows)
        if low < high:
            pieces.append(batch.slice(low, high - low))
        at += batch.num_rows
        if at >= stop:
            break
    return pa.Table.from_batches(pieces)


def pick_rows(path: Path, columns: Sequence[str], rows: NDArray[np.int64]) -> pa.Table:
    """The `rows`, ascending, of a Parquet file; of the row groups that hold some of them one is in memory at a time.

    Columns that the file lacks are left out. Raises ArtifactError that names the file when it cannot be read.
    """
    import pyarrow as pa

    pieces, start = [], 0
    with open_table(path) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
            if len(mine):
                pieces.append(file.read_row_group(group, columns=there).take(mine))
            start = stop
        return pa.concat_tables(pieces) if pieces else file.schema_arrow.empty_table().select(there)


# --- The documents that a refresh encodes: some rows of a data set's table, read without the others.


@dataclass(frozen=True, eq=False)
class ChosenDocuments:
    """The rows `rows`, int64 and ascending, of the `documents.parquet` at `path`, in shards (see `corpus.Documents`)."""

    path: Path
    rows: NDArray[np.int64]
    shard_size: int

    @property
    def count(self) -> int:
        """Rows that were chosen."""
        return len(self.rows)

    def keys(self, number: int) -> ShardKeys:
        """Ids and content hashes; texts are not read."""
        table = self._table(number, ["doc_id", "content_hash"])
        return ShardKeys(number, table.column("doc_id").to_pylist(), table.column("content_hash").to_pylist())

    def texts(self, number: int) -> list[str]:
        """Title and text of each document of the shard as one text."""
        table = self._table(number, ["title", "text"])
        titles, texts = (table.column(name).to_pylist() for name in ("title", "text"))
        return [document_text(title, text) for title, text in zip(titles, texts, strict=True)]

    def _table(self, number: int, columns: list[str]) -> pa.Table:
        """The rows of a shard."""
        return pick_rows(self.path, columns, self.rows[number * self.shard_size : (number + 1) * self.shard_size])
