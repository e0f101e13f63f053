"""Choice among checkpoints by retrieval of dev judgements over the real index, and signs that a distillation collapses.

A gap between teacher and student that is too large shows in three figures: the mean cosine of two random queries (anisotropy), the
effective rank of the query vectors, and the share of the teacher's dev metrics that the student keeps. They go into the training log with
every epoch; only the first two have a bound that refuses a student, since low retention is for the release's gates to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.towers.contract import Spread, measure_spread

LOW_RETENTION = 0.5  # share of the teacher's dev metric
LOW_RANK = 0.5  # share of the teacher's effective rank
MAX_ROWS = 2048  # the spread of more rows takes long and says no more


def spread_of(vectors: NDArray[np.float32]) -> Spread:
    """The spread of unit rows (n, d), over evenly spaced ones when there are many; one row alone tells nothing: 0 and 1."""
    if len(vectors) < 2:
        return Spread(mean_cosine=0.0, effective_rank=1.0)
    return measure_spread(vectors[:: -(-len(vectors) // MAX_ROWS)])


def retention_of(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
    """The student's share of the teacher's recall@50 and nDCG@10; a metric in which the teacher has 0 is absent."""
    return {f"retention_{name}": student[name] / teacher[name] for name in ("recall@50", "ndcg@10") if teacher[name] > 0}


def collapse_signs(student: Spread, teacher: Spread | None, retention: Mapping[str, float]) -> list[str]:
    """What looks like a collapse, in words; empty when nothing does."""
    signs = [f"{name} is {share:.0%}, below {LOW_RETENTION:.0%}" for name, share in retention.items() if share < LOW_RETENTION]
    if teacher is not None and student.effective_rank < LOW_RANK * teacher.effective_rank:
        signs.append(f"the effective rank is {student.effective_rank:.1f}, less than half of the teacher's {teacher.effective_rank:.1f}")
    return signs


def log_entry(student: Spread, teacher: Spread | None, retention: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one epoch for the training log."""
    return {
        "mean_cosine": student.mean_cosine,
        "effective_rank": student.effective_rank,
        **retention,
        "collapse_signs": collapse_signs(student, teacher, retention),
    }


# --- Choice among checkpoints by what a student is for: retrieval of dev judgements over the real index.


Search = Callable[[NDArray[np.float32], int], Sequence[Sequence[str]]]
DEPTH = 50


@dataclass(frozen=True)
class DevSet:
    """Dev queries, their relevant document ids, and the search over the real index (vectors, k) -> ids per query.

    `teacher` holds the teacher's vectors of the queries, unit float32 (n, d), where they are known. `own` maps the place of a query that is
    a document itself to that document, which is left out of what it finds.
    """

    queries: Sequence[str]
    relevant: Sequence[frozenset[str]]
    search: Search
    teacher: NDArray[np.float32] | None = None
    own: Mapping[int, str] = field(default_factory=dict)


def dev_metrics(vectors: NDArray[np.float32], dev: DevSet) -> Mapping[str, float]:
    """recall@50 and nDCG@10 (binary gains) of query vectors (n, d), means over all dev queries; `score` is the sum of both.

    The sum, since recall alone is blind to the top ranks, where distillation loses first.
    """
    found = list(dev.search(vectors, DEPTH + bool(dev.own)))
    for place, own in dev.own.items():
        found[place] = [doc_id for doc_id in found[place] if doc_id != own]
    found = [ids[:DEPTH] for ids in found]
    recall = float(np.mean([len(r & set(ids)) / len(r) for r, ids in zip(dev.relevant, found, strict=True)]))
    ndcg = float(np.mean([_ndcg(r, ids[:10]) for r, ids in zip(dev.relevant, found, strict=True)]))
    return {"recall@50": recall, "ndcg@10": ndcg, "score": recall + ndcg}


def _ndcg(relevant: frozenset[str], ids: Sequence[str]) -> float:
    discounts = 1 / np.log2(np.arange(2, 12))
    gained = sum(discounts[i] for i, doc_id in enumerate(ids) if doc_id in relevant)
    return float(gained / discounts[: min(len(relevant), 10)].sum())
