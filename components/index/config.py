"""Configuration of the index."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.config import StepConfig


class IndexConfig(StepConfig):
    """How the document vectors are made searchable."""

    index_key: Literal["Flat"] = Field("Flat", description="FAISS index type; exact inner product")
    probe_tolerance: float = Field(0.01, gt=0, le=0.5, description="Largest 1 - cosine of a probe text against its record at load")
