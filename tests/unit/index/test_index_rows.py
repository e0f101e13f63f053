from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data.dataset import wide, write_table
from components.errors import ArtifactError
from components.index.build import display_titles
from components.index.rows import DocIds, Rows, read_rows, read_single, read_titles, write_deleted, write_rows
from components.lineage.graph import find_document

# The document b was changed: its former content stands in row 1, which is deleted.
IDS = ["d", "b", "a", "é", "b"]
TITLES = {"d": "Dates", "b": "Bread", "a": "Apple", "é": "Éclair"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table = pa.table({"doc_id": IDS, "content_hash": [f"h{i}" for i in range(5)], "part": [0, 0, 0, 1, 1]})
    write_rows(tmp_path, table, TITLES)
    write_deleted(tmp_path, np.array([1]))
    return tmp_path


def test_order_is_the_place_of_each_id_among_the_sorted_ones(folder: Path) -> None:
    rows = read_rows(folder)
    assert [IDS[row] for row in np.argsort(rows.order)] == sorted(IDS)
    assert (rows.order.dtype, len(rows), rows.live) == (np.int32, 5, 4)
    assert list(rows.doc_ids) == IDS


def test_a_document_is_found_in_the_row_that_is_not_deleted(folder: Path) -> None:
    rows = read_rows(folder)
    assert [rows.row_of(doc_id) for doc_id in ("d", "b", "a", "é", "c", "zz", "")] == [0, 4, 2, 3, None, None, None]
    assert find_document(folder, "b") == {"row": 4, "part": "part-00001.vectors.npy", "content_hash": "h4"}


def test_titles_are_looked_up_by_id(folder: Path) -> None:
    titles = read_titles(folder, read_rows(folder))
    assert titles["b"] == "Bread" and titles.get("é") == "Éclair" and titles.get("zz", "none") == "none"
    assert dict(titles) == TITLES and len(titles) == 4


def test_an_index_without_titles_has_none(tmp_path: Path) -> None:
    write_rows(tmp_path, pa.table({"doc_id": ["a"], "content_hash": ["h"], "part": [0]}))
    titles = read_titles(tmp_path, read_rows(tmp_path))
    assert dict(titles) == {} and titles.get("a", "") == "" and len(titles) == 0


def test_titles_of_a_table_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path, pa.table({"doc_id": ["a"], "content_hash": ["h"], "part": [0], "title": ["Apple"]}))
    assert read_titles(tmp_path, read_rows(tmp_path))["a"] == "Apple"


def test_titles_of_another_table_find_their_rows_by_id(tmp_path: Path) -> None:
    table = pa.table({"doc_id": IDS, "content_hash": [f"h{i}" for i in range(5)], "part": [0, 0, 0, 1, 1]})
    pieces = [pa.table({"doc_id": ids, "title": [TITLES.get(i, "?") for i in ids]}) for ids in (["new", "b"], ["é", "d"])]
    write_rows(tmp_path, table, wide(pa.concat_tables(pieces)))
    assert dict(read_titles(tmp_path, read_rows(tmp_path))) == {**TITLES, "a": ""}  # which is in no row of the other table
    own = wide(pa.table({"doc_id": IDS, "title": ["D", "B", "A", "E", "B2"]}))
    write_rows(tmp_path, table, own)
    assert read_titles(tmp_path, read_rows(tmp_path))["d"] == "D"


def test_a_missing_title_is_the_start_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.data.dataset.ROW_GROUP", 2)
    titles = ["Apple", "", "\u200b", " ", "é", "標題", None]
    texts = [("\n\u200b " * 40 if letter == "c" else "") + f"{letter} text " * 20 for letter in "abcdef"]
    columns = {"doc_id": [*"abcdefg"], "title": titles, "text": [*texts, None]}
    frame = pd.DataFrame({**columns, "metadata": "{}", "content_hash": "h"})
    write_table(frame, tmp_path / "documents.parquet")
    found = display_titles(tmp_path / "documents.parquet")
    starts = {letter: (f"{letter} text " * 20)[:80] for letter in "bcd"}
    assert dict(zip(found["doc_id"].to_pylist(), found["title"].to_pylist(), strict=True)) == {
        "a": "Apple",
        **starts,
        "e": "é",
        "f": "標題",
        "g": "",
    }


def test_titles_are_read_without_the_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"doc_id": ["a"], "title": ["Apple"], "text": ["x"], "metadata": "{}", "content_hash": "h"})
    write_table(frame, tmp_path / "documents.parquet")
    read: list[list[str]] = []

    class Watched(pq.ParquetFile):
        def read_row_group(self, group: int, columns: list[str]) -> pa.Table:  # type: ignore[override]
            read.append(columns)
            return super().read_row_group(group, columns=columns)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    assert display_titles(tmp_path / "documents.parquet").num_rows == 1 and read == [["doc_id", "title"]]
    (tmp_path / "documents.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"documents\.parquet cannot be read"):
        display_titles(tmp_path / "documents.parquet")


def test_ids_are_taken_row_by_row_of_a_matrix() -> None:
    ids = DocIds.of(["a", "b", "c"])
    assert ids.take(np.array([[2, 0], [1, 1]])) == [["c", "a"], ["b", "b"]]
    assert ids.take(np.empty((2, 0), np.int64)) == [[], []]
    assert (ids[1], list(ids[1:]), len(ids)) == ("b", ["b", "c"], 3)
    assert Rows.of(["b", "a"]).order.tolist() == [1, 0]


def test_single_rows_are_read_in_the_order_asked_for_and_only_from_the_groups_that_hold_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.index.rows._ROW_GROUP", 2)
    table = pa.table({"doc_id": [*"abcdefgh"], "content_hash": [f"h{i}" for i in range(8)], "part": [0] * 8})
    write_rows(tmp_path, table)
    read: list[int] = []

    class Watched(pq.ParquetFile):
        def read_row_group(self, group: int, **more: object) -> pa.Table:  # type: ignore[override]
            read.append(group)
            return super().read_row_group(group, **more)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    found = read_single(tmp_path, ("doc_id", "content_hash", "shard"), [7, 2, 3, 7])
    assert found == [{"doc_id": letter, "content_hash": mark} for letter, mark in (("h", "h7"), ("c", "h2"), ("d", "h3"), ("h", "h7"))]
    assert read == [1, 3]
    assert read_single(tmp_path, ("doc_id",), []) == []
    (tmp_path / "doc_ids.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"doc_ids\.parquet cannot be read"):
        read_single(tmp_path, ("doc_id",), [0])


def test_what_one_index_has_more_than_another_is_found_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.index.rows.LOOKED_UP", 3)
    ours, theirs = Rows.of([f"d{n}" for n in range(20)]), Rows.of([f"d{n}" for n in range(19, 4, -1)])
    assert ours.missing_from(theirs) == {f"d{n}" for n in range(5)} and theirs.missing_from(ours) == frozenset()
    without = Rows(theirs.doc_ids, theirs.order, np.array([0, 14]))  # d19 and d5
    assert ours.missing_from(without) == {*(f"d{n}" for n in range(6)), "d19"}
    gone = Rows(ours.doc_ids, ours.order, np.arange(20))
    assert gone.missing_from(theirs) == frozenset() and len(theirs.missing_from(gone)) == 15
