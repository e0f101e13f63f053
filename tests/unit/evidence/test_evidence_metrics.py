"""The figures of a candidate and its steps as MLflow's runs show them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name

from components.artifacts import Artifact, seal, write_json
from components.evaluation.champion_comparison import write_comparison
from components.evaluation.report import write_report
from components.evidence.dossier import Compared, Dossier, Making
from components.evidence.metrics import candidate_metrics, step_metrics
from components.tracking import labels
from tests.unit.evidence_world import comparison, epochs, slices, tables, world_of
from tests.unit.promotion_world import make_evaluation


@pytest.fixture(scope="module")
def dossier(tmp_path_factory: pytest.TempPathFactory) -> Dossier:
    return world_of(tmp_path_factory)


def test_what_decides_stands_among_the_metrics_of_the_flow(dossier: Dossier) -> None:
    found = candidate_metrics(dossier)
    assert found["minus_champion/ndcg@10"] == pytest.approx(0.025)
    assert found["minus_champion/ndcg@10_low"] <= 0.025 <= found["minus_champion/ndcg@10_high"]  # type: ignore[operator]
    assert found["minus_champion_in_slices/length: short"] == pytest.approx(0.05)
    assert found["minus_champion_in_slices/length: long"] == pytest.approx(-0.2)
    assert (found["candidate/ndcg@10"], found["over_champion/p95"], found["agreement/logged_queries@10"]) == (0.75, 0.5, 0.5)
    assert found["gates/pass"] == sum(gate.status == "pass" for gate in dossier.manifest.decision.gates)
    assert found["gates/fail"] == 0
    assert found["training/towers_loss"] == (3.0, 2.0, 1.0)
    assert found["training/student_dev_ndcg@10"] == [0.1, 0.2]


def test_mlflow_takes_every_name(dossier: Dossier) -> None:
    odd = slices().replace("short", "a/../b//<\u0661> = 100 % " + "w" * 400)
    for name in candidate_metrics(replace(dossier, evaluation=replace(dossier.evaluation, slices=odd))):
        _validate_metric_name(labels.name(name))


def test_a_first_release_has_its_own_figures_only(dossier: Dossier) -> None:
    found = candidate_metrics(replace(dossier, champion=None, compared=Compared(missing="none"), making=Making()))
    assert not [name for name in found if "champion" in name or name.startswith("training")]
    assert found["candidate/recall@50"] == 0.75


def made(folder: Path, kind: str) -> Artifact:
    (folder / "data.txt").write_text("x")
    return seal(folder, kind)


def test_trainings_leave_curves(tmp_path: Path) -> None:
    write_json(tmp_path / "training_log.json", {"loss": [3.0, 2.0], "spread": {}})
    assert step_metrics(made(tmp_path, "towers")) == {"training/towers_loss": [3.0, 2.0]}
    refined = {**epochs()[1], "phase": "refine", "epoch": 1}
    write_json(tmp_path / "training_log.json", [*epochs(), refined])
    found = step_metrics(made(tmp_path, "encoder"))
    assert found["training/student_loss_align"] == [1.0, 0.5]
    assert found["training/student_loss_refine"] == [0.5]
    assert found["training/student_dev_recall@50"] == [0.2, 0.4, 0.4]


def test_measurements_leave_their_figures(tmp_path: Path) -> None:
    write_report(tmp_path, make_evaluation())
    found = step_metrics(made(tmp_path, "evaluation"))
    assert (found["teacher/ndcg@10"], found["index/recall@100_of_exact"], found["speed/student_p95_ms"]) == (0.72, 1.0, 2.0)
    assert found["retention/recall@50"] == pytest.approx(0.70 / 0.72)
    write_comparison(tmp_path, comparison(), tables())
    assert step_metrics(made(tmp_path, "comparison"))["speed/champion_queries_per_second"] == 100.0


def test_other_artifacts_have_none(tmp_path: Path) -> None:
    for kind in ("dataset", "encoder", "towers", "comparison"):
        assert step_metrics(made(tmp_path, kind)) == {}


def test_student_and_teacher_stand_against_both_baselines_in_both_metrics(dossier: Dossier) -> None:
    found = candidate_metrics(dossier)
    for system, level in (("student", 0.75), ("teacher", 0.72)):
        for baseline, other in (("bm25", 0.40), ("student_untrained", 0.30)):
            for metric in ("ndcg@10", "recall@50"):
                name = f"{system}_minus_{baseline}/{metric}"
                assert found[name] == pytest.approx(level - other)
                assert found[f"{name}_low"] <= found[name] + 1e-9 <= found[f"{name}_high"] + 2e-9  # type: ignore[operator]
