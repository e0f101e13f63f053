"""Rankings that an earlier evaluation wrote down: what did not change since is not measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from components.evaluation.summarize import judged_split

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.config import EvaluationConfig


@dataclass(frozen=True)
class RecordedRanker:
    """The rankings of one system by the text of the query."""

    rankings: dict[str, list[tuple[str, float]]]

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """What was recorded, cut to k."""
        return [self.rankings[text][:k] for text in queries]


def recorded_ranker(folder: Path, system: str, dataset: Dataset, config: EvaluationConfig) -> RecordedRanker | None:
    """`system` as the evaluation in `folder` ranked it on the same data; None when it does not hold all queries that `config` asks for."""
    rankings: dict[str, list[tuple[str, float]]] = {}
    for split, name in ((config.split, f"{system}.trec"), *((s, f"{s}.{system}.trec") for s in config.extra_splits)):
        judged, found = judged_split(dataset, split), _read(folder / name)
        if not all(query in found for query in judged.query_ids):
            return None
        for query, text in zip(judged.query_ids, judged.texts, strict=True):
            # Two queries of one text differ where one of them is a document, which its own ranking leaves out.
            if rankings.setdefault(text, found[query]) != found[query]:
                return None
    return RecordedRanker(rankings)


def _read(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Query id -> (doc_id, score), best first, of a run file of our own; nothing when there is none."""
    rankings: dict[str, list[tuple[str, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        query, _, doc_id, _, score, _ = line.split(" ")
        rankings.setdefault(query, []).append((doc_id, float(score)))
    return rankings
