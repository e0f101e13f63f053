"""How large a base model is, in layers, parameters and positions, without loading it."""

from __future__ import annotations

from typing import Any

from components.errors import ModelError
from components.towers.base_models import BaseModel, load_config, resolve_base
from components.towers.layers import configured_layers, keep_layers, position_limit


def count_layers(name: str, revision: str | None = None) -> int:
    """Layers of the base model `name`; raises ModelError when it cannot be found or its configuration does not say."""
    # The models built here are built from texts; their number of layers does not depend on which.
    base = resolve_base(name, ["any text"], revision)
    return len(base.layers) if base.layers is not None else configured_layers(load_config(base), base.name)


def require_positions(base: BaseModel, longest: int, setting: str) -> None:
    """Raise ModelError when texts of `longest` tokens, as `setting` allows, are longer than the model has positions for.

    Asked before the training: on a GPU a position that is not there ends the whole process.
    """
    limit = position_limit(model_without_memory(base))
    if limit is not None and longest > limit:
        raise ModelError(f"{setting} is {longest}, but '{base.name}' has positions for {limit} tokens. Set {setting} to {limit} at most.")


def model_without_memory(base: BaseModel) -> Any:
    """The model's modules with all their shapes, and no numbers in them."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(load_config(base), trust_remote_code=False)
    if base.layers is not None:
        keep_layers(model, base.layers, base.name)
    return model


def non_embedding_parameters(base: BaseModel) -> int:
    """Parameters of the decoder without its token embeddings, which a scaling law leaves out (Kaplan et al. 2020).

    Counted on a model without memory, so that sizes are known before anything is loaded.
    """
    model = model_without_memory(base)
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
