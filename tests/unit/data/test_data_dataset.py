from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.artifacts import seal, verify
from components.data.config import DataConfig
from components.data.dataset import content_hash, document_text, load_dataset, normalise_text
from components.data.snapshot import snapshot
from components.errors import ArtifactError, DataError
from tests.data_world import documents, write_folder, write_lines, write_rows


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    return DataConfig(source=str(write_folder(tmp_path / "data")))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_a_snapshot_is_a_verified_artifact_with_its_counts(config: DataConfig, out: Path) -> None:
    artifact = snapshot(config, out)
    assert verify(out).digest == artifact.digest
    assert artifact.attributes["name"] == "data"
    expected = {"documents": 260, "queries": 260, "train_queries": 120, "dev_queries": 20, "test_queries": 120, "unlabelled": 0}
    assert {name: artifact.counts[name] for name in expected} == expected


def test_the_same_source_gives_the_same_digest_over_leftovers_too(config: DataConfig, out: Path, tmp_path: Path) -> None:
    first = snapshot(config, out).digest
    again = tmp_path / "again"
    again.mkdir()
    (again / "documents.parquet").write_bytes(b"half of a killed attempt")
    assert snapshot(config, again).digest == first


def test_what_is_read_back_is_what_was_written(config: DataConfig, out: Path) -> None:
    artifact = snapshot(config, out)
    dataset = load_dataset(artifact)
    assert dataset.document_texts()[3] == "Entry 3\nWhat entry 3 is about"
    assert dataset.documents["content_hash"].tolist() == [content_hash(text) for text in dataset.document_texts()]
    assert dataset.judgements("dev").columns.tolist() == ["query_id", "doc_id", "score"]
    assert dataset.judged_queries("dev")["query_id"].tolist() == [f"q{n}" for n in range(120, 140)]
    pd.testing.assert_frame_equal(load_dataset(artifact.path).queries, dataset.queries)


def test_a_query_without_a_relevant_document_is_not_a_judged_one(config: DataConfig, out: Path) -> None:
    write_lines(Path(config.source) / "qrels" / "dev.tsv", ["q120\td120\t0", "q121\td121\t2"])
    dataset = load_dataset(snapshot(config, out))
    assert dataset.judged_queries("dev")["query_id"].tolist() == ["q121"]
    assert dataset.judgements("dev")["score"].tolist() == [0, 2]


def test_an_unknown_split_is_named_with_the_known_ones(config: DataConfig, out: Path) -> None:
    with pytest.raises(DataError, match="'valid'; it has: dev, test, train"):
        load_dataset(snapshot(config, out)).judgements("valid")


def test_broken_rows_are_kept_for_the_contracts(config: DataConfig, out: Path) -> None:
    rows = documents()
    rows[0]["text"] = ""
    write_rows(Path(config.source) / "corpus.jsonl", [*rows, rows[1]])
    pd.DataFrame({"query_id": [None, "q1"], "text": ["a", None]}).to_parquet(Path(config.source) / "queries.parquet")
    (Path(config.source) / "queries.jsonl").unlink()
    dataset = load_dataset(snapshot(config, out))
    assert len(dataset.documents) == 261
    assert dataset.document_texts()[0] == "Entry 0"
    assert dataset.queries.isna().sum().to_dict() == {"query_id": 1, "text": 1}


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="kind 'index'; expected a dataset"):
        load_dataset(seal(tmp_path, "index"))


def test_how_texts_are_joined_and_compared() -> None:
    assert document_text("Title", " text ") == "Title\ntext"
    assert document_text("", "text") == "text"
    assert document_text(None, None) == ""
    assert normalise_text("  Kidney-stone,  ACUTE! ") == "kidney stone acute"
    assert normalise_text("ﬁne") == "fine"
    assert normalise_text("C++") != normalise_text("C#")
