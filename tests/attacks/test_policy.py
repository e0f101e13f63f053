"""Attacks on the gates: a policy of one's own, a split that the models know, a comparison that is left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from components.artifacts import open_artifact, read_json, seal, write_json
from components.errors import ArtifactError, ConfigError, PromotionError
from components.evaluation.config import EvaluationConfig
from components.evaluation.report import load_evaluation
from components.gates.config import PolicyConfig
from components.gates.decide import GateDecision, GateInputs, decide
from components.gates.decision import Findings
from components.gates.policy import allowed_policies, foreign_policy, policy_digest, recorded_policy
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.promotion.status import history_of, render_history, render_status, status_of
from components.promotion.verification import verify_release
from components.release.champion import RED, champion_to_compare_with, override_of
from components.release.manifest import EVALUATION_FOLDER, load_release
from components.tracking import promotion_records as record_store
from components.tracking.server.permissions import POLICY_VARIABLE
from components.tracking.store import client
from flows.refresh_index import RefreshConfig, open_base
from flows.retrain import retrain
from tests.unit.promotion_world import FACTS, GOOD, NAME, POLICY, MemoryTracking, World, make_comparison, make_evaluation, no_smoke, rewrite


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def install(folder: Path, *policies: PolicyConfig) -> Path:
    folder.mkdir(exist_ok=True)
    for number, policy in enumerate(policies):
        (folder / f"{number}.yaml").write_text(yaml.safe_dump(policy.model_dump(mode="json")))
    return folder


STRICT = POLICY.model_copy(update={"version": "strict", "min_retention": 0.99})


def test_a_candidate_that_chose_its_own_gates_is_not_approved_or_promoted(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = world.candidate()
    monkeypatch.setenv(POLICY_VARIABLE, str(install(tmp_path / "policies", STRICT)))
    with pytest.raises(PromotionError, match="passed gates that are not this installation's"):
        approve(NAME, number, "Ada")
    monkeypatch.delenv(POLICY_VARIABLE)
    approve(NAME, number, "Ada")  # as a reviewer whose environment names no policy
    monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path / "policies"))
    with pytest.raises(PromotionError, match="which is none of this installation's"):
        promote(NAME, no_smoke)
    assert world.tracking.records == []


def test_an_override_of_the_policy_is_recorded_and_shown_in_red(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY_VARIABLE, str(install(tmp_path / "policies", STRICT)))
    approve(NAME, world.candidate(), "Ada", override="pilot")
    promote(NAME, no_smoke)
    record = world.tracking.records[-1]
    assert "none of this installation's" in record["foreign_policy"] and record["override"] == "pilot"
    found = override_of(world.tracking.records, 1)
    assert found is not None and "by a policy that is not the installation's" in found.what
    line = next(line for line in render_history(NAME, history_of(NAME)).splitlines() if RED in line)
    assert "by a policy that is not the installation's: pilot" in line
    assert world.tracking.models[f"{NAME}-release"][0].tags["scalingnote.overridden"] == "pilot"
    said = render_status(status_of(NAME))
    assert found.verdict == "pass" and "the champion was released by a policy that is not the installation's: pilot" in said
    check = next(check for check in verify_release(NAME, "champion") if check.name == "policy")
    assert check.ok and check.detail.startswith(f"{RED} let through by Ada: pilot")


def test_a_policy_that_was_installed_after_the_release_shows_in_verify(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)
    assert "this installation names none" in next(check.detail for check in verify_release(NAME, "champion") if check.name == "policy")
    monkeypatch.setenv(POLICY_VARIABLE, str(install(tmp_path / "policies", STRICT)))
    assert not next(check.ok for check in verify_release(NAME, "champion") if check.name == "policy")
    install(tmp_path / "policies", STRICT, POLICY)  # the earlier one is kept beside
    assert next(check.ok for check in verify_release(NAME, "champion") if check.name == "policy")


def test_every_gate_switched_off_is_another_policy_though_its_version_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY_VARIABLE, str(install(tmp_path / "policies", PolicyConfig())))
    loose = PolicyConfig(min_retention=0.0001, margin=0.5, beat_bm25=False, beat_untrained=False, min_ann_recall=None, min_power=None)
    assert loose.version == PolicyConfig().version
    assert foreign_policy(PolicyConfig()) is None and "none of this installation's" in str(foreign_policy(loose))


def test_the_policy_of_an_older_version_is_allowed_by_a_file_that_says_what_it_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: value for key, value in POLICY.model_dump(mode="json").items() if key != "split"}
    monkeypatch.setenv(POLICY_VARIABLE, str(install(tmp_path / "policies", POLICY)))
    assert "none of this installation's" in str(foreign_policy(before))
    install(tmp_path / "policies", POLICY, POLICY.model_copy(update={"split": None}))
    assert foreign_policy(before) is None


def written(folder: Path, policy: dict[str, object]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "installed.yaml").write_text(yaml.safe_dump(policy))
    return str(folder)


LATER = ("teacher_worth", "same_teacher_share", "baseline_metrics", "baseline_margin", "max_removed_share", "own_units")


def test_a_file_of_before_a_gate_was_there_still_allows_what_it_promoted_and_no_candidate_that_leaves_the_gate_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: value for key, value in POLICY.model_dump(mode="json").items() if key not in LATER}
    monkeypatch.setenv(POLICY_VARIABLE, written(tmp_path / "policies", before))
    assert foreign_policy(before, promoted=True) is None
    assert "none of this installation's" in str(foreign_policy(before))  # it could have dropped the fields to be spared the gates
    assert foreign_policy(PolicyConfig.model_validate({**before})) is None  # what is built today asks for the new gates
    assert foreign_policy({**before, "min_retention": 0.01}, promoted=True) is not None
    # A file that asks for the gate by name asks it of every release.
    monkeypatch.setenv(POLICY_VARIABLE, written(tmp_path / "policies", {**before, "teacher_worth": True}))
    assert foreign_policy(before, promoted=True) is not None


def test_an_older_release_verifies_after_the_program_has_learned_new_gates(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {key: value for key, value in POLICY.model_dump(mode="json").items() if key not in LATER}
    approve(NAME, older_candidate(world, before), "Ada")
    promote(NAME, no_smoke)
    monkeypatch.setenv(POLICY_VARIABLE, written(tmp_path / "policies", before))
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []


def test_an_older_release_whose_teacher_was_the_downloaded_encoder_is_still_what_it_was_let_through_as(world: World) -> None:
    before = {key: value for key, value in POLICY.model_dump(mode="json").items() if key != "same_teacher_share"}
    number = older_candidate(world, before, {"teacher": 0.70, "student_untrained": 0.70})
    approve(NAME, number, "Ada", "these are adopted vectors")
    promote(NAME, no_smoke)
    decision = load_release(world.tracking.artifact_folder(f"{NAME}-release", 1)).decision
    failed = {gate.name for gate in decision.gates if gate.status == "fail"}
    assert "teacher_worth[student_untrained]" in failed  # which today's gates would pass
    assert [check for check in verify_release(NAME, "champion") if not check.ok] == []


def older_candidate(world: World, policy: dict[str, object], levels: Mapping[str, float] | None = None) -> int:
    """A candidate as a version left it that knew these fields alone; by the gates of today it would be decided otherwise."""
    number = world.candidate({**GOOD, **(levels or {"teacher": 0.70, "student_untrained": 0.695})})
    folder = world.root / str(number) / "candidate"

    def older(content: dict[str, Any]) -> None:
        report = load_evaluation(folder / EVALUATION_FOLDER)
        decision = decide(GateInputs(report, facts=FACTS), recorded_policy({"policy": policy})).model_dump(mode="json")
        content["config"]["policy"], content["decision"] = policy, {**decision, "policy_digest": policy_digest(policy)}

    rewrite(folder, older)
    world.tracking.models[f"{NAME}-candidate"][number - 1].tags["scalingnote.digest"] = open_artifact(folder).digest
    return number


def decided(facts: Findings, policy: PolicyConfig = POLICY) -> GateDecision:
    return decide(GateInputs(make_evaluation(), facts=facts), policy)


def test_a_foreign_policy_is_an_open_gate_of_the_candidate() -> None:
    assert decided(FACTS).verdict == "pass"
    assert decided(FACTS.model_copy(update={"foreign_policy": ""})).verdict == "pass"
    refused = decided(FACTS.model_copy(update={"foreign_policy": "Another policy."}))
    assert [gate.name for gate in refused.open_gates()] == ["policy"] and refused.verdict == "fail"


def test_gates_on_another_split_than_the_policys_are_open() -> None:
    other = decided(FACTS, POLICY.model_copy(update={"split": "dev"}))
    assert [gate.name for gate in other.open_gates()] == ["split"]
    assert "Measured on the split 'test'; the policy asks 'dev'" in other.open_gates()[0].reason
    assert decided(FACTS, POLICY.model_copy(update={"split": None})).verdict == "pass"


@pytest.mark.parametrize("split", ["train", "Train", " train "])
def test_no_gate_is_measured_on_what_the_models_were_trained_on(split: str) -> None:
    for values in ({"split": split}, {"extra_splits": ("ood", split)}):
        with pytest.raises(ValidationError, match="trained on the split 'train'"):
            EvaluationConfig.model_validate(values)


def test_the_policy_of_an_older_release_asks_for_no_split() -> None:
    before = {key: value for key, value in POLICY.model_dump(mode="json").items() if key != "split"}
    assert recorded_policy({"policy": before}).split is None


@pytest.mark.parametrize("content", [None, "", "[1]", "min_retention: high", "unknown: 1", "a: [", "\udc80"])
def test_a_policy_that_is_none_is_refused_and_never_taken_for_no_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    place = tmp_path / "policy.yaml"
    if content is not None:
        place.write_bytes(content.encode(errors="surrogateescape"))
    monkeypatch.setenv(POLICY_VARIABLE, str(place))
    with pytest.raises(ConfigError, match=POLICY_VARIABLE):
        allowed_policies()


def test_a_folder_without_policies_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="no folder of them"):
        allowed_policies()


@pytest.mark.parametrize("place", ["~nobody-of-this-name/policies", "p" * 5000])
def test_a_place_that_cannot_be_is_refused_and_never_taken_for_no_policy(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv(POLICY_VARIABLE, place)
    with pytest.raises(ConfigError, match=POLICY_VARIABLE):
        allowed_policies()


def test_equal_parts_with_another_evaluation_or_policy_are_compared_with_the_champion(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    promote(NAME, no_smoke)
    manifest = load_release(world.tracking.artifact_folder(f"{NAME}-release", 1))
    pins = {role: pin.digest for role, pin in manifest.pins.items()}
    assert champion_to_compare_with(NAME, pins, manifest.evaluation.digest, POLICY) is None  # the champion itself, built again
    for evaluation, policy in (("0" * 64, POLICY), (manifest.evaluation.digest, STRICT)):
        found = champion_to_compare_with(NAME, pins, evaluation, policy)
        assert found is not None and found.version == 1


def test_higher_scores_from_fewer_documents_are_not_decided_on() -> None:
    evidence = GateInputs(make_evaluation(), make_evaluation(), make_comparison(removed=500), FACTS, champion=1)
    decision = decide(evidence, PolicyConfig(min_queries=20, min_slice_queries=15))
    assert decision.verdict != "pass"
    (gate,) = (found for found in decision.gates if found.name == "removed_documents")
    assert gate.status == "not_decidable" and "500 are gone" in gate.reason


@pytest.mark.parametrize("broken", ["policy", "records"])
def test_a_candidate_that_could_not_be_registered_is_refused_before_it_is_built(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("The work has begun.")

    monkeypatch.setattr("flows.retrain.recorded_flow", work)
    monkeypatch.setattr("components.release.open.open_pinned", work)
    monkeypatch.setattr("components.release.open.resolve", lambda *_: None)  # the release is there
    changes = (
        lambda: retrain.fn(preset="smoke", name=NAME),
        lambda: open_base(RefreshConfig(name=NAME, release="release/1")),
    )
    for change in changes:
        with pytest.raises(AssertionError, match="has begun"):
            change()
    if broken == "policy":
        monkeypatch.setenv(POLICY_VARIABLE, str(tmp_path / "gone.yaml"))
    else:
        record_store.append_record(NAME, {"action": "promote", "to_version": 1})
        experiment = client().get_experiment_by_name(f"{NAME}-promotions")
        assert experiment is not None
        client().rename_experiment(experiment.experiment_id, "elsewhere")
    for change in changes:
        with pytest.raises((ConfigError, ArtifactError), match=r"no YAML file with a policy|is named 'elsewhere' now"):
            change()


@pytest.mark.parametrize("part", ["evaluation", "validation"])
def test_a_report_that_states_what_was_not_found_is_shown_and_not_promoted(world: World, part: str) -> None:
    """The trainer writes the evidence: a retention and a speed-up that no value gives, or broken rules that the gates hear nothing of."""
    number = world.candidate()
    folder = world.root / "1" / "candidate"
    content = read_json(folder / part / "report.json")
    if part == "evaluation":
        content["speed"]["speed_up"], content["retention"]["ndcg@10"] = 90.0, 1.0
    else:
        rule = {"contract": "documents", "version": "1.0.0", "table": "documents", "rule": "r", "severity": "error", "requirement": "R."}
        content["results"] = [{**rule, "passed": False, "count": 3, "checked": 9}]
    write_json(folder / part / "report.json", content)
    known = open_artifact(folder / part)
    digest = seal(folder / part, known.kind, counts=known.counts, parents=known.parents, attributes=known.attributes).digest
    rewrite(folder, lambda manifest: manifest["evaluation"].update(digest=digest) if part == "evaluation" else None)
    world.tracking.models[f"{NAME}-candidate"][0].tags["scalingnote.digest"] = open_artifact(folder).digest
    failed = {check.name: check.detail for check in verify_release(NAME, "candidate/1") if not check.ok}
    assert ("retention of ndcg@10" if part == "evaluation" else "It found 1 errors and 0 warnings") in failed[part]
    approve(NAME, number, "Ada")
    with pytest.raises(PromotionError, match="does not verify, nothing was changed"):
        promote(NAME, no_smoke)
