"""Device and number format, chosen at run time: bfloat16 is several times faster where the machine has it and slower elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from components.settings import forced_precision

if TYPE_CHECKING:
    import torch


def pick_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str) -> torch.dtype:
    """`auto` is what `SCALINGNOTE_PRECISION` names, else bfloat16 where device or processor has instructions for it, float32 elsewhere."""
    import torch

    precision = (forced_precision() or precision) if precision == "auto" else precision
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision != "auto":
        return named[precision]
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Automatic mixed precision for bfloat16; nothing for float32."""
    import torch

    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
