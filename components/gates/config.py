"""Configuration of the gates: what they ask, with its bounds."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from components.evaluation.metrics import METRICS
from components.settings import StepConfig


class PolicyConfig(StepConfig):
    """Thresholds of the gates. A metric that a gate needs and does not find is never a pass; null switches a gate off.

    Whatever is known from a sample of queries is held against its threshold by the lower end of its interval, never by its mean alone.
    Its values are taken as they stand there: a text is no number, nor is infinity a threshold.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    version: str = Field("1", min_length=1, max_length=60, description="Name of this policy; change it with any threshold")
    split: str | None = Field(
        "test", min_length=1, max_length=60, description="Judgements that the gates are measured on (evaluation.split); null: not asked"
    )
    own_units: bool = Field(
        True,
        description="Queries that the data holds together, by an answer or the group of its splits, must be one unit; false: "
        "evaluation.query_groups may take them apart",
    )
    min_queries: int = Field(100, ge=1, description="Judged queries below which nothing can be decided")
    min_retention: float = Field(0.95, gt=0, le=2, description="Student's recall@50 over the teacher's, lower end")
    retention_by: Literal["lower_end", "mean"] = Field(
        "lower_end", description="What is held against min_retention; older releases were decided on by the mean"
    )
    min_off_distribution_retention: float | None = Field(
        None, gt=0, le=2, description="The same on each of evaluation.extra_splits, of which there must be one; null: not asked"
    )
    floors: dict[str, float] = Field(default_factory=dict, description="Least value of the student by metric, lower end, as ndcg@10: 0.3")
    beat_bm25: bool = Field(True, description="Student must beat BM25: better in one of baseline_metrics, not worse in the others")
    beat_untrained: bool = Field(True, description="Student must beat the untrained encoder in the same way")
    teacher_worth: bool = Field(True, description="Teacher must beat BM25 and the untrained encoder in the same way")
    same_teacher_share: float | None = Field(
        0.99,
        gt=0.5,
        le=1,
        description="Share of the queries that teacher and untrained encoder answer alike, from which on the teacher is that encoder and "
        "passes teacher_worth against it; null: not asked",
    )
    baseline_metrics: tuple[str, ...] = Field(
        ("ndcg@10", "recall@50"),
        strict=False,
        min_length=1,
        description="Metrics in which baselines are beaten: better in one (with Bonferroni's correction), not worse in the others",
    )
    baseline_margin: float = Field(
        0.01, gt=0, le=0.5, description="Largest loss in one of baseline_metrics against a baseline that still counts as not worse"
    )
    margin: float = Field(0.01, gt=0, le=0.5, description="Largest loss of nDCG@10 against the champion that still counts as equal")
    confidence: float = Field(0.95, gt=0.5, le=0.999, description="Confidence of the one-sided intervals")
    min_power: float | None = Field(
        0.8,
        gt=0,
        lt=1,
        description="Chance that an equal candidate is shown to be equal, overall and in each slice; null: not asked",
    )
    slice_margin: float | None = Field(
        0.05,
        gt=0,
        le=1,
        description="Largest loss of nDCG@10 against the champion in a slice of the queries; null: slices are not judged",
    )
    min_slice_queries: int = Field(150, ge=2, description="Slices with fewer queries are judged together, as the others of their dimension")
    required_slices: tuple[str, ...] = Field(
        (), strict=False, description="Dimensions, or dimension=slice, that must be there and large enough"
    )
    min_speed_up: float | None = Field(1.0, ge=0, description="Student's queries per second over the teacher's; null: not asked")
    max_p95_ratio: float | None = Field(1.5, gt=0, description="95th percentile of the answer time over the champion's; null: not asked")
    min_qps_ratio: float | None = Field(0.67, ge=0, description="Queries per second over the champion's in the same run; null: not asked")
    min_ann_recall: float | None = Field(
        0.95, gt=0, le=1, description="Index: recall@100 against exact search on the same vectors; null: not asked"
    )
    max_contract_errors: int | None = Field(0, ge=0, description="Broken rules of the data contracts, severity error; null: not asked")
    max_removed_share: float | None = Field(
        0.05, ge=0, le=1, description="Largest share of the documents served before that may be gone, else undecided; null: not asked"
    )
    require_lineage: bool = Field(True, description="Every parent of the release must be known")
    require_space: bool = Field(True, description="Encoders and index must belong to one vector space")
    max_mean_cosine_over_teacher: float | None = Field(
        0.2, ge=0, le=2, description="Collapse: mean cosine of the student's query vectors above the teacher's; null: not asked"
    )
    min_effective_rank_share: float | None = Field(
        0.3, ge=0, le=1, description="Collapse: effective rank of the student's query vectors over the teacher's; null: not asked"
    )

    @field_validator("baseline_metrics", "floors")
    @classmethod
    def _known_metrics(cls, named: Collection[str]) -> Collection[str]:
        for metric in named:
            if metric not in METRICS:
                raise ValueError(f"the metric '{metric}' is not known; known are {', '.join(METRICS)}")
        return named

    @field_validator("floors")
    @classmethod
    def _shares(cls, floors: dict[str, float]) -> dict[str, float]:
        for metric, floor in floors.items():
            if not 0 <= floor <= 1:
                raise ValueError(f"the floor of {metric} is {floor:g}; it must lie between 0 and 1")
        return floors
