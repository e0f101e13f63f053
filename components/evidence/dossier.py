"""All that the reviewer's report and description are made from, as one object; what is missing is said in words, never left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.errors import PromotionError
from components.evaluation.config import EvaluationConfig
from components.gates.config import PolicyConfig

if TYPE_CHECKING:
    from components.data.validation_report import ValidationReport
    from components.evaluation.comparison import ComparisonSummary, ComparisonTables
    from components.evaluation.report import Evaluation
    from components.evaluation.units import Numbers
    from components.release.manifest import ReleaseManifest
    from components.release.marks import Override
    from components.release.training_noise import TrainingNoise


@dataclass(frozen=True)
class Champion:
    """The release that the candidate is held against, the evaluation it was released with, and how it came past gates that did not pass."""

    version: int
    manifest: ReleaseManifest
    evaluation: Evaluation
    override: Override | None = None


@dataclass(frozen=True)
class Compared:
    """The comparison of both in one run; without one, `missing` says why."""

    summary: ComparisonSummary | None = None
    tables: ComparisonTables | None = None
    missing: str = ""


@dataclass(frozen=True)
class StepCost:
    """Seconds that the last attempt to make a step took; None when they were not recorded."""

    step: str
    seconds: float | None
    attempts: int = 1


@dataclass(frozen=True)
class Making:
    """How the candidate was made.

    `tower_losses` is the loss of every step of stage 1 and `student_epochs` the student's log, None where the training lies with an
    earlier release; `costs` are the steps of this run, `adopted` the names of artifacts that were taken over; `sizes` as in a comparison.
    """

    tower_losses: tuple[float, ...] | None = None
    student_epochs: tuple[Mapping[str, Any], ...] | None = None
    costs: tuple[StepCost, ...] = ()
    adopted: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dossier:
    """Everything about one candidate. `notes` are sentences about a refresh, `noise` is that of its training, None where it is unknown."""

    manifest: ReleaseManifest
    evaluation: Evaluation
    validation: ValidationReport
    champion: Champion | None = None
    compared: Compared = Compared()
    making: Making = Making()
    notes: tuple[str, ...] = ()
    noise: TrainingNoise | None = None

    @property
    def policy(self) -> PolicyConfig:
        """The policy that the gates decided by."""
        return PolicyConfig.model_validate(self.manifest.config.get("policy", {}))

    @property
    def resampling(self) -> tuple[int, int]:
        """Draws and seed of the evaluation's intervals: the same differences then have the same intervals wherever they stand."""
        config = EvaluationConfig.model_validate(self.manifest.config.get("evaluation", {}))
        return config.bootstrap_samples, config.seed

    def units_of(self, query_ids: Iterable[object]) -> Numbers | None:
        """The units of judged queries of the decisive split, in their order; None where each counts by itself."""
        units = self.evaluation.units_of()
        return None if units is None else units.of(query_ids)


def require_measured(dossier: Dossier) -> None:
    """Raise PromotionError for an evaluation over no query: its report would show means of nothing."""
    if dossier.evaluation.summary.queries < 1 or not len(dossier.evaluation.per_query):
        raise PromotionError("The evaluation holds no judged query, so there is nothing to report. Name a split with judgements.")
