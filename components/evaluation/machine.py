"""The machine that a speed was measured on, in words: a speed without it says nothing."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def describe_machine() -> str:
    """Processor, threads in use, GPU if there is one, and the number format the models run in."""
    import torch

    from components.towers.precision import pick_dtype

    devices = [f"{_processor()}, {torch.get_num_threads()} threads"]
    devices += [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
    return f"{' with '.join(devices)}, {str(pick_dtype('auto')).removeprefix('torch.')}"


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not a Linux machine
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()
