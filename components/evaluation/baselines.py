"""BM25, the baseline that needs no training.

Lucene's variant with k1 = 1.5 and b = 0.75, on lower-cased words of at least two characters, English stop words removed, no stemming.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from components.progress import progress_bar

if TYPE_CHECKING:
    from components.data.dataset import Dataset

DESCRIPTION = "BM25: Lucene's variant, k1 1.5, b 0.75, English stop words removed, no stemming"
_STOPWORDS = "english"


class Bm25Ranker:
    """Ranks documents by BM25; one that shares no word with the query is never returned."""

    def __init__(self, doc_ids: Sequence[str], texts: Sequence[str], progress: bool = True) -> None:
        """Read `texts` (in the order of `doc_ids`); `progress` shows bars on stderr."""
        import bm25s

        # Sorted by id, so that a stable sort by score leaves equal scores in the order of their ids.
        rows = sorted(range(len(doc_ids)), key=lambda i: doc_ids[i])
        self._doc_ids = [doc_ids[i] for i in rows]
        self._progress = progress
        bar = progress_bar(len(rows), "BM25: reading documents", "doc", shown=progress, iterable=[texts[i] for i in rows])
        words = bm25s.tokenize(bar, stopwords=_STOPWORDS, show_progress=False)
        # bm25s cannot index a corpus in which every text is empty or made of stop words.
        self._index = _index(words) if any(words.ids) else None

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """At most k (doc_id, score) for each query, best first, equal scores in the order of the ids."""
        import bm25s

        words: Any = bm25s.tokenize(list(queries), stopwords=_STOPWORDS, return_ids=False, show_progress=False)
        bar = progress_bar(len(words), "BM25: answering queries", "query", shown=self._progress, iterable=words)
        return [self._best(query, k) for query in bar]

    def _best(self, words: list[str], k: int) -> list[tuple[str, float]]:
        if self._index is None or not words:
            return []
        scores = self._index.get_scores(words)
        found = np.flatnonzero(scores > 0)
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [(self._doc_ids[row], float(scores[row])) for row in best]


def bm25_ranker(dataset: Dataset, progress: bool = True) -> Bm25Ranker:
    """BM25 over the documents as the encoders see them, title and text joined."""
    return Bm25Ranker([str(i) for i in dataset.documents["doc_id"]], dataset.document_texts(), progress)


def _index(words: Any) -> Any:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(words, show_progress=False)
    return index
