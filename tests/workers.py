"""How the whole suite is shared out among processes (pytest-xdist): one for each processor, a file at a time, the longest first."""

from __future__ import annotations

import os
from typing import Any

import pytest

from components.settings import usable_processors

# These take the release that the fixture `built` makes, and change its home: one process makes it once and runs them all.
CHAIN = "the release that is built once"
CHAINED = frozenset(
    f"tests/{name}.py"
    for name in (
        "flows/test_release_path", "flows/test_refresh", "flows/test_proof", "flows/test_trace", "flows/test_promote_late",
        "flows/test_environments", "flows/test_ecosystem", "flows/test_moved_home", "flows/test_signed_life", "browser/test_approval",
    )
)  # fmt: skip
LONGEST = (CHAIN, "tests/flows/test_reached_code.py", "tests/flows/test_kill_and_resume.py", "tests/flows/test_baselines_and_scaling.py")
RINGS = ("flows", "browser", "attacks", "training", "contracts", "unit")  # a test takes longest in the first


def number_of_workers(config: pytest.Config) -> int:
    """A process for each processor where whole rings run; none where files, words or marks choose tests, which are there sooner without."""
    chosen = config.option.keyword or config.option.markexpr or getattr(config.option, "lf", False)
    files = any("::" in word or word.endswith(".py") for word in config.args)
    return 0 if chosen or files or config.option.collectonly else usable_processors()


def by_file(config: pytest.Config, log: Any) -> Any:
    """Hands whole files to the processes, so that what a module's fixtures build is built once, in the order of collection."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return place(nodeid)

    config.option.loadscopereorder = False
    return ByFile(config, log)


def place(nodeid: str) -> str:
    """What a test runs together with: its file, or the chain that its file is a part of."""
    file = nodeid.partition("::")[0]
    return CHAIN if file in CHAINED else file


def rank(nodeid: str) -> tuple[int, int]:
    """Where a test stands in the order: what takes longest begins, so that all processes end at about the same time."""
    chosen = place(nodeid)
    ring = nodeid.split("/")[1]
    return LONGEST.index(chosen) if chosen in LONGEST else len(LONGEST), RINGS.index(ring) if ring in RINGS else 0


def threads_of_a_worker() -> str:
    """Threads for the libraries of this process: all workers together take the processors there are."""
    return str(max(1, usable_processors() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])))
