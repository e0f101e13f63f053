"""Both towers on one base model, and what of it is trained: a pair of LoRA adapters, or two full copies.

Sharding is torch's `fully_shard`, each layer for itself and then the rest. Its gradients are made sums, not means: the loss of a process
is already divided by the number of processes. The main process alone reads the weights, once for both towers, and hands each process its
shards: a model that one device cannot hold is not to be held by every process of a machine either.

A Router of sentence-transformers holds a whole model for each role; here each role has its own adapter on one model in memory, or its own
copy, so the towers are ours, on peft's adapters and transformers' models.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import file_sha256, read_json, write_json
from components.errors import ConfigError, ModelError
from components.progress import progress_bar
from components.towers import hub
from components.towers.base_models import (
    BaseModel,
    folder_digest,
    load_config,
    load_weights,
    require_embeddings,
    tokenizer_of,
    why_unloadable,
)
from components.towers.config import TowerConfig
from components.towers.contract import ROLES, EncodingContract, Role, tokenizer_digest
from components.towers.device import autocast, even_shapes, free_bytes, pick_device, pick_dtype
from components.towers.model_size import Shape, model_without_memory, shape_of, state_width, trained_layers
from components.towers.processes import collected, current_world, from_main, like, sum_over_processes
from components.towers.tokens import (
    batches_by_tokens,
    ends_by_itself,
    even_length,
    longest_text,
    needs_end_token,
    pad_batch,
    require_words,
    token_ids,
    with_switches,
)
from components.towers.trained.published import asked_attention, head_digest, is_published, read_published
from components.towers.transformer import (
    LowerStates,
    check_attention,
    cut,
    in_one_format,
    keep_layers,
    keeps_layers,
    layer_count,
    layer_stack,
    measured_attention,
    normalize,
    pool,
    position_limit,
    recompute_layers,
    require_format,
    require_states,
    set_attention,
    settle,
    text_part_name,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter


ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Adapters:
    """A frozen model with an adapter for each role, of which one is active at a time (see `FullModels` for the other way)."""

    def __init__(self, decoder: Any, config: TowerConfig, base: BaseModel) -> None:
        """Raises ModelError for weights that adapters cannot be put on (see `adapted_maps`), and for too many `lora_layers`."""
        from peft import LoraConfig, get_peft_model

        self._base = base
        modules, experts = adapted_maps(decoder, base.name)
        upper = _upper_layers(decoder, config.lora_layers, base.name)
        if upper and experts:  # peft's settings of layers are for modules alone
            experts = [f"{upper['layers_pattern'][0]}.{layer}.{path}" for layer in upper["layers_to_transform"] for path in experts]
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules=modules,
            target_parameters=experts or None,
            exclude_modules=_beside_texts(decoder),
            **upper,
        )
        try:
            self.model: Any = get_peft_model(decoder, lora, adapter_name=_adapter(ROLES[0]))
            self.model.add_adapter(_adapter(ROLES[1]), lora)
        except (ValueError, TypeError, NotImplementedError) as error:  # as where a linear map and what holds it have one name
            said = str(error).strip().partition("\n")[0][:160] or type(error).__name__
            raise ModelError(f"'{base.name}' cannot take adapters ({said}). Use another model, or set towers.training to full.") from None
        _leave_number_format_to_autocast(self.model)
        self.trained: dict[str, Parameter] = {n: p for n, p in sorted(self.model.named_parameters()) if ".lora_" in n}

    def of(self, role: Role) -> Any:
        """The model with the adapter of `role` active."""
        if self.model.active_adapter != _adapter(role):
            self.model.set_adapter(_adapter(role))
        # set_adapter freezes the other adapter, and autograd drops the gradient of a frozen leaf even when its graph is older.
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        return self.model

    def write(self, role: Role, folder: Path) -> str | None:
        """Write the adapter of `role` into `folder`/adapter and return the digest of its weights."""
        target = folder / ADAPTER
        self.model.save_pretrained(folder, selected_adapters=[_adapter(role)])
        # peft writes a named adapter into a folder of its name.
        (folder / _adapter(role)).rename(target)
        (folder / "README.md").unlink(missing_ok=True)
        (target / "README.md").unlink(missing_ok=True)
        _make_portable(target / "adapter_config.json", self._base)
        return adapter_digest(folder)


def _adapter(role: Role) -> str:
    """peft's name of the role's adapter. The role alone would be that of a map in BERT's layers, which peft then saves without."""
    return f"{role}_tower"


def adapted_maps(decoder: Any, name: str) -> tuple[list[str], list[str]]:
    """Names of all linear maps in the layers of a decoder, and of the fused maps of its experts, where it has any.

    peft adapts the names it is given and says nothing of the rest: with a fixed list a model with fused maps (Phi-3) would train a part
    of itself. The small router that chooses experts stays as it is. Raises ModelError for any other weight that would be left out.
    """
    from torch.nn import Embedding, Linear

    owner, attribute = layer_stack(decoder, name)
    modules, experts, left_out = set(), set(), set()
    for layer in getattr(owner, attribute):
        for path, module in layer.named_modules():
            routes = "router" in type(module).__name__.lower()  # some are linear maps that give more than their product
            if isinstance(module, Linear) and not routes:
                modules.add(path.rpartition(".")[2])
                continue
            for parameter, weight in module.named_parameters(recurse=False):
                if weight.dim() == 3 and path.endswith("experts"):
                    experts.add(f"{path}.{parameter}")
                elif weight.dim() > 1 and not isinstance(module, Embedding) and not routes:
                    left_out.add(f"{path}.{parameter}")
    if left_out or not modules:
        what = f"weights that adapters cannot be put on ({', '.join(sorted(left_out))})" if left_out else "no linear maps in its layers"
        raise ModelError(f"'{name}' has {what}. Use another model, or set towers.training to full.")
    return sorted(modules), sorted(experts)


def _beside_texts(decoder: Any) -> str | None:
    """Pattern of the modules of a model of texts and images that read no text; None for any other model.

    peft goes by the last part of a name, which maps of images share, and no text ever trains those.
    """
    part = text_part_name(decoder)
    return rf"(?!{part}\.).*" if part else None


def _upper_layers(decoder: Any, count: int | None, name: str) -> dict[str, Any]:
    """peft's settings that put adapters on the last `count` layers alone; none for all. No gradient is computed below the first of them."""
    if count is None:
        return {}
    owner, attribute = layer_stack(decoder, name)
    total = len(getattr(owner, attribute))
    if count > total:
        raise ModelError(f"towers.lora_layers is {count}, but '{name}' has {total} layers. Give {total} at most, or null for all.")
    # Without the list's name peft finds no number in names that begin with it, as those of a decoder without its head do.
    return {"layers_to_transform": list(range(total - count, total)), "layers_pattern": [attribute]}


def _leave_number_format_to_autocast(model: Any) -> None:
    # peft widens every input to the adapter's float32 and autocast narrows it again: the same numbers, and time and memory for nothing.
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False


def adapter_digest(folder: Path) -> str:
    """sha256 of the adapter's weights in a tower folder."""
    return file_sha256(folder / ADAPTER / ADAPTER_WEIGHTS)


def _make_portable(path: Path, base: BaseModel) -> None:
    """peft writes the base model's folder on this machine and a list in random order: equal adapters would have unequal digests."""
    config = {**read_json(path), "base_model_name_or_path": base.name, "revision": base.revision}
    write_json(path, {**config, "target_modules": sorted(config["target_modules"])})


# --- Both towers as two fully trained copies of a model, kept whole in every process or, by configuration, sharded over them (FSDP).


WEIGHTS = "model"


class FullModels:
    """A model of its own for each role (see `Adapters` for the other way)."""

    def __init__(self, decoder: Any, tokenizer: Any, name: str, sharded: bool = False) -> None:
        """`decoder` in float32: small updates are lost in shorter formats. `sharded`: `shard` follows, and gives the weights."""
        from torch.nn import ModuleDict

        self._tokenizer, self._name = tokenizer, name
        self._whole = decoder if sharded else None
        roles = [without_numbers(decoder) for _ in ROLES] if sharded else [decoder, copy.deepcopy(decoder)]
        self.model: Any = ModuleDict(dict(zip(ROLES, roles, strict=True)))
        self.trained: dict[str, Parameter] = self._parameters()

    def _parameters(self) -> dict[str, Parameter]:
        return dict(sorted(self.model.named_parameters()))

    def recompute(self) -> None:
        """Work the layers out again in the backward pass (see `layers.recompute_layers`); to be called before `shard`."""
        for role in ROLES:
            recompute_layers(self.model[role], self._name)

    def shard(self, device: torch.device, dtype: torch.dtype) -> None:
        """Leave each process a part of every weight; weights travel as `dtype`, gradients as float32."""
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy

        policy = MixedPrecisionPolicy(param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32)
        mesh = init_device_mesh(device.type, (current_world().size,))
        for role in ROLES:
            _shard(self.model[role], {"mesh": mesh, "mp_policy": policy})
            _hand_out(self._whole, self.model[role].to_empty(device=device))
        self._whole = None
        self.trained = self._parameters()

    def of(self, role: Role) -> Any:
        """The model of `role`."""
        return self.model[role]

    def write(self, role: Role, folder: Path) -> str | None:
        """Write weights and tokenizer of `role` into `folder`/model and return their digest; None in all but the main process."""
        model = self.model[role]
        weights = collected(dict(model.state_dict()))
        if not current_world().main:
            return None
        model.config._name_or_path = self._name  # else the folder of the base model on this machine would stand there
        model.save_pretrained(folder / WEIGHTS, state_dict=weights)
        with_switches(self._tokenizer).save_pretrained(folder / WEIGHTS)
        return full_digest(folder)


def full_digest(folder: Path) -> str:
    """Digest of configuration, weights and tokenizer in a tower folder."""
    return folder_digest(folder / WEIGHTS)


def without_numbers(model: Any) -> Any:
    """A copy of the modules with all their shapes, whose parameters and buffers take no memory."""
    import torch

    copies: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        copies[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty
    return copy.deepcopy(model, copies)


def _hand_out(whole: Any, sharded: Any) -> None:
    """Fill the shards of every process from `whole`, whose numbers the main process has."""
    import torch
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    main = current_world().main
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(sharded, dict(whole.state_dict()) if main else {}, options=options)
    # Buffers that are saved nowhere, such as the frequencies of rotary positions, are no part of a state.
    for (_, given), (_, buffer) in zip(whole.named_buffers(), sharded.named_buffers(), strict=True):
        if main:
            buffer.copy_(given)
        torch.distributed.broadcast(buffer, 0)


def _shard(model: Any, options: dict[str, Any]) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.nn import ModuleList

    stacks = [module for module in model.modules() if isinstance(module, ModuleList)]
    layers: Sequence[Any] = max(stacks, key=len, default=[])
    for part in (*layers, model):
        fully_shard(part, **options)
        part.set_gradient_divide_factor(1.0)
        # Without it the factor goes into a kind of sum that gloo does not have.
        part.set_force_sum_reduction_for_comms(True)


# --- Both towers on one base model: loading it, attention and pooling as asked, adapters or full models, from token rows to vectors.


KEPT_SHARE = 0.5  # of the free memory for what a chunk keeps, before the layers are worked out twice instead


def load_decoder(
    base: BaseModel, precision: str, attention: str = "causal", empty: bool = False, finished: bool = False
) -> tuple[Any, Any]:
    """The model without its language head, and its tokenizer; raises ModelError when it cannot be loaded.

    `empty`: its modules with all their shapes, and no numbers in them. `finished`: for a saved tower, as for `keep_layers`.
    """
    from torch.nn import Identity
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    quantized = getattr(load_config(base, finished), "quantization_config", None) is not None  # of a saved tower alone
    try:
        dtype = pick_dtype(precision)
        model = model_without_memory(base, dtype) if empty else load_weights(base, dtype=dtype)
        tokenizer = tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The model '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    require_embeddings(base, model, tokenizer)
    if base.layers is not None and not empty:
        keep_layers(model, base.layers, base.name, finished)
    settle(model)
    if quantized:
        in_one_format(model, dtype)
    if getattr(model, "pooler", None) is not None:
        # An encoder's own pooler takes no part here; its weights would be trained and saved for nothing. SqueezeBERT calls what is there.
        model.pooler = Identity()
    set_attention(model, attention)
    return model.eval(), tokenizer


def check_teacher(base: BaseModel, config: TowerConfig, hollow: Any) -> None:
    """Refuse what can be refused of towers on `base` before its weights are read; raises ModelError.

    `hollow`: its modules without numbers. Weights that adapters cannot be put on, and prompts that leave no place for a text.
    """
    if config.training == "lora":
        adapted_maps(hollow, base.name)
        _check_width(base.name, state_width(hollow.config), config)
    try:
        tokenizer = tokenizer_of(base)
    except base.faults as error:
        raise ModelError(f"The model '{base.name}' cannot be loaded: {why_unloadable(error)}") from None
    # Behind a text of a published model stands what its own tokenizer puts there.
    append_eos = needs_end_token(tokenizer) and not (config.training == "none" and is_published(base))
    for role in ROLES:
        prompt, longest = (getattr(config, name) for name in (f"{role}_prompt", f"max_{role}_length"))
        require_words(tokenizer, base.name, prompt, longest, (f"towers.{role}_prompt", f"towers.max_{role}_length"), append_eos)


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
    model, tokenizer = load_decoder(base, "float32", asked_attention(published is not None, config.attention))
    head = published.head if published else ()
    width = state_width(model.config)
    require_states(model, base.name, width)
    for dense in head:
        if dense.inputs != width:
            raise ModelError(f"'{base.name}': {dense.path} maps {dense}, but is given {width} dimensions. Fetch the model again.")
        width = dense.outputs
    if config.dimension is not None and config.dimension > width:
        raise ModelError(f"towers.dimension is {config.dimension}, but the vectors of '{base.name}' have {width}. Give {width} at most.")
    attention = measured_attention(model)
    require_own_direction(base, attention)
    own: dict[str, Any] = {"attention": attention, "head": tuple(map(str, head)), "head_digest": head_digest(base, head)}
    if published is not None:
        own["append_eos"] = False  # its tokenizer ends texts as the model was trained, or not at all
    else:
        _check_pooling(base.name, tokenizer, config)
    return {role: draft_contract(base, tokenizer, width, config, role).model_copy(update=own) for role in ROLES}


def require_own_direction(base: BaseModel, attention: str) -> None:
    """Raise ModelError for an embedding model whose own class, which does not run here, would look both ways where this one looks back."""
    folder = Path(base.location)
    if attention == "causal" and base.code is None and (folder / hub.MODULES).is_file() and (own := hub.own_class(folder)):
        raise ModelError(
            f"'{base.name}' brings a model class of its own ({own}), as embedding models made from decoders do so that their tokens see "
            "those after them; transformers' own looks back alone. A teacher runs it by towers.trust_remote_code with the full commit in "
            "towers.revision: read that code first, or name another model."
        )


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
        self.width = state_width(decoder.config)
        _check_width(base.name, self.width, config)
        _check_pooling(base.name, self.tokenizer, config)
        from_main(lambda: self._check_states(decoder, base.name, config))  # the others may hold no numbers to look at
        self.contracts = {role: draft_contract(base, self.tokenizer, self.width, config, role) for role in ROLES}
        # oneDNN keeps about 1.2 MB for every number of rows that a bfloat16 map meets, and a third of it for ever.
        self.even = even_shapes(precision) and (position_limit(decoder) or 32) % 32 == 0
        self._whole = {role: contract.model_copy(update={"dimension": self.width}) for role, contract in self.contracts.items()}
        self._tokens_per_batch = config.chunk_size * longest_text(config)
        self._shape: Shape | None = None
        self._lower: LowerStates | None = None
        with suppress(AttributeError, ModelError):  # an architecture that says nothing of its size
            self._shape = shape_of(decoder.config.get_text_config(), layer_count(decoder, config.base_model))
        self.recomputes = self._must_recompute(decoder, config)
        self._weights = self._made_trainable(decoder, base, config)

    def _check_states(self, decoder: Any, name: str, config: TowerConfig) -> None:
        check_attention(decoder, name, config.attention)
        require_states(decoder, name, self.width)
        require_format(decoder, name, self.dtype)

    def _must_recompute(self, decoder: Any, config: TowerConfig) -> bool:
        """Whether the layers are worked out again in the backward pass: as configured, else where memory asks for it."""
        if config.activation_checkpointing is not None or not keeps_layers(decoder):  # as ALBERT, which is trained in full all the same
            return bool(config.activation_checkpointing)
        weights = sum(p.numel() * p.element_size() for p in decoder.parameters())
        return self._whole_pass(config) > KEPT_SHARE * max(0, free_bytes(self.device) - (weights if self.device.type == "cuda" else 0))

    def _whole_pass(self, config: TowerConfig, recomputed: bool = False) -> int:
        tokens = longest_text(config) * min(config.chunk_size, config.batch_size * (1 + config.hard_negatives))
        return self._shape.kept(tokens, self.dtype.itemsize, recomputed, trained_layers(config)) if self._shape is not None else 0

    def kept_bytes(self, config: TowerConfig) -> int:
        """Bytes that a pass over the largest chunk of `config` keeps for its backward pass; 0 where the model does not say its size."""
        return self._whole_pass(config, self.recomputes)

    def _made_trainable(self, decoder: Any, base: BaseModel, config: TowerConfig) -> Adapters | FullModels:
        if config.training == "lora":
            adapters = Adapters(decoder, config, base)
            adapters.model.to(self.device)
            if self.recomputes:
                recompute_layers(decoder, base.name)
            if config.lora_layers is not None:
                with autocast(self.device, self.dtype):  # adapters and weights have numbers of two formats
                    self._lower = LowerStates(decoder, config.lora_layers, base.name)
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
        lower = nullcontext() if self._lower is None else self._lower.pass_of(rows)
        with autocast(self.device, self.dtype), lower:
            return pooled(self._weights.of(role), batch, self._whole[role])[: len(rows)]

    def passing_twice(self) -> AbstractContextManager[None]:
        """Within the block `embed` works the layers below the first trained one out once for rows that pass without and with a graph.

        The rows of both passes are one object, which lives until the end of the block.
        """
        return nullcontext() if self._lower is None else self._lower.kept()

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
