"""Both towers as two LoRA adapters on one frozen model in memory: the query tower and the document tower for the price of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import file_sha256, read_json, write_json
from components.errors import ModelError
from components.towers.base_models import BaseModel
from components.towers.config import TowerConfig
from components.towers.contract import ROLES, Role
from components.towers.layers import layer_stack

if TYPE_CHECKING:
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
            **upper,
        )
        self.model: Any = get_peft_model(decoder, lora, adapter_name=ROLES[0])
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
        _make_portable(target / "adapter_config.json", self._base)
        return adapter_digest(folder)


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
            if isinstance(module, Linear):
                modules.add(path.rpartition(".")[2])
                continue
            for parameter, weight in module.named_parameters(recurse=False):
                if weight.dim() == 3 and path.endswith("experts"):
                    experts.add(f"{path}.{parameter}")
                elif weight.dim() > 1 and not isinstance(module, Embedding) and "router" not in type(module).__name__.lower():
                    left_out.add(f"{path}.{parameter}")
    if left_out or not modules:
        what = f"weights that adapters cannot be put on ({', '.join(sorted(left_out))})" if left_out else "no linear maps in its layers"
        raise ModelError(f"'{name}' has {what}. Use another model, or set towers.training to full.")
    return sorted(modules), sorted(experts)


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
