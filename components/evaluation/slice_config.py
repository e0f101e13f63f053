"""Definitions of slices as data."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from components.config import StepConfig

SliceKind = Literal["query_length", "head_tail", "unseen_words", "language", "domain", "pattern"]
COUNTED: tuple[SliceKind, ...] = ("query_length", "head_tail", "unseen_words")


class SliceConfig(StepConfig):
    """One dimension by which the judged queries are cut into slices.

    query_length: words of the query. head_tail: how many train queries hold its words. unseen_words: share of its words that no train query
    holds. language: the script of its letters. domain: the data set it came from when several are mixed, or `field` of its document.
    pattern: whether its text matches the regular expression.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$", description="Name of the dimension")
    kind: SliceKind = Field(description="What the queries are cut by")
    edges: tuple[float, ...] = Field((), description="Rising values that part the slices; empty: parts of equal size")
    parts: int = Field(2, ge=2, le=20, description="How many slices of equal size are cut when there are no edges")
    field: str = Field("", description="domain: the field of a relevant document's metadata that names it; empty: the mixed data sets")
    pattern: str = Field("", description="pattern: regular expression that is searched for in the query, whatever its case")

    @model_validator(mode="after")
    def _fits(self) -> SliceConfig:
        if self.edges and self.kind not in COUNTED:
            raise ValueError(f"the slices '{self.name}' of kind {self.kind} have no edges; only {', '.join(COUNTED)} are cut by values")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"the edges of '{self.name}' must rise; got {list(self.edges)}")
        if (self.kind == "pattern") != bool(self.pattern):
            raise ValueError(f"the slices '{self.name}' of kind {self.kind} {'need a' if self.kind == 'pattern' else 'take no'} pattern")
        if self.field and self.kind != "domain":
            raise ValueError(f"the slices '{self.name}' of kind {self.kind} take no field; only domain does")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"the pattern of '{self.name}' is no regular expression ({error})") from None
        return self


STANDARD_SLICES = (
    SliceConfig(name="query_length", kind="query_length", edges=(4,)),
    SliceConfig(name="head_tail", kind="head_tail"),
    SliceConfig(name="unseen_words", kind="unseen_words", edges=(0.01,)),
    SliceConfig(name="language", kind="language"),
    SliceConfig(name="domain", kind="domain"),
)
