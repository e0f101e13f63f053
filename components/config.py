"""The base of every component's configuration: frozen, closed, each field bounded and described."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict

# No retriever bears the name of what belongs to another one: `x-promotions` would write into the records of `x`.
RESERVED_ENDINGS = ("promotions", "candidate", "release", "query-tower", "document-tower", "query-encoder", "index")
RETRIEVER_NAME = r"^[a-z0-9][a-z0-9-]{0,59}$"


def checked_retriever_name(name: str) -> str:
    """`name`; raises ValueError for a form that none can have, and for the name of a model or experiment of another retriever."""
    if not re.fullmatch(RETRIEVER_NAME.rstrip("$"), name):
        raise ValueError(f"got '{name}'; allowed: small letters, digits and hyphens, at most 60")
    for ending in RESERVED_ENDINGS:
        if name.endswith(f"-{ending}"):
            raise ValueError(f"'{name}' is where the retriever '{name[: -len(ending) - 1]}' keeps its {ending}; choose another name")
    return name


class StepConfig(BaseModel):
    """Refuses unknown fields and cannot be changed after it was checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
