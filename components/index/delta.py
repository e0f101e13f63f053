"""The documents that a refresh encodes: some rows of a data set's table, read without the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.data.tables import document_text
from components.index.corpus import pick_rows
from components.index.shards import ShardKeys

if TYPE_CHECKING:
    import pyarrow as pa


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
