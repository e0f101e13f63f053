"""The tables every source is read into, and the single places that join, normalise and hash their texts."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from components.artifacts import Scalar
from components.visible import INVISIBLE

DOCUMENT_COLUMNS = ("doc_id", "title", "text", "metadata")
QUERY_COLUMNS = ("query_id", "text")
JUDGEMENT_COLUMNS = ("query_id", "doc_id", "score", "split")
GROUPS = "query_groups"  # note of a source: the metadata field of its documents that the splits were made by

_UNSEEN = re.compile(f"[{INVISIBLE}\ufdd0-\ufdef\u0640]")  # and no characters, and the Arabic tatweel, which only makes a word longer
# Before NFKC, which would make 10² the number 102, 1½ the number 11/2, and letters of a trade mark.
_POWER = re.compile("(?<=\\d)(?=[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻])")
_FRACTION = re.compile("(?<=\\d)(?=[¼-¾⅐-⅟↉])")
_DECORATION = str.maketrans(dict.fromkeys("®©℗™℠\u00b4\u00a8\u00af\u00b8", " "))
_ALIKE = {"\u2044": "/", "\u2215": "/", "\u066a": "%"}  # other slashes, the Arabic per cent
_ALIKE |= dict.fromkeys("\u05be\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2e3a\u2e3b", "-")  # dashes, the minus, the Hebrew maqaf
_SAME_SIGN = str.maketrans(_ALIKE)
# Punctuation that changes what is meant: in numbers and before them, before a name (.net, !ready), in != and between factors.
_MEANT = re.compile(
    "(?<=\\d)[.,:\u066b\u066c-](?=\\d)|(?<![\\w).-])-(?=\\.?\\d)|(?<![\\w.])[.](?=\\w)|(?<!\\w)!(?=[\\w(])|!(?= ?=)"
    "|(?<=\\w)[*](?=\\w)|(?<=\\w )[*](?= \\w)"
)
_KEPT = {mark: chr(0xFDD0 + place) for place, mark in enumerate(".,:\u066b\u066c-!*")}  # stands for it: a code point that no text may hold
_SIGNS = frozenset("%‰‱&@/\\§\u2032")  # beside all symbols, such as < = $ ° and €; the last is the prime of feet and minutes


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
    """`text` without case, punctuation, width variants, invisible letters and repeated spaces: wordings that differ only there are equal.

    Kept is what a reader would miss: letters with their marks (the vowels of Hindi, the tones of Thai, the points of Hebrew and Arabic),
    numbers with sign, point and power, and signs such as < > = % & * / $ °; of a text that has neither letter nor number nothing is.
    Unicode's NFKC and full case folding; the dot that folding leaves over the Turkish capital İ goes with it.
    """
    folded = (text or "").casefold()
    if not folded.isascii():
        plain = _UNSEEN.sub("", (text or "").translate(_DECORATION))
        plain = unicodedata.normalize("NFKC", _FRACTION.sub(" ", _POWER.sub("^", plain)))
        folded = unicodedata.normalize("NFKC", plain.casefold()).replace("i\u0307", "i").translate(_SAME_SIGN)
    read = " ".join(_MEANT.sub(lambda found: _KEPT[found[0]], folded).translate(_READ).split())
    return read if any(map(str.isalnum, read)) else ""


class _Reading(dict[int, str]):
    """What stands for each character in a normalised text, by code point; worked out when it is met for the first time."""

    def __missing__(self, point: int) -> str:
        letter, kind = chr(point), unicodedata.category(chr(point))
        if kind[0] in "LNM" or letter in "+#":
            read = letter
        else:
            read = f" {letter} " if letter in _SIGNS or (kind[0] == "S" and letter != "`") else " "
        self[point] = read
        return read


_READ = _Reading({ord(kept): {"*": " * ", "!": " !"}.get(mark, mark) for mark, kept in _KEPT.items()})


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
