"""Names of the tags that carry lineage in MLflow, and the rules MLflow has for names and lengths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from components.text import INVISIBLE, reads_like, written

PREFIX = "scalingnote."
DIGEST = PREFIX + "digest"
KIND = PREFIX + "kind"
PACKAGE = PREFIX + "package"
STEP = PREFIX + "step"
FLOW = PREFIX + "flow"
FLOW_RUN = PREFIX + "flow_run_id"
TASK_RUN = PREFIX + "prefect_task_run_id"
CACHED = PREFIX + "cached"
FILES_RUN = PREFIX + "files_run_id"
UPLOADED = PREFIX + "uploaded"
ERROR = PREFIX + "error"
LOOKED = PREFIX + "looked_at"
PARENT = PREFIX + "parent."
INPUT = PREFIX + "input."
ATTRIBUTE = PREFIX + "attribute."

# One word, who, and after a colon a comment in plain letters. A name of more words may be a condition.
_APPROVAL = re.compile(r"(approved?|accept(ed)?|ok|pass(ed)?)( by( [^\s,;:()]{1,40}){1,4})?([.!]*|:[\x20-\x7e\u2019]*)")
# What takes an approval back or ties it to something, also in the languages that reviewers may write in; a * stands for any ending.
_TAKEN_BACK = """
no not never none nobody nothing nope nay cannot reject* refus* declin* deny denied veto* withdr* withh* revok* rescind* retract* mistake*
wrong* fail* block* hold held wait* pending until unless if except* excluding but however though although provided conditional* condition*
without need* require* redo* redone rework* fix* stop* halt* later postpone* defer* delay* problem* bad worse* broken bug* error* disapprov*
unaccept* unsafe unusable unfit insufficient* concern* doubt* maybe perhaps almost nearly yet revert* roll* cancel* abandon* only off
nicht nein kein* abgelehnt* ablehn* abzulehnen zuruck* falsch* fehler* gesperrt ohne aber nur wenn erst nie niemand* vorbehalt*
non pas refuse* rejete* jamais sauf mais sans aucun* rechaz* sin pero salvo nunca deneg* rifiut* respint* senza mai ma
nao rejeit* recus* sem mas niet geen afgekeurd* geweigerd* zonder odrzuc* inte ej avvis* ne
"""
_DOUBT = re.compile(rf"\b({'|'.join(map(reads_like, _TAKEN_BACK.split()))})\b|n['\u2019]t\b|reject".replace("*", r"\w*"))
_NO = frozenset({"false", "no"})
# A 0 reads like an o.
_NO_VERDICT = _NO | {"o", "n", "f"}
_NO_REASON = _NO | {"none", "null", "nil", "n/a", "na", "o", "off", "never", "not", "rejected", "reject", "nein", "non"}
_OF_A_REVIEW = frozenset({"by", "at", "on", "date", "time", "link", "url"})  # a tag `review_by` names who, and says nothing
_VERDICTS = frozenset({"approve", "approved", "approval", "accepted", "status", "verdict", "decision"})
# Words that stand beside one of those in the name of a tag: `approval_status`, `final decision`.
_BESIDE = frozenset({"status", "state", "result", "outcome", "final", "release", "reviewer", "reviewers", "qa", "human", "manual"})
_NEGATIONS = frozenset({"declined", "disapproved", "unapproved", "vetoed", "veto", "not_approved", "do_not_promote"})
# As the value of any other tag; `rejected.csv` and `rejected-pairs` name files and branches.
_SAYS_REJECTED = re.compile(r"\W*rejected(\s*[:;!\u2013\u2014].*|\s+[.,\-].*|[.,\-]+|[.,\-].*\s.*| by .*)?")
_REJECTION = re.compile(r"\W*reject\w*[\s:,;.(\-\u2013\u2014]*(.*?)\)?$", re.IGNORECASE)

CUT_OFF = " … [cut off]"
MAX_TAG = 8000
MAX_PARAMETER = 6000
MAX_DESCRIPTION = 5000


def rejection(tags: Mapping[str, str]) -> str | None:
    """Why a reviewer rejected a version, None when its tags do not say so: `review` = `rejected: reason`, or `rejected` = the reason.

    The one reader of these tags, for the command line, the server's rules and the pages. It fails closed: with or without the project's
    prefix, in any capitals and in letters that look like these, what begins with "reject" rejects, and so does a review that is neither
    blank nor plainly an approval: one word, who, and after a colon a comment that takes nothing back. So does a tag such as `approved`,
    `approval_status` or `decision` that says no, or something that takes an approval back, and any tag of somebody's own that says
    `rejected`. A tag `rejected` (`declined`, `not_approved`) is taken back by `no` or `false`, not by leaving it empty: as a mark it needs
    no value. A rejection needs no proof: it is the one claim that cannot let anything through.
    """
    for key, value in sorted(tags.items()):
        kind, said = _kind_of(key), " ".join(value.split())
        seen = _seen(said)
        if kind == "rejected" and seen not in _NO:
            return said or "no reason given"
        if (kind == "verdict" and (seen in _NO_VERDICT or _DOUBT.search(seen))) or (kind == "other" and _SAYS_REJECTED.fullmatch(seen)):
            return f"the tag {key} says '{cut(said, 200)}'"
        if kind != "review" or not seen or _is_plain_approval(said, seen):
            continue
        verdict = _REJECTION.match(said)
        if verdict is None:
            return f"the tag {key} says '{cut(said, 200)}', which is not a plain approval and counts as a rejection"
        return verdict[1].strip() or "no reason given"
    return None


def reason(text: str | None) -> str:
    """The words of a reason to do what was not meant to be, as an override; empty where there are none, or they say `no`, `none`, `-`."""
    said = written(text)
    return "" if _seen(said) in _NO_REASON or not any(map(str.isalnum, said)) else said


def is_reviewed(tags: Mapping[str, str]) -> bool:
    """Whether a reviewer has said anything of a version in words."""
    return any(_kind_of(key) == "review" and _seen(value) for key, value in tags.items())


def _is_plain_approval(said: str, seen: str) -> bool:
    """Whether a review says yes and nothing else; an entry of the audit log that was cut off may have said more."""
    spelled_out = re.sub(r"[\W_]", "", seen)  # also with blanks or points between its letters
    # Who reads no Cyrillic takes a word of it for a Latin one. A name may be of any letters.
    foreign = any(letter.isalpha() and not letter.isascii() for letter in unicodedata.normalize("NFKD", said).partition(":")[2])
    whole = _APPROVAL.fullmatch(seen) and "[cut off]" not in said and not foreign
    return bool(whole) and not _DOUBT.search(seen) and "reject" not in spelled_out


def _kind_of(key: str) -> str:
    """What a tag of this key says: `rejected`, `review`, `verdict` for others in which people write one, `other`; empty for ours."""
    plain = _seen(key).removeprefix(PREFIX)
    words = re.findall(r"[^\W_]+", plain)
    if plain in ("rejected", "review"):
        return plain
    if _seen(key).startswith((PREFIX, "mlflow.", "metric.")) or plain == "override":  # of this program or MLflow, or a reason
        return ""
    if any(word.startswith("reject") for word in words) or "_".join(words) in _NEGATIONS:
        return "rejected"
    if {"review", "reviewed"} & set(words) and not _OF_A_REVIEW & set(words):
        return "review"
    named = plain in _VERDICTS or ({*words} & (_VERDICTS - {"status"}) and {*words} <= _VERDICTS | _BESIDE)
    return "verdict" if named else "other"


def _seen(text: str) -> str:
    """What a text looks like to its readers, in small letters."""
    return reads_like(re.sub(f"[{INVISIBLE}]", "", text))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner` -> text, the form of MLflow's parameters."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[name(f"{prefix}{key}")] = cut(str(value), MAX_PARAMETER)
    return flat


def name(text: str) -> str:
    """`text` as a parameter or metric name: `recall@10` becomes `recall_at_10`, as MLflow refuses an @."""
    return re.sub(r"[^\w\-./ :]", "_", text.replace("@", "_at_"))


def cut(text: str, limit: int) -> str:
    """`text`, ended with a mark when longer than `limit`; MLflow would cut it silently or refuse it."""
    return text if len(text) <= limit else text[: limit - len(CUT_OFF)] + CUT_OFF


def prefixed(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags with the project's prefix; keys that already have a prefix of MLflow or ours stay, None values are left out."""
    known = (PREFIX, "mlflow.")
    kept = {key: value for key, value in values.items() if value is not None}
    return {(key if key.startswith(known) else PREFIX + key): cut(text(value), MAX_TAG) for key, value in kept.items()}


def text(value: Any) -> str:
    """Booleans as `true` and `false`, everything else as its text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
