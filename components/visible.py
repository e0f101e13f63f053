"""What a reader sees of a text: letters without any form, such as a zero-width space, are as blank as a space."""

from __future__ import annotations

import re

# Unicode's Default_Ignorable_Code_Point (soft hyphen, zero-width letters and joiners, Hangul fillers, variation selectors, marks of
# direction, tags), the interlinear marks and the blank of Braille. As the inside of a character class.
INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_BLANK = rf"\s\x00-\x1f\x7f-\x9f{INVISIBLE}"
VISIBLE = f"[^{_BLANK}]"  # a pattern for any letter that is seen
_VISIBLE, _EDGES = re.compile(VISIBLE), re.compile(rf"\A[{_BLANK}]+|[{_BLANK}]+\Z")


def is_blank(text: str) -> bool:
    """Whether nothing of `text` is seen: it is empty, white space, or letters that have no form."""
    return _VISIBLE.search(text) is None


def written(text: str | None) -> str:
    """`text` without what is not seen at both ends; empty where nothing is seen."""
    return _EDGES.sub("", text or "")
