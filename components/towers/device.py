"""Device and number format, chosen at run time: bfloat16 is several times faster where the machine has it and slower elsewhere."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from components.settings import forced_precision, free_memory

if TYPE_CHECKING:
    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
FREED_FROM = 2**30  # bytes that a training pass keeps
_BLOCK, _LARGEST_BLOCK = 2**20, 2**25  # bytes; the latter is glibc's own limit


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
        # Cards before Ampere work bfloat16 out in float32, which is slower than float32 itself.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def even_shapes(precision: str) -> bool:
    """Whether batches are padded to few shapes: oneDNN's kernels for bfloat16 keep something for each shape that they meet."""
    import torch

    return pick_device().type == "cpu" and pick_dtype(precision) == torch.bfloat16


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on the device."""
    import torch

    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else free_memory()


def give_back_memory() -> None:
    """Return what is no longer used to the device and to the system: other processes and later steps need it.

    torch keeps the memory of freed tensors on a GPU, and the C library that of the processor, unless they are asked.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    give_back_holes()


def give_back_holes() -> None:
    """Give unused pages within the C library's heap back to the system; some milliseconds."""
    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def freed_at_once(kept: int) -> Iterator[None]:
    """Within the block the memory of a freed tensor goes back to the system at once, where a pass keeps `FREED_FROM` bytes or more.

    Once blocks of up to 32 MiB have been freed, glibc takes others of that size from its heap, which shrinks from its end alone. Chunks
    of texts of all lengths leave holes there that fit nothing later. A quarter of the speed or more goes with it, since the system clears
    every page anew, so smaller passes keep the heap, whose holes `give_back_holes` bounds, and plans choose chunks that keep less.
    Measured: preset demo in float32 takes 4.3 s a step with it and 3.4 without; pages of 70 tokens in bfloat16, in a virtual machine,
    16 s with a chunk of 32 documents and 9 s with one of 8, which counts every document's forward pass twice.
    What stands afterwards is what glibc comes to by itself, so that later measurements of speed do not depend on what ran before. With
    another C library than glibc nothing changes.
    """
    if kept < FREED_FROM:
        yield
        return
    _set_malloc(_BLOCK, _BLOCK)
    try:
        yield
    finally:
        _set_malloc(_LARGEST_BLOCK, 2 * _LARGEST_BLOCK)


def _set_malloc(block: int, kept: int) -> None:
    """Bytes from which on a block of memory is the system's own, and bytes that may stay unused at the end of the heap."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, block)
        library.mallopt(_M_TRIM_THRESHOLD, kept)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Automatic mixed precision for bfloat16; nothing for float32."""
    import torch

    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype)
