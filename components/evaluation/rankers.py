"""What is evaluated: anything that ranks documents for queries, what an earlier evaluation wrote down among it, and two rankings made one.

A query encoder's ranking finds what is meant, BM25's finds the very words.

A document's fused score is `weight` times its share in the dense ranking and `1 - weight` times that in the lexical one; a document that
a ranking lacks has a share of 0 there. By reciprocal rank the share is 1 / (k + rank), ranks from 1; by scores it is the score on the
scale from the lowest (0) to the highest (1) of the query's ranking. Method, k and weight are chosen on dev, never on what is reported.
Sources: Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods, SIGIR 2009;
Bruch, Gai and Ingber, An Analysis of Fusion Functions for Hybrid Retrieval, ACM TOIS 42 (2023), for the sum of scores on one scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from components.errors import SpaceMismatch
from components.evaluation.bm25 import Bm25Ranker, sampled
from components.evaluation.config import AUTO
from components.evaluation.metrics import RETAINED, JudgedSplit, Ranking, first_places, per_query_metrics, read_trec_run
from components.evaluation.report import Bm25Setup, FusionSetup, Summary, UntrainedSetup, load_summary
from components.evaluation.summarize import judged_split
from components.index.search import VectorIndex, index_in_memory

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig
    from components.towers.contract import TextEncoder


class Ranker(Protocol):
    """Ranks documents for queries."""

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """At most k (doc_id, score) for each query, best first."""
        ...


@dataclass(frozen=True)
class DenseRanker:
    """A query encoder on an index; `label` names its progress bar, None shows none. Raises SpaceMismatch for two spaces.

    `setup` says which encoder it is, where it was not trained here.
    """

    encoder: TextEncoder
    index: VectorIndex
    label: str | None = None
    setup: UntrainedSetup | None = None

    def __post_init__(self) -> None:
        if self.encoder.space_id != self.index.space_id:
            raise SpaceMismatch(
                f"The query encoder belongs to the vector space {self.encoder.space_id[:12]}, the index to {self.index.space_id[:12]}. "
                "Together they would find documents by chance: take both from the same run."
            )

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """The k nearest (doc_id, cosine) of each query, best first, equal scores in the order of the ids."""
        return self.rank_vectors(self.encode(queries), k)

    def encode(self, queries: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of the queries, float32 (n, dimension)."""
        return self.encoder.encode(list(queries), progress=self.label)

    def rank_vectors(self, vectors: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """`rank` for queries that are encoded already."""
        scores, ids = self.index.search(vectors, k)
        return [[(doc_id, float(score)) for doc_id, score in zip(row, best, strict=True)] for row, best in zip(ids, scores, strict=True)]


def symmetric_ranker(
    encoder: TextEncoder, dataset: Dataset, label: str | None = None, vectors: NDArray[np.float32] | None = None
) -> DenseRanker:
    """One encoder for queries and documents alike, such as the student's before training. Its contract's max_length cuts documents too.

    `vectors`: those of the documents, float32 (documents, dimension), where they are known; else all are encoded here.
    """
    if vectors is None:
        vectors = encoder.encode(dataset.document_texts(), progress=None if label is None else f"{label}: documents")
    index = index_in_memory(vectors, [str(i) for i in dataset.documents["doc_id"]], encoder.space_id)
    return DenseRanker(encoder, index, None if label is None else f"{label}: queries")


# --- Rankings that an earlier evaluation wrote down: what did not change since is not measured again.


@dataclass(frozen=True)
class RecordedRanker:
    """The rankings of one system by the text of the query; `setup` says which BM25 or untrained encoder it was."""

    rankings: dict[str, list[tuple[str, float]]]
    setup: Bm25Setup | UntrainedSetup

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """What was recorded, cut to k."""
        return [self.rankings[text][:k] for text in queries]


def recorded_ranker(folder: Path, system: str, dataset: Dataset, config: EvaluationConfig) -> RecordedRanker | None:
    """`system` as the evaluation in `folder` ranked it on the same data.

    None when it was not measured there on the very queries that `config` asks for, when it is a BM25 of another kind, and when the report
    does not say which BM25 or untrained encoder it was: those of before were weaker. A query that was asked and has no line in the run file
    found nothing.
    """
    summary = load_summary(folder)
    setup = _bm25(summary.bm25, config) if system == "bm25" else summary.untrained.get(system)
    if system not in summary.systems or setup is None:
        return None
    rankings: dict[str, list[tuple[str, float]]] = {}
    for split in (config.split, *config.extra_splits):
        judged, path = judged_split(dataset, split), folder / (f"{system}.trec" if split == config.split else f"{split}.{system}.trec")
        if _digest_of(summary, split) != judged.digest or not path.is_file():
            return None
        found = read_trec_run(path)
        for query, text in zip(judged.query_ids, judged.texts, strict=True):
            # Two queries of one text differ where one of them is a document, which its own ranking leaves out.
            ranking = found.get(query, [])
            if rankings.setdefault(text, ranking) != ranking:
                return None
    return RecordedRanker(rankings, setup)


def _bm25(setup: Bm25Setup | None, config: EvaluationConfig) -> Bm25Setup | None:
    """The setup, where its stemmer was chosen as it would be now."""
    asked = config.bm25_stemmer
    return setup if setup and (setup.told if asked == AUTO else not setup.told and setup.stemmer == asked) else None


def _digest_of(summary: Summary, split: str) -> str | None:
    """Digest of the judgements that were measured in a split, None where it was not."""
    if split == summary.split:
        return summary.judgements_digest
    return summary.extra[split].judgements_digest if split in summary.extra else None


# --- Two rankings made one: a query encoder's, which finds what is meant, and BM25's, which finds the very words.


DEV = "dev"
# More than for BM25's k1 and b: no setting asks for a new answer, and with every second of the demo's 397 the choice was worse for others.
FUSION_QUERIES = 1000
DEPTH = 100  # documents of each ranking that are fused, where fewer are asked for
# Cormack's k and equal weights come first: of equally good settings the first is taken.
GRID = (
    *(FusionSetup(k=k, weight=weight) for k in (60.0, 20.0, 5.0) for weight in (0.5, 0.3, 0.7)),
    *(FusionSetup(method="scores", weight=weight) for weight in (0.5, 0.2, 0.35, 0.65, 0.8)),
)


@dataclass(frozen=True)
class FusedRanker:
    """A dense and a lexical ranker asked the same queries, their rankings fused as `setup` says."""

    dense: Ranker
    lexical: Ranker
    setup: FusionSetup

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """At most k (doc_id, fused score) for each query, best first, equal scores in the order of the ids."""
        depth = max(k, DEPTH)
        return self.fused(self.dense.rank(queries, depth), self.lexical.rank(queries, depth), k)

    def fused(self, dense: Sequence[Ranking], lexical: Sequence[Ranking], k: int) -> list[list[tuple[str, float]]]:
        """The same from the rankings of both, of the same queries in the same order."""
        return [fuse(first, second, self.setup)[:k] for first, second in zip(dense, lexical, strict=True)]

    def quiet(self) -> FusedRanker:
        """The same without progress bars, which would be timed with the answers."""
        dense = replace(self.dense, label=None) if isinstance(self.dense, DenseRanker) else self.dense
        return replace(self, dense=dense, lexical=self.lexical.quiet() if isinstance(self.lexical, Bm25Ranker) else self.lexical)


def fused_ranker(dense: Ranker, lexical: Ranker, dataset: Dataset, depth: int = DEPTH) -> FusedRanker:
    """Both as one, fused as is best on the dev queries; without judged dev queries by reciprocal rank with Cormack's k, weights equal."""
    judged = dev_sample(dataset)
    if judged is None:
        return FusedRanker(dense, lexical, GRID[0])
    first, second = (judged.rankings(ranker.rank(judged.texts, judged.asked(depth)), depth) for ranker in (dense, lexical))
    return FusedRanker(dense, lexical, best_on_dev(first, second, judged))


def dev_sample(dataset: Dataset) -> JudgedSplit | None:
    """The judged dev queries on which a fusion is chosen, an even sample where there are many; None where none is judged."""
    if DEV not in dataset.splits or dataset.judged_queries(DEV).empty:
        return None
    return sampled(judged_split(dataset, DEV), FUSION_QUERIES)


def best_on_dev(dense: Mapping[str, Ranking], lexical: Mapping[str, Ranking], judged: JudgedSplit) -> FusionSetup:
    """The setting of `GRID` with the best sum of recall@50 and nDCG@10, by which checkpoints and BM25 are chosen too.

    `dense` and `lexical` map every query of `judged` to its ranking.
    """
    scores = []
    for setup in GRID:
        found = {query: fuse(dense[query], lexical[query], setup) for query in judged.query_ids}
        means = per_query_metrics(judged.judgements, found).groupby("metric")["value"].mean()
        scores.append(float(sum(means[metric] for metric in RETAINED)))
    return GRID[int(np.argmax(scores))].model_copy(update={"dev_queries": len(judged.query_ids)})


def fuse(dense: Ranking, lexical: Ranking, setup: FusionSetup) -> list[tuple[str, float]]:
    """One ranking of all documents of both, best first, equal scores in the order of the ids."""
    fused: dict[str, float] = {}
    for ranking, weight in ((dense, setup.weight), (lexical, 1 - setup.weight)):
        for doc_id, share in _shares(first_places(ranking), setup):
            fused[doc_id] = fused.get(doc_id, 0.0) + weight * share
    return sorted(fused.items(), key=lambda hit: (-hit[1], hit[0]))


def _shares(ranking: Ranking, setup: FusionSetup) -> list[tuple[str, float]]:
    """(doc_id, share) of one ranking, in which no document stands twice."""
    if setup.method == "reciprocal_rank":
        return [(doc_id, 1 / (setup.k + rank)) for rank, (doc_id, _) in enumerate(ranking, start=1)]
    scores = [score for _, score in ranking]
    lowest, width = min(scores, default=0.0), max(scores, default=0.0) - min(scores, default=0.0)
    # Where all scores are equal, all are the best.
    return [(doc_id, (score - lowest) / width if width > 0 else 1.0) for doc_id, score in ranking]
