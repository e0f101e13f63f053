from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from components.artifacts import IndexArtifact, seal, verify
from components.errors import ArtifactError, DataError, SpaceMismatch
from components.index.drift import read_guard
from components.index.refresh import Changes, refresh_index
from components.index.rows import read_table
from components.index.shards import unit_rows
from tests.encoders import WordEncoder, dataset_of
from tests.unit.refresh_world import DOCUMENTS, FLAT, Collection, answers, chosen, in_memory, no_waiting_for_the_disk, table_of  # noqa: F401


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
