"""What the gates are asked with and what they answer: findings, inputs, results, decision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import read_versioned, write_json
from components.errors import ArtifactError
from components.evaluation.table import CHOSEN_ON_DEV, DEV

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.champion_comparison import ComparisonSummary
    from components.evaluation.report import Evaluation


SCHEMA_VERSION = 1
FACTS_FILE = "facts.json"


class Findings(BaseModel):
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


def write_facts(folder: Path, facts: Findings) -> None:
    """Write `facts.json` into `folder`, atomically."""
    write_json(folder / FACTS_FILE, facts.model_dump(mode="json"))


def load_facts(folder: Path) -> Findings | None:
    """The facts in `folder`; None when there are none (candidates of older versions).

    Raises ArtifactError when the file is broken or of a newer schema.
    """
    path = folder / FACTS_FILE
    if not path.exists():
        return None
    raw = read_versioned(path, SCHEMA_VERSION)
    try:
        return Findings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path} does not hold the facts of a candidate ({where}: {first['msg']}). Build it again.") from None


# --- What a decision about a candidate rests on (`GateInputs`) and what it is made of (`GateResult`, `GateDecision`).


OFF_DISTRIBUTION = "off_distribution_retention"
Status = Literal["pass", "fail", "not_decidable", "first_release", "off"]
Verdict = Literal["pass", "fail", "not_decidable"]


@dataclass(frozen=True)
class GateInputs:
    """All that the gates look at. `baseline` is the champion's own evaluation, None when nothing was released yet.

    A champion without a baseline is lost, and `lost` says why; its gates are not decidable.

    `comparison` holds the speed of candidate and champion from one run, `values` what both reached there on every judged query (query_id,
    system, metric, value); `facts` what was found out besides measurements; `champion` is the version that `baseline` is of. Where the two
    were evaluated at different times there are no `values`, and `shared` says in the same columns which relevant documents each serves, and
    what both reach among those that both hold. What is None was not looked at, and no gate that needs it passes.
    """

    report: Evaluation
    baseline: Evaluation | None = None
    comparison: ComparisonSummary | None = None
    facts: Findings | None = None
    values: pd.DataFrame | None = None
    champion: int | None = None
    lost: str = ""
    shared: pd.DataFrame | None = None


class GateResult(BaseModel):
    """One gate: what was measured (`value`), what it was held against (`threshold`), and why it ended so.

    `slice` is "dimension=slice" for a gate over some of the queries; `queries` is how many were compared, and `power` the chance that
    the comparison shows an equal candidate to be equal.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    status: Status
    reason: str
    value: float | None = None
    threshold: float | None = None
    slice: str | None = None
    queries: int | None = None
    power: float | None = None

    @property
    def mark(self) -> str:
        """What a gate of dev queries is worth, which decisions of older versions were made on and do not say; empty for all others."""
        return f"NOT OFF THE DISTRIBUTION: {CHOSEN_ON_DEV}" if self.name == f"{OFF_DISTRIBUTION}[{DEV}]" else ""

    @property
    def told(self) -> str:
        """The reason with its mark before it, as people are to read it."""
        return " ".join(filter(None, (self.mark, self.reason)))


class GateDecision(BaseModel):
    """All gates of a candidate. A first release may pass, but it was compared with no champion: a person has to look.

    `policy_version` and `policy_digest` name the policy, `inputs` maps evaluation, baseline, comparison, facts and comparison_values to the
    digest of their content, that of a late approval shared_documents too. Decisions of older versions have none of these, or were made
    without comparison_values. `method` is the arithmetic that it was made by (see `components.gates.measures.METHOD`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    verdict: Verdict
    first_release: bool
    gates: tuple[GateResult, ...]
    policy_version: str | None = None
    policy_digest: str | None = None
    inputs: Mapping[str, str] = Field(default_factory=dict)
    method: int = Field(1, ge=1)

    def open_gates(self) -> list[GateResult]:
        """The gates that failed or could not be decided."""
        return [gate for gate in self.gates if gate.status in ("fail", "not_decidable")]
