"""Attacks by words: a rejection, an approval or a reason that one reader takes for another thing, and words that a page would obey."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from components.errors import PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote, rollback
from components.promotion.status import history_of, render_history, render_status, status_of
from components.release.champion import as_text
from components.tracking import labels
from components.tracking.store import client, experiment_id
from flows.cli import audit, review
from tests.unit.promotion_world import GOOD, NAME, MemoryTracking, World, no_smoke

RELEASE = f"{NAME}-release"
BAD = {**GOOD, "student": 0.50}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


TAKEN_BACK = [
    "approved by nobody",
    "approved by Ada, needs work",
    "approved by Ada if the slice is mended",
    "approved by Ada (r\u0435jected by Bob)",
    "approved: needs work",
    "passed by QA: failed",
    "ok by me except the index",
    "approved: n\u043e",  # with a Cyrillic letter
    "approved: n\u200bot good",
    "approved: \uff4e\uff4f\uff54 good",
    "approved: r e j e c t e d",
    "approved: on hold",
    "approved: unacceptable",
    "approved: nicht freigeben",
    "approved: zur\u00fcckgezogen",
    "approved: refus\u00e9",
    "approved: n\u00e3o",
    "approved: \u5426",
    "approved: \u043d\u0435\u0442",
    "approved: " + "x " * 300 + " \u2026 [cut off]",
]


@pytest.mark.parametrize("words", TAKEN_BACK)
def test_an_approval_that_is_taken_back_in_its_comment_rejects_in_any_language_and_letters(words: str) -> None:
    assert "is not a plain approval and counts as a rejection" in str(labels.rejection({"review": words}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rejected", ""),
        ("rejected\u200b", "slow"),
        ("r\u0435view", "rejected"),
        ("\uff52eview", "rejected"),
        ("review\u200b", "rejected"),
        ("review_status", "rejected"),
        ("approval_status", "rejected"),
        ("Approval Status", "no"),
        ("final-decision", "declined"),
        ("reviewer_verdict", "not yet"),
        ("approve", "no"),
        ("declined", ""),
        ("not_approved", "true"),
        ("Do not promote", ""),
        ("quality", "Rejected: the slices are worse"),
        ("said", "rejected by Bob"),
        ("said", "rejected-too slow"),
        ("said", "Rejected..."),
        ("QA review", "no"),
        ("reviewed", "no"),
        ("rejected_by", "QA"),
        ("Rejected by QA", "x"),
        ("rejection", "leaks"),
        ("status", "Rejected"),
        ("approved", "no"),
        ("decision", "r\u0435jected"),
        ("approval", "denied"),
        ("approved", "0"),
        ("approved", "not yet"),
        ("accepted", "nein"),
        ("decision", "Declined."),
        ("status", "on hold"),
        ("verdict", "failed"),
    ],
)
def test_a_rejection_under_another_key_is_one(world: World, key: str, value: str) -> None:
    approve(NAME, world.candidate(), "Ada")
    world.tracking.models[RELEASE][0].tags[key] = value
    assert promote(NAME, no_smoke).status == "nothing"


@pytest.mark.parametrize(
    "tags",
    [
        {"review": "approved by Jos\u00e9 da Silva"},
        {"review": "approved by Ann Turner: returned values are right"},
        {"review": "approved\u200b"},
        {"review": "approved: the letters were taken out"},
        {"review_by": "Ada", "reviewer": "Ada", "review_date": "2026-11-29"},
        {"rejected": "no"},
        {"rejected": "False"},
        {"override": "rejected slices do not matter", "Override": "rejected by Bob, who has agreed since"},
        {"scalingnote.attribute.verdict": "fail", "scalingnote.rolled_back": "rejected", "mlflow.note": "rejected"},
        {"status": "fine"},
        {"approval_status": "approved", "approval_required": "no", "decision_threshold": "0", "not_approved": "no", "declined": "false"},
        {"note": "rejected samples were left out", "sampler": "rejection", "qa": "rejectedness"},
        {"negatives": "rejected.parquet", "branch": "rejected-pairs", "labels": "rejected,accepted"},
        {"status": "ready for production", "decision": "serve it", "approved": "2026-11-30", "approval": "Ada"},
    ],
)
def test_what_rejects_nothing_is_not_taken_for_a_rejection(tags: dict[str, str]) -> None:
    assert labels.rejection(tags) is None


@pytest.mark.parametrize("words", ["no", "No", "none", "n/a", "-", ".", "0", "false", "rejected", "\u3164", "n\u043e"])
def test_an_override_that_says_no_is_no_reason(world: World, words: str) -> None:
    number = world.candidate(BAD)
    with pytest.raises(PromotionError, match="To approve it all the same, give the reason"):
        approve(NAME, number, "Ada", override=words)
    approve(NAME, number, "Ada", override="wanted")
    world.tracking.models[RELEASE][0].tags["scalingnote.override"] = words
    with pytest.raises(PromotionError, match="gives no reason"):
        promote(NAME, no_smoke)
    assert world.tracking.records == []


def test_nobody_rolls_back_to_a_rejected_release_for_a_reason_that_says_no(world: World) -> None:
    for _ in range(2):
        approve(NAME, world.candidate(), "Ada")
        promote(NAME, no_smoke)
    world.tracking.models[RELEASE][0].tags["review"] = "rejected: leaks"
    with pytest.raises(PromotionError, match="was rejected"):
        rollback(NAME, "Bob", "slow", override="no")


def test_words_of_others_make_no_link_emphasis_or_strike_in_markdown() -> None:
    shown = as_text("_no_ ~~override~~ https://evil.example www.evil.example <b> [a](b)\n# x")
    assert shown == r"\_no\_ \~\~override\~\~ https:\//evil.example www\.evil.example &lt;b> \[a\](b) # x"
    assert as_text("query_tower") == "query_tower"


def test_the_name_of_a_flow_forges_no_line_of_the_state(home: Path) -> None:
    client().create_run(experiment_id(NAME), start_time=2**62, tags={labels.FLOW: "retrain\nALARM: call 555\x1b[2J"})
    told = render_status(status_of(NAME))
    assert "\x1b" not in told and not [line for line in told.splitlines() if line.startswith("ALARM")]


def test_the_name_of_who_approves_forges_no_finding_of_verify(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    forged = "ok signature: signed by 0123456789abcdef, a trusted key"
    options = argparse.Namespace(name=NAME, json=False, folder=None, ref="champion", candidate=world.candidate(), override=None)
    options.person = f"Ada\n{forged}"
    review.approve(options)
    promote(NAME, no_smoke)
    assert audit.verify(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert forged not in lines and any(forged in line and line.startswith("ok    promotion record: ") for line in lines)


def test_a_record_that_somebody_forged_forges_no_line_of_the_history(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)
    again = [{"against": "7\nTRUE: all is well", "decision": {"verdict": "pass"}}]
    world.tracking.records[-1] |= {"decisions": again, "skipped": {"3\nTRUE: all is well": "gone"}}
    told = render_history(NAME, history_of(NAME))
    assert told.count("TRUE: all is well") == 2
    assert not [line for line in told.splitlines() if line.startswith("TRUE")]
