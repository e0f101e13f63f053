"""Collapse check: embeddings that crowd in one direction or one small subspace cannot tell texts apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.errors import CollapseError


@dataclass(frozen=True)
class Spread:
    """How widely embeddings spread: mean cosine of two different rows, and effective rank."""

    mean_cosine: float
    effective_rank: float


def measure_spread(vectors: NDArray[np.float32]) -> Spread:
    """Spread of unit rows (n >= 2, d). Effective rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007)."""
    n = len(vectors)
    total = vectors.sum(0, dtype=np.float64)
    # Rows of unit length to float32 only: equal ones would have a mean cosine of a hair above 1.
    mean_cosine = min(1.0, (float(total @ total) - n) / (n * (n - 1)))
    singular = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    share = singular / max(singular.sum(), 1e-12)
    entropy = -float((share * np.log(np.clip(share, 1e-12, None))).sum())
    return Spread(mean_cosine=mean_cosine, effective_rank=float(np.exp(entropy)))


def refuse_collapse(label: str, spread: Spread, max_mean_cosine: float, min_effective_rank: float) -> None:
    """Raise CollapseError when the spread is outside its bounds; `label` names the encoder."""
    advice = "Lower the learning rate, raise the batch size or the temperature, or train on more varied data."
    if not spread.mean_cosine <= max_mean_cosine:
        raise CollapseError(
            f"The {label} has collapsed: two random texts have a mean cosine of {spread.mean_cosine:.3f} "
            f"(allowed: at most {max_mean_cosine}). {advice}"
        )
    if not spread.effective_rank >= min_effective_rank:
        raise CollapseError(
            f"The {label} has collapsed: its embeddings have an effective rank of {spread.effective_rank:.1f} "
            f"(allowed: at least {min_effective_rank}). {advice}"
        )
