"""The systems a release is measured against, opened from their artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import Artifact, EvalReport
from components.data.dataset import load_dataset
from components.evaluation.baselines import bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import DenseRanker, Ranker, symmetric_ranker
from components.evaluation.recorded import recorded_ranker
from components.index.search import load_index

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.distillation.config import DistillationConfig

UNTRAINED_MAX_LENGTH = 256  # tokens; the student's own limit is for queries, and this baseline encodes documents with it too


def evaluate_release(
    inputs: Mapping[str, Artifact], distillation: DistillationConfig, config: EvaluationConfig, folder: Path
) -> EvalReport:
    """Measure BM25, the untrained student, teacher and student on one split, and the speed of the last two.

    `inputs`: dataset, query_tower, query_encoder, index; and `earlier`, an evaluation on the same data with the same untrained encoder,
    whose rankings of the first two systems are taken over. `distillation` names the student's encoder before training.
    """
    dataset = load_dataset(inputs["dataset"].path)
    systems = _baselines(inputs, dataset, distillation, config)
    systems["teacher"], systems["student"] = _teacher_and_student(inputs)
    return evaluate(systems, dataset, config, folder, {role: artifact.digest for role, artifact in inputs.items()})


def _baselines(
    inputs: Mapping[str, Artifact], dataset: Dataset, distillation: DistillationConfig, config: EvaluationConfig
) -> dict[str, Ranker]:
    """BM25 and the untrained student: as the earlier evaluation ranked them, else made anew, which reads every document."""

    def recorded(name: str) -> Ranker | None:
        return recorded_ranker(inputs["earlier"].path, name, dataset, config) if "earlier" in inputs else None

    systems: dict[str, Ranker] = {"bm25": recorded("bm25") or bm25_ranker(dataset)}
    if config.untrained_student:
        made = recorded("student_untrained") or untrained_ranker(dataset, distillation, inputs["query_tower"].path)
        systems["student_untrained"] = made
    return systems


def open_dense(encoder: Artifact, index: Artifact) -> DenseRanker:
    """A tower or a student on an index, both opened from their artifacts."""
    from components.distillation.student import load_encoder

    opened = load_encoder(encoder.path)
    return DenseRanker(opened, load_index(index.path, opened.space_id, index.digest), "queries")


def open_mixed(encoder: Artifact, own: Artifact, foreign: Artifact) -> DenseRanker:
    """A tower or a student on an exact index, in memory, over the data's own documents and foreign ones (both vectors in shards)."""
    import numpy as np

    from components.distillation.student import load_encoder
    from components.index.search import index_in_memory
    from components.index.shards import read_vectors

    opened, mine, others = load_encoder(encoder.path), read_vectors(own), read_vectors(foreign)
    ids = [*mine.doc_ids, *(f"foreign:{doc_id}" for doc_id in others.doc_ids)]
    return DenseRanker(opened, index_in_memory(np.concatenate([mine.vectors, others.vectors]), ids, own.space_id), "queries")


def open_system(name: str, inputs: Mapping[str, Artifact], distillation: DistillationConfig) -> Ranker:
    """One of bm25, student_untrained, teacher, student. `inputs` as for `evaluate_release`, as far as the system needs them."""
    dataset = load_dataset(inputs["dataset"].path)
    if name == "bm25":
        return bm25_ranker(dataset)
    if name == "student_untrained":
        return untrained_ranker(dataset, distillation, inputs["query_tower"].path)
    return open_dense(inputs["query_tower" if name == "teacher" else "query_encoder"], inputs["index"])


def _teacher_and_student(inputs: Mapping[str, Artifact]) -> tuple[DenseRanker, DenseRanker]:
    from components.distillation.student import load_student
    from components.towers.encoder import load_tower

    teacher, student = load_tower(inputs["query_tower"].path), load_student(inputs["query_encoder"].path)
    index = load_index(inputs["index"].path, student.space_id, inputs["index"].digest)
    return DenseRanker(teacher, index, "teacher: queries"), DenseRanker(student, index, "student: queries")


def untrained_ranker(dataset: Dataset, distillation: DistillationConfig, query_tower: Path | None) -> DenseRanker:
    """The student's encoder before training, for queries and documents alike; `query_tower` is needed for the student `teacher`."""
    from components.distillation.student import untrained_student

    texts = [*dataset.document_texts(), *dataset.queries["text"]]
    encoder = untrained_student(distillation, texts, query_tower, UNTRAINED_MAX_LENGTH)
    return symmetric_ranker(encoder, dataset, "untrained student")
