"""Device and number format, chosen at run time: bfloat16 is several times faster where the machine has it and slower elsewhere."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from components.errors import ConfigError

if TYPE_CHECKING:
    import torch


VARIABLE = "SCALINGNOTE_PRECISION"


def pick_device() -> torch.device:
    """The first CUDA device, or the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(precision: str) -> torch.dtype:
    """`auto` is bfloat16 where device or processor has instructions for it, float32 elsewhere.

    The environment variable SCALINGNOTE_PRECISION (float32, bfloat16) decides in the place of `auto`; raises ConfigError for another word.
    """
    import torch

    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision == "auto":
        precision = os.environ.get(VARIABLE, "").strip() or "auto"
        if precision not in (*named, "auto"):
            raise ConfigError(f"{VARIABLE} is '{precision}'; expected float32, bfloat16 or auto. Set one of these, or unset the variable.")
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
