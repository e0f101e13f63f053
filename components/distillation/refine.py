"""What a query is refined against: the frozen documents, all or mined ones, without those that may be relevant too.

No negative of a query is a document that is judged relevant to it or that it is itself, nor (positive-aware filter, NV-Retriever,
Moreira et al. 2024) one that the teacher scores above a share of its score of the positive. Masks are made for a whole batch at once: an
epoch goes through every pair, and a loop over documents would take longer than the training itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

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
