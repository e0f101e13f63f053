"""Damage that must be no dead end, and no way around the champion either: versions deleted in MLflow's page, files that were changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from components.errors import ArtifactError, ModelError, PromotionError
from components.gates.decide import GateInputs, decide
from components.promotion.approval import approve
from components.promotion.promote import promote, promotion_fingerprint, rollback
from components.promotion.record import decide_against
from components.promotion.status import history_of, render_history
from components.release.champion import champion_to_compare_with, expected_aliases, servable_release
from components.serving.loader import require_as_registered
from components.tracking import registry
from components.tracking.store import client
from tests.unit.promotion_world import (
    FACTS,
    GOOD,
    NAME,
    POLICY,
    MemoryTracking,
    World,
    into_mlflow,
    make_candidate,
    make_evaluation,
    no_smoke,
)

RELEASE = f"{NAME}-release"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def release(world: World, level: float = 0.70) -> None:
    approve(NAME, world.candidate({**GOOD, "student": level}), "Ada")
    promote(NAME, no_smoke)


def delete(world: World, version: int) -> None:
    world.tracking.delete_version(RELEASE, version)


def damage(world: World, version: int) -> None:
    (world.tracking.artifact_folder(RELEASE, version) / "report.html").write_text("changed")


LOSSES = [delete, damage]
Loss = Callable[[World, int], None]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_lost_champion_leaves_its_gates_undecided_and_a_candidate_is_built(world: World, lose: Loss) -> None:
    release(world)
    lose(world, 1)
    found = champion_to_compare_with(NAME, {}, "", POLICY)
    assert found is not None and found.version == 1 and found.evaluation is None and "cannot be opened" in found.lost
    decision = decide(GateInputs(make_evaluation(), facts=FACTS, champion=1, lost=found.lost), POLICY)
    assert decision.verdict == "not_decidable" and not decision.first_release
    assert {gate.name for gate in decision.open_gates()} == {"champion_non_inferior", "champion_non_inferior_in_slices"}


@pytest.mark.parametrize("lose", LOSSES)
def test_without_its_champion_a_release_is_promoted_only_with_a_reason_that_is_kept(world: World, lose: Loss) -> None:
    release(world)
    approve(NAME, world.candidate({**GOOD, "student": 0.71}), "Ada")
    lose(world, 1)
    with pytest.raises(PromotionError, match=r"release/1 of 'retriever' cannot be opened.*--without-champion REASON"):
        promote(NAME, no_smoke)
    assert len(world.tracking.records) == 1
    promote(NAME, no_smoke, without_champion="deleted in the page by mistake")
    assert servable_release(NAME).version == 2
    assert world.tracking.records[-1]["without_champion"] == "deleted in the page by mistake"
    assert "without a comparison, as the champion could not be opened: deleted in" in render_history(NAME, history_of(NAME))


def test_a_champion_that_is_there_is_never_left_out(world: World) -> None:
    release(world)
    approve(NAME, world.candidate(), "Ada")
    with pytest.raises(PromotionError, match="is compared with it as always"):
        promote(NAME, no_smoke, without_champion="it is better")
    promote(NAME, no_smoke, without_champion="  ")
    assert world.tracking.records[-1]["without_champion"] is None


def test_a_candidate_that_was_compared_with_another_champion_still_needs_its_reviewers_reason(world: World) -> None:
    release(world)
    late = world.candidate()
    release(world)
    approve(NAME, late, "Ada")
    delete(world, 2)
    with pytest.raises(PromotionError, match="did not pass its gates"):
        promote(NAME, no_smoke, without_champion="deleted")
    folder = world.tracking.artifact_folder(RELEASE, 3)
    assert decide_against(folder, 2).decision.verdict == "not_decidable"
    approve(NAME, late, "Ada", override="nothing else is there")
    assert promote(NAME, no_smoke, without_champion="deleted").to_version == 3


@pytest.mark.parametrize("lose", LOSSES)
def test_a_rollback_goes_past_a_lost_release_when_told_so(world: World, lose: Loss) -> None:
    for level in (0.70, 0.71, 0.72):
        release(world, level)
    lose(world, 2)
    with pytest.raises(PromotionError, match="add --past-lost"):
        rollback(NAME, "Bob", "slow")
    assert servable_release(NAME).version == 3
    change = rollback(NAME, "Bob", "slow", past_lost=True)
    assert (change.from_version, change.to_version, servable_release(NAME).version) == (3, 1, 1)
    assert list(world.tracking.records[-1]["skipped"]) == ["2"]
    assert expected_aliases(world.tracking.records) == (1, None)
    assert "past release/2, which could not be served" in render_history(NAME, history_of(NAME))


def test_a_rollback_whose_former_champion_is_gone_still_works(world: World) -> None:
    for level in (0.70, 0.71, 0.72):
        release(world, level)
    delete(world, 1)  # release/2 was compared with it
    assert rollback(NAME, "Bob", "slow").to_version == 2


def test_a_rollback_with_nothing_left_says_so(world: World) -> None:
    for level in (0.70, 0.71):
        release(world, level)
    delete(world, 1)
    with pytest.raises(PromotionError, match="None of the earlier releases verifies"):
        rollback(NAME, "Bob", "slow", past_lost=True)
    assert servable_release(NAME).version == 2


def test_after_the_release_model_was_deleted_approvals_and_promotions_go_on(home: Path, tmp_path: Path) -> None:
    register = into_mlflow()
    for number in (1, 2):
        make_candidate(tmp_path / str(number), register, {**GOOD, "student": 0.70 + number / 1000})
        approve(NAME, number, "Ada")
        promote(NAME, no_smoke)
    client().delete_registered_model(f"{NAME}-release")
    with pytest.raises(ModelError, match=r"no registered model 'retriever-release'.*renamed or deleted"):
        registry.artifact_folder(f"{NAME}-release", 2)
    # The model that is made again counts from 1, and release/2 of the records is another release than its release/2.
    assert approve(NAME, 1, "Ada", override="nothing is served").release_version == 3
    with pytest.raises(PromotionError, match="--without-champion"):
        promote(NAME, no_smoke)
    assert registry.alias(f"{NAME}-release", "champion") is None  # not that other release/2
    client().set_registered_model_alias(f"{NAME}-release", "champion", "2")
    with pytest.raises(ArtifactError, match="points at release/2, but by the promotion records release/2 is champion, of the digest"):
        require_as_registered(registry.artifact_folder(f"{NAME}-release", 2))
    assert promote(NAME, no_smoke, without_champion="its model was deleted").to_version == 3
    assert servable_release(NAME).version == 3


def test_a_deleted_release_is_told_and_leaves_nothing_to_do_for_ever(world: World) -> None:
    for level in (0.70, 0.71):
        release(world, level)
    delete(world, 1)
    for _ in range(2):
        change = promote(NAME, no_smoke)
        assert change.status == "nothing" and "release/1, which was deleted from the registry" in change.warnings[0]
    assert promotion_fingerprint(NAME) is None  # a watch has nothing to look at
