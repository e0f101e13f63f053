"""The student before its training: its form, and a head fitted to the teacher in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.heads import new_head, ridge
from components.distillation.student.transformer import (
    TEACHER,
    Source,
    at_most_positions,
    bare_student,
    published_length,
    published_prompts,
)
from components.towers.base_models import resolve_base
from components.towers.contract import Role
from components.towers.device import autocast, pick_dtype

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


def as_published(config: DistillationConfig) -> DistillationConfig:
    """The student's encoder as its makers published it: all its layers, its own pooling."""
    return config.model_copy(update={"form": "transformer", "layers": None, "prune_to": (), "pooling": None})


def as_trained(config: DistillationConfig) -> DistillationConfig:
    """The student's encoder in the form that its training ends with."""
    return config.model_copy(update={"layers": config.prune_to[-1] if config.prune_to else config.layers, "prune_to": ()})


def untrained_roles(
    config: DistillationConfig, texts: Sequence[str], teacher_folder: Path | None, most: int
) -> tuple[StudentEncoder, StudentEncoder]:
    """`untrained_student` for queries and for documents, of at most `most` tokens or the length that it was published with.

    Each has the prompt of its role as published; where none is known, `query_prompt` stands before queries and nothing before documents.
    A student that is cut from the teacher has its query tower's prompt in both roles, since that tower knows no other.
    """
    if config.student == TEACHER:
        tower = untrained_student(config, texts, teacher_folder, most)
        return tower, tower
    prompts = role_prompts(config, texts)
    length = min(most, published_length(resolve_base(config.student, texts, config.revision).location) or most)
    query = untrained_student(config.model_copy(update={"query_prompt": prompts["query"]}), texts, teacher_folder, length)
    return query, with_prompt(query, prompts["document"])


def role_prompts(config: DistillationConfig, texts: Sequence[str]) -> dict[Role, str]:
    """The prompts that the student's encoder was published with; where none are known, `query_prompt` for queries alone."""
    return published_prompts(resolve_base(config.student, texts, config.revision)) or {"query": config.query_prompt, "document": ""}


def with_prompt(encoder: StudentEncoder, prompt: str) -> StudentEncoder:
    """The same weights behind another prompt."""
    contract = encoder.contract.model_copy(update={"prompt": prompt})
    return StudentEncoder(encoder.model, encoder.tokenizer, encoder.head, contract, encoder.space_id)
