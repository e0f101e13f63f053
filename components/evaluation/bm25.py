"""BM25, the baseline that needs no training: Lucene's variant, set up as its makers would, and recorded as `Bm25Setup`.

The stemmer follows the documents' language, k1 and b are chosen on the dev queries, no word is left out for being short or frequent.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.bm25_words import numbered, stem_function, told_language, words_of
from components.evaluation.config import AUTO, NO_STEMMER, stemmer_name
from components.evaluation.metrics import RETAINED, per_query_metrics
from components.evaluation.report import Bm25Setup
from components.evaluation.summarize import JudgedSplit, judged_split
from components.progress import progress_bar

if TYPE_CHECKING:
    from components.data.dataset import Dataset

# Lucene's values come first: of equally good ones the first is taken. 0.9 and 0.4 are Anserini's, 1.5 and 0.75 those of bm25s.
GRID = tuple((k1, b) for k1 in (1.2, 0.9, 0.6, 1.5) for b in (0.75, 0.9, 0.6, 0.4))
_DEV = "dev"
DEV_QUERIES = 300  # an even sample of more
DEV_DOCUMENTS = 50_000  # k1 and b are chosen on an even sample of more documents, beside the dev queries' own
_DEV_DEPTH = 50
_ENTRIES = 2**22  # of an index that are worked out together, some 200 MB


@dataclass(frozen=True)
class Bm25Documents:
    """Documents in the order of their ids, so that a stable sort by score leaves equal scores in that order; `rows` hold ids of stems."""

    doc_ids: Sequence[str]
    rows: Sequence[list[int]]
    vocabulary: dict[str, int]
    stemmer: str

    @classmethod
    def read(cls, doc_ids: Sequence[str], texts: Sequence[str], stemmer: str = NO_STEMMER, progress: bool = True) -> Bm25Documents:
        """Read `texts` (in the order of `doc_ids`) with Snowball's `stemmer`, or none; `progress` shows a bar on stderr."""
        order = sorted(range(len(doc_ids)), key=lambda i: doc_ids[i])
        bar = progress_bar(len(order), "BM25: reading documents", "doc", shown=progress, iterable=[texts[i] for i in order])
        found = numbered(bar, stem_function(stemmer))
        return cls([doc_ids[i] for i in order], found.ids, found.vocab, stemmer)

    def some(self, most: int, needed: frozenset[str]) -> Bm25Documents:
        """An even sample of `most` documents, and those of `needed`; itself where it has no more."""
        step = -(-len(self.doc_ids) // most)
        if step <= 1:
            return self
        kept = [i for i, doc_id in enumerate(self.doc_ids) if i % step == 0 or doc_id in needed]
        return replace(self, doc_ids=[self.doc_ids[i] for i in kept], rows=[self.rows[i] for i in kept])


class Bm25Ranker:
    """Ranks documents by BM25; one that shares no word with the query is never returned. `setup` says which BM25 it is."""

    def __init__(self, documents: Bm25Documents, setup: Bm25Setup | None = None, progress: bool = True) -> None:
        """Index the documents; without a `setup` k1 and b are Lucene's. `progress` shows bars on stderr."""
        self.setup = setup or Bm25Setup(stemmer=documents.stemmer)
        self._doc_ids = documents.doc_ids
        self._lengths = np.array([len(row) for row in documents.rows], np.float64)
        self._stem = stem_function(documents.stemmer)
        self._progress = progress
        # bm25s cannot index a corpus in which every text is without a word.
        self._index = _index(documents, self.setup) if any(documents.rows) else None

    def at(self, k1: float, b: float, dev_queries: int) -> Bm25Ranker:
        """The same documents with another k1 and b, chosen on so many dev queries; far quicker than to index them again."""
        other = copy.copy(self)
        other.setup = self.setup.model_copy(update={"k1": k1, "b": b, "dev_queries": dev_queries})
        if self._index is None:
            return other
        other._index = copy.copy(self._index)
        stored = self._index.scores
        found = np.diff(stored["indptr"])
        rarities = np.log(1 + (len(self._lengths) - found + 0.5) / (found + 0.5))
        words, data = np.repeat(np.arange(len(found), dtype=np.int32), found), np.empty_like(stored["data"])
        before, after = self._length_part(self.setup), self._length_part(other.setup)
        for start in range(0, len(data), _ENTRIES):
            part = slice(start, start + _ENTRIES)
            rarity, score, rows = rarities[words[part]], stored["data"][part], stored["indices"][part]
            # A score is rarity * count / (count + length part), so it tells the count.
            counts = np.rint(score * before[rows] / (rarity - score))
            data[part] = rarity * counts / (counts + after[rows])
        other._index.scores = {**stored, "data": data}
        return other

    def _length_part(self, setup: Bm25Setup) -> NDArray[np.float64]:
        part: NDArray[np.float64] = setup.k1 * (1 - setup.b + setup.b * self._lengths / self._lengths.mean())
        return part

    @property
    def nbytes(self) -> int:
        """Bytes of the table of words and documents, without the words themselves."""
        parts = self._index.scores.values() if self._index is not None else ()
        return int(sum(part.nbytes for part in parts if isinstance(part, np.ndarray)))

    def quiet(self) -> Bm25Ranker:
        """The same without progress bars, which would be timed with the answers."""
        other = copy.copy(self)
        other._progress = False
        return other

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """At most k (doc_id, score) for each query, best first, equal scores in the order of the ids."""
        bar = progress_bar(len(queries), "BM25: answering queries", "query", shown=self._progress, iterable=queries)
        return [self._best([self._stem(word) for word in words_of(query)], k) for query in bar]

    def _best(self, words: list[str], k: int) -> list[tuple[str, float]]:
        if self._index is None or not words:
            return []
        scores = self._index.get_scores(words)
        least = np.partition(scores, -k)[-k] if k < len(scores) else 0.0
        found = np.flatnonzero((scores >= least) & (scores > 0))
        best = found[np.argsort(-scores[found], kind="stable")][:k]
        return [(self._doc_ids[row], float(scores[row])) for row in best]


def bm25_ranker(dataset: Dataset, stemmer: str = AUTO, progress: bool = True) -> Bm25Ranker:
    """BM25 over the documents as the encoders see them, title and text joined.

    `stemmer`: auto (by the documents' language, where their function words tell it), none, or a language that Snowball has; raises
    ValueError for another one. k1 and b are those of `GRID` with the best sum of recall@50 and nDCG@10 on dev, by which a student's
    checkpoints are chosen too; without judged dev queries they are Lucene's.
    """
    texts = dataset.document_texts()
    setup = _by_language(stemmer, texts)
    documents = Bm25Documents.read([str(i) for i in dataset.documents["doc_id"]], texts, setup.stemmer, progress)
    ranker = Bm25Ranker(documents, setup, progress)
    if _DEV not in dataset.splits or dataset.judged_queries(_DEV).empty:
        return ranker
    judged = sampled(judged_split(dataset, _DEV))
    return ranker.at(*_best_on_dev(ranker, documents, judged, progress), len(judged.query_ids))


def bm25_as(dataset: Dataset, setup: Bm25Setup, progress: bool = True) -> Bm25Ranker:
    """The BM25 that an earlier evaluation of the same documents has recorded: nothing is chosen again."""
    texts, doc_ids = dataset.document_texts(), [str(i) for i in dataset.documents["doc_id"]]
    # As it was made then: indexed with Lucene's values, and brought to the recorded ones.
    first = setup.model_copy(update={"k1": GRID[0][0], "b": GRID[0][1], "dev_queries": 0})
    ranker = Bm25Ranker(Bm25Documents.read(doc_ids, texts, setup.stemmer, progress), first, progress)
    return ranker.at(setup.k1, setup.b, setup.dev_queries) if setup.dev_queries else ranker


def _by_language(stemmer: str, texts: Sequence[str]) -> Bm25Setup:
    name = stemmer_name(stemmer)
    if name != AUTO:
        return Bm25Setup(stemmer=name)
    return Bm25Setup(stemmer=told_language(texts) or NO_STEMMER, told=True)


def _best_on_dev(ranker: Bm25Ranker, documents: Bm25Documents, judged: JudgedSplit, progress: bool) -> tuple[float, float]:
    """The k1 and b of `GRID` that are best on dev, over a sample of many documents."""
    relevant = judged.judgements.loc[judged.judgements["score"] > 0, "doc_id"]
    few = documents.some(DEV_DOCUMENTS, frozenset(map(str, relevant)))
    trial = ranker if few is documents else Bm25Ranker(few)
    bar = progress_bar(len(GRID), "BM25: choosing k1 and b", "setting", shown=progress, iterable=GRID)
    scores = [_dev_score(trial.at(k1, b, 0).quiet(), judged) for k1, b in bar]
    return GRID[int(np.argmax(scores))]


def sampled(judged: JudgedSplit) -> JudgedSplit:
    """An even sample of at most `DEV_QUERIES` judged queries, with which settings are chosen; itself where there are no more."""
    step = -(-len(judged.query_ids) // DEV_QUERIES)
    ids = judged.query_ids[::step]
    asked = judged.judgements["query_id"].astype(str).isin(set(ids))
    return replace(judged, query_ids=ids, texts=judged.texts[::step], judgements=judged.judgements[asked].reset_index(drop=True))


def _dev_score(ranker: Bm25Ranker, judged: JudgedSplit) -> float:
    found = judged.rankings(ranker.rank(judged.texts, judged.asked(_DEV_DEPTH)), _DEV_DEPTH)
    means = per_query_metrics(judged.judgements, found).groupby("metric")["value"].mean()
    return float(sum(means[metric] for metric in RETAINED))


def _index(documents: Bm25Documents, setup: Bm25Setup) -> Any:
    import bm25s
    from bm25s.tokenization import Tokenized

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    index = bm25s.BM25(method="lucene", k1=setup.k1, b=setup.b)
    # A copy, since bm25s adds a word of its own to the vocabulary.
    index.index(Tokenized(ids=list(documents.rows), vocab=dict(documents.vocabulary)), show_progress=False)
    return index
