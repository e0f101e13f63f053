"""Retrieval metrics per query, by ir-measures (trec_eval's implementations where it has them); rankings and judgements as TREC files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import digest_of
from components.errors import ArtifactError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import OwnDocuments


METRICS = ("recall@1", "recall@10", "recall@50", "recall@100", "ndcg@10", "mrr@10")
RETAINED = ("recall@50", "ndcg@10")  # what the student keeps of the teacher is said in these
Ranking = Sequence[tuple[str, float]]
_WORDS = {"ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}


def metric_words(name: str) -> str:
    """`ndcg@10` for people."""
    return _WORDS.get(name, name)


def per_query_metrics(judgements: pd.DataFrame, rankings: Mapping[str, Ranking]) -> pd.DataFrame:
    """Every metric for every judged query: DataFrame[query_id, metric, value], value float64 in [0, 1], ordered by query and metric.

    `judgements` has query_id, doc_id, score; a document is relevant when its score is above 0, and nDCG takes the score as its gain.
    A judged query that has no ranking, or no relevant document, counts 0: leaving it out would raise the mean. Rankings are taken in
    their order: their scores are replaced by the place, because measures break equal scores in different ways. A document that stands
    in a ranking twice counts at its first place, and the others move up (`first_places`).
    """
    import ir_measures
    import pandas as pd

    theirs = {"recall": "R", "ndcg": "nDCG", "mrr": "RR"}
    parts = {name: name.split("@") for name in METRICS}
    names = {ir_measures.parse_measure(f"{theirs[metric]}@{cutoff}"): name for name, (metric, cutoff) in parts.items()}
    evaluator = ir_measures.evaluator(list(names), _qrels(judgements))
    judged = sorted({str(i) for i in judgements["query_id"]})
    values = {(query_id, name): 0.0 for query_id in judged for name in METRICS}
    for result in evaluator.iter_calc(_run(rankings, set(judged))):
        values[result.query_id, names[result.measure]] = float(result.value)
    return pd.DataFrame([(q, name, value) for (q, name), value in values.items()], columns=["query_id", "metric", "value"])


def _qrels(judgements: pd.DataFrame) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for query_id, doc_id, score in zip(judgements["query_id"], judgements["doc_id"], judgements["score"], strict=True):
        # trec_eval reads a negative score as "not judged" in some measures and as not relevant in others.
        qrels.setdefault(str(query_id), {})[str(doc_id)] = max(int(score), 0)
    return qrels


def first_places(ranking: Ranking) -> list[tuple[str, float]]:
    """The ranking with every document at its first place alone."""
    found: dict[str, float] = {}
    for doc_id, score in ranking:
        found.setdefault(doc_id, score)
    return list(found.items())


def _run(rankings: Mapping[str, Ranking], judged: set[str]) -> dict[str, dict[str, Any]]:
    return {
        query_id: {doc_id: float(len(ranking) - place) for place, (doc_id, _) in enumerate(first_places(ranking))}
        for query_id, ranking in rankings.items()
        if query_id in judged
    }


# --- Files in TREC format: runs (`query_id Q0 doc_id rank score tag`, one line a document) and judgements (`query_id 0 doc_id score`).


QRELS = "qrels.trec"  # the judgements beside the runs of an evaluation; those of an extra split have its name in front


def write_trec_run(path: Path, rankings: Mapping[str, Ranking], tag: str) -> None:
    """Write the rankings (query_id -> best first) where `write_named` puts them, in the order of the mapping; ranks count from 1.

    A score that is not below the one before it is lowered to the next smaller float32: trec_eval ignores the rank, sorts by score and
    breaks ties in its own way, so it would otherwise see another order. A document that a ranking holds twice is written at its first
    place alone, as it is measured. Raises DataError for an id with white space, which the format cannot hold.
    """
    from components.artifacts import write_named

    lines = (line for query_id, ranking in rankings.items() for line in _lines(query_id, ranking, tag))
    write_named(path, "".join(lines).encode())


def write_trec_qrels(path: Path, judgements: pd.DataFrame) -> None:
    """Write the judgements (query_id, doc_id, score) as trec_eval, ir-measures and ranx read them; below 0 is written as 0, as measured.

    Raises DataError for an id with white space, which the format cannot hold.
    """
    from components.artifacts import write_named

    lines = []
    for query_id, doc_id, score in zip(judgements["query_id"], judgements["doc_id"], judgements["score"], strict=True):
        _require_one_word(str(query_id), str(doc_id))
        lines.append(f"{query_id} 0 {doc_id} {max(int(score), 0)}\n")
    write_named(path, "".join(lines).encode())


def read_trec_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Query id -> (doc_id, score), best first, of a run file of our own; raises ArtifactError for a broken one."""
    rankings: dict[str, list[tuple[str, float]]] = {}
    with _understood(path, "a run"):
        for line in path.read_text(encoding="utf-8").splitlines():
            query, _, doc_id, _, score, _ = line.split(" ")
            rankings.setdefault(query, []).append((doc_id, float(score)))
    return rankings


def read_trec_qrels(path: Path) -> pd.DataFrame:
    """DataFrame[query_id, doc_id, score] of a file of judgements of our own; raises ArtifactError for a broken one."""
    import pandas as pd

    with _understood(path, "judgements"):
        lines = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
        rows = [(query, doc_id, int(score)) for query, _, doc_id, score in lines]
    return pd.DataFrame(rows, columns=["query_id", "doc_id", "score"])


@contextmanager
def _understood(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as {what} in TREC's format ({error}). Restore the release, or retrain.") from None


def _lines(query_id: str, ranking: Ranking, tag: str) -> Iterator[str]:
    import numpy as np

    _require_one_word(query_id, tag, *(doc_id for doc_id, _ in ranking))
    above = np.float32(np.inf)
    for rank, (doc_id, score) in enumerate(first_places(ranking), start=1):
        above = min(np.float32(score), np.nextafter(above, np.float32(-np.inf)))
        yield f"{query_id} Q0 {doc_id} {rank} {float(above):.9g} {tag}\n"


def _require_one_word(*names: str) -> None:
    for name in names:
        if not name or name.split() != [name]:
            raise DataError(f"'{name}' cannot stand in a TREC file, where white space separates the columns. Rename it.")


# --- The judged queries of one split, which every system is asked.


def _none_left_out() -> OwnDocuments:
    # With pandas, which those do not need who take the names of the metrics alone, as a configuration does.
    from components.data.dataset import OwnDocuments

    return OwnDocuments()


@dataclass(frozen=True)
class JudgedSplit:
    """The judged queries of one split in the order of their ids, their judgements, and which of them are documents themselves.

    Whoever ranks for them asks for `asked(depth)` documents and takes `rankings` of the answers, which leave out a query's own document.
    """

    query_ids: list[str]
    texts: list[str]
    judgements: pd.DataFrame
    own: OwnDocuments = field(default_factory=_none_left_out)

    @property
    def digest(self) -> str:
        """sha256 over query texts, judgements and what is left out, whatever their order: equal means that two reports are comparable."""
        rows = zip(self.judgements["query_id"], self.judgements["doc_id"], self.judgements["score"], strict=True)
        judgements = sorted([str(query), str(doc), int(score)] for query, doc, score in rows)
        left_out = {"left_out": sorted(self.own.left_out)} if self.own.left_out else {}
        return digest_of({"queries": list(zip(self.query_ids, self.texts, strict=True)), "judgements": judgements, **left_out})

    def asked(self, depth: int) -> int:
        """How many documents to ask for, so that `depth` are left."""
        return depth + bool(self.own.left_out)

    def rankings(self, found: Iterable[Ranking], depth: int) -> dict[str, Ranking]:
        """Query id -> at most `depth` different documents found for it (one ranking a query, in their order) without its own."""
        return {query: self.without_own(query, first_places(ranking))[:depth] for query, ranking in zip(self.query_ids, found, strict=True)}

    def without_own(self, query: str, ranking: Ranking) -> Ranking:
        """The ranking without the document that is the query itself."""
        return [hit for hit in ranking if hit[0] != query] if query in self.own.left_out else ranking
