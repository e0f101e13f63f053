"""A collection whose index is refreshed edit by edit, for the tests of the refresh."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from components.artifacts import IndexArtifact, VectorShards
from components.data.dataset import Dataset
from components.index.build import build_index
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.index.refresh import Changes, changes_since, refresh_index
from components.index.search import VectorIndex, index_in_memory, load_index
from components.index.shards import unit_rows
from tests.encoders import WORDS, WordEncoder, dataset_of

FLAT = IndexConfig(compact_share=1.0)
ALL_WORDS = WordEncoder().encode([*WORDS, "apple bread", "figs grape honey", "stone"])


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
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


def in_memory(documents: dict[str, str]) -> VectorIndex:
    """The exact index over the documents' vectors as they are stored."""
    vectors = unit_rows(WordEncoder().encode(list(documents.values())).astype(np.float16))
    return index_in_memory(vectors, list(documents), WordEncoder().space_id)
