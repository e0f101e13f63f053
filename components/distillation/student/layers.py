"""The layers of a transformer that a student takes."""

from __future__ import annotations

from collections.abc import Sequence

from components.errors import ModelError
from components.towers.layers import first_and_last


def choose_layers(layers: Sequence[int] | int | None, total: int, name: str) -> tuple[int, ...]:
    """The layer numbers that the setting `layers` asks of a model with `total` layers; raises ModelError for ones it lacks."""
    if layers is None:
        return tuple(range(total))
    if isinstance(layers, int):
        if not 1 <= layers <= total:
            raise ModelError(f"distillation.layers is {layers}, but '{name}' has {total} layers; ask for 1 to {total}.")
        return first_and_last(layers, total)
    if not layers or any(not 0 <= i < total for i in layers) or len(set(layers)) < len(layers):
        raise ModelError(f"distillation.layers is {list(layers)}, but '{name}' has the layers 0 to {total - 1}, each to be taken once.")
    return tuple(layers)
