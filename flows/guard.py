"""Run a command as long as the process that asked for it lives: `python guard.py OWNER_PID COMMAND...`.

A server that we start must end with us, also when we are killed and can do nothing about it any more. Works wherever a process is told
that its parent is gone, and needs the standard library alone. The command shares the guard's process group, which ends as a whole.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

LOOK_SECONDS = 0.2
STOP_SECONDS = 5.0


def guard(owner: int, command: Sequence[str]) -> int:
    """Run `command` and return its exit status, or end its whole group once `owner` is not our parent any more."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # sent to the group: we wait for what the command makes of it
    process = subprocess.Popen(command)
    while process.poll() is None:
        if os.getppid() != owner:
            return _end(process)
        time.sleep(LOOK_SECONDS)
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> int:
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
    os.killpg(0, signal.SIGKILL)  # what the command left behind, and ourselves
    return 1


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), sys.argv[2:]))
