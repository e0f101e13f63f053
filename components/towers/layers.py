"""Smaller models out of a larger one: a decoder with some of its layers left out, and how large a model is.

A cut model is named `<base>@<layers>`: `gemma3-270m@6` keeps the first three and the last three layers. First and last layers, since
those next to the token embeddings and next to the output carry what those in the middle only refine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.errors import ModelError

if TYPE_CHECKING:
    from components.towers.base_models import BaseModel


def first_and_last(total: int, count: int) -> tuple[int, ...]:
    """Numbers of `count` of `total` layers: half of them the first (one more when odd), half the last."""
    first = (count + 1) // 2
    return (*range(first), *range(total - (count - first), total))


def layer_count(location: str, name: str) -> int:
    """Number of layers that the configuration at `location` states; raises ModelError when it states none."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(location).get_text_config()
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise ModelError(f"'{name}' does not say how many layers it has (num_hidden_layers), so it cannot be cut. Use the whole model.")
    return layers


def keep_layers(model: Any, kept: Sequence[int], name: str) -> None:
    """Leave the layers numbered `kept` in a decoder, in this order; raises ModelError for a model without a list of layers."""
    from torch.nn import ModuleList

    text = model.config.get_text_config()  # a model that also sees pictures has layers for those, too
    stacks = (m for m in model.modules() if isinstance(getattr(m, "layers", None), ModuleList))
    decoder = next((m for m in stacks if len(m.layers) == text.num_hidden_layers and m.config.get_text_config() is text), None)
    if decoder is None:
        raise ModelError(f"'{name}' has no list of decoder layers, so it cannot be cut. Use the whole model.")
    decoder.layers = ModuleList([decoder.layers[i] for i in kept])
    for number, layer in enumerate(decoder.layers):
        # Caches address a layer by this number.
        if hasattr(getattr(layer, "self_attn", None), "layer_idx"):
            layer.self_attn.layer_idx = number
    # The kinds of attention (Gemma 3 changes between local and global) belong to the layers and are looked up by position.
    if getattr(text, "layer_types", None):
        text.layer_types = [text.layer_types[i] for i in kept]
    text.num_hidden_layers = len(kept)


def non_embedding_parameters(base: BaseModel) -> int:
    """Parameters of the decoder without its token embeddings, which a scaling law leaves out (Kaplan et al. 2020).

    Counted on a model without memory, so that sizes are known before anything is loaded.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(base.location))
    if base.layers is not None:
        keep_layers(model, base.layers, base.name)
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
