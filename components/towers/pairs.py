"""Training pairs from a data set's train judgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.errors import DataError

if TYPE_CHECKING:
    from components.data.dataset import Dataset


@dataclass(frozen=True)
class Pairs:
    """Queries and documents as texts, relevant (query number, document number) pairs, and per query all its relevant documents."""

    queries: Sequence[str]
    documents: Sequence[str]
    pairs: Sequence[tuple[int, int]]
    relevant: Mapping[int, frozenset[int]]


def training_pairs(dataset: Dataset) -> Pairs:
    """All relevant pairs of the split train; raises DataError when there are none."""
    queries = dataset.judged_queries("train")
    judged = dataset.judgements("train")
    judged = judged[judged["score"] > 0]
    if judged.empty:
        raise DataError("The data has no relevant train judgements; qrels/train.tsv must name at least one document per query.")
    query_row = {q: i for i, q in enumerate(queries["query_id"])}
    document_row = {d: i for i, d in enumerate(dataset.documents["doc_id"])}
    pairs = [(query_row[q], document_row[d]) for q, d in zip(judged["query_id"], judged["doc_id"], strict=True)]
    relevant: dict[int, set[int]] = {}
    for query, document in pairs:
        relevant.setdefault(query, set()).add(document)
    return Pairs(
        queries=queries["text"].tolist(),
        documents=dataset.document_texts(),
        pairs=pairs,
        relevant={q: frozenset(d) for q, d in relevant.items()},
    )
