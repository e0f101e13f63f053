"""A data folder whose documents lie in shards: a folder `corpus` of JSON Lines and Parquet files."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from components.data.config import DataConfig
from components.data.dataset import RawTables
from components.data.sources import read_source, source_digest
from components.errors import DataError
from tests.data_world import documents, write_folder, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small data folder with its 260 documents in three shards, one of each kind."""
    folder = write_folder(tmp_path / "data")
    (folder / "corpus.jsonl").unlink()
    rows = documents()
    write_rows(folder / "corpus" / "part-0.jsonl", rows[:100])
    write_rows(folder / "rest.jsonl", rows[100:150])
    (folder / "corpus" / "part-1.jsonl.gz").write_bytes(gzip.compress((folder / "rest.jsonl").read_bytes()))
    pd.DataFrame(rows[150:]).to_parquet(folder / "corpus" / "part-2.parquet")
    return folder


def read(folder: Path) -> RawTables:
    return read_source(DataConfig(source=str(folder)))


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read(folder)
    return str(caught.value)


def test_shards_of_all_kinds_are_the_same_table_as_one_file(folder: Path, tmp_path: Path) -> None:
    pd.testing.assert_frame_equal(read(folder).documents, read(write_folder(tmp_path / "one")).documents)


def test_marks_that_writers_leave_are_no_shards(folder: Path) -> None:
    before = source_digest(DataConfig(source=str(folder)))
    for name in ("_SUCCESS", ".part-0.jsonl.crc"):
        (folder / "corpus" / name).write_text("")
    assert len(read(folder).documents) == 260
    assert source_digest(DataConfig(source=str(folder))) == before


def test_the_digest_follows_every_shard(folder: Path) -> None:
    before = source_digest(DataConfig(source=str(folder)))
    write_rows(folder / "corpus" / "part-0.jsonl", documents()[:99])
    assert source_digest(DataConfig(source=str(folder))) != before


def test_an_id_in_two_shards_is_refused_with_both_files(folder: Path) -> None:
    write_rows(folder / "corpus" / "part-3.jsonl", [{"_id": "new", "text": "n"}, {"_id": "d120", "text": "again"}])
    found = refused(folder)
    assert "'d120' stands in two files" in found
    assert "part-1.jsonl.gz and" in found and "part-3.jsonl (1 such rows)" in found


def test_an_id_twice_in_one_shard_is_left_to_the_contracts(folder: Path) -> None:
    write_rows(folder / "corpus" / "part-3.jsonl", [{"_id": "new", "text": "n"}, {"_id": "new", "text": "again"}])
    assert len(read(folder).documents) == 262


def test_a_truncated_shard_is_named(folder: Path) -> None:
    path = folder / "corpus" / "part-2.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    assert "part-2.parquet cannot be read as Parquet" in refused(folder)
    path.unlink()
    path = folder / "corpus" / "part-1.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-30])
    assert "part-1.jsonl.gz cannot be read after line" in refused(folder)


def test_a_shard_that_would_be_missed_is_refused(folder: Path) -> None:
    (folder / "corpus" / "part-3.xlsx").write_text("id,text")
    assert "part-3.xlsx: expected only files named .jsonl, .jsonl.gz, .csv" in refused(folder)
    (folder / "corpus" / "part-3.xlsx").unlink()
    (folder / "corpus" / "lang=en").mkdir()
    assert "lang=en: expected only files" in refused(folder)


def test_shards_beside_a_file_and_an_empty_folder_are_refused(folder: Path) -> None:
    write_rows(folder / "corpus.jsonl", documents())
    assert "the same table twice: the folder corpus and corpus.jsonl" in refused(folder)
    (folder / "corpus.jsonl").unlink()
    (folder / "documents").mkdir()
    assert "the folder corpus and documents" in refused(folder)
    (folder / "documents").rmdir()
    for path in (folder / "corpus").iterdir():
        path.unlink()
    assert "corpus holds no documents" in refused(folder)
