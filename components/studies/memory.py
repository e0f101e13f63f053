"""Memory of this process, in bytes: what it holds now and the most it held."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def resident() -> int:
    """Memory that is in use now, mapped files included."""
    return _field("VmRSS")


def anonymous() -> int:
    """The part of it that belongs to no file: pages of a mapped file can be dropped when memory is short, these cannot."""
    return _field("RssAnon")


def peak() -> int:
    """The most that was in use. Not getrusage's, where the kernel counts what the parent held when it started this process."""
    return _field("VmHWM")


def _field(name: str) -> int:
    try:
        return int(re.findall(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)[0]) * 1024
    except (OSError, IndexError):  # not a Linux machine: the peak is all there is
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
