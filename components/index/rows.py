"""The rows of an index: which document each is. Kept as Arrow columns: a million ids become strings only when they are returned."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from components.artifacts import written_atomically
from components.data.dataset import open_table, wide
from components.errors import ArtifactError
from components.index.corpus import pick_rows

if TYPE_CHECKING:
    import pyarrow as pa

IDS_FILE = "doc_ids.parquet"
DELETED_FILE = "deleted.npy"
_ROW_GROUP = 2**20  # rows that are held as they are written
LOOKED_UP = 2**23  # ids that others are looked up among in one go
ColumnReader = Callable[[int, int], Any]  # first row and number of rows -> Arrow's array of them


class DocIds(Sequence[str]):
    """Document ids by row number, deleted rows included; made into strings one at a time, or many at once by `take`."""

    def __init__(self, column: pa.ChunkedArray | pa.Array) -> None:
        self.column = column

    @classmethod
    def of(cls, doc_ids: Sequence[str]) -> DocIds:
        """Ids that are in memory already."""
        import pyarrow as pa

        return cls(pa.array(doc_ids, pa.large_string()))

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
        while place < len(self) and self.doc_ids[row := int(self._by_id[place])] == doc_id:
            if not self._is_deleted(row):  # the former content of a document that was changed stands under the same id
                return row
            place += 1
        return None

    def _is_deleted(self, row: int) -> bool:
        place = int(np.searchsorted(self.deleted, row))
        return place < len(self.deleted) and int(self.deleted[place]) == row

    def live_rows_of(self, doc_ids: Sequence[str]) -> dict[str, int]:
        """The rows of those of the ids whose documents are there and not deleted, found in one pass over all ids."""
        import pyarrow as pa
        import pyarrow.compute as pc

        wanted = pa.array(doc_ids, pa.large_string())
        rows = np.flatnonzero(pc.is_in(self.doc_ids.column.cast(pa.large_string()), value_set=wanted).to_numpy(zero_copy_only=False))
        return {self.doc_ids[row]: row for row in rows.tolist() if not self._is_deleted(row)}

    def missing_from(self, other: Rows) -> frozenset[str]:
        """Ids of the documents here that `other` does not hold, deleted ones of both left out."""
        import pyarrow as pa

        mine, theirs = pa.chunked_array([self._live_ids()]), pa.chunked_array([other._live_ids()])
        return frozenset(mine.take(np.flatnonzero(rows_among(mine, theirs) < 0)).to_pylist())

    def _live_ids(self) -> pa.Array:
        import pyarrow as pa

        column = self.doc_ids.column.cast(pa.large_string())
        whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        return whole.take(np.setdiff1d(np.arange(len(self)), self.deleted, assume_unique=True))

    @cached_property
    def _by_id(self) -> NDArray[np.int32]:
        """Row numbers in the order of the ids."""
        rows = np.empty(len(self), np.int32)
        rows[self.order] = np.arange(len(self), dtype=np.int32)
        return rows

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
        rows = [] if self._column is None else live_rows(len(self._rows), self._rows.deleted).tolist()
        return (self._rows.doc_ids[row] for row in rows)


def live_rows(rows: int, deleted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of the row numbers 0 to rows - 1 that are not `deleted`, int64 and ascending."""
    return np.flatnonzero(live_marks(rows, deleted))


def live_marks(rows: int, deleted: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each of the rows 0 to rows - 1 whether it is not `deleted`, bool (rows,)."""
    live = np.ones(rows, bool)
    live[deleted] = False
    return live


def only_rows(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The `rows` (ascending) of a table, chunk by chunk: `take` would join all chunks first, and needs twice the memory."""
    import pyarrow as pa

    chosen = np.zeros(table.num_rows, bool)
    chosen[rows] = True
    return table.filter(pa.array(chosen))


def rows_among(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """For each of `ids` its row `among` the others, int64 (len(ids),); -1 where it is not there."""
    rows = np.full(len(ids), -1, np.int64)
    for start in range(0, len(among), LOOKED_UP):  # Arrow's table of all of them would be larger than the ids themselves
        found, here = looked_up(ids, among.slice(start, LOOKED_UP))
        rows[found] = start + here
    return rows


def looked_up(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Places of those of `ids` that are `among` at most LOOKED_UP others, ascending, and the place of each there."""
    import pyarrow.compute as pc

    here = pc.fill_null(pc.index_in(ids, value_set=among.combine_chunks()), -1).to_numpy()
    found = np.flatnonzero(here >= 0)
    return found, here[found]


def places(doc_ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int32]:
    """For each row, the place of its id among the sorted ids, int32 (rows,). Strings are sorted by code points, as Python does."""
    import pyarrow.compute as pc

    order = np.empty(len(doc_ids), np.int32)
    order[pc.sort_indices(doc_ids).to_numpy()] = np.arange(len(doc_ids), dtype=np.int32)
    return order


def read_rows(folder: Path) -> Rows:
    """The rows of the index in `folder`; raises ArtifactError when they cannot be read or deleted rows are not rows of it."""
    import pyarrow as pa

    # read_table of Arrow would import pandas and pyarrow's data sets, a third of a second of every search.
    with open_table(folder / IDS_FILE) as table:
        ordered = "order" in table.schema_arrow.names  # older indexes do not keep it
        columns = table.read(columns=["doc_id", "order"] if ordered else ["doc_id"])
    ids = columns["doc_id"].cast(pa.large_string()).combine_chunks()
    order = columns["order"].to_numpy() if ordered else places(ids)
    return Rows(DocIds(ids), order, read_deleted(folder, len(ids)))


def read_deleted(folder: Path, rows: int) -> NDArray[np.int64]:
    """Row numbers of the documents that are not returned any more, ascending, in an index of so many `rows`.

    Raises ArtifactError when they cannot be read or are not rows of it.
    """
    path = folder / DELETED_FILE
    if not path.is_file():
        return np.empty(0, np.int64)
    try:
        deleted = np.asarray(np.load(path), np.int64)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Restore it or build the index again.") from None
    if len(deleted) and not 0 <= deleted[0] <= deleted[-1] < rows:
        raise ArtifactError(f"{path} names rows that the index does not have. Build the index again.")
    return deleted


def read_table(folder: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of `doc_ids.parquet` (doc_id, content_hash, part, order, title), in row order; those it lacks are left out.

    Raises ArtifactError when it cannot be read.
    """
    with open_table(folder / IDS_FILE) as table:
        return wide(table.read(columns=[name for name in columns if name in table.schema_arrow.names]))


def read_single(folder: Path, columns: Sequence[str], rows: Sequence[int]) -> list[dict[str, Any]]:
    """The columns of single rows of `doc_ids.parquet`, as Python's values and in the order of `rows`; those it lacks are left out.

    Raises ArtifactError when it cannot be read.
    """
    ascending, places_of = np.unique(np.asarray(rows, np.int64), return_inverse=True)
    found = pick_rows(folder / IDS_FILE, columns, ascending).to_pylist()
    return [found[place] for place in places_of.tolist()]


def read_titles(folder: Path, rows: Rows) -> Titles:
    """The titles of the index in `folder`, whose rows are `rows`."""
    table = read_table(folder, ("title",))
    return Titles(rows, table["title"] if "title" in table.column_names else None)


def write_rows(
    folder: Path, table: pa.Table, titles: pa.Table | Mapping[str, str] | None = None, content_hash: ColumnReader | None = None
) -> None:
    """Write `doc_ids.parquet` from the columns doc_id, content_hash, part in row order; `order` is worked out here.

    `titles` (a table of doc_id and title, or document id -> title), where given, are the column title, empty for other documents.
    `content_hash` reads that column where the table lacks it: it is the largest, and nothing here needs it whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = wide(table)
    whole = {name: table[name] for name in ("doc_id", "content_hash", "title") if name in table.column_names}
    whole |= {"part": table["part"].cast(pa.int32()), "order": pa.array(places(table["doc_id"]))}
    readers = {} if content_hash is None else {"content_hash": content_hash}
    if titles is not None:
        readers["title"] = _title_reader(table["doc_id"], titles)
    names = [name for name in ("doc_id", "content_hash", "part", "order", "title") if name in whole or name in readers]
    schema = pa.schema([(name, pa.large_string() if name in readers else whole[name].type) for name in names])
    # A group of rows at a time: the file of an index of many documents does not fit beside them.
    with written_atomically(folder / IDS_FILE) as handle, pq.ParquetWriter(handle, schema) as writer:
        for start in range(0, max(1, table.num_rows), _ROW_GROUP):
            count = min(_ROW_GROUP, table.num_rows - start)
            columns = [readers[name](start, count) if name in readers else whole[name].slice(start, count) for name in names]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_ROW_GROUP)


def _title_reader(ids: pa.ChunkedArray, titles: pa.Table | Mapping[str, str]) -> ColumnReader:
    """What gives the titles of so many of the `ids` from a row on."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if isinstance(titles, Mapping):
        return lambda start, count: pa.array([titles.get(i, "") for i in ids.slice(start, count).to_pylist()], pa.large_string())
    if ids.equals(titles["doc_id"]):  # as in a build
        return lambda start, count: titles["title"].slice(start, count)
    rows, column = rows_among(ids, titles["doc_id"]), titles["title"].combine_chunks()

    def of(start: int, count: int) -> pa.Array:
        some = rows[start : start + count]
        return pc.fill_null(column.take(pa.array(some, mask=some < 0)), "")

    return of


def write_deleted(folder: Path, rows: NDArray[np.int64]) -> None:
    """Write `deleted.npy`, sorted; no file when there are none."""
    path = folder / DELETED_FILE
    path.unlink(missing_ok=True)
    if len(rows):
        np.save(path, np.sort(rows).astype(np.int64))
