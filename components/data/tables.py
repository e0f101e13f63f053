"""The tables every source is read into, and the single places that join, normalise and hash their texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from components.artifacts import Scalar

DOCUMENT_COLUMNS = ("doc_id", "title", "text", "metadata")
QUERY_COLUMNS = ("query_id", "text")
JUDGEMENT_COLUMNS = ("query_id", "doc_id", "score", "split")

# What nobody sees: Unicode's Default_Ignorable_Code_Point (soft hyphen, zero-width letters and joiners, Hangul fillers, variation
# selectors, marks of direction, tags), the interlinear marks and the blank of Braille. As the inside of a character class.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
VISIBLE = rf"[^\s\x00-\x1f\x7f-\x9f{INVISIBLE}]"
_VISIBLE = re.compile(VISIBLE)
# + and # stay: "C++" and "C#" ask for different things.
_NO_WORD = re.compile(r"(?:[^\w+#]|_)+")


@dataclass(frozen=True)
class LeftOut:
    """Rows of a table (of one split, for judgements) that were dropped for one reason, of `total` rows that it had.

    `unanswered`: queries that lost their last relevant document with them.
    """

    rule: str
    table: str
    split: str
    reason: str
    rows: pd.DataFrame
    total: int
    unanswered: int = 0
    source: str = ""


@dataclass(frozen=True)
class RawTables:
    """A source as it was read, broken rows included: the contracts judge it, not the reader.

    documents: doc_id, title, text, metadata (a JSON object as a string). queries and unlabelled: query_id, text.
    judgements: query_id, doc_id, score (int64), split. All else is text. `notes` says what was cut or held out.
    `sources`: names of the data sets when several are mixed, the first of them the one whose ids have no name in front.
    `left_out`: rows that were dropped as the configuration asks.
    """

    documents: pd.DataFrame
    queries: pd.DataFrame
    judgements: pd.DataFrame
    unlabelled: pd.DataFrame
    notes: Mapping[str, Scalar] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


def origin_of(identifier: str, sources: Sequence[str]) -> str:
    """Which of the mixed data sets an id belongs to; "" when nothing is mixed."""
    name, slash, _ = identifier.partition("/")
    return name if slash and name in sources[1:] else next(iter(sources), "")


def document_text(title: str | None, text: str | None) -> str:
    """What an encoder reads of a document: the title, then the text, on lines of their own; empty parts are left out."""
    return "\n".join(part for part in ((title or "").strip(), (text or "").strip()) if part)


def normalise_text(text: str | None) -> str:
    """`text` without case, punctuation (but + and #), width variants and repeated spaces: wordings that differ only there are equal."""
    return _NO_WORD.sub(" ", unicodedata.normalize("NFKC", text or "").casefold()).strip()


def is_blank(text: str) -> bool:
    """Whether a reader sees nothing of `text`: it is empty, white space, or letters that have no form."""
    return _VISIBLE.search(text) is None


def content_hash(text: str) -> str:
    """sha256 (hex) of a document's text as encoded."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def stable_order(keys: Iterable[str], seed: int) -> list[str]:
    """The distinct `keys` in an order that depends on the keys and the seed alone, not on how they came."""
    return sorted(set(keys), key=lambda key: (hashlib.sha256(f"{seed}:{key}".encode()).digest(), key))


def query_table(ids: list[str | None], texts: list[str | None]) -> pd.DataFrame:
    """Columns query_id and text, in the given order."""
    return pd.DataFrame({"query_id": ids, "text": texts}, columns=list(QUERY_COLUMNS)).astype("str")


def judgement_table(rows: list[tuple[str, str, int]], split: str) -> pd.DataFrame:
    """Columns query_id, doc_id, score and split from rows of (query_id, doc_id, score)."""
    queries, documents, scores = zip(*rows, strict=True) if rows else ((), (), ())
    table = pd.DataFrame({"query_id": queries, "doc_id": documents, "score": scores, "split": split}, columns=list(JUDGEMENT_COLUMNS))
    return table.astype({"query_id": "str", "doc_id": "str", "score": "int64", "split": "str"})
