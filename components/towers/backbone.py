"""One frozen decoder in memory, two LoRA adapters on it: the query tower and the document tower for the price of one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import digest_of, file_sha256, read_json, write_json
from components.errors import ModelError
from components.towers.base_models import BaseModel
from components.towers.config import TowerConfig
from components.towers.contract import EncodingContract, Role
from components.towers.layers import keep_layers
from components.towers.pooling import normalize, pool
from components.towers.precision import autocast, pick_device, pick_dtype
from components.towers.tokens import pad_batch, token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

LINEAR_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROLES: tuple[Role, Role] = ("query", "document")


def load_decoder(base: BaseModel, precision: str) -> tuple[Any, Any]:
    """The model without its language head, and its tokenizer; raises ModelError when it cannot be loaded as a decoder."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(base.location, dtype=pick_dtype(precision))
        tokenizer = AutoTokenizer.from_pretrained(base.location)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"The model '{base.name}' cannot be loaded: {str(error).strip().splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of '{base.name}' has no end token; last-token pooling needs one. Use another model.")
    if base.layers is not None:
        keep_layers(model, base.layers, base.name)
    model.config.use_cache = False
    return model.eval(), tokenizer


def draft_contract(base: BaseModel, tokenizer: Any, width: int, config: TowerConfig, role: Role) -> EncodingContract:
    """The contract of a tower before its adapter is trained (adapter_digest None)."""
    return EncodingContract(
        role=role,
        base_model=base.name,
        base_digest=base.digest,
        adapter_digest=None,
        tokenizer_digest=digest_of(tokenizer.get_vocab()),
        pooling=config.pooling,
        normalize=True,
        prompt=config.query_prompt if role == "query" else config.document_prompt,
        append_eos=True,
        max_length=config.max_query_length if role == "query" else config.max_document_length,
        dimension=width,
    )


class TwoTowers:
    """Both towers for training. `embed` gives unit float32 vectors with a graph; `save` writes each role's adapter."""

    def __init__(self, base: BaseModel, config: TowerConfig) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(config.seed)
        decoder, self.tokenizer = load_decoder(base, config.precision)
        self.device = pick_device()
        self.dtype = pick_dtype(config.precision)
        lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=LINEAR_MAPS)
        try:
            self.model: Any = get_peft_model(decoder, lora, adapter_name=ROLES[0])
        except ValueError as error:
            raise ModelError(f"'{base.name}' has none of the linear maps that adapters need ({', '.join(LINEAR_MAPS)}): {error}") from None
        self.model.add_adapter(ROLES[1], lora)
        self.model.to(self.device)
        self._trainable = [p for name, p in sorted(self.model.named_parameters()) if ".lora_" in name]
        self.contracts = {r: draft_contract(base, self.tokenizer, decoder.config.hidden_size, config, r) for r in ROLES}

    def parameters(self) -> list[Parameter]:
        """The trainable parameters: those of both adapters, in a fixed order."""
        return self._trainable

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids under the contract of `role`."""
        return token_ids(self.tokenizer, texts, self.contracts[role])

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit vectors (len(rows), dimension) float32 of token id rows, through the adapter of `role`."""
        self._activate(role)
        batch = {k: v.to(self.device) for k, v in pad_batch(rows, self.tokenizer.pad_token_id or 0).items()}
        # A context per call: a cast that autocast caches without a graph would else be used again where a graph is needed.
        with autocast(self.device, self.dtype):
            states = self.model(**batch).last_hidden_state
        return normalize(pool(states, batch["attention_mask"], self.contracts[role].pooling))

    def _activate(self, role: Role) -> None:
        if self.model.active_adapter != role:
            self.model.set_adapter(role)
        # set_adapter freezes the other adapter, and autograd drops the gradient of a frozen leaf even when its graph is older.
        for parameter in self._trainable:
            parameter.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """Copies of the adapters' weights by parameter name."""
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if ".lora_" in n}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        parameters = dict(self.model.named_parameters())
        for name, value in state.items():
            parameters[name].data.copy_(value)

    def save(self, role: Role, folder: Path) -> EncodingContract:
        """Write the adapter of `role` into `folder`/adapter and return the finished contract."""
        target = folder / "adapter"
        self.model.save_pretrained(folder, selected_adapters=[role])
        # peft writes a named adapter into a folder of its name.
        (folder / role).rename(target)
        (folder / "README.md").unlink(missing_ok=True)
        (target / "README.md").unlink(missing_ok=True)
        _make_portable(target / "adapter_config.json", self.contracts[role].base_model)
        digest = file_sha256(target / "adapter_model.safetensors")
        return self.contracts[role].model_copy(update={"adapter_digest": digest})


def _make_portable(path: Path, base_model: str) -> None:
    """peft writes the base model's folder on this machine and a list in random order: equal adapters would have unequal digests."""
    config = read_json(path)
    write_json(path, {**config, "base_model_name_or_path": base_model, "target_modules": sorted(config["target_modules"])})
