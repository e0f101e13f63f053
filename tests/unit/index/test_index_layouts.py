"""Approximate indexes, merged or in parts: the same answers either way, deleted rows never among them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from components.index import search as searching
from components.index.config import IndexConfig
from components.index.engine import FaissEngine, Found, Settings
from components.index.search import VectorIndex, index_in_memory, load_index
from components.index.shards import read_vectors
from tests.unit.index_world import SPACE, built, clustered, exact_ids, ids_of, shards_of, without

QUERIES = clustered(8, seed=3)
KEYS = (
    *("Flat", "IVF8,Flat", "IVF8,SQ8", "IVF8,PQ4x4fs", "IVF8,PQ4x4fsr", "IVF16(RCQ2x2),PQ4x4fsr", "PCA8,IVF4,PQ4x4fs", "SQ8", "PQ4x4"),
    *("IVF1,PQ4x4fs", "IVF4,RaBitQfs", "IVF4,RQ2x4fsr", "IVF4,RQ2x4"),
)


def opened(folder: Path, vectors: object, deleted: list[int], **changes: object) -> VectorIndex:
    config = IndexConfig(recall_at=10, part_size=120, **changes)  # type: ignore[arg-type]
    artifact = built(folder, vectors, config, QUERIES)  # type: ignore[arg-type]
    return load_index((without(artifact, deleted) if deleted else artifact).path, SPACE, check="sizes")


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(KEYS),
    sizes=st.lists(st.integers(1, 150), min_size=1, max_size=4),
    share=st.sampled_from([0.0, 0.05, 0.5]),
    refine=st.sampled_from(["fp16", "int8", "none"]),
    seed=st.integers(0, 5),
)
def test_merged_and_in_parts_the_answers_are_the_same(key: str, sizes: list[int], share: float, refine: str, seed: int) -> None:
    data = clustered(500, seed)
    data[250:] = data[:250]  # every document twice: ties everywhere
    deleted = np.random.default_rng(seed).permutation(500)[: int(500 * share)].tolist()
    with tempfile.TemporaryDirectory() as folder:
        vectors = shards_of(Path(folder) / "vectors", data, sizes)
        merged, parts = (
            opened(Path(folder) / layout, vectors, deleted, index_key=key, refine=refine, layout=layout) for layout in ("merged", "shards")
        )
        assert merged.settings == parts.settings
        for narrow in (merged.settings, replace(merged.settings, nprobe=1, refine_factor=merged.settings.refine_factor and 1)):
            here, there = (replace(index, settings=narrow) for index in (merged, parts))
            for k in (1, 7, 40):
                scores, ids = here.search(QUERIES, k)
                assert ids == there.search(QUERIES, k)[1]
                np.testing.assert_array_equal(scores, there.search(QUERIES, k)[0])
                assert ids == [here.search(QUERIES[i : i + 1], k)[1][0] for i in range(len(QUERIES))]
                assert not {ids_of(500)[row] for row in deleted} & {found for line in ids for found in line}


@pytest.mark.parametrize("key", KEYS)
def test_the_widest_search_is_exact_search(tmp_path: Path, key: str) -> None:
    data = clustered(300)
    index = opened(tmp_path / "index", shards_of(tmp_path / "vectors", data, [70, 70, 70]), [], index_key=key, layout="shards")
    widest = replace(index, settings=Settings(10_000, None, None if index.flat else 30))
    expected = exact_ids(data, QUERIES, 10)
    assert widest.search(QUERIES, 10)[1] == expected
    assert index.exact(QUERIES, 10)[1] == expected
    np.testing.assert_allclose(widest.search(QUERIES, 10)[0], index.exact(QUERIES, 10)[0], atol=2e-6)


def test_exact_search_answers_as_one_over_the_same_vectors_in_memory(tmp_path: Path) -> None:
    vectors = shards_of(tmp_path / "vectors", clustered(400), [90, 200])
    memory = index_in_memory(read_vectors(vectors).vectors, ids_of(400), SPACE)
    for layout in ("merged", "shards"):
        index = opened(tmp_path / layout, vectors, [], layout=layout)
        np.testing.assert_array_equal(index.search(QUERIES, 50)[0], memory.search(QUERIES, 50)[0])
        assert index.search(QUERIES, 50)[1] == memory.search(QUERIES, 50)[1]


@pytest.mark.parametrize("key", ["Flat", "IVF8,PQ4x4fsr", "HNSW8", "SQ8", "PQ4x4"])
def test_more_are_asked_for_than_the_lists_in_reach_hold(tmp_path: Path, key: str) -> None:
    index = opened(tmp_path / "index", shards_of(tmp_path / "vectors", clustered(300), []), [5, 17], index_key=key, nprobe=1)
    scores, ids = index.search(QUERIES, 1000)
    assert scores.shape == (8, 298) and np.isfinite(scores).all() and len(index) == 298
    assert all(sorted(line) == sorted(set(ids_of(300)) - {ids_of(300)[5], ids_of(300)[17]}) for line in ids)


def test_a_graph_in_parts_finds_what_its_parts_find(tmp_path: Path) -> None:
    data = clustered(300)
    index = opened(tmp_path / "index", shards_of(tmp_path / "vectors", data, [150]), [], index_key="HNSW8", layout="shards")
    assert isinstance(index.engine, FaissEngine) and len(index.engine.pieces) == 2
    wide = replace(index, settings=Settings(None, 300, 4))
    assert wide.search(QUERIES, 10)[1] == exact_ids(data, QUERIES, 10)


@pytest.mark.parametrize(("refine", "suffixes"), [("fp16", {".json", ".npy"}), ("int8", {".json", ".npy"}), ("none", {".json"})])
def test_what_is_stored(tmp_path: Path, refine: str, suffixes: set[str]) -> None:
    vectors = shards_of(tmp_path / "vectors", clustered(300), [150])
    index = opened(tmp_path / "index", vectors, [], index_key="IVF8,SQ8", refine=refine)
    assert {path.suffix for path in (tmp_path / "index").glob("part-*")} == suffixes
    assert index.has_vectors is (refine != "none")
    assert index.settings.refine_factor is None if refine == "none" else index.settings.refine_factor
    if refine != "none":
        stored = np.load(tmp_path / "index" / "part-00000.vectors.npy")
        assert (stored.dtype, stored.shape) == (np.float16 if refine == "fp16" else np.int8, (150, 16))


@pytest.mark.parametrize("key", ["HNSW8", "PCA8,HNSW8", "HNSW8_SQ8"])
def test_a_graph_of_repeated_documents_finds_as_many_as_are_asked_for(tmp_path: Path, key: str) -> None:
    """Equal documents are linked to each other alone, and a search for more than a group of them failed."""
    data = np.repeat(clustered(12, centres=12), 60, axis=0)
    index = opened(tmp_path / "index", shards_of(tmp_path / "vectors", data, [200]), [3, 700], index_key=key, refine="none")
    for k in (10, 300, 1000):
        assert {len(set(found)) for found in index.search(QUERIES, k)[1]} == {min(k, 718)}


def test_what_fills_an_answer_up_and_what_it_is_compared_with_does_not_hang_on_the_batch(tmp_path: Path) -> None:
    """FAISS's inner products of a large batch differ in the seventh digit from those of one query: near-duplicates changed places."""
    wide, rng = 896, np.random.default_rng(5)
    data = np.repeat(clustered(20, centres=20, dimension=wide), 20, axis=0) + rng.normal(size=(400, wide)) * 2e-5
    queries = clustered(160, seed=1, centres=20, dimension=wide)
    made = built(tmp_path / "index", shards_of(tmp_path / "vectors", data.astype(np.float32), []), IndexConfig(index_key="Flat"))
    index = load_index(made.path, SPACE)
    approximate = replace(index, flat=False, settings=Settings(refine_factor=4))
    for search in (approximate.exact, index.search):
        scores, ids = search(queries, 10)
        single = [search(queries[i : i + 1], 10) for i in range(len(queries))]
        assert ids == [found[0] for _, found in single]
        np.testing.assert_array_equal(scores, np.concatenate([one for one, _ in single]))
    assert approximate.exact(queries, 10)[1] == index.search(queries, 10)[1]


@pytest.mark.parametrize("key", ["Flat", "IVF4,SQ8"])
def test_ties_that_go_deep_are_held_for_some_queries_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """All queries at once, each with most of the documents: 7,000 of them took 20 GB where half of 100,000 documents were equal."""
    data = np.repeat(clustered(5, centres=5), [5, 400, 30, 30, 35], axis=0)
    index = opened(tmp_path / "index", shards_of(tmp_path / "vectors", data, [200]), [], index_key=key)
    expected, held = index.search(QUERIES, 10), list[int]()
    search = FaissEngine.search

    def noted(engine: FaissEngine, vectors: NDArray[np.float32], depth: int, wanted: Settings) -> Found:
        held.append(len(vectors))
        return search(engine, vectors, depth, wanted)

    monkeypatch.setattr(FaissEngine, "search", noted)
    monkeypatch.setattr("components.index.search._HELD", 100)
    assert index.search(QUERIES, 10)[1] == expected[1]
    assert held[0] == len(QUERIES) and len(held) > 3 and set(held[1:]) == {1}


@pytest.mark.parametrize("key", ["Flat", "IVF4,SQ8"])
def test_ties_that_go_deep_are_scored_some_documents_at_a_time_and_each_once_for_all_queries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Each query took all documents at once as float64: GBs for a million of them, and a thousand queries took minutes."""
    data = np.repeat(clustered(5, centres=5), [5, 400, 30, 30, 35], axis=0)
    index = opened(tmp_path / "index", shards_of(tmp_path / "vectors", data, [200]), [7], index_key=key)
    (expected, ids), read = index.exact(QUERIES, 450), list[int]()
    where, name = (FaissEngine, "vectors_of") if key == "Flat" else (searching, "_vectors_at")
    original = getattr(where, name)

    def noted(holder: object, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        read.append(rows.size)
        found: NDArray[np.float32] = original(holder, rows)
        return found

    monkeypatch.setattr(where, name, noted)
    monkeypatch.setattr(searching, "_AT_ONCE", 100 * data.shape[1])
    scores, again = index.exact(QUERIES, 450)
    assert again == ids and max(read) <= 100 and sum(read) < 5 * len(data)
    np.testing.assert_array_equal(scores, expected)


def test_candidates_that_queries_do_not_share_are_read_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = clustered(3000, centres=60)
    queries = data[::50]
    index = index_in_memory(data, ids_of(len(data)), SPACE)
    (expected, ids), read = index.search(queries, 10), list[tuple[int, ...]]()
    original = FaissEngine.vectors_of
    monkeypatch.setattr(FaissEngine, "vectors_of", lambda engine, rows: read.append(rows.shape) or original(engine, rows))
    monkeypatch.setattr(searching, "_AT_ONCE", 1)
    scores, again = index.search(queries, 10)
    assert again == ids and read == [(1, 26)] * len(queries)
    np.testing.assert_array_equal(scores, expected)
