from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.artifacts import IndexArtifact, VectorShards, seal, verify
from components.data.dataset import Dataset
from components.errors import ArtifactError, DataError, SpaceMismatch
from components.index.build import build_index
from components.index.changes import Changes, changes_since
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.index.guard import read_guard
from components.index.refine import unit_rows
from components.index.refresh import refresh_index
from components.index.rows import read_table
from components.index.search import VectorIndex, index_in_memory, load_index
from components.index.tuning import recall_against_exact
from components.towers.contract import space_id_of
from tests.encoders import WORDS, WordEncoder, dataset_of

FLAT = IndexConfig(compact_share=1.0)
ALL_WORDS = WordEncoder().encode([*WORDS, "apple bread", "figs grape honey", "stone"])


@pytest.fixture(autouse=True, scope="module")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Half the time of so many small artifacts would be spent in fsync."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


class Collection:
    """An index that is brought up to date again and again, with the encoder that did it."""

    def __init__(self, folder: Path, config: IndexConfig = FLAT, encoder: WordEncoder | None = None, shard_size: int = 2) -> None:
        self.folder, self.config, self.numbers = folder, config, itertools.count()
        self.encoder, self.encoding = encoder or WordEncoder("document"), EncodingConfig(shard_size=shard_size)
        self.index: IndexArtifact | None = None

    def build(self, documents: dict[str, str]) -> IndexArtifact:
        self.index = build_index(self.encode(dataset_of(documents, {}, [])), self.config, self.place("index"))
        return self.index

    def refresh(self, documents: dict[str, str], config: IndexConfig | None = None) -> IndexArtifact:
        """As the flow does it: find the changes, encode those, refresh."""
        assert self.index is not None
        dataset = dataset_of(documents, {}, [])
        changes = self.changes(documents)
        delta = self.encode(chosen(dataset, changes)) if len(changes.encoded) else None
        self.index = refresh_index(self.index, delta, changes, config or self.config, self.place("index"))
        return self.index

    def changes(self, documents: dict[str, str]) -> Changes:
        assert self.index is not None
        return changes_since(self.index.path, table_of(dataset_of(documents, {}, [])))

    def encode(self, dataset: Dataset) -> VectorShards:
        return encode_corpus(self.encoder, dataset, {}, self.encoding, self.place("vectors"))

    def place(self, name: str) -> Path:
        path = self.folder / f"{name}-{next(self.numbers)}"
        path.mkdir(parents=True)
        return path

    def open(self) -> VectorIndex:
        assert self.index is not None
        return load_index(self.index.path, self.index.space_id, self.index.digest)


def chosen(dataset: Dataset, changes: Changes) -> Dataset:
    return replace(dataset, documents=dataset.documents.iloc[changes.encoded].reset_index(drop=True))


def table_of(dataset: Dataset):  # type: ignore[no-untyped-def]
    import pyarrow as pa

    return pa.table({name: pa.array(dataset.documents[name].tolist(), pa.string()) for name in ("doc_id", "content_hash")})


def answers(index: VectorIndex, queries: NDArray[np.float32] = ALL_WORDS, k: int = 50) -> tuple[list[list[float]], list[list[str]]]:
    scores, ids = index.search(queries, k)
    return scores.tolist(), ids


DOCUMENTS = {"d1": "apple", "d2": "apple bread", "d3": "bread cheese", "d0": "apple", "d5": "stone"}


def test_added_changed_and_removed_documents_by_hand(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    first = collection.build(DOCUMENTS)
    collection.encoder.calls.clear()
    refreshed = collection.refresh({"d1": "apple", "d2": "grape", "d0": "apple", "d5": "stone", "d9": "honey apple"})
    assert sorted(itertools.chain(*collection.encoder.calls)) == ["grape", "honey apple"]
    assert refreshed.counts == {"documents": 5, "rows": 7, "deleted": 2, "parts": first.counts["parts"] + 1}
    assert refreshed.parents["index"] == first.digest and set(refreshed.parents) == {"index", "vectors"}
    _, ids = collection.open().search(WordEncoder().encode(["apple", "bread", "grape"]), 3)
    assert ids == [["d0", "d1", "d9"], ["d0", "d1", "d2"], ["d2", "d0", "d1"]]
    assert (refreshed.attributes["guard"], read_guard(refreshed.path).reasons) == ("ok", ())


def test_nothing_changed_gives_the_same_artifact_and_encodes_nothing(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    first = collection.build(DOCUMENTS)
    collection.encoder.calls.clear()
    assert collection.refresh(dict(reversed(DOCUMENTS.items()))) == first
    assert collection.encoder.texts_seen == 0


def test_documents_that_are_only_removed_need_no_vectors(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    collection.build(DOCUMENTS)
    collection.encoder.calls.clear()
    refreshed = collection.refresh({"d3": "bread cheese", "d2": "apple bread"})
    assert collection.encoder.texts_seen == 0
    assert set(refreshed.parents) == {"index"}
    assert collection.open().search(WordEncoder().encode(["apple"]), 9)[1] == [["d2", "d3"]]


def test_a_refresh_links_the_parts_and_leaves_the_previous_index_as_it_was(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    first = collection.build(DOCUMENTS)
    refreshed = collection.refresh({**DOCUMENTS, "d9": "figs"})
    shared = "part-00000.vectors.npy"
    assert (first.path / shared).samefile(refreshed.path / shared)
    assert verify(first.path).digest == first.digest
    assert not (first.path / "deleted.npy").exists()


def test_a_refresh_over_the_leftovers_of_a_killed_one_gives_the_same_artifact(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    index = collection.build(DOCUMENTS)
    documents = {**DOCUMENTS, "d9": "figs"}
    changes = collection.changes(documents)
    delta = collection.encode(chosen(dataset_of(documents, {}, []), changes))
    folder = collection.place("index")
    first = refresh_index(index, delta, changes, FLAT, folder)
    (folder / "manifest.json").unlink()
    (folder / "part-00007.vectors.npy").write_bytes(b"half")
    assert refresh_index(index, delta, changes, FLAT, folder).digest == first.digest


def test_deleted_rows_are_dropped_from_the_share_that_the_configuration_names(tmp_path: Path) -> None:
    collection = Collection(tmp_path, FLAT.model_copy(update={"compact_share": 0.4}))
    collection.build(DOCUMENTS)
    one_gone = {name: text for name, text in DOCUMENTS.items() if name != "d3"}
    assert collection.refresh(one_gone).counts["deleted"] == 1  # 1 of 5
    two_gone = {name: text for name, text in one_gone.items() if name != "d0"}
    collection.encoder.calls.clear()
    compact = collection.refresh(two_gone)  # 2 of 5
    assert (compact.counts["documents"], compact.counts["rows"], compact.counts["deleted"]) == (3, 3, 0)
    assert collection.encoder.texts_seen == 0
    assert collection.open().search(WordEncoder().encode(["bread"]), 9)[1] == [["d2", "d1", "d5"]]


EDITS = st.dictionaries(st.sampled_from([f"d{n}" for n in range(6)]), st.sampled_from(["", *WORDS[:4], "apple bread"]), max_size=4)


def edited(documents: dict[str, str], edits: dict[str, str]) -> dict[str, str]:
    """An empty text removes a document, any other adds or changes it."""
    return {name: text for name, text in {**documents, **edits}.items() if text}


@settings(max_examples=8, deadline=None)
@given(edits=st.lists(EDITS, min_size=1, max_size=6), share=st.sampled_from([0.15, 0.5, 1.0]))
def test_any_sequence_of_edits_equals_a_build_from_scratch(
    tmp_path_factory: pytest.TempPathFactory, edits: Sequence[dict[str, str]], share: float
) -> None:
    collection = Collection(tmp_path_factory.mktemp("edits"), FLAT.model_copy(update={"compact_share": share}))
    documents = {"d0": "apple", "d1": "bread", "keep": "honey"}
    collection.build(documents)
    for edit in [*edits, {}]:
        before, documents = documents, edited(documents, edit)
        collection.encoder.calls.clear()
        collection.refresh(documents)
        wanted = sorted(text for name, text in documents.items() if before.get(name) != text)
        assert sorted(itertools.chain(*collection.encoder.calls)) == wanted, "only what is new or changed is encoded"
        assert answers(collection.open()) == answers(in_memory(documents)), "what was deleted does not come back, and all else is there"
    final = answers(collection.open())
    collection.build(documents)
    assert final == answers(collection.open())


def in_memory(documents: dict[str, str]) -> VectorIndex:
    """The exact index over the documents' vectors as they are stored."""
    vectors = unit_rows(WordEncoder().encode(list(documents.values())).astype(np.float16))
    return index_in_memory(vectors, list(documents), WordEncoder().space_id)


class RandomEncoder(WordEncoder):
    """A vector of 16 dimensions for each text: near the direction of its first letter, else by chance of the text alone."""

    def __init__(self) -> None:
        super().__init__("document", "random")
        self.contract = self.contract.model_copy(update={"dimension": 16})
        self.space_id = space_id_of(self.contract)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        rows = [2 * _noise(text[0]) + _noise(text) for text in texts]
        vectors = np.array(rows, np.float32).reshape(-1, 16)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _noise(text: str) -> NDArray[np.float64]:
    return np.random.default_rng(zlib.crc32(text.encode())).normal(size=16)


KEYS = [("IVF8,Flat", "merged"), ("IVF8,PQ8x4fs", "merged"), ("IVF8,PQ8x4fs", "shards"), ("HNSW16", "merged"), ("PQ8x4", "shards")]


def edit_at_random(documents: dict[str, str], rng: np.random.Generator) -> dict[str, str]:
    """A tenth each is removed and changed, and as many come new."""
    names = list(documents)
    gone, changed = np.split(rng.permutation(len(names))[: len(names) // 5], 2)
    kept = {name: text for row, (name, text) in enumerate(documents.items()) if row not in set(gone.tolist())}
    kept |= {names[row]: f"{names[row][0]} again {rng.integers(10**6)}" for row in changed}
    return kept | {f"{'abcd'[n % 4]}{rng.integers(10**9)}": f"{'abcd'[n % 4]} new {rng.integers(10**6)}" for n in range(len(names) // 10)}


@pytest.mark.parametrize(("key", "layout"), KEYS)
@pytest.mark.parametrize("share", [0.15, 1.0])
def test_an_approximate_index_stays_as_good_as_one_built_from_scratch(tmp_path: Path, key: str, layout: str, share: float) -> None:
    config = IndexConfig.model_validate({"index_key": key, "layout": layout, "compact_share": share, "recall_at": 10, "part_size": 64})
    collection = Collection(tmp_path, config, RandomEncoder(), shard_size=50)
    rng = np.random.default_rng(5)
    documents = {f"{'abcd'[n % 4]}{n}": f"{'abcd'[n % 4]} text {n}" for n in range(320)}
    collection.build(documents)
    for _ in range(3):
        documents = edit_at_random(documents, rng)
        collection.refresh(documents)
    queries = RandomEncoder().encode([f"{'abcd'[n % 4]} query {n}" for n in range(40)])
    refreshed = collection.open()
    exact = refreshed.exact(queries, 10)[1]
    assert {name for row in refreshed.search(queries, len(documents))[1] for name in row} == set(documents)
    collection.build(documents)
    scratch = collection.open()
    assert scratch.exact(queries, 10)[1] == exact, "the vectors are the very same"
    reached, wanted = (recall_against_exact(index.search(queries, 10)[1], exact).mean() for index in (refreshed, scratch))
    assert reached >= wanted - 0.05


def test_with_every_list_visited_the_answers_are_those_of_a_build_from_scratch(tmp_path: Path) -> None:
    config = IndexConfig(index_key="IVF4,Flat", nprobe=4, refine_factor=1, compact_share=1.0)
    collection = Collection(tmp_path, config, RandomEncoder(), shard_size=50)
    documents = {f"{'abcd'[n % 4]}{n}": f"{'abcd'[n % 4]} text {n}" for n in range(200)}
    collection.build(documents)
    documents = edit_at_random(documents, np.random.default_rng(1))
    assert collection.refresh(documents).counts["deleted"] == 40
    queries = RandomEncoder().encode(["a q", "b q", "c q"])
    found = answers(collection.open(), queries, 20)
    collection.build(documents)
    assert found == answers(collection.open(), queries, 20)


def test_an_index_of_the_first_layout_is_read_and_written_anew(tmp_path: Path) -> None:
    import faiss
    import pyarrow as pa
    import pyarrow.parquet as pq

    collection = Collection(tmp_path)
    folder = collection.place("first")
    vectors = unit_rows(collection.encoder.encode(list(DOCUMENTS.values())).astype(np.float16))
    index = faiss.IndexFlatIP(9)
    index.add(vectors)
    faiss.write_index(index, str(folder / "index.faiss"))
    table = table_of(dataset_of(DOCUMENTS, {}, []))
    pq.write_table(table.append_column("shard", pa.array([0] * 5, pa.int32())), folder / "doc_ids.parquet")
    about = {"space_id": collection.encoder.space_id, "index_key": "Flat", "dimension": 9, "faiss_version": "1"}
    sealed = seal(folder, "index", counts={"documents": 5, "shards": 1}, parents={}, attributes=about)
    collection.index = IndexArtifact(**sealed.model_dump())
    documents = {**DOCUMENTS, "d1": "figs", "d9": "honey"}
    refreshed = collection.refresh(documents)
    assert (refreshed.attributes["layout_version"], refreshed.counts["deleted"], refreshed.counts["rows"]) == (2, 0, 6)
    assert answers(collection.open()) == answers(in_memory(documents))
    assert collection.refresh({**documents, "d9": "apple"}).counts["deleted"] == 1


def test_a_delta_of_another_space_is_refused_by_name(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    collection.build(DOCUMENTS)
    collection.encoder = WordEncoder("document", "other")
    with pytest.raises(SpaceMismatch, match=r"changed documents were encoded into the vector space .* index belongs to"):
        collection.refresh({**DOCUMENTS, "d9": "figs"})


def test_vectors_that_do_not_fit_the_changes_are_refused(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    index = collection.build(DOCUMENTS)
    changes = collection.changes({**DOCUMENTS, "d9": "figs"})
    with pytest.raises(ArtifactError, match="1 documents were added or changed, but vectors of 0"):
        refresh_index(index, None, changes, FLAT, collection.place("index"))
    other = collection.encode(dataset_of({"d1": "apple"}, {}, []))
    with pytest.raises(ArtifactError, match="1 documents would stand in the index twice"):
        refresh_index(index, other, changes, FLAT, collection.place("index"))


def test_an_index_without_documents_is_refused(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    collection.build(DOCUMENTS)
    with pytest.raises(DataError, match="Every document was removed"):
        collection.refresh({})


@pytest.mark.parametrize("name", ["part-00000.vectors.npy", "doc_ids.parquet"])
def test_a_changed_file_of_the_previous_index_is_found(tmp_path: Path, name: str) -> None:
    collection = Collection(tmp_path)
    path = collection.build(DOCUMENTS).path / name
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    changes = Changes(*(np.array(rows, np.int64) for rows in ([], [], [0], [])), unchanged=4)
    assert collection.index is not None
    with pytest.raises(ArtifactError, match=f"{name} was changed"):
        refresh_index(collection.index, None, changes, FLAT, collection.place("index"))


def test_titles_follow_the_documents(tmp_path: Path) -> None:
    collection = Collection(tmp_path)
    index = collection.build(DOCUMENTS)
    changes = collection.changes({name: text for name, text in DOCUMENTS.items() if name != "d5"})
    folder = collection.place("index")
    refresh_index(index, None, changes, FLAT, folder, {"d1": "First"})
    assert read_table(folder, ["doc_id", "title"]).to_pylist()[:2] == [{"doc_id": "d1", "title": "First"}, {"doc_id": "d2", "title": ""}]
