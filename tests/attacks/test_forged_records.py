"""Attacks of a promoter on the records: what no promote flow would have written, and what earlier ones have, on a registry in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.artifacts import digest_of
from components.gates.champion import HELD_BY_BOTH
from components.gates.decide import verdict_of
from components.gates.policy import policy_digest
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.record import CompareAgain, DatedDecision, decide_against
from components.promotion.verification import verify_release
from components.release.manifest import ReleaseManifest, load_release
from components.tracking import audit_log as audit
from components.tracking import registry
from tests.unit import promotion_world
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, make_comparison, no_smoke

RELEASE = f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """With an audit log; release/1 was promoted on the approval of the reviewer rita."""
    tracking = MemoryTracking(log=tmp_path / "audit.jsonl")
    tracking.install(monkeypatch)
    world = World(tracking, tmp_path)
    approved(world, GOOD)
    tracking.sign_in("flow", "promoter")
    promote(NAME, no_smoke)
    return world


def approved(world: World, levels: dict[str, float]) -> int:
    """The number of a release that tom trained and rita copied."""
    world.tracking.sign_in("tom", "trainer")
    number = world.candidate(levels)
    world.tracking.sign_in("rita", "reviewer")
    return world.tracking.copy_version(f"{NAME}-candidate", number, RELEASE)


def forge(world: World, like: int, **changes: Any) -> None:
    """Append a record like number `like` to the chain, with changes."""
    true = {key: value for key, value in world.tracking.records[like - 1].items() if key not in ("sequence", "digest", "retriever")}
    world.tracking.append_record(NAME, {**true, **changes})
    champion = world.tracking.records[-1]["to_version"]
    world.tracking.set_alias(RELEASE, "champion", champion)


def found(ref: str = "champion") -> dict[str, str]:
    return {check.name: check.detail for check in verify_release(NAME, ref) if not check.ok}


def promoted_twice_and_rolled_back(world: World) -> None:
    for student in (0.70, 0.71):
        approve(NAME, world.candidate({**GOOD, "student": student}), "Ada")
        promote(NAME, no_smoke)
    rollback(NAME, "Bob", "it leaks")


def test_a_record_that_promotes_again_what_was_rolled_back_from_is_found(world: World) -> None:
    promoted_twice_and_rolled_back(world)
    assert found() == {}
    forge(world, 2, from_version=1)
    assert "promotes release/2, which was rolled back from" in found()["claims"]


def test_a_record_that_names_another_champion_as_the_one_before_is_found(world: World) -> None:
    promoted_twice_and_rolled_back(world)
    approve(NAME, world.candidate({**GOOD, "student": 0.72}), "Ada")
    promote(NAME, no_smoke)
    assert found() == {}
    world.tracking.records[-1]["from_version"] = 2
    assert "says that it replaced release/2, champion was release/1" in found()["claims"]


def late(world: World, override: str | None = None) -> None:
    """release/2 is champion; candidate/3 was built against release/1, is worse than release/2, and is approved late."""
    for student in (0.70, 0.75, 0.70):
        number = world.candidate({**GOOD, "student": student})
        if number == 1:
            approve(NAME, number, "Ada")
            promote(NAME, no_smoke)
    approve(NAME, 2, "Ada")
    promote(NAME, no_smoke)
    approve(NAME, 3, "Ada", override=override)


def test_a_late_approval_that_nobody_compared_with_the_champion_is_found(world: World) -> None:
    late(world, override="the better one leaks")
    promote(NAME, no_smoke)
    assert found() == {}
    world.tracking.records[-1].update(decisions=None, verdict="pass", override=None)
    assert "compared with release/1 alone" in found()["claims"]


def test_a_comparison_with_the_champion_that_was_made_up_is_found(world: World) -> None:
    late(world, override="the better one leaks")
    promote(NAME, no_smoke)
    record = world.tracking.records[-1]
    again = record["decisions"][-1]
    for gate in again["decision"]["gates"]:
        gate["status"] = "pass" if gate["status"] == "fail" else gate["status"]
    again["decision"]["verdict"] = "pass"
    again["digest"] = digest_of(again["decision"])
    record.update(verdict="pass", override=None)
    assert "champion_non_inferior is 'pass', decided again it is 'fail'" in found()["claims"]
    again["decision"]["inputs"]["shared_documents"] = "0" * 64  # as if more had been known than stands in the record
    again["digest"] = digest_of(again["decision"])
    assert "champion_non_inferior is 'pass', decided again it is 'fail'" in found()["claims"]


def equally_late(world: World, decide: CompareAgain = decide_against) -> dict[str, Any]:
    """The record of a late approval of candidate/2, built against release/1, that is as good as release/2, which is champion."""
    for student in (0.70, 0.701, 0.702):
        number = world.candidate({**GOOD, "student": student})
        if number != 2:
            approve(NAME, number, "Ada")
        if number == 1:
            promote(NAME, no_smoke)
    promote(NAME, no_smoke)
    approve(NAME, 2, "Ada")
    promote(NAME, no_smoke, decide)
    return dict(world.tracking.records[-1])


def test_a_late_approval_of_a_candidate_that_an_earlier_version_built_verifies(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its policy lacks the fields that came since, and the decision of today names all of them."""
    write = promotion_world.write_candidate

    def earlier(manifest: ReleaseManifest, *parts: Any) -> Any:
        policy = {field: value for field, value in manifest.config["policy"].items() if field != "own_units"}
        decision = manifest.decision.model_copy(update={"policy_digest": policy_digest(policy)})
        return write(manifest.model_copy(update={"config": {**manifest.config, "policy": policy}, "decision": decision}), *parts)

    monkeypatch.setattr(promotion_world, "write_candidate", earlier)
    first, again = equally_late(world)["decisions"]
    assert first["decision"]["policy_digest"] != again["decision"]["policy_digest"]
    assert found() == {} == found("release/2")
    approve(NAME, world.candidate({**GOOD, "student": 0.703}), "Ada")
    promote(NAME, no_smoke)
    assert rollback(NAME, "Bob", "slow").to_version == 3


def test_a_late_approval_of_before_documents_that_both_hold_were_asked_for_verifies(world: World) -> None:
    def earlier(folder: Path, champion: int | None) -> DatedDecision:
        comparison = make_comparison(removed=3).model_copy(update={"baseline_version": champion})
        made = decide_against(folder, champion, comparison)
        gates = tuple(gate for gate in made.decision.gates if HELD_BY_BOTH not in gate.name)
        assert len(gates) < len(made.decision.gates)
        return made._replace(decision=made.decision.model_copy(update={"gates": gates, "verdict": verdict_of(gates), "method": 1}))

    assert equally_late(world, earlier)["verdict"] == "pass"
    assert found() == {}
    again = world.tracking.records[-1]["decisions"][-1]
    again["decision"]["method"] = 3  # as if today's version had left it out
    again["digest"] = digest_of(again["decision"])
    assert HELD_BY_BOTH in found()["claims"]


def test_a_late_promotion_by_a_version_that_only_warned_verifies_and_no_later_one_passes_for_it(world: World) -> None:
    equally_late(world)
    records = world.tracking.records
    kept = [dict(record) for record in records]
    for record in records:
        for field in ("decisions", "decision_digest", "evidence_digest", "override_by", "role", "audit_sequence", "audit_digest"):
            record.pop(field)
    assert found() == {}
    records[0].update(kept[0])
    assert "compared with release/1 alone" in found()["claims"]


def test_a_promotion_that_rests_on_no_entry_where_others_do_is_found(audited: World) -> None:
    approved(audited, {**GOOD, "student": 0.71})
    audited.tracking.sign_in("flow", "promoter")
    promote(NAME, no_smoke)
    assert found() == {}
    audited.tracking.records[-1].update(audit_sequence=None, audit_digest=None, authentication="unauthenticated", approved_by="rita")
    assert "promotes release/2 and rests on no entry of the audit log" in found()["audit log"]


def test_another_reason_of_a_rollback_than_the_log_holds_is_found(audited: World) -> None:
    approved(audited, {**GOOD, "student": 0.71})
    audited.tracking.sign_in("flow", "promoter")
    promote(NAME, no_smoke)
    rollback(NAME, "flow", "too slow")
    assert found() == {}
    audited.tracking.records[-1]["reason"] = "rita asked for it"
    assert "gives another reason for its rollback than the audit entry" in found()["audit log"]


def test_an_override_that_no_reviewer_gave_is_found(audited: World) -> None:
    number = approved(audited, BAD)
    audited.tracking.set_review_tag(RELEASE, number, "override", "pilot for one ward")
    audited.tracking.sign_in("flow", "promoter")
    promote(NAME, no_smoke)
    assert found() == {}
    for lie in ({"override": "all wards"}, {"override_by": "ron"}, {"override": "pilot for one ward, and all others"}):
        kept = dict(audited.tracking.records[-1])
        audited.tracking.records[-1].update(lie)
        assert "the audit log knows no reviewer of that name who gave it there" in found()["audit log"]
        audited.tracking.records[-1] = kept


def test_a_promotion_on_the_approval_of_who_made_a_part_is_found(audited: World, monkeypatch: pytest.MonkeyPatch) -> None:
    number = approved(audited, {**GOOD, "student": 0.71})
    audited.tracking.sign_in("flow", "promoter")
    promote(NAME, no_smoke)
    part = load_release(registry.artifact_folder(RELEASE, number)).pins.index
    made = audit.creation_of
    monkeypatch.setattr(audit, "creation_of", lambda log, model, version: made(log, RELEASE if model == part.model else model, version))
    assert "rests on the approval of rita, who made retriever-index" in found()["audit log"]


def test_a_promotion_on_the_copy_of_somebody_who_is_no_reviewer_is_found(audited: World) -> None:
    audited.tracking.sign_in("tom", "trainer")
    number = audited.candidate({**GOOD, "student": 0.71})
    audited.tracking.copy_version(f"{NAME}-candidate", number, RELEASE)
    assert audited.tracking.log is not None
    copied = audit.read_audit(audited.tracking.log)[-1]
    true = audited.tracking.versions(RELEASE)[-1]
    changes = {"to_version": 2, "from_version": 1, "candidate_version": 2, "approved_by": "tom", "role": "trainer"}
    own = {"manifest_digest": true.tags["scalingnote.digest"], "evidence_digest": true.tags["scalingnote.digest"]}
    forge(audited, 1, **changes, **own, audit_sequence=copied.sequence, audit_digest=copied.digest)
    assert "is no act of a reviewer" in found()["audit log"]
