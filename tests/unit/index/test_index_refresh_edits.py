"""Refreshes over sequences of edits against builds from scratch."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.index.build import recall_against_exact
from components.index.config import IndexConfig
from components.towers.contract import space_id_of
from tests.encoders import WORDS, WordEncoder
from tests.unit.refresh_world import FLAT, Collection, answers, in_memory, no_waiting_for_the_disk  # noqa: F401

EDITS = st.dictionaries(st.sampled_from([f"d{n}" for n in range(6)]), st.sampled_from(["", *WORDS[:4], "apple bread"]), max_size=4)


def edited(documents: dict[str, str], edits: dict[str, str]) -> dict[str, str]:
    """An empty text removes a document, any other adds or changes it."""
    return {name: text for name, text in {**documents, **edits}.items() if text}


@settings(max_examples=8)
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
