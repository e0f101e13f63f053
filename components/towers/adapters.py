"""Both towers as two LoRA adapters on one frozen model in memory: the query tower and the document tower for the price of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import file_sha256, read_json, write_json
from components.errors import ModelError
from components.towers.config import TowerConfig
from components.towers.contract import ROLES, Role
from components.towers.layers import layer_stack

if TYPE_CHECKING:
    from torch.nn import Parameter

LINEAR_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER = "adapter"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Adapters:
    """A frozen model with an adapter for each role, of which one is active at a time (see `FullModels` for the other way)."""

    def __init__(self, decoder: Any, config: TowerConfig, name: str) -> None:
        """Raises ModelError when the model has none of the maps that adapters are put on, or fewer layers than `lora_layers`."""
        from peft import LoraConfig, get_peft_model

        self._name = name
        lora = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=0.0,
            target_modules=LINEAR_MAPS,
            **_upper_layers(decoder, config.lora_layers, name),
        )
        try:
            self.model: Any = get_peft_model(decoder, lora, adapter_name=ROLES[0])
        except ValueError as error:
            raise ModelError(
                f"'{name}' has none of the linear maps that adapters need ({', '.join(LINEAR_MAPS)}): {error}. "
                "Use another model, or set towers.training to full."
            ) from None
        self.model.add_adapter(ROLES[1], lora)
        _leave_number_format_to_autocast(self.model)
        self.trained: dict[str, Parameter] = {n: p for n, p in sorted(self.model.named_parameters()) if ".lora_" in n}

    def of(self, role: Role) -> Any:
        """The model with the adapter of `role` active."""
        if self.model.active_adapter != role:
            self.model.set_adapter(role)
        # set_adapter freezes the other adapter, and autograd drops the gradient of a frozen leaf even when its graph is older.
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        return self.model

    def write(self, role: Role, folder: Path) -> str | None:
        """Write the adapter of `role` into `folder`/adapter and return the digest of its weights."""
        target = folder / ADAPTER
        self.model.save_pretrained(folder, selected_adapters=[role])
        # peft writes a named adapter into a folder of its name.
        (folder / role).rename(target)
        (folder / "README.md").unlink(missing_ok=True)
        (target / "README.md").unlink(missing_ok=True)
        _make_portable(target / "adapter_config.json", self._name)
        return adapter_digest(folder)


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


def _make_portable(path: Path, base_model: str) -> None:
    """peft writes the base model's folder on this machine and a list in random order: equal adapters would have unequal digests."""
    config = read_json(path)
    write_json(path, {**config, "base_model_name_or_path": base_model, "target_modules": sorted(config["target_modules"])})
