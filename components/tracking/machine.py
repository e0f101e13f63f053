"""The machine that the code runs on: its name, processor, memory and GPUs, read from the system without a heavy library."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from components.settings import forced_precision, usable_processors

_GPUS = Path("/proc/driver/nvidia/gpus")


def describe_host() -> dict[str, str | int | float]:
    """Host name, processor, usable cores, memory in GiB and the GPUs, as far as the system tells; the number format, if one is forced."""
    found: dict[str, str | int | float] = {"host": platform.node(), "processor": processor(), "cores": usable_processors()}
    if "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    if gpus := _gpus():
        found["gpus"] = ", ".join(gpus)
    if forced := forced_precision():
        found["precision"] = forced
    return found


def processor() -> str:
    """The model name of the processor."""
    return _first(Path("/proc/cpuinfo"), r"^model name\s*:\s*(.+)$") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs, from the driver: importing torch for it would take a second."""
    files = sorted(_GPUS.glob("*/information")) if _GPUS.is_dir() else []
    return [name for file in files if (name := _first(file, r"^Model:\s*(.+)$"))]


def _first(file: Path, pattern: str) -> str:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not a Linux machine, or no right to read it
        return ""
    return found[1].strip() if found else ""
