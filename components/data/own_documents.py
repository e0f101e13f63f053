"""Queries that are documents themselves, as in duplicate questions (Quora), counterarguments (ArguAna) and citations: each finds itself.

BEIR leaves the document with the query's id out of every answer (`ignore_identical_ids`). The id alone does not tell, though: small sets
number queries and documents from 1, and there the document of the same number is often the very answer. So a document is the query's own
if the id is the same and its title, its text, or both together read the same (see `normalise_text`), and one that the judgements call
relevant stays, since whoever judged it meant it as an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from components.data.config import IgnoreIdenticalIds
from components.data.tables import document_text, normalise_text

if TYPE_CHECKING:
    import pandas as pd

POLICIES: tuple[IgnoreIdenticalIds, ...] = ("same_text", "always", "never")


class IdenticalIds(NamedTuple):
    """Ids that queries share with documents: those whose document reads as the query does, and those whose document says something else."""

    same_text: frozenset[str] = frozenset()
    other_text: frozenset[str] = frozenset()


class OwnDocuments(NamedTuple):
    """How the judged queries of one split stand to the documents of their own id.

    `left_out`: queries whose document is neither an answer to them nor a negative. Numbers of queries: `same_text` that are documents
    themselves, `relevant` of these that are judged relevant to themselves, `other_text` that only share a document's id.
    """

    left_out: frozenset[str] = frozenset()
    same_text: int = 0
    relevant: int = 0
    other_text: int = 0
    policy: IgnoreIdenticalIds = "same_text"

    @classmethod
    def of(cls, found: IdenticalIds, to_itself: frozenset[str], policy: IgnoreIdenticalIds) -> OwnDocuments:
        """What `policy` makes of the queries `found`; `to_itself` are those judged with their own id as relevant."""
        chosen = {"same_text": found.same_text - to_itself, "always": found.same_text | found.other_text, "never": frozenset[str]()}
        return cls(chosen[policy], len(found.same_text), len(found.same_text & to_itself), len(found.other_text), policy)


def identical_ids(documents: pd.DataFrame, queries: pd.DataFrame) -> IdenticalIds:
    """The ids that stand in both tables, told apart by their texts."""
    known = documents["doc_id"].dropna()
    asked = queries.loc[queries["query_id"].isin(known) & queries["query_id"].notna(), ["query_id", "text"]].fillna("")
    if asked.empty:
        return IdenticalIds()
    texts = {str(query): str(text) for query, text in zip(asked["query_id"], asked["text"], strict=True)}
    shared = documents.loc[documents["doc_id"].isin(asked["query_id"]), ["doc_id", "title", "text"]].fillna("")
    rows = zip(shared["doc_id"], shared["title"], shared["text"], strict=True)
    same = frozenset(str(i) for i, title, text in rows if reads_as(texts[i], title, text, document_text(title, text)))
    return IdenticalIds(same, frozenset(texts) - same)


def reads_as(query: str, *texts: str) -> bool:
    """Whether one of the texts reads as the query does; a query of punctuation alone is compared as it stands."""
    wanted = _wording(query)
    return bool(wanted) and any(wanted == _wording(text) for text in texts)


def _wording(text: str) -> str:
    return normalise_text(text) or text.strip()
