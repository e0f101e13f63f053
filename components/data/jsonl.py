"""Read documents, queries and judgements from JSON Lines, plain or gzipped.

Whatever a table can hold is kept for the contracts to judge; only what cannot be put into a table is refused, by file and line.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, cast

import pandas as pd

from components.data.dataset import DOCUMENT_COLUMNS, judgement_table, query_table
from components.data.values import AmbiguousJson, Row, metadata_text, names_of, parse_score, read_json
from components.errors import DataError


def read_documents(path: Path) -> pd.DataFrame:
    """Columns doc_id, title, text, metadata; raises DataError with file and line."""
    return document_table((row, metadata_text(row.get("metadata"), row.where)) for row in _rows(path, "documents"))


def read_queries(path: Path, default_id: str | None = None) -> pd.DataFrame:
    """Columns query_id, text. With `default_id`, a query without an id is given that name and its line's number."""
    return queries_of(_rows(path, "queries"), default_id)


def read_qrels(path: Path, split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score, split from objects with a query's id, a document's id and a score (query-id, corpus-id, score)."""
    rows = [
        (row.identifier("query_id", "query-id"), row.identifier("doc_id", "corpus-id"), parse_score(row.get("score"), row.where))
        for row in _rows(path, "qrels")
    ]
    return judgement_table(rows, split)


def document_table(rows: Iterable[tuple[Row, str]]) -> pd.DataFrame:
    """The documents of the rows of any text format, each with its metadata as JSON text."""
    found = [(row.identifier("doc_id"), row.text("title"), row.text("text", required=True), metadata) for row, metadata in rows]
    return pd.DataFrame(found, columns=list(DOCUMENT_COLUMNS)).astype("str")


def queries_of(rows: Iterable[Row], default_id: str | None) -> pd.DataFrame:
    """The queries of the rows of any text format; see `read_queries`."""
    ids: list[str | None] = []
    texts: list[str | None] = []
    for row in rows:
        named = row.has("query_id") or not default_id
        ids.append(row.identifier("query_id") if named else f"{default_id}-{row.where.rpartition(':')[2]}")
        texts.append(row.text("text", required=True))
    return query_table(ids, texts)


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, without their ends, numbered from 1 as they stand there; raises DataError."""
    line = 0
    try:
        with open_text(path, newline="\n") as handle:
            for line, text in enumerate(handle, start=1):
                text = text.removeprefix("\ufeff")  # of files that were put together, each with its mark
                if text.strip():
                    yield line, text.rstrip("\r\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise unreadable(path, line, error) from None


def open_text(path: Path, newline: str) -> TextIO:
    """A text file, unpacked when its name ends in .gz."""
    # utf-8-sig also reads files without a byte order mark, and keeps a mark from becoming a part of the first line.
    if path.name.lower().endswith(".gz"):
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8-sig", newline=newline))
    return path.open(encoding="utf-8-sig", newline=newline)


def unreadable(path: Path, line: int, error: Exception) -> DataError:
    """What to say of a file that could be read up to `line` only."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path} does not exist. Give a file that is there.")
    if isinstance(error, UnicodeDecodeError):
        return DataError(f"{path}, after line {line}: not UTF-8 ({error.reason}). Convert the file to UTF-8.")
    return DataError(f"{path} cannot be read after line {line} ({error}). The file may be cut off; copy it again.")


def _rows(path: Path, table: str) -> Iterator[Row]:
    for line, text in text_lines(path):
        where = f"{path}:{line}"
        record = _parsed(text, where)
        yield Row(where, record, names_of(tuple(record), table))


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        record = read_json(text)
    except AmbiguousJson as error:
        raise DataError(f"{where}: {error}. Programs would read this line in different ways.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON ({error}). Every line must be one JSON object.") from None
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected a JSON object with the field _id; found {type(record).__name__}.")
    return record
