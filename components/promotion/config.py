"""Configuration of the gates: the policy that decides about a candidate."""

from __future__ import annotations

from pydantic import Field

from components.config import StepConfig


class PolicyConfig(StepConfig):
    """Thresholds of the gates. A metric that a gate needs and does not find is never a pass."""

    min_queries: int = Field(100, ge=1, description="Judged queries below which nothing can be decided")
    min_retention: float = Field(0.95, gt=0, le=2, description="Student's recall@50 over the teacher's")
    beat_bm25: bool = Field(True, description="Student's nDCG@10 must be above BM25's, its interval apart from zero")
    beat_untrained: bool = Field(True, description="Student's nDCG@10 must be above its untrained encoder's, interval apart from zero")
    margin: float = Field(0.01, gt=0, le=0.5, description="Largest loss of nDCG@10 against the champion that still counts as equal")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence of the one-sided intervals")
    min_speed_up: float = Field(1.0, ge=0, description="Student's queries per second over the teacher's")
    min_ann_recall: float | None = Field(
        0.95, gt=0, le=1, description="Index: recall@100 against exact search on the same vectors; null: not asked"
    )
