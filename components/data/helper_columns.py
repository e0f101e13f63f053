"""Columns computed before a suite runs, for rules that look at more than one table.

Each holds, under the rule's name, an explanation in the rows that break the rule and nothing in all others (for `judged_queries`: the
ids that count). So the suite itself only checks single columns, which stays fast for millions of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache

import pandas as pd

from components.data.dataset import Dataset
from components.data.rules import Rule
from components.data.tables import normalise_text
from components.data.values import on_one_line

UNLABELLED = "unlabelled"
TITLES = "titles"  # those of the documents: a student learns from them as from queries
# Several rules compare the same queries; forget_texts() lets go of them.
_normalised = lru_cache(maxsize=2_000_000)(normalise_text)


def table_of(dataset: Dataset, name: str) -> pd.DataFrame:
    """One of the dataset's tables by the name contracts use."""
    tables = {
        "documents": dataset.documents,
        "queries": dataset.queries,
        "judgements": dataset.all_judgements,
        UNLABELLED: dataset.unlabelled,
    }
    return tables[name]


def helper_column_name(rule: Rule) -> str:
    """Name of the helper column of `rule`; no table has a column of such a name."""
    return f"rule {rule.name}"


def with_helper_columns(dataset: Dataset, table: str, rules: tuple[Rule, ...]) -> pd.DataFrame:
    """The table with a helper column for each rule that needs one; text columns as Python strings."""
    makers = {"references": _missing_targets, "no_leakage": _leaks, "judged_queries": _judged}
    frame = table_of(dataset, table)
    columns = {helper_column_name(rule): makers[rule.check](dataset, rule) for rule in rules if rule.check in makers}
    text = {name: object for name in frame.columns if name != "score"}
    return frame.astype(text).assign(**columns)


def forget_texts() -> None:
    """Free the normalised texts that were kept from one rule to the next."""
    _normalised.cache_clear()


def cannot_check(dataset: Dataset, rule: Rule) -> str:
    """Why a rule about splits would pass without having looked at anything: a split that the data does not have; else empty.

    A pattern such as test_* may match nothing: it speaks of splits that there may be.
    """
    named = [str(rule.parameters[side]) for side in ("held_out", "seen")] if rule.check == "no_leakage" else []
    for split in named:
        if split not in (UNLABELLED, TITLES) and not any(mark in split for mark in "*?[") and split not in dataset.splits:
            return f"no judgement is of the split '{split}'; the data has {', '.join(dataset.splits) or 'no splits'}"
    return ""


def _missing_targets(dataset: Dataset, rule: Rule) -> pd.Series:
    table, column = str(rule.parameters["to"]).split(".")
    # Sets of Python strings: `isin` on pandas' string columns is several times slower.
    targets = set(table_of(dataset, table)[column].tolist())
    rows = table_of(dataset, rule.table)[str(rule.column)]
    missing = [value if isinstance(value, str) and value not in targets else None for value in rows.tolist()]
    if not any(missing) and "" not in missing:
        return pd.Series(None, index=rows.index, dtype=object)
    stripped = {target.strip(): target for target in targets if isinstance(target, str)}
    explained = [None if value is None else f"there is no {column} '{on_one_line(value)}'{_near(value, stripped)}" for value in missing]
    return pd.Series(explained, index=rows.index, dtype=object)


def _near(value: str, stripped: Mapping[str, str]) -> str:
    """A hint where an id differs in the white space at its ends alone, which nobody sees."""
    near = stripped.get(value.strip())
    return "" if near is None else f", but there is '{on_one_line(near)}': they differ in white space at an end"


def _leaks(dataset: Dataset, rule: Rule) -> pd.Series:
    """For each query of the held-out side whose text also stands on the seen side: the id it stands under there."""
    held_out, seen = str(rule.parameters["held_out"]), str(rule.parameters["seen"])
    normalised = rule.parameters["match"] == "normalised"
    sides = (_queries_of(dataset, held_out), _queries_of(dataset, seen))
    # The offending rows are those of the rule's own table; the contract's reader refuses a rule whose table is on neither side.
    of_seen = (held_out == UNLABELLED) != (rule.table == UNLABELLED)
    rows, others = (sides[1], sides[0]) if of_seen else sides
    known = {
        key: query
        for query, text in zip(others["query_id"].tolist(), others["text"].tolist(), strict=True)
        if (key := _key(text, normalised))
    }
    found = [known.get(_key(text, normalised)) for text in rows["text"].tolist()]
    where = held_out if of_seen else seen
    explained = [None if query is None else f"same text as {query} in {where}" for query in found]
    return pd.Series(explained, index=rows.index, dtype=object).reindex(table_of(dataset, rule.table).index)


def _queries_of(dataset: Dataset, split: str) -> pd.DataFrame:
    """Rows of the queries judged in the splits that match `split`, of the unlabelled queries, or of the titles as if they were queries.

    The index is that of their table.
    """
    if split == UNLABELLED:
        return dataset.unlabelled
    if split == TITLES:
        return dataset.documents[["doc_id", "title"]].set_axis(["query_id", "text"], axis=1)
    judgements = dataset.all_judgements
    matching = {name for name in judgements["split"].unique() if fnmatchcase(str(name), split)}
    ids = set(judgements.loc[judgements["split"].isin(matching), "query_id"].tolist())
    return dataset.queries.loc[[query in ids for query in dataset.queries["query_id"].tolist()]]


def _key(text: object, normalised: bool) -> str:
    """What is compared; empty for a text that cannot leak, such as one of punctuation alone once it is normalised."""
    if not isinstance(text, str):
        return ""
    return _normalised(text) if normalised else text


def _judged(dataset: Dataset, rule: Rule) -> pd.Series:
    """The query's id in the rows that judge a document as relevant in the rule's split."""
    judgements = dataset.all_judgements
    counts = (judgements["split"] == rule.parameters["split"]) & (judgements["score"] > 0)
    return judgements["query_id"].astype(object).where(counts, None)
