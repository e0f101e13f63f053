"""Read documents, queries and judgements from the text files of the BEIR layout, plain or gzipped.

Whatever a table can hold is kept for the contracts to judge; only what cannot be put into a table is refused, by file and line.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import pandas as pd

from components.data.tables import DOCUMENT_COLUMNS, judgement_table, query_table
from components.errors import DataError

_HEADER_WORDS = {"query-id", "query_id", "queryid", "qid", "query"}
_SCORE_LIMIT = 2**31


def read_documents(path: Path) -> pd.DataFrame:
    """Columns doc_id, title, text, metadata; raises DataError with file and line."""
    rows = []
    for line, record in _records(path):
        where = f"{path}:{line}"
        metadata = json.dumps(record.get("metadata") or {}, ensure_ascii=False, sort_keys=True)
        rows.append((_identifier(record, where), _text(record, "title", where), _text(record, "text", where, required=True), metadata))
    return pd.DataFrame(rows, columns=list(DOCUMENT_COLUMNS)).astype("str")


def read_queries(path: Path, default_id: str | None = None) -> pd.DataFrame:
    """Columns query_id, text. With `default_id`, a query without an id is given that name and its line's number."""
    ids: list[str | None] = []
    texts: list[str | None] = []
    for line, record in _records(path):
        where = f"{path}:{line}"
        ids.append(f"{default_id}-{line}" if default_id and "_id" not in record else _identifier(record, where))
        texts.append(_text(record, "text", where, required=True))
    return query_table(ids, texts)


def read_qrels(path: Path, split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score, split from three tab-separated columns, with or without a header line."""
    rows = []
    for line, text in _lines(path):
        fields = text.split("\t")
        if line == 1 and fields[0].strip().lower() in _HEADER_WORDS:
            _check_columns(fields, f"{path}:1")
            continue
        _check_columns(fields, f"{path}:{line}")
        rows.append((fields[0].strip(), fields[1].strip(), parse_score(fields[2], f"{path}:{line}")))
    return judgement_table(rows, split)


def parse_score(value: Any, where: str) -> int:
    """A relevance score as a whole number; raises DataError that names `where`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number or not -_SCORE_LIMIT < number < _SCORE_LIMIT or number != int(number):
        raise DataError(f"{where}: the score must be a whole number such as 0, 1 or 2; found '{value}'.")
    return int(number)


def _check_columns(fields: list[str], where: str) -> None:
    if len(fields) != 3:
        raise DataError(
            f"{where}: expected three columns separated by tabs (query-id, corpus-id, score); "
            f"found {len(fields)}: '{' | '.join(fields)[:120]}'."
        )


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in _lines(path):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{line}: not a line of JSON ({error}). Every line must be one JSON object.") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{line}: expected a JSON object with the field _id; found {type(record).__name__}.")
        yield line, record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1 as they stand in the file."""
    line = 0
    try:
        with _open(path) as handle:
            for line, text in enumerate(handle, start=1):
                if text.strip():
                    yield line, text.rstrip("\r\n")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist. Give a file of JSON lines.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, after line {line}: not UTF-8 ({error.reason}). Convert the file to UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read after line {line} ({error}). The file may be cut off; copy it again.") from None


def _open(path: Path) -> TextIO:
    # utf-8-sig also reads files without a byte order mark, and keeps a mark from becoming a part of the first line.
    if path.name.endswith(".gz"):
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8-sig", newline="\n"))
    return path.open(encoding="utf-8-sig", newline="\n")


def _identifier(record: dict[str, Any], where: str) -> str:
    value = record.get("_id")
    if isinstance(value, bool) or not isinstance(value, str | int):
        _refuse("_id", record, where)
    return _storable(str(value), "_id", where)


def _text(record: dict[str, Any], name: str, where: str, required: bool = False) -> str:
    """A text field; null counts as empty, which the contracts then judge."""
    if required and name not in record:
        _refuse(name, record, where)
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        _refuse(name, record, where)
    return _storable(value or "", name, where)


def _refuse(name: str, record: dict[str, Any], where: str) -> NoReturn:
    found = f"found {record[name]!r:.60}" if name in record else f"the fields are: {', '.join(record) or 'none'}"
    raise DataError(f"{where}: the field {name} must be there and be text; {found}.")


def _storable(value: str, name: str, where: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: the field {name} holds half a surrogate pair, which is no character. Remove it.") from None
    return value
