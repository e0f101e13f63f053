"""From token states to one vector a text: pure functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool token states (n, tokens, width) under a right-padded mask (n, tokens) to float32 (n, width).

    `last`: the state of the last real token; `mean`: the mean over real tokens; `cls`: the state of the first token. Zeros for a row
    without a real token, whose states may be anything.
    """
    import torch

    counts = mask.sum(1)
    if how == "last":
        pooled = states[torch.arange(len(states), device=states.device), (counts - 1).clamp(min=0)].float()
    elif how == "cls":
        pooled = states[:, 0].float()
    else:
        weights = mask.unsqueeze(-1).float()
        pooled = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    return pooled.where(counts[:, None] > 0, 0.0)


def normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length."""
    from torch.nn.functional import normalize as unit

    return unit(vectors, dim=-1)


def cut(vectors: Tensor, dimension: int) -> Tensor:
    """The first `dimension` columns of unit rows as unit rows; rows of that width are given back as they are."""
    return vectors if vectors.shape[1] == dimension else normalize(vectors[:, :dimension])
