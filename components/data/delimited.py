"""Read tables whose columns are separated by tabs, commas or blanks: judgements (BEIR, TREC), and documents and queries with a header.

A header is followed by the names in it, in any order. Judgements may come without one: query, document, grade; or, as TREC has them,
query, 0, document, grade. Ids are taken as they stand, white space at their ends included.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pandas as pd

from components.data.dataset import document_table, judgement_table
from components.data.jsonl import documents_of, open_text, queries_of, text_lines, unreadable
from components.data.values import (
    KNOWN_NAMES,
    QRELS_FIELDS,
    AmbiguousJson,
    QueryTable,
    Row,
    is_number,
    metadata_from_text,
    names_of,
    parse_score,
    plain_name,
)
from components.errors import DataError

_TREC_ITERATION = re.compile(r"[Qq]?\d+", re.ASCII)
_LARGEST_CELL = 2**31 - 1  # characters; Python's own limit of 131,072 is less than a long document
_EXPECTED = "query-id, corpus-id and score, or as TREC has them query-id, 0, corpus-id and score"


@dataclass(frozen=True)
class _Form:
    """How the lines of a qrels file are read: separator (None: any white space), columns, and which of them are which."""

    path: Path
    separator: str | None
    width: int
    query: int
    document: int
    score: int
    named: bool = False

    @property
    def trec(self) -> bool:
        """Whether the columns are those of TREC without a header."""
        return not self.named and self.width == 4

    def fields(self, text: str, line: int) -> list[str]:
        """The columns of a line that is not plain: with quotes, surplus empty columns, or blanks where others have tabs."""
        fields = _split(text, self.separator, f"{self.path}:{line}")
        if len(fields) != self.width and self.trec:
            fields = text.split()
        while len(fields) > self.width and not fields[-1].strip():
            fields.pop()
        if len(fields) != self.width:
            kind = {"\t": "columns separated by tabs", None: "columns separated by blanks"}.get(self.separator, "columns")
            raise DataError(
                f"{self.path}:{line}: expected {_COUNTED.get(self.width, self.width)} {kind}, as in the first line ({_EXPECTED}); "
                f"found {len(fields)}: '{' | '.join(fields)[:120]}'."
            )
        return fields


_COUNTED = {3: "three", 4: "four"}


def read_qrels(path: Path, split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score, split; raises DataError with file and line."""
    lines = text_lines(path)
    first = next(lines, None)
    if first is None:
        return judgement_table([], split)
    form = _form(path, *first)
    separator, width, trec = form.separator, form.width, form.trec
    query, document, grade = form.query, form.document, form.score
    rows = []
    grades: dict[str, int] = {}
    for line, text in lines if form.named else chain([first], lines):
        fields = text.split(separator)
        if len(fields) != width or '"' in text or "\0" in text:
            fields = form.fields(_without_nul(path, line, text), line)
        score = fields[grade]
        if score not in grades:
            grades[score] = parse_score(score, f"{path}:{line}")
        if trec and not _TREC_ITERATION.fullmatch(fields[1]):
            raise DataError(f"{path}:{line}: expected the columns {_EXPECTED}; found '{' | '.join(fields)[:120]}'. Add a header line.")
        rows.append((fields[query], fields[document], grades[score]))
    return judgement_table(rows, split)


def read_documents(path: Path) -> pd.DataFrame:
    """Columns doc_id, title, text, metadata from a table with a header; raises DataError with file and line."""
    return document_table(documents_of((row, metadata_from_text(row.text("metadata"), row.where)) for row in _rows(path, "documents")))


def read_queries(path: Path, default_id: str | None = None, table: QueryTable = "queries") -> pd.DataFrame:
    """Columns query_id, text, and of translations original, from a table with a header; `default_id` as for JSON Lines."""
    return queries_of(_rows(path, table), default_id, table)


def _form(path: Path, line: int, text: str) -> _Form:
    """What the first line says: the names of the columns, or by their number whose they are."""
    where = f"{path}:{line}"
    _without_nul(path, line, text)
    separator = _separator(path, text)
    fields = _split(text, separator, where)
    if separator == "\t" and len(fields) < 3 and len(text.split()) == 4:
        separator, fields = None, text.split()
    while len(fields) > 3 and not fields[-1].strip():
        fields.pop()
    names = _known(tuple(field.strip() for field in fields), "qrels", where)
    if len(names) == len(QRELS_FIELDS):
        return _named(path, separator, [field.strip() for field in fields], names, where)
    # A query may well be called query, and a document doc: a line that ends in a grade is no header.
    if len(names) > 1 and not is_number(fields[-1]):
        missing = ", ".join(field for field in QRELS_FIELDS if field not in names)
        raise DataError(f"{where}: the header names no column for {missing}: '{' | '.join(fields)[:120]}'. Expected {_EXPECTED}.")
    if len(fields) == 6 and fields[1].upper() == "Q0":
        raise DataError(f"{where}: this is a run file, the answers of a system; expected judgements: {_EXPECTED}.")
    if len(fields) not in (3, 4):
        raise DataError(
            f"{where}: expected three columns separated by tabs ({_EXPECTED}); found {len(fields)}: '{' | '.join(fields)[:120]}'."
        )
    width = len(fields)
    return _Form(path, separator, width, query=0, document=width - 2, score=width - 1)


def _named(path: Path, separator: str | None, fields: list[str], names: Mapping[str, str], where: str) -> _Form:
    if twice := next((name for name in names.values() if fields.count(name) > 1), None):
        raise DataError(f"{where}: the header names the column '{twice}' twice. Remove one of them.")
    query, document, score = (fields.index(names[field]) for field in ("query_id", "doc_id", "score"))
    return _Form(path, separator, len(fields), query, document, score, named=True)


def _separator(path: Path, text: str) -> str | None:
    """What separates the columns of a file whose first line is `text`; None for white space of any length.

    In CSV the mark that parts the most known names: another may stand within one, as the comma of a name in quotes.
    """
    if not path.name.lower().endswith((".csv", ".csv.gz")):
        return "\t" if "\t" in text else None
    return max((mark for mark in (",", ";", "\t") if mark in text), key=lambda mark: _names_known(text, mark), default=",")


def _names_known(text: str, mark: str) -> int:
    """How many of a header's columns have a name that a field of any table goes by."""
    try:
        names = next(csv.reader(text.splitlines()[:1], delimiter=mark), [])
    except csv.Error:
        return 0
    return sum(plain_name(name) in KNOWN_NAMES for name in names)


def _split(text: str, separator: str | None, where: str) -> list[str]:
    """The columns of one line, quotes around them taken away as the writers of such files put them there."""
    if separator is None or '"' not in text:
        return text.split(separator)
    try:
        return next(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"{where}: the quotes of '{text[:80]}' do not match ({error}). Write a quote within a column as two.") from None


def _without_nul(path: Path, line: int, text: str) -> str:
    if "\0" in text:
        raise DataError(f"{path}:{line}: holds the character NUL. A file in UTF-16 has to be converted to UTF-8.")
    return text


def _rows(path: Path, table: str) -> Iterator[Row]:
    """The rows of a table with a header; a quoted cell may hold separators and line breaks."""
    reader = None
    try:
        csv.field_size_limit(_LARGEST_CELL)
        with open_text(path, newline="") as handle:
            first = handle.readline()
            header = _header(path, first, table)
            separator = _separator(path, first) or "\t"
            reader = csv.reader(handle, delimiter=separator, strict=True)
            for cells in reader:
                if separator == "\t" and (lost := next((cell for cell in cells if _holds_rows(cell, len(header))), None)):
                    raise DataError(
                        f"{path}:{reader.line_num + 1}: the quote of '{lost[:60].splitlines()[0]}' ends here, and whole rows stand "
                        "within it. Write a quote that begins a cell as three quotes and end the cell with one, or give JSON Lines."
                    )
                if any(cells):
                    yield _row(path, reader.line_num + 1, header, cells, table)
    except csv.Error as error:
        line = reader.line_num + 1 if reader else 1
        raise DataError(f"{path}:{line}: {error}. A quote within a cell is written as two quotes.") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise unreadable(path, reader.line_num + 1 if reader else 0, error) from None


def _header(path: Path, text: str, table: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in _split(text.rstrip("\r\n"), _separator(path, text) or "\t", f"{path}:1"))
    known = _known(names, table, f"{path}:1")
    if "text" not in known:
        raise DataError(f"{path}:1: expected a header with the names of the columns, such as _id and text; found '{text.strip()[:120]}'.")
    if twice := next((name for name in known.values() if names.count(name) > 1), None):
        raise DataError(f"{path}:1: the header names the column '{twice}' twice. Remove one of them.")
    return names


def _holds_rows(cell: str, width: int) -> bool:
    """Whether a cell took in whole rows, from a quote that nobody meant as one to the next: a line in it has as many tabs as a row."""
    return "\n" in cell and any(line.count("\t") >= width - 1 for line in cell.split("\n"))


def _known(names: tuple[str, ...], table: str, where: str) -> Mapping[str, str]:
    try:
        return names_of(names, table)
    except AmbiguousJson as error:
        raise DataError(f"{where}: {error}.") from None


def _row(path: Path, line: int, header: tuple[str, ...], cells: list[str], table: str) -> Row:
    while len(cells) > len(header) and not cells[-1].strip():
        cells.pop()
    if len(cells) != len(header):
        raise DataError(f"{path}:{line}: expected {len(header)} columns as in the header; found {len(cells)}: '{' | '.join(cells)[:120]}'.")
    return Row(f"{path}:{line}", dict(zip(header, cells, strict=True)), names_of(header, table))
