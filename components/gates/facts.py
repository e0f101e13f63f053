"""What was found out about a candidate besides its measurements: contracts, lineage, vector space. Written as `facts.json`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import read_versioned, write_json
from components.errors import ArtifactError

SCHEMA_VERSION = 1
FACTS_FILE = "facts.json"


class Facts(BaseModel):
    """Findings that are no measurement over queries; None means that it was not looked at, which a gate cannot decide on.

    `contract_errors` and `contract_warnings` count broken rules of the data contracts, `lineage_gaps` and `space_mismatches` are
    sentences, one for each finding. `uncompared` says why candidate and champion were not asked in one run, and what to do about it.
    `removed_documents` of the `documents_before` that the release had which an index refresh started from are gone.
    `foreign_policy` says that the policy is none of the installation's; "" that it is one, None that the installation names none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    contract_errors: int | None = Field(None, ge=0)
    contract_warnings: int | None = Field(None, ge=0)
    lineage_gaps: tuple[str, ...] | None = None
    space_mismatches: tuple[str, ...] | None = None
    uncompared: str = ""
    foreign_policy: str | None = None
    removed_documents: int | None = Field(None, ge=0)
    documents_before: int | None = Field(None, ge=0)


def write_facts(folder: Path, facts: Facts) -> None:
    """Write `facts.json` into `folder`, atomically."""
    write_json(folder / FACTS_FILE, facts.model_dump(mode="json"))


def load_facts(folder: Path) -> Facts | None:
    """The facts in `folder`; None when there are none (candidates of older versions).

    Raises ArtifactError when the file is broken or of a newer schema.
    """
    path = folder / FACTS_FILE
    if not path.exists():
        return None
    raw = read_versioned(path, SCHEMA_VERSION)
    try:
        return Facts.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path} does not hold the facts of a candidate ({where}: {first['msg']}). Build it again.") from None
