"""Approval on a server with sign-in: the audit log alone says who acted, and nobody approves their own work."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.errors import ArtifactError, PromotionError
from components.promotion import approval
from components.promotion.approval import approve, rejection
from components.promotion.promote import Change, promote, rollback
from components.promotion.status import status_of
from components.release import reviewers as people
from components.tracking.audit_log import head_file, read_audit
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, no_smoke

CANDIDATE, RELEASE = f"{NAME}-candidate", f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking(log=tmp_path / "audit.jsonl")
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def built(world: World, levels: dict[str, float] = GOOD) -> int:
    """A candidate of the trainer tom."""
    world.tracking.sign_in("tom", "trainer")
    return world.candidate(levels)


def promoted_copy(world: World, number: int) -> None:
    """What "Promote model" does in the UI."""
    world.tracking.copy_version(CANDIDATE, number, RELEASE)


def promote_as_flow(world: World) -> Change:
    world.tracking.sign_in("flow", "promoter")
    return promote(NAME, no_smoke)


def test_copy_of_a_reviewer_is_promoted_with_person_role_time_and_entry(world: World) -> None:
    number = built(world)
    world.tracking.sign_in("rita", "auditor", "reviewer")
    promoted_copy(world, number)
    promote_as_flow(world)
    (record,) = world.tracking.records
    assert world.tracking.log is not None
    entry = next(e for e in read_audit(world.tracking.log) if e.is_of(RELEASE, 1) and e.action == "create_model_version")
    assert (record["approved_by"], record["role"], record["approved_at"]) == ("rita", "reviewer", entry.at)
    assert (record["authentication"], record["audit_sequence"], record["audit_digest"]) == ("basic", entry.sequence, entry.digest)
    assert record["evidence_digest"] == record["manifest_digest"] == world.tracking.models[CANDIDATE][0].tags["scalingnote.digest"]
    assert len(record["decision_digest"]) == 64 and record["decisions"] is None


def test_approve_command_writes_nothing_but_the_copy(world: World) -> None:
    number = built(world)
    world.tracking.sign_in("rita", "reviewer")
    first = approve(NAME, number, None)
    assert (first.created, first.person, first.role, first.authentication) == (True, "rita", "reviewer", "basic")
    assert "scalingnote.approved_by" not in world.tracking.models[RELEASE][0].tags
    again = approve(NAME, number, "rita")
    assert (again.created, again.release_version) == (False, 1)
    with pytest.raises(PromotionError, match="signed in as 'rita' and cannot approve as 'Ada'"):
        approve(NAME, number, "Ada")


def test_trainers_copy_is_no_approval(world: World) -> None:
    number = built(world)
    world.tracking.sign_in("tim", "trainer")
    promoted_copy(world, number)
    with pytest.raises(PromotionError, match=r"'tim' \(roles: trainer; audit entry \d+\); only a reviewer's copy"):
        promote_as_flow(world)
    assert world.tracking.records == [] and world.tracking.aliases == {}
    world.tracking.sign_in("rita", "reviewer")
    assert approve(NAME, number, None).release_version == 2  # a copy of its own, not the trainer's
    assert promote_as_flow(world).to_version == 2


@pytest.mark.parametrize("made", [CANDIDATE, f"{NAME}-query-encoder"])
def test_nobody_approves_their_own_work(world: World, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    number = built(world)
    known = people.created_by

    def created_by(entries: object, model: str, version: int) -> people.AuditedAction | None:
        act = known(entries, model, version)  # type: ignore[arg-type]
        return people.AuditedAction("rita", "reviewer", act.at, act.sequence, act.digest) if act and model == made else act

    monkeypatch.setattr(people, "created_by", created_by)
    world.tracking.sign_in("rita", "reviewer", "trainer")
    with pytest.raises(PromotionError, match=f"'rita' made {made}/1 .* nobody approves their own work"):
        approve(NAME, number, None)
    assert RELEASE not in world.tracking.models
    promoted_copy(world, number)
    with pytest.raises(PromotionError, match="nobody approves their own work"):
        promote_as_flow(world)
    assert world.tracking.records == []


def test_after_the_copy_of_who_made_a_part_another_reviewers_approval_is_a_copy_of_its_own(world: World) -> None:
    number = built(world)
    world.tracking.sign_in("rita", "reviewer", "trainer")
    world.tracking.note("create_model_version", model=f"{NAME}-index", version=1)  # the server's rules look at the candidate's maker alone
    promoted_copy(world, number)
    with pytest.raises(PromotionError, match=r"'rita' made retriever-index/1 .* Another reviewer has to"):
        promote_as_flow(world)
    world.tracking.sign_in("ron", "reviewer")
    approved = approve(NAME, number, None)
    assert (approved.created, approved.person, approved.release_version) == (True, "ron", 2)
    assert approve(NAME, number, None).created is False
    assert promote_as_flow(world).to_version == 2


def test_a_reason_of_who_made_the_candidate_is_replaced_by_that_of_another_reviewer(world: World) -> None:
    number = built(world, BAD)
    world.tracking.sign_in("rita", "reviewer")
    promoted_copy(world, number)
    world.tracking.sign_in("tom", "reviewer", "trainer")
    world.tracking.set_review_tag(RELEASE, 1, "override", "mine")
    world.tracking.sign_in("ron", "reviewer")
    approved = approve(NAME, number, None, override="pilot")
    assert (approved.created, approved.override_by, approved.release_version) == (True, "ron", 1)
    promote_as_flow(world)
    assert world.tracking.records[-1]["override_by"] == "ron"


def test_candidate_of_nobody_known_is_not_approved(world: World) -> None:
    log, world.tracking.log = world.tracking.log, None
    number = built(world)
    world.tracking.log = log
    world.tracking.sign_in("rita", "reviewer")
    with pytest.raises(PromotionError, match="does not say who made retriever-candidate/1"):
        promoted_copy(world, number)
        promote_as_flow(world)


def test_copy_written_past_the_server_is_refused(world: World) -> None:
    number = built(world)
    log, world.tracking.log = world.tracking.log, None
    promoted_copy(world, number)
    world.tracking.log = log
    with pytest.raises(PromotionError, match="written past the server"):
        promote_as_flow(world)


def test_approval_without_sign_in_is_refused_where_there_is_a_log(world: World) -> None:
    number = built(world)
    world.tracking.user = None
    with pytest.raises(PromotionError, match="has to come through its server, signed in"):
        approve(NAME, number, "Ada")
    assert RELEASE not in world.tracking.models


def test_override_counts_only_as_a_reviewers_tag_on_the_release(world: World) -> None:
    number = built(world, BAD)
    for key in ("override", "approved_by", "approved_at"):  # set at creation, and copied along
        world.tracking.models[CANDIDATE][0].tags[key] = "let it through"
        world.tracking.models[CANDIDATE][0].tags["scalingnote." + key] = "2020-01-01"
    world.tracking.sign_in("rita", "reviewer")
    promoted_copy(world, number)
    with pytest.raises(PromotionError, match="gives no reason"):
        promote_as_flow(world)
    world.tracking.sign_in("tom", "trainer")
    world.tracking.set_review_tag(RELEASE, 1, "override", "let it through")
    with pytest.raises(PromotionError, match="gives no reason"):
        promote_as_flow(world)
    world.tracking.sign_in("ron", "reviewer")
    world.tracking.set_review_tag(RELEASE, 1, "override", "pilot for one ward\nonly")
    promote_as_flow(world)
    (record,) = world.tracking.records
    assert (record["override"], record["override_by"], record["approved_by"]) == ("pilot for one ward\nonly", "ron", "rita")


def test_override_of_the_trainer_is_refused_though_a_reviewer_too(world: World) -> None:
    number = built(world, BAD)
    world.tracking.sign_in("rita", "reviewer")
    promoted_copy(world, number)
    world.tracking.sign_in("tom", "reviewer", "trainer")
    world.tracking.set_review_tag(RELEASE, 1, "override", "mine")
    with pytest.raises(PromotionError, match="'tom' made"):
        promote_as_flow(world)


def test_long_reason_is_cut_in_the_log_alone(world: World) -> None:
    number = built(world, BAD)
    world.tracking.sign_in("rita", "reviewer")
    reason = "because " * 100
    promoted_copy(world, number)
    world.tracking.models[RELEASE][0].tags["override"] = reason
    world.tracking.note("set_version_tag", model=RELEASE, version=1, key="override", value=reason[: 500 - 12] + " … [cut off]")
    promote_as_flow(world)
    assert world.tracking.records[0]["override"] == reason.strip()


def test_earlier_entries_must_still_be_in_the_log(world: World) -> None:
    for _ in range(2):
        number = built(world)
        world.tracking.sign_in("rita", "reviewer")
        promoted_copy(world, number)
        if number == 1:
            promote_as_flow(world)
    log = world.tracking.log
    assert log is not None
    entries = log.read_bytes()
    head_file(log).unlink()
    log.unlink()
    world.tracking.note("create_model_version", model=RELEASE, version=2)  # a new log in the old one's place
    with pytest.raises(ArtifactError, match="Promotion record 1 rests on the audit entry"):
        promote_as_flow(world)
    log.write_bytes(entries)
    head_file(log).unlink()
    with pytest.raises(ArtifactError, match="head file is missing"):
        promote_as_flow(world)
    assert len(world.tracking.records) == 1


def test_missing_log_is_refused_where_there_should_be_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    number = built(world)
    world.tracking.log = None
    world.tracking.sign_in("rita", "reviewer")
    with pytest.raises(PromotionError, match=r"'rita' signs in to .* no audit log"):
        approve(NAME, number, None)
    world.tracking.user = None
    promoted_copy(world, number)
    monkeypatch.setenv("SCALINGNOTE_AUDIT_LOG", "/nowhere/audit.jsonl")
    with pytest.raises(PromotionError, match=r"SCALINGNOTE_AUDIT_LOG names /nowhere/audit\.jsonl, but there is no audit log"):
        promote(NAME, no_smoke)
    monkeypatch.delenv("SCALINGNOTE_AUDIT_LOG")
    world.tracking.records.append({"sequence": 1, "action": "promote", "to_version": 0, "audit_sequence": 3, "audit_digest": "x"})
    with pytest.raises(PromotionError, match="record 1 rests on the entry 3 of an audit log"):
        people.require_audit_log(world.tracking.records)


def test_rollback_names_the_person_that_the_log_names(world: World) -> None:
    for _ in range(2):
        number = built(world)
        world.tracking.sign_in("rita", "reviewer")
        promoted_copy(world, number)
        promote_as_flow(world)
    world.tracking.sign_in("pat", "promoter")
    rollback(NAME, "somebody else", "slow")
    record = world.tracking.records[-1]
    assert (record["approved_by"], record["role"], record["authentication"], record["reason"]) == ("pat", "promoter", "basic", "slow")
    assert world.tracking.log is not None
    assert read_audit(world.tracking.log)[record["audit_sequence"] - 1].digest == record["audit_digest"]
    assert world.tracking.models[RELEASE][1].tags["scalingnote.rolled_back"] == "slow"


def test_a_rollback_past_the_server_is_not_that_of_somebody_whose_own_was_killed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        number = built(world)
        world.tracking.sign_in("rita", "reviewer")
        promoted_copy(world, number)
        promote_as_flow(world)
    world.tracking.sign_in("pat", "promoter")
    world.tracking.set_version_tag(RELEASE, 2, people.ROLLED_BACK, "slow")  # and killed before the record
    monkeypatch.setattr(world.tracking, "note", lambda *_, **__: None)
    world.tracking.user = None
    rollback(NAME, "Bob", "leaks")
    record = world.tracking.records[-1]
    assert (record["approved_by"], record["authentication"], record["reason"]) == ("Bob", "unauthenticated", "leaks")


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"review": "rejected: wrong data"}, "wrong data"),
        ({"scalingnote.review": "Rejected"}, "no reason given"),
        ({"rejected": "old form"}, "old form"),
        ({"review": "approved"}, None),
        ({"review": "looks fine"}, "the tag review says 'looks fine', which is not a plain approval and counts as a rejection"),
    ],
)
def test_forms_of_a_rejection(world: World, tags: dict[str, str], reason: str | None) -> None:
    built(world)
    info = world.tracking.models[CANDIDATE][0].model_copy(update={"tags": tags})
    assert rejection(info) == reason


def test_rejected_candidate_is_not_promoted_though_its_copy_was_approved_before(world: World) -> None:
    number = built(world)
    world.tracking.sign_in("rita", "reviewer")
    promoted_copy(world, number)
    world.tracking.set_review_tag(CANDIDATE, number, "review", "rejected: leaks test queries")
    change = promote_as_flow(world)
    assert change.status == "nothing" and "leaks test queries" in change.warnings[0]
    assert status_of(NAME)["waiting_for_promotion"] == []


@pytest.mark.parametrize("given_again", [False, True])
def test_a_rejection_of_a_candidate_that_was_deleted_since_is_read_in_the_log(world: World, given_again: bool) -> None:
    number = built(world)
    world.tracking.sign_in("rita", "reviewer")
    promoted_copy(world, number)
    world.tracking.set_review_tag(CANDIDATE, number, "review", "rejected: leaks test queries")
    world.tracking.delete_version(CANDIDATE, number)
    world.tracking.deleted.clear()  # a server does not show them
    if given_again:
        world.tracking.sign_in("tom", "trainer")
        world.tracking.note("create_model_version", model=CANDIDATE, version=number)
        world.tracking.sign_in("rita", "reviewer")
        world.tracking.note("set_version_tag", model=CANDIDATE, version=number, key="review", value="approved")
    with pytest.raises(PromotionError, match=r"The audit log says that the files .* were rejected \(leaks test queries\)"):
        promote_as_flow(world)
    assert world.tracking.records == []


def test_a_rollback_asks_the_log_for_a_rejection_of_a_candidate_that_was_deleted_since(world: World) -> None:
    for _ in range(2):
        number = built(world)
        world.tracking.sign_in("rita", "reviewer")
        promoted_copy(world, number)
        promote_as_flow(world)
    world.tracking.sign_in("rita", "reviewer")
    world.tracking.set_review_tag(CANDIDATE, 1, "review", "rejected: leaks test queries")
    world.tracking.delete_version(CANDIDATE, 1)
    world.tracking.deleted.clear()  # a server does not show them
    world.tracking.sign_in("pat", "promoter")
    with pytest.raises(PromotionError, match=r"release/1 .* was rejected \(The audit log says .*leaks test queries.*--override"):
        rollback(NAME, "pat", "slow")
    assert len(world.tracking.records) == 2
    rollback(NAME, "pat", "slow", override="nothing else is left")
    assert (world.tracking.records[-1]["to_version"], world.tracking.records[-1]["override"]) == (1, "nothing else is left")


def test_who_made_a_candidate_is_asked_of_the_one_that_was_copied(world: World) -> None:
    number = built(world)
    world.tracking.sign_in("rita", "reviewer")
    promoted_copy(world, number)
    world.tracking.note("create_model_version", model=CANDIDATE, version=number)  # her own, under the number of the deleted one
    assert promote_as_flow(world).to_version == 1


def test_read_approval_without_an_entry_claims_nothing(world: World) -> None:
    number = built(world)
    promoted_copy(world, number)
    (info,) = world.tracking.models[RELEASE]
    info.tags.update({"scalingnote.approved_by": "Ada", "scalingnote.approved_at": "2026-01-01", "override": "x"})
    found = approval.read_approval(NAME, info, [])
    assert (found.person, found.override, found.authentication) == (None, None, "none")
