"""The promote flow's code in a process of its own, killed (SIGKILL) at random moments over a real store, and run once more."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import traceback
from pathlib import Path

import pytest

from components.promotion.approval import approve
from components.promotion.promote import promote
from components.promotion.verification import verify_release
from components.release.champion import servable_release
from components.tracking import registry
from components.tracking.promotion_records import read_records
from components.tracking.store import clear_caches
from tests.unit.promotion_world import NAME, Register, into_mlflow, make_candidate, no_smoke

pytestmark = pytest.mark.slow
RELEASE = f"{NAME}-release"
KILLS = int(os.environ.get("SCALINGNOTE_TEST_KILLS", "8"))


@pytest.fixture
def register(home: Path) -> Register:
    return into_mlflow()


def promote_alone() -> None:
    clear_caches()  # a connection to the store must not be shared with the parent
    promote(NAME, no_smoke)


def seconds_of(kill_after: float | None) -> float:
    """Promote in a forked process, killed after so many seconds; the seconds it took until its end."""
    clear_caches()
    process = multiprocessing.get_context("fork").Process(target=promote_alone)
    started = time.monotonic()
    process.start()
    process.join(kill_after)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return time.monotonic() - started


def test_killed_at_random_moments_one_more_run_always_ends_in_the_new_release(register: Register, tmp_path: Path) -> None:
    for number in (1, 2):
        make_candidate(tmp_path / str(number), register)
        approve(NAME, number, "Ada")
        promote(NAME, no_smoke)
    registry.copy_version(f"{NAME}-candidate", 2, RELEASE)
    whole = seconds_of(None)
    chance, interrupted, before = random.Random(5), 0, 3
    for turn in range(KILLS):
        old = servable_release(NAME).version
        new = registry.copy_version(f"{NAME}-candidate", 1 + turn % 2, RELEASE)
        seconds_of(chance.uniform(0, whole))
        assert servable_release(NAME).version in (old, new)
        interrupted += promote(NAME, no_smoke).status != "nothing"
        assert servable_release(NAME) == (new, None)
        assert (registry.alias(RELEASE, "champion"), registry.alias(RELEASE, "previous")) == (new, old)
        before += 1
        assert [record["to_version"] for record in read_records(NAME)][-1] == new and len(read_records(NAME)) == before
    assert interrupted > 0
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []


def promote_and_tell(told: Path) -> None:
    """Write what came of it: an exit status alone would not say why."""
    try:
        clear_caches()
        told.write_text(promote(NAME, no_smoke).status)
    except Exception:
        told.write_text(traceback.format_exc())


def test_two_at_once_make_one_record(register: Register, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        make_candidate(tmp_path / str(number), register)
        approve(NAME, number, "Ada")
        clear_caches()
        told = [tmp_path / f"{number}-{place}.txt" for place in range(2)]
        both = [multiprocessing.get_context("fork").Process(target=promote_and_tell, args=(path,)) for path in told]
        for process in both:
            process.start()
        for process in both:
            process.join()
        came = [path.read_text() for path in told]  # the other one may have been refused, or found nothing to do
        assert "promoted" in came, "\n".join(came)
        assert [record["to_version"] for record in read_records(NAME)] == list(range(1, number + 1))
        assert servable_release(NAME) == (number, None)
