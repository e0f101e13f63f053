"""Losses of stage 1, as functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def info_nce(
    queries: Tensor,
    documents: Tensor,
    temperature: float,
    targets: Tensor | None = None,
    blocked: Tensor | None = None,
    suspect_margin: float | None = None,
) -> Tensor:
    """Mean InfoNCE of each query's positive against the other documents, over unit rows. Source: van den Oord et al. 2018.

    `queries` (n, d), `documents` (m, d); `targets` int64 (n,): the column of each query's positive, by default its own row number.
    `blocked` bool (n, m) marks known false negatives (see negatives.known_false_negatives): they are left out of the sum, since a
    relevant document must not be pushed away. With `suspect_margin` so are documents whose cosine exceeds the positive's by more.
    """
    import torch

    targets = torch.arange(len(queries), device=queries.device) if targets is None else targets
    scores = queries @ documents.T
    left_out = _left_out(scores.detach(), targets, blocked, suspect_margin)
    return torch.nn.functional.cross_entropy(scores.masked_fill(left_out, float("-inf")) / temperature, targets)


def matryoshka_info_nce(
    queries: Tensor,
    documents: Tensor,
    temperature: float,
    targets: Tensor | None = None,
    blocked: Tensor | None = None,
    suspect_margin: float | None = None,
    dimensions: Sequence[int] = (),
) -> Tensor:
    """Mean of `info_nce` over the first k columns, made unit again, for each k of `dimensions`, and over all columns.

    Suspects are told by all columns, once: the scores of a short prefix are the least reliable. Source: Kusupati et al. 2022.
    """
    import torch

    width = queries.shape[1]
    if suspect_margin is not None and dimensions:
        rows = torch.arange(len(queries), device=queries.device) if targets is None else targets
        blocked = _left_out((queries @ documents.T).detach(), rows, blocked, suspect_margin)
        suspect_margin = None
    losses = [
        info_nce(_prefix(queries, k), _prefix(documents, k), temperature, targets, blocked, suspect_margin)
        for k in sorted({*dimensions, width})
    ]
    return torch.stack(losses).mean()


def _prefix(vectors: Tensor, size: int) -> Tensor:
    """The first columns as unit rows; all columns are unit already."""
    import torch

    return vectors if size == vectors.shape[1] else torch.nn.functional.normalize(vectors[:, :size], dim=1)


def _left_out(scores: Tensor, targets: Tensor, blocked: Tensor | None, suspect_margin: float | None) -> Tensor:
    """bool (n, m): what is no negative of a row, known or suspected; never the row's own positive."""
    import torch

    found = torch.zeros_like(scores, dtype=torch.bool) if blocked is None else blocked.clone()
    own = targets[:, None]
    if suspect_margin is not None:
        found |= scores > scores.gather(1, own) + suspect_margin
    return found.scatter(1, own, False)
