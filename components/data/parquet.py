"""Read documents, queries and judgements from Parquet and Arrow files, by the column names of BEIR, of the hubs, or by our own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from components.data.dataset import DOCUMENT_COLUMNS, judgement_table, query_table
from components.data.values import (
    FIELDS,
    AmbiguousJson,
    QueryTable,
    known_fields,
    metadata_from_text,
    metadata_text,
    parse_score,
    strict_object,
    without_nul,
)
from components.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_USUAL = {"doc_id": "_id, doc_id or id", "query_id": "_id, query_id or id"}


def read_documents(path: Path) -> pd.DataFrame:
    """Columns doc_id, title, text, metadata; title and metadata may be missing in the file. Raises DataError."""
    columns = _columns(path, "documents", optional=("title", "metadata"))
    size = len(columns["doc_id"])
    # A title that is missing is an empty one, as in JSON Lines; a missing text is a fault for the contracts to find.
    titles = [title or "" for title in _strings(columns["title"], f"{path}, title")] if "title" in columns else [""] * size
    table = {
        "doc_id": _ids(columns["doc_id"], path, "doc_id"),
        "title": titles,
        "text": _strings(columns["text"], f"{path}, text"),
        "metadata": _metadata(columns["metadata"], f"{path}, metadata") if "metadata" in columns else ["{}"] * size,
    }
    return pd.DataFrame(table, columns=list(DOCUMENT_COLUMNS)).astype("str")


def read_queries(path: Path, default_id: str | None = None, table: QueryTable = "queries") -> pd.DataFrame:
    """Columns query_id, text, and of translations original. With `default_id`, a table without ids is numbered under that name."""
    columns = _columns(path, table, optional=("query_id",) if default_id else ())
    texts = {field: _strings(column, f"{path}, {field}") for field, column in columns.items() if field != "query_id"}
    if "query_id" in columns:
        return query_table(_ids(columns["query_id"], path, "query_id"), **texts)
    return query_table([f"{default_id}-{row}" for row in range(1, len(texts["text"]) + 1)], **texts)


def read_qrels(path: Path, split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score, split."""
    columns = _columns(path, "qrels")
    queries = [value or "" for value in _ids(columns["query_id"], path, "query_id")]
    documents = [value or "" for value in _ids(columns["doc_id"], path, "doc_id")]
    return judgement_table(list(zip(queries, documents, _scores(columns["score"], path), strict=True)), split)


def _scores(column: pa.ChunkedArray, path: Path) -> list[int]:
    import pyarrow as pa

    if pa.types.is_nested(column.type):
        raise DataError(f"{path}, score: expected a column of whole numbers; found {column.type}.")
    grades: dict[Any, int] = {}
    scores = []
    for row, value in enumerate(_values(column, f"{path}, score"), start=1):
        key = (type(value), value)
        if key not in grades:
            grades[key] = parse_score(value, f"{path}, row {row}")
        scores.append(grades[key])
    return scores


def _columns(path: Path, table: str, optional: Sequence[str] = ()) -> dict[str, pa.ChunkedArray]:
    import pyarrow as pa

    kind = "Arrow" if path.name.lower().endswith(".arrow") else "Parquet"
    try:
        with _opened(path, kind) as (there, read):
            try:
                names = known_fields(there, FIELDS[table])
            except AmbiguousJson as error:
                raise DataError(f"{path}: {error}.") from None
            if missing := next((field for field in FIELDS[table] if field not in names and field not in optional), None):
                wanted = _USUAL.get(missing, missing)
                raise DataError(f"{path}: expected a column {wanted}; found {', '.join(there) or 'none'}.")
            if twice := next((name for name in names.values() if there.count(name) > 1), None):
                raise DataError(f"{path}: two columns are named '{twice}'. Rename or remove one of them.")
            found = read([name for name in names.values() if name in there])
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last for the name of a column
        raise DataError(f"{path} cannot be read as {kind} ({str(error)[:160]}). Write the file again.") from None
    return {field: found.column(name) for field, name in names.items()}


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[list[str], Callable[[list[str]], pa.Table]]]:
    """The names of a file's columns, and what reads some of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "Parquet":
        with pq.ParquetFile(path) as file:
            yield file.schema_arrow.names, lambda names: file.read(columns=names)
        return
    with pa.memory_map(str(path)) as mapped:
        # The package datasets writes streams; Arrow's other form, which Feather is too, says so at its beginning.
        whole = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        arrow = pa.ipc.open_file(mapped) if whole else pa.ipc.open_stream(mapped)
        yield arrow.schema.names, lambda names: _sound(arrow.read_all().select(names))


def _sound(table: pa.Table) -> pa.Table:
    """The table, if what its file says of itself holds: Arrow maps a damaged one as it is, and would read beyond its end.

    Raises ArrowInvalid. Bytes that are no UTF-8 are left to whoever reads the column, who names the row.
    """
    import pyarrow as pa

    for chunk in (chunk for column in table.columns for chunk in column.chunks):  # each, since the first fault of a column ends its check
        try:
            chunk.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
    return table


def _ids(column: pa.ChunkedArray, path: Path, name: str) -> list[str | None]:
    found = _strings(column, f"{path}, {name}")
    for row, value in enumerate(found, start=1):
        if value and "\0" in value:
            without_nul(value, f"{path}, row {row}")
    return found


def _strings(column: pa.ChunkedArray, where: str) -> list[str | None]:
    """Text, bytes of UTF-8 and whole numbers as text; missing values stay missing, for the contracts to judge. Raises DataError."""
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale == 0):
        return [None if value is None else str(value) for value in _values(column, where)]
    if not (pa.types.is_null(kind) or any(is_kind(kind) for is_kind in _text_kinds())):
        raise DataError(f"{where}: expected a column of text; found {column.type}. Cast it to text when the file is written.")
    return _values(column, where)


def _values(column: pa.ChunkedArray, where: str) -> list[Any]:
    """The values of a column as Python's, bytes as text. Raises DataError for what is no UTF-8, and for what Python has no value for."""
    import pyarrow as pa

    try:
        return [value.decode() if isinstance(value, bytes) else value for value in column.to_pylist()]
    except UnicodeDecodeError:
        row = _first_broken(column)
        raise DataError(f"{where}, row {row}: not UTF-8. Convert the column to UTF-8 when the file is written.") from None
    except (ValueError, OverflowError, LookupError, pa.ArrowException) as error:  # the year 10000; two fields of one name; an unknown zone
        row = _first_broken(column)
        raise DataError(f"{where}, row {row}: cannot be read ({str(error)[:160]}). Write the column as text (JSON).") from None


def _text_kinds() -> tuple[Any, ...]:
    """Kinds of text, and of bytes: Hive, Impala and Spark write text without saying that it is some."""
    from pyarrow import types

    text = (types.is_string, types.is_large_string, types.is_string_view)
    return (*text, types.is_binary, types.is_large_binary, types.is_binary_view)


def _first_broken(column: pa.ChunkedArray) -> int:
    """Number of the first row, from 1, whose value cannot be read, or whose bytes are no UTF-8; 0 for none."""
    for number, value in enumerate((value for chunk in column.chunks for value in chunk), start=1):
        try:
            found = value.as_py()
            if isinstance(found, bytes):
                found.decode()
        except (ValueError, OverflowError, LookupError):
            return number
    return 0


def _metadata(column: pa.ChunkedArray, where: str) -> list[str]:
    """Structures, maps and texts that hold JSON, as JSON text."""
    import pyarrow as pa

    kind = column.type
    if not (pa.types.is_map(kind) or pa.types.is_struct(kind)):
        texts = enumerate(_strings(column, where), start=1)
        return [metadata_from_text(text, f"{where}, row {row}") for row, text in texts]
    found = []
    for row, value in enumerate(_values(column, where), start=1):
        try:
            found.append(metadata_text(_without_maps(value, kind), f"{where}, row {row}"))
        except AmbiguousJson as error:
            raise DataError(f"{where}, row {row}: {error}. One of the two would be lost.") from None
        except UnicodeDecodeError:
            raise DataError(f"{where}, row {row}: a key is not UTF-8. Convert it when the file is written.") from None
        except TypeError:  # a structure or a list, which a map of Arrow can have for a key
            raise DataError(f"{where}, row {row}: a key of a map is no text. Write the column as text (JSON).") from None
    return found


def _without_maps(value: Any, kind: pa.DataType) -> Any:
    """`value` of this kind with its maps, which Arrow gives as lists of pairs, as objects; raises AmbiguousJson for a key twice."""
    from pyarrow import types

    if value is None:
        return None
    if types.is_map(kind):
        named = ((key.decode() if isinstance(key, bytes) else key, entry) for key, entry in value)
        return strict_object([(key, _without_maps(entry, kind.item_type)) for key, entry in named])
    if types.is_struct(kind):
        return {field.name: _without_maps(value[field.name], field.type) for field in kind}
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return [_without_maps(entry, kind.value_type) for entry in value]
    return value
