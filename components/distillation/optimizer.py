"""The optimizer of a student: AdamW, and for a trained table of token vectors Adam on the rows that a batch has touched.

A batch of 32 queries touches a few hundred of 30,000 token vectors; a dense optimizer reads and writes all of them, their gradients and
both moments at every step, which took more time than a student of one or two layers itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.nn import Parameter

MAX_NORM = 1.0
WEIGHT_DECAY = 0.01


class StudentOptimizer:
    """Steps over dense parameters and sparse tables with one learning rate; only the dense gradients are clipped and decayed."""

    def __init__(self, dense: Sequence[Parameter], tables: Sequence[Parameter]) -> None:
        import torch

        self._dense = list(dense)
        self._parts: list[Any] = [torch.optim.AdamW(self._dense, weight_decay=WEIGHT_DECAY, fused=True)] if dense else []
        self._parts += [torch.optim.SparseAdam(list(tables))] if tables else []

    def step(self, learning_rate: float) -> float:
        """Clip, take one step at `learning_rate`, and drop the gradients; returns the norm of the dense ones before they were cut."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self._dense, MAX_NORM)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both parts."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Put back what `state_dict` gave."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)
