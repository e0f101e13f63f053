"""Attacks on what serves and on what counts as approved or rejected, tried with plain calls of the registry."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from components.errors import PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback, waiting_for_promotion
from components.promotion.status import history_of, render_history, render_status, status_of
from components.release.champion import servable_release
from flows.cli import review
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, no_smoke

CANDIDATE, RELEASE = f"{NAME}-candidate", f"{NAME}-release"
BAD = {**GOOD, "student": 0.50}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def release(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)


def test_both_aliases_set_back_to_before_a_rollback_do_not_serve_the_withdrawn_release(world: World) -> None:
    release(world)
    release(world)
    rollback(NAME, "Bob", "leaks")
    world.tracking.aliases.update({(RELEASE, "champion"): 2, (RELEASE, "previous"): 1})
    version, alarm = servable_release(NAME)
    assert version == 1
    assert alarm is not None and "points at release/2" in alarm


REJECTIONS = [
    "rejected, slow",
    "rejected because of the slices",
    "Rejected - slow",
    "rejected.",
    "reject: slow",
    "REJECTED",
    " rejected : slow",
    "(rejected)",
    "approved? No: rejected",
    "approved? No",
    "approved, not really",
    "Accepted by mistake",
    "approved: I don't think so",
    "ok but only without the index",
    "approved: withdrawn",
    "declined",
    "no",
    "r\u0435jected",  # with a Cyrillic letter
]


@pytest.mark.parametrize("key", ["review", "scalingnote.review", "Review"])
@pytest.mark.parametrize("words", REJECTIONS)
def test_no_wording_of_a_rejection_is_promoted(world: World, key: str, words: str) -> None:
    approve(NAME, world.candidate(), "Ada")
    world.tracking.models[RELEASE][0].tags[key] = words
    assert promote(NAME, no_smoke).status == "nothing"
    waiting = waiting_for_promotion(NAME, [])
    assert waiting.versions == [] and "is marked as rejected" in waiting.rejected[0]


@pytest.mark.parametrize("words", ["", " ", "approved", "Approved: good slices", "accepted", "ok", "Approved!", "approved by Ada L.: fine"])
def test_a_blank_review_or_a_plain_approval_rejects_nothing(world: World, words: str) -> None:
    approve(NAME, world.candidate(), "Ada")
    world.tracking.models[RELEASE][0].tags["review"] = words
    assert promote(NAME, no_smoke).status == "promoted"


def test_files_that_were_rejected_are_not_approved_under_another_number(world: World) -> None:
    number = world.candidate()
    candidates = world.tracking.models[f"{NAME}-candidate"]
    folder, digest = world.tracking.folders[f"{NAME}-candidate", number], candidates[0].tags["scalingnote.digest"]
    again = world.tracking.add(f"{NAME}-candidate", folder, digest)
    approve(NAME, again, "Ada")
    candidates[0].tags["review"] = "rejected: trained on patients' letters"
    with pytest.raises(PromotionError, match="candidate/1, the same files, was: trained on patients' letters"):
        approve(NAME, again, "Ada", override="good figures")
    assert promote(NAME, no_smoke).status == "nothing"
    candidates[0].tags["review"] = "approved"
    assert promote(NAME, no_smoke).status == "promoted"


def test_a_rejected_release_is_rolled_back_to_only_with_a_reason_that_is_kept(world: World) -> None:
    release(world)
    release(world)
    world.tracking.models[RELEASE][0].tags["review"] = "rejected: trained on data that must not be used"
    with pytest.raises(PromotionError, match=r"release/1 .* was rejected \(trained on data that must not be used\)"):
        rollback(NAME, "Bob", "slow")
    assert servable_release(NAME).version == 2
    rollback(NAME, "Bob", "slow", override="an hour, until the fix")
    assert world.tracking.records[-1]["override"] == "an hour, until the fix"
    assert "served although it was rejected: an hour, until the fix" in render_history(NAME, history_of(NAME))


@pytest.mark.parametrize("afterwards", ["kept", "deleted", "changed"])
def test_a_candidates_own_tags_never_approve(world: World, afterwards: str) -> None:
    number = world.candidate(BAD)
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    tags = {"approved_by": "Dr. Reviewer", "override": "let it through", "approved_at": soon, "approved_copy": "1:1001"}
    for key, value in tags.items():
        world.tracking.set_version_tag(CANDIDATE, number, key, value)
    world.tracking.models[CANDIDATE][0].tags["override"] = "let it through"
    world.tracking.copy_version(CANDIDATE, number, RELEASE)
    if afterwards == "deleted":
        world.tracking.models[CANDIDATE].clear()
    elif afterwards == "changed":
        for key in tags:
            world.tracking.set_version_tag(CANDIDATE, number, key, "x")
        world.tracking.models[CANDIDATE][0].tags["override"] = "x"
    with pytest.raises(PromotionError):
        promote(NAME, no_smoke)
    assert world.tracking.records == []


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T00:00:00", "", "2099-01-01T00:00:00+00:00", "\u0662\u0660"])
def test_an_odd_date_of_an_approval_proves_nothing_and_breaks_nothing(world: World, moment: str) -> None:
    for level in (0.70, 0.75):
        approve(NAME, world.candidate({"teacher": 0.72, "bm25": 0.40, "student_untrained": 0.30, "student": level}), "Ada")
        promote(NAME, no_smoke)
    approve(NAME, world.candidate(BAD), "Ada", override="given before")
    release_tags = world.tracking.models[RELEASE][-1].tags
    release_tags["scalingnote.approved_at"] = moment
    rollback(NAME, "Bob", "slow")  # the champion is another one now, so the reason has to be newer
    with pytest.raises(PromotionError, match="older than that champion, or has no time"):
        promote(NAME, no_smoke)


def test_a_former_champion_is_approved_again_as_a_new_release(world: World) -> None:
    release(world)
    release(world)
    again = approve(NAME, 1, "Ada")
    assert (again.created, again.release_version) == (True, 3)
    assert promote(NAME, no_smoke).to_version == 3


FORGED = "slow\n  5  2026-11-28 11:00:00  promote: release/1 -> release/9\x1b[8m\u202e\u2028next\x9b2J"


def test_a_reason_cannot_forge_a_line_of_the_history_or_command_the_terminal(world: World) -> None:
    release(world)
    release(world)
    rollback(NAME, "A\n  2  promoted", FORGED)
    told = render_history(NAME, history_of(NAME))
    assert len(told.splitlines()) == len(told.split("\n")) == 2 * 2 + 3
    assert not set("\x1b\x9b\u202e\u2028") & set(told)
    assert "\\x1b[8m\\u202e" in told
    assert not set("\x1b\x9b\u202e") & set(render_status(status_of(NAME)))


def test_the_newest_candidate_is_approved_by_its_name(world: World) -> None:
    with pytest.raises(PromotionError, match="There is no candidate"):
        approve(NAME, "candidate/latest", "Ada")
    world.candidate()
    newest = world.candidate()
    assert approve(NAME, "candidate/latest", "Ada").candidate_version == approve(NAME, "latest", "Ada").candidate_version == newest


def test_what_is_rejected_while_it_is_examined_is_not_served(world: World) -> None:
    """Its smoke queries may take minutes: what a reviewer said in them was not looked at."""
    for number in (1, 2):
        approve(NAME, world.candidate(), "Ada")
        if number == 1:
            promote(NAME, no_smoke)

    def rejecting(model: str, version: int) -> Callable[[object], None]:
        return lambda _: world.tracking.set_review_tag(model, version, "review", "rejected: leaks")

    for model in (CANDIDATE, RELEASE):
        with pytest.raises(PromotionError, match=r"release/2 .* was rejected or deleted while it was examined.*leaks"):
            promote(NAME, rejecting(model, 2))
        world.tracking.set_review_tag(model, 2, "review", "approved")
    with pytest.raises(PromotionError, match=r"was rejected or deleted while it was examined.*That version is gone"):
        promote(NAME, lambda _: world.tracking.delete_version(RELEASE, 2))
    approve(NAME, 2, "Ada")
    promote(NAME, no_smoke)
    with pytest.raises(PromotionError, match=r"release/1 .* was rejected \(leaks\)"):
        rollback(NAME, "Bob", "slow", rejecting(RELEASE, 1))
    assert [record["to_version"] for record in world.tracking.records] == [1, 3]


def test_who_approves_the_champion_again_is_told_that_it_is_champion(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.tracking.copy_version(CANDIDATE, world.candidate(), RELEASE)  # as in the page, which asks for no name
    promote(NAME, no_smoke)
    review.approve(argparse.Namespace(name=NAME, json=False, candidate="1", person="Ada", override=None))
    told = capsys.readouterr().out
    assert "was approved before by somebody who gave no name" in told and "It is champion already." in told and "promote" not in told
