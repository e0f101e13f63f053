"""Approval, promotion and rollback, killed between any two calls: the next run finishes them and nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from components.promotion.approval import approve
from components.promotion.promote import Change, promote, rollback, trusted
from components.promotion.release import ReleaseManifest
from tests.unit.promotion_world import GOOD, NAME, Killed, MemoryTracking, World

RELEASE = f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def no_smoke(manifest: ReleaseManifest) -> None:
    assert manifest.name == NAME


def release(world: World) -> Change:
    """A new candidate, approved and promoted."""
    approve(NAME, world.candidate(), "Ada")
    return promote(NAME, no_smoke)


def aliases(world: World) -> tuple[int | None, int | None]:
    return world.tracking.aliases.get((RELEASE, "champion")), world.tracking.aliases.get((RELEASE, "previous"))


def run_with_kills(world: World, action: Callable[[], object]) -> int:
    """Kill `action` right before its first change, then its second one, ... each time running it again up to there."""
    kills = 0
    while True:
        world.tracking.kill_at, world.tracking.changes = kills, 0
        saved = (world.tracking.state(), kills)
        try:
            action()
        except Killed:
            kills += 1
            assert kills < 20, saved
            continue
        finally:
            world.tracking.kill_at = None
        return kills


@pytest.mark.parametrize("first_change", range(4))
def test_killed_promotion_is_finished_by_the_next(world: World, first_change: int) -> None:
    release(world)
    approve(NAME, world.candidate(), "Ada")
    world.tracking.kill_at, world.tracking.changes = first_change, 0
    if first_change < 3:
        with pytest.raises(Killed):
            promote(NAME, no_smoke)
        interrupted = trusted(NAME)
        assert interrupted.version in (1, 2)
        if first_change == 1:  # the record is there, the alias is not: the old release still serves
            assert interrupted.version == 1
            assert interrupted.alarm is not None and "interrupted" in interrupted.alarm
    world.tracking.kill_at = None
    assert promote(NAME, no_smoke).status == {0: "promoted", 1: "reconciled", 2: "reconciled", 3: "promoted"}[first_change]
    assert aliases(world) == (2, 1)
    assert [record["to_version"] for record in world.tracking.records] == [1, 2]
    assert promote(NAME, no_smoke).status == "nothing"


@pytest.mark.parametrize("first_change", range(3))
def test_killed_rollback_is_finished_and_not_repeated(world: World, first_change: int) -> None:
    for _ in range(3):
        release(world)
    world.tracking.kill_at, world.tracking.changes = first_change, 0
    with pytest.raises(Killed):
        rollback(NAME, "Bob", "slow")
    world.tracking.kill_at = None
    assert rollback(NAME, "Bob", "slow").to_version == 2
    assert aliases(world) == (2, 1)
    assert [record["action"] for record in world.tracking.records] == ["promote"] * 3 + ["rollback"]


@pytest.mark.parametrize("first_change", range(4))
def test_killed_approval_is_finished_by_the_next(world: World, first_change: int) -> None:
    number = world.candidate(BAD)
    world.tracking.kill_at, world.tracking.changes = first_change, 0
    with pytest.raises(Killed):
        approve(NAME, number, "Ada", override="pilot")
    world.tracking.kill_at = None
    claim = approve(NAME, number, "Ada", override="pilot")
    assert (claim.person, claim.override, claim.release_version) == ("Ada", "pilot", 1)
    assert len(world.tracking.models[RELEASE]) == 1


def test_killed_again_and_again_everything_still_ends_well(world: World) -> None:
    number = world.candidate()
    assert run_with_kills(world, lambda: approve(NAME, number, "Ada")) > 0
    assert run_with_kills(world, lambda: promote(NAME, no_smoke)) > 0
    assert aliases(world) == (1, None)
    assert len(world.tracking.records) == 1
