"""Data sets of the package ir_datasets by name: `ir_datasets:beir/scifact` has the splits that the package has of it.

The package is no requirement; it fetches a set when it is read for the first time, and keeps it where IR_DATASETS_HOME says.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pandas as pd

from components.data.tables import DOCUMENT_COLUMNS, RawTables, judgement_table, query_table
from components.errors import DataError

PREFIX = "ir_datasets:"
# How the package's names end, and what such a split is here.
_SPLITS = {"train": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}


def is_named(source: str) -> bool:
    """Whether a source is one of the package."""
    return source.startswith(PREFIX)


def name_of(source: str) -> str:
    """The set's name without slashes, which would stand for folders."""
    return source.removeprefix(PREFIX).strip("/").replace("/", "-")


def read(source: str) -> RawTables:
    """Documents, queries and judgements of the set `source`; raises DataError for one that is not there or cannot be fetched."""
    whole, splits = _opened(source)
    with _reading(source):
        documents = pd.DataFrame([_document(row) for row in whole.docs_iter()], columns=list(DOCUMENT_COLUMNS)).astype("str")
        queries = {str(row.query_id): _text(row) for part in splits.values() for row in part.queries_iter()}
        judged = [
            judgement_table([(str(row.query_id), str(row.doc_id), int(row.relevance)) for row in part.qrels_iter()], split)
            for split, part in splits.items()
        ]
    return RawTables(
        documents=documents,
        queries=query_table(list(queries), list(queries.values())),
        judgements=pd.concat(judged, ignore_index=True),
        unlabelled=query_table([], []),
    )


@lru_cache(maxsize=8)
def digest(source: str) -> str:
    """sha256 over all that `read` gives: a set of this name may be another one with another version of the package."""
    tables = read(source)
    hashed = hashlib.sha256()
    for table in (tables.documents, tables.queries, tables.judgements):
        hashed.update(f"{list(table.columns)}\n".encode())
        for row in table.itertuples(index=False, name=None):
            hashed.update(f"{row!r}\n".encode("utf-8", "surrogatepass"))
    return hashed.hexdigest()


def _opened(source: str) -> tuple[Any, dict[str, Any]]:
    """The set that has the documents, and by split those that have judgements."""
    try:
        import ir_datasets
    except ImportError:
        raise DataError(f"'{source}' needs the package ir_datasets, which is not installed: pip install ir-datasets") from None
    name = source.removeprefix(PREFIX).strip("/")
    known = [str(entry) for entry in ir_datasets.registry]
    with _reading(source):
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 3)) or "see https://ir-datasets.com"
            raise DataError(f"ir_datasets has no data set '{name}'. Names that are near: {near}.")
        whole = ir_datasets.load(name)
        ends = {entry.removeprefix(f"{name}/"): entry for entry in known if entry.startswith(f"{name}/")}
        splits = {_SPLITS[end]: ir_datasets.load(entry) for end, entry in ends.items() if end in _SPLITS}
        if not splits and whole.has_qrels():
            splits = {_SPLITS.get(name.rpartition("/")[2], "test"): whole}
        splits = {split: part for split, part in splits.items() if part.has_qrels() and part.has_queries()}
        if not whole.has_docs() or not splits:
            parts = ", ".join(sorted(ends)[:5])
            raise DataError(f"'{source}' has no documents with judged queries{f'; parts of it: {parts}' if parts else ''}. Name another.")
    return whole, splits


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """A set that cannot be fetched or read is said in one sentence, whatever the package and its readers raise."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        said = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"'{source}' cannot be fetched or read: {said}. Check the network, or fetch it first with ir_datasets.") from None


def _document(row: Any) -> tuple[str, str, str, str]:
    title, text = getattr(row, "title", None), getattr(row, "text", None)
    if isinstance(title, str) and isinstance(text, str):
        return str(row.doc_id), title, text, "{}"
    return str(row.doc_id), "", _text(row), "{}"


def _text(row: Any) -> str:
    """What the package calls the text of a document or a query: of TREC topics the title, of a page its body."""
    made = getattr(row, "default_text", None)
    return str(made() if callable(made) else row.text)
