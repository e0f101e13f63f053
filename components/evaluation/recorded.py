"""Rankings that an earlier evaluation wrote down: what did not change since is not measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.config import AUTO
from components.evaluation.report import Bm25Setup, Summary, UntrainedSetup, load_summary
from components.evaluation.summarize import judged_split

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig


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
        found = _read(path)
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


def _read(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Query id -> (doc_id, score), best first, of a run file of our own."""
    rankings: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, doc_id, _, score, _ = line.split(" ")
        rankings.setdefault(query, []).append((doc_id, float(score)))
    return rankings
