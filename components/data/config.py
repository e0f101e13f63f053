"""Configuration of the data room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import StepConfig

IgnoreIdenticalIds = Literal["same_text", "always", "never"]


class DataConfig(StepConfig):
    """Which data a release is built from."""

    source: str = Field(
        "icd10cm",
        min_length=1,
        description="Path of a BEIR-layout or Parquet folder, or the name of the built-in set: icd10cm",
    )
    scope: Literal["demo", "full"] = Field("demo", description="Built-in set only: the demo's chapters, or all of them")
    mix: tuple[str, ...] = Field((), description="Further folders mixed in; their ids get the folder's name in front")
    max_documents: int | None = Field(None, ge=50, description="Keep at most this many documents, judged ones first")
    dev_share: float = Field(0.1, gt=0, lt=0.5, description="Share of train queries held out when the data has no dev judgements")
    ignore_identical_ids: IgnoreIdenticalIds = Field(
        "same_text",
        description="The document of a query's own id is no answer to it: same_text (if it reads the same and is not judged relevant), "
        "always (whatever it says, as BEIR does) or never",
    )
    contracts: str = Field("", description="Folder of ODCS contracts; empty for the ones that come with the project")
    seed: int = Field(13, ge=0, description="Seed of the subset and of the held-out share")
