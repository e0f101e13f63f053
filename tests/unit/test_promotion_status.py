"""What `status` says about the champion's index: nothing as long as it fits its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.errors import ArtifactError, PromotionError
from components.promotion import status
from components.release import open as release_index
from components.release.manifest import load_release
from components.release.open import champion_index
from tests.unit.promotion_world import NAME, MemoryTracking, World


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
