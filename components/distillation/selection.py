"""Choice among checkpoints by what a student is for: retrieval of dev judgements over the real index."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

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
