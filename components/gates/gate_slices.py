"""Which slices of the queries the gates judge.

The rule for small slices: those with fewer than `min_slice_queries` queries are judged together, as `the others` of their dimension, so
that a language with 20 queries is not left out while it is too small to be judged alone. If they are too few even together they are not
judged: the gate is shown as off with the count, and their queries count in the gate over all queries. Were it `not_decidable`, one rare
slice would stop every release. What must not be passed over is named in `required_slices`: there an empty, small or missing slice is
`not_decidable`. A dimension none of whose slices is large enough, and a report without slices, are `not_decidable` as well.

Where the champion lacks documents, a slice is made of the queries whose documents it serves. One that is new to it has nothing to be
compared with: it is off, with the count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.gates.config import PolicyConfig

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.report import Evaluation

OTHERS = "the others"
SERVED_BY_BOTH = "documents=served by both"
HELD_BY_BOTH = "documents=only those that both hold"  # each ranks these alone; above it is the queries that are chosen


@dataclass(frozen=True)
class Part:
    """A slice, named dimension=slice, and its queries; `problem` says why it cannot be judged, `required` that it had to be."""

    name: str
    query_ids: frozenset[str]
    problem: str = ""
    required: bool = False


def served_by_both(known: frozenset[str], policy: PolicyConfig) -> Part:
    """The queries whose documents the champion serves as well: without them nothing could be compared."""
    return part_of(SERVED_BY_BOTH, known, policy, required=True)


def judged_slices(report: Evaluation, policy: PolicyConfig, known: frozenset[str] | None = None) -> list[Part]:
    """Every slice of the report, the required ones that it lacks included; never empty. `known`: the queries to take, None for all."""
    table = report.slices
    if table is None or not len(table):
        return [Part("all", frozenset(), "The report says of no query which slice it is in; evaluate again.", True)]
    if unknown := set(table["query_id"]) - set(report.per_query["query_id"]):
        return [Part("all", frozenset(unknown), f"The slices hold {len(unknown)} queries that the report does not.", True)]
    whole, table = table, table if known is None else table[table["query_id"].isin(known)]
    parts = [part for dimension, rows in table.groupby("dimension", sort=True) for part in _of_dimension(str(dimension), rows, policy)]
    parts += _new(whole, table, policy)
    return [*parts, *_missing(parts, whole, policy)]


def _of_dimension(dimension: str, rows: pd.DataFrame, policy: PolicyConfig) -> Iterator[Part]:
    slices = {f"{dimension}={name}": frozenset(found["query_id"]) for name, found in rows.groupby("slice", sort=True)}
    small = [name for name, ids in slices.items() if len(ids) < policy.min_slice_queries and name not in policy.required_slices]
    alone = [part_of(name, ids, policy) for name, ids in slices.items() if name not in small]
    yield from alone
    if small:
        others = frozenset[str]().union(*(slices[name] for name in small))
        none_is_judged = all(part.problem for part in alone)
        name = small[0] if len(small) == 1 else f"{dimension}={OTHERS}"
        yield part_of(name, others, policy, none_is_judged or dimension in policy.required_slices)


def part_of(name: str, ids: frozenset[str], policy: PolicyConfig, required: bool = False) -> Part:
    """The slice, with its problem when it is too small; `required` says that it may not be left out then."""
    required = required or name in policy.required_slices
    if len(ids) >= policy.min_slice_queries:
        return Part(name, ids, required=required)
    rule = "so it cannot be decided on" if required else "so it is not judged; its queries count in the gate over all of them"
    return Part(
        name,
        ids,
        f"{len(ids)} {'query' if len(ids) == 1 else 'queries'}, fewer than the {policy.min_slice_queries} that a slice needs, {rule}.",
        required,
    )


def _new(whole: pd.DataFrame, known: pd.DataFrame, policy: PolicyConfig) -> Iterator[Part]:
    """The slices that hold no known query."""
    kept = set(zip(known["dimension"], known["slice"], strict=True))
    for (dimension, label), rows in whole.groupby(["dimension", "slice"], sort=True):
        if (dimension, label) not in kept:
            problem = (
                f"The champion lacks the documents of all its {len(rows)} queries, so there is nothing to compare them with; they count in "
                "the gate over all queries."
            )
            name = f"{dimension}={label}"
            yield Part(name, frozenset(rows["query_id"]), problem, name in policy.required_slices or dimension in policy.required_slices)


def _missing(parts: list[Part], table: pd.DataFrame, policy: PolicyConfig) -> Iterator[Part]:
    there = {part.name for part in parts} | set(table["dimension"])
    for name in policy.required_slices:
        if name not in there:
            yield Part(name, frozenset(), "The policy requires this slice, and no query of the report is in it.", True)
