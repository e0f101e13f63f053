"""Both towers as two fully trained copies of a model, kept whole in every process or, by configuration, sharded over them (FSDP).

Sharding is torch's `fully_shard`, each layer for itself and then the rest. Its gradients are made sums, not means: the loss of a
process is already divided by the number of processes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.towers.base_models import folder_digest
from components.towers.contract import ROLES, Role
from components.towers.distributed import collected, current_world
from components.towers.layers import recompute_layers

if TYPE_CHECKING:
    import torch
    from torch.nn import Parameter

WEIGHTS = "model"


class FullModels:
    """A model of its own for each role (see `Adapters` for the other way)."""

    def __init__(self, decoder: Any, tokenizer: Any, name: str) -> None:
        """`decoder` in float32: small updates are lost in shorter formats."""
        from torch.nn import ModuleDict

        self._tokenizer, self._name = tokenizer, name
        self.model: Any = ModuleDict({ROLES[0]: decoder, ROLES[1]: copy.deepcopy(decoder)})
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
