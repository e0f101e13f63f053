"""Signs that a distillation collapses: query vectors that crowd together, and retrieval far behind the teacher's.

A gap between teacher and student that is too large shows in three figures: the mean cosine of two random queries (anisotropy), the
effective rank of the query vectors, and the share of the teacher's dev metrics that the student keeps. They go into the training log
with every epoch; only the first two have a bound that refuses a student, since low retention is for the release's gates to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.towers.checks import Spread, measure_spread

LOW_RETENTION = 0.5  # share of the teacher's dev metric
LOW_RANK = 0.5  # share of the teacher's effective rank
MAX_ROWS = 2048  # the spread of more rows takes long and says no more


def spread_of(vectors: NDArray[np.float32]) -> Spread:
    """The spread of unit rows (n, d), over evenly spaced ones when there are many; one row alone tells nothing: 0 and 1."""
    if len(vectors) < 2:
        return Spread(mean_cosine=0.0, effective_rank=1.0)
    return measure_spread(vectors[:: -(-len(vectors) // MAX_ROWS)])


def retention_of(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
    """The student's share of the teacher's recall@50 and nDCG@10; a metric in which the teacher has 0 is absent."""
    return {f"retention_{name}": student[name] / teacher[name] for name in ("recall@50", "ndcg@10") if teacher[name] > 0}


def collapse_signs(student: Spread, teacher: Spread | None, retention: Mapping[str, float]) -> list[str]:
    """What looks like a collapse, in words; empty when nothing does."""
    signs = [f"{name} is {share:.0%}, below {LOW_RETENTION:.0%}" for name, share in retention.items() if share < LOW_RETENTION]
    if teacher is not None and student.effective_rank < LOW_RANK * teacher.effective_rank:
        signs.append(f"the effective rank is {student.effective_rank:.1f}, less than half of the teacher's {teacher.effective_rank:.1f}")
    return signs


def log_entry(student: Spread, teacher: Spread | None, retention: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one epoch for the training log."""
    return {
        "mean_cosine": student.mean_cosine,
        "effective_rank": student.effective_rank,
        **retention,
        "collapse_signs": collapse_signs(student, teacher, retention),
    }
