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


def similarity_loss(student: Tensor, teacher: Tensor, documents: Tensor, temperature: float) -> Tensor:
    """KL divergence of the student's distribution over documents from the teacher's, mean over rows, in nats.

    `student` and `teacher` (n, d), `documents` (m, d), all unit rows. A distribution is the softmax of the cosines divided by the
    temperature. The square of the temperature that Hinton et al. (2015) multiply with is left to the loss's weight.
    """
    from torch.nn.functional import kl_div, log_softmax

    ours = log_softmax(student @ documents.T / temperature, dim=-1)
    theirs = log_softmax(teacher @ documents.T / temperature, dim=-1)
    return kl_div(ours, theirs, reduction="batchmean", log_target=True)


def refinement_loss(queries: Tensor, documents: Tensor, targets: Tensor, temperature: float, blocked: Tensor | None = None) -> Tensor:
    """Cross-entropy of each query's document against all frozen documents.

    `queries` (n, d) and `documents` (m, d) unit rows, `targets` (n,) row numbers of the positives, `blocked` (n, m) bool: documents
    that are no negatives of a query, never its positive.
    """
    from torch.nn.functional import cross_entropy

    scores = queries @ documents.T / temperature
    if blocked is not None:
        scores = scores.masked_fill(blocked, float("-inf"))
    return cross_entropy(scores, targets)
