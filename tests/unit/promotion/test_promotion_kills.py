"""Approval, promotion and rollback, killed between any two calls: the next run finishes them and nothing is done twice."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from components.errors import PromotionError
from components.promotion.approval import approve
from components.promotion.promote import Change, promote, rollback
from components.release.champion import RED, servable_release
from components.release.manifest import ReleaseManifest
from components.tracking import audit_log as audit
from components.tracking import promotion_records as records
from components.tracking import registry
from tests.unit.promotion_world import GOOD, NAME, Killed, MemoryTracking, World, no_smoke

RELEASE = f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


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
        interrupted = servable_release(NAME)
        assert interrupted.version == (1 if first_change == 0 else 2)  # what was decided last serves, wherever the aliases are
        if first_change == 1:  # the record is there, the alias is not
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
    assert servable_release(NAME).version == (3 if first_change == 0 else 2)  # never the release that was withdrawn
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


# --- 50 random points: before or after any call to the store, reading or writing ------------------------------------------------

CALLS = {
    registry: ("versions", "artifact_folder", "alias", "set_alias", "delete_alias", "set_version_tag", "description", "set_description"),
    records: ("append_record", "read_records"),
    audit: ("trail",),
}


class Chaos:
    """Counts the calls to the store, and kills before or after one of them."""

    def __init__(self) -> None:
        self.calls = 0
        self.kill_at: int | None = None
        self.after = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module, names in CALLS.items():
            for name in names:
                monkeypatch.setattr(module, name, self._wrapped(getattr(module, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            now, self.calls = self.calls, self.calls + 1
            if now == self.kill_at and not self.after:
                raise Killed
            value = call(*arguments, **named)
            if now == self.kill_at:
                raise Killed
            return value

        return wrapped


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryTracking]:
    """Two releases, the second champion, and a third that a reviewer approved against its gates, on a server with an audit log."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("approved")
        tracking = MemoryTracking(log=folder / "audit.jsonl")
        tracking.install(monkeypatch)
        world = World(tracking, folder)
        for levels in (GOOD, GOOD, BAD):
            tracking.sign_in("tom", "trainer")
            number = world.candidate(levels)
            tracking.sign_in("rita", "reviewer")
            approve(NAME, number, None, override=None if levels is GOOD else "pilot")
            if levels is GOOD:
                tracking.sign_in("flow", "promoter")
                promote(NAME, no_smoke)
        yield tracking


@pytest.fixture
def chaotic(approved: MemoryTracking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MemoryTracking, Chaos]:
    """A copy of `approved` of its own."""
    tracking = MemoryTracking(**{field.name: copy.deepcopy(getattr(approved, field.name)) for field in fields(approved)})
    assert approved.log is not None
    tracking.log = tmp_path / "audit.jsonl"
    for suffix in ("", ".head"):
        Path(f"{tracking.log}{suffix}").write_bytes(Path(f"{approved.log}{suffix}").read_bytes())
    tracking.sign_in("flow", "promoter")
    tracking.install(monkeypatch)
    chaos = Chaos()
    chaos.install(monkeypatch)
    return tracking, chaos


@pytest.mark.parametrize("seed", range(50))
def test_killed_at_a_random_point_the_next_run_ends_in_the_new_release(chaotic: tuple[MemoryTracking, Chaos], seed: int) -> None:
    tracking, chaos = chaotic
    chance = random.Random(seed)
    back = seed % 5 == 4
    action, new, aliases_after = (
        (lambda: rollback(NAME, "flow", "slow"), 1, (1, None)) if back else (lambda: promote(NAME, no_smoke), 3, (3, 2))
    )
    chaos.kill_at, chaos.after = chance.randrange(30 if back else 55), chance.random() < 0.5
    try:
        action()
    except Killed:
        chaos.kill_at = None
        assert servable_release(NAME).version in (2, new)
        action()
    chaos.kill_at = None  # a point behind the end was never reached
    assert servable_release(NAME) == (new, None)
    assert (tracking.aliases[RELEASE, "champion"], tracking.aliases.get((RELEASE, "previous"))) == aliases_after
    assert [record["to_version"] for record in tracking.records] == [1, 2, new]
    if not back:
        assert tracking.descriptions[RELEASE, 3].count(RED) == 1


def test_random_points_cover_the_whole_promotion(chaotic: tuple[MemoryTracking, Chaos]) -> None:
    _, chaos = chaotic
    promote(NAME, no_smoke)
    assert 30 < chaos.calls <= 55, chaos.calls


def test_aliases_follow_the_promotion_that_came_between(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another flow promotes a newer release right after our record: our aliases must not go behind it."""
    release(world)
    approve(NAME, world.candidate(), "Ada")
    real = records.append_record

    def overtaken(name: str, *rest: Any) -> dict[str, Any]:
        ours = real(name, *rest)
        monkeypatch.setattr(records, "append_record", real)
        approve(NAME, world.candidate(), "Ada")
        assert promote(NAME, no_smoke).to_version == 3
        return ours

    monkeypatch.setattr(records, "append_record", overtaken)
    assert promote(NAME, no_smoke).to_version == 2
    assert aliases(world) == (3, 2)
    assert servable_release(NAME) == (3, None)


def test_promotion_that_was_overtaken_while_it_verified_is_refused(world: World) -> None:
    """Another flow promotes the same release while we still verify it: one record, not two."""
    approve(NAME, world.candidate(), "Ada")

    def slow(manifest: ReleaseManifest) -> None:
        promote(NAME, no_smoke)

    with pytest.raises(PromotionError, match="at the same time"):
        promote(NAME, slow)
    assert [record["to_version"] for record in world.tracking.records] == [1]
    assert promote(NAME, no_smoke).status == "nothing"


def test_a_killed_rollback_is_finished_and_not_repeated_after_its_records_were_signed(world: World) -> None:
    """A record that only vouches came between, and the next rollback went one release further back."""
    for _ in range(3):
        release(world)
    kept = dict(world.tracking.aliases)
    rollback(NAME, "Bob", "slow")
    world.tracking.aliases.update(kept)  # killed before the aliases followed
    newest = {key: value for key, value in world.tracking.records[-1].items() if key not in ("sequence", "digest", "retriever")}
    world.tracking.append_record(NAME, {**newest, "action": "vouch", "from_version": 2})
    change = rollback(NAME, "Bob", "slow")
    assert (change.status, change.to_version, len(world.tracking.records)) == ("reconciled", 2, 5)
    assert aliases(world) == (2, 1)
    assert rollback(NAME, "Bob", "slow").to_version == 1
