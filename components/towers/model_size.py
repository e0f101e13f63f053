"""How large a base model is, in layers, parameters and positions, without loading it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from components.errors import ModelError
from components.towers.base_models import BaseModel, load_config, resolve_base, why_unloadable
from components.towers.transformer import configured_layers, keep_layers, position_limit

if TYPE_CHECKING:
    import torch

    from components.towers.config import TowerConfig

# Bytes that a layer with adapters keeps for a token, for each number of its width, of its inner width, and of its queries and keys side
# by side; by whether its feed-forward part is gated, and by the bytes of a number. Fitted to what autograd saved in layers of the sizes of
# Qwen3 0.6B and 4B, Qwen2.5 0.5B, Llama 3.2 1B and Gemma 3 270M (within 10 %), and of MiniLM. Norms and residuals stay wider than bfloat16.
KEPT = {(True, 2): (28.5, 5.9, 9.3), (True, 4): (32.7, 11.9, 11.7), (False, 2): (14.0, 4.0, 6.0), (False, 4): (16.0, 8.0, 8.0)}


@dataclass(frozen=True)
class Shape:
    """The size of a transformer, from its configuration alone. `gated`: a third map in its feed-forward part, as decoders have.

    `inner`: the inner width that a token passes through; `held`: that of all `experts` of a layer together, 0 in a model without experts.
    `tables`: numbers in the layers' own tables of token embeddings, which Gemma 3n and 4 have. `joined`: upper layers that hold together,
    since some take keys and values that others of them made; 0 where each takes the last one's states alone.
    """

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    gated: bool
    held: int = 0
    experts: int = 1
    tables: int = 0
    joined: int = 0

    @property
    def embeddings(self) -> int:
        """Numbers in the tables of token embeddings."""
        return self.vocabulary * self.width + self.tables

    @property
    def maps(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear maps of a layer; those of its experts side by side."""
        own, keys = self.heads * self.head_width, self.key_heads * self.head_width
        held = self.held or self.inner
        inner = [(self.width, held)] * (2 if self.gated else 1)
        return ((self.width, own), (self.width, keys), (self.width, keys), (own, self.width), *inner, (held, self.width))

    @property
    def parameters(self) -> int:
        """Parameters in all, without biases and norms."""
        return self.embeddings + self.layers * sum(a * b for a, b in self.maps)

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of one adapter of that rank on every linear map; each expert has two of its own, since two of three are fused."""
        of_experts = (2 * self.experts - 3) * self.width if self.held else 0
        return self.layers * rank * (sum(a + b for a, b in self.maps) + of_experts)

    def kept(self, tokens: int, number_bytes: int, recomputed: bool = False, trained: int | None = None) -> int:
        """Bytes of the tensors that a training pass over `tokens` tokens keeps for its backward pass, by `KEPT`.

        `number_bytes`: 2 under autocast to bfloat16, 4 in float32. `recomputed`: the layers are worked out again (see
        `layers.recompute_layers`), so that one of them and the inputs of all are kept. `trained`: layers, counted from the output, below
        which no gradient goes and nothing is kept; None for all.
        """
        maps = self.heads * self.head_width, self.key_heads * self.head_width
        layer = int(tokens * np.dot(KEPT[self.gated, number_bytes], (self.width, self.inner, sum(maps))))
        layers = self.layers if trained is None else min(trained, self.layers)
        return layer + layers * tokens * self.width * number_bytes if recomputed else layers * layer

    def passed_twice(self, trained: int | None) -> float:
        """The share of the layers that a chunk without a graph passes again with one; `trained` as of `kept` (see `LowerStates`)."""
        upper = self.layers if trained is None else min(trained, self.layers)
        return 1.0 if upper < self.joined else upper / max(1, self.layers)

    def passing(self, tokens: int, number_bytes: int) -> int:
        """Bytes of a layer's tensors while `tokens` tokens go through it without a graph."""
        return tokens * number_bytes * (6 * self.width + (3 if self.gated else 2) * self.inner + 2 * self.heads * self.head_width)


# What configurations call the inner width of a feed-forward part (DistilBERT, OPT and XGLM, T5, Falcon, GPT-2), how many experts a layer
# has (Qwen; Mixtral and gpt-oss; DeepSeek and GLM), and encoders whose feed-forward part has a third map.
INNER = ("intermediate_size", "hidden_dim", "ffn_dim", "d_ff", "ffn_hidden_size", "n_inner")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
GATED_ENCODERS = ("modernbert", "nomic_bert")


def shape_of(config: Any, layers: int) -> Shape:
    """The shape that a model's configuration states, with that many layers; AttributeError for one that states none.

    Where no inner width is named it is four times the width, as in the library's classes.
    """
    heads, width = int(config.num_attention_heads), int(config.hidden_size)
    key_heads = stated(config, "num_key_value_heads")
    inner, experts = _first_of(config, INNER) or 4 * width, _first_of(config, EXPERTS)
    of_one = _first_of(config, ("moe_intermediate_size",)) or inner
    shared = of_one * _first_of(config, ("n_shared_experts",)) + _first_of(config, ("shared_expert_intermediate_size",))
    passed = of_one * (_first_of(config, ("num_experts_per_tok",)) or 1) + shared
    return Shape(
        layers=layers,
        width=width,
        inner=passed if experts else inner,
        heads=heads,
        key_heads=int(key_heads or heads),
        head_width=int(stated(config, "head_dim") or width // heads),
        vocabulary=int(config.vocab_size),
        gated=key_heads is not None or config.model_type in GATED_ENCODERS,
        held=of_one * experts + shared if experts else 0,
        experts=experts or 1,
        tables=layers * _first_of(config, ("vocab_size_per_layer_input",)) * _first_of(config, ("hidden_size_per_layer_input",)),
        joined=_joined(config, layers),
    )


def _joined(config: Any, layers: int) -> int:
    """Layers from the output down to the lowest whose keys and values an upper one takes (Gemma 3n and 4); 0 where none does."""
    taking = int(stated(config, "num_kv_shared_layers") or 0)
    if not taking:
        return 0
    kinds = list(config.layer_types)
    own = kinds[: layers - taking]
    return layers - min((len(own) - 1 - own[::-1].index(kind) for kind in set(kinds[layers - taking :]) if kind in own), default=0)


def state_width(config: Any) -> int:
    """Numbers in a state of the text model, as its configuration states them; AttributeError for one that states none."""
    text = config.get_text_config()
    # EmbeddingGemma 2 ends with a map of its own to wider vectors.
    return int(text.embedding_dim if text.model_type == "embedding_gemma2_text" else text.hidden_size)


def _first_of(config: Any, names: Sequence[str]) -> int:
    """The first of these numbers that the configuration states, of one for each layer the largest; 0 when it states none."""
    found = (value for name in names if (value := stated(config, name)))
    return next((int(max(value) if isinstance(value, (list, tuple)) else value) for value in found), 0)


def trained_layers(config: TowerConfig) -> int | None:
    """How many layers, counted from the output, the towers' training reaches; None for all."""
    return config.lora_layers if config.training == "lora" else None


def stated(config: Any, name: str) -> Any:
    """The value that a configuration has under this name; of those that it has for each layer, as Gemma 4's, the largest. None for none."""
    layers = config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]
    return max((value for layer in layers if (value := getattr(layer, name, None))), default=None)


def count_layers(name: str, revision: str | None = None, code: bool = False) -> int:
    """Layers of the base model `name`; raises ModelError when it cannot be found or its configuration does not say."""
    # The models built here are built from texts; their number of layers does not depend on which.
    base = resolve_base(name, ["any text"], revision, code)
    return len(base.layers) if base.layers is not None else configured_layers(load_config(base, finished=True), base.name)


def require_positions(base: BaseModel, longest: int, setting: str) -> None:
    """Raise ModelError when texts of `longest` tokens, as `setting` allows, are longer than the model has positions for.

    Asked before the training: on a GPU a position that is not there ends the whole process.
    """
    limit = position_limit(model_without_memory(base))
    if limit is not None and longest > limit:
        raise ModelError(f"{setting} is {longest}, but '{base.name}' has positions for {limit} tokens. Set {setting} to {limit} at most.")


def model_without_memory(base: BaseModel, dtype: torch.dtype | None = None, finished: bool = False) -> Any:
    """The model's modules with all their shapes, and no numbers in them; of `dtype`, else as the model was saved. Raises ModelError.

    `finished`: as for `keep_layers`.
    """
    import torch
    from transformers import AutoModel

    config = load_config(base, finished)
    try:
        with torch.device("meta"):
            # The code lies in the model's folder. Once its class is known, transformers hands a `code_revision` on to it, which fails.
            model = AutoModel.from_config(config, dtype=dtype, trust_remote_code=base.code is not None)
    except base.faults as error:
        raise ModelError(f"The model '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    if base.layers is not None:
        keep_layers(model, base.layers, base.name, finished)
    return model


def non_embedding_parameters(base: BaseModel) -> int:
    """Parameters of the decoder without its token embeddings, which a scaling law leaves out (Kaplan et al. 2020).

    Counted on a model without memory, so that sizes are known before anything is loaded.
    """
    model = model_without_memory(base)
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)
