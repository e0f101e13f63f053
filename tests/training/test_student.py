"""Stage 2 on tiny models: alignment, refinement, resuming, and what is saved."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.artifacts import verify
from components.distillation.config import DistillationConfig
from components.distillation.plan import DevSet, dev_metrics
from components.distillation.student import load_student, untrained_student
from components.distillation.teacher_targets import read_teacher_targets, write_teacher_targets
from components.distillation.train import Distillation, DistillationData, train_student
from components.errors import ArtifactError
from components.towers.contract import check_probes
from tests.training.student_world import WIDTH, word_data
from tests.training.tiny_world import documents, queries

CONFIG = DistillationConfig(
    student="tiny-encoder", epochs=3, refine_epochs=2, batch_size=16, learning_rate=3e-3, refine_learning_rate=1e-3, precision="float32"
)


@pytest.fixture
def data() -> DistillationData:
    return word_data()


def test_dev_metrics_are_those_worked_out_by_hand() -> None:
    found = [["a", "b", "c"], ["x", "y", "z"]]
    dev = DevSet(["q1", "q2"], [frozenset(["b"]), frozenset(["x", "w"])], lambda vectors, k: found)
    metrics = dev_metrics(np.zeros((2, 2), np.float32), dev)
    assert metrics["recall@50"] == pytest.approx((1 + 0.5) / 2)
    first, second = 1 / np.log2(3), 1 / (1 + 1 / np.log2(3))
    assert metrics["ndcg@10"] == pytest.approx((first + second) / 2)


def test_a_fitted_projection_is_closer_to_the_teacher_than_a_random_one(home: Path, data: DistillationData) -> None:
    student = Distillation(data, CONFIG, home).student
    fitted = student.encode(data.texts)
    student.head[0].weight.data.normal_()  # type: ignore[index]
    random = student.encode(data.texts)
    assert (fitted * data.teacher).sum(1).mean() > 0.5 > (random * data.teacher).sum(1).mean()


def test_training_brings_the_student_to_the_teacher_and_saves_all_of_it(home: Path, data: DistillationData, tmp_path: Path) -> None:
    before = dev_metrics(Distillation(data, CONFIG, tmp_path / "none").student.encode(data.dev.queries), data.dev)
    folder = tmp_path / "student"
    folder.mkdir()
    artifact = train_student(data, CONFIG, {"targets": "t"}, folder)
    student = load_student(folder, precision="float32")
    after = dev_metrics(student.encode(data.dev.queries), data.dev)
    assert after["score"] > before["score"]
    assert (student.encode(data.texts) * data.teacher).sum(1).mean() > 0.5  # the refinement leaves the teacher on purpose
    assert (artifact.space_id, student.space_id, student.contract.dimension) == ("space", "space", WIDTH)
    assert check_probes(student, folder, 1e-3) < 1e-3
    verify(folder)


def test_alignment_alone_stays_with_the_teacher(home: Path, data: DistillationData, tmp_path: Path) -> None:
    train_student(data, CONFIG.model_copy(update={"refine_epochs": 0}), {}, tmp_path)
    assert (load_student(tmp_path, precision="float32").encode(data.texts) * data.teacher).sum(1).mean() > 0.8


def test_sentence_transformers_gives_the_same_vectors(home: Path, data: DistillationData, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    train_student(data, CONFIG.model_copy(update={"query_prompt": "find: ", "epochs": 1, "refine_epochs": 0}), {}, tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu").encode_query(queries())
    ours = load_student(tmp_path, precision="float32").encode(queries())
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


def test_a_killed_distillation_gives_the_student_of_a_straight_one(
    home: Path, data: DistillationData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    train_student(data, CONFIG, {}, straight)
    calls = {"left": 3}

    def search(vectors: np.ndarray, k: int) -> object:
        calls["left"] -= 1
        if calls["left"] < 0:
            raise KeyboardInterrupt
        return data.dev.search(vectors, k)

    with pytest.raises(KeyboardInterrupt):
        train_student(replace(data, dev=replace(data.dev, search=search)), CONFIG, {}, killed)  # type: ignore[arg-type]
    train_student(data, CONFIG, {}, killed)
    ours = load_student(killed, "float32").encode(queries())
    np.testing.assert_allclose(ours, load_student(straight, "float32").encode(queries()), atol=1e-5)


def test_changed_weights_are_refused(home: Path, data: DistillationData, tmp_path: Path) -> None:
    train_student(data, CONFIG.model_copy(update={"epochs": 1, "refine_epochs": 0}), {}, tmp_path)
    weights = tmp_path / "2_Dense" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match="not those its contract names"):
        load_student(tmp_path)


def test_a_tiny_model_is_the_same_in_every_process(home: Path) -> None:
    code = "from components.towers.base_models import resolve_base; print(resolve_base('tiny-encoder', ['b a', 'a c', 'c b']).digest)"
    digests = set()
    for number in range(2):
        environment = {**os.environ, "SCALINGNOTE_HOME": str(home / str(number)), "PYTHONHASHSEED": str(number)}
        digests.add(subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True).stdout)
    assert len(digests) == 1


def test_teacher_targets_are_read_back_as_unit_vectors(home: Path, tmp_path: Path) -> None:
    teacher = untrained_student(CONFIG, documents(), None, 32)
    sources = {"train": queries()[:3], "titles": [queries()[0], "another text"]}
    made = write_teacher_targets(teacher, sources, {}, tmp_path)
    texts, vectors = read_teacher_targets(tmp_path)
    assert texts == [*queries()[:3], "another text"]
    assert made.counts == {"queries": 4, "source_train": 3, "source_titles": 1}
    np.testing.assert_allclose(vectors, teacher.encode(texts), atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
