"""Which judged queries were drawn together: the units that every interval, power and gate resamples.

Queries that ask for one document, or for documents of the group that the splits were made by, succeed and fail together, so 641 of them
may say no more than 120 that were drawn one by one. The data names its group as a metadata field of the documents (the built-in set: the
three-character category); `evaluation.query_groups` names another, or says that each query was drawn by itself. Without a group, queries
that have a relevant document in common are one unit, and so are those that are linked through others.
Source: Kish, Survey Sampling (1965), chapter 8, for the design effect.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.evaluation.summarize import JudgedSplit

AUTO, SINGLE = "auto", "queries"  # values of evaluation.query_groups beside the names of metadata fields
COLUMNS = ("split", "query_id", "unit")
# Correlation of nDCG@10 within a unit, where no values are known yet: measured .22 on the demo, .30 on tldr, .20 on squad, all by BM25.
WITHIN = 0.25
Numbers = NDArray[np.int64]  # the unit of each query, in the order of its values


@dataclass(frozen=True)
class Units:
    """The unit of every judged query: `numbers`, int64 (queries,), from 0 on and in the order of `query_ids`; `rule` is a clause."""

    query_ids: tuple[str, ...]
    numbers: Numbers
    rule: str = ""

    def __deepcopy__(self, _: object) -> Units:
        return self  # pandas copies what is attached to a series with every operation

    @property
    def count(self) -> int:
        """How many units there are."""
        return len(np.unique(self.numbers))

    @property
    def largest(self) -> int:
        """Queries of the largest unit."""
        return int(np.bincount(self.numbers).max(initial=0))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {query: place for place, query in enumerate(self.query_ids)}

    def of(self, query_ids: Iterable[object]) -> Numbers:
        """The units of these queries, in their order; raises DataError for a query that is in none."""
        try:
            return self.numbers[[self._places[str(query)] for query in query_ids]]
        except KeyError as error:
            raise DataError(f"The query {error} is in no unit, so it cannot be resampled. Evaluate again.") from None

    def table(self, split: str) -> pd.DataFrame:
        """DataFrame[split, query_id, unit], as a report keeps them."""
        import pandas as pd

        return pd.DataFrame({"split": split, "query_id": list(self.query_ids), "unit": self.numbers})


def units_in(table: pd.DataFrame | None, split: str) -> Units | None:
    """The units of one split of a report's table; None for reports of before there were any, whose queries count one by one."""
    if table is None:
        return None
    rows = table[table["split"] == split]
    return Units(tuple(str(query) for query in rows["query_id"]), rows["unit"].to_numpy(np.int64)) if len(rows) else None


def query_units(judged: JudgedSplit, dataset: Dataset, groups: str = AUTO) -> Units:
    """The units of a split's judged queries; `groups` is `evaluation.query_groups`.

    Raises DataError for a metadata field that no relevant document has.
    """
    queries = tuple(judged.query_ids)
    if groups == SINGLE:
        return Units(queries, np.arange(len(queries)), "each query was drawn by itself, as evaluation.query_groups says")
    field = dataset.query_groups if groups == AUTO else groups
    rows = judged.judgements[judged.judgements["score"] > 0]
    asked, answers = [str(query) for query in rows["query_id"]], [str(document) for document in rows["doc_id"]]
    links = list(zip(asked, (("document", answer) for answer in answers), strict=True))
    if field:
        named = _groups_of(dataset, set(answers), field)
        _require_known(named, field, groups)
        links += [(query, ("group", named[answer])) for query, answer in zip(asked, answers, strict=True) if answer in named]
    shared = "queries that have a relevant document in common are one unit"
    rule = f"queries whose relevant documents have the same {field}, or one in common, are one unit" if field else shared
    return Units(queries, _connected(queries, links), rule)


def _require_known(named: dict[str, str], field: str, groups: str) -> None:
    if not named and groups != AUTO:
        raise DataError(
            f"evaluation.query_groups is '{field}', but no relevant document has a metadata field of that name. Name the field that the "
            f"splits were made by, or '{AUTO}' (queries with an answer in common are one unit), or '{SINGLE}' (each was drawn by itself)."
        )


def _groups_of(dataset: Dataset, documents: set[str], field: str) -> dict[str, str]:
    """The value of a metadata field for those of the documents that have one."""
    rows = dataset.documents[dataset.documents["doc_id"].isin(documents)]
    found: dict[str, str] = {}
    for document, metadata in zip(rows["doc_id"], rows["metadata"], strict=True):
        try:
            value = json.loads(metadata).get(field) if isinstance(metadata, str) else None
        except (ValueError, AttributeError):
            value = None
        if value is not None and value != "":
            found[str(document)] = str(value)
    return found


def _connected(queries: Sequence[str], links: Sequence[tuple[str, tuple[str, str]]]) -> Numbers:
    """Numbers of the connected parts of the graph of queries and what they are linked to, in the order of their first query."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    places = {query: place for place, query in enumerate(queries)}
    nodes = {node: len(queries) + place for place, node in enumerate(dict.fromkeys(node for _, node in links))}
    size = len(queries) + len(nodes)
    ends = [places[query] for query, _ in links], [nodes[node] for _, node in links]
    labels = connected_components(coo_array((np.ones(len(links)), ends), shape=(size, size)), directed=False)[1]
    return compact(labels[: len(queries)])


def compact(numbers: Numbers) -> Numbers:
    """The same partition with the numbers 0, 1, ... in the order in which its parts first occur."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def grouped(numbers: Numbers | None, queries: int) -> Numbers | None:
    """The units of so many queries, without gaps; None where each query is a unit of its own, so that both are computed in one way.

    Raises DataError when there is not one number for each query.
    """
    if numbers is None:
        return None
    array = np.asarray(numbers)
    if array.shape != (queries,):
        raise DataError(f"Every query needs a unit; there are {queries} queries and units of the shape {array.shape}.")
    found = compact(array)
    return None if len(found) and int(found.max()) + 1 == queries else found


def design_effect(values: NDArray[np.float64], numbers: Numbers | None) -> float:
    """The variance of the mean with the units as they are over that of as many queries drawn one by one; infinite for a single unit."""
    from components.evaluation.power import standard_error

    alone = standard_error(values) if len(values) > 1 else 0.0
    return (standard_error(values, numbers) / alone) ** 2 if alone > 0 else 1.0


def expected_effect(units: Units) -> float:
    """The design effect that values not yet measured are likely to have, by the sizes of the units and a usual correlation within them."""
    sizes = np.bincount(units.numbers)
    return float(1 + WITHIN * ((sizes**2).sum() / sizes.sum() - 1))


def effective_queries(queries: int, effect: float) -> int:
    """How many queries drawn one by one would say as much; never more than there are."""
    return max(1, min(queries, round(queries / effect))) if effect > 0 else queries


def told_units(units: Units, effects: dict[str, float]) -> str:
    """One or two sentences: how many units, by which rule, and for each metric what they are worth."""
    queries = len(units.query_ids)
    if units.count == 1:
        return f"All {queries:,} queries are one unit ({units.rule}), so no interval can be given."
    if units.count == queries:
        return f"{queries:,} queries, each a unit of its own: {units.rule}."
    sizes = Counter(units.numbers.tolist())
    worth = ", ".join(f"{effective_queries(queries, found):,} by {metric} (design effect {found:.1f})" for metric, found in effects.items())
    told = f"{queries:,} queries in {units.count:,} units of up to {max(sizes.values()):,}: {units.rule}."
    return f"{told} They say as much as independent queries: {worth}." if worth else told
