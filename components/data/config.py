"""Configuration of the data room."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import StepConfig


class DataConfig(StepConfig):
    """Which data a release is built from."""

    source: str = Field(
        "icd10cm",
        min_length=1,
        description="Path of a BEIR-layout or Parquet folder, or the name of the built-in set: icd10cm",
    )
    scope: Literal["demo", "full"] = Field(
        "demo", description="Built-in set only: some chapters with half of their entries, or all chapters whole"
    )
    mix: tuple[str, ...] = Field((), description="Further folders mixed in; their ids get the folder's name in front")
    max_documents: int | None = Field(None, ge=50, description="Keep at most this many documents, judged ones first")
    dev_share: float = Field(0.1, gt=0, lt=0.5, description="Share of train queries held out when the data has no dev judgements")
    contracts: str = Field("", description="Folder of ODCS contracts; empty for the ones that come with the project")
    seed: int = Field(13, ge=0, description="Seed of the subset and of the held-out share")
