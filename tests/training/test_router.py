"""A release as one package of sentence-transformers: both routes give the release's own vectors, and no other answer is given."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.distillation.config import DistillationConfig
from components.distillation.router import export_router, require_new
from components.distillation.saved import load_student, save_student
from components.distillation.student import new_student
from components.errors import ArtifactError, ModelError
from components.towers.config import TowerConfig
from components.towers.contract import save_contract
from components.towers.encoder import load_tower
from components.towers.published import with_own_settings
from components.towers.stored import BASE
from components.towers.train import train_towers
from tests.published_world import FORMS
from tests.training.tiny_world import documents, pairs, queries

TEXTS = [documents()[0], " ".join(documents()), "x", "Kidney  stone, é"]


def student_of(dimension: int, folder: Path, **changes: Any) -> Path:
    """A saved student whose vectors have `dimension` dimensions."""
    config = DistillationConfig(student="tiny-encoder", precision="float32", max_query_length=16, **changes)
    wanted = np.random.default_rng(0).standard_normal((len(queries()), dimension)).astype(np.float32)
    student = new_student(queries(), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), "space", config, None)
    contract = save_student(student, folder)
    save_contract(folder, contract, "space")
    return folder


def towers_in(folder: Path, **settings: Any) -> Path:
    """The document tower of a teacher that was made in `folder`."""
    given = {"precision": "float32", "max_query_length": 16, "max_document_length": 24, **settings}
    train_towers(pairs(), with_own_settings(TowerConfig(**given)), {}, folder)
    return folder / "document_tower"


def opened(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["embeddinggemma", "qwen3-embedding", "bge"])
def test_the_package_gives_the_vectors_of_student_and_published_tower(name: str, tmp_path: Path, home: Path) -> None:
    model = FORMS[name].write([*documents(), *queries()], tmp_path / "model")
    tower = towers_in(tmp_path / "towers", base_model=str(model), training="none")
    student = student_of(32, tmp_path / "student", head="two_layer", head_width=40)
    found = export_router(student, tower, tmp_path / "package")
    assert set(found) == {"query", "document"} and max(found.values()) < 1e-4
    package = opened(tmp_path / "package")
    assert np.abs(package.encode_query(TEXTS) - load_student(student, "float32").encode(TEXTS)).max() < 1e-4
    assert np.abs(package.encode_document(TEXTS) - load_tower(tower, "float32").encode(TEXTS)).max() < 1e-4
    with pytest.raises(ValueError, match="Could not determine route"):
        package.encode(TEXTS)


@pytest.mark.parametrize("settings", [{}, {"matryoshka": (64,), "dimension": 64}])
def test_a_trained_tower_travels_with_its_adapter_and_end_token(settings: dict[str, Any], tmp_path: Path, home: Path) -> None:
    trained = {"steps": 2, "batch_size": 4, "chunk_size": 4, "lora_rank": 2, "max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    tower = towers_in(tmp_path / "towers", base_model="tiny-decoder", learning_rate=0.05, **trained, **settings)
    dimension = load_tower(tower).contract.dimension
    found = export_router(student_of(dimension, tmp_path / "student", form="static"), tower, tmp_path / "package")
    assert max(found.values()) < 1e-4
    vectors = opened(tmp_path / "package").encode_document(TEXTS)
    assert np.abs(vectors - load_tower(tower, "float32").encode(TEXTS)).max() < 1e-4


def test_a_package_that_answers_otherwise_is_not_left_behind(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FORMS["bge"].write([*documents(), *queries()], tmp_path / "model")
    tower = towers_in(tmp_path / "towers", base_model=str(model), training="none")
    monkeypatch.setattr("components.distillation.router.TOLERANCE", -1.0)
    with pytest.raises(ModelError, match=r"would give other vectors for a query than the release .* none was left"):
        export_router(student_of(32, tmp_path / "student"), tower, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_decoder_that_attends_in_both_directions_is_written_alike_or_not_at_all(tmp_path: Path, home: Path) -> None:
    trained = {"steps": 1, "batch_size": 4, "chunk_size": 4, "lora_rank": 2, "max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    tower = towers_in(tmp_path / "towers", base_model="tiny-decoder", attention="bidirectional", pooling="mean", **trained)
    student = student_of(load_tower(tower).contract.dimension, tmp_path / "student")
    with suppress(ModelError):
        export_router(student, tower, tmp_path / "package")
    if (tmp_path / "package").exists():
        assert np.abs(opened(tmp_path / "package").encode_document(TEXTS) - load_tower(tower, "float32").encode(TEXTS)).max() < 1e-4


def test_without_a_document_tower_queries_alone_are_encoded(tmp_path: Path, home: Path) -> None:
    student = student_of(16, tmp_path / "student")
    contract = load_student(student).contract.model_copy(update={"role": "document", "base_model": BASE, "form": "vectors"})
    save_contract(tmp_path / "tower", contract, "space")
    assert set(export_router(student, tmp_path / "tower", tmp_path / "package")) == {"query"}
    package = opened(tmp_path / "package")
    assert package.encode_query(TEXTS).shape == (4, 16)
    with pytest.raises(ValueError, match="No route found for task type 'document'"):
        package.encode_document(TEXTS)


def test_a_folder_that_is_used_is_refused(tmp_path: Path) -> None:
    require_new(tmp_path / "new")
    (tmp_path / "old").mkdir()
    require_new(tmp_path / "old")
    (tmp_path / "old" / "file").touch()
    for folder in ("old", "old/file"):
        with pytest.raises(ArtifactError, match="there already and not empty"):
            require_new(tmp_path / folder)
