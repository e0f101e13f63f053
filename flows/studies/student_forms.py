"""The students that the studies compare: the encoder cut to several numbers of layers, and the static one."""

from __future__ import annotations

from typing import Any

from components.errors import ConfigError
from flows.studies.config import StudySettings
from flows.studies.context import Context

TEACHER, STATIC = "teacher", "static"


def student_forms(context: Context) -> dict[str, StudySettings]:
    """Name -> configuration of each student wanted; numbers of layers that the encoder does not have are left out.

    Raises ConfigError for a wrong name in --cells, for one that the encoder does not have, and when nothing is left.
    """
    study = context.config.study
    wanted = context.chosen([*(_name(count) for count in study.layers), *([STATIC] if study.static else [])])
    forms = fields_of(context.config)
    found = [name for name in wanted if name in forms]
    if not found:
        has = layers_of(context.config)
        raise ConfigError(f"study.layers is {list(study.layers)}, but '{context.config.distillation.student}' has {has} layers.")
    students = {name: context.changed(distillation={**forms[name], "prune_to": ()}) for name in found}
    for config in students.values():
        context.check(config)
    return students


def fields_of(config: StudySettings) -> dict[str, dict[str, Any]]:
    """Name of each student that the encoder can be cut to -> the fields of the section distillation that make it."""
    layers = layers_of(config)
    forms = {_name(count): _cut(count, layers) for count in config.study.layers if count <= layers}
    return forms | ({STATIC: {"form": "static", "layers": None, "pooling": None}} if config.study.static else {})


def layers_left_out(config: StudySettings) -> list[int]:
    """Those of study.layers that the encoder does not have."""
    layers = layers_of(config)
    return [count for count in config.study.layers if count > layers]


def layers_of(config: StudySettings) -> int:
    """Layers of the student's encoder; of the towers' model for the student `teacher`."""
    from components.towers.model_size import count_layers

    towers, student = config.towers, config.distillation
    return count_layers(*((towers.base_model, towers.revision) if student.student == TEACHER else (student.student, student.revision)))


def _name(count: int) -> str:
    return f"layers-{count}"


def _cut(count: int, layers: int) -> dict[str, Any]:
    return {"form": "transformer", "layers": None if count == layers else count}
