"""The door to the students of stage 2: made, checked, saved and loaded here, whatever their form."""

from __future__ import annotations

from pathlib import Path

from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.initial import (
    as_published,
    as_trained,
    check_before_towers,
    check_student,
    new_student,
    shape_of,
    untrained_roles,
    untrained_student,
    width_of,
)
from components.distillation.student.storage import MODULES, load_student, save_student
from components.towers.contract import TextEncoder
from components.towers.encoder import open_tower

__all__ = [
    "StudentEncoder",
    "as_published",
    "as_trained",
    "check_before_towers",
    "check_student",
    "load_encoder",
    "load_student",
    "new_student",
    "save_student",
    "shape_of",
    "untrained_roles",
    "untrained_student",
    "width_of",
]


def load_encoder(folder: Path) -> TextEncoder:
    """Load whatever encoder lies in `folder`: a student (it has a list of modules) or a tower."""
    return load_student(folder) if (folder / MODULES).is_file() else open_tower(folder)
