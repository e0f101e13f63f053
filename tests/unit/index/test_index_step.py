"""The step that builds the index: with which queries an approximate index is tuned, and that exact ones need none."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.artifacts import Artifact, DatasetArtifact, VectorShards
from components.data.config import DataConfig
from components.data.snapshot import snapshot
from components.distillation.teacher_targets import held_out_vectors, write_teacher_targets
from components.index.config import EncodingConfig
from components.index.encode import encode_corpus
from components.index.search import load_index
from flows.config import RetrainConfig, load_config
from flows.steps import index_step, needs_queries
from tests.data_world import write_folder
from tests.encoders import WORDS, WordEncoder, dataset_of

APPROXIMATE = {"index.exact_below": 10, "index.recall_at": 5, "index.target_recall": 0.9}


def config(**changes: object) -> RetrainConfig:
    return load_config("smoke", None, dict(changes))


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetArtifact:
    (tmp_path / "snapshot").mkdir()
    return snapshot(DataConfig(source=str(write_folder(tmp_path / "data"))), tmp_path / "snapshot")


@pytest.fixture
def vectors(tmp_path: Path) -> VectorShards:
    texts = {f"d{i:02d}": f"{WORDS[i % 8]} {WORDS[(i // 8) % 8]}" for i in range(64)}
    (tmp_path / "vectors").mkdir()
    return encode_corpus(WordEncoder("document"), dataset_of(texts, {}, []), {}, EncodingConfig(), tmp_path / "vectors")


@pytest.fixture
def targets(tmp_path: Path) -> Artifact:
    (tmp_path / "targets").mkdir()
    return write_teacher_targets(WordEncoder(), {"train": ["figs"]}, {}, tmp_path / "targets", ["apple", "bread cheese", "honey"])


def test_only_an_approximate_index_needs_queries(vectors: VectorShards) -> None:
    assert not needs_queries(config(), vectors)
    assert not needs_queries(config(**{"index.exact_below": 65}), vectors)
    assert needs_queries(config(**APPROXIMATE), vectors)
    assert needs_queries(config(**{"index.index_key": "IVF4,Flat"}), vectors)


def test_it_is_tuned_with_the_dev_queries_of_the_teacher(
    tmp_path: Path, vectors: VectorShards, dataset: DatasetArtifact, targets: Artifact
) -> None:
    step = index_step(config(**APPROXIMATE), vectors, dataset, targets)
    (tmp_path / "index").mkdir()
    artifact = step.make(tmp_path / "index")
    assert {role: part.digest for role, part in step.inputs.items()} == {
        "vectors": vectors.digest,
        "dataset": dataset.digest,
        "targets": targets.digest,
    }
    assert (artifact.attributes["tuned_on"], artifact.attributes["tuning_queries"]) == ("dev queries", 3)
    queries = held_out_vectors(targets.path)
    assert queries is not None and queries.shape == (3, 9)
    found, true = load_index(artifact.path, vectors.space_id), artifact.attributes["ann_recall"]
    assert isinstance(true, float) and true >= 0.9
    assert found.exact(queries, 1)[1] == [["d00"], ["d10"], ["d63"]]


def test_without_targets_documents_stand_in(tmp_path: Path, vectors: VectorShards, dataset: DatasetArtifact) -> None:
    (tmp_path / "index").mkdir()
    artifact = index_step(config(**APPROXIMATE), vectors, dataset).make(tmp_path / "index")
    assert artifact.attributes["tuned_on"] == "documents"


def test_targets_without_dev_queries_have_none(tmp_path: Path) -> None:
    (tmp_path / "targets").mkdir()
    write_teacher_targets(WordEncoder(), {"train": ["figs"]}, {}, tmp_path / "targets")
    assert held_out_vectors(tmp_path / "targets") is None
