"""Configuration of the evaluation, and definitions of slices as data."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from components.settings import LARGEST_SEED, StepConfig

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


# --- Configuration of the evaluation.


AUTO, NO_STEMMER = "auto", "none"
# Two-letter codes of the languages that people name most, beside Snowball's own names.
_LANGUAGE_CODES = {
    "ar": "arabic", "ca": "catalan", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish",
    "et": "estonian", "eu": "basque", "fa": "persian", "fi": "finnish", "fr": "french", "ga": "irish", "hi": "hindi", "hu": "hungarian",
    "hy": "armenian", "id": "indonesian", "it": "italian", "lt": "lithuanian", "ne": "nepali", "nl": "dutch", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sr": "serbian", "sv": "swedish", "ta": "tamil", "tr": "turkish",
    "yi": "yiddish",
}  # fmt: skip


def stemmer_name(asked: str) -> str:
    """`auto`, `none` or Snowball's name of the language `asked`, which may be a two-letter code; ValueError where there is no stemmer."""
    name = asked.strip().casefold()
    if name in (AUTO, NO_STEMMER):
        return name
    import Stemmer

    known = Stemmer.algorithms()
    name = _LANGUAGE_CODES.get(name, name)
    if name not in known:
        raise ValueError(f"there is no stemmer for '{asked}'; take {AUTO}, {NO_STEMMER}, or one of {', '.join(known)}")
    return name


class EvaluationConfig(StepConfig):
    """Which systems are measured, and how long their speed is measured."""

    split: str = Field("test", min_length=1, description="Judgements to evaluate on")
    extra_splits: tuple[str, ...] = Field((), description="Further judged query sets, for the retention off the training distribution")
    slices: tuple[SliceConfig, ...] = Field(
        STANDARD_SLICES, description="How the judged queries are cut into slices: name, kind, and edges, parts, field or pattern"
    )
    depth: int = Field(100, ge=100, le=10_000, description="Documents retrieved per query; recall@100 needs 100")
    bm25_stemmer: str = Field(
        "auto",
        min_length=1,
        description="Stemmer of BM25: auto (the documents' language, where they tell it), none, or a language such as german or de",
    )
    untrained_student: bool = Field(True, description="Also measure the student's encoder as it was before training")
    fusion: bool = Field(True, description="Also measure the student fused with BM25; how is chosen on dev")
    latency_queries: int = Field(
        200, ge=20, le=100_000, description="At most this many queries are timed at batch 1, the same for every system"
    )
    speed_precision: float = Field(
        0.1, ge=0, le=1, description="Timing ends when 95 % intervals are within this share of each figure; 0: all queries are timed"
    )
    throughput_batch: int = Field(32, ge=1, le=10_000, description="Queries per batch when queries per second are measured")
    query_groups: str = Field(
        "auto",
        min_length=1,
        max_length=100,
        description="Which judged queries were drawn together, and are resampled together: auto (those of one group that the source splits "
        "by, else those with an answer in common), queries (none), or a metadata field of the documents whose values are the groups",
    )
    bootstrap_samples: int = Field(2000, ge=200, le=100_000, description="Resamples of the paired bootstrap")
    seed: int = Field(13, ge=0, le=LARGEST_SEED, description="Seed of the bootstrap")

    @field_validator("bm25_stemmer")
    @classmethod
    def _known_stemmer(cls, asked: str) -> str:
        return stemmer_name(asked)

    @field_validator("split", "extra_splits")
    @classmethod
    def _not_trained_on(cls, splits: str | tuple[str, ...]) -> str | tuple[str, ...]:
        for split in (splits,) if isinstance(splits, str) else splits:
            if split.strip().casefold() == "train":
                raise ValueError("the models were trained on the split 'train', so nothing can be decided by it; name another one")
        return splits

    @field_validator("slices")
    @classmethod
    def _different_names(cls, slices: tuple[SliceConfig, ...]) -> tuple[SliceConfig, ...]:
        names = [definition.name for definition in slices]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two dimensions of slices are named '{twice}'; give each a name of its own")
        return slices
