"""Configuration of the data room."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from components.settings import LARGEST_SEED, StepConfig

IgnoreIdenticalIds = Literal["same_text", "always", "never"]
OnRule = Literal["refuse", "drop"]


class ViolationConfig(StepConfig):
    """What becomes of rows that public data sets often break a rule with. `drop` leaves them out, counted and kept beside the data."""

    dangling_judgements: OnRule = Field("refuse", description="Judgements of a document or query that is not there")
    exact_duplicates: OnRule = Field(
        "refuse", description="Rows equal to an earlier one in every column; contradicting grades are never dropped"
    )
    blank_texts: OnRule = Field("refuse", description="Documents and queries without a visible letter, and with them their judgements")


class DataConfig(StepConfig):
    """Which data a release is built from."""

    source: str = Field(
        "icd10cm",
        min_length=1,
        description="Path of a folder with corpus, queries and qrels (JSON Lines, CSV, TREC, Parquet), ir_datasets:NAME for a set of that "
        "package, hub:OWNER/NAME for a data set of a Hugging Face hub (with @REVISION to pin it), or the built-in set: icd10cm",
    )
    scope: Literal["demo", "quick", "full"] = Field(
        "demo", description="Built-in set only: some chapters, half of their entries with all wordings (quick), or all chapters"
    )
    mix: tuple[str, ...] = Field((), description="Further folders mixed in; their ids get the folder's name in front")
    max_documents: int | None = Field(None, ge=50, description="Keep at most this many documents, judged ones first")
    dev_share: float = Field(0.1, gt=0, lt=0.5, description="Share of train queries held out when the data has no dev judgements")
    ignore_identical_ids: IgnoreIdenticalIds = Field(
        "same_text",
        description="The document of a query's own id is no answer to it: same_text (if it reads the same and is not judged relevant), "
        "always (whatever it says, as BEIR does) or never",
    )
    contracts: str = Field("", description="Folder of ODCS contracts; empty for the ones that come with the project")
    on_violation: ViolationConfig = Field(
        default_factory=ViolationConfig,
        description="For each class of broken rows: refuse the data, or drop the rows; one word means all classes",
    )
    max_dropped_share: float = Field(
        0.05, gt=0, le=0.5, description="Refuse the data when more than this share of a table, or of a split's judgements, would be dropped"
    )
    seed: int = Field(13, ge=0, le=LARGEST_SEED, description="Seed of the subset and of the held-out share")

    @field_validator("on_violation", mode="before")
    @classmethod
    def _one_word_for_all(cls, value: Any) -> Any:
        """`on_violation: drop` is short for all classes."""
        return dict.fromkeys(ViolationConfig.model_fields, value) if isinstance(value, str) else value
