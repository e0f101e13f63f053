"""Both towers on one base model: loading it, attention and pooling as asked, adapters or full models, from token rows to vectors.

A Router of sentence-transformers holds a whole model for each role; here each role has its own adapter on one model in memory, or its
own copy, so the towers are ours, on peft's adapters and transformers' models.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.errors import ConfigError, ModelError
from components.progress import progress_bar
from components.towers.adapters import Adapters
from components.towers.attention import check_attention, measured_attention, set_attention
from components.towers.base_models import BaseModel, load_config, tokenizer_of, why_unloadable
from components.towers.config import TowerConfig
from components.towers.contract import ROLES, EncodingContract, Role, tokenizer_digest
from components.towers.device import autocast, even_shapes, free_bytes, pick_device, pick_dtype
from components.towers.full import FullModels
from components.towers.layers import keep_layers, layer_count, position_limit, recompute_layers
from components.towers.model_size import Shape, model_without_memory, shape_of
from components.towers.pooling import cut, normalize, pool
from components.towers.processes import collected, current_world, from_main, like, sum_over_processes
from components.towers.tokens import batches_by_tokens, ends_by_itself, even_length, longest_text, needs_end_token, pad_batch, token_ids
from components.towers.trained.published import asked_attention, head_digest, read_published

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

KEPT_SHARE = 0.5  # of the free memory for what a chunk keeps, before the layers are worked out twice instead


def load_decoder(base: BaseModel, precision: str, attention: str = "causal", empty: bool = False) -> tuple[Any, Any]:
    """The model without its language head, and its tokenizer; raises ModelError when it cannot be loaded.

    `empty`: its modules with all their shapes, and no numbers in them.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load_config(base)
    try:
        dtype = pick_dtype(precision)
        model = model_without_memory(base, dtype) if empty else AutoModel.from_pretrained(base.location, dtype=dtype, **base.loading)
        tokenizer = tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The model '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    if base.layers is not None and not empty:
        keep_layers(model, base.layers, base.name)
    model.config.use_cache = False
    if getattr(model, "pooler", None) is not None:
        # An encoder's own pooler takes no part here; its weights would be trained and saved for nothing.
        model.pooler = None
    set_attention(model, attention)
    return model.eval(), tokenizer


def draft_contract(base: BaseModel, tokenizer: Any, width: int, config: TowerConfig, role: Role) -> EncodingContract:
    """The contract of a tower before its weights are trained (adapter_digest None)."""
    return EncodingContract(
        role=role,
        base_model=base.name,
        base_digest=base.digest,
        base_revision=base.revision,
        base_code=base.code,
        adapter_digest=None,
        tokenizer_digest=tokenizer_digest(tokenizer),
        pooling=config.pooling,
        normalize=True,
        prompt=config.query_prompt if role == "query" else config.document_prompt,
        append_eos=needs_end_token(tokenizer),
        max_length=config.max_query_length if role == "query" else config.max_document_length,
        dimension=config.dimension or width,
        attention=config.attention,
    )


def published_contracts(base: BaseModel, config: TowerConfig) -> dict[Role, EncodingContract]:
    """The contracts of both towers of a model that is taken as it is; raises ModelError for one that gives no such vectors."""
    published = read_published(base)
    model, tokenizer = load_decoder(base, "float32", asked_attention(published, config.attention))
    head = published.head if published else ()
    width = head[-1].outputs if head else int(model.config.get_text_config().hidden_size)
    if config.dimension is not None and config.dimension > width:
        raise ModelError(f"towers.dimension is {config.dimension}, but the vectors of '{base.name}' have {width}. Give {width} at most.")
    own: dict[str, Any] = {"attention": measured_attention(model), "head": tuple(map(str, head)), "head_digest": head_digest(base, head)}
    if published is not None:
        own["append_eos"] = False  # its tokenizer ends texts as the model was trained, or not at all
    else:
        _check_pooling(base.name, tokenizer, config)
    return {role: draft_contract(base, tokenizer, width, config, role).model_copy(update=own) for role in ROLES}


def pooled(model: Any, batch: dict[str, Tensor], contract: EncodingContract, head: Any = None) -> Tensor:
    """Unit float32 vectors (rows, dimension) of a padded batch on the model's device, under the contract.

    `head`: the maps behind the pooling of a published model, float32.
    """
    return finished(pool(model(**batch).last_hidden_state, batch["attention_mask"], contract.pooling), contract, head)


def finished(vectors: Tensor, contract: EncodingContract, head: Any = None) -> Tensor:
    """Unit float32 vectors (rows, dimension) of pooled states (rows, width), through the maps of a published model where it has some."""
    return cut(normalize(vectors if head is None else head(vectors)), contract.dimension)


class TwoTowers:
    """Both towers for training. `embed` gives vectors with a graph, `encode` those that the saved tower will give."""

    def __init__(self, base: BaseModel, config: TowerConfig) -> None:
        """Raises ModelError for a model that cannot do what the configuration asks.

        And ConfigError for sharding in one process, and where nothing is to be trained.
        """
        import torch

        _check_training(config)
        torch.manual_seed(config.seed)
        self.device, self.dtype = pick_device(), pick_dtype(config.precision)
        precision = "float32" if config.training == "full" else config.precision
        empty = config.sharding == "fsdp" and not current_world().main  # it is given its shards by the main process
        decoder, self.tokenizer = load_decoder(base, precision, config.attention, empty)
        self.width = int(decoder.config.get_text_config().hidden_size)
        _check_width(base.name, self.width, config)
        _check_pooling(base.name, self.tokenizer, config)
        from_main(lambda: check_attention(decoder, base.name, config.attention))  # the others may hold no numbers to look at
        self.contracts = {role: draft_contract(base, self.tokenizer, self.width, config, role) for role in ROLES}
        # oneDNN keeps about 1.2 MB for every number of rows that a bfloat16 map meets, and a third of it for ever.
        self.even = even_shapes(precision) and (position_limit(decoder) or 32) % 32 == 0
        self._whole = {role: contract.model_copy(update={"dimension": self.width}) for role, contract in self.contracts.items()}
        self._tokens_per_batch = config.chunk_size * longest_text(config)
        self._shape: Shape | None = None
        with suppress(AttributeError, ModelError):  # an architecture that says nothing of its size
            self._shape = shape_of(decoder.config.get_text_config(), layer_count(decoder, config.base_model))
        self.recomputes = self._must_recompute(decoder, config)
        self._weights = self._made_trainable(decoder, base, config)

    def _must_recompute(self, decoder: Any, config: TowerConfig) -> bool:
        """Whether the layers are worked out again in the backward pass: as configured, else where memory asks for it."""
        if config.activation_checkpointing is not None:
            return config.activation_checkpointing
        weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
        return self._whole_pass(config) > KEPT_SHARE * max(0, free_bytes(self.device) - (weights if self.device.type == "cuda" else 0))

    def _whole_pass(self, config: TowerConfig, recomputed: bool = False) -> int:
        tokens = longest_text(config) * min(config.chunk_size, config.batch_size * (1 + config.hard_negatives))
        return self._shape.kept(tokens, self.dtype.itemsize, recomputed) if self._shape is not None else 0

    def kept_bytes(self, config: TowerConfig) -> int:
        """Bytes that a pass over the largest chunk of `config` keeps for its backward pass; 0 where the model does not say its size."""
        return self._whole_pass(config, self.recomputes)

    def _made_trainable(self, decoder: Any, base: BaseModel, config: TowerConfig) -> Adapters | FullModels:
        if config.training == "lora":
            adapters = Adapters(decoder, config, base)
            adapters.model.to(self.device)
            if self.recomputes:
                recompute_layers(decoder, base.name)
            return adapters
        models = FullModels(decoder, self.tokenizer, base.name, config.sharding == "fsdp")
        if self.recomputes:
            models.recompute()
        if config.sharding == "fsdp":
            models.shard(self.device, self.dtype)
        else:
            models.model.to(self.device)
        return models

    @property
    def model(self) -> Any:
        """All weights of both towers as one module."""
        return self._weights.model

    def parameters(self) -> list[Parameter]:
        """The trainable parameters of both towers, in a fixed order."""
        return list(self._weights.trained.values())

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids under the contract of `role`."""
        return token_ids(self.tokenizer, texts, self.contracts[role])

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit vectors (len(rows), width) float32 of token id rows through the weights of `role`, in all dimensions of the model."""
        batch = {k: v.to(self.device) for k, v in pad_batch(rows, self.tokenizer.pad_token_id or 0, self.even).items()}
        # A context per call: a cast that autocast caches without a graph would else be used again where a graph is needed.
        with autocast(self.device, self.dtype):
            return pooled(self._weights.of(role), batch, self._whole[role])[: len(rows)]

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """Unit vectors (len(rows), dimension) float32 without a graph, in the order of `rows`; `progress` labels a bar on stderr.

        The processes share the work, in batches of similar length that hold no more tokens than a chunk of the training.
        """
        import torch

        world = current_world()
        vectors = np.zeros((len(rows), self.contracts[role].dimension), np.float32)
        batches = batches_by_tokens([even_length(len(row)) if self.even else len(row) for row in rows], self._tokens_per_batch)
        quiet = progress is None or not world.main
        with torch.no_grad(), progress_bar(len(rows), progress, "text", shown=not quiet, leave=False) as bar:
            for start in range(0, len(batches), world.size):
                # Every process takes part in every round, with the first batch again where none is left: shards are gathered by all.
                number = start + world.rank
                batch = batches[number if number < len(batches) else 0]
                found = cut(self.embed([rows[i] for i in batch], role), vectors.shape[1]).cpu().numpy()
                if number < len(batches):
                    vectors[batch] = found
                bar.update(sum(len(b) for b in batches[start : start + world.size]))
        return sum_over_processes(vectors)

    def input_embeddings(self) -> Tensor:
        """The input token embeddings (V, width) as they are now."""
        weight = self._weights.of("query").get_input_embeddings().weight.detach()
        return weight.full_tensor() if hasattr(weight, "full_tensor") else weight

    def state(self) -> dict[str, Tensor]:
        """Copies of the trained weights by name, on the CPU, in the main process; empty in the others, which have to call it too."""
        return collected(self._weights.trained)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        import torch

        with torch.no_grad():
            for name, value in state.items():
                parameter = self._weights.trained[name]
                parameter.copy_(like(value, parameter))

    def save(self, role: Role, folder: Path) -> EncodingContract | None:
        """Write the weights of `role` into `folder`; the finished contract in the main process, which alone writes, None in the others."""
        if isinstance(self._weights, Adapters) and not current_world().main:
            return None
        digest = self._weights.write(role, folder)
        return None if digest is None else self.contracts[role].model_copy(update={"adapter_digest": digest})


def _check_training(config: TowerConfig) -> None:
    if config.training == "none":
        raise ConfigError("This trains towers, and towers.training is none. Set it to lora or full, with a base model that has weights.")
    if config.sharding == "fsdp" and current_world().size == 1:
        raise ConfigError(
            "towers.sharding is fsdp, which divides a model among several processes, but there is one. "
            "Set towers.processes to the number of devices, start with torchrun, or set towers.sharding to none."
        )


def _check_width(name: str, width: int, config: TowerConfig) -> None:
    if config.matryoshka and max(config.matryoshka) > width:
        raise ModelError(
            f"towers.matryoshka names {max(config.matryoshka)} dimensions, but the vectors of '{name}' have {width}. "
            "Name prefixes of that width at most."
        )


def _check_pooling(name: str, tokenizer: Any, config: TowerConfig) -> None:
    if config.pooling == "last" and tokenizer.eos_token_id is None and not ends_by_itself(tokenizer):
        raise ModelError(
            f"towers.pooling is last, but the tokenizer of '{name}' has no end token whose state could be taken. "
            "Set towers.pooling to mean, or use another model."
        )
