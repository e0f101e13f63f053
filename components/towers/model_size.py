"""How large a base model is, without loading it."""

from __future__ import annotations

from components.towers.base_models import BaseModel, load_config, resolve_base
from components.towers.layers import configured_layers, keep_layers


def count_layers(name: str, revision: str | None = None) -> int:
    """Layers of the base model `name`; raises ModelError when it cannot be found or its configuration does not say."""
    # The models built here are built from texts; their number of layers does not depend on which.
    base = resolve_base(name, ["any text"], revision)
    return len(base.layers) if base.layers is not None else configured_layers(load_config(base), base.name)


def non_embedding_parameters(base: BaseModel) -> int:
    """Parameters of the decoder without its token embeddings, which a scaling law leaves out (Kaplan et al. 2020).

    Counted on a model without memory, so that sizes are known before anything is loaded.
    """
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(load_config(base))
    if base.layers is not None:
        keep_layers(model, base.layers, base.name)
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
