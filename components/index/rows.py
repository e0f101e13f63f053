"""The rows of an index: which document each is. Kept as Arrow columns: a million ids become strings only when they are returned."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from components.artifacts import write_atomic
from components.data.dataset import reading
from components.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

IDS_FILE = "doc_ids.parquet"
DELETED_FILE = "deleted.npy"


class DocIds(Sequence[str]):
    """Document ids by row number, deleted rows included; made into strings one at a time, or many at once by `take`."""

    def __init__(self, column: pa.ChunkedArray | pa.Array) -> None:
        self.column = column

    @classmethod
    def of(cls, doc_ids: Sequence[str]) -> DocIds:
        """Ids that are in memory already."""
        import pyarrow as pa

        return cls(pa.array(doc_ids, pa.string()))

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> Sequence[str]: ...

    def __getitem__(self, row: int | slice) -> str | Sequence[str]:
        return DocIds(self.column[row]) if isinstance(row, slice) else str(self.column[row].as_py())

    def take(self, rows: NDArray[np.int64]) -> list[list[str]]:
        """The ids of a matrix of row numbers, (n, k)."""
        if not rows.size:
            return [[] for _ in rows]
        ids, width = self.column.take(rows.reshape(-1)).to_pylist(), rows.shape[1]
        return [ids[start : start + width] for start in range(0, len(ids), width)]


@dataclass(frozen=True)
class Rows:
    """`doc_ids` by row; `order` int32 (rows,): place of a row's id among all sorted ids; `deleted` int64, sorted row numbers."""

    doc_ids: DocIds
    order: NDArray[np.int32]
    deleted: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.doc_ids)

    @property
    def live(self) -> int:
        """Rows that are not deleted."""
        return len(self) - len(self.deleted)

    def row_of(self, doc_id: str) -> int | None:
        """The row of a document that is not deleted; None when there is none."""
        place = bisect_left(self._by_id, doc_id, key=lambda row: self.doc_ids[int(row)])
        for row in self._by_id[place:].tolist():
            if self.doc_ids[row] != doc_id:
                return None
            if row not in self.deleted:  # the former content of a document that was changed stands under the same id
                return row
        return None

    def live_rows_of(self, doc_ids: Sequence[str]) -> dict[str, int]:
        """The rows of those of the ids whose documents are there and not deleted, found in one pass over all ids."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(doc_ids, pa.large_string())
        rows = np.flatnonzero(pc.is_in(self.doc_ids.column.cast(pa.large_string()), value_set=wanted).to_numpy(zero_copy_only=False))
        return {self.doc_ids[int(row)]: int(row) for row in np.setdiff1d(rows, self.deleted, assume_unique=True)}

    def missing_from(self, other: Rows) -> frozenset[str]:
        """Ids of the documents here that `other` does not hold, deleted ones of both left out."""
        import pyarrow.compute as pc

        mine, theirs = self._live_ids(), other._live_ids()
        return frozenset(mine.filter(pc.invert(pc.is_in(mine, value_set=theirs))).to_pylist())

    def _live_ids(self) -> pa.Array:
        import pyarrow as pa

        column = self.doc_ids.column.cast(pa.large_string())
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return whole.take(np.setdiff1d(np.arange(len(self)), self.deleted, assume_unique=True))

    @cached_property
    def _by_id(self) -> NDArray[np.int64]:
        """Row numbers in the order of the ids."""
        return np.argsort(self.order)

    @classmethod
    def of(cls, doc_ids: Sequence[str]) -> Rows:
        """Rows of documents that are in memory, none deleted."""
        ids = DocIds.of(doc_ids)
        return cls(ids, places(ids.column), np.empty(0, np.int64))


class Titles(Mapping[str, str]):
    """Titles of documents by id, for people to read, looked up one at a time; empty for an index that keeps none."""

    def __init__(self, rows: Rows, column: pa.ChunkedArray | None) -> None:
        self._rows, self._column = rows, column

    def __getitem__(self, doc_id: str) -> str:
        row = None if self._column is None else self._rows.row_of(doc_id)
        if row is None or self._column is None:
            raise KeyError(doc_id)
        return str(self._column[row].as_py())

    def __len__(self) -> int:
        return 0 if self._column is None else self._rows.live

    def __iter__(self) -> Iterator[str]:
        rows = np.arange(len(self._rows) if self._column is not None else 0)
        return (self._rows.doc_ids[row] for row in np.setdiff1d(rows, self._rows.deleted, assume_unique=True).tolist())


def places(doc_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
    """For each row, the place of its id among the sorted ids, int32 (rows,). Strings are sorted by code points, as Python does."""
    import pyarrow.compute as pc

    order = np.empty(len(doc_ids), np.int32)
    order[pc.sort_indices(doc_ids).to_numpy()] = np.arange(len(doc_ids), dtype=np.int32)
    return order


def read_rows(folder: Path) -> Rows:
    """The rows of the index in `folder`; raises ArtifactError when they cannot be read or deleted rows are not rows of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # read_table of Arrow would import pandas and pyarrow's data sets, a third of a second of every search.
    with reading(folder / IDS_FILE):
        table = pq.ParquetFile(folder / IDS_FILE)
        ordered = "order" in table.schema_arrow.names  # older indexes do not keep it
        columns = table.read(columns=["doc_id", "order"] if ordered else ["doc_id"])
    ids = columns["doc_id"].cast(pa.large_string()).combine_chunks()
    order = columns["order"].to_numpy() if ordered else places(ids)
    deleted = read_deleted(folder)
    if len(deleted) and not 0 <= deleted[0] <= deleted[-1] < len(ids):
        raise ArtifactError(f"{folder / DELETED_FILE} names rows that the index does not have. Build the index again.")
    return Rows(DocIds(ids), order, deleted)


def read_deleted(folder: Path) -> NDArray[np.int64]:
    """Row numbers of the documents that are not returned any more, ascending; raises ArtifactError when they cannot be read."""
    path = folder / DELETED_FILE
    if not path.is_file():
        return np.empty(0, np.int64)
    try:
        return np.asarray(np.load(path), np.int64)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Restore it or build the index again.") from None


def read_table(folder: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of `doc_ids.parquet` (doc_id, content_hash, part, order, title), in row order; those it lacks are left out.

    Raises ArtifactError when it cannot be read.
    """
    import pyarrow.parquet as pq

    with reading(folder / IDS_FILE):
        table = pq.ParquetFile(folder / IDS_FILE)
        return table.read(columns=[name for name in columns if name in table.schema_arrow.names])


def read_titles(folder: Path, rows: Rows) -> Titles:
    """The titles of the index in `folder`, whose rows are `rows`."""
    table = read_table(folder, ("title",))
    return Titles(rows, table["title"] if "title" in table.column_names else None)


def write_rows(folder: Path, table: pa.Table, titles: Mapping[str, str] | None = None) -> None:
    """Write `doc_ids.parquet` from the columns doc_id, content_hash, part in row order; `order` is worked out here.

    `titles` (document id -> title), where given, are the column title.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {name: table[name] for name in ("doc_id", "content_hash")}
    columns |= {"part": table["part"].cast(pa.int32()), "order": pa.array(places(table["doc_id"]))}
    if titles is not None:
        columns["title"] = pa.array((titles.get(doc_id.as_py(), "") for doc_id in table["doc_id"]), pa.string())
    elif "title" in table.column_names:
        columns["title"] = table["title"]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    write_atomic(folder / IDS_FILE, sink.getvalue().to_pybytes())


def write_deleted(folder: Path, rows: NDArray[np.int64]) -> None:
    """Write `deleted.npy`, sorted; no file when there are none."""
    path = folder / DELETED_FILE
    path.unlink(missing_ok=True)
    if len(rows):
        np.save(path, np.sort(rows).astype(np.int64))
