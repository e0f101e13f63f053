"""Read documents, queries and judgements from Parquet files, by the column names of BEIR or by our own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from components.data.jsonl import parse_score
from components.data.tables import DOCUMENT_COLUMNS, judgement_table, query_table
from components.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_DOCUMENT = {"doc_id": ("doc_id", "_id", "id", "corpus-id"), "text": ("text",), "title": ("title",), "metadata": ("metadata",)}
_QUERY = {"query_id": ("query_id", "_id", "id", "query-id"), "text": ("text", "query")}
_QRELS = {
    "query_id": ("query_id", "query-id"),
    "doc_id": ("doc_id", "corpus-id", "corpus_id"),
    "score": ("score", "relevance"),
}


def read_documents(path: Path) -> pd.DataFrame:
    """Columns doc_id, title, text, metadata; title and metadata may be missing in the file. Raises DataError."""
    columns = _columns(path, _DOCUMENT, optional=("title", "metadata"))
    size = len(columns["doc_id"])
    table = {
        "doc_id": _strings(columns["doc_id"], f"{path}, doc_id"),
        "title": _strings(columns["title"], f"{path}, title") if "title" in columns else [""] * size,
        "text": _strings(columns["text"], f"{path}, text"),
        "metadata": _metadata(columns["metadata"]) if "metadata" in columns else ["{}"] * size,
    }
    return pd.DataFrame(table, columns=list(DOCUMENT_COLUMNS)).astype("str")


def read_queries(path: Path, default_id: str | None = None) -> pd.DataFrame:
    """Columns query_id, text. With `default_id`, a table without ids is numbered under that name."""
    columns = _columns(path, _QUERY, optional=("query_id",) if default_id else ())
    texts = _strings(columns["text"], f"{path}, text")
    if "query_id" in columns:
        return query_table(_strings(columns["query_id"], f"{path}, query_id"), texts)
    return query_table([f"{default_id}-{row}" for row in range(1, len(texts) + 1)], texts)


def read_qrels(path: Path, split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score, split."""
    columns = _columns(path, _QRELS)
    queries = _strings(columns["query_id"], f"{path}, query_id")
    documents = _strings(columns["doc_id"], f"{path}, doc_id")
    scores = [parse_score(value, f"{path}, row {row}") for row, value in enumerate(columns["score"].to_pylist(), start=1)]
    return judgement_table([(q or "", d or "", s) for q, d, s in zip(queries, documents, scores, strict=True)], split)


def _columns(path: Path, aliases: Mapping[str, Sequence[str]], optional: Sequence[str] = ()) -> dict[str, pa.ChunkedArray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet ({str(error)[:160]}). Write the file again.") from None
    found = {}
    for name, accepted in aliases.items():
        column = next((alias for alias in accepted if alias in table.column_names), None)
        if column is not None:
            found[name] = table.column(column)
        elif name not in optional:
            raise DataError(f"{path}: expected a column {' or '.join(accepted)}; found {', '.join(table.column_names) or 'none'}.")
    return found


def _strings(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """Text and whole numbers as text; missing values stay missing, for the contracts to judge."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)
    if not text and not pa.types.is_integer(kind):
        raise DataError(f"{where}: expected a column of text; found {column.type}.")
    return [None if value is None else str(value) for value in column.to_pylist()]


def _metadata(column: pa.ChunkedArray) -> list[str]:
    return [value if isinstance(value, str) else json.dumps(value or {}, sort_keys=True, default=str) for value in column.to_pylist()]
