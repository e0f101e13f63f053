"""The student before its training: what can be known of it before the towers, its form, and a head fitted in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder, new_head, ridge
from components.distillation.student.transformer import (
    TEACHER,
    Source,
    at_most_positions,
    bare_student,
    choose_layers,
    published_length,
    published_prompts,
)
from components.errors import ModelError
from components.towers.base_models import load_config, resolve_base, tower_base
from components.towers.config import WITHOUT_WEIGHTS, TowerConfig
from components.towers.contract import Role, load_contract
from components.towers.device import autocast, pick_dtype
from components.towers.model_size import count_layers, require_positions
from components.towers.trained.endpoint import endpoint_width
from components.towers.trained.published import head_width
from components.towers.trained.vector_files import stored_width


class Shape(NamedTuple):
    """A model's size: layers, and width of its vectors."""

    layers: int
    width: int


def check_before_towers(config: DistillationConfig, towers: TowerConfig) -> None:
    """Refuse a student that cannot be made, before the towers are trained; raises ModelError."""
    teacher, shape = None, None
    if towers.base_model not in WITHOUT_WEIGHTS:
        shape = shape_of(towers.base_model, towers.revision, towers.trust_remote_code)
        teacher = tower_base(towers, ["any text"])
        require_positions(teacher, towers.max_document_length, "towers.max_document_length")
        require_positions(teacher, towers.max_query_length, "towers.max_query_length")
    elif config.student == TEACHER:
        raise ModelError(f"distillation.student is teacher, but the teacher '{towers.base_model}' has no layers here. Name an encoder.")
    if config.form != "static":
        student = teacher if config.student == TEACHER else resolve_base(config.student, ["any text"], config.revision)
        assert student is not None
        require_positions(student, config.max_query_length, "distillation.max_query_length")
    _check(config, width_of(towers), shape)


def width_of(towers: TowerConfig) -> int:
    """Dimensions of the teacher's vectors, known before anything is trained; raises ModelError for an unknown model."""
    if towers.dimension is not None:
        return towers.dimension
    if towers.vectors is not None:
        return stored_width(Path(towers.vectors).expanduser())
    if towers.base_model == "endpoint":
        return endpoint_width(towers.endpoint)
    return head_width(towers) or shape_of(towers.base_model, towers.revision, towers.trust_remote_code).width


def check_student(config: DistillationConfig, index_dimension: int, query_tower_folder: Path | None) -> None:
    """Refuse a student that cannot be made for an index of `index_dimension`, before it is trained; raises ModelError.

    Layers that do not exist, a pruning that takes nothing away, an encoder wider than the index, `student: teacher` without a tower.
    """
    tower = None
    if config.student == TEACHER:
        if query_tower_folder is None:
            raise ModelError("distillation.student is teacher, but no query tower was given; train the towers first.")
        contract = load_contract(query_tower_folder)[0]
        if contract.base_model in WITHOUT_WEIGHTS:
            raise ModelError(f"distillation.student is teacher, but the teacher '{contract.base_model}' has no layers here.")
        tower = shape_of(contract.base_model, contract.base_revision, contract.base_code is not None)
    _check(config, index_dimension, tower)


@cache  # finding a model hashes its files, and a study asks for every student
def shape_of(name: str, revision: str | None = None, code: bool = False) -> Shape:
    """Layers and width of the base model `name`, from its configuration alone."""
    # The models built here are built from texts; their size does not depend on which.
    width = getattr(load_config(resolve_base(name, ["any text"], revision, code)), "hidden_size", None)
    if not isinstance(width, int):
        raise ModelError(f"The configuration of '{name}' does not say how wide its vectors are; name another model.")
    return Shape(count_layers(name, revision, code), width)


def _check(config: DistillationConfig, dimension: int, tower: Shape | None) -> None:
    shape = tower if config.student == TEACHER and tower else shape_of(config.student, config.revision)
    if config.student != TEACHER and shape.width > dimension:
        raise ModelError(
            f"The student '{config.student}' is {shape.width} wide, the index {dimension}: a student must not be wider than its index. "
            "Take a narrower student, or raise towers.dimension."
        )
    if config.form == "static":
        return
    kept = len(choose_layers(config.layers, shape.layers, config.student))
    if config.prune_to and config.prune_to[0] >= kept:
        raise ModelError(
            f"distillation.prune_to begins with {config.prune_to[0]}, but the student has {kept} layers; prune to 1 to {kept - 1}."
        )
    if config.prune_to and config.prune_to[-1] < 1:
        raise ModelError(f"distillation.prune_to ends with {config.prune_to[-1]}; a student needs at least one layer.")


# --- The student before its training: its form, and a head fitted to the teacher in closed form.


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
