"""What `status` says about the champion's index: nothing as long as it fits its documents."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError, PromotionError
from components.promotion import status
from components.promotion.approval import approve
from components.promotion.promote import note_look, promotion_fingerprint
from components.release import open as release_index
from components.release.manifest import load_release
from components.release.open import champion_index
from components.tracking import labels
from components.tracking.store import TrackingError
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World

BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def champion(world: World, monkeypatch: pytest.MonkeyPatch, documents: int, **attributes: Any) -> None:
    """A champion whose index is described like this in its lineage."""
    manifest = load_release(world.tracking.artifact_folder(f"{NAME}-candidate", world.candidate()))
    nodes = [
        node.model_copy(update={"counts": {"documents": documents}, "attributes": attributes})
        if node.digest == manifest.pins.index.digest
        else node
        for node in manifest.lineage
    ]
    described = manifest.model_copy(update={"lineage": tuple(nodes)})
    monkeypatch.setattr(release_index, "load_manifest", lambda name, ref: described)


def test_a_verdict_is_that_of_the_gates_and_not_of_a_tag(world: World) -> None:
    """Whoever trains may change the tag, and `status` told what it says."""
    for levels, said in ((BAD, "pass"), (GOOD, "pass")):
        number = world.candidate(levels)
        world.tracking.models[f"{NAME}-candidate"][number - 1].tags["scalingnote.attribute.verdict"] = said
    shown = status.render_status(status.status_of(NAME))
    assert "candidate/1: fail, though its tag says pass" in shown and shown.endswith("candidate/2: pass")
    first = world.tracking.models[f"{NAME}-candidate"][0]
    copy = world.tracking.add(first.name, world.tracking.folders[first.name, 1], first.tags[labels.DIGEST])
    first.tags["rejected"] = "wrong data"
    assert f"candidate/{copy}: fail (rejected)" in status.render_status(status.status_of(NAME))  # the same files under another number
    for file in world.tracking.folders[f"{NAME}-candidate", 2].iterdir():
        if file.name == "release.json":
            file.unlink()
    assert "candidate/2: pass, by its tag alone, as its files cannot be read" in status.render_status(status.status_of(NAME))


def test_without_a_champion_there_is_no_index_and_no_warning(world: World) -> None:
    assert champion_index(NAME) is None
    state = status.status_of(NAME)
    assert state["warning"] is None and "Warning" not in status.render_status(state)


@pytest.mark.parametrize(
    ("documents", "attributes", "said"),
    [
        (100_000, {"index_key": "IVF1024,PQ96x4fsr", "tuned_documents": 100_000}, None),
        (
            500_000,
            {"index_key": "IVF1024,PQ96x4fsr", "tuned_documents": 100_000},
            "500,000 documents; the index parameters were tuned at 100,000",
        ),
        (10, {"index_key": "Flat", "tuned_documents": 5000}, None),
        (10, {"index_key": "Flat", "guard": "retrain_due"}, "no longer fits"),
        (10, {}, None),
    ],
)
def test_an_index_that_left_its_range_is_named(
    world: World, monkeypatch: pytest.MonkeyPatch, documents: int, attributes: dict[str, Any], said: str | None
) -> None:
    champion(world, monkeypatch, documents, **attributes)
    state = status.status_of(NAME)
    if said is None:
        assert state["warning"] is None
    else:
        assert said in state["warning"] and said in status.render_status(state)


@pytest.mark.parametrize(
    ("error", "warning"), [(ArtifactError("release.json is missing"), "release.json is missing"), (PromotionError("x"), None)]
)
def test_a_release_that_cannot_be_read_does_not_hide_the_status(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, warning: str | None
) -> None:
    def fails(name: str, ref: str) -> None:
        raise error

    monkeypatch.setattr(release_index, "load_manifest", fails)
    assert status.status_of(NAME)["warning"] == warning


def approved(world: World, monkeypatch: pytest.MonkeyPatch, ago: float) -> float:
    """An approval that waits since `ago` seconds; returns the moment that it is now."""
    approve(NAME, world.candidate(), "Ada")
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    moment = type("Moment", (datetime,), {"now": classmethod(lambda cls, zone: datetime.fromtimestamp(now, zone))})
    monkeypatch.setattr("components.promotion.promote.datetime", moment)
    wait_since(world, now - ago)
    return now


def wait_since(world: World, moment: float) -> None:
    versions = world.tracking.models[f"{NAME}-release"]
    versions[-1] = versions[-1].model_copy(update={"created_ms": int(1000 * moment)})


def looked_at(world: World, value: str | None = None) -> str | None:
    """The mark of the newest look at what waits; `value` is set in its place."""
    tags = world.tracking.models[f"{NAME}-release"][-1].tags
    if value is not None:
        tags[labels.LOOKED] = value
    return tags.get(labels.LOOKED)


@pytest.mark.parametrize(
    ("minutes", "said"), [(30, None), (64, None), (66, "for an hour, and"), (200, "for 3 hours, and"), (60 * 50, "for 50 hours, and")]
)
def test_that_nobody_has_looked_for_approvals_for_an_hour_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch, minutes: int, said: str | None
) -> None:
    approved(world, monkeypatch, 60.0 * minutes)
    state = status.status_of(NAME)
    if said is None:
        assert state["alarm"] is None and "ALARM" not in status.render_status(state)
        return
    sentence = (
        f"Nobody has looked for approvals {said} release/1 waits: see why `scalingnote promote --watch` or the deployment `promote` "
        "does not run, or run `scalingnote promote`."
    )
    assert state["alarm"] == sentence and f"ALARM: {sentence}" in status.render_status(state)


def test_a_look_that_promotes_nothing_ends_the_alarm_and_is_noted_once_in_ten_minutes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = approved(world, monkeypatch, 7200)
    before = promotion_fingerprint(NAME)
    note_look(NAME)
    assert looked_at(world) == datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
    assert status.status_of(NAME)["alarm"] is None
    assert promotion_fingerprint(NAME) == before, "a refusal is not examined again because somebody looked"
    changes = world.tracking.changes
    note_look(NAME)
    assert world.tracking.changes == changes
    looked_at(world, datetime.fromtimestamp(now - 3960, UTC).isoformat())
    assert "for an hour" in status.status_of(NAME)["alarm"]


@pytest.mark.parametrize("value", ["2099-01-01T00:00:00+00:00", "yesterday", "2027-01-15T08:00:00", "", "9" * 400])
def test_an_odd_time_of_a_look_hides_nothing(world: World, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    approved(world, monkeypatch, 7200)
    looked_at(world, value)
    assert "Nobody has looked for approvals for 2 hours" in status.status_of(NAME)["alarm"]


def test_a_look_where_nothing_waits_or_the_tag_is_refused_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    note_look(NAME)
    assert world.tracking.changes == 0
    approved(world, monkeypatch, 7200)

    def refuse(*_: str | int) -> None:
        raise TrackingError("The server refused it.")

    monkeypatch.setattr("components.tracking.registry.set_version_tag", refuse)
    note_look(NAME)
    assert looked_at(world) is None
