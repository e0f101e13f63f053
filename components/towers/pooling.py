"""From token states to one vector a text: pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool token states (n, tokens, width) under a right-padded mask (n, tokens) to float32 (n, width).

    `last`: the state of the last real token; `mean`: the mean over real tokens; `cls`: the state of the first token.
    """
    import torch

    if how == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1].float()
    if how == "cls":
        return states[:, 0].float()
    weights = mask.unsqueeze(-1).float()
    return (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length."""
    from torch.nn.functional import normalize as unit

    return unit(vectors, dim=-1)
