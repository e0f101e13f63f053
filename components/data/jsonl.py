"""Read documents, queries and judgements from JSON Lines, plain or gzipped.

Whatever a table can hold is kept for the contracts to judge; only what cannot be put into a table is refused, by file and line.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import Any, TextIO, cast

import pandas as pd

from components.data.dataset import DOCUMENT_COLUMNS, TextColumns, document_table, judgement_table, query_table
from components.data.values import (
    FIELDS,
    AmbiguousJson,
    QueryTable,
    Row,
    is_storable,
    metadata_text,
    names_of,
    parse_score,
    read_json,
    read_plain_json,
)
from components.errors import DataError

Line = tuple[int, str]  # its number, from 1, and what stands there
_AT_ONCE = 512  # lines: few enough that their values stay in the processor's cache until they are in a table


def read_documents(path: Path) -> pd.DataFrame:
    """Columns doc_id, title, text, metadata; raises DataError with file and line."""
    return document_table(_documents(path, lines) for lines in _blocks(path))


def read_queries(path: Path, default_id: str | None = None, table: QueryTable = "queries") -> pd.DataFrame:
    """Columns query_id, text, and of translations original.

    With `default_id`, a query without an id is given that name and its line's number.
    """
    return queries_of(_rows(path, table), default_id, table)


def read_qrels(path: Path, split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score, split from objects with a query's id, a document's id and a score (query-id, corpus-id, score)."""
    rows = [
        (row.identifier("query_id", "query-id"), row.identifier("doc_id", "corpus-id"), parse_score(row.get("score"), row.where))
        for row in _rows(path, "qrels")
    ]
    return judgement_table(rows, split)


def documents_of(rows: Iterable[tuple[Row, str]]) -> Iterator[TextColumns]:
    """The documents of the rows of any text format, each with its metadata as JSON text, in blocks."""
    found = ((row.identifier("doc_id"), row.text("title"), row.text("text", required=True), metadata) for row, metadata in rows)
    while block := list(islice(found, _AT_ONCE)):
        yield dict(zip(DOCUMENT_COLUMNS, zip(*block, strict=True), strict=True))


def queries_of(rows: Iterable[Row], default_id: str | None, table: QueryTable = "queries") -> pd.DataFrame:
    """The queries of the rows of any text format; see `read_queries`."""
    ids: list[str | None] = []
    texts: dict[str, list[str | None]] = {field: [] for field in FIELDS[table] if field != "query_id"}
    for row in rows:
        named = row.has("query_id") or not default_id
        ids.append(row.identifier("query_id") if named else f"{default_id}-{row.where.rpartition(':')[2]}")
        for field, column in texts.items():
            column.append(row.text(field, required=True))
    return query_table(ids, **texts)


def text_lines(path: Path) -> Iterator[Line]:
    """The lines of a UTF-8 text file that are not blank, without their ends, numbered from 1 as they stand there; raises DataError."""
    line = 0
    try:
        with open_text(path, newline="\n") as handle:
            for line, text in enumerate(handle, start=1):
                text = text.removeprefix("\ufeff")  # of files that were put together, each with its mark
                if text and not text.isspace():
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
    if isinstance(error, OSError) and error.errno:  # gzip raises one without a number for a packed file that is damaged
        return DataError(f"{path} cannot be read: {error.strerror}. Give a file that you may read.")
    return DataError(f"{path} cannot be read after line {line} ({error}). The file may be cut off; copy it again.")


def _documents(path: Path, lines: Sequence[Line]) -> TextColumns:
    records = _records(lines)
    plain = _plain_documents(path, lines, records) if records else None
    if plain is not None:
        return plain
    rows = _rows_of(path, lines, records, "documents")
    return next(documents_of((row, metadata_text(row.get("metadata"), row.where)) for row in rows))


def _plain_documents(path: Path, lines: Sequence[Line], records: Sequence[dict[str, Any]]) -> TextColumns | None:
    """The columns of documents that all have the same fields, with what belongs there; None when one needs a closer look."""
    keys = tuple(records[0])
    if set(map(tuple, records)) != {keys}:
        return None
    try:
        names = names_of(keys, "documents")
    except AmbiguousJson:
        return None
    columns = {field: [record[name] for record in records] for field, name in names.items()}
    ids, texts = columns.get("doc_id", []), columns.get("text", [])
    titles, metadata = (columns.get(name, [None] * len(records)) for name in ("title", "metadata"))
    if not (_are(ids, str, int) and _are(texts, str, NoneType) and _are(titles, str, NoneType) and _are(metadata, dict, NoneType)):
        return None
    ids, titles, texts = list(map(str, ids)), [title or "" for title in titles], [text or "" for text in texts]
    if not is_storable("".join(chain(ids, titles, texts))) or "\0" in "".join(ids):
        return None
    described = [metadata_text(value, f"{path}:{line}") if value else "{}" for value, (line, _) in zip(metadata, lines, strict=True)]
    return dict(zip(DOCUMENT_COLUMNS, (ids, titles, texts, described), strict=True))


def _are(values: Sequence[Any], *types: type) -> bool:
    """Whether there are values, and all are of one of the types themselves: True, which is an int to `isinstance`, is none here."""
    return bool(values) and set(map(type, values)).issubset(types)


def _rows(path: Path, table: str) -> Iterator[Row]:
    for lines in _blocks(path):
        yield from _rows_of(path, lines, _records(lines), table)


def _rows_of(path: Path, lines: Sequence[Line], records: Sequence[dict[str, Any]] | None, table: str) -> Iterator[Row]:
    """The rows of lines, read one by one where `records` does not hold them: of two faults it is the first line's that is told."""
    for place, (line, text) in enumerate(lines):
        where = f"{path}:{line}"
        record = _parsed(text, where) if records is None else records[place]
        try:
            names = names_of(tuple(record), table)
        except AmbiguousJson as error:
            raise DataError(f"{where}: {error}.") from None
        yield Row(where, record, names)


def _blocks(path: Path) -> Iterator[list[Line]]:
    """The lines of `text_lines`, at least one at a time; what was read of a file before it broke comes before the error."""
    block: list[Line] = []
    try:
        for line in text_lines(path):
            block.append(line)
            if len(block) == _AT_ONCE:
                yield block
                block = []
    except DataError:
        if block:
            yield block
        raise
    if block:
        yield block


def _records(lines: Iterable[Line]) -> list[dict[str, Any]] | None:
    """The object of every line; None when a line is something else or has white space around it."""
    try:
        records = [read_plain_json(text) for _, text in lines]
    except (ValueError, RecursionError):
        return None
    return records if _are(records, dict) else None


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
