"""Training pairs from a data set's train judgements, which texts of them are equal, and which pairs stand in which batch.

Every epoch is a new random order cut into batches; what is left over, less than a batch, waits for the next epoch. Pairs of similar
length can be put together (`length_window`), which saves padding, and pairs of one data set (`homogeneous_batches`) or of one kind
(`batches_by`), since documents of another are told apart too easily to teach anything: on ICD-10-CM batches of one chapter brought a
teacher of 80 steps from .43 to .50 nDCG@10.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError, ModelError
from components.towers.config import TowerConfig

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


# --- Which pairs make the batch of a step: a function of the seed and the step alone, so that a continued run sees the same data.


class BatchPlan:
    """The batches of every step. Raises ModelError when there are fewer pairs than a batch needs."""

    def __init__(self, pairs: Pairs, config: TowerConfig, query_lengths: Sequence[int], document_lengths: Sequence[int]) -> None:
        """`query_lengths` and `document_lengths`: tokens of every query and document of `pairs`."""
        self._seed, self._size, self._window = config.seed, config.batch_size, config.length_window
        numbers = np.array(pairs.pairs, np.int64).reshape(-1, 2)
        self._lengths = np.asarray(document_lengths)[numbers[:, 1]], np.asarray(query_lengths)[numbers[:, 0]]
        origins = _by_origin(pairs) if config.homogeneous_batches else {"": np.arange(len(numbers))}
        for origin, members in origins.items():
            _require_a_batch(origin, len(members), config.batch_size)
        kinds = np.array(pairs.kinds)
        self._groups = [group for members in origins.values() for group in _by_kind(members, kinds[members], config.batch_size)]
        self.steps_per_epoch = sum(len(members) // self._size for members in self._groups)
        named = [kinds[members][kinds[members] != ""] for members in origins.values()]
        counts = [int(count) for found in named for count in np.unique(found, return_counts=True)[1]]
        self.kinds_are_too_small = bool(counts) and max(counts) < self._size  # so that no batch is of one kind
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    def of_step(self, step: int) -> list[int]:
        """Pair numbers of the step's batch, that of all processes together."""
        epoch, slot = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._of_epoch(epoch), epoch
        return [int(number) for number in self._batches[slot]]

    def _of_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng([self._seed, epoch])
        batches = [batch for members in self._groups for batch in self._cut(members[rng.permutation(len(members))], rng)]
        if len(self._groups) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _cut(self, order: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Batches of an order whose remainder is dropped; within each window sorted by length and then in random order."""
        whole = order[: len(order) // self._size * self._size]
        if self._window == 1:
            return list(whole.reshape(-1, self._size))
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(whole), self._window * self._size):
            members = whole[start : start + self._window * self._size]
            documents, queries = (lengths[members] for lengths in self._lengths)
            rows = members[np.lexsort((queries, documents))].reshape(-1, self._size)
            batches += list(rows[rng.permutation(len(rows))])
        return batches


def _by_origin(pairs: Pairs) -> dict[str, NDArray[np.int64]]:
    """Pair numbers of each data set, the data sets in alphabetical order."""
    origins = np.array(pairs.origins)
    return {origin: np.flatnonzero(origins == origin) for origin in sorted(set(pairs.origins))}


def _by_kind(members: NDArray[np.int64], kinds: NDArray[np.str_], size: int) -> list[NDArray[np.int64]]:
    """Pair numbers of each kind, in alphabetical order; kinds of less than a batch make one group, with the smallest other if need be."""
    groups = [members[kinds == kind] for kind in np.unique(kinds)]
    large, small = ([g for g in groups if (len(g) >= size) == enough] for enough in (True, False))
    if not small:
        return large
    rest = np.sort(np.concatenate(small))
    if len(rest) < size and large:
        smallest = min(range(len(large)), key=lambda i: len(large[i]))
        rest = np.sort(np.concatenate([rest, large.pop(smallest)]))
    return [*large, rest]


def _require_a_batch(origin: str, count: int, size: int) -> None:
    if count >= size:
        return
    if not origin:
        raise ModelError(f"towers.batch_size is {size}, but there are only {count} training pairs. Lower it.")
    raise ModelError(
        f"towers.homogeneous_batches needs {size} training pairs of every data set (towers.batch_size), "
        f"but '{origin}' has only {count}. Lower the batch size, or set towers.homogeneous_batches to false."
    )
