"""How many layers a base model has, without loading it."""

from __future__ import annotations

from components.towers.base_models import resolve_base
from components.towers.layers import configured_layers


def count_layers(name: str) -> int:
    """Layers of the base model `name`; raises ModelError when it cannot be found or its configuration does not say."""
    # The models built here are built from texts; their number of layers does not depend on which.
    base = resolve_base(name, ["any text"])
    return len(base.layers) if base.layers is not None else configured_layers(base.location, base.name)
