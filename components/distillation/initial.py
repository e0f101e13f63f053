"""The student before its training: its form, and a head fitted to the teacher in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.forms import Source, at_most_positions, bare_student
from components.distillation.heads import new_head, ridge
from components.distillation.student_encoder import StudentEncoder
from components.towers.precision import autocast, pick_dtype

FIT_TEXTS = 8192  # texts that the head is fitted on, several for each row of its map


def new_student(
    texts: Sequence[str], teacher_vectors: NDArray[np.float32], space_id: str, config: DistillationConfig, teacher_folder: Path | None
) -> StudentEncoder:
    """A student for the space of the teacher's vectors (len(texts), dimension); `teacher_folder` is the query tower's.

    The head starts at the closed-form optimum of a linear one; started from a random map, several epochs go by to find it. Raises
    ModelError for an unusable encoder.
    """
    import torch

    torch.manual_seed(config.seed)
    student = bare_student(Source(config, texts, teacher_folder))
    sample = np.random.default_rng(0).permutation(len(texts))[:FIT_TEXTS]
    with autocast(student.device, pick_dtype(config.precision)):
        features = torch.from_numpy(student.features([texts[i] for i in sample], progress="fit the head"))
    head = new_head(ridge(features, torch.from_numpy(teacher_vectors[sample])), features, config)
    contract = student.contract.model_copy(update={"dimension": teacher_vectors.shape[1]})
    return StudentEncoder(student.model, student.tokenizer, head, contract, space_id)


def untrained_student(config: DistillationConfig, texts: Sequence[str], teacher_folder: Path | None, max_length: int) -> StudentEncoder:
    """The student's encoder as it was before training: no head, a space of its own; `texts` as in `new_student`."""
    wanted = config.model_copy(update={"max_query_length": max_length})
    student = bare_student(Source(wanted, texts, teacher_folder))
    # It also encodes documents, which may be longer than what it has positions for.
    student.contract = student.contract.model_copy(update={"max_length": at_most_positions(student, max_length)})
    student.model.to(pick_dtype("auto"))
    return student
