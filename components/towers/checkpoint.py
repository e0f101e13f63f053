"""The state of a training in one file, written by the main process, read by all.

accelerate's save_state keeps one file a process for adapters, optimizer and random state each; here a training killed on two
processes continues on one, or the other way round, since everything is stored whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.towers.processes import collected, current_world, like

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) and the random state into `folder`, atomically; all but the main process do nothing."""
    import torch

    if not current_world().main:
        return
    beside = folder / f".{CHECKPOINT}.tmp"
    torch.save({**state, "random": _random_state()}, beside)
    os.replace(beside, folder / CHECKPOINT)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state in `folder` with its tensors on the CPU, the random state put back; None when there is none."""
    import torch

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    random = state.pop("random")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return state


def _random_state() -> dict[str, Tensor]:
    import torch

    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors, for the main process; all have to call it, since shards are gathered."""
    state = optimizer.state_dict()
    moments = {number: collected(values) for number, values in state["state"].items()}
    return {"state": moments, "param_groups": state["param_groups"]}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put back what `optimizer_state` gave, cut as the parameters are where these are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        parameter = parameters[number]
        # The step count is a scalar that stays on the CPU.
        state["state"][number] = {k: v if k == "step" else like(v, parameter) for k, v in values.items()}
    optimizer.load_state_dict(state)
