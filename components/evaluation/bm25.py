"""BM25, the baseline that needs no training: Lucene's variant and the words that it counts, set up as its makers would, recorded.

Words are runs of letters, digits and marks, in small letters, of any length: the B of "hepatitis B" and the r of "ls -r" are words.
Scripts that put no spaces between words are cut into overlapping pairs of characters, as Lucene's CJKAnalyzer does. Stemmers are
Snowball's.

The stemmer follows the documents' language, k1 and b are chosen on the dev queries, no word is left out for being short or frequent.
"""

from __future__ import annotations

import copy
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.evaluation.config import AUTO, NO_STEMMER, stemmer_name
from components.evaluation.metrics import RETAINED, JudgedSplit, per_query_metrics
from components.evaluation.report import Bm25Setup
from components.evaluation.summarize import judged_split
from components.progress import progress_bar

if TYPE_CHECKING:
    from bm25s.tokenization import Tokenized

    from components.data.dataset import Dataset


# Python's \w holds no combining marks, so accents and vowel signs would cut the words of Hindi, Thai or Arabic in pieces.
_MARKS = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u0eb1-\u0ebc\u200c\u200d"
_WORD = re.compile(rf"[\w{_MARKS}]+")
# Kana, Han and Hangul; Thai, Lao, Burmese and Khmer.
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0eff\u1000-\u109f\u1780-\u17d2]+")
# Frequent words that a language does not share with its neighbours: "for" is English, Danish and Norwegian, "se" Finnish and Spanish.
_FUNCTION_WORDS = {
    "english": "the of and to with by from or are this that which be has not",
    "german": "der und den das von zu mit ist dem ein eine auf nicht für des sich werden oder bei wird",
    "dutch": "het een van zijn voor niet aan ook wordt naar bij deze door uit worden",
    "french": "les des et du est dans pour une qui sur aux par avec pas sont cette ou être",
    "spanish": "los las y con el su más pero una sus este",
    "portuguese": "os um uma com não ao são dos mais pelo pela foi também ou à das em",
    "italian": "il di che della per gli è nel dei sono delle alla anche più dal",
    "romanian": "și în cu pe este din pentru care sau nu ale fi prin sunt",
    "swedish": "och att är för inte till från ett vid",
    "danish": "af at efter bliver blev mellem nogle mig sig hvad uden",
    "norwegian": "av å etter blir ble mellom noen meg seg hva uten",
    "finnish": "että oli mutta myös kun ovat tai joka ole sekä hän hänen",
    "hungarian": "az és hogy nem egy is ez vagy meg csak mint volt",
    "polish": "w się nie jest oraz przez dla są że lub od które",
    "czech": "že který jsou podle také při byl která nebo není však pro ve",
    "russian": "что как это его для из был они её если или также при было",  # noqa: RUF001
    "greek": "και το του της η την των να με για από στο οι είναι",  # noqa: RUF001
    "turkish": "ve bir bu için ile olarak çok daha olan gibi veya",
    "indonesian": "yang dan untuk dengan dari ini pada dalam tidak adalah akan atau",
}
_SAMPLE, _CHARACTERS = 2000, 2000  # documents that are looked at for their language, and characters of each
_FEWEST = 50  # words below which nothing is told
_SHARE = 0.03  # of all words have to be function words of the language
_LEAD = 4.0  # times as many as of the next one


def told_language(texts: Sequence[str]) -> str | None:
    """The language of the documents `texts` by its function words, as Snowball names it; None where it is not clear.

    Clear means: of a sample's words at least 3 % belong to the language's list, and four times as many as to any other list. Lists of
    names, mixed languages and languages without a list stay untold.
    """
    sample = texts[:: max(1, len(texts) // _SAMPLE)]
    counts = Counter(word for text in sample for word in words_of(text[:_CHARACTERS]))
    total = counts.total()
    found = sorted((sum(counts[word] for word in words.split()), language) for language, words in _FUNCTION_WORDS.items())
    (second, _), (most, language) = found[-2:]
    return language if total >= _FEWEST and most >= _SHARE * total and most >= _LEAD * second else None


def words_of(text: str) -> list[str]:
    """The words of a text in their order, unstemmed."""
    if not text.isascii():
        text = _UNSPACED.sub(_pairs, unicodedata.normalize("NFKC", text))
    return _WORD.findall(text.lower())


def _pairs(found: re.Match[str]) -> str:
    run = found[0]
    return f" {' '.join(run[i : i + 2] for i in range(max(1, len(run) - 1)))} "


def stem_function(stemmer: str) -> Callable[[str], str]:
    """The stem of a word by Snowball's `stemmer`; with `none` the word itself. What is returned serves one thread."""
    if stemmer == NO_STEMMER:
        return str
    import Stemmer

    made: Any = Stemmer.Stemmer(stemmer)
    stem: Callable[[str], str] = made.stemWord
    return stem


def numbered(texts: Iterable[str], stem: Callable[[str], str]) -> Tokenized:
    """The ids of the stems of each text, and each stem's id, as bm25s indexes them."""
    from bm25s.tokenization import Tokenized

    vocabulary, known = dict[str, int](), dict[str, int]()
    ids = []
    for text in texts:
        row = []
        for word in words_of(text):
            if word not in known:
                known[word] = vocabulary.setdefault(stem(word), len(vocabulary))
            row.append(known[word])
        ids.append(row)
    return Tokenized(ids=ids, vocab=vocabulary)


# --- BM25, the baseline that needs no training: Lucene's variant, set up as its makers would, and recorded as `Bm25Setup`.


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


def sampled(judged: JudgedSplit, most: int | None = None) -> JudgedSplit:
    """An even sample of at most `most` (`DEV_QUERIES`) judged queries, with which settings are chosen; itself where there are no more."""
    step = -(-len(judged.query_ids) // (most or DEV_QUERIES))
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
