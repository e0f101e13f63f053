"""Text from outside, made safe to show: titles, names, reasons and ids can hold what a terminal or a page would obey.

A title may clear the screen, colour a line, turn the direction of the words around it or, with a line break, forge a line of a list.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

# Marks without a shape of their own that scripts and emoji need: zero-width joiner and non-joiner.
_NEEDED = "\u200c\u200d"


def visible(text: str) -> str:
    """`text` with every character that a terminal would obey written as its escape; line breaks and tabs stay."""
    return "".join(c if c in "\n\t" or not _is_obeyed(c) else _escape(c) for c in text)


def one_line(text: Any) -> str:
    """The text of a value in one line: no break of any kind in it can begin a line of its own."""
    return visible(" ".join(str(text).split()))


def as_json(value: Any, indent: int | None = None, letters: bool = True) -> str:
    """JSON whose text no terminal obeys: the same value, its dangerous characters as escapes; without `letters` all that is not ASCII."""
    text = json.dumps(value, indent=indent, ensure_ascii=not letters, default=str)
    return "".join(c if c == "\n" or not _is_obeyed(c) else json.dumps(c)[1:-1] for c in text)


def _is_obeyed(character: str) -> bool:
    category = unicodedata.category(character)
    return category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and character not in _NEEDED)


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
