"""The systems a release is measured against, opened from their artifacts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import Artifact, EvalReport, digest_of, is_complete, seal, write_atomic
from components.data.dataset import load_dataset
from components.evaluation.baselines import bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import DenseRanker, Ranker, symmetric_ranker
from components.evaluation.recorded import recorded_ranker
from components.evaluation.summarize import judged_split
from components.index.search import load_index
from components.settings import work_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from components.data.dataset import Dataset
    from components.distillation.config import DistillationConfig
    from components.distillation.student_encoder import StudentEncoder

UNTRAINED_LABEL = "untrained student"
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
    teacher, student = _teacher_and_student(inputs)
    absent = {} if (reason := _unmeasured(teacher, dataset, config)) is None else {"teacher": reason}
    systems |= {"student": student} if absent else {"teacher": teacher, "student": student}
    return evaluate(systems, dataset, config, folder, {role: artifact.digest for role, artifact in inputs.items()}, absent)


def _unmeasured(teacher: DenseRanker, dataset: Dataset, config: EvaluationConfig) -> str | None:
    """Why a teacher of stored vectors cannot be measured; None when it can."""
    from components.towers.stored import StoredVectors

    if not isinstance(teacher.encoder, StoredVectors):
        return None
    splits = (config.split, *config.extra_splits)
    asked = {text for split in splits for text in judged_split(dataset, split).texts}
    missing = len(asked) - sum(teacher.encoder.knows(asked))
    if not missing:
        return None
    return (
        f"The teacher is stored vectors, and {missing:,} of {len(asked):,} judged queries ({', '.join(splits)}) have none, so it cannot be "
        "measured. Add the vectors of these queries, which the model that made the others gives."
    )


def _baselines(
    inputs: Mapping[str, Artifact], dataset: Dataset, distillation: DistillationConfig, config: EvaluationConfig
) -> dict[str, Ranker]:
    """BM25 and the untrained student: as the earlier evaluation ranked them, else made anew, which reads every document."""

    def recorded(name: str) -> Ranker | None:
        return recorded_ranker(inputs["earlier"].path, name, dataset, config) if "earlier" in inputs else None

    systems: dict[str, Ranker] = {"bm25": recorded("bm25") or bm25_ranker(dataset)}
    if config.untrained_student:
        made = recorded("student_untrained") or untrained_ranker(dataset, distillation, inputs["query_tower"].path, kept=True)
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
    from components.towers.encoder import open_tower

    teacher, student = open_tower(inputs["query_tower"].path), load_student(inputs["query_encoder"].path)
    index = load_index(inputs["index"].path, student.space_id, inputs["index"].digest)
    return DenseRanker(teacher, index, "teacher: queries"), DenseRanker(student, index, "student: queries")


def untrained_ranker(
    dataset: Dataset, distillation: DistillationConfig, query_tower: Path | None, kept: bool = False, label: str | None = UNTRAINED_LABEL
) -> DenseRanker:
    """The student's encoder before training, for queries and documents alike; `query_tower` is needed for the student `teacher`.

    With `kept` the documents' vectors are taken from the working folder, or kept there: encoding them takes minutes on a slow machine,
    and no training changes them.
    """
    from components.distillation.student import untrained_student

    texts = [*dataset.document_texts(), *dataset.queries["text"]]
    encoder = untrained_student(distillation, texts, query_tower, UNTRAINED_MAX_LENGTH)
    vectors = _kept_vectors(encoder, dataset, distillation, label) if kept else None
    return symmetric_ranker(encoder, dataset, label, vectors)


def _kept_vectors(encoder: StudentEncoder, dataset: Dataset, distillation: DistillationConfig, label: str | None) -> NDArray[np.float32]:
    """Vectors of all documents, float32 (documents, dimension), by the digest of what they follow from; unreadable ones are made anew."""
    import numpy as np
    import torch
    import transformers

    identity = {
        "encoder": encoder.contract.model_dump(),
        "cut": distillation.model_dump(include={"student", "form", "layers"}),
        "documents": dataset.document_texts(),
        "computed_with": [str(next(encoder.model.parameters()).dtype), encoder.device.type, torch.__version__, transformers.__version__],
    }
    folder = work_folder() / "untrained_vectors" / digest_of(identity)[:24]
    path = folder / "vectors.npy"
    if is_complete(folder):
        return np.load(path, allow_pickle=False)
    vectors = encoder.encode(dataset.document_texts(), progress=None if label is None else f"{label}: documents")
    held = io.BytesIO()
    np.save(held, vectors)
    write_atomic(path, held.getvalue())
    seal(folder, "untrained_vectors", counts={"documents": len(vectors)})
    return vectors
