"""Slices of the judged queries: a mean over all of them can hide that short, rare or foreign ones got worse.

Definitions are data (`SliceConfig`); each is one dimension, and a query is in at most one slice of a dimension. Words are those that the
data contracts compare texts by, with every Chinese and Japanese character a word of its own, since none of them writes spaces.

Rare queries (`head_tail`) are told by their words and not by how often their document is the answer in training: the documents of a
split that tests the unseen have no training queries at all, which would make every one of its queries a rare one.
"""

from __future__ import annotations

import json
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from components.data.dataset import normalise_text
from components.evaluation.config import SliceConfig

if TYPE_CHECKING:
    import pandas as pd

    from components.data.dataset import Dataset
    from components.evaluation.metrics import JudgedSplit

COLUMNS = ("query_id", "dimension", "slice")
TRAIN = "train"
_NO_SPACES = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")
_JAPANESE = {"hiragana", "katakana"}


def assign_slices(judged: JudgedSplit, dataset: Dataset, definitions: Sequence[SliceConfig]) -> pd.DataFrame:
    """DataFrame[query_id, dimension, slice], ordered by definition and query; a dimension that the data cannot tell has no rows.

    That is so for words of train queries when there are none, and for the domain when nothing is mixed and no field is named.
    """
    import pandas as pd

    world = _World(judged, dataset)
    rows = [
        (query, definition.name, label)
        for definition in definitions
        for query, label in zip(judged.query_ids, _ASSIGN[definition.kind](world, definition), strict=True)
        if label is not None
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype("str")


@dataclass(frozen=True)
class _World:
    """The judged queries and what they are compared with, computed once for all dimensions."""

    judged: JudgedSplit
    dataset: Dataset

    @cached_property
    def words(self) -> list[list[str]]:
        return [words_of(text) for text in self.judged.texts]

    @cached_property
    def trained(self) -> Counter[str]:
        """How many train queries hold each word; empty when there are no train queries."""
        if TRAIN not in self.dataset.splits:
            return Counter()
        return Counter(word for text in self.dataset.judged_queries(TRAIN)["text"] for word in set(words_of(str(text))))


_Labels = Sequence[str | None]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; signs that stand alone, such as % and <, are none."""
    return [word for word in _NO_SPACES.sub(r" \1 ", normalise_text(text)).split() if any(letter.isalnum() for letter in word)]


def _query_length(world: _World, definition: SliceConfig) -> _Labels:
    return _cut([float(len(words)) for words in world.words], definition)


def _head_tail(world: _World, definition: SliceConfig) -> _Labels:
    if not world.trained:
        return [None] * len(world.words)
    return _cut([float(statistics.median([world.trained[word] for word in words] or [0])) for words in world.words], definition)


def _unseen_words(world: _World, definition: SliceConfig) -> _Labels:
    if not world.trained:
        return [None] * len(world.words)
    return _cut([sum(word not in world.trained for word in words) / max(1, len(words)) for words in world.words], definition)


def _cut(values: Sequence[float], definition: SliceConfig) -> list[str]:
    edges = list(definition.edges) or _equal_parts(values, definition.parts)
    return [_label(edges, int(np.searchsorted(edges, value, side="right"))) for value in values]


def _equal_parts(values: Sequence[float], parts: int) -> list[float]:
    """Edges that part the values into equally many; fewer when many values are the same."""
    cuts = np.quantile(np.asarray(values), np.arange(1, parts) / parts, method="higher")
    return sorted({float(cut) for cut in cuts if cut > min(values)})


def _label(edges: Sequence[float], part: int) -> str:
    if not edges:
        return "all"
    short = [f"{edge:g}" for edge in edges]  # as policies name them
    names = [name if short.count(name) == 1 else repr(edge) for name, edge in zip(short, edges, strict=True)]
    if part == 0:
        return f"under {names[0]}"
    return f"{names[part - 1]} to under {names[part]}" if part < len(edges) else f"{names[-1]} and above"


def _language(world: _World, _: SliceConfig) -> _Labels:
    return [script_of(text) for text in world.judged.texts]


def script_of(text: str) -> str:
    """The script that most letters belong to, in small letters as `latin`; `japanese` wherever there are kana.

    A script stands for several languages: telling those apart needs a model, and no text as short as a query tells them reliably.
    """
    scripts = Counter(_script(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())
    if not scripts:
        return "no letters"
    if _JAPANESE & set(scripts):
        return "japanese"
    return min(scripts, key=lambda script: (-scripts[script], script))


def _script(letter: str) -> str:
    return unicodedata.name(letter, "unknown").partition(" ")[0].lower()


def _domain(world: _World, definition: SliceConfig) -> _Labels:
    if not definition.field:
        return [world.dataset.origin_of(query) or None for query in world.judged.query_ids]
    relevant = world.judged.judgements[world.judged.judgements["score"] > 0].sort_values(["query_id", "score", "doc_id"])
    answer = dict(zip(relevant["query_id"].astype(str), relevant["doc_id"].astype(str), strict=True))
    metadata = dict(zip(world.dataset.documents["doc_id"].astype(str), world.dataset.documents["metadata"], strict=True))
    return [_named(metadata.get(answer[query]), definition.field) for query in world.judged.query_ids]


def _named(metadata: object, field: str) -> str:
    """The field of a document's metadata (JSON); `(none)` where it says nothing."""
    try:
        value = json.loads(metadata)[field] if isinstance(metadata, str) else None
    except (ValueError, KeyError, TypeError):
        value = None
    return "(none)" if value is None or value == "" else str(value)


def _pattern(world: _World, definition: SliceConfig) -> _Labels:
    wanted = re.compile(definition.pattern, re.IGNORECASE)
    return ["matches" if wanted.search(text) else "does not match" for text in world.judged.texts]


_ASSIGN: dict[str, Callable[[_World, SliceConfig], _Labels]] = {
    "query_length": _query_length,
    "head_tail": _head_tail,
    "unseen_words": _unseen_words,
    "language": _language,
    "domain": _domain,
    "pattern": _pattern,
}
