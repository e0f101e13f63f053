"""Whether the tokens of a model see the tokens after them: switched where the model can do both, and measured in every case.

transformers builds the masks of a decoder from `config.is_causal`, and its kernels take `is_causal` of each attention module when no
mask is needed, as in a batch without padding; both are set. A model may heed neither, so what it does is measured: if the first
token's state changes with the last token, the tokens see ahead.
"""

from __future__ import annotations

from typing import Any, Literal

from components.errors import ModelError
from components.towers.tokens import pad_batch

# Two rows that differ in the last token, and a longer one that makes them carry padding.
_ROWS = ([5, 6, 7, 8], [5, 6, 7, 9])
_LONGER = [5, 6, 7, 8, 9, 6]
# Rounding can differ where experts are chosen by token; attention changes a state by far more.
_TOLERANCE = 1e-3


def set_attention(model: Any, attention: str) -> None:
    """Make `model` attend as asked, where it is a decoder; an encoder is left as it is."""
    if attention != "bidirectional":
        return
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.is_causal = False
        if getattr(module, "is_causal", None) is True:
            module.is_causal = False


def check_attention(model: Any, name: str, attention: str) -> None:
    """Raise ModelError when the tokens of `model` do not see what `attention` ("causal" or "bidirectional") says."""
    ahead = {_sees_ahead(model, beside) for beside in ([], [_LONGER])}
    if attention == "causal" and ahead != {False}:
        raise ModelError(
            f"towers.attention is causal, but the tokens of '{name}' see those after them, as an encoder's do. "
            "Set towers.attention to bidirectional."
        )
    if attention == "bidirectional" and ahead != {True}:
        raise ModelError(
            f"towers.attention is bidirectional, but the tokens of '{name}' do not see those after them: its architecture is bound to "
            "one direction. Set towers.attention to causal, or use another model."
        )


def _sees_ahead(model: Any, beside: list[list[int]]) -> bool:
    """Whether the last token changes the state of the first, measured in two batches of one shape, so that nothing else differs."""
    import torch

    with torch.no_grad():
        one, other = (model(**_batch([row, *beside], model.device)).last_hidden_state[0, 0].float() for row in _ROWS)
    return bool((one - other).norm() > _TOLERANCE * one.norm())


def _batch(rows: list[list[int]], device: Any) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in pad_batch(rows, 0).items()}


def measured_attention(model: Any) -> Literal["causal", "bidirectional"]:
    """What the tokens of `model` see, of whatever architecture it is."""
    return "bidirectional" if _sees_ahead(model, [_LONGER]) else "causal"
