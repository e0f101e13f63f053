"""The mark of an override on the page of a release: it was let through although its gates did not pass, and that stays visible.

MLflow's pages strip colours and styles from a description, so the red is a red square.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from components.release.champion import Record, release_model
from components.templates import plain
from components.tracking import labels, registry

OVERRIDDEN = "overridden"
RED = "\U0001f7e5"


class Override(NamedTuple):
    """Why a release was let through although its gates said `verdict`; `person` is None when nobody was signed in.

    `foreign`: they were decided by a policy that is not the installation's.
    """

    reason: str
    person: str | None
    verdict: str
    foreign: bool = False

    @property
    def what(self) -> str:
        """What was done."""
        return f"released although its gates said {self.verdict}" + (", by a policy that is not the installation's" if self.foreign else "")

    @property
    def who(self) -> str:
        """By whom and why, in one line: a line break would end a red line early."""
        return f"by {self.person or 'unauthenticated'}: {' '.join(self.reason.split())}"

    @property
    def line(self) -> str:
        """One line of markdown, in red as far as MLflow shows it."""
        return f"{RED} **OVERRIDE: {self.what}**, {as_text(self.who)}"


def override_of(records: Sequence[Record], version: int) -> Override | None:
    """The override that release `version` was promoted with, also after a rollback to it; None when its gates passed."""
    promoted = [r for r in records if r["action"] == "promote" and int(r["to_version"]) == version and r.get("override")]
    if not promoted:
        return None
    last = promoted[-1]
    return Override(str(last["override"]), last.get("override_by"), str(last.get("verdict")), bool(last.get("foreign_policy")))


def mark_override(name: str, records: Sequence[Record]) -> None:
    """Put the reason of the newest promotion's override into a tag and above the description of its release; else nothing.

    Only a promotion that has a record is marked. One that was killed before its mark gets it from the next.
    """
    model, version = release_model(name), next((int(r["to_version"]) for r in reversed(records) if r["action"] == "promote"), 0)
    override = override_of(records, version)
    release = next((info for info in registry.versions(model) if info.version == version), None)
    if override is None or release is None or release.tags.get(labels.PREFIX + OVERRIDDEN) == labels.cut(override.reason, labels.MAX_TAG):
        return
    text = registry.description(model, version)
    if not text.startswith(override.line):
        registry.set_description(model, version, f"{override.line}\n\n{text}")
    registry.set_version_tag(model, version, OVERRIDDEN, override.reason)


def as_text(words: str) -> str:
    """Words from outside as markdown that shows them: one line that starts no HTML, link or emphasis, and ends no cell of a table."""
    return re.sub(r"([\\|`*\[\]])", r"\\\1", " ".join(plain(words).split())).replace("<", "&lt;")
