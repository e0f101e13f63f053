"""What a decision about a candidate rests on (`Evidence`) and what it is made of (`GateResult`, `GateDecision`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.comparison import ComparisonSummary
    from components.evaluation.report import Evaluation
    from components.gates.facts import Facts

Status = Literal["pass", "fail", "not_decidable", "first_release", "off"]
Verdict = Literal["pass", "fail", "not_decidable"]


@dataclass(frozen=True)
class Evidence:
    """All that the gates look at. `baseline` is the champion's own evaluation, None when nothing was released yet.

    A champion without a baseline is lost, and `lost` says why; its gates are not decidable.

    `comparison` holds the speed of candidate and champion from one run, `values` what both reached there on every judged query (query_id,
    system, metric, value); `facts` what was found out besides measurements; `champion` is the version that `baseline` is of. What is None
    was not looked at, and no gate that needs it passes.
    """

    report: Evaluation
    baseline: Evaluation | None = None
    comparison: ComparisonSummary | None = None
    facts: Facts | None = None
    values: pd.DataFrame | None = None
    champion: int | None = None
    lost: str = ""


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


class GateDecision(BaseModel):
    """All gates of a candidate. A first release may pass, but it was compared with no champion: a person has to look.

    `policy_version` and `policy_digest` name the policy, `inputs` maps evaluation, baseline, comparison, facts and comparison_values to the
    digest of their content. Decisions of older versions have none of these, or were made without comparison_values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    verdict: Verdict
    first_release: bool
    gates: tuple[GateResult, ...]
    policy_version: str | None = None
    policy_digest: str | None = None
    inputs: Mapping[str, str] = Field(default_factory=dict)

    def open_gates(self) -> list[GateResult]:
        """The gates that failed or could not be decided."""
        return [gate for gate in self.gates if gate.status in ("fail", "not_decidable")]
