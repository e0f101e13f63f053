"""The mark of an override on the page of a release: it was let through although its gates did not pass, and that stays visible.

MLflow's pages strip colours and styles from a description, so the red is a red square.
"""

from __future__ import annotations

import re

from components.promotion.approval import Approval
from components.promotion.evidence_html import plain
from components.promotion.standing import release_model
from components.tracking import registry

OVERRIDDEN = "overridden"
RED = "\U0001f7e5"


def mark_override(approval: Approval, verdict: str) -> None:
    """Put the reason into a tag and above the description of the release; doing it again changes nothing."""
    model, version = release_model(approval.name), approval.release_version
    registry.set_version_tag(model, version, OVERRIDDEN, str(approval.override))
    text = registry.description(model, version)
    line = override_line(str(approval.override), approval.override_by, verdict)
    if not text.startswith(line):
        registry.set_description(model, version, f"{line}\n\n{text}")


def override_line(reason: str, person: str | None, verdict: str) -> str:
    """One line of markdown that says who released it against which verdict, and why."""
    return f"{RED} **OVERRIDE: released although its gates said {verdict}**, by {as_text(person or 'unauthenticated')}: {as_text(reason)}"


def as_text(words: str) -> str:
    """Words from outside as markdown that shows them: one line that starts no HTML, link or emphasis, and ends no cell of a table."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", " ".join(plain(words).split())).replace("<", "&lt;")
