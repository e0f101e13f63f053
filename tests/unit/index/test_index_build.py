from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from components.artifacts import IndexArtifact, VectorShards, open_artifact
from components.errors import ArtifactError, SpaceMismatch
from components.index.build import build_index
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.index.rows import IDS_FILE
from components.index.search import index_in_memory, load_index
from tests.encoders import WordEncoder, dataset_of
from tests.unit.index_world import clustered, shards_of

DOCUMENTS = {"d1": "apple", "d2": "apple bread", "d3": "bread cheese", "d0": "apple", "d5": "stone"}


def vectors_of(folder: Path, documents: dict[str, str] | None = None) -> VectorShards:
    folder.mkdir()
    dataset = dataset_of(DOCUMENTS if documents is None else documents, {}, [])
    return encode_corpus(WordEncoder("document"), dataset, {}, EncodingConfig(shard_size=2), folder)


def index_of(tmp_path: Path) -> IndexArtifact:
    (tmp_path / "index").mkdir()
    return build_index(vectors_of(tmp_path / "vectors"), IndexConfig(), tmp_path / "index")


def test_the_index_records_its_space_origin_and_rows(tmp_path: Path) -> None:
    artifact = index_of(tmp_path)
    table = pq.read_table(artifact.path / IDS_FILE)
    assert table.column_names == ["doc_id", "content_hash", "part", "order"]
    assert table.column("doc_id").to_pylist() == list(DOCUMENTS)
    assert table.column("part").to_pylist() == [0, 0, 0, 0, 0]
    assert table.column("order").to_pylist() == [1, 2, 3, 0, 4]
    assert artifact.attributes == {
        "space_id": WordEncoder().space_id,
        "index_key": "Flat",
        "asked_key": "auto",
        "dimension": 9,
        "layout_version": 2,
        "layout": "merged",
        "template_digest": None,
        "refine": "fp16",
        "faiss_version": faiss.__version__,
        "nprobe": None,
        "ef_search": None,
        "refine_factor": None,
        "ann_recall": 1.0,
        "ann_recall_at": None,
        "tuned_on": None,
        "tuning_queries": 0,
        "tuned_documents": 5,
        "imbalance": None,
        "centroid_distance": None,
    }
    assert set(artifact.parents) == {"vectors"}
    assert artifact.counts == {"documents": 5, "rows": 5, "deleted": 0, "parts": 1}
    assert {path.name for path in artifact.path.iterdir()} == {IDS_FILE, "manifest.json", "part-00000.json", "part-00000.vectors.npy"}


def test_building_again_over_leftovers_gives_the_same_digest(tmp_path: Path) -> None:
    artifact = index_of(tmp_path)
    (artifact.path / "leftover.bin").write_bytes(b"x")
    vectors = VectorShards(**open_artifact(tmp_path / "vectors").model_dump())
    assert build_index(vectors, IndexConfig(), artifact.path).digest == artifact.digest


def test_search_scores_by_hand_with_ties_in_the_order_of_ids(tmp_path: Path) -> None:
    artifact = index_of(tmp_path)
    index = load_index(artifact.path, WordEncoder().space_id, artifact.digest)
    scores, ids = index.search(WordEncoder().encode(["apple", "cheese"]), 4)
    assert ids == [["d0", "d1", "d2", "d3"], ["d3", "d0", "d1", "d2"]]
    np.testing.assert_allclose(scores[0], [1, 1, np.sqrt(0.5), 0], atol=1e-6)
    assert scores.dtype == np.float32
    assert len(index) == 5


def test_more_documents_asked_than_there_are(tmp_path: Path) -> None:
    index = load_index(index_of(tmp_path).path, WordEncoder().space_id)
    scores, ids = index.search(WordEncoder().encode(["bread"]), 50)
    assert scores.shape == (1, 5)
    assert sorted(ids[0]) == sorted(DOCUMENTS)
    assert index.search(np.empty((0, 9), np.float32), 3)[1] == []


def test_a_tie_longer_than_what_was_fetched_is_still_in_the_order_of_ids() -> None:
    count = 500
    vectors = np.tile(WordEncoder().encode(["apple"]), (count, 1))
    ids = [f"d{(i * 7) % count:03d}" for i in range(count)]
    index = index_in_memory(vectors, ids, "space")
    _, found = index.search(WordEncoder().encode(["apple", "bread"]), 5)
    assert found == [["d000", "d001", "d002", "d003", "d004"]] * 2


def test_one_query_and_many_queries_get_the_same_answer() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[150:] = vectors[:150]
    index = index_in_memory(vectors, [f"d{i}" for i in range(300)], "space")
    together = index.search(vectors[:40], 7)[1]
    assert together == [index.search(vectors[i : i + 1], 7)[1][0] for i in range(40)]


def test_a_foreign_space_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpaceMismatch, match=r"index belongs to the vector space .* query encoder to ffff"):
        load_index(index_of(tmp_path).path, "f" * 64)


@pytest.mark.parametrize("name", ["part-00000.vectors.npy", IDS_FILE])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    path = index_of(tmp_path).path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} was changed"):
        load_index(path.parent, WordEncoder().space_id)


def test_a_replaced_index_is_found(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected the artifact"):
        load_index(index_of(tmp_path).path, WordEncoder().space_id, "0" * 64)


def test_a_folder_that_is_no_index_is_refused(tmp_path: Path) -> None:
    vectors = vectors_of(tmp_path / "vectors")
    with pytest.raises(ArtifactError, match="not an index"):
        load_index(vectors.path, vectors.space_id)


def test_changed_vectors_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    vectors = vectors_of(tmp_path / "vectors")
    path = vectors.path / "vectors-00000.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ArtifactError, match="was changed"):
        build_index(vectors, IndexConfig(), tmp_path)
    twice = shards_of(tmp_path / "twice", clustered(4), [2], ["d0", "d1", "d2", "d1"])
    with pytest.raises(ArtifactError, match="1 documents have the id of another document, the first is 'd1'"):
        build_index(twice, IndexConfig(), tmp_path)


def test_vectors_of_another_width_or_not_finite_are_refused() -> None:
    index = index_in_memory(WordEncoder().encode(["apple"]), ["d1"], "space")
    with pytest.raises(SpaceMismatch, match="9 dimensions"):
        index.search(np.zeros((1, 4), np.float32), 1)
    with pytest.raises(ArtifactError, match="not finite"):
        index.search(np.full((1, 9), np.nan, np.float32), 1)
    with pytest.raises(ValueError, match="at least 1"):
        index.search(np.zeros((1, 9), np.float32), 0)
