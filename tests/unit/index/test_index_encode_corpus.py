"""Documents that are read a shard at a time, and the ids that have to be unique over all shards."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.artifacts import is_complete
from components.data.dataset import ROW_GROUP, content_hash, document_text, write_table
from components.errors import ArtifactError, DataError
from components.index.config import EncodingConfig
from components.index.corpus import LoadedDocuments, StoredDocuments, require_unique, shard_sizes
from components.index.encode import LoadedEncoder, ShardJob, calls_by_length, encode_corpus, encode_shards
from components.index.shards import ShardKeys, shard_manifest_path, write_shard
from components.index.workers import ShardProgress, documents_done, shown_progress
from tests.encoders import WORDS, WordEncoder, dataset_of

COUNT = 10


def frame_of(count: int) -> pd.DataFrame:
    texts = [WORDS[n % len(WORDS)] for n in range(count)]
    rows = [(f"d{n}", f"title {n}", text, "{}", content_hash(document_text(f"title {n}", text))) for n, text in enumerate(texts)]
    return pd.DataFrame(rows, columns=["doc_id", "title", "text", "metadata", "content_hash"])


def stored(folder: Path, frame: pd.DataFrame, shard_size: int = 4) -> StoredDocuments:
    path = folder / "documents.parquet"
    write_table(frame, path)
    return StoredDocuments(path, shard_size)


def job_of(documents: StoredDocuments, folder: Path) -> ShardJob:
    folder.mkdir(exist_ok=True)
    return ShardJob(LoadedEncoder(WordEncoder("document")), documents, 64, folder)


def test_a_shard_of_the_table_is_that_part_of_the_table(tmp_path: Path) -> None:
    frame = frame_of(COUNT)
    documents = stored(tmp_path, frame)
    assert (documents.count, shard_sizes(documents)) == (10, [4, 4, 2])
    keys = documents.keys(1)
    assert (keys.number, keys.doc_ids) == (1, ["d4", "d5", "d6", "d7"])
    assert keys.content_hashes == frame["content_hash"].tolist()[4:8]
    assert documents.texts(2) == ["title 8\napple", "title 9\nbread"]


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 45), st.integers(1, 12))
def test_shards_together_are_the_table_however_its_rows_are_grouped(count: int, shard_size: int, group: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.parquet"
        pq.write_table(pa.Table.from_pandas(frame_of(count), preserve_index=False), path, row_group_size=group)
        documents = StoredDocuments(path, shard_size)
        sizes = shard_sizes(documents)
        found = [documents.keys(n) for n in range(len(sizes))]
        assert [len(keys.doc_ids) for keys in found] == sizes
        assert [i for keys in found for i in keys.doc_ids] == [f"d{n}" for n in range(count)]
        assert [t for n in range(len(sizes)) for t in documents.texts(n)] == [f"title {n}\n{WORDS[n % 8]}" for n in range(count)]


def test_tables_are_written_in_groups_that_can_be_read_alone(tmp_path: Path) -> None:
    path = stored(tmp_path, frame_of(ROW_GROUP + 5)).path
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [ROW_GROUP, 5]
    assert StoredDocuments(path, 3).keys(ROW_GROUP // 3).doc_ids == ["d8190", "d8191", "d8192"]


def test_reading_a_shard_takes_memory_for_a_shard(tmp_path: Path) -> None:
    frame = frame_of(6 * ROW_GROUP)
    words = np.random.default_rng(0).integers(0, 10**9, (len(frame), 20)).astype(str)  # does not compress away
    frame["text"] = [" ".join(row) for row in words]
    documents = stored(tmp_path, frame, 512)
    usual, measured = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(measured)
    try:
        texts = documents.texts(40)
    finally:
        pa.set_memory_pool(usual)
    assert texts[0].endswith(frame["text"][40 * 512])
    assert 0 < measured.max_memory() < frame["text"].str.len().sum() / 3


def test_the_table_and_the_loaded_data_set_give_the_same_shards(tmp_path: Path) -> None:
    frame = frame_of(COUNT)
    dataset = dataset_of({}, {}, [])
    dataset.documents[frame.columns.tolist()] = frame
    (tmp_path / "a").mkdir()
    loaded = encode_corpus(WordEncoder("document"), dataset, {}, EncodingConfig(shard_size=4, tokens_per_batch=64), tmp_path / "a")
    assert encode_shards(job_of(stored(tmp_path, frame), tmp_path / "b"), {}).digest == loaded.digest


def test_an_id_in_two_shards_is_refused_with_both_places(tmp_path: Path) -> None:
    frame = frame_of(COUNT)
    frame.loc[8, "doc_id"] = "d1"
    documents = stored(tmp_path, frame)
    with pytest.raises(DataError, match=r"'d1' stands twice in the corpus: in row 2 \(shard 0\) and in row 9 \(shard 2\)"):
        encode_shards(job_of(documents, tmp_path / "out"), {})
    assert list((tmp_path / "out").iterdir()) == []


def test_ids_that_share_a_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.index.corpus._hashes", lambda ids: np.zeros(len(ids), np.uint64))
    require_unique(stored(tmp_path, frame_of(COUNT)), 3)


def test_a_truncated_table_is_named(tmp_path: Path) -> None:
    documents = stored(tmp_path, frame_of(COUNT))
    whole = documents.path.read_bytes()
    documents.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"documents\.parquet cannot be read"):
        encode_shards(job_of(documents, tmp_path / "out"), {})
    documents.path.unlink()
    with pytest.raises(ArtifactError, match=r"documents\.parquet cannot be read"):
        shard_sizes(documents)


def test_a_truncated_shard_of_vectors_is_encoded_again(tmp_path: Path) -> None:
    job = job_of(stored(tmp_path, frame_of(COUNT)), tmp_path / "out")
    digest = encode_shards(job, {}).digest
    table = tmp_path / "out" / "vectors-00001.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    again = job_of(job.documents, tmp_path / "out")  # type: ignore[arg-type]
    assert encode_shards(again, {}).digest == digest
    assert again.encoder.load().texts_seen == 4  # type: ignore[attr-defined]


def test_a_runner_that_leaves_a_shard_out_is_found(tmp_path: Path) -> None:
    job = job_of(stored(tmp_path, frame_of(COUNT)), tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"shard-00000\.json is missing"):
        encode_shards(job, {}, lambda job, numbers: None)
    assert not is_complete(tmp_path / "out")


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_calls_hold_every_row_once_longest_first_and_end_when_full(lengths: list[int], budget: int) -> None:
    calls = list(calls_by_length(lengths, budget))
    rows = [row for call in calls for row in call]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    assert all(sum(lengths[row] for row in call[:-1]) < budget for call in calls)
    assert all(sum(lengths[row] for row in call) >= budget for call in calls[:-1])


def test_progress_counts_finished_shards_and_what_workers_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.index.workers.INTERVAL", 0.0)
    todo = {1: 4, 2: 4, 3: 2}
    assert documents_done(tmp_path, todo) == 0
    progress = ShardProgress(tmp_path, 2)
    progress.add(1)
    progress.add(2)
    assert documents_done(tmp_path, todo) == 3
    write_shard(tmp_path, ShardKeys(1, ["a"], ["b"]), WordEncoder().encode(["apple"]), "space")
    assert documents_done(tmp_path, todo) == 7
    progress.remove()
    assert documents_done(tmp_path, todo) == 4
    assert shard_manifest_path(tmp_path, 1).exists()


def test_the_bar_moves_within_a_call_of_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.index.workers.INTERVAL", 0.0)
    reported: list[int] = []

    class InBatches(WordEncoder):
        def encode(self, texts, batch_size=None, progress=None):  # type: ignore[no-untyped-def]
            for _ in texts:
                progress(1)
                reported.append(documents_done(tmp_path, {0: len(texts)}))
            return super().encode(texts, batch_size)

    documents = {f"d{i}": word for i, word in enumerate(WORDS)}
    encode_corpus(InBatches("document"), dataset_of(documents, {}, []), {}, EncodingConfig(), tmp_path)
    assert reported == list(range(1, len(WORDS) + 1))


def test_the_bar_shows_all_documents_of_all_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(tmp_path, {1: 4}, finished=6):
        write_shard(tmp_path, ShardKeys(1, ["a"], ["b"]), WordEncoder().encode(["apple"]), "space")
    assert "10/10" in capsys.readouterr().err


def test_loaded_documents_hold_the_texts_of_their_shard() -> None:
    documents = LoadedDocuments(dataset_of({f"d{n}": word for n, word in enumerate(WORDS)}, {}, []), 3)
    assert (documents.count, documents.texts(2)) == (8, ["grape", "honey"])
    assert documents.keys(0).doc_ids == ["d0", "d1", "d2"]
