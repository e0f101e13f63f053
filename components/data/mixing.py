"""Several data sets as one: every further one's ids get its name and a slash in front, so that none meets another's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from components import settings
from components.data.ir_sets import is_named, name_of
from components.data.tables import RawTables
from components.errors import DataError

MARK = "/"


def mixed_name(source: str) -> str:
    """The name of a further data set: the last part of its folder's path; raises DataError when that cannot stand in an id."""
    name = name_of(source) if is_named(source) else settings.expanded(source).resolve().name
    if not name or name.split() != [name]:
        raise DataError(f"data.mix: the folder '{source}' has no name without white space to put before its ids. Rename or move it.")
    return name


def require_different(names: Sequence[str]) -> None:
    """Raises DataError when two data sets have one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(
            f"data.mix: two of the data sets are named '{twice}', and their ids could not be told apart. "
            "Give every data set once, and rename folders of the same name."
        )


def mix(parts: Mapping[str, RawTables]) -> RawTables:
    """All tables of the parts by name, one part after the other; the first keeps its ids and its notes.

    Raises DataError when an id of the first looks as if it belonged to a further one.
    """
    (first, base), *further = parts.items()
    for name, _ in further:
        _require_no_such_id(name, base, first)
    tables = [base, *(_prefixed(part, name + MARK) for name, part in further)]
    return RawTables(
        documents=pd.concat([t.documents for t in tables], ignore_index=True),
        queries=pd.concat([t.queries for t in tables], ignore_index=True),
        judgements=pd.concat([t.judgements for t in tables], ignore_index=True),
        unlabelled=pd.concat([t.unlabelled for t in tables], ignore_index=True),
        notes=base.notes,
        sources=tuple(parts),
        left_out=tuple(replace(entry, source=name) for name, part in parts.items() for entry in part.left_out),
    )


def _prefixed(tables: RawTables, prefix: str) -> RawTables:
    """A missing id stays missing, for the contracts to judge."""
    return replace(
        tables,
        documents=tables.documents.assign(doc_id=prefix + tables.documents["doc_id"]),
        queries=tables.queries.assign(query_id=prefix + tables.queries["query_id"]),
        judgements=tables.judgements.assign(query_id=prefix + tables.judgements["query_id"], doc_id=prefix + tables.judgements["doc_id"]),
        unlabelled=tables.unlabelled.assign(query_id=prefix + tables.unlabelled["query_id"]),
    )


def _require_no_such_id(name: str, base: RawTables, base_name: str) -> None:
    for column in (base.documents["doc_id"], base.queries["query_id"], base.judgements["query_id"], base.unlabelled["query_id"]):
        found = next((i for i in column if str(i).startswith(name + MARK)), None)
        if found is not None:
            raise DataError(
                f"data.mix: '{base_name}' has the id '{found}', which looks as if it came from '{name}'. Rename the folder '{name}'."
            )
