"""What can be known of a student before anything is trained: its layers, its width, and the prunings asked of it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from components.distillation.config import DistillationConfig
from components.distillation.student.layers import choose_layers
from components.distillation.student.transformer import TEACHER
from components.errors import ModelError
from components.towers.base_models import load_config, resolve_base, tower_base
from components.towers.config import WITHOUT_WEIGHTS, TowerConfig
from components.towers.contract import load_contract
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
