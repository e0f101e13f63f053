"""Vectors of documents that lie in a database, copied over its client into a folder that `vector_files` reads: Qdrant, Milvus, pgvector.

Of every document one vector is read, under the id that the data has for it: a field's value, or what the database itself numbers by.
Nothing is written to the database, and no password goes into a record.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from components.artifacts import Artifact, Scalar, digest_of, is_complete, open_artifact, seal
from components.errors import ConfigError, DataError, ScalingNoteError
from components.progress import progress_bar
from components.settings import expanded
from components.towers.trained.vector_files import COPY_KIND, files_digest, parquet_vectors, vector_files

if TYPE_CHECKING:
    import pyarrow as pa
    from qdrant_client import QdrantClient

Store = Literal["qdrant", "milvus", "pgvector"]
STORES: Mapping[Store, str] = {"qdrant": "Qdrant", "milvus": "Milvus", "pgvector": "PostgreSQL"}
ID_FIELDS = ("doc_id", "_id", "docid", "document_id")  # fields that are taken for the data's ids before the database's own ids are
_SERVER = re.compile(r"localhost/?|([\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}/?")  # localhost:6333
ROWS = 500  # in one answer of the database
GROUP = 64  # answers in one row group of the copy
SECONDS = 10  # until a database that does not answer is given up
COPY = "documents.parquet"


@dataclass(frozen=True)
class Collection:
    """Where vectors lie: a collection (of pgvector a table, as `table` or `schema.table`) of the database at `address`.

    `id_field` and `vector_field` name the fields that hold ids and vectors; None: they are found where there is no choice.
    """

    store: Store
    address: str
    name: str
    id_field: str | None = None
    vector_field: str | None = None

    @property
    def title(self) -> str:
        """What messages and records call it; an address without its credentials."""
        try:
            parts = urlsplit(self.address)
            port = f":{parts.port}" if parts.port else ""
            place = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}" if parts.netloc else self.address
        except ValueError:  # no address at all
            place = ""
        if self.store == "pgvector" and "://" not in place:  # a string of keywords, which may hold a password
            place = ""
        return f"{STORES[self.store]}: '{self.name}' in {place or 'the database that was named'}"


class Rows(NamedTuple):
    """Some rows as the database gave them: an id and a vector each, None where it has none."""

    ids: list[Any]
    vectors: list[Any]


@dataclass(frozen=True)
class _Opened:
    """A collection that answered: how many rows it says it holds, which fields are read, and the rows."""

    count: int
    ids: str
    vectors: str
    rows: Generator[Rows, None, None]


def copy_collection(wanted: Collection, queries: Path | None, into: Path) -> Artifact:
    """Copy all documents' vectors into a folder of `into` that is named by what it holds, and seal it; `queries` holds those of queries.

    Raises ConfigError without the database's client and for a folder `queries` that also holds documents; DataError for a database that
    does not answer, fields that cannot be told apart or do not exist, and, with counts, for what `read_vectors` refuses.
    """
    beside = [] if queries is None else _of_queries(queries)
    opened = _said(wanted, lambda: _OPENERS[wanted.store](wanted))
    unfinished = into / f".{digest_of(asdict(wanted))[:24]}"
    shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that was killed
    unfinished.mkdir(parents=True)
    try:
        return _kept(unfinished, into, _fill(wanted, opened, beside, unfinished))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _fill(wanted: Collection, opened: _Opened, queries: Sequence[Path], folder: Path) -> dict[str, Scalar]:
    """Write the vectors into `folder` and check them; what the records say of them."""
    written = _write(wanted, opened, folder / COPY)
    if written != opened.count:
        raise DataError(f"{wanted.title} said that it holds {opened.count:,} rows and gave {written:,}: it changed meanwhile. Try again.")
    parquet_vectors([folder / COPY], wanted.title)
    for path in queries:
        shutil.copyfile(path, folder / path.name)
    return {"documents": written, "collection": wanted.title, "id_field": opened.ids, "vector_field": opened.vectors}


def _kept(folder: Path, into: Path, about: dict[str, Scalar]) -> Artifact:
    """Seal `folder` and move it to where its content and origin say, unless it is there already."""
    kept = into / digest_of([files_digest(folder), about])[:24]
    if not is_complete(kept):
        seal(folder, COPY_KIND, attributes=about)
        shutil.rmtree(kept, ignore_errors=True)
        folder.replace(kept)
    return open_artifact(kept)


def qdrant_client(where: str) -> QdrantClient:
    """A client of the Qdrant server at a URL (key in QDRANT_API_KEY), or of an embedded store in a folder or `:memory:`.

    Raises ConfigError without the package qdrant-client and for a server without `http://`, of which the client would make a folder, and
    whatever the client raises.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError:
        raise ConfigError("Qdrant needs the package qdrant-client: pip install 'scalingnote[qdrant]'.") from None
    if where == ":memory:":
        return QdrantClient(":memory:")
    if "://" in where:
        return QdrantClient(url=where, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
    folder = expanded(where)
    if _SERVER.fullmatch(where) and not folder.exists():
        raise ConfigError(f"'{where}' names a server and would be made a folder of that name here. Write http://{where}, or ./{where}.")
    return QdrantClient(path=str(folder))


def first_line(error: Exception) -> str:
    """What a database's client says, in a line without its full stop."""
    said = getattr(error, "message", None) or str(error)
    return (str(said).strip().splitlines() or [type(error).__name__])[0][:300].rstrip(".")


def _of_queries(folder: Path) -> list[Path]:
    found = vector_files(folder)
    if others := [path for path in found if not path.relative_to(folder).parts[0].startswith("queries")]:
        raise ConfigError(
            f"The vectors of documents come from the database, but {folder} has some too ({others[0].name}). Leave only those of queries "
            "there, or give --vectors alone."
        )
    if not found:
        raise DataError(f"{folder} has no vectors of queries. Expected queries.parquet, queries.npy or queries.faiss.")
    if nested := [path for path in found if path.parent != folder]:
        raise ConfigError(f"{nested[0].parent} is a folder; put the vectors of queries into one file, {folder / 'queries.parquet'}.")
    return found


def _said(wanted: Collection, call: Callable[[], Any]) -> Any:
    """What `call` returns; what the database's client raises becomes one sentence."""
    try:
        return call()
    except ScalingNoteError:
        raise
    except Exception as error:  # each client has errors of its own, of its transport and of file locks
        raise DataError(f"{wanted.title} cannot be read: {first_line(error)}. Check address, name and access.") from None


def _write(wanted: Collection, opened: _Opened, path: Path) -> int:
    """Write the rows as they come into one Parquet file; how many they were."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema({"_id": pa.large_string(), "vector": pa.large_list(pa.float32())})
    held: list[pa.RecordBatch] = []
    written = 0
    with closing(opened.rows), pq.ParquetWriter(path, schema) as writer, progress_bar(opened.count, wanted.title, "vector") as bar:
        while (rows := _said(wanted, lambda: next(opened.rows, None))) is not None:
            held.append(_said(wanted, partial(_as_batch, rows, schema)))
            written += held[-1].num_rows
            bar.update(held[-1].num_rows)
            if len(held) == GROUP:
                writer.write_table(pa.Table.from_batches(held, schema))
                held = []
        writer.write_table(pa.Table.from_batches(held, schema))
    return written


def _as_batch(rows: Rows, schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    ids = [None if value is None else str(value) for value in rows.ids]
    return pa.record_batch([ids, rows.vectors], schema=schema)


def _one_of(found: Sequence[str], asked: str | None, what: str, wanted: Collection) -> str:
    """The field that was asked for, or the only one there is."""
    named = ", ".join(f"'{name}'" for name in found) or "none"
    if asked is None and len(found) == 1:
        return found[0]
    if asked is not None and asked in found:
        return asked
    if asked is not None:
        raise DataError(f"{wanted.title} has no {what} named '{asked}'; there are: {named}.")
    told = f"has {len(found)} {what}s ({named}). Name one with --vector-field" if found else f"has no {what}"
    raise DataError(f"{wanted.title} {told}.")


def _local(wanted: Collection) -> None:
    """Embedded stores are made by their clients where there is none."""
    if "://" not in wanted.address and not expanded(wanted.address).exists():
        raise DataError(
            f"{wanted.title}: there is no such file or folder. Name the place of an embedded store, or the address of a server."
        )


def _qdrant(wanted: Collection) -> _Opened:
    _local(wanted)
    client = qdrant_client(wanted.address)
    try:
        params = client.get_collection(wanted.name).config.params.vectors or {}
        named = params if isinstance(params, dict) else {"": params}
        dense = [name for name, about in named.items() if about.multivector_config is None]
        # An unnamed vector is the only one of its collection.
        chosen = "" if dense == [""] and wanted.vector_field is None else _one_of(dense, wanted.vector_field, "dense vector", wanted)
        first, _ = client.scroll(wanted.name, limit=1, with_payload=True)
        there = (first[0].payload or {}) if first else {}
        field = wanted.id_field or next((name for name in ID_FIELDS if name in there), None)
        count = int(client.count(wanted.name, exact=True).count)
    except BaseException:
        client.close()
        raise
    return _Opened(count, field or "id of the point", chosen or "vector", _points(client, wanted.name, field, chosen))


def _points(client: QdrantClient, name: str, field: str | None, vector: str) -> Generator[Rows, None, None]:
    asked: dict[str, Any] = {"with_payload": [field] if field else False, "with_vectors": [vector] if vector else True}
    offset = None
    with closing(client):
        while True:
            points, offset = client.scroll(name, limit=ROWS, offset=offset, **asked)
            ids = [(point.payload or {}).get(field) if field else point.id for point in points]
            yield Rows(ids, [(point.vector or {}).get(vector) if vector else point.vector for point in points])
            if offset is None:
                return


def _milvus(wanted: Collection) -> _Opened:
    try:
        from pymilvus import DataType, MilvusClient
    except ImportError:
        raise ConfigError("Milvus needs its client: pip install pymilvus (and milvus-lite for an embedded store).") from None
    _local(wanted)
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # it logs a traceback for every refusal
    address = wanted.address if "://" in wanted.address else str(expanded(wanted.address))
    client = MilvusClient(uri=address, token=os.environ.get("MILVUS_TOKEN", ""), timeout=SECONDS)
    try:
        about = client.describe_collection(wanted.name)
        names = [field["name"] for field in about["fields"]]
        primary = next(field["name"] for field in about["fields"] if field.get("is_primary"))
        dense = [field["name"] for field in about["fields"] if field["type"] == DataType.FLOAT_VECTOR]
        vector = _one_of(dense, wanted.vector_field, "FLOAT_VECTOR field", wanted)
        ids = wanted.id_field or next((name for name in ID_FIELDS if name in names), primary)
        if not about.get("enable_dynamic_field"):
            _one_of(names, ids, "field", wanted)
        count = int(client.query(wanted.name, filter="", output_fields=["count(*)"])[0]["count(*)"])
    except BaseException:
        client.close()
        raise
    return _Opened(count, ids, vector, _entities(client, wanted.name, ids, vector))


def _entities(client: Any, name: str, ids: str, vector: str) -> Generator[Rows, None, None]:
    with closing(client):
        iterator = client.query_iterator(name, batch_size=ROWS, output_fields=[ids, vector])
        while rows := iterator.next():
            yield Rows([row.get(ids) for row in rows], [row.get(vector) for row in rows])
        iterator.close()


# Names are taken as they stand in the catalogue; the server quotes them for the query that reads.
_COLUMNS = """
SELECT a.attname, t.typname, quote_ident(a.attname), quote_ident(n.nspname) || '.' || quote_ident(c.relname),
  coalesce(i.indisprimary, false)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary AND i.indnkeyatts = 1 AND a.attnum = ANY (i.indkey)
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
AND ((c.relname = %(name)s AND pg_table_is_visible(c.oid)) OR n.nspname || '.' || c.relname = %(name)s)
ORDER BY a.attnum
"""
_VECTOR_TYPES = ("vector", "halfvec", "_float4", "_float8")


def _pgvector(wanted: Collection) -> _Opened:
    try:
        import psycopg
    except ImportError:
        raise ConfigError("pgvector needs the package psycopg: pip install 'scalingnote[postgres]'.") from None
    connection = psycopg.connect(wanted.address, connect_timeout=SECONDS, application_name="scalingnote")
    try:
        # One view of the table for count and rows, however long they take.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        columns = connection.execute(_COLUMNS, {"name": wanted.name}).fetchall()
        if not columns:
            raise DataError(f"{wanted.title}: there is no such table or view. Name it as it stands in the catalogue, with its schema.")
        quoted = {name: quote for name, _, quote, _, _ in columns}
        vector = _one_of([name for name, kind, *_ in columns if kind in _VECTOR_TYPES], wanted.vector_field, "vector column", wanted)
        keys = [name for name, *_, key in columns if key]
        ids = wanted.id_field or next((name for name in (*ID_FIELDS, *keys, "id") if name in quoted), None)
        if ids is None:
            raise DataError(f"{wanted.title} has no primary key of one column. Name the column of ids with --id-field.")
        _one_of(list(quoted), ids, "column", wanted)
        table = columns[0][3]
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone() or (0,)
    except BaseException:
        connection.close()
        raise
    query = f"SELECT {quoted[ids]}::text, {quoted[vector]}::real[] FROM {table}"
    return _Opened(int(count), ids, vector, _records(connection, query))


def _records(connection: Any, query: str) -> Generator[Rows, None, None]:
    with closing(connection), connection.cursor(name="scalingnote", binary=True) as cursor:
        cursor.execute(query)
        while rows := cursor.fetchmany(ROWS):
            yield Rows([name for name, _ in rows], [vector for _, vector in rows])


_OPENERS: Mapping[Store, Callable[[Collection], _Opened]] = {"qdrant": _qdrant, "milvus": _milvus, "pgvector": _pgvector}
