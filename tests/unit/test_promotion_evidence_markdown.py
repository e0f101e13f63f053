"""The description of a candidate, and what changed since the champion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from components.promotion.decision import GateDecision, GateResult
from components.promotion.evidence import Compared, Dossier
from components.promotion.evidence_changes import changes_between
from components.promotion.evidence_markdown import LIMIT, describe
from components.promotion.evidence_report import render_report
from components.promotion.marks import RED, Override
from tests.unit.evidence_world import make_dossier

LINKS = {"Full report": "#/experiments/1/runs/r/artifacts/release/report.html"}


@pytest.fixture
def dossier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dossier:
    return make_dossier(tmp_path, monkeypatch)


def decided(dossier: Dossier, *gates: GateResult) -> Dossier:
    decision = GateDecision(verdict="fail", first_release=False, gates=gates)
    return replace(dossier, manifest=dossier.manifest.model_copy(update={"decision": decision}))


def test_verdict_differences_changes_and_links_stand_there(dossier: Dossier) -> None:
    page = describe(dossier, LINKS)
    assert page.startswith("## Verdict:")
    assert "[Full report](#/experiments/1/runs/r/artifacts/release/report.html)" in page
    assert "[release/1](#/models/retriever-release/versions/1)" in page
    assert "| candidate - champion | nDCG@10 | +0.0250 |" in page
    assert "### What changed since the champion" in page
    assert "new query encoder: retriever-query-encoder/1 became retriever-query-encoder/2" in page
    assert "*Promote model* into `retriever-release`" in page


def test_a_champion_that_is_there_by_an_override_is_marked_in_red(dossier: Dossier) -> None:
    assert RED not in describe(dossier, LINKS) + render_report(dossier)
    assert dossier.champion is not None
    marked = replace(dossier, champion=replace(dossier.champion, override=Override("pilot\n<b>ward</b>", None, "fail")))
    told = "released although its gates said fail"
    assert f"{RED} **OVERRIDE: this champion was {told}**, by unauthenticated: pilot &lt;b>ward&lt;/b>\n" in describe(marked, LINKS)
    page = render_report(marked)
    assert f"{RED} The champion, release/1, is there by an OVERRIDE: {told}, by unauthenticated: pilot &lt;b&gt;ward" in page


def test_open_gates_come_first_and_what_does_not_fit_is_counted(dossier: Dossier) -> None:
    passed = [GateResult(name=f"gate_{n}", status="pass", reason="It holds. " * 40, slice=f"a={n}") for n in range(60)]
    failed = GateResult(name="retention", status="fail", reason="Too | low <b>.")
    off = GateResult(name="floor", status="off", reason="Switched off.")
    page = describe(decided(dossier, *passed, off, failed), LINKS)
    assert len(page) <= LIMIT
    rows = [line for line in page.splitlines() if line.startswith("| ") and "gate | status" not in line]
    assert rows[0].startswith("| retention | \u2718 **FAIL** | Too \\| low &lt;b>. |")
    shown = page.count("| gate 0 |") + sum(f"| gate {n} |" in page for n in range(1, 60))
    assert f"Other gates: {60 - shown} more passed, 1 switched off by the policy." in page


def test_a_description_that_is_too_long_says_that_the_rest_is_in_the_report(dossier: Dossier) -> None:
    failed = [GateResult(name=f"gate_{n}", status="fail", reason="It fails. " * 40) for n in range(60)]
    page = describe(decided(dossier, *failed), LINKS)
    assert len(page) <= LIMIT
    assert page.endswith("The rest stands in the report.")
    assert "[Full report]" in page


def test_the_spread_of_the_vectors_stands_as_a_terminal_shows_it(dossier: Dossier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.promotion.evidence_markdown.render_shift", lambda _: "Extra judgements: other\nrecall@50  .9")
    assert "```\nExtra judgements: other\nrecall@50  .9\n```" in describe(dossier, LINKS)


def test_a_first_release_is_shown_against_its_baselines(dossier: Dossier) -> None:
    page = describe(replace(dossier, champion=None, compared=Compared()), LINKS)
    assert "first release" in page
    assert "| candidate (student) - BM25 | nDCG@10 | +0.3500 |" in page


def test_changes_name_data_code_configuration_and_models(dossier: Dossier) -> None:
    assert dossier.champion is not None
    old = dossier.champion.manifest
    data = old.dataset.model_copy(update={"digest": "e" * 64, "contracts": {"documents": "2.0.0"}})
    new = old.model_copy(
        update={
            "dataset": data,
            "provenance": {**old.provenance, "code_revision": "def", "packages": {"numpy": "3"}},
            "config": {**old.config, "towers": {"steps": 5, "precision": None}},
        }
    )
    found = changes_between(new, old)
    assert "contract documents: 1.0.0 -> 2.0.0" in found.data
    assert "revision: abc -> def" in found.code
    assert "numpy: 2 -> 3" in found.code
    assert found.configuration == ("towers.steps: none -> 5",)
    assert found.models == ()
    assert all(not lines for lines in changes_between(old, old).subjects().values())
