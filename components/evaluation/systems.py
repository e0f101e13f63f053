"""The systems a release is measured against, opened from their artifacts."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import (
    Artifact,
    DatasetArtifact,
    EncoderArtifact,
    EvalReport,
    IndexArtifact,
    by_role,
    digest_of,
    is_complete,
    parents_of,
    seal,
    write_atomic,
)
from components.data.dataset import load_dataset
from components.evaluation.bm25 import Bm25Ranker, bm25_as, bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import FUSED, evaluate
from components.evaluation.rankers import DenseRanker, FusedRanker, Ranker, fused_ranker, recorded_ranker, symmetric_ranker
from components.evaluation.report import Bm25Setup, UntrainedSetup
from components.evaluation.summarize import judged_split
from components.evaluation.table import UNTRAINED
from components.index.search import load_index
from components.settings import work_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from components.data.dataset import Dataset
    from components.distillation.config import DistillationConfig
    from components.distillation.student.encoder import StudentEncoder

CUT = "student_cut"
LABELS = {UNTRAINED: "untrained encoder", CUT: "untrained encoder, cut"}
UNTRAINED_MAX_LENGTH = 512  # tokens of a text; an encoder that was published with more is bounded, for its cost grows with them


@dataclass(frozen=True)
class EvaluationInputs:
    """What an evaluation measures. `earlier`: one on the same data with the same untrained encoders, whose rankings are taken over."""

    dataset: DatasetArtifact
    query_tower: EncoderArtifact
    query_encoder: EncoderArtifact
    index: IndexArtifact
    earlier: Artifact | None = None


def evaluate_release(inputs: EvaluationInputs, distillation: DistillationConfig, config: EvaluationConfig, folder: Path) -> EvalReport:
    """The step evaluate: measure BM25, the untrained encoders, teacher, student and the student fused with BM25 on one split, and the speed
    of the last three.

    `distillation` names the student's encoder before training. Raises as `judged_split` and what opens the parts do.
    """
    from components.distillation.student import load_student
    from components.towers.encoder import open_tower

    dataset = load_dataset(inputs.dataset.path)
    systems = _baselines(inputs, dataset, distillation, config)
    tower, encoder = open_tower(inputs.query_tower.path), load_student(inputs.query_encoder.path)
    index = load_index(inputs.index.path, encoder.space_id, inputs.index.digest)
    teacher, student = DenseRanker(tower, index, "teacher: queries"), DenseRanker(encoder, index, "student: queries")
    absent = {} if (reason := _unmeasured(teacher, dataset, config)) is None else {"teacher": reason}
    systems |= {"student": student} if absent else {"teacher": teacher, "student": student}
    systems |= {FUSED: _fused(student, systems["bm25"], dataset, config)} if config.fusion else {}
    return evaluate(systems, dataset, config, folder, parents_of(by_role(inputs)), absent)


def _fused(student: DenseRanker, bm25: Ranker, dataset: Dataset, config: EvaluationConfig) -> FusedRanker:
    """A BM25 whose rankings were taken over knows the judged queries alone, and how it is fused is chosen on others: it is read again."""
    setup = getattr(bm25, "setup", None)
    live = bm25 if isinstance(bm25, Bm25Ranker) or not isinstance(setup, Bm25Setup) else bm25_as(dataset, setup)
    return fused_ranker(student, live, dataset, config.depth)


def _unmeasured(teacher: DenseRanker, dataset: Dataset, config: EvaluationConfig) -> str | None:
    """Why a teacher of stored vectors cannot be measured; None when it can."""
    from components.towers.trained.stored import TextVectors

    if not isinstance(teacher.encoder, TextVectors):
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


def untrained_systems(distillation: DistillationConfig) -> dict[str, DistillationConfig]:
    """The untrained encoders that a student is held against, by their names in the report.

    `student_untrained` is the student's encoder as its makers published it, `student_cut` the same in the student's form, where that is
    another: with fewer layers, another pooling, or static. A student that is cut from the teacher has no published encoder, so its
    `student_untrained` is what is cut.
    """
    from components.distillation.student import as_published, as_trained

    own = as_trained(distillation)
    if own.student == "teacher":
        return {UNTRAINED: own}
    published = as_published(own)
    return {UNTRAINED: published, **({CUT: own} if own != published else {})}


def _baselines(inputs: EvaluationInputs, dataset: Dataset, distillation: DistillationConfig, config: EvaluationConfig) -> dict[str, Ranker]:
    """BM25 and the untrained encoders: as the earlier evaluation ranked them, else made anew, which reads every document."""

    def recorded(name: str) -> Ranker | None:
        return recorded_ranker(inputs.earlier.path, name, dataset, config) if inputs.earlier else None

    systems: dict[str, Ranker] = {"bm25": recorded("bm25") or bm25_ranker(dataset, config.bm25_stemmer)}
    for name in untrained_systems(distillation) if config.untrained_student else ():
        systems[name] = recorded(name) or untrained_ranker(dataset, distillation, inputs.query_tower.path, name, kept=True)
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


def open_system(name: str, inputs: Mapping[str, Artifact], distillation: DistillationConfig, bm25_stemmer: str) -> Ranker:
    """One of bm25, student_untrained, student_cut, teacher, student. `inputs`: those of EvaluationInputs that it needs, by name."""
    if name == "bm25":
        return open_bm25(inputs["dataset"], bm25_stemmer)
    if name in LABELS:
        return open_untrained(inputs["dataset"], distillation, inputs["query_tower"].path, name)
    return open_dense(inputs["query_tower" if name == "teacher" else "query_encoder"], inputs["index"])


def open_bm25(dataset: Artifact, stemmer: str) -> Bm25Ranker:
    """BM25 over the documents of a data set."""
    return bm25_ranker(load_dataset(dataset), stemmer)


def open_untrained(dataset: Artifact, distillation: DistillationConfig, query_tower: Path | None, name: str) -> DenseRanker:
    """`untrained_ranker` over the documents of a data set."""
    return untrained_ranker(load_dataset(dataset), distillation, query_tower, name)


def untrained_ranker(
    dataset: Dataset,
    distillation: DistillationConfig,
    query_tower: Path | None,
    name: str = UNTRAINED,
    kept: bool = False,
    progress: bool = True,
) -> DenseRanker:
    """One of `untrained_systems` with its prompts by role; `query_tower` is needed for the student `teacher`.

    With `kept` the documents' vectors are taken from the working folder, or kept there: encoding them takes minutes on a slow machine,
    and no training changes them.
    """
    from components.distillation.student import untrained_roles

    config, label = untrained_systems(distillation)[name], LABELS[name] if progress else None
    texts = [*dataset.document_texts(), *dataset.queries["text"]]
    query, document = untrained_roles(config, texts, query_tower, UNTRAINED_MAX_LENGTH)
    vectors = _kept_vectors(document, dataset, config, label) if kept else _document_vectors(document, dataset, label)
    ranker = symmetric_ranker(query, dataset, label, vectors)
    return replace(ranker, setup=_setup(query, document, published=name == UNTRAINED and config.student != "teacher"))


def _setup(query: StudentEncoder, document: StudentEncoder, published: bool) -> UntrainedSetup:
    contract = query.contract
    return UntrainedSetup(
        encoder=contract.base_model,
        published=published,
        layers=query.layer_count,
        pooling=contract.pooling,
        query_prompt=contract.prompt,
        document_prompt=document.contract.prompt,
        max_length=contract.max_length,
    )


def _document_vectors(encoder: StudentEncoder, dataset: Dataset, label: str | None) -> NDArray[np.float32]:
    return encoder.encode(dataset.document_texts(), progress=None if label is None else f"{label}: documents")


def _kept_vectors(encoder: StudentEncoder, dataset: Dataset, config: DistillationConfig, label: str | None) -> NDArray[np.float32]:
    """Vectors of all documents, float32 (documents, dimension), by the digest of what they follow from; unreadable ones are made anew."""
    import numpy as np
    import torch
    import transformers

    identity = {
        "encoder": encoder.contract.model_dump(),
        "cut": config.model_dump(include={"student", "form", "layers"}),
        "documents": dataset.document_texts(),
        "computed_with": [str(next(encoder.model.parameters()).dtype), encoder.device.type, torch.__version__, transformers.__version__],
        **({"rotary": rotary} if (rotary := sorted({str(b.dtype) for n, b in encoder.model.named_buffers() if "inv_freq" in n})) else {}),
    }
    folder = work_folder() / "untrained_vectors" / digest_of(identity)[:24]
    path = folder / "vectors.npy"
    if is_complete(folder):
        return np.load(path, allow_pickle=False)
    vectors = _document_vectors(encoder, dataset, label)
    held = io.BytesIO()
    np.save(held, vectors)
    write_atomic(path, held.getvalue())
    seal(folder, "untrained_vectors", counts={"documents": len(vectors)})
    return vectors
