"""Approval, promotion and rollback over a registry in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from components.artifacts import open_artifact
from components.errors import ArtifactError, PromotionError
from components.evaluation.report import UnitsSummary, load_evaluation
from components.gates.decide import decide
from components.gates.decision import GateInputs
from components.gates.measures import METHOD
from components.promotion import promote as promoting
from components.promotion.approval import approve
from components.promotion.promote import Change, promote, resolve, rollback
from components.promotion.verification import _Report
from components.release.champion import servable_release, settled_release
from components.release.manifest import EVALUATION_FOLDER, ReleaseManifest
from components.tracking.store import TrackingError
from tests.unit.promotion_world import FACTS, GOOD, NAME, POLICY, Killed, MemoryTracking, World, rewrite

RELEASE = f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def no_smoke(manifest: ReleaseManifest) -> None:
    assert manifest.smoke[0].query == "heart attack"


def release(world: World) -> Change:
    """A new candidate, approved and promoted."""
    approve(NAME, world.candidate(), "Ada")
    return promote(NAME, no_smoke)


def aliases(world: World) -> tuple[int | None, int | None]:
    return world.tracking.aliases.get((RELEASE, "champion")), world.tracking.aliases.get((RELEASE, "previous"))


def test_without_an_approval_there_is_nothing_to_promote(world: World) -> None:
    world.candidate()
    assert promote(NAME, no_smoke).status == "nothing"
    assert world.tracking.records == []
    with pytest.raises(PromotionError, match="approve candidate/N"):
        servable_release(NAME)


def test_approved_candidate_becomes_champion_with_a_record(world: World) -> None:
    change = release(world)
    assert (change.status, change.from_version, change.to_version) == ("promoted", None, 1)
    (record,) = world.tracking.records
    assert record["approved_by"] == "Ada"
    assert (record["action"], record["authentication"], record["candidate_version"]) == ("promote", "unauthenticated", 1)
    assert record["manifest_digest"] == world.tracking.models[RELEASE][0].tags["scalingnote.digest"]
    assert aliases(world) == (1, None)
    assert servable_release(NAME) == (1, None)


def test_second_run_changes_nothing(world: World) -> None:
    release(world)
    before = world.tracking.state()
    assert promote(NAME, no_smoke).status == "nothing"
    assert world.tracking.state() == before


def test_approval_is_idempotent_and_names_the_first_person(world: World) -> None:
    number = world.candidate()
    first = approve(NAME, number, "Ada")
    again = approve(NAME, f"candidate/{number}", "Bob")
    assert (first.created, again.created) == (True, False)
    assert (again.person, again.release_version, again.approved_at) == ("Ada", 1, first.approved_at)
    assert len(world.tracking.models[RELEASE]) == 1


def test_unknown_candidate_is_refused_with_the_ones_there_are(world: World) -> None:
    with pytest.raises(PromotionError, match=r"has no candidates yet.*renamed or deleted in MLflow"):
        approve(NAME, 1, "Ada")
    world.candidate()
    with pytest.raises(PromotionError, match="candidate/1"):
        approve(NAME, 7, "Ada")
    with pytest.raises(PromotionError, match="no candidate 'release/1'"):
        approve(NAME, "release/1", "Ada")
    with pytest.raises(PromotionError, match="name of a person"):
        approve(NAME, 1, "  ")


def test_failed_candidate_needs_a_reason_at_approval(world: World) -> None:
    number = world.candidate(BAD)
    with pytest.raises(PromotionError, match="retention"):
        approve(NAME, number, "Ada", override="  ")
    approve(NAME, number, "Ada", override="only a pilot")
    promote(NAME, no_smoke)
    assert (world.tracking.records[0]["override"], world.tracking.records[0]["verdict"]) == ("only a pilot", "fail")


def test_failed_candidate_copied_in_the_ui_is_not_promoted_until_a_reason_is_given(world: World) -> None:
    world.tracking.copy_version(f"{NAME}-candidate", world.candidate(BAD), RELEASE)
    with pytest.raises(PromotionError, match="--override"):
        promote(NAME, no_smoke)
    assert (world.tracking.records, aliases(world)) == ([], (None, None))
    assert approve(NAME, 1, "Ada", override="pilot").release_version == 1
    assert promote(NAME, no_smoke).status == "promoted"


def test_tags_copied_from_the_candidate_are_no_approval(world: World) -> None:
    number = world.candidate(BAD)
    for key, value in (("approved_by", "Mallory"), ("override", "let it through"), ("approved_at", "2020-01-01")):
        world.tracking.set_version_tag(f"{NAME}-candidate", number, key, value)
    world.tracking.copy_version(f"{NAME}-candidate", number, RELEASE)
    with pytest.raises(PromotionError, match="gives no reason"):
        promote(NAME, no_smoke)
    claim = approve(NAME, number, "Ada", override="pilot")
    assert (claim.person, claim.override) == ("Ada", "pilot")


def test_copy_made_in_the_ui_is_promoted_as_unauthenticated(world: World) -> None:
    world.tracking.copy_version(f"{NAME}-candidate", world.candidate(), RELEASE)
    promote(NAME, no_smoke)
    assert world.tracking.records[0]["approved_by"] == "unauthenticated"


def test_version_that_is_no_copy_of_a_candidate_is_refused(world: World) -> None:
    world.candidate()
    folder = world.tracking.artifact_folder(f"{NAME}-candidate", 1)
    world.tracking.add(RELEASE, folder, "x", source="s3://somewhere/else")
    with pytest.raises(PromotionError, match="only a copy of a version of retriever-candidate"):
        promote(NAME, no_smoke)
    world.tracking.add(RELEASE, folder, "x", source="models:/other-candidate/1")
    with pytest.raises(PromotionError, match="was copied from other-candidate/1"):
        promote(NAME, no_smoke)
    assert world.tracking.records == []


def test_smoke_failure_changes_nothing(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")

    def smoke(manifest: ReleaseManifest) -> None:
        raise ArtifactError("another answer")

    with pytest.raises(PromotionError, match="another answer"):
        promote(NAME, smoke)
    assert (world.tracking.records, aliases(world)) == ([], (None, None))


def test_a_name_that_is_written_while_the_release_is_examined_stands_in_the_record(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A webhook wakes the promotion by the copy; the name comes a moment later, and the record said that nobody is known."""
    number = world.candidate()
    world.tracking.copy_version(f"{NAME}-candidate", number, f"{NAME}-release")
    verified = promoting._verified

    def slowly(*arguments: Any) -> ReleaseManifest:
        assert approve(NAME, number, "Ada").release_version == 1
        return verified(*arguments)

    monkeypatch.setattr(promoting, "_verified", slowly)
    promote(NAME, no_smoke)
    assert world.tracking.records[-1]["approved_by"] == "Ada"


def test_changed_pin_is_not_promoted(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    (world.root / "1" / "query_encoder" / "weights.bin").write_bytes(b"other")
    with pytest.raises(PromotionError, match=r"weights\.bin was changed"):
        promote(NAME, no_smoke)
    assert world.tracking.records == []


def test_a_candidate_that_was_changed_and_sealed_again_is_not_approved(world: World) -> None:
    """It was, and no promotion took the approval: whoever approved had looked at other evidence than was registered."""
    number = world.candidate(BAD)
    rewrite(world.root / "1" / "candidate", lambda content: content["decision"].update(verdict="pass"))
    with pytest.raises(ArtifactError, match="It was replaced after it was registered"):
        approve(NAME, number, "Ada")
    assert world.tracking.models.get(f"{NAME}-release", []) == []


def test_edited_verdict_is_found_by_deciding_again(world: World) -> None:
    number = world.candidate(BAD)

    def lie(content: dict[str, Any]) -> None:
        content["decision"]["verdict"] = "pass"
        for gate in content["decision"]["gates"]:
            gate["status"] = "pass" if gate["status"] == "fail" else gate["status"]

    rewrite(world.root / "1" / "candidate", lie)
    tags = world.tracking.models[f"{NAME}-candidate"][0].tags
    tags["scalingnote.digest"] = open_artifact(world.root / "1" / "candidate").digest
    approve(NAME, number, "Mallory")
    with pytest.raises(PromotionError, match="the gates decided again say 'fail'"):
        promote(NAME, no_smoke)


def test_a_decision_is_not_passed_off_as_one_of_before_whose_arithmetic_let_more_through(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, folder = world.candidate(), world.root / "1" / "candidate"
    rewrite(folder, lambda content: content["decision"].update(method=1))
    world.tracking.models[f"{NAME}-candidate"][0].tags["scalingnote.digest"] = open_artifact(folder).digest
    report = load_evaluation(folder / EVALUATION_FOLDER)
    units = UnitsSummary(rule="each", units=40, largest=1, words="each", spread="left_out")
    today = replace(report, summary=report.summary.model_copy(update={"units": units}))
    monkeypatch.setattr("components.evaluation.report.load_evaluation", lambda _: today)
    approve(NAME, number, "Mallory")
    with pytest.raises(PromotionError, match="made by the method 1, and its evaluation was written by a later version"):
        promote(NAME, no_smoke)
    later = replace(today, summary=today.summary.model_copy(update={"ends": "student"}))
    monkeypatch.setattr("components.evaluation.report.load_evaluation", lambda _: later)
    with pytest.raises(PromotionError, match=r"made by the method 1, .* which decides by the method 3 or a later one"):
        promote(NAME, no_smoke)


def test_a_decision_of_today_holds_when_a_later_version_has_another_method(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    number, folder = world.candidate(), world.root / "1" / "candidate"
    report = load_evaluation(folder / EVALUATION_FOLDER)
    units = UnitsSummary(rule="each", units=40, largest=1, words="each", spread="left_out")
    today = replace(report, summary=report.summary.model_copy(update={"units": units}))
    decided = decide(GateInputs(today, facts=FACTS), POLICY)
    rewrite(folder, lambda content: content.update(decision=decided.model_dump(mode="json")))
    world.tracking.models[f"{NAME}-candidate"][0].tags["scalingnote.digest"] = open_artifact(folder).digest
    monkeypatch.setattr("components.evaluation.report.load_evaluation", lambda _: today)
    for module in ("gates.decide", "gates.measures", "promotion.verification"):
        monkeypatch.setattr(f"components.{module}.METHOD", METHOD + 1, raising=False)
    approve(NAME, number, "Ada")
    assert promote(NAME, no_smoke).to_version == 1


def test_newest_approval_wins_and_older_ones_are_passed_over(world: World) -> None:
    first, second = world.candidate(), world.candidate()
    approve(NAME, first, "Ada")
    approve(NAME, second, "Ada")
    assert promote(NAME, no_smoke).to_version == 2
    assert promote(NAME, no_smoke).status == "nothing"
    assert approve(NAME, first, "Ada").release_version == 3
    change = promote(NAME, no_smoke)
    assert (change.from_version, change.to_version) == (2, 3)
    assert "compared this candidate with no champion" in change.warnings[0]


def test_rejected_copy_is_left_out(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    world.tracking.models[RELEASE][0].tags["rejected"] = "wrong data"
    change = promote(NAME, no_smoke)
    assert change.status == "nothing"
    assert "wrong data" in change.warnings[0]
    assert approve(NAME, 1, "Ada").release_version == 2
    world.tracking.models[f"{NAME}-candidate"][0].tags["rejected"] = "wrong data"
    with pytest.raises(PromotionError, match="was rejected: wrong data"):
        approve(NAME, 1, "Ada")


def test_rollbacks_pop_what_promotions_pushed(world: World) -> None:
    for _ in range(3):
        release(world)
    assert aliases(world) == (3, 2)
    change = rollback(NAME, "Bob", "slow", override="it is urgent")
    assert (change.from_version, change.to_version) == (3, 2)
    assert change.warnings == ("Nobody has rejected release/2, so the reason of --override was not needed, and is not kept.",)
    assert aliases(world) == (2, 1) and world.tracking.records[-1]["override"] is None
    assert world.tracking.records[-1]["approved_by"] == "Bob"
    assert (world.tracking.records[-1]["reason"], world.tracking.records[-1]["candidate_version"]) == ("slow", 2)
    rollback(NAME, "Bob", "slower")
    assert aliases(world) == (1, None)
    with pytest.raises(PromotionError, match="nothing to roll back to: release/1 is the first release"):
        rollback(NAME, "Bob", "again")
    assert promote(NAME, no_smoke).status == "nothing"
    assert approve(NAME, 3, "Ada").release_version == 4
    promote(NAME, no_smoke)
    assert aliases(world) == (4, 1)


def test_rollback_needs_a_person_a_reason_and_a_release(world: World) -> None:
    with pytest.raises(PromotionError, match="no release was promoted yet"):
        rollback(NAME, "Bob", "slow")
    with pytest.raises(PromotionError, match="reason"):
        rollback(NAME, "Bob", " ")


@pytest.mark.parametrize("unseen", ["\u200b", " \u2060\ufeff ", "\u3164"])
def test_letters_that_nobody_sees_are_no_name_and_no_reason(world: World, unseen: str) -> None:
    number = world.candidate(BAD)
    with pytest.raises(PromotionError, match="--override"):
        approve(NAME, number, "Ada", override=unseen)
    with pytest.raises(PromotionError, match="name of a person"):
        approve(NAME, number, unseen, override="pilot")
    assert approve(NAME, number, f"Ada{unseen}", override=f"{unseen}pilot").release_version == 1
    with pytest.raises(PromotionError, match="reason"):
        rollback(NAME, "Bob", unseen)
    with pytest.raises(PromotionError, match="reason"):
        rollback(NAME, unseen, "slow")


def test_rollback_to_a_changed_release_is_refused(world: World) -> None:
    release(world)
    release(world)
    (world.root / "1" / "index" / "doc_ids.parquet").write_bytes(b"other")
    with pytest.raises(PromotionError, match="does not verify"):
        rollback(NAME, "Bob", "slow")
    assert aliases(world) == (2, 1)


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_promotion_that_is_under_way_is_no_alarm(world: World, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its record and its aliases whoever asked for the status was told that somebody had moved an alias."""
    release(world)
    approve(NAME, world.candidate(), "Ada")
    world.tracking.kill_at, world.tracking.changes = 1, 0
    with pytest.raises(Killed):
        promote(NAME, no_smoke)
    world.tracking.kill_at = None
    monkeypatch.setattr(
        "components.release.champion.time.sleep", lambda _: goes_on and world.tracking.aliases.update({(RELEASE, "champion"): 2})
    )
    alarm = settled_release(NAME).alarm
    assert alarm is None if goes_on else "a change was interrupted" in str(alarm)


def test_alias_moved_by_hand_is_an_alarm_and_is_put_back(world: World) -> None:
    release(world)
    release(world)
    world.tracking.aliases[RELEASE, "champion"] = 1
    version, alarm = servable_release(NAME)
    assert version == 2
    assert alarm is not None and "points at release/1" in alarm
    assert resolve(NAME, "champion") == (RELEASE, 2)
    change = promote(NAME, no_smoke)
    assert change.status == "reconciled"
    assert "were put back" in change.warnings[0]
    assert aliases(world) == (2, 1)
    assert servable_release(NAME) == (2, None)


def test_alias_without_any_record_is_removed(world: World) -> None:
    world.tracking.copy_version(f"{NAME}-candidate", world.candidate(BAD), RELEASE)
    world.tracking.aliases[RELEASE, "champion"] = 1
    with pytest.raises(PromotionError, match="was promoted yet"):
        servable_release(NAME)
    with pytest.raises(PromotionError, match="--override"):
        promote(NAME, no_smoke)
    assert aliases(world) == (None, None)


def test_deleted_champion_does_not_block_the_next_promotion(world: World) -> None:
    release(world)
    release(world)
    world.tracking.delete_version(RELEASE, 2)
    change = promote(NAME, no_smoke)
    assert "was deleted from the registry" in change.warnings[0]
    approve(NAME, world.candidate(), "Ada", override="the champion is gone")
    assert promote(NAME, no_smoke, without_champion="deleted").to_version == 3
    assert aliases(world) == (3, None)  # release/2 is gone, so no alias leads there
    assert rollback(NAME, "Bob", "slow", past_lost=True).to_version == 1
    assert aliases(world) == (1, None)


def test_references(world: World) -> None:
    release(world)
    release(world)
    assert resolve(NAME, "previous") == (RELEASE, 1)
    assert resolve(NAME, "candidate/latest") == (f"{NAME}-candidate", 2)
    assert resolve(NAME, "release/1") == (RELEASE, 1)
    for wrong in ("release/9", "candidate/0"):
        with pytest.raises(PromotionError, match="does not exist"):
            resolve(NAME, wrong)
    for wrong in ("best", "release/", "release/x", "query/1", ""):
        with pytest.raises(PromotionError, match="Expected champion, previous"):
            resolve(NAME, wrong)


def test_a_server_in_trouble_is_no_fault_of_a_release(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told as a release that does not verify, the watching promoter waited, and a rollback went past a release that was whole."""

    def gone(*_: object) -> Any:
        raise TrackingError("the server is gone")

    for _ in range(3):
        release(world)
    approve(NAME, world.candidate(), "Ada")
    before = world.tracking.state()
    with pytest.raises(TrackingError, match="is gone"):
        promote(NAME, gone)
    with monkeypatch.context() as patch:
        patch.setattr("components.promotion.verification.check_package", gone)
        for change in (lambda: promote(NAME, no_smoke), lambda: rollback(NAME, "Bob", "slow", past_lost=True)):
            with pytest.raises(TrackingError, match="is gone"):
                change()
    assert world.tracking.state() == before
    assert promote(NAME, no_smoke).to_version == 4
    assert rollback(NAME, "Bob", "slow", past_lost=True).to_version == 3


def test_a_check_of_the_surroundings_is_a_finding_as_long_as_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> Any:
        raise TrackingError("this user may not read the audit log")

    report = _Report()
    report.run("audit log", gone)
    assert [check.ok for check in report.checks] == [False]
    monkeypatch.setattr("components.promotion.verification.require_answer", gone)
    with pytest.raises(TrackingError):
        report.run("audit log", gone)
