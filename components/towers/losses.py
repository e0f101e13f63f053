"""Losses of stage 1, as functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(queries: Tensor, documents: Tensor, temperature: float, also_positive: Tensor | None = None) -> Tensor:
    """Mean InfoNCE of each query against all documents of the batch; row i of both is a pair.

    `queries` (n, d), `documents` (m >= n, d), unit rows. `also_positive` (n, m) bool marks further relevant documents: they are
    taken out of the sum of negatives, since a judged-relevant document must not be pushed away. Source: van den Oord et al. 2018.
    """
    import torch

    scores = queries @ documents.T / temperature
    targets = torch.arange(len(queries), device=scores.device)
    if also_positive is not None:
        blocked = also_positive.clone()
        blocked[targets, targets] = False
        scores = scores.masked_fill(blocked, float("-inf"))
    return torch.nn.functional.cross_entropy(scores, targets)
