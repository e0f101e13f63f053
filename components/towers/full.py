"""Both towers as two fully trained copies of a model, kept whole in every process or, by configuration, sharded over them (FSDP).

Sharding is torch's `fully_shard`, each layer for itself and then the rest. Its gradients are made sums, not means: the loss of a
process is already divided by the number of processes. The main process alone reads the weights, once for both towers, and hands each
process its shards: a model that one device cannot hold is not to be held by every process of a machine either.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.towers.base_models import folder_digest
from components.towers.contract import ROLES, Role
from components.towers.layers import recompute_layers
from components.towers.processes import collected, current_world

if TYPE_CHECKING:
    import torch
    from torch.nn import Parameter

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
        # Else the folder of the base model on this machine would stand in the configuration.
        model.config._name_or_path = self._name
        model.save_pretrained(folder / WEIGHTS, state_dict=weights)
        self._tokenizer.save_pretrained(folder / WEIGHTS)
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
