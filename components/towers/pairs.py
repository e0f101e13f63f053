"""Training pairs from a data set's train judgements, and which texts of them are equal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError

if TYPE_CHECKING:
    from components.data.dataset import Dataset


@dataclass(frozen=True)
class Pairs:
    """Queries and documents as texts, relevant (query number, document number) pairs, and per query all its relevant documents.

    `origins`: for each pair the data set it comes from, when several are mixed; empty for one data set, which then has the name "".
    `own`: the document number of each query that is a document itself, which is no answer to it.
    `kinds`: for each pair the value of the metadata field that batches are made by; empty where they are made of any pairs.
    """

    queries: Sequence[str]
    documents: Sequence[str]
    pairs: Sequence[tuple[int, int]]
    relevant: Mapping[int, frozenset[int]]
    origins: Sequence[str] = ()
    own: Mapping[int, int] = field(default_factory=dict)
    kinds: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.origins:
            object.__setattr__(self, "origins", [""] * len(self.pairs))
        if not self.kinds:
            object.__setattr__(self, "kinds", [""] * len(self.pairs))

    @cached_property
    def document_groups(self) -> NDArray[np.int64]:
        """(documents,): a number for each document, equal for those whose texts differ by white space at most."""
        return _groups(self.documents)

    @cached_property
    def known_groups(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Query numbers and groups of documents known to be no negatives of them, sorted by query, then group, without repetition.

        Known are the documents judged for the query or for a query of the same text, the document that such a query is itself, and every
        document of the same text as these.
        """
        query_groups = _groups(self.queries)
        by_text: dict[int, set[int]] = {}
        for query, documents in self.relevant.items():
            by_text.setdefault(int(query_groups[query]), set()).update(int(self.document_groups[d]) for d in documents)
        for query, document in self.own.items():
            by_text.setdefault(int(query_groups[query]), set()).add(int(self.document_groups[document]))
        known = [(query, group) for query, text in enumerate(query_groups) for group in sorted(by_text.get(int(text), ()))]
        rows = np.array(known, np.int64).reshape(-1, 2)
        return rows[:, 0], rows[:, 1]


def _groups(texts: Sequence[str]) -> NDArray[np.int64]:
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(" ".join(text.split()), len(numbers)) for text in texts], np.int64)


def training_pairs(dataset: Dataset, batches_by: str = "") -> Pairs:
    """All relevant pairs of the split train, each with its document's value of the metadata field `batches_by`, if one is named.

    Raises DataError when there are none. Where no document has the field, as in other data than a preset was made for, it says so.
    """
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
        origins=[dataset.origin_of(query) for query in judged["query_id"]],
        own={query_row[query]: document_row[query] for query in sorted(dataset.own_documents("train").left_out)},
        kinds=document_kinds(dataset, [document for _, document in pairs], batches_by) if batches_by else (),
    )


def document_kinds(dataset: Dataset, documents: Sequence[int], field: str) -> list[str]:
    """The value of the metadata field of each document, by number; empty where it has none."""
    metadata = [json.loads(text or "{}") for text in dataset.documents["metadata"].iloc[list(documents)]]
    kinds = [str(values.get(field, "")) for values in metadata]
    if not any(kinds):
        print(f"[train_towers] No document's metadata has the field '{field}' (towers.batches_by): batches are of any pairs.", flush=True)
    return kinds
