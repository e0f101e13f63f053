"""Text as its readers see it: what has no visible form counts as blank, and what a terminal or a page would obey is made safe to show.

A title may clear the screen, colour a line, turn the direction of the words around it or, with a line break, forge a line of a list.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

# Unicode's Default_Ignorable_Code_Point (soft hyphen, zero-width letters and joiners, Hangul fillers, variation selectors, marks of
# direction, tags), the interlinear marks and the blank of Braille. As the inside of a character class.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
MOST_DIGITS = 18  # what a database takes as a whole number
_BLANK = rf"\s\x00-\x1f\x7f-\x9f{INVISIBLE}"
VISIBLE = f"[^{_BLANK}]"  # a pattern for any letter that is seen
_NUMBER = re.compile(rf"0|[1-9][0-9]{{0,{MOST_DIGITS - 1}}}")
# Scripts that put no space between words: Thai, Lao, Burmese, Khmer, kana and Han. Korean does.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_UNSPACED}]{{1,2}}|[^\s{_UNSPACED}]+")
_VISIBLE, _EDGES = re.compile(VISIBLE), re.compile(rf"\A[{_BLANK}]+|[{_BLANK}]+\Z")


def is_blank(text: str) -> bool:
    """Whether nothing of `text` is seen: it is empty, white space, or letters that have no form."""
    return _VISIBLE.search(text) is None


def written(text: str | None) -> str:
    """`text` without what is not seen at both ends; empty where nothing is seen."""
    return _EDGES.sub("", text or "")


def words_in(text: str) -> list[tuple[str, bool]]:
    """The words of a text with their punctuation, each with whether white space stands before it; see `joined`.

    Where a script writes no spaces, two letters stand for a word, which is about its length in Chinese; a mark stays with its letter.
    """
    words: list[tuple[str, bool]] = []
    end = 0
    for found in _WORD.finditer(text):
        word, spaced = found[0], found.start() > end
        end = found.end()
        if words and not spaced and unicodedata.category(word[0])[0] == "M":
            words[-1] = (words[-1][0] + word, words[-1][1])
        else:
            words.append((word, spaced))
    return words


def joined(words: Sequence[tuple[str, bool]]) -> str:
    """The text of words of `words_in`: one blank where white space was, none before the first."""
    return "".join(f" {word}" if spaced and place else word for place, (word, spaced) in enumerate(words))


# Letters of other alphabets that look like a Latin one in most fonts, small as `casefold` makes them (Unicode TR 39, the common ones).
_LOOKS_LIKE = str.maketrans("аеорсухіјѕԁһԛԝгпкмтвнαορυνικτχγεӏ\u013101", "aeopcyxijsdhqwrnkmtbhaopuviktxyeliol")


def reads_like(name: str) -> str:
    """What a name looks like: two that are written with other letters, digits, widths, marks or capitals and look alike give one text."""
    wide = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(c for c in wide if unicodedata.category(c) not in ("Mn", "Cf", "Cc"))
    return " ".join(plain.translate(_LOOKS_LIKE).replace("rn", "m").replace("vv", "w").split())


def whole_number(text: str) -> int | None:
    """The number in plain digits; None for any other text, and for one of more digits than anything is counted to.

    Python raises an error for one of thousands of digits, which whoever writes a tag, a record or a reference could have it meet. One with
    zeros before it is none: a version, of which reports and scripts keep the name, has one name.
    """
    return int(text) if _NUMBER.fullmatch(text) else None


# --- Text from outside, made safe to show: titles, names, reasons and ids can hold what a terminal or a page would obey.


# Marks without a shape of their own that scripts and emoji need: zero-width joiner and non-joiner.
_NEEDED = "\u200c\u200d"


def visible(text: str) -> str:
    """`text` with every character that a terminal would obey written as its escape; line breaks and tabs stay."""
    return "".join(c if c in "\n\t" or not _is_obeyed(c) else _escape(c) for c in text)


def one_line(text: Any) -> str:
    """The text of a value in one line: no break of any kind in it can begin a line of its own."""
    return visible(" ".join(str(text).split()))


def as_json(value: Any, indent: int | None = None, letters: bool = True) -> str:
    """JSON whose text no terminal obeys: the same value, its dangerous characters as escapes; without `letters` all that is not ASCII.

    What is no number (nan, inf) is null: JSON has no word for it, and strict readers refuse Python's.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=not letters, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=indent, ensure_ascii=not letters, default=str, allow_nan=False)
    return "".join(c if c == "\n" or not _is_obeyed(c) else json.dumps(c)[1:-1] for c in text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_obeyed(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in _NEEDED)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
