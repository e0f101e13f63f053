"""The tables of a dataset artifact, which every later step works on: read, and written one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from components.artifacts import Artifact, open_artifact
from components.data.own_documents import POLICIES, IdenticalIds, IgnoreIdenticalIds, OwnDocuments, identical_ids
from components.data.tables import DOCUMENT_COLUMNS, GROUPS, JUDGEMENT_COLUMNS, QUERY_COLUMNS, document_text, origin_of
from components.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

TABLES = {
    "documents": (*DOCUMENT_COLUMNS, "content_hash"),
    "queries": QUERY_COLUMNS,
    "judgements": JUDGEMENT_COLUMNS,
    "unlabelled": QUERY_COLUMNS,
}
SOURCES = "sources"
IDENTICAL = "ignore_identical_ids"
# Rows that have to be read to get at one of them: documents are read again a shard at a time, by many workers.
ROW_GROUP = 8192
# Bytes from which a row group is full whatever its rows: a page of a Parquet file cannot hold 2 GiB, and a group is held in memory.
GROUP_BYTES = 2**28
_BUFFER_BYTES = 2**20  # of a column that are read at a time


@dataclass(frozen=True)
class Dataset:
    """The tables of a dataset artifact, in their stored order.

    documents: doc_id, title, text, metadata (JSON), content_hash. queries and unlabelled: query_id, text.
    all_judgements: query_id, doc_id, score (int64), split. sources: names of the data sets when several are mixed.
    ignore_identical_ids: which documents are left out as a query's own (see `components.data.own_documents`).
    query_groups: metadata field of the documents that the splits were made by; "" where the source names none.
    """

    documents: pd.DataFrame
    queries: pd.DataFrame
    all_judgements: pd.DataFrame
    unlabelled: pd.DataFrame
    sources: tuple[str, ...] = ()
    ignore_identical_ids: IgnoreIdenticalIds = "same_text"
    query_groups: str = ""

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that have judgements, sorted."""
        return tuple(sorted(self.all_judgements["split"].unique()))

    def judgements(self, split: str) -> pd.DataFrame:
        """query_id, doc_id, score of one split; a score above 0 means relevant. Raises DataError for an unknown split."""
        if split not in self.splits:
            raise DataError(f"The data has no judgements for the split '{split}'; it has: {', '.join(self.splits) or 'none'}.")
        rows = self.all_judgements.loc[self.all_judgements["split"] == split, ["query_id", "doc_id", "score"]]
        return rows.reset_index(drop=True)

    def judged_queries(self, split: str) -> pd.DataFrame:
        """query_id, text of the queries that have at least one relevant document in `split`, in the order of the queries."""
        judgements = self.judgements(split)
        judged = set(judgements.loc[judgements["score"] > 0, "query_id"])
        return self.queries.loc[self.queries["query_id"].isin(judged)].reset_index(drop=True)

    def own_documents(self, split: str) -> OwnDocuments:
        """Which of the split's judged queries are documents themselves, whose own document is neither answer nor negative of theirs."""
        judged = self.judgements(split)
        judged = judged[judged["score"] > 0]
        to_itself = frozenset(judged.loc[judged["query_id"] == judged["doc_id"], "query_id"])
        asked = frozenset(judged["query_id"])
        found = IdenticalIds(*(ids & asked for ids in self._identical_ids))
        return OwnDocuments.of(found, to_itself, self.ignore_identical_ids)

    @cached_property
    def _identical_ids(self) -> IdenticalIds:
        return identical_ids(self.documents, self.queries)

    def origin_of(self, identifier: str) -> str:
        """The data set that a query's or document's id comes from; "" when nothing is mixed."""
        return origin_of(identifier, self.sources)

    def document_texts(self) -> list[str]:
        """What an encoder reads of each document, in the order of the documents."""
        return texts_of(self.documents)


def load_dataset(dataset: Artifact | Path) -> Dataset:
    """Read a dataset artifact's tables; raises ArtifactError when it is something else or incomplete."""
    artifact = open_artifact(dataset) if isinstance(dataset, Path) else dataset
    if artifact.kind != "dataset":
        raise ArtifactError(f"{artifact.path} is an artifact of kind '{artifact.kind}'; expected a dataset.")
    frames = {name: _read(artifact.path / f"{name}.parquet") for name in TABLES}
    sources = tuple(str(artifact.attributes.get(SOURCES, "")).split("/")) if SOURCES in artifact.attributes else ()
    # Data sets of before name no policy: nothing was left out of what was measured on them.
    policy: IgnoreIdenticalIds = next((name for name in POLICIES if name == artifact.attributes.get(IDENTICAL)), "never")
    groups = str(artifact.attributes.get(GROUPS, ""))
    return Dataset(frames["documents"], frames["queries"], frames["judgements"], frames["unlabelled"], sources, policy, groups)


def texts_of(documents: pd.DataFrame) -> list[str]:
    """What an encoder reads of each row of a table of documents."""
    columns = documents[["title", "text"]].fillna("")
    return [document_text(title, text) for title, text in zip(columns["title"], columns["text"], strict=True)]


def _schema(columns: tuple[str, ...]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, pa.int64() if name == "score" else pa.large_string()) for name in columns])


def wide(table: pa.Table) -> pa.Table:
    """The same table with texts that may be more than 2 GiB together: Arrow's `string` counts their bytes with 32 bits."""
    import pyarrow as pa

    fields = [field.with_type(pa.large_string()) if pa.types.is_string(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields, table.schema.metadata))


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write one of `TABLES`, named by the file, as Parquet; the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = TABLES[path.stem]
    table = pa.Table.from_pandas(frame[list(columns)], schema=_schema(columns), preserve_index=False)
    # Without the metadata of pandas the same rows give the same bytes under every version of it.
    table = table.replace_schema_metadata(None)
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for start, stop in _row_groups(table):
            writer.write_table(table.slice(start, stop - start), row_group_size=ROW_GROUP)


def _row_groups(table: pa.Table) -> Iterator[tuple[int, int]]:
    """First row of each group and the row behind its last: at most ROW_GROUP rows, and no more than GROUP_BYTES unless it is one row."""
    import pyarrow as pa
    import pyarrow.compute as pc

    ends = np.zeros(table.num_rows, np.int64)
    for column in table.columns:
        if pa.types.is_large_string(column.type):
            ends += pc.fill_null(pc.binary_length(column), 0).to_numpy()
    ends = np.cumsum(ends)
    start = 0
    while start < table.num_rows:
        before = ends[start - 1] if start else 0
        stop = min(start + ROW_GROUP, table.num_rows, max(start + 1, int(np.searchsorted(ends, before + GROUP_BYTES, side="right"))))
        yield start, stop
        start = stop


def _read(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as pq

    with reading(path):
        return pq.read_table(path, schema=_schema(TABLES[path.stem])).to_pandas()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What fails within, because the table `path` is missing or broken, becomes an ArtifactError that names it."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read ({str(error)[:160]}). Remove its folder and run the step again.") from None


@contextmanager
def open_table(path: Path) -> Iterator[pq.ParquetFile]:
    """The Parquet table `path`; pages are read as they are needed, where pyarrow would hold all that is asked for as it is in the file.

    Raises ArtifactError that names the file when it cannot be read.
    """
    import pyarrow.parquet as pq

    with reading(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        yield file
