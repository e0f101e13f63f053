"""Names of the tags that carry lineage in MLflow, and the rules MLflow has for names and lengths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

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

_APPROVAL = re.compile(r"(approved?|accept(ed)?|ok|pass(ed)?)( by [^:]*)?([.!]*|:.*)", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(no|not|never|cannot|reject\w*|refus\w*|declin\w*|withdr\w*|revok\w*|mistake\w*|wrong\w*)\b|n['\u2019]t\b", re.IGNORECASE
)
_REJECTION = re.compile(r"\W*reject\w*[\s:,;.(\-\u2013\u2014]*(.*?)\)?$", re.IGNORECASE)

MAX_TAG = 8000
MAX_PARAMETER = 6000
MAX_DESCRIPTION = 5000


def rejection(tags: Mapping[str, str]) -> str | None:
    """Why a reviewer rejected a version, None when its tags do not say so: `review` = `rejected: reason`, or `rejected` = the reason.

    The one reader of these tags, for the command line, the server's rules and the pages. It fails closed: with or without the project's
    prefix, in any capitals, what begins with "reject" rejects, and so does a review that is neither blank nor plainly an approval: one
    word, who, and after a colon a comment that takes nothing back. A rejection needs no proof: it is the one claim that cannot let
    anything through.
    """
    for key, value in sorted(tags.items()):
        plain, said = key.strip().casefold().removeprefix(PREFIX), " ".join(value.split())
        if plain == "rejected" and said.casefold() not in ("", "false", "no"):
            return said
        if plain != "review" or not said or (_APPROVAL.fullmatch(said) and not _DOUBT.search(said)):
            continue
        verdict = _REJECTION.match(said)
        if verdict is None:
            return f"the tag {key} says '{cut(said, 200)}', which is not a plain approval and counts as a rejection"
        return verdict[1].strip() or "no reason given"
    return None


def is_reviewed(tags: Mapping[str, str]) -> bool:
    """Whether a reviewer has said anything of a version in words."""
    return any(key.strip().casefold().removeprefix(PREFIX) == "review" and value.strip() for key, value in tags.items())


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
    return text if len(text) <= limit else text[: limit - 12] + " … [cut off]"


def prefixed(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags with the project's prefix; keys that already have a prefix of MLflow or ours stay, None values are left out."""
    known = (PREFIX, "mlflow.")
    kept = {key: value for key, value in values.items() if value is not None}
    return {(key if key.startswith(known) else PREFIX + key): cut(text(value), MAX_TAG) for key, value in kept.items()}


def text(value: Any) -> str:
    """Booleans as `true` and `false`, everything else as its text."""
    return str(value).lower() if isinstance(value, bool) else str(value)
