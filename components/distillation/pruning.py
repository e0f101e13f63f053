"""Pruning step by step: a student loses its middle layers and is aligned again before it loses the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.errors import ModelError
from components.towers.layers import first_and_last, keep_layers

if TYPE_CHECKING:
    from components.distillation.student.encoder import StudentEncoder


def prune(student: StudentEncoder, count: int) -> None:
    """Keep `count` layers of those the student has, in place: the first half, rounded up, and the last half.

    The parameters that are left are the same tensors as before, but an optimiser has to be made anew. Raises ModelError when the
    student has not more than `count` layers, or none at all.
    """
    total = student.layer_count
    if not 1 <= count < total:
        raise ModelError(f"distillation.prune_to asks for {count} layers, but the student has {total}; ask for 1 to {total - 1}.")
    keep_layers(student.model, first_and_last(count, total), student.contract.base_model)
