"""Single values of a source: the names their columns go by, and how an id, a text, metadata or a grade is read or refused.

Every reader takes them from here, so that one corpus gives one table whatever format it comes in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple, NoReturn

from components.errors import DataError

# Field -> the names that it goes by, without case, hyphens, underscores and blanks; the first that is there is taken.
DOCUMENT_FIELDS = {
    "doc_id": ("docid", "id", "corpusid", "documentid", "docno", "pid"),
    "text": ("text",),
    "title": ("title",),
    "metadata": ("metadata",),
}
QUERY_FIELDS = {"query_id": ("queryid", "id", "qid"), "text": ("text", "query")}
QRELS_FIELDS = {
    "query_id": ("queryid", "qid", "query", "topicid", "topic"),
    "doc_id": ("corpusid", "docid", "documentid", "docno", "pid", "passageid", "did", "doc", "document"),
    "score": ("score", "relevance", "rel", "label", "grade", "judgment", "judgement", "rating"),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SCORE_LIMIT = 2**31
# What every language writes alike: Python alone would also take 1_0 for 10, and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


TRANSLATION_FIELDS = {**QUERY_FIELDS, "original": ("original", "translationof")}
FIELDS = {"documents": DOCUMENT_FIELDS, "queries": QUERY_FIELDS, "translations": TRANSLATION_FIELDS, "qrels": QRELS_FIELDS}


KNOWN_NAMES = frozenset(alias for fields in FIELDS.values() for aliases in fields.values() for alias in aliases)
QueryTable = Literal["queries", "translations"]  # of FIELDS


class AmbiguousJson(ValueError):
    """Text that a lenient parser reads as one thing and another parser as something else."""


class Row(NamedTuple):
    """One row of a text source: where it stands, its values by their own names, and which field goes by which of these names."""

    where: str
    values: Mapping[str, Any]
    names: Mapping[str, str]

    def has(self, field: str) -> bool:
        """Whether the row has the field, be it empty."""
        return field in self.names

    def identifier(self, field: str, shown: str = "_id") -> str:
        """The field as an id; raises DataError."""
        return identifier(self.values[self.names[field]], shown, self.where) if field in self.names else self.refuse(field, shown)

    def text(self, field: str, required: bool = False) -> str:
        """The field as text. Null counts as empty, which the contracts then judge; raises DataError for anything else."""
        value = self.values[self.names[field]] if field in self.names else None
        if (value is not None and not isinstance(value, str)) or (required and field not in self.names):
            self.refuse(field, field)
        return storable(value or "", field, self.where)

    def get(self, field: str) -> Any:
        """The field as it is; None when it is not there."""
        return self.values[self.names[field]] if field in self.names else None

    def refuse(self, field: str, shown: str) -> NoReturn:
        """Raise the DataError for a field that is missing or of another kind."""
        name = self.names.get(field)
        found = f"the fields are: {on_one_line(', '.join(self.values)) or 'none'}" if name is None else f"found {self.values[name]!r:.60}"
        raise DataError(f"{self.where}: the field {shown} must be there and be text; {found}.")


@lru_cache(maxsize=1024)
def names_of(keys: tuple[str, ...], table: str) -> Mapping[str, str]:
    """`known_fields` of one of FIELDS, kept: most rows have the same keys in the same order."""
    return known_fields(keys, FIELDS[table])


def known_fields(names: Iterable[str], fields: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Which of `names` each field of a table goes by; fields that have no name there are left out.

    Raises AmbiguousJson where two of the names could be meant alike, such as _id and id, of which only one can be the one meant.
    """
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(plain_name(name), []).append(name)
    found = {field: next((plain[alias] for alias in aliases if alias in plain), None) for field, aliases in fields.items()}
    if twice := next((rivals for rivals in found.values() if rivals is not None and len(set(rivals)) > 1), None):
        both = " and ".join(f"'{on_one_line(name)}'" for name in twice[:2])
        raise AmbiguousJson(f"{both} are one name here, and either could be meant. Rename or remove one of them")
    return {field: rivals[0] for field, rivals in found.items() if rivals is not None}


def plain_name(name: str) -> str:
    """A column's name without case, hyphens, underscores, blanks and a leading #."""
    return re.sub(r"[-_\s]", "", name).lower().lstrip("#")


def read_json(text: str) -> Any:
    """The value of a JSON text; raises ValueError, or AmbiguousJson for a key that is there twice and for NaN and Infinity."""
    return _STRICT.decode(text)


def read_plain_json(text: str) -> Any:
    """The same in less time, for a text without white space at its ends; raises ValueError for others too."""
    value, end = _STRICT.raw_decode(text)
    if end != len(text):
        raise ValueError("more follows")
    return value


def identifier(value: Any, name: str, where: str) -> str:
    """A text or whole number as an id, white space at its ends included; raises DataError for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(f"{where}: the field {name} must be there and be text; found {value!r:.60}.")
    return without_nul(storable(str(value), name, where), where)


def without_nul(found: str, where: str) -> str:
    """An id that holds no NUL, with which many programs end a text; raises DataError for another."""
    if "\0" in found:
        raise DataError(f"{where}: the id {found!r:.80} holds the character NUL. Remove it; a file in UTF-16 has to be converted to UTF-8.")
    return found


def on_one_line(text: str) -> str:
    """`text` with its control characters, line breaks and halves of characters written out, as an error or a report can show it."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def storable(value: str, name: str, where: str) -> str:
    """`value` when it can be written as UTF-8, else raises DataError."""
    if not is_storable(value):
        raise DataError(f"{where}: the field {name} holds half a surrogate pair, which is no character. Remove it.")
    return value


def is_storable(text: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def metadata_text(value: Any, where: str) -> str:
    """A document's metadata as the text of a JSON object; nothing counts as an empty one. Raises DataError."""
    if value is None:
        return "{}"
    if not isinstance(value, Mapping):
        raise DataError(f'{where}: the field metadata must be an object, such as {{"source": "web"}}; found {value!r:.60}.')
    try:
        text = _ENCODER.encode(value)
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: the field metadata is no JSON object ({error}). Write null where a number is missing.") from None
    return storable(text, "metadata", where)


def metadata_from_text(text: str | None, where: str) -> str:
    """The same from a column of text that holds JSON objects; an empty cell counts as nothing. Raises DataError."""
    if text is None or not text.strip():
        return "{}"
    try:
        value = read_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: the column metadata must hold JSON objects; found {text!r:.60} ({error}).") from None
    return metadata_text(value if value is not None else {}, where)


def parse_score(value: Any, where: str) -> int:
    """A relevance score as a whole number: 1, 1.0 and "1" are the same. Raises DataError that names `where`."""
    number, shown = _number(value), on_one_line(str(value)[:60])
    if number is None or not -_SCORE_LIMIT < number < _SCORE_LIMIT:
        raise DataError(f"{where}: the score must be a whole number such as 0, 1 or 2, in plain digits; found '{shown}'.")
    if number != int(number):
        raise DataError(
            f"{where}: the score must be a whole number such as 0, 1 or 2; found '{shown}'. Map fractional grades to whole ones first, by "
            "steps (below 0.5 becomes 0, all others 1) or by a factor (0, 0.25 and 1 times 4)."
        )
    return int(number)


def is_number(text: str) -> bool:
    """Whether a grade could be written so."""
    return _NUMBER.fullmatch(text.strip()) is not None


def _number(value: Any) -> float | None:
    """None for what is no finite number."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and not is_number(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == number else None


def strict_object(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs as an object; raises AmbiguousJson for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise AmbiguousJson(f"the key '{on_one_line(str(twice))}' stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise AmbiguousJson(f"{name} is not a JSON value; write null")


_STRICT = json.JSONDecoder(object_pairs_hook=strict_object, parse_constant=_constant)


def _as_text(value: Any) -> str:
    """What JSON has no kind for: bytes, which Hive and Spark write for text, as text; raises UnicodeDecodeError."""
    return value.decode() if isinstance(value, bytes) else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, allow_nan=False, default=_as_text)  # made once: json.dumps makes one a call
