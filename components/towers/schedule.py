"""Learning rate over a training."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup_share: float) -> float:
    """Factor of the peak learning rate: linear rise over the warm-up, then cosine fall to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
