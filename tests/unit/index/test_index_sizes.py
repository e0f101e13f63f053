"""Real sizes, scaled down: what counts with 32 bits somewhere, what is linear where it must not be, and what is hashed too often."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import artifacts
from components.artifacts import seal, verify, verify_noted, verify_sizes
from components.data import dataset
from components.data.dataset import load_dataset, wide, write_table
from components.errors import ArtifactError
from components.index import engine, shards
from components.index import refresh as changes
from components.index.config import IndexConfig
from components.index.drift import read_guard
from components.index.engine import nearest
from components.index.export import ExportSource
from components.index.parts import StoredVectors
from components.index.refresh import changes_since, find_changes, read_documents
from components.index.rows import Rows, live_rows, only_rows, read_deleted, read_table, write_deleted, write_rows
from components.index.search import index_in_memory, load_index, open_files
from components.index.shards import read_shard, read_vectors, survey
from tests.benchmarks import at_size
from tests.encoders import dataset_of
from tests.unit.index.test_index_refresh_guard import LISTS, added, removed, start
from tests.unit.index_world import DIMENSION, SPACE, built, clustered, ids_of, shards_of
from tests.unit.refresh_world import FLAT, Collection, table_of

ROOT = Path(__file__).resolve().parents[3]
TWO_GIB = 2**31


def test_no_source_names_an_arrow_type_that_ends_at_two_gib() -> None:
    narrow = re.compile(r"pa\.(string|utf8|binary)\(\)|pa\.list_\((?!pa\.float16\(\)\))")
    named = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in ("components", "flows")
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if narrow.search(line)
    ]
    assert named == []


# Calls of `.take(` by file, and why none gathers more than 2 GiB in a type of Arrow that counts its bytes with 32 bits.
TAKEN = {
    "components/index/corpus.py": (1, "rows of one row group of texts, which `wide` has read"),
    "components/index/export.py": (1, "rows of one block of a table that `only_rows` has made"),
    "components/index/merging.py": (2, "numpy: codes"),
    "components/index/parts.py": (3, "no rows: a merge hands over what it made; numpy: vectors"),
    "components/index/rows.py": (4, "ids of answers; texts that are cast to large_string in the lines before"),
    "components/index/search.py": (1, "ids of answers"),
    "components/index/shards.py": (1, "ids of one row group and the one behind it, of a column of large_string"),
}


def test_no_source_gathers_rows_in_a_place_that_nobody_has_looked_at() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8").count(".take(")
        for room in ("components", "flows")
        for path in sorted((ROOT / room).rglob("*.py"))
    }
    assert {name: count for name, count in found.items() if count} == {name: count for name, (count, _) in TAKEN.items()}


def beyond_two_gib(mark: str = "x") -> pa.Table:
    """A table whose texts are more than 2 GiB together, in 64 MiB of memory: one chunk again and again."""
    chunk = pa.array([mark * 2**20] * 64, pa.large_string())
    assert 33 * chunk.nbytes > TWO_GIB
    return pa.table({"doc_id": pa.chunked_array([chunk] * 33)})


def test_rows_are_picked_from_more_than_two_gib_of_text() -> None:
    table = beyond_two_gib()
    assert only_rows(table, np.array([3, 70, 2111])).num_rows == 3
    narrow = pa.table({"doc_id": table["doc_id"].chunk(0).cast(pa.string())})
    assert only_rows(pa.concat_tables([narrow] * 33), np.array([3, 70, 2111])).num_rows == 3


def test_an_export_reads_its_blocks_from_more_than_two_gib_of_text() -> None:
    rows = 64 * 33
    table = beyond_two_gib().append_column("title", pa.array([""] * rows, pa.large_string()))
    source = ExportSource(None, StoredVectors([np.ones((rows, 2), np.float16)]), table, live_rows(rows, np.arange(5, 64)))  # type: ignore[arg-type]
    first = next(source.blocks(10))
    assert first.table.num_rows == 10 and len(first.vectors) == 10


def test_tables_of_earlier_versions_are_read_with_wide_texts(tmp_path: Path) -> None:
    columns = {"doc_id": pa.array(["a", "b"], pa.string()), "content_hash": pa.array(["1" * 64, "h"], pa.string())}
    old = pa.table({**columns, "part": pa.array([0, 0], pa.int32()), "order": pa.array([0, 1], pa.int32())})
    pq.write_table(old, tmp_path / "doc_ids.parquet")
    pq.write_table(old.select(["doc_id", "content_hash"]), tmp_path / "documents.parquet")
    assert {field.type for field in read_table(tmp_path, ("doc_id", "content_hash")).schema} == {pa.large_string()}
    assert read_documents(tmp_path)["doc_id"].type == pa.large_string()
    assert wide(old)["part"].type == pa.int32()


def test_what_is_written_counts_its_texts_with_64_bits(tmp_path: Path) -> None:
    vectors = shards_of(tmp_path / "vectors", clustered(20), [8, 8])
    write_rows(tmp_path, read_shard(vectors, 0).append_column("part", pa.array([0] * 8, pa.int32())), dict.fromkeys(ids_of(20), "t"))
    for table in (read_shard(vectors, 0), survey(vectors, [8, 8, 4], 4, 0).documents, pq.read_table(tmp_path / "doc_ids.parquet")):
        assert not [field.name for field in table.schema if pa.types.is_string(field.type)]


UNIQUE = """
import resource
from pathlib import Path
from types import SimpleNamespace
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from components.index import shards

shards._ROW_GROUP = 2**14
numbers = np.random.default_rng(0).permutation(600_000).reshape(10, -1)
ids = [pc.utf8_lpad(pa.array(some).cast(pa.large_string()), 12, "0") for some in numbers]
documents = pa.table({"doc_id": pa.chunked_array(ids)})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
shards._require_unique(documents, SimpleNamespace(path=Path("vectors")))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / documents.num_rows)
"""


def test_looking_for_ids_that_occur_twice_takes_no_table_of_all_of_them() -> None:
    assert float(_said(UNIQUE)) < 110  # bytes a row; Arrow's grouping takes more than 200


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_ids_that_occur_twice_are_found_wherever_they_stand(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_ROW_GROUP", block)
    ids = pa.array(["b", "é", "a", "b", "c", "b", "", "é"], pa.large_string())
    some = shards_of(tmp_path / "vectors", clustered(8), [8])
    for rows, said in ((ids, "3 documents have the id of another document, the first is 'b'"), (ids.take([3, 6, 7, 4]), None)):
        with nullcontext() if said is None else pytest.raises(ArtifactError, match=said):
            shards._require_unique(pa.table({"doc_id": pa.chunked_array([rows.slice(0, 3), rows.slice(3)])}), some)


def documents(texts: list[str]) -> pd.DataFrame:
    rows = [(f"d{number}", "", text, "{}", "0" * 64) for number, text in enumerate(texts)]
    return pd.DataFrame(rows, columns=list(dataset.TABLES["documents"])).astype("str")


def test_a_group_of_rows_is_full_by_its_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "GROUP_BYTES", 400)
    texts = ["a" * 10, "b" * 1000, "c" * 10, "d" * 300, "é" * 100, *["e"] * 3]
    path = tmp_path / "documents.parquet"
    write_table(documents(texts), path)
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(number)["text"].to_pylist() for number in range(file.num_row_groups)]
    assert groups[1] == ["b" * 1000]  # one that is larger than a group is a group
    assert [text for group in groups for text in group] == texts and 4 < len(groups) < 8
    assert max(len("".join(group).encode()) for group in groups if len(group) > 1) <= 400


def test_groups_of_usual_texts_have_the_usual_rows(tmp_path: Path) -> None:
    write_table(documents(["word"] * (2 * dataset.ROW_GROUP + 3)), tmp_path / "documents.parquet")
    with pq.ParquetFile(tmp_path / "documents.parquet") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [dataset.ROW_GROUP, dataset.ROW_GROUP, 3]


def test_an_empty_table_is_read_as_one(tmp_path: Path) -> None:
    for name, columns in dataset.TABLES.items():
        kinds = {column: "int64" if column == "score" else "str" for column in columns}
        write_table(pd.DataFrame(columns=list(columns)).astype(kinds), tmp_path / f"{name}.parquet")
    seal(tmp_path, "dataset")
    assert load_dataset(tmp_path).document_texts() == [] and load_dataset(tmp_path).splits == ()


def test_a_shard_of_more_numbers_than_arrow_counts_is_written_and_read_in_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MOST_NUMBERS", 3 * DIMENSION + 1)
    vectors = clustered(20)
    stored = shards_of(tmp_path / "vectors", vectors, [8])
    with pq.ParquetFile(stored.path / "vectors-00000.parquet") as file:
        assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [3, 3, 2]
    found = read_vectors(stored)
    assert found.doc_ids == ids_of(20)
    np.testing.assert_allclose(found.vectors, vectors, atol=2e-3)


def test_hashes_are_compared_by_their_bytes_and_other_marks_as_they_are() -> None:
    def table(*pairs: tuple[str, str]) -> pa.Table:
        return pa.table({"doc_id": [i for i, _ in pairs], "content_hash": [h for _, h in pairs]})

    index = pa.concat_tables([table(("a", "0" * 64), ("b", "f" * 64)), table(("c", "mark"), ("d", "0" * 63))])
    found = find_changes(index, np.array([0]), table(("a", "0" * 64), ("b", "f" * 63 + "e"), ("c", "mark"), ("d", "0" * 62)))
    assert (found.added.tolist(), found.changed.tolist(), found.removed.tolist(), found.replaced.tolist()) == ([0], [1, 3], [], [1, 3])
    assert found.unchanged == 1


def test_changes_are_found_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    ids = [f"d{number}" for number in rng.permutation(300)]
    hashes = [f"{number:064x}" for number in range(300)]

    def table(numbers: list[int], marks: dict[int, str]) -> pa.Table:
        columns = {"doc_id": [ids[n] for n in numbers], "content_hash": [marks.get(n, hashes[n]) for n in numbers]}
        return pa.concat_tables([pa.table(columns).slice(start, 7) for start in range(0, len(numbers), 7)])

    before, after = list(range(250)), [*range(299, 49, -1)]
    deleted, marks = np.array([60, 61, 249]), {100: "other", 200: "f" * 64}
    whole = find_changes(table(before, {}), deleted, table(after, marks))
    monkeypatch.setattr("components.index.refresh._AT_ONCE", 11)
    monkeypatch.setattr("components.index.refresh.LOOKED_UP", 13)
    blocks = find_changes(table(before, {}), deleted, table(after, marks))
    for name in ("added", "changed", "removed", "replaced"):
        assert getattr(whole, name).tolist() == getattr(blocks, name).tolist()
    assert [after[row] for row in blocks.changed] == [200, 100] and blocks.replaced.tolist() == [100, 200]
    assert sorted(after[row] for row in blocks.added) == [60, 61, *range(249, 300)] and blocks.removed.tolist() == list(range(50))


def test_the_rows_of_an_index_are_compared_without_holding_them_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 400_000
    columns = {"doc_id": [f"d{number:011d}" for number in range(rows)], "content_hash": [f"{number:064x}" for number in range(rows)]}
    pq.write_table(pa.table(columns), tmp_path / "doc_ids.parquet", row_group_size=10_000)
    pq.write_table(pa.table(columns | {"content_hash": ["F" * 64, *columns["content_hash"][1:]]}), tmp_path / "documents.parquet")
    monkeypatch.setattr("components.index.refresh._AT_ONCE", 5_000)
    monkeypatch.setattr("components.index.refresh.LOOKED_UP", 10_000)
    documents = read_documents(tmp_path)
    held, before, look = [], pa.total_allocated_bytes(), changes.looked_up
    monkeypatch.setattr(changes, "looked_up", lambda *ids: held.append(pa.total_allocated_bytes()) or look(*ids))
    found = changes_since(tmp_path, documents)
    assert found.counts == {"added": 0, "changed": 1, "removed": 0, "unchanged": rows - 1} and found.replaced.tolist() == [0]
    assert len(held) == 40 and max(held) - before < documents.nbytes / 4


@pytest.mark.parametrize("digits", ["0123456789abcdef" * 4, "ABCDEF0123456789" * 4, "mark", "0" * 63, "é" * 32, "0" * 63 + "g", ""])
def test_a_content_hash_becomes_the_same_bytes_alone_and_beside_others(digits: str) -> None:
    texts = pa.array(["f" * 64, digits, "0" * 64], pa.large_string())
    one_by_one = [changes._bytes_of(text) for text in texts.to_pylist()]
    assert one_by_one[1] == (bytes.fromhex(digits) if len(digits) == 64 and digits[-1] != "g" else hashlib.sha256(digits.encode()).digest())
    assert changes._hash_bytes(texts).tobytes() == b"".join(one_by_one)
    assert changes._hash_bytes(texts.slice(1, 2)).tobytes() == b"".join(one_by_one[1:])
    assert changes._hash_bytes(texts.slice(0, 0)).shape == changes._hash_bytes(pa.array([], pa.large_string())).shape == (0, 32)


@pytest.mark.parametrize("compact_share", [1.0, 0.01])
def test_content_hashes_follow_their_documents_group_by_group(
    compact_share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.index.rows._ROW_GROUP", 7)
    config = FLAT.model_copy(update={"compact_share": compact_share})
    collection, documents = Collection(tmp_path, config, shard_size=8), {f"d{number}": f"word {number}" for number in range(30)}
    collection.build(documents)
    for gone, new in (([0, 1, 13, 29], range(30, 41)), ([30, 31, 5], range(41, 42)), ([40, 41], ())):
        documents = {doc_id: text for doc_id, text in documents.items() if int(doc_id[1:]) not in gone}
        documents |= {f"d{number}": f"word {number}" for number in new} | {"d7": f"reworded {gone}"}
        index = collection.refresh(documents)
        table = read_table(index.path, ("doc_id", "content_hash"))
        live = only_rows(table, live_rows(len(table), read_deleted(index.path, len(table)))).to_pylist()
        expected = table_of(dataset_of(documents, {}, [])).to_pylist()
        assert sorted(live, key=str) == sorted(expected, key=str)
        assert (len(table) == len(live)) == (compact_share < 1)


@pytest.mark.parametrize("layout", ["merged", "shards"])
def test_a_refresh_of_an_index_of_many_parts_carries_all_of_them_over(tmp_path: Path, layout: str) -> None:
    config = LISTS.model_copy(update={"part_size": 8, "layout": layout})
    index = built(tmp_path / "index", shards_of(tmp_path / "vectors", clustered(8 * 70), [8] * 69), config)
    assert index.counts["parts"] == 70
    first, gone = added(index, clustered(1, seed=5), config), removed(index, [3], config)
    for refreshed in (first, added(first, clustered(1, seed=6), config), gone):
        kept = [path for path in index.path.glob("part-*") if (refreshed.path / path.name).samefile(path)]
        assert len(kept) >= 140
    assert first.counts["parts"] == 71 and gone.counts["parts"] == 70


def test_parts_that_refreshes_added_are_put_together_when_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.index.refresh.MOST_ADDED", 2)
    index = start(tmp_path, rows=320)
    counts = []
    for number in range(4):
        index = added(index, clustered(2, seed=10 + number))
        counts.append(index.counts["parts"])
    assert counts == [2, 3, 1, 2]


def test_the_parts_of_an_index_that_an_earlier_version_refreshed_are_known_from_its_rows(tmp_path: Path) -> None:
    config = LISTS.model_copy(update={"part_size": 8})
    index = built(tmp_path / "index", shards_of(tmp_path / "vectors", clustered(8 * 70), [8] * 69), config)
    first = added(index, clustered(1, seed=5), config)
    about = {name: value for name, value in first.attributes.items() if name != "parts_at_writing"}
    made = seal(first.path, "index", counts=first.counts, parents=first.parents, attributes=about)
    earlier = type(first)(**made.model_dump())
    again = added(earlier, clustered(1, seed=6), config)
    assert again.attributes["parts_at_writing"] == 70 and again.counts["parts"] == 72


def test_a_template_none_of_whose_documents_is_left_is_still_watched(tmp_path: Path) -> None:
    index = start(tmp_path, LISTS.model_copy(update={"nprobe": 1, "compact_share": 0.5}))
    config = LISTS.model_copy(update={"nprobe": 1, "compact_share": 0.5})
    centre = clustered(600).mean(axis=0, keepdims=True) + 0.05 * np.random.default_rng(5).normal(size=(300, DIMENSION))
    other = (centre / np.linalg.norm(centre, axis=1, keepdims=True)).astype(np.float32)
    both = added(index, other, config)
    changed = removed(both, list(range(600)), config)
    assert changed.attributes["rows_at_training"] == 0
    again = added(changed, other[:20] * np.float32(1), config)
    report = read_guard(again.path)
    assert again.attributes["rows_at_training"] == 0
    assert report.recall_old is None and report.recall_new is not None
    assert any("when it was tuned" in reason or "as far from their centroids" in reason for reason in report.reasons)


def test_looking_up_a_title_reads_its_row_and_not_all_that_follow() -> None:
    read = []

    class Counted(list[str]):
        def __getitem__(self, row):  # type: ignore[no-untyped-def]
            read.append(row)
            return super().__getitem__(row)

    rows = Rows.of([f"d{i:06d}" for i in range(5000)])
    counted = Rows(Counted([f"d{i:06d}" for i in range(5000)]), rows.order, np.arange(4000, 5000))  # type: ignore[arg-type]
    assert counted.row_of("d000001") == 1 and len(read) < 30
    assert counted.row_of("d004999") is None and counted.row_of("d003999") == 3999


def test_exact_search_over_blocks_leaves_out_deleted_rows_of_every_block() -> None:
    vectors, queries = clustered(100), clustered(5, seed=1)
    gone = np.array([0, 9, 10, 19, 55, 99])
    blocks = [vectors[start : start + 10] for start in range(0, 100, 10)]
    scores, rows = nearest(queries, blocks, 100, gone[::-1])
    live = live_rows(100, gone)
    for line, found, score in zip(queries, rows, scores, strict=True):
        assert found[:94].tolist() == live[np.argsort(-(vectors[live] @ line), kind="stable")].tolist()
        assert (found[94:] == -1).all() and np.isneginf(score[94:]).all()


def test_an_exact_search_looks_at_each_deleted_row_once_whatever_the_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, gone, looked_at = clustered(1000), np.arange(0, 1000, 2), []
    marked = engine.live_rows
    monkeypatch.setattr(engine, "live_rows", lambda rows, deleted: looked_at.append((rows, len(deleted))) or marked(rows, deleted))
    for size in (500, 10):
        looked_at.clear()
        nearest(clustered(3, seed=1), [vectors[start : start + size] for start in range(0, 1000, size)], 5, gone)
        assert tuple(map(sum, zip(*looked_at, strict=True))) == (1000, 500)


@pytest.mark.parametrize(("dimension", "queries"), [(896, 200), (64, 300)])
def test_a_batch_and_one_query_at_a_time_rank_near_duplicates_alike(dimension: int, queries: int) -> None:
    rng = np.random.default_rng(2)
    base = clustered(100, dimension=dimension)
    near = np.repeat(base, 20, axis=0) + 5e-4 * rng.normal(size=(2000, dimension))
    vectors = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    index = index_in_memory(vectors, ids_of(2000), SPACE)
    asked = clustered(queries, seed=4, dimension=dimension)
    scores, ids = index.search(asked, 10)
    single = [index.search(asked[number : number + 1], 10) for number in range(queries)]
    assert ids == [found[0] for _, found in single]
    np.testing.assert_array_equal(scores, np.concatenate([score for score, _ in single]))


def test_files_that_nobody_touched_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, note = _artifact(tmp_path)
    hashed: list[str] = []
    whole = artifacts.file_sha256
    monkeypatch.setattr(artifacts, "file_sha256", lambda path: hashed.append(path.name) or whole(path))
    digest = verify_noted(folder, None, note).digest
    assert hashed == ["a.bin", "b.bin"]
    assert verify_noted(folder, digest, note).digest == digest and len(hashed) == 2
    verify_noted(folder, digest, note, whole=True)
    assert len(hashed) == 4


@pytest.mark.parametrize("change", ["write", "in place", "replace", "time put back"])
def test_a_byte_that_was_changed_without_a_change_of_size_is_found(change: str, tmp_path: Path) -> None:
    folder, note = _artifact(tmp_path)
    verify_noted(folder, None, note)
    file = folder / "a.bin"
    before = file.stat()
    if change == "replace":
        (tmp_path / "new").write_bytes(b"aaaX")
        os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
        (tmp_path / "new").replace(file)
    elif change == "in place":
        with file.open("r+b") as handle:
            handle.write(b"X")
    else:
        file.write_bytes(b"aaaX")
    if change == "time put back":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="bin was changed"):
        verify_noted(folder, None, note)
    verify_sizes(folder)  # which is what the sizes alone cannot see


def test_what_a_note_hides_is_found_by_the_whole_check(tmp_path: Path) -> None:
    """Bytes that go bad on the disk leave a file's state as it was; a forged note stands for them here."""
    folder, note = _artifact(tmp_path)
    verify_noted(folder, None, note)
    (folder / "a.bin").write_bytes(b"aaaX")
    state = artifacts._state(folder, artifacts.read_manifest(folder))
    artifacts.write_json(note, {"state": state, "digest": artifacts.digest_of(state)})
    assert verify_noted(folder, None, note).kind == "thing"
    for check in (lambda: verify(folder), lambda: verify_noted(folder, None, note, whole=True)):
        with pytest.raises(ArtifactError, match="bin was changed"):
            check()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"state": 1}', b"{", b'{"state": {}, "digest": "0"}'])
def test_a_note_that_is_broken_counts_for_nothing(content: bytes, tmp_path: Path) -> None:
    folder, note = _artifact(tmp_path)
    note.write_bytes(content)
    (folder / "a.bin").write_bytes(b"aaaX")
    with pytest.raises(ArtifactError, match="bin was changed"):
        verify_noted(folder, None, note)


def test_where_no_note_can_be_written_every_check_is_a_whole_one(tmp_path: Path) -> None:
    folder, _ = _artifact(tmp_path)
    (tmp_path / "file").write_text("no folder")
    note = tmp_path / "file" / "note.json"
    assert verify_noted(folder, None, note) == verify_noted(folder, None, note)


def _artifact(tmp_path: Path) -> tuple[Path, Path]:
    """A sealed folder whose files were written a while ago, and where its note will lie."""
    folder = tmp_path / "thing"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.bin").write_bytes(name.encode() * 4)
    seal(folder, "thing")
    return folder, tmp_path / "note.json"


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files made in this test count as old at once."""
    monkeypatch.setattr(artifacts, "_CLOCK_TICK", -(10**9))


def test_a_refresh_hashes_only_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    index = start(tmp_path)
    hashed: list[Path] = []
    whole = artifacts.file_sha256
    refreshed = added(index, clustered(3, seed=2))
    monkeypatch.setattr(artifacts, "file_sha256", lambda path: hashed.append(path) or whole(path))
    again = added(refreshed, clustered(3, seed=3))
    earlier = {path.name: path for path in refreshed.path.iterdir()}
    kept = {path.name for path in again.path.iterdir() if path.name in earlier and path.samefile(earlier[path.name])}
    assert "part-00000.vectors.npy" in kept
    assert not kept & {path.name for path in hashed if path.parent == again.path}
    assert verify(again.path).digest == again.digest


def test_every_query_gets_k_answers_whatever_the_lists_hold(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """5,000 documents of 30 texts: most lists are empty, most documents tie, and one list is asked."""
    vectors = clustered(30)[np.arange(1000) % 30]
    for number, key in enumerate(("IVF64,PQ8x4fsr", "IVF64,Flat", "HNSW8", "PQ8x4")):
        config = IndexConfig(index_key=key, nprobe=1 if "IVF" in key else None, recall_at=10)
        index = built(tmp_path / f"index-{number}", shards_of(tmp_path / f"vectors-{number}", vectors, [300] * 3), config)
        opened = load_index(index.path, index.space_id)
        scores, ids = opened.search(clustered(7, seed=9), 999)
        assert all(len(set(line)) == 999 for line in ids) and np.isfinite(scores).all()
    said = "".join(capfd.readouterr())
    assert "WARNING" not in said, said


@pytest.mark.parametrize("key", ["IVF64,PQ8x4fsr", "IVF64,Flat", "HNSW8", "PQ8x4"])
def test_the_three_documents_left_of_five_thousand_are_all_found(tmp_path: Path, capfd: pytest.CaptureFixture[str], key: str) -> None:
    vectors = clustered(30)[np.arange(5000) % 30]
    config = IndexConfig(index_key=key, nprobe=1 if "IVF" in key else None, recall_at=10)
    index = built(tmp_path / "index", shards_of(tmp_path / "vectors", vectors, []), config)
    left = np.array([7, 2500, 4999])
    write_deleted(index.path, np.setdiff1d(np.arange(5000), left))
    opened = open_files(index.path, index.attributes, index.counts["parts"])
    scores, ids = opened.search(clustered(7, seed=9), 500)
    assert [sorted(line) for line in ids] == [sorted(opened.doc_ids[int(row)] for row in left)] * 7
    assert scores.shape == (7, 3) and np.isfinite(scores).all()
    said = "".join(capfd.readouterr())
    assert "WARNING" not in said, said


@pytest.mark.parametrize("gone", ["nothing", "folder", "options"])
def test_the_measurement_at_size_goes_on_after_the_stages_that_it_has_measured(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []

    def apart(what: str, target: Path, *_: object) -> tuple[at_size.Took, str]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(what)
        target.mkdir(parents=True, exist_ok=True)
        return at_size.Took(float(len(done)), 1.0, 0.5), "said"

    monkeypatch.setattr(at_size, "_apart", apart)
    options = Namespace(documents="7", words=60, base="decoder-64x2", rows=5, seed=13)
    with pytest.raises(KeyboardInterrupt):
        at_size._run(tmp_path, options)
    stages = artifacts.read_json(tmp_path / "times.json")["stages"]
    assert list(stages) == sorted(done) and stages[done[2]] == {"seconds": 3.0, "processors": 1.0, "peak": 0.5, "said": "said"}
    if gone == "folder":
        (tmp_path / "at-7" / "towers").rmdir()
    options.words += gone == "options"
    before, done = done, [""] * 4  # the program is asked again
    at_size._run(tmp_path, options)
    again = {"nothing": [], "folder": before[1:2], "options": before}[gone]
    assert done[4 : 4 + len(again)] == again and len(done) == 4 + len(again) + 7
    assert capsys.readouterr().out.count("measured before: ") == 3 - len(again)
    assert len(artifacts.read_json(tmp_path / "times.json")["stages"]) == 10


HOLES = """
import contextlib, sys
import numpy as np
from components.studies.growth_cell import anonymous
from components.towers.device import freed_at_once

first = np.ones(2**21)  # once such a block was freed, glibc takes smaller ones from its heap
del first
with freed_at_once(2**30) if sys.argv[1] == "at once" else contextlib.nullcontext():
    large, small = [], []
    for _ in range(50):
        large.append(np.ones(2**19))
        small.append(np.ones(2**13))
    held = anonymous()
    del large
    print(held - anonymous())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has ways of its own")
def test_freed_tensors_leave_no_holes_that_the_process_keeps() -> None:
    given = {mode: int(_said(HOLES, mode)) for mode in ("at once", "as glibc does")}
    whole = 50 * 2**22
    assert given["at once"] > 0.9 * whole
    assert given["as glibc does"] < 0.5 * whole  # else there is nothing to mend, and this test says nothing


def _said(program: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
