"""The rows of an index: which document each is. Kept as Arrow columns: a million ids become strings only when they are returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

IDS_FILE = "doc_ids.parquet"
DELETED_FILE = "deleted.npy"


class DocIds(Sequence[str]):
    """Document ids by row number, deleted rows included; made into strings one at a time, or many at once by `take`."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        self.column = column


@dataclass(frozen=True)
class Rows:
    """`doc_ids` by row; `order` int32 (rows,): place of a row's id among all sorted ids; `deleted` int64, sorted row numbers."""

    doc_ids: DocIds
    order: NDArray[np.int32]
    deleted: NDArray[np.int64]


def read_rows(folder: Path) -> Rows:
    """The rows of the index in `folder`."""
    raise NotImplementedError


def read_table(folder: Path, columns: Sequence[str]) -> pa.Table:
    """Columns of `doc_ids.parquet` (doc_id, content_hash, part, order, title), in row order."""
    raise NotImplementedError


def write_rows(folder: Path, table: pa.Table, titles: Mapping[str, str] | None = None) -> None:
    """Write `doc_ids.parquet` from the columns doc_id, content_hash, part [, title] in row order; `order` is worked out here."""
    raise NotImplementedError


def write_deleted(folder: Path, rows: NDArray[np.int64]) -> None:
    """Write `deleted.npy`, sorted; no file when there are none."""
    raise NotImplementedError
