"""How the suite is shared out among processes (pytest-xdist): a file at a time, what takes longest first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from components.settings import free_memory, usable_processors

# These take the release that the fixture `built` makes, most of them in its own home: one process makes it once and runs them all.
CHAIN = "the release that is built once"
CHAINED = frozenset(
    f"tests/{name}.py"
    for name in (
        "flows/test_release_path", "flows/test_refresh", "flows/test_proof", "flows/test_trace", "flows/test_promote_late",
        "flows/test_environments", "flows/test_ecosystem", "flows/test_moved_home", "flows/test_signed_life",
        "flows/test_companion_release", "browser/test_approval",
    )
)  # fmt: skip
# By the seconds of earlier runs. A file that comes late and takes long would leave the other processes idle.
LONGEST = (
    CHAIN,
    *(
        f"tests/{name}.py"
        for name in (
            "flows/test_reached_code", "flows/test_kill_and_resume", "flows/test_baselines_and_scaling", "flows/test_adopt",
            "flows/test_studies", "flows/test_deployment", "flows/test_prefect_page", "training/test_baseline_pairs",
            "training/test_towers", "training/test_distillation_train", "training/test_gpu_smoke",
        )
    ),
)  # fmt: skip
RINGS = ("flows", "browser", "attacks", "training", "contracts", "unit")  # a test takes longest in the first


def number_of_workers(arguments: Sequence[str], chosen: bool) -> int:
    """What `-n auto` means: a process for each processor and one more, as a test that waits for a server leaves its processor idle.

    None where files, words or marks choose tests, which are done sooner without.
    """
    files = any("::" in word or word.endswith(".py") for word in arguments)
    return 0 if chosen or files else usable_processors() + 1


def threads_of_a_worker() -> int:
    """Threads for the libraries of this process: all workers together take the processors that there are."""
    return max(1, usable_processors() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def temporary_root() -> str | None:
    """A folder in memory for the files of all tests, where there is room: SQLite and our records wait for every write to reach the disk.

    None where the system has no such folder, programs cannot run from it, or less than 8 GiB are free; a whole run takes up to 3.
    """
    root, needed = Path("/dev/shm"), 2**33
    try:
        found = os.statvfs(root)
        usable = not found.f_flag & os.ST_NOEXEC and os.access(root, os.W_OK | os.X_OK)
        return str(root) if usable and min(found.f_bavail * found.f_frsize, free_memory()) >= needed else None
    except OSError:
        return None


def by_file(config: pytest.Config, log: Any) -> Any:
    """A scheduler that hands out whole files, so that what the fixtures of a module build is built once, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return run_together(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def run_together(nodeid: str) -> str:
    """What a test runs in one process with: its file, or the chain that its file is a part of."""
    file = nodeid.partition("::")[0]
    return CHAIN if file in CHAINED else file


def rank(nodeid: str) -> tuple[int, int]:
    """Where a test stands in the order in which the files are handed out."""
    place, ring = run_together(nodeid), nodeid.split("/")[1]
    return (
        LONGEST.index(place) if place in LONGEST else len(LONGEST),
        RINGS.index(ring) if ring in RINGS else len(RINGS),
    )


def sendable(report: Any) -> Any:
    """A report as one process can send it to another: what was logged of a name that is no text has escapes for its bytes."""
    if isinstance(report, str):
        return report.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(report, dict):
        return {sendable(key): sendable(value) for key, value in report.items()}
    return type(report)(map(sendable, report)) if type(report) in (list, tuple) else report
