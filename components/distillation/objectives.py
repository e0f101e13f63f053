"""What a student learns: the losses of stage 2, and what a query is refined against.

That is the frozen documents, all or mined ones, without those that may be relevant too.

No negative of a query is a document that is judged relevant to it or that it is itself, nor (positive-aware filter, NV-Retriever, Moreira
et al. 2024) one that the teacher scores above a share of its score of the positive. Masks are made for a whole batch at once: an epoch
goes through every pair, and a loop over documents would take longer than the training itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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


# --- What a query is refined against: the frozen documents, all or mined ones, without those that may be relevant too.


SCORES_AT_ONCE = 16_000_000  # similarities in memory while mining


@dataclass(frozen=True)
class Candidates:
    """Documents of a batch (m, d), the column of each query's positive (n,), and what is no negative of a query (n, m) bool."""

    documents: Tensor
    targets: Tensor
    blocked: Tensor


class Refinement:
    """The pairs of the refinement and, for any batch of them, the documents they are told apart from."""

    def __init__(
        self,
        documents: Tensor,
        teacher: Tensor,
        pairs: Sequence[tuple[int, int]],
        positive_share: float | None,
        own: Sequence[tuple[int, int]] = (),
    ) -> None:
        """`documents` (m, d) and `teacher` (texts, d) are unit rows on one device; a pair is (text number, document number).

        `own` are further pairs that are no negatives, and no positives either.
        """
        import torch

        self._documents, self._teacher, self._share = documents, teacher, positive_share
        table = torch.tensor(pairs, dtype=torch.long, device=documents.device).reshape(-1, 2)
        self._text_of, self._document_of = table[:, 0], table[:, 1]
        texts, self._row_of = torch.unique(self._text_of, return_inverse=True)
        self.texts: NDArray[np.int64] = texts.cpu().numpy()
        further = torch.tensor(own, dtype=torch.long, device=documents.device).reshape(-1, 2)
        further = further[torch.isin(further[:, 0], texts)]
        rows = torch.cat([self._row_of, torch.searchsorted(texts, further[:, 0].contiguous())])
        self._counts = torch.bincount(rows, minlength=len(texts))
        self._starts = self._counts.cumsum(0) - self._counts
        # No negatives of a text: what is judged relevant to it, and what it is itself.
        self._spared = torch.cat([self._document_of, further[:, 1]])[torch.argsort(rows, stable=True)]
        self._mined: Tensor | None = None

    def mine(self, queries: Tensor, depth: int) -> None:
        """Take the `depth` documents nearest to each query as the negatives from now on; `queries` (len(self.texts), d), unit rows."""
        import torch

        rows = max(1, SCORES_AT_ONCE // len(self._documents))
        depth = min(depth, len(self._documents))
        self._mined = torch.cat([(chunk @ self._documents.T).topk(depth).indices for chunk in queries.split(rows)])

    def spread(self, depth: int, seed: Sequence[int]) -> None:
        """Take documents from the whole range of the teacher's scores as the negatives from now on, at most `depth` of each query.

        The range from a query's lowest to its highest score is cut into `depth` equal parts, and of each part that holds documents one is
        drawn. Source: arXiv 2604.04734, which draws the documents that a query encoder is distilled on so and not from the top alone.
        """
        import torch

        count, device = len(self._documents), self._documents.device
        depth = min(depth, count)
        rng = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**62)))
        drawn = []
        for texts in torch.from_numpy(self.texts).to(device).split(max(1, SCORES_AT_ONCE // count)):
            scores = self._teacher[texts] @ self._documents.T
            lowest, highest = scores.min(1, keepdim=True).values, scores.max(1, keepdim=True).values
            parts = ((scores - lowest) / (highest - lowest).clamp(min=1e-12) * depth).long().clamp(0, depth - 1)
            # Sorted by part, and by chance within it: the first of each part is the one that is drawn.
            order = (parts.double() + torch.rand(scores.shape, generator=rng, dtype=torch.float64).to(device)).argsort(1)
            of = parts.gather(1, order)
            first = torch.cat([torch.ones_like(of[:, :1], dtype=torch.bool), of[:, 1:] != of[:, :-1]], 1)
            chosen = torch.full((len(texts), depth + 1), -1, dtype=torch.long, device=device)  # the last column takes all others
            chosen = chosen.scatter_(1, torch.where(first, of, depth), order)[:, :depth]
            # An empty part repeats a document that was drawn from another one.
            drawn.append(torch.where(chosen < 0, chosen.max(1, keepdim=True).values, chosen))
        self._mined = torch.cat(drawn)

    def text_numbers(self, pairs: NDArray[np.int64]) -> list[int]:
        """The texts of these pairs."""
        numbers: list[int] = self._text_of[pairs].tolist()
        return numbers

    def candidates(self, pairs: NDArray[np.int64]) -> Candidates:
        """All documents, or the positives of the batch with the mined documents of its queries, each for every query of the batch."""
        import torch

        rows, positives = self._row_of[pairs], self._document_of[pairs]
        if self._mined is None:
            chosen, documents = torch.arange(len(self._documents), device=positives.device), self._documents
        else:
            chosen = torch.unique(torch.cat([positives, self._mined[rows].flatten()]))
            documents = self._documents[chosen]
        targets = torch.searchsorted(chosen, positives)
        blocked = self._no_negatives(rows, chosen)
        if self._share is not None:
            scores = self._teacher[self._text_of[pairs]] @ documents.T
            blocked |= scores > self._share * scores.gather(1, targets[:, None])
        blocked[torch.arange(len(targets), device=targets.device), targets] = False
        return Candidates(documents, targets, blocked)

    def _no_negatives(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """Whether each of the chosen documents (sorted numbers) is relevant to the query or its own: (len(rows), len(chosen)) bool."""
        import torch

        counts = self._counts[rows]
        query = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
        first = torch.repeat_interleave(self._starts[rows] - (counts.cumsum(0) - counts), counts)
        spared = self._spared[first + torch.arange(len(query), device=rows.device)]
        column = torch.searchsorted(chosen, spared).clamp(max=len(chosen) - 1)
        present = chosen[column] == spared
        mask = torch.zeros((len(rows), len(chosen)), dtype=torch.bool, device=rows.device)
        mask[query[present], column[present]] = True
        return mask
