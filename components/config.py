"""The base of every component's configuration: frozen, closed, each field bounded and described."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

RETRIEVER_NAME = r"^[a-z0-9][a-z0-9-]{0,59}$"


class StepConfig(BaseModel):
    """Refuses unknown fields and cannot be changed after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
