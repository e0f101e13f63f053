"""What an index folder is refused for, each by name: FAISS itself would search and return nonsense."""

from __future__ import annotations

import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.artifacts import IndexArtifact, read_json, seal, write_json
from components.errors import ArtifactError, ConfigError, SpaceMismatch
from components.index.config import IndexConfig
from components.index.engine import write_faiss
from components.index.parts import merge_parts, read_part, read_template, stored_vectors, train_template, write_part
from components.index.rows import IDS_FILE, read_rows, write_deleted
from components.index.search import index_in_memory, load_index
from tests.unit.index_world import SPACE, built, clustered, ids_of, sealed_again, shards_of

KEY = "IVF8,PQ4x4fsr"
OTHER = "b" * 64


def index_of(folder: Path, **changes: object) -> IndexArtifact:
    config = IndexConfig(**{"index_key": KEY, "part_size": 100, "layout": "shards", "recall_at": 10, **changes})  # type: ignore[arg-type]
    return built(folder / "index", shards_of(folder / "vectors", clustered(300), [100, 100]), config)


def put_in(artifact: IndexArtifact, source: Path) -> IndexArtifact:
    """The index with its part 1 taken from another folder."""
    for path in source.glob("part-00001.*"):
        shutil.copy(path, artifact.path / path.name)
    return sealed_again(artifact)


def test_a_part_of_another_template_is_refused_at_load_and_at_merge(tmp_path: Path) -> None:
    mine, other = index_of(tmp_path / "a"), index_of(tmp_path / "b", seed=5, train_vectors=256)
    assert mine.attributes["template_digest"] != other.attributes["template_digest"]
    mixed = put_in(mine, other.path)
    with pytest.raises(ArtifactError, match=r"part-00001.json: the part was made from the template .* the index from"):
        load_index(mixed.path, SPACE)
    with pytest.raises(ArtifactError, match=r"part-00001.json: the part was made from the template"):
        merge_parts(mixed.path, 3)


def test_a_part_of_another_space_is_refused_at_load_and_at_merge(tmp_path: Path) -> None:
    mine = index_of(tmp_path)
    part = mine.path / "part-00001.json"
    write_json(part, {**read_json(part), "space_id": OTHER})
    with pytest.raises(SpaceMismatch, match=r"part-00001.json: the part belongs to the vector space bbbbbbbbbbbb"):
        load_index(sealed_again(mine).path, SPACE)
    with pytest.raises(SpaceMismatch, match=r"part-00001.json"):
        merge_parts(mine.path, 3)


def test_an_index_of_a_newer_layout_or_part_is_refused_by_name(tmp_path: Path) -> None:
    mine = index_of(tmp_path)
    with pytest.raises(ArtifactError, match="layout version 3; this program reads up to 2"):
        load_index(sealed_again(mine, layout_version=3).path, SPACE)
    part = mine.path / "part-00000.json"
    write_json(part, {**read_json(part), "schema_version": 9})
    with pytest.raises(ArtifactError, match=r"part-00000.json has schema version 9"):
        load_index(sealed_again(mine).path, SPACE)


def test_an_index_of_the_first_layout_is_read(tmp_path: Path) -> None:
    vectors, ids = clustered(50), ids_of(50)
    flat = faiss.IndexFlatIP(16)
    flat.add(vectors)
    faiss.write_index(flat, str(tmp_path / "index.faiss"))
    pq.write_table(pa.table({"doc_id": ids, "content_hash": ids, "shard": pa.array([0] * 50, pa.int32())}), tmp_path / IDS_FILE)
    attributes = {"space_id": SPACE, "index_key": "Flat", "dimension": 16, "faiss_version": "1.0"}
    made = seal(tmp_path, "index", counts={"documents": 50, "shards": 1}, attributes=attributes)
    index = load_index(tmp_path, SPACE, made.digest)
    expected = index_in_memory(vectors, ids, SPACE)
    assert index.search(vectors[:5], 20)[1] == expected.search(vectors[:5], 20)[1]
    assert index.exact(vectors[:5], 20)[1] == expected.search(vectors[:5], 20)[1]


def test_sizes_find_a_file_that_is_cut_and_hashes_one_that_is_changed(tmp_path: Path) -> None:
    mine = index_of(tmp_path)
    path = mine.path / "part-00001.vectors.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    load_index(mine.path, SPACE, mine.digest, check="sizes")
    with pytest.raises(ArtifactError, match=r"part-00001.vectors.npy was changed \(expected sha256"):
        load_index(mine.path, SPACE)
    path.write_bytes(content[:-1])
    with pytest.raises(ArtifactError, match=r"part-00001.vectors.npy was changed \(expected 3,328 bytes, found 3,327"):
        load_index(mine.path, SPACE, check="sizes")
    with pytest.raises(ArtifactError, match="expected the artifact 000"):
        load_index(mine.path, SPACE, "0" * 64, check="sizes")


def test_the_template_of_a_folder_grows_further_parts(tmp_path: Path) -> None:
    mine = index_of(tmp_path)
    template = read_template(mine.path)
    assert (template.key, template.refine, template.digest) == (KEY, "fp16", mine.attributes["template_digest"])
    again = write_part(mine.path, 3, template, [stored_vectors(mine.path, 1)])
    assert (again.rows, read_part(mine.path, 3)) == (100, again)
    assert (mine.path / "part-00003.faiss").read_bytes() == (mine.path / "part-00001.faiss").read_bytes()
    assert (mine.path / "part-00003.vectors.npy").read_bytes() == (mine.path / "part-00001.vectors.npy").read_bytes()
    (mine.path / "template.faiss").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"template.faiss is missing or is not the template"):
        read_template(mine.path)


def test_a_template_is_the_same_for_the_same_vectors(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (train_template(KEY, clustered(300), SPACE, "fp16", folder) for folder in folders)
    assert first.digest == second.digest


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_full_disk_leaves_no_file_without_its_end(tmp_path: Path, rows: int) -> None:
    flat = faiss.IndexFlatIP(16)
    flat.add(np.zeros((rows, 16), np.float32))
    (tmp_path / ".index.faiss.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        write_faiss(flat, tmp_path / "index.faiss")
    assert not list(tmp_path.iterdir())
    write_faiss(flat, tmp_path / "index.faiss")
    assert faiss.read_index(str(tmp_path / "index.faiss")).ntotal == rows


def test_merging_leaves_one_file_and_the_same_answers(tmp_path: Path) -> None:
    mine, queries = index_of(tmp_path), clustered(5, seed=1)
    before = load_index(mine.path, SPACE).search(queries, 20)
    assert merge_parts(mine.path, 3) == 300
    assert sorted(path.name for path in mine.path.glob("*.faiss")) == ["index.faiss", "template.faiss"]
    after = load_index(sealed_again(mine).path, SPACE).search(queries, 20)
    assert after[1] == before[1]
    np.testing.assert_array_equal(after[0], before[0])


def test_rows_that_do_not_fit_the_vectors_are_refused(tmp_path: Path) -> None:
    mine = index_of(tmp_path)
    with pytest.raises(ArtifactError, match="200 vectors were found where 300 documents are recorded"):
        load_index(sealed_again(mine, parts=2).path, SPACE)
    write_deleted(mine.path, np.array([300]))
    with pytest.raises(ArtifactError, match=r"deleted.npy names rows that the index does not have"):
        load_index(sealed_again(mine).path, SPACE)


def test_deleted_rows_are_kept_sorted_and_none_leave_no_file(tmp_path: Path) -> None:
    mine = index_of(tmp_path)
    write_deleted(mine.path, np.array([7, 3]))
    assert read_rows(mine.path).deleted.tolist() == [3, 7]
    write_deleted(mine.path, np.empty(0, np.int64))
    assert not (mine.path / "deleted.npy").exists()


def test_queries_of_another_width_and_unknown_keys_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    vectors = shards_of(tmp_path / "vectors", clustered(300), [100])
    with pytest.raises(SpaceMismatch, match=r"tuned with have the shape \(4, 8\)"):
        built(tmp_path / "a", vectors, IndexConfig(index_key=KEY), np.zeros((4, 8), np.float32))
    with pytest.raises(ConfigError, match=r"IVF512,Flat has 512 lists, but only 300 vectors"):
        built(tmp_path / "b", vectors, IndexConfig(index_key="IVF512,Flat"))
    assert not any(any((tmp_path / name).iterdir()) for name in "ab")


def test_an_index_without_vectors_says_so_when_it_is_searched_exactly(tmp_path: Path) -> None:
    index = load_index(index_of(tmp_path, refine="none").path, SPACE)
    assert not index.has_vectors
    with pytest.raises(ArtifactError, match=r"keeps no vectors.*index.refine fp16 or int8"):
        index.exact(clustered(2), 5)
    with pytest.raises(ArtifactError, match="keeps no vectors"):
        stored_vectors(tmp_path / "index", 0)
