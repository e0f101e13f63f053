"""Vectors that a team has already: read in every form, refused with counts, and a teacher without an encoder made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from components.artifacts import Artifact
from components.data.config import DataConfig
from components.data.dataset import Dataset, load_dataset, query_table
from components.data.snapshot import snapshot
from components.data.sources import source_digest
from components.distillation.config import DistillationConfig
from components.distillation.query_sources import answerable, dev_queries, originals, query_sources
from components.distillation.student.initial import width_of
from components.distillation.teacher_targets import read_teacher_targets, write_teacher_targets
from components.errors import ArtifactError, DataError, ModelError
from components.index.config import EncodingConfig
from components.index.encode import encode_corpus
from components.index.shards import read_vectors as read_shards
from components.towers.config import TowerConfig
from components.towers.encoder import open_tower
from components.towers.trained.adoption import take_stored
from components.towers.trained.stored import TextVectors, load_stored
from components.towers.trained.vector_files import files_digest, read_vectors, stored_width
from tests.data_world import write_folder

IDS = [f"d{n}" for n in range(260)]
QUERIES = [f"q{n}" for n in range(260)]


def vectors_of(count: int, seed: int = 0, width: int = 16) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def near(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Query vectors that find their documents."""
    return vectors + 0.1 * vectors_of(*vectors.shape[:1], seed=1, width=vectors.shape[1])


DOCUMENTS = vectors_of(260)


def parquet(path: Path, ids: list[Any], vectors: Any, names: tuple[str, str] = ("_id", "vector")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({names[0]: ids, names[1]: list(vectors)}).to_parquet(path)
    return path


def numpy(folder: Path, kind: str, ids: list[str], vectors: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{kind}.npy", vectors)
    (folder / f"{kind}.ids.txt").write_text("".join(f"{name}\n" for name in ids))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("data")
    config = DataConfig(source=str(write_folder(root / "clinic")))
    (root / "snapshot").mkdir()
    return load_dataset(snapshot(config, root / "snapshot", source_digest(config)))


def taken(data: Dataset, source: Path, folder: Path) -> tuple[Artifact, TextVectors, TextVectors]:
    made = take_stored(data, source, {"dataset": "d"}, folder)
    return made, load_stored(folder / "query_tower"), load_stored(folder / "document_tower")


def test_every_form_gives_the_same_vectors_under_the_same_ids(tmp_path: Path) -> None:
    import faiss

    parquet(tmp_path / "a" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "b" / "documents" / "0.parquet", IDS[:99], DOCUMENTS[:99].astype(np.float64), ("id", "embedding"))
    parquet(tmp_path / "b" / "documents" / "1.parquet", IDS[99:], DOCUMENTS[99:], ("doc_id", "values"))
    numpy(tmp_path / "c", "documents", IDS, DOCUMENTS.astype(np.float64))
    flat = faiss.IndexFlatIP(16)
    flat.add(DOCUMENTS)
    (tmp_path / "d").mkdir()
    faiss.write_index(flat, str(tmp_path / "d" / "documents.faiss"))
    (tmp_path / "d" / "documents_ids.json").write_text(json.dumps(IDS))
    found = {name: read_vectors(tmp_path / name, "documents") for name in "abcd"}
    first = found["a"]
    assert first is not None and first.ids == IDS and np.allclose(first.vectors, unit(DOCUMENTS), atol=1e-6)
    assert [table.digest for table in found.values() if table is not None] == [first.digest] * 4
    assert {stored_width(tmp_path / name) for name in "abcd"} == {16}
    assert read_vectors(tmp_path / "a", "queries") is None
    low, mean, high = first.norms
    assert low < mean < high and np.isclose(high, np.linalg.norm(DOCUMENTS, axis=1).max())


@pytest.mark.parametrize("key", ["IDMap,Flat", "IVF4,Flat", "IDMap2,HNSW8", "IVF4,SQ8"])
def test_a_faiss_file_brings_ids_of_its_own(key: str, tmp_path: Path) -> None:
    import faiss

    index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
    index.train(DOCUMENTS)
    numbers = np.arange(260, dtype=np.int64)[::-1] * 3 + 7
    index.add_with_ids(DOCUMENTS, numbers)
    faiss.write_index(index, str(tmp_path / "documents.faiss"))
    found = read_vectors(tmp_path, "documents")
    assert found is not None
    order = [found.ids.index(str(number)) for number in numbers]
    assert np.abs(found.vectors[order] - unit(DOCUMENTS)).max() < (0.05 if "SQ8" in key else 1e-6)
    assert bool(found.remarks) == ("SQ8" in key)


def test_ids_and_order_do_not_change_the_identity_but_values_do(tmp_path: Path) -> None:
    parquet(tmp_path / "a" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "b" / "documents.parquet", IDS[::-1], DOCUMENTS[::-1])
    parquet(tmp_path / "c" / "documents.parquet", IDS[::-1], DOCUMENTS)
    digests = [table.digest for name in "abc" if (table := read_vectors(tmp_path / name, "documents")) is not None]
    assert digests[0] == digests[1] != digests[2]
    assert files_digest(tmp_path / "a") != files_digest(tmp_path / "b")


def _with(place: tuple[int, ...], value: float) -> NDArray[np.float32]:
    changed = DOCUMENTS.copy()
    changed[place] = value
    return changed


@pytest.mark.parametrize(
    ("ids", "vectors", "words"),
    [
        (IDS, _with((3, 2), np.nan), r"1 of 260 vectors have values that are not finite \(first: 'd3'\)"),
        (IDS, _with((3, 2), np.inf), "1 of 260 vectors have values that are not finite"),
        (IDS, _with((slice(4, 6),), 0.0), r"2 of 260 vectors are zero.*'d4'"),
        ([*IDS[:-2], "d0", "d1"], DOCUMENTS, r"2 of 258 ids occur more than once \('d0', 'd1'\)"),
        ([*IDS[:-1], " "], DOCUMENTS, "1 of 260 vectors have a blank id"),
        (IDS, [*DOCUMENTS[:-3], *(row[:9] for row in DOCUMENTS[-3:])], "vectors of 2 lengths: 257 of 16, 3 of 9"),
        (IDS, [*DOCUMENTS[:-1], None], "1 of 260 rows have no vector"),
        (IDS, [["a", "b"]] * 260, "hold values of type"),
        (IDS, ["text"] * 260, "expected lists of numbers"),
        ([], [], "holds no vectors|expected lists"),
        (IDS, [[]] * 260, "holds no vectors|hold values of type null"),
        (IDS, [np.empty(0, np.float32)] * 260, "holds no vectors"),
    ],
)
def test_vectors_that_cannot_be_meant_are_refused_with_counts(ids: list[Any], vectors: Any, words: str, tmp_path: Path) -> None:
    parquet(tmp_path / "documents.parquet", ids, vectors)
    with pytest.raises(DataError, match=words):
        read_vectors(tmp_path, "documents")


def test_the_width_is_that_of_the_first_vector_that_is_there(tmp_path: Path) -> None:
    parquet(tmp_path / "gap" / "documents.parquet", IDS, [*[None] * 20, *DOCUMENTS[20:]])
    parquet(tmp_path / "parts" / "documents" / "0.parquet", [], np.empty((0, 16), np.float32))
    parquet(tmp_path / "parts" / "documents" / "1.parquet", IDS, DOCUMENTS)
    assert stored_width(tmp_path / "gap") == stored_width(tmp_path / "parts") == 16
    for name, vectors, words in (("empty", [], "holds no vectors|expected lists"), ("text", ["x"] * 260, "expected lists of numbers")):
        parquet(tmp_path / name / "documents.parquet", IDS[: len(vectors)], vectors)
        with pytest.raises(DataError, match=words):
            stored_width(tmp_path / name)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "documents.parquet").write_text("no Parquet", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        stored_width(tmp_path / "none")


def test_ids_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pa.FixedSizeListArray.from_arrays(pa.array(DOCUMENTS.ravel()), 16)
    odd = ["a\x85b", "c\u2028d", *IDS[2:]]
    table = {"_id": pa.array([name.encode() for name in odd]), "vector": rows}
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), [16]), rows)
    views = pa.array(DOCUMENTS.tolist(), pa.list_view(pa.float32()))
    tables = {"bytes": table, "tensor": {"ID": odd, "Vector": tensor}, "views": {"id": range(260), "doc_id": odd, "vector": views}}
    for name, columns in tables.items():
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "documents.parquet")
    numpy(tmp_path / "lines", "documents", odd, DOCUMENTS)
    (tmp_path / "lines" / "documents.ids.txt").write_bytes(("\r\n".join(odd) + "\r\n\r\n").encode())
    for name in (*tables, "lines"):
        found = read_vectors(tmp_path / name, "documents")
        assert found is not None and found.ids == odd and np.allclose(found.vectors, unit(DOCUMENTS), atol=1e-6), name
        assert stored_width(tmp_path / name) == 16


@pytest.mark.parametrize("first", [1.5, True, ["d0"], {"_id": "d0"}])
def test_an_id_that_is_neither_text_nor_a_whole_number_is_refused(first: Any, tmp_path: Path) -> None:
    numpy(tmp_path, "documents", IDS, DOCUMENTS)
    (tmp_path / "documents.ids.txt").unlink()
    (tmp_path / "documents.ids.json").write_text(json.dumps([first, *IDS[1:]]))
    with pytest.raises(DataError, match=r"documents.ids.json, id 1: an id has to be text or a whole number"):
        read_vectors(tmp_path, "documents")


def test_columns_and_files_that_could_both_be_meant_are_refused(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(DataError, match=words):
            read_vectors(tmp_path, "documents")

    for columns in ({"_id": IDS, "vector": [[1.0]] * 260, "embedding": [[2.0]] * 260}, {"_id": IDS, "id": IDS, "vector": [[1.0]] * 260}):
        pd.DataFrame(columns).to_parquet(tmp_path / "documents.parquet")
        refused("and either could be meant")
    (tmp_path / "documents.parquet").unlink()
    numpy(tmp_path, "documents", IDS, DOCUMENTS)
    (tmp_path / "documents.ids.json").write_text(json.dumps(IDS[::-1]))
    refused("the ids of documents more than once: documents.ids.txt, documents.ids.json")
    (tmp_path / "documents.ids.txt").unlink()
    (tmp_path / "documents.ids.json").write_text("[" * 100_000)
    refused("cannot be read .*Write a list of ids")
    np.savez(tmp_path / "x.npz", DOCUMENTS)
    (tmp_path / "documents.ids.json").write_text(json.dumps(IDS))
    (tmp_path / "x.npz").rename(tmp_path / "documents.npy")
    refused("an archive of tables")
    np.save(tmp_path / "documents.npy", np.ones((260, 16)))
    refused("all 260 vectors point the same way")
    (tmp_path / "documents.npy").unlink()
    parquet(tmp_path / "documents" / "0.parquet", IDS[:99], DOCUMENTS[:99])
    np.save(tmp_path / "documents" / "1.npy", DOCUMENTS[99:])
    refused("expected only files named .parquet")


@pytest.mark.parametrize("key", ["PCAR16,IVF4,Flat", "IVF4,Flat", "IDMap,Flat"])
def test_the_numbers_of_a_faiss_file_name_lines_of_its_ids(key: str, tmp_path: Path) -> None:
    import faiss

    numbers = np.random.default_rng(3).permutation(260).astype(np.int64)
    lines = [f"x{number}" for number in range(260)]

    def write(given: NDArray[np.int64]) -> None:
        index = faiss.index_factory(16, key, faiss.METRIC_INNER_PRODUCT)
        index.train(DOCUMENTS)
        index.add_with_ids(DOCUMENTS, given)
        faiss.write_index(index, str(tmp_path / "documents.faiss"))

    write(numbers + 10**12)  # hashes, without a file of ids
    table = read_vectors(tmp_path, "documents")
    assert table is not None
    places = [table.ids.index(str(number + 10**12)) for number in numbers]
    assert np.allclose(table.vectors[places], unit(DOCUMENTS), atol=1e-4)
    (tmp_path / "documents.ids.txt").write_text("\n".join(lines))
    if "IVF" in key:
        with pytest.raises(DataError, match="these are no lines of the file of ids"):
            read_vectors(tmp_path, "documents")
    write(numbers)
    table = read_vectors(tmp_path, "documents")
    assert table is not None
    assert np.allclose(table.vectors[[table.ids.index(f"x{number}") for number in numbers]], unit(DOCUMENTS), atol=1e-4)


def test_an_index_that_would_end_the_process_is_refused(tmp_path: Path) -> None:
    import faiss

    index = faiss.index_factory(16, "IVF4,PQ4x4fs", faiss.METRIC_INNER_PRODUCT)
    index.train(DOCUMENTS)
    index.add(DOCUMENTS)
    faiss.write_index(index, str(tmp_path / "documents.faiss"))
    with pytest.raises(DataError, match="does not give the vectors of IndexIVFPQFastScan back"):
        read_vectors(tmp_path, "documents")


def test_vectors_in_the_home_of_nobody_are_refused_in_a_sentence() -> None:
    with pytest.raises(DataError, match=r"~nobody-of-this-name/vectors. does not exist"):
        width_of(TowerConfig(base_model="vectors", vectors="~nobody-of-this-name/vectors"))


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(DataError, match=words):
            read_vectors(folder, "documents")

    refused(tmp_path / "none", "does not exist")
    numpy(tmp_path / "short", "documents", IDS[:5], DOCUMENTS)
    refused(tmp_path / "short", "260 vectors and 5 ids")
    np.save(tmp_path / "short" / "documents.npy", np.array([DOCUMENTS[0], "x"], dtype=object), allow_pickle=True)
    refused(tmp_path / "short", "not a table of numbers")
    whole = (tmp_path / "short" / "documents.npy").read_bytes()
    (tmp_path / "short" / "documents.npy").write_bytes(whole.replace(b"}", b"(", 1))  # a header that breaks off
    refused(tmp_path / "short", "not a table of numbers")
    np.save(tmp_path / "short" / "documents.npy", DOCUMENTS[0])
    refused(tmp_path / "short", r"of the shape \(16,\)")
    (tmp_path / "short" / "documents.ids.txt").unlink()
    np.save(tmp_path / "short" / "documents.npy", DOCUMENTS)
    refused(tmp_path / "short", "has no ids beside it")
    parquet(tmp_path / "short" / "documents.parquet", IDS, DOCUMENTS)
    refused(tmp_path / "short", "more than once: documents.npy, documents.parquet")
    parquet(tmp_path / "named" / "documents.parquet", IDS, DOCUMENTS, ("key", "vector"))
    refused(tmp_path / "named", "has the columns key, vector; expected one named _id")
    (tmp_path / "bytes").mkdir()
    for name in ("documents.parquet", "documents.faiss"):
        (tmp_path / "bytes" / name).write_bytes(b"nothing of the kind")
        refused(tmp_path / "bytes", "cannot be read as Parquet|no index of vectors that FAISS can read")
        (tmp_path / "bytes" / name).unlink()


def test_both_towers_answer_from_the_table(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", [*IDS, "stranger"], [*DOCUMENTS, DOCUMENTS[0]])
    parquet(tmp_path / "v" / "queries.parquet", QUERIES, near(DOCUMENTS))
    made, query, document = taken(data, tmp_path / "v", tmp_path / "towers")
    assert made.counts == {"query_vectors": 260, "document_vectors": 260}
    assert np.allclose(query.encode(["where is number 7?"])[0], unit(near(DOCUMENTS))[7], atol=1e-6)
    assert np.allclose(document.encode(["Entry 3\nWhat entry 3 is about"])[0], unit(DOCUMENTS)[3], atol=1e-6)
    assert query.space_id == document.space_id and query.contract.form == "vectors"
    assert query.encode([]).shape == (0, 16)
    with pytest.raises(ModelError, match=r"2 of 3 texts have no stored vector \(first: 'new'\), and the encoder"):
        query.encode(["new", "where is number 7?", "newer"])
    again, *_ = taken(data, tmp_path / "v", tmp_path / "again")
    assert again.digest == made.digest
    assert isinstance(open_tower(tmp_path / "towers" / "query_tower"), TextVectors)


def test_the_corpus_is_taken_by_ids_and_new_documents_are_named(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    _, _, document = taken(data, tmp_path / "v", tmp_path / "towers")
    (tmp_path / "shards").mkdir()
    shards = encode_corpus(document, data, {}, EncodingConfig(shard_size=100), tmp_path / "shards")
    assert np.allclose(read_shards(shards).vectors, unit(DOCUMENTS), atol=2e-3)
    with pytest.raises(ModelError, match=r"1 documents are new and 1 have another text .*first: 'x'.*scalingnote adopt"):
        document.of_documents(["x", "d1"], ["h", "h"])


def test_documents_without_vectors_and_queries_of_another_width_are_refused(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "few" / "documents.parquet", IDS[2:], DOCUMENTS[2:])
    with pytest.raises(DataError, match=r"2 of 260 documents have no vector \(first: 'd0'\)"):
        take_stored(data, tmp_path / "few", {}, tmp_path / "towers")
    parquet(tmp_path / "wide" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "wide" / "queries.parquet", QUERIES, vectors_of(260, width=12))
    with pytest.raises(DataError, match="of documents have 16 dimensions, but those of queries have 12"):
        take_stored(data, tmp_path / "wide", {}, tmp_path / "towers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no vectors of documents"):
        take_stored(data, tmp_path / "empty", {}, tmp_path / "towers")


def test_ids_of_another_kind_are_shown_beside_those_of_the_data(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", [f"doc-{name}" for name in IDS], DOCUMENTS)
    with pytest.raises(DataError, match=r"260 of 260 documents have no vector.*ids of another kind, such as 'doc-d0'"):
        take_stored(data, tmp_path / "v", {}, tmp_path / "towers")
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", [f"Q{name}" for name in QUERIES], near(DOCUMENTS))
    with pytest.raises(DataError, match=r"None of the 260 vectors of queries has the id of a query: theirs are such as 'Qq0', those .* 'q"):
        take_stored(data, tmp_path / "v", {}, tmp_path / "towers")


def test_query_vectors_without_a_query_are_counted(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", [*QUERIES, "stranger"], [*near(DOCUMENTS), DOCUMENTS[0]])
    made, *_ = taken(data, tmp_path / "v", tmp_path / "towers")
    assert made.counts["query_vectors"] == 260
    assert "1 vectors belong to no query of the data and are left out" in capsys.readouterr().out


def test_files_that_were_not_read_are_named(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    np.save(tmp_path / "v" / "query.npy", DOCUMENTS)
    taken(data, tmp_path / "v", tmp_path / "t")
    assert "Not read: query.npy (1 in all); vectors of queries are expected in queries.parquet" in capsys.readouterr().out


def test_vectors_that_change_while_they_are_read_are_not_kept_under_the_key_of_others(data: Dataset, tmp_path: Path) -> None:
    source = tmp_path / "v"
    parquet(source / "documents.parquet", IDS, DOCUMENTS)
    expected = files_digest(source)
    taken_over = take_stored(data, source, {}, tmp_path / "first", expected)
    parquet(source / "documents.parquet", IDS, DOCUMENTS[::-1].copy())
    with pytest.raises(DataError, match="changed while they were read"):
        take_stored(data, source, {}, tmp_path / "second", expected)
    assert taken_over.path.is_dir() and not (tmp_path / "second").exists()


@pytest.mark.parametrize("name", ["queries.parquet", "queries.npy", "documents.ids.txt", "queries"])
def test_a_link_to_vectors_that_were_not_fetched_is_refused(name: str, tmp_path: Path) -> None:
    """Of `queries` it was passed over, and documents stood in for the queries."""
    parquet(tmp_path / "documents.parquet", IDS, DOCUMENTS)
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(DataError, match=rf"{name} is a link to nowhere, which is not there"):
        files_digest(tmp_path)


def test_ids_that_belong_to_other_rows_are_found_by_a_search(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", QUERIES, near(DOCUMENTS)[np.random.default_rng(0).permutation(260)])
    with pytest.raises(DataError, match=r"judged queries, \d+.\d% find a relevant document among the best 50 .* by chance"):
        take_stored(data, tmp_path / "v", {}, tmp_path / "towers")


def alike(count: int = 260, step: float = 0.35) -> NDArray[np.float32]:
    """Vectors of a sorted corpus: each is near those beside it."""
    return np.cumsum(vectors_of(count, seed=3) * step, axis=0).astype(np.float32)


def moved(ids: list[str], since: int, by: int) -> list[str]:
    """The ids as they stand where the rows of vectors from `since` on have moved by `by`."""
    return ids[:since] + ids[since + by :] + ids[since : since + by]


CORPORA = {"any order": DOCUMENTS, "sorted": alike(), "ten equal rows": np.repeat(DOCUMENTS[:26], 10, axis=0)}


@pytest.mark.parametrize(("since", "by"), [(0, 1), (0, 5), (130, 1), (100, 3)])
@pytest.mark.parametrize("kind", ["documents", "queries"])
@pytest.mark.parametrize("corpus", ["any order", "sorted"])
def test_ids_that_moved_by_some_rows_are_refused(corpus: str, kind: str, since: int, by: int, data: Dataset, tmp_path: Path) -> None:
    ids = {"documents": IDS, "queries": QUERIES}
    ids[kind] = moved(ids[kind], since, by)
    parquet(tmp_path / "v" / "documents.parquet", ids["documents"], CORPORA[corpus])
    parquet(tmp_path / "v" / "queries.parquet", ids["queries"], near(CORPORA[corpus]))
    said = rf"From the id '\w+' on, \d+% of .* judged pairs fit the vector of .* {by} rows? (before|after) its own better"
    with pytest.raises(DataError, match=said):
        take_stored(data, tmp_path / "v", {}, tmp_path / "towers")


@pytest.mark.parametrize("corpus", CORPORA)
def test_neighbours_that_are_alike_are_no_moved_ids(corpus: str, data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, CORPORA[corpus])
    parquet(tmp_path / "v" / "queries.parquet", QUERIES, near(CORPORA[corpus]))
    made, *_ = taken(data, tmp_path / "v", tmp_path / "towers")
    assert made.counts["query_vectors"] == 260


def test_the_queries_of_one_document_are_one_sign_and_not_many(data: Dataset, tmp_path: Path) -> None:
    queries = near(DOCUMENTS)
    queries[:40] = near(DOCUMENTS[[4]])[0]  # 40 queries that are all judged to belong to one document and are nearer to its neighbour
    ours = data.all_judgements["query_id"].isin(QUERIES[:40])
    crowded = replace(data, all_judgements=data.all_judgements.assign(doc_id=data.all_judgements["doc_id"].where(~ours, "d3")))
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", QUERIES, queries)
    made, *_ = taken(crowded, tmp_path / "v", tmp_path / "towers")
    assert made.counts["query_vectors"] == 260


def test_a_changed_table_is_noticed(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    taken(data, tmp_path / "v", tmp_path / "towers")
    parquet(tmp_path / "w" / "documents.parquet", IDS, vectors_of(260, seed=5))
    taken(data, tmp_path / "w", tmp_path / "others")
    (tmp_path / "others" / "document_tower" / "vectors.parquet").replace(tmp_path / "towers" / "document_tower" / "vectors.parquet")
    with pytest.raises(ArtifactError, match="are not those its contract names"):
        load_stored(tmp_path / "towers" / "document_tower")


def test_documents_stand_in_for_train_queries_without_vectors_and_for_titles(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", QUERIES[:60], near(DOCUMENTS)[:60])
    _, query, document = taken(data, tmp_path / "v", tmp_path / "towers")
    sources = query_sources(data, DistillationConfig(titles=1000, sentences=20))
    teacher, known, held_out = answerable(query, document, data, (sources, dev_queries(data)))
    assert {source: len(texts) for source, texts in known.items()} == {
        "train": 120, "unlabelled": 0, "titles": 260, "sentences": 0, "generated": 0,
    }  # fmt: skip
    assert held_out == []
    found = teacher.encode(["where is number 7?", "where is number 99?", "Entry 200"])
    assert np.allclose(found, [unit(near(DOCUMENTS))[7], unit(DOCUMENTS)[99], unit(DOCUMENTS)[200]], atol=1e-6)


def test_which_queries_have_a_vector_is_looked_up_once(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each held-out query all of them were looked up again: 50,000 dev queries took an hour."""
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", QUERIES, near(DOCUMENTS))
    _, query, document = taken(data, tmp_path / "v", tmp_path / "towers")
    asked, knows = list[str](), type(query).knows
    monkeypatch.setattr(type(query), "knows", lambda self, texts: asked.extend(texts) or knows(self, texts))
    held_out = dev_queries(data)
    assert answerable(query, document, data, ({"train": held_out[:1]}, held_out))[2] == held_out
    assert len(asked) == 1 + len(held_out)


def test_a_translation_of_a_stored_query_has_its_vector_and_one_of_an_unknown_text_is_left_out(data: Dataset, tmp_path: Path) -> None:
    parquet(tmp_path / "v" / "documents.parquet", IDS, DOCUMENTS)
    parquet(tmp_path / "v" / "queries.parquet", QUERIES[:60], near(DOCUMENTS)[:60])
    _, query, document = taken(data, tmp_path / "v", tmp_path / "towers")
    rows = {"wo ist 7?": "where is number 7?", "Eintrag 200": "Entry 200", "etwas": "something else"}
    whole = replace(data, translated=query_table(list("abc"), list(rows), list(rows.values())))
    sources = query_sources(whole, DistillationConfig(titles=0))
    teacher, known, _ = answerable(query, document, whole, (sources, []))
    assert known["translated"] == ["wo ist 7?", "Eintrag 200"]
    (tmp_path / "targets").mkdir()
    write_teacher_targets(teacher, known, {}, tmp_path / "targets", (), None, originals(whole))
    texts, vectors = read_teacher_targets(tmp_path / "targets")
    found = [vectors[texts.index(text)] for text in known["translated"]]
    assert np.allclose(found, [unit(near(DOCUMENTS))[7], unit(DOCUMENTS)[200]], atol=1e-3)


def test_a_teacher_that_can_encode_is_asked_everything(data: Dataset) -> None:
    asked = {"train": ["a"]}
    teacher: Any = object()
    assert answerable(teacher, None, data, (asked, ["b"])) == (teacher, {"train": ["a"]}, ["b"])
