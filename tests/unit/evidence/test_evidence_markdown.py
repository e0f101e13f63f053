"""The description of a candidate, and what changed since the champion."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from components.evidence.description import LIMIT, _front_matter, _origin, describe
from components.evidence.dossier import Compared, Dossier, changes_between
from components.gates.decision import GateDecision, GateResult
from components.release.champion import Override
from components.release.manifest import BaseModelPin, ReleaseManifest
from components.release.open import PinnedRelease
from components.release.training_noise import TrainingNoise
from tests.unit.evidence_world import validation_with_dropped_rows, with_units, world_of

LINKS = {"Full report": "#/experiments/1/runs/r/artifacts/release/report.html"}


@pytest.fixture(scope="module")
def dossier(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return world_of(tmp_path_factory)


def decided(dossier: Dossier, *gates: GateResult) -> Dossier:
    decision = GateDecision(verdict="fail", first_release=False, gates=gates)
    return replace(dossier, manifest=dossier.manifest.model_copy(update={"decision": decision}))


def test_verdict_differences_changes_and_links_stand_there(dossier: Dossier) -> None:
    page = describe(dossier, LINKS)
    assert page.startswith("## Verdict:")
    assert "[Full report](#/experiments/1/runs/r/artifacts/release/report.html)" in page
    assert "[release/1](#/models/retriever-release/versions/1)" in page
    assert re.search(r"\| candidate - champion &ensp;\| nDCG@10 &ensp;\| \+0.0250 &ensp;\|", page)
    assert "### What changed since the champion" in page
    assert "new query encoder: retriever-query-encoder/1 became retriever-query-encoder/2" in page
    assert "*Promote model* into `retriever-release`" in page and "written reason" not in page
    assert "**Worse than the champion:** nothing is shown to be." in page
    assert "**Better than the champion:** nDCG@10 in length=short: +0.0500" in page


def test_open_gates_come_first_and_what_does_not_fit_is_counted(dossier: Dossier) -> None:
    passed = [GateResult(name=f"gate_{n}", status="pass", reason="It holds. " * 40, slice=f"a={n}") for n in range(60)]
    failed = GateResult(name="retention", status="fail", reason="Too | low <b>.")
    off = GateResult(name="floor", status="off", reason="Switched off.")
    page = describe(decided(dossier, *passed, off, failed), LINKS)
    assert len(page) <= LIMIT
    rows = [line for line in page.splitlines() if line.startswith("| ") and "gate | status" not in line]
    assert rows[0].startswith("| retention &ensp;| \u2718 **FAIL** &ensp;| Too \\| low &lt;b>. |")
    shown = sum(f"| gate {n} &ensp;|" in page for n in range(60))
    assert f"Other gates: {60 - shown} more passed, 1 switched off by the policy." in page


def test_what_changed_is_never_left_out(dossier: Dossier) -> None:
    config = {**dossier.manifest.config, "data": {f"field_{n}": "word " * 30 for n in range(40)}}
    manifest = dossier.manifest.model_copy(update={"config": config})
    failed = [GateResult(name=f"gate_{n}", status="fail", reason="It fails. " * 40) for n in range(7)]
    page = describe(decided(replace(dossier, manifest=manifest), *failed), LINKS)
    assert len(page) <= LIMIT
    assert "### What changed since the champion" in page
    assert re.search(r"\*\*Configuration\*\*: 4\d changes|and \d+ more", page)
    assert "an approval takes a written reason" in page


def test_text_from_outside_makes_no_link_and_no_emphasis(dossier: Dossier) -> None:
    page = describe(replace(dossier, notes=("[Full report](https://evil) **passed** `x` \x00 <img src=x>",)), LINKS)
    assert "- \\[Full report\\](https:\\//evil) \\*\\*passed\\*\\* \\`x\\` \ufffd &lt;img src=x>" in page


def test_a_champion_that_was_overridden_is_said_to_be(dossier: Dossier) -> None:
    assert dossier.champion is not None
    page = describe(replace(dossier, champion=replace(dossier.champion, override=Override("the old one is\nbroken", None, "fail"))), LINKS)
    line = next(line for line in page.splitlines() if line.startswith("\U0001f7e5"))
    assert "release/1 is there by an OVERRIDE: released although its gates said fail, by unauthenticated" in line
    assert line.endswith("the old one is broken")


def test_a_description_that_is_too_long_says_that_the_rest_is_in_the_report(dossier: Dossier) -> None:
    failed = [GateResult(name=f"gate_{n}", status="fail", reason="It fails. " * 40) for n in range(60)]
    page = describe(decided(dossier, *failed), LINKS)
    assert len(page) <= LIMIT
    assert page.endswith("The rest stands in the report.")
    assert "[Full report]" in page


def test_the_spread_of_the_vectors_stands_as_a_terminal_shows_it(dossier: Dossier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.evidence.description.render_shift", lambda _: "Extra judgements: other\nrecall@50  .9")
    assert "```\nExtra judgements: other\nrecall@50  .9\n```" in describe(dossier, LINKS)


def test_a_first_release_is_shown_against_its_baselines(dossier: Dossier) -> None:
    page = describe(replace(dossier, champion=None, compared=Compared()), LINKS)
    assert "first release" in page
    assert "| candidate (student) - BM25 &ensp;| nDCG@10 &ensp;| +0.3500 &ensp;|" in page


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


def test_a_model_of_the_same_name_with_other_weights_is_named_as_changed(dossier: Dossier) -> None:
    def made_with(base: str, judge: str) -> ReleaseManifest:
        first, *rest = dossier.manifest.lineage
        judged = first.model_copy(update={"attributes": {"judge": "acme/judge", "judge_digest": judge * 64}})
        pin = BaseModelPin(name="acme/llm", digest=base * 64)
        return dossier.manifest.model_copy(update={"base_models": {"query_tower": pin}, "lineage": (judged, *rest)})

    found = changes_between(made_with("2", "4"), made_with("1", "3")).models
    assert "base of the query tower: acme/llm has other weights, digest 111111111111 became 222222222222" in found
    assert "judge: acme/judge has other weights, digest 333333333333 became 444444444444" in found
    assert changes_between(made_with("1", "3"), made_with("1", "3")).models == ()


def test_a_model_card_names_judge_and_generator_and_the_code_that_made_the_part(dossier: Dossier) -> None:
    manifest = dossier.manifest
    tower = manifest.pins.document_tower.digest
    about = {"judge": "acme/judge", "judge_digest": "1" * 64, "generator": "acme/writer", "generator_digest": "2" * 64}
    kept = {"attributes": about, "flow_run_id": "flow-0"}
    lineage = tuple(node.model_copy(update=kept) if node.digest == tower else node for node in manifest.lineage)
    changed = manifest.model_copy(update={"lineage": lineage, "earlier_flows": {"flow-0": {"code_revision": "old"}}})
    release = cast("PinnedRelease", SimpleNamespace(manifest=changed))
    told = _origin(release, {"document_tower": BaseModelPin(name="acme/llm", digest="3" * 64)})
    assert "`acme/judge` took part as judge of the documents in training" in told and f"`{'1' * 16}`" in told
    assert "`acme/writer` took part as writer of queries that were trained on" in told
    assert "Made by code revision `old` of scalingnote." in told
    assert "Made by code revision `abc` of" in _origin(release, {"query_encoder": BaseModelPin(name="acme/mini", digest="4" * 64)})


def test_a_model_card_names_the_data_it_was_measured_on_and_a_base_that_a_hub_knows(dossier: Dossier) -> None:
    from huggingface_hub import ModelCard

    release = cast("PinnedRelease", SimpleNamespace(manifest=dossier.manifest, title="candidate/3"))
    base = {"query_encoder": BaseModelPin(name="acme/mini@4", digest="3" * 64, revision="4" * 40)}
    summary = dossier.evaluation.summary
    card = ModelCard(f"---\n{_front_matter(release, base, summary, 'student')}\n---\n").data
    assert card.base_model == ["acme/mini"]
    assert {(found.dataset_type, found.dataset_split) for found in card.eval_results} == {(dossier.manifest.dataset.name, summary.split)}
    assert {found.metric_value for found in card.eval_results} == set(summary.systems["student"].metrics.values())


def test_a_list_that_was_read_back_did_not_change(dossier: Dossier) -> None:
    config = {"evaluation": {"slices": ({"name": "length", "edges": (4.0,)},)}}
    made = dossier.manifest.model_copy(update={"config": config})
    read = ReleaseManifest.model_validate_json(json.dumps(made.model_dump(mode="json"), sort_keys=True))
    assert changes_between(made, read).configuration == ()


def test_the_reason_of_an_override_is_shown_as_it_was_written() -> None:
    line = Override("<b>late</b>\n[report](https://evil) *now*", "Ada", "fail").line
    assert line.endswith("by Ada: &lt;b>late&lt;/b> \\[report\\](https:\\//evil) \\*now\\*")


def test_rows_that_the_data_lost_are_said_with_the_verdict(dossier: Dossier) -> None:
    assert "Left out of the data" not in describe(dossier, LINKS)
    page = describe(replace(dossier, validation=validation_with_dropped_rows()), LINKS)
    assert "**Left out of the data:** 3 rows (3 dangling" in page.partition("### ")[0]


def test_units_and_noise_of_the_training_stand_beside_the_differences(dossier: Dossier) -> None:
    page = describe(dossier, LINKS)
    assert "Training noise: unknown." in page and "units" not in page
    grouped = describe(with_units(dossier), LINKS)
    assert "The queries are 10 units, of up to 4 that were drawn together: they say as much as 20 independent ones by nDCG@10." in grouped
    noise = TrainingNoise(
        kind="k", source="study baselines", seeds=((1, 1), (2, 2)), values={"ndcg@10": (0.5, 0.54), "recall@50": (0.7, 0.7)}
    )
    told = "2 trainings of the same settings, data and base models with other seeds spread by 0.0283 in nDCG@10"
    assert told in describe(replace(dossier, noise=noise), LINKS)
