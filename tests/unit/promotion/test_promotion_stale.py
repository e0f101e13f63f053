"""An approval whose champion changed, and what an override leaves behind."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.artifacts import digest_of
from components.errors import ModelError, PromotionError
from components.evaluation.champion_comparison import values_of_runs
from components.evaluation.metrics import QRELS, write_trec_qrels, write_trec_run
from components.evaluation.report import load_evaluation, write_report
from components.index.rows import Rows
from components.index.search import index_in_memory
from components.promotion.approval import approve
from components.promotion.promote import promote, promotion_fingerprint, rollback
from components.promotion.record import decide_against
from components.promotion.status import history_of, render_history, render_status, status_of
from components.release.champion import RED, override_of
from components.release.manifest import EVALUATION_FOLDER, ReleaseManifest, load_release
from components.serving import promotion_checks as timing
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, no_smoke, rewrite

CANDIDATE, RELEASE = f"{NAME}-candidate", f"{NAME}-release"
BAD = {**GOOD, "student": 0.5}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def with_better_champion(world: World) -> None:
    """release/2 is champion and better than release/1; candidate/2 was compared with release/1 and is as good as that."""
    for level in (0.70, 0.70, 0.71):
        number = world.candidate({**GOOD, "student": level})
        if number != 2:
            approve(NAME, number, "Ada")
        if number == 1:
            promote(NAME, no_smoke)
    promote(NAME, no_smoke)
    assert world.tracking.aliases[RELEASE, "champion"] == 2


def test_late_approval_is_decided_again_and_refused_when_it_is_worse_now(world: World) -> None:
    with_better_champion(world)
    approve(NAME, 2, "Ada")
    with pytest.raises(PromotionError, match=r"compared this candidate with release/1; .* is release/2\. Compared again, it did not pass"):
        promote(NAME, no_smoke)
    with pytest.raises(PromotionError, match="has to be compared again"):
        promote(NAME, no_smoke, compare_again=None)
    assert len(world.tracking.records) == 2 and world.tracking.aliases[RELEASE, "champion"] == 2


def test_reason_given_after_the_champion_came_lets_it_through_with_both_decisions(world: World) -> None:
    with_better_champion(world)
    approve(NAME, 2, "Ada")
    approve(NAME, 2, "Rita", override="the better one leaks")
    change = promote(NAME, no_smoke)
    assert change.to_version == 3 and "Compared again: fail" in change.warnings[-1]
    record = world.tracking.records[-1]
    assert (record["verdict"], record["override"], record["override_by"]) == ("fail", "the better one leaks", "Rita")
    first, again = record["decisions"]
    assert (first["against"], first["decision"]["verdict"]) == (1, "pass")
    assert (again["against"], again["decision"]["verdict"]) == (2, "fail")
    assert record["decision_digest"] == first["digest"] == digest_of(first["decision"])


def test_reason_that_is_older_than_the_champion_does_not_count(world: World) -> None:
    with_better_champion(world)
    number = world.candidate({**BAD, "teacher": 0.51})
    approve(NAME, number, "Ada", override="worse, but small")
    rollback(NAME, "Bob", "slow")
    with pytest.raises(PromotionError, match="The reason that was given is older than that champion"):
        promote(NAME, no_smoke)
    again = approve(NAME, number, "Ada", override="worse, but small")
    assert again.created and again.release_version == 3
    assert promote(NAME, no_smoke).to_version == 3


def test_a_reason_counts_although_the_records_were_signed_after_it(world: World) -> None:
    with_better_champion(world)
    approve(NAME, 2, "Ada", override="the better one leaks")
    newest = {key: value for key, value in world.tracking.records[-1].items() if key not in ("sequence", "digest", "retriever")}
    later = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    world.tracking.append_record(NAME, {**newest, "action": "vouch", "from_version": 2, "time": later})
    assert approve(NAME, 2, "Ada", override="the better one leaks").created is False
    assert promote(NAME, no_smoke).to_version == 3


def test_a_record_of_a_clock_that_ran_ahead_is_named_where_no_reason_can_be_newer(world: World) -> None:
    with_better_champion(world)
    world.tracking.records[-1]["time"] = "2099-01-01T00:00:00+00:00"
    approve(NAME, 2, "Ada", override="the better one leaks")
    with pytest.raises(PromotionError, match=r"newest promotion record is dated 2099-01-01T00:00:00.* another promotion or rollback first"):
        promote(NAME, no_smoke)
    rollback(NAME, "Bob", "slow")
    approve(NAME, 2, "Ada", override="the better one leaks")
    assert promote(NAME, no_smoke).to_version == 3


def test_stale_candidate_that_passes_again_says_so(world: World) -> None:
    with_better_champion(world)
    rollback(NAME, "Bob", "slow")
    approve(NAME, world.candidate({**GOOD, "student": 0.71}), "Ada")
    rollback_free = promote(NAME, no_smoke)
    assert rollback_free.warnings == ()
    approve(NAME, 3, "Ada")  # compared with release/1, and now release/3 with the same quality is champion
    change = promote(NAME, no_smoke)
    assert "Compared again: pass" in change.warnings[-1]
    record = world.tracking.records[-1]
    assert [entry["decision"]["verdict"] for entry in record["decisions"]] == ["pass", "pass"]
    assert record["override"] is None


def test_override_is_marked_on_the_page_and_in_all_that_is_told(world: World) -> None:
    number = world.candidate(BAD)
    approve(NAME, number, "Ada", override="pilot\nin one ward")
    world.tracking.descriptions[RELEASE, 1] = "**Verdict: fail.**"
    promote(NAME, no_smoke)
    page = world.tracking.descriptions[RELEASE, 1]
    assert page == f"{RED} **OVERRIDE: released although its gates said fail**, by Ada: pilot in one ward\n\n**Verdict: fail.**"
    assert world.tracking.models[RELEASE][0].tags["scalingnote.overridden"] == "pilot\nin one ward"
    assert f"{RED} OVERRIDE by Ada, gates fail: pilot in one ward" in render_history(NAME, history_of(NAME))
    assert f"{RED} OVERRIDE" in render_status(status_of(NAME))


def test_a_tag_that_came_along_does_not_stand_for_the_mark_of_an_override(world: World) -> None:
    """Whoever trains could set it ahead, and the release's page showed nothing in red."""
    number, reason = world.candidate(BAD), "pilot " * 900
    world.tracking.models[CANDIDATE][0].tags["scalingnote.overridden"] = reason.strip()
    approve(NAME, number, "Ada", override=reason)
    promote(NAME, no_smoke)
    page = world.tracking.descriptions[RELEASE, 1]
    assert page.startswith(f"{RED} **OVERRIDE: released although its gates said fail**")
    world.tracking.descriptions[RELEASE, 1] = page[:4_988] + " [cut off]"  # as MLflow keeps it
    promote(NAME, no_smoke)
    assert world.tracking.descriptions[RELEASE, 1] == page[:4_988] + " [cut off]"
    world.tracking.descriptions[RELEASE, 1] = "a fine release"
    promote(NAME, no_smoke)
    assert world.tracking.descriptions[RELEASE, 1].startswith(RED)


def test_mark_of_an_override_comes_back_with_the_release(world: World) -> None:
    approve(NAME, world.candidate(BAD), "Ada", override="pilot")
    promote(NAME, no_smoke)
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)
    assert RED not in render_status(status_of(NAME))
    rollback(NAME, "Bob", "slow")
    assert f"{RED} OVERRIDE: the champion was released although its gates did not pass: pilot" in render_status(status_of(NAME))
    assert override_of(world.tracking.records, 1) == ("pilot", "Ada", "fail", False)
    assert override_of(world.tracking.records, 2) is None


def test_candidate_that_passes_against_todays_champion_needs_no_reason(world: World) -> None:
    for level in (0.70, 0.75, 0.71):  # the third fails against release/2, which is taken back
        number = world.candidate({**GOOD, "student": level})
        if number < 3:
            approve(NAME, number, "Ada")
            promote(NAME, no_smoke)
    rollback(NAME, "Bob", "slow")
    world.tracking.copy_version(CANDIDATE, 3, RELEASE)  # as in the UI, which asks for no reason
    change = promote(NAME, no_smoke)
    assert (change.to_version, "Compared again: pass" in change.warnings[-1]) == (3, True)
    record = world.tracking.records[-1]
    assert (record["override"], record["verdict"]) == (None, "pass")
    assert world.tracking.descriptions == {}


def test_stale_candidate_on_other_judgements_is_to_be_built_again(world: World) -> None:
    with_better_champion(world)
    folder = world.root / "2" / "candidate"
    report = load_evaluation(folder / EVALUATION_FOLDER)
    write_report(folder / EVALUATION_FOLDER, replace(report, summary=report.summary.model_copy(update={"judgements_digest": "j2"})))
    again = decide_against(folder, 2, problem="The comparison with release/2 failed: its files are gone.")
    gates = {gate.name: gate for gate in again.decision.gates}
    assert gates["champion_non_inferior"].status == gates["champion_non_inferior[half=even]"].status == "not_decidable"
    for words in ("other judgements", "its files are gone. Build the candidate again by the same command", "release/2 is asked as well"):
        assert words in gates["champion_non_inferior"].reason


def test_champion_that_cannot_be_opened_leaves_its_gates_undecided(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with_better_champion(world)
    folder = world.root / "2" / "candidate"
    rewrite(folder, lambda content: content["config"]["policy"].update(max_p95_ratio=2.0))

    def gone(manifest: ReleaseManifest) -> None:
        raise ModelError("The weights are gone.")

    monkeypatch.setattr(timing, "open_retriever", gone)
    monkeypatch.setattr(timing, "logged_queries", lambda name, limit: [])
    gates = {gate.name: gate for gate in timing.compare_again(folder, 2).decision.gates}
    assert gates["champion_p95"].status == "not_decidable"
    assert "The comparison with release/2 failed: The weights are gone." in gates["champion_p95"].reason


def test_passed_release_is_not_marked(world: World) -> None:
    approve(NAME, world.candidate(), "Ada", override="to be sure")
    promote(NAME, no_smoke)
    assert world.tracking.descriptions == {} and world.tracking.records[0]["override"] is None
    assert world.tracking.records[0]["reason"] == "to be sure"
    assert RED not in render_history(NAME, history_of(NAME)) + render_status(status_of(NAME))


def test_override_set_as_a_tag_in_the_ui_counts_only_where_people_sign_in(world: World) -> None:
    world.tracking.copy_version(CANDIDATE, world.candidate(BAD), RELEASE)
    world.tracking.models[RELEASE][0].tags["override"] = "pilot"  # nothing tells it from one that was copied from the candidate
    with pytest.raises(PromotionError, match="scalingnote approve candidate/1 --as NAME --override REASON"):
        promote(NAME, no_smoke)
    approve(NAME, 1, "Ada", override="pilot")
    promote(NAME, no_smoke)
    record = world.tracking.records[0]
    assert (record["override"], record["override_by"], record["authentication"]) == ("pilot", "Ada", "unauthenticated")


def test_copy_without_the_digest_of_what_was_approved_is_refused(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    tags = world.tracking.models[RELEASE][0].tags
    digest = tags.pop("scalingnote.digest")
    with pytest.raises(PromotionError, match="does not name the digest"):
        promote(NAME, no_smoke)
    tags["scalingnote.digest"] = digest
    world.tracking.models[CANDIDATE][0].tags["scalingnote.digest"] = "f" * 64
    with pytest.raises(PromotionError, match="Somebody changed it after the approval"):
        promote(NAME, no_smoke)


def test_files_changed_after_the_approval_are_refused(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    rewrite(world.root / "1" / "candidate", lambda content: content.update(flow_run_id="another"))  # sealed again: consistent in itself
    with pytest.raises(PromotionError, match=r"expected the artifact .* It was replaced"):
        promote(NAME, no_smoke)
    assert world.tracking.records == []


def test_deleted_release_and_candidate(world: World) -> None:
    first, second = world.candidate(), world.candidate()
    approve(NAME, first, "Ada")
    approve(NAME, second, "Ada")
    world.tracking.delete_version(RELEASE, 2)
    world.tracking.delete_version(CANDIDATE, first)
    assert promote(NAME, no_smoke).to_version == 1  # the approval stands: the copy holds the files
    world.tracking.delete_version(RELEASE, 1)
    change = promote(NAME, no_smoke)
    assert change.status == "nothing" and "release/1, which was deleted from the registry" in change.warnings[0]
    assert world.tracking.aliases == {}


def test_what_is_pending_changes_only_with_the_registry(world: World) -> None:
    assert promotion_fingerprint(NAME) is None
    approve(NAME, world.candidate(BAD), "Ada", override="x")
    first = promotion_fingerprint(NAME)
    assert first is not None and promotion_fingerprint(NAME) == first
    world.tracking.models[RELEASE][0].tags["override"] = "y"
    assert promotion_fingerprint(NAME) not in (None, first)
    promote(NAME, no_smoke)
    assert promotion_fingerprint(NAME) is None
    world.tracking.aliases[RELEASE, "previous"] = 1
    assert promotion_fingerprint(NAME) is not None


def test_speeds_are_measured_when_the_policy_asks(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with_better_champion(world)
    folder = world.root / "2" / "candidate"
    asked: list[str] = []

    class Opened:
        def __init__(self, *doc_ids: str) -> None:
            self.index = index_in_memory(np.eye(len(doc_ids), dtype=np.float32), list(doc_ids), "space")

        def search(self, queries: list[str], k: int) -> None:
            asked.extend(queries)

    candidate = load_release(folder).pins.query_encoder
    of_candidate, of_champion = Opened("d1", "d2", "new"), Opened("d1", "d2", "d3", "d4")

    def opened(manifest: ReleaseManifest) -> Opened:
        return of_candidate if manifest.pins.query_encoder == candidate else of_champion

    monkeypatch.setattr(timing, "open_retriever", opened)
    monkeypatch.setattr(timing, "logged_queries", lambda name, limit: ["knee cyst"])
    assert timing.compare_again(folder, 2).comparison is None and asked == []

    def ask(content: dict[str, Any]) -> None:
        content["config"]["policy"]["max_p95_ratio"] = 1000.0

    rewrite(folder, ask)
    again = timing.compare_again(folder, 2)
    assert again.comparison is not None and set(asked) == {"heart attack", "knee cyst"}
    gates = {gate.name: gate.status for gate in again.decision.gates}
    assert gates["champion_p95"] == "pass"
    untimed = {gate.name: gate.status for gate in decide_against(folder, 2).decision.gates}
    assert untimed["champion_p95"] == "not_decidable"  # what the candidate was built with is about another champion

    rewrite(folder, lambda content: content["config"]["policy"].update(max_p95_ratio=None, max_removed_share=0.4))
    counted = next(gate for gate in timing.compare_again(folder, 2).decision.gates if gate.name == "removed_documents")
    assert (counted.status, counted.value) == ("not_decidable", 0.5)
    assert "Of the 4 documents of the champion 2 are gone" in counted.reason


def test_a_late_approval_that_lacks_documents_is_compared_with_todays_champion_on_those_that_both_hold(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over its own documents it is nearly as good; among those that both hold the champion is far better."""
    with_better_champion(world)
    folder = world.root / "2" / "candidate"
    folders = {"candidate": world.root / "ours", "champion": world.root / "theirs"}
    for number, copy in zip((2, 3), folders.values(), strict=True):
        shutil.copytree(world.root / str(number) / "candidate" / EVALUATION_FOLDER, copy)
    ids = sorted(load_evaluation(folders["candidate"]).per_query["query_id"].unique())
    write_trec_qrels(folders["candidate"] / QRELS, pd.DataFrame({"query_id": ids, "doc_id": "d1", "score": 1}))
    for name, found in (("candidate", ("x", "d2", "d1")), ("champion", ("d1", "gone", "d2"))):
        write_trec_run(folders[name] / "student.trec", {q: [(d, 1.0 - n / 10) for n, d in enumerate(found)] for q in ids}, "student")
    shared = values_of_runs(folders, {"candidate": Rows.of(["d1", "d2", "x"]), "champion": Rows.of(["d1", "d2", "gone"])})
    gates = {gate.name: gate for gate in decide_against(folder, 2, shared=shared).decision.gates}
    equal = gates["champion_non_inferior[documents=only those that both hold]"]
    assert (equal.status, equal.queries, equal.value) == ("fail", len(ids), pytest.approx(1 / np.log2(3) - 1))
    # The command reads what each serves from its index, and decides by that.
    read: dict[str, list[str]] = {}

    def values(_: dict[str, Path], rows: dict[str, Rows]) -> pd.DataFrame | None:
        read.update({name: [found.doc_ids[n] for n in range(found.live)] for name, found in rows.items()})
        return shared

    monkeypatch.setattr(timing, "values_of_runs", values)
    assert "shared_documents" in timing.compare_again(folder, 2).decision.inputs
    assert read == {"candidate": ["d1", "d2"], "champion": ["d1", "d2"]}


def test_history_reads_records_of_older_versions(world: World) -> None:
    world.tracking.records.append(
        {
            "sequence": 1,
            "action": "promote",
            "from_version": None,
            "to_version": 1,
            "candidate_version": 1,
            "manifest_digest": "d" * 64,
            "approved_by": "unauthenticated",
            "override": None,
            "reason": None,
            "authentication": "unauthenticated",
            "time": "2026-01-02T03:04:05+00:00",
        }
    )
    (entry,) = history_of(NAME)
    assert (entry["evidence_digest"], entry["role"], entry["overridden"]) == ("d" * 64, None, False)
    assert render_history(NAME, [entry]).splitlines() == [
        "  1  2026-01-02 03:04:05  promote: nothing -> release/1 (candidate/1)",
        "     by nobody known (unauthenticated)",
    ]
    assert render_history(NAME, []) == "Nothing of 'retriever' was promoted yet."
