"""Losses of stage 2, as functions of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def alignment_loss(student: Tensor, teacher: Tensor, mse_weight: float, cosine_weight: float) -> Tensor:
    """Weighted sum of squared error and one minus cosine, mean over rows.

    `student` (n, d) before normalisation, `teacher` (n, d) unit rows. The squared error is summed over dimensions and taken before
    normalisation: on unit vectors it would be proportional to the cosine term and carry nothing of its own.
    """
    from torch.nn.functional import cosine_similarity

    squared = (student - teacher).pow(2).sum(-1).mean()
    return mse_weight * squared + cosine_weight * (1 - cosine_similarity(student, teacher)).mean()


def refinement_loss(queries: Tensor, documents: Tensor, targets: Tensor, temperature: float, blocked: Tensor | None = None) -> Tensor:
    """Cross-entropy of each query's document against all frozen documents.

    `queries` (n, d) and `documents` (m, d) unit rows, `targets` (n,) row numbers of the positives, `blocked` (n, m) bool: further
    relevant documents, which are no negatives.
    """
    from torch.nn.functional import cross_entropy

    scores = queries @ documents.T / temperature
    if blocked is not None:
        scores = scores.masked_fill(blocked, float("-inf"))
    return cross_entropy(scores, targets)
