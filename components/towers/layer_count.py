"""How many layers a base model has, without loading it."""

from __future__ import annotations

from components.errors import ModelError
from components.towers.base_models import resolve_base


def count_layers(name: str) -> int:
    """Layers of the base model `name`; raises ModelError when it cannot be found or its configuration does not say."""
    from transformers import AutoConfig

    # The tiny models are built from texts; their number of layers does not depend on which.
    config = AutoConfig.from_pretrained(resolve_base(name, ["any text"]).location)
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise ModelError(f"The configuration of '{name}' does not say how many layers it has; name another encoder.")
    return layers
