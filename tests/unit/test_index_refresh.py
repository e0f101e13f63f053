from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.artifacts import IndexArtifact, VectorShards, open_artifact, seal, verify
from components.data.dataset import Dataset
from components.errors import ArtifactError, DataError, SpaceMismatch
from components.index.build import build_index
from components.index.changes import Changes, changes_since
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.index.guard import read_guard
from components.index.refresh import refresh_index
from components.index.search import VectorIndex, load_index
from tests.encoders import WORDS, WordEncoder, dataset_of

ENCODING = EncodingConfig(shard_size=2)
FLAT = IndexConfig(compact_share=1.0)
ALL_WORDS = WordEncoder().encode([*WORDS, "apple bread", "figs grape honey", "stone"])


class Collection:
    """An index that is brought up to date again and again, with the encoder that did it."""

    def __init__(self, folder: Path, config: IndexConfig = FLAT) -> None:
        self.folder, self.config, self.encoder, self.numbers = folder, config, WordEncoder("document"), itertools.count()
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
        return encode_corpus(self.encoder, dataset, {}, ENCODING, self.place("vectors"))

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


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(EDITS, min_size=1, max_size=5), share=st.sampled_from([0.15, 0.5, 1.0]))
def test_any_sequence_of_edits_equals_a_build_from_scratch(
    tmp_path_factory: pytest.TempPathFactory, edits: Sequence[dict[str, str]], share: float
) -> None:
    folder = tmp_path_factory.mktemp("edits")
    collection = Collection(folder, FLAT.model_copy(update={"compact_share": share}))
    documents = {"d0": "apple", "d1": "bread", "keep": "honey"}
    collection.build(documents)
    for number, edit in enumerate(edits):
        before, documents = documents, edited(documents, edit)
        collection.encoder.calls.clear()
        collection.refresh(documents)
        wanted = sorted(text for name, text in documents.items() if before.get(name) != text)
        assert sorted(itertools.chain(*collection.encoder.calls)) == wanted, "only what is new or changed is encoded"
        scratch = Collection(folder / f"scratch-{number}", FLAT)
        scratch.build(documents)
        found = answers(collection.open())
        assert found == answers(scratch.open())
        assert {name for row in found[1] for name in row} == set(documents), "what was deleted does not come back"


def random_collection(rows: int, seed: int, dimension: int = 16) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
