"""Learning rate over a training, as a factor of its peak; `step` counts from 0 in any unit, such as optimizer steps or rows."""

from __future__ import annotations

import math

LOWEST = 1 / 25  # where one_cycle and cyclic start, the share that the source of one_cycle uses
RISING = 0.3  # share of one_cycle with a rising rate


def warmup_cosine(step: int, steps: int, warmup_share: float) -> float:
    """Factor of the peak learning rate: linear rise over the warm-up, then cosine fall to zero."""
    warmup = max(1, round(steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def one_cycle(step: int, steps: int) -> float:
    """Cosine rise from 1/25 of the peak over the first 30 %, then cosine fall to zero.

    Source: Smith and Topin, Super-Convergence (2018). The momentum, which they turn the other way, is left alone: AdamW has none.
    """
    done = step / max(1, steps)
    if done < RISING:
        return LOWEST + (1 - LOWEST) * 0.5 * (1 - math.cos(math.pi * done / RISING))
    return 0.5 * (1 + math.cos(math.pi * (done - RISING) / (1 - RISING)))


def cyclic(step: int, steps: int, cycles: int) -> float:
    """`cycles` equal triangles, each a linear rise from 1/25 of the peak and a linear fall back to it.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks (2017), the policy "triangular".
    """
    within = (step * cycles / max(1, steps)) % 1
    return LOWEST + (1 - LOWEST) * (1 - abs(2 * within - 1))
