"""The map from the encoder's width to the index's: linear, or two layers with GELU between; both start as the same fitted map.

A two-layer head starts as the linear one exactly, not from noise: GELU(x) - GELU(-x) = x, so a map B A equals
[B, -B] GELU([A; -A]). What is left of the hidden layer starts at random with no say in the output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from components.distillation.config import DistillationConfig

if TYPE_CHECKING:
    from torch import Tensor

RIDGE = 1e-3  # share of the mean energy of a feature


def ridge(features: Tensor, targets: Tensor) -> Tensor:
    """The linear map (outputs, inputs) float32 from rows of `features` (n, inputs) to `targets` (n, outputs), by ridge regression."""
    import torch

    x, y = features.double(), targets.double()
    gram = x.T @ x
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram + penalty, x.T @ y).T.float().contiguous()


def new_head(weight: Tensor, features: Tensor, config: DistillationConfig) -> Any:
    """The head that the configuration asks for, starting as the fitted map `weight` (dimension, width) on `features` (n, width)."""
    return linear_head(weight) if config.head == "linear" else two_layer_head(weight, features, config.head_width)


def linear_head(weight: Tensor) -> Any:
    """A linear map without bias with the given weight (dimension, width)."""
    from torch import nn

    head = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    head[0].weight.data = weight.clone()
    return head


def two_layer_head(weight: Tensor, features: Tensor, hidden: int) -> Any:
    """Linear, GELU, linear with `hidden` units between, equal at the start to the map `weight` (dimension, width).

    `features` (n, width) give the scale at which the hidden units work: a standard deviation of 1, where GELU bends. With fewer than
    2 * rank units the start is the best map of the rank that fits (Eckart and Young), not `weight` itself.
    """
    import torch
    from torch import nn

    first, second = nn.Linear(weight.shape[1], hidden), nn.Linear(hidden, weight.shape[0], bias=False)
    left, singular, right = torch.linalg.svd(weight.double(), full_matrices=False)
    rank = min(hidden // 2, len(singular))
    spread = (features.double() @ right[:rank].T).std(0)
    # Directions in which the features hardly vary would get weights of any size, which the first steps would blow up.
    scale = spread.clamp(min=1e-2 * spread.max())
    inner, outer = right[:rank] / scale[:, None], left[:, :rank] * (singular[:rank] * scale)
    with torch.no_grad():
        first.bias.zero_()
        first.weight[: 2 * rank] = torch.cat([inner, -inner]).float()
        second.weight.zero_()
        second.weight[:, : 2 * rank] = torch.cat([outer, -outer], dim=1).float()
    return nn.Sequential(first, nn.GELU(), second)
