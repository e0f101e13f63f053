"""Distillation with pruning, mined refinement and sources: what is trained, chosen, written down, and continued after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from components.artifacts import read_json
from components.distillation.config import DistillationConfig
from components.distillation.plan import collapse_signs, retention_of, spread_of
from components.distillation.student import load_student
from components.distillation.train import LOG, Distillation, DistillationData, train_student
from components.errors import CollapseError, DataError
from components.towers.contract import Spread
from tests.training.student_world import word_data
from tests.training.tiny_world import queries

CONFIG = DistillationConfig(
    student="tiny-encoder",
    epochs=2,
    prune_to=(1,),
    prune_epochs=2,
    refine_epochs=2,
    refine_negatives="mined",
    refine_depth=8,
    batch_size=16,
    learning_rate=3e-3,
    refine_learning_rate=1e-3,
    precision="float32",
)


@pytest.fixture
def data() -> DistillationData:
    """The word teacher with its dev vectors; a quarter of the texts counts as titles."""
    plain = word_data()
    dev = replace(plain.dev, teacher=plain.teacher[::4])
    return replace(plain, dev=dev, sources=["train"] * 48 + ["titles"] * 16)


def test_a_pruned_student_has_the_layers_asked_for_and_comes_from_a_pruned_epoch(
    home: Path, data: DistillationData, tmp_path: Path
) -> None:
    artifact = train_student(data, CONFIG, {}, tmp_path)
    log = read_json(tmp_path / LOG)
    assert [(entry["phase"], entry["epoch"], entry["layers"]) for entry in log] == [
        ("align", 1, 2),
        ("align", 2, 2),
        ("align at 1 layers", 1, 1),
        ("align at 1 layers", 2, 1),
        ("refine", 1, 1),
        ("refine", 2, 1),
    ]
    best = max(log[2:], key=lambda entry: entry["score"])
    assert artifact.attributes["chosen"] == f"{best['phase']} {best['epoch']}"
    assert artifact.attributes["layers"] == load_student(tmp_path).layer_count == 1


@pytest.mark.parametrize(("epochs", "trained_layers"), [(1, None), (2, None), (3, None), (5, None), (2, 1), (5, 1)])
def test_a_run_killed_after_any_phase_gives_the_student_of_a_straight_one(
    home: Path, data: DistillationData, tmp_path: Path, epochs: int, trained_layers: int | None
) -> None:
    config = CONFIG.model_copy(update={"trained_layers": trained_layers})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    train_student(data, config, {}, straight)
    first = Distillation(data, config, killed)
    whole, first.epochs = first.epochs, first.epochs[:epochs]
    first.to_end()
    assert len(whole) == 6
    train_student(data, config, {}, killed)
    ours, theirs = load_student(killed, "float32"), load_student(straight, "float32")
    np.testing.assert_allclose(ours.encode(queries()), theirs.encode(queries()), atol=1e-6)
    assert read_json(killed / LOG) == read_json(straight / LOG)


def test_layers_below_the_trained_ones_stay_as_they_were_and_cost_no_gradient(home: Path, data: DistillationData, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"trained_layers": 1, "prune_to": ()})
    run = Distillation(data, config, tmp_path)
    before = {name: p.detach().clone() for name, p in run.student.model.named_parameters()}
    lower, upper = run.student.model.encoder.layer
    seen: list[bool] = []
    for module in (lower.output, upper.output):
        module.register_forward_hook(lambda module, given, made: seen.append(made.requires_grad))
    run.to_end()
    moved = {name for name, p in run.student.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(name.startswith("encoder.layer.1.") for name in moved)
    assert run.history[-1]["ndcg@10"] > run.history[0]["ndcg@10"] - 0.1
    assert set(zip(seen[::2], seen[1::2], strict=True)) <= {(False, True), (False, False)}


def test_gradients_of_the_trained_layers_are_those_of_the_whole_student(home: Path, data: DistillationData, tmp_path: Path) -> None:
    found = []
    for trained_layers in (1, None):
        (folder := tmp_path / str(trained_layers)).mkdir()
        run = Distillation(data, CONFIG.model_copy(update={"trained_layers": trained_layers}), folder)
        run._new_optimizer()
        run._align(np.arange(16), (0, 0, 0)).backward()
        named = [*run.student.model.named_parameters(), *run.student.head.named_parameters()]  # type: ignore[union-attr]
        found.append({name: p.grad for name, p in named if p.grad is not None})
    few, every = found
    assert set(few) < set(every)
    for name, gradient in few.items():
        torch.testing.assert_close(gradient, every[name])


@pytest.mark.parametrize("beside", [{"form": "static"}, {"train_embeddings": True}])
def test_trained_layers_cannot_stand_beside_trained_embeddings(beside: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="trained_layers leaves the embeddings"):
        DistillationConfig(trained_layers=1, **beside)


def test_a_static_student_goes_the_same_way_and_continues_too(home: Path, data: DistillationData, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"form": "static", "prune_to": ()})
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    artifact = train_student(data, config, {}, tmp_path / "straight")
    first = Distillation(data, config, tmp_path / "killed")
    first.epochs = first.epochs[:3]
    first.to_end()
    train_student(data, config, {}, tmp_path / "killed")
    assert artifact.attributes["layers"] == 0
    assert read_json(tmp_path / "killed" / LOG) == read_json(tmp_path / "straight" / LOG)


def test_sources_and_shares_stand_in_the_artifact(home: Path, data: DistillationData, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"source_shares": {"train": 0.5, "titles": 0.5}, "prune_to": (), "refine_epochs": 0})
    artifact = train_student(data, config, {}, tmp_path)
    assert artifact.counts == {"queries": 64, "source_train": 48, "source_titles": 16}
    assert (artifact.attributes["share_train"], artifact.attributes["share_titles"]) == (0.5, 0.5)


def test_a_share_without_texts_is_refused_before_training(home: Path, data: DistillationData, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"source_shares": {"unlabelled": 1.0}})
    with pytest.raises(DataError, match="'unlabelled'"):
        train_student(data, config, {}, tmp_path)
    assert list(tmp_path.glob("checkpoint*")) == []


def test_matching_similarities_alone_brings_the_student_nearer_to_the_teachers_order(
    home: Path, data: DistillationData, tmp_path: Path
) -> None:
    weights = {"mse_weight": 0.0, "cosine_weight": 0.0, "similarity_weight": 1.0, "similarity_documents": 32}
    run = Distillation(data, CONFIG.model_copy(update={**weights, "epochs": 4, "prune_to": (), "refine_epochs": 0}), tmp_path)
    run.to_end()
    losses = [entry["loss"] for entry in run.history]
    assert losses[-1] < 0.7 * losses[0]


def test_the_log_follows_the_spread_and_the_share_of_the_teachers_dev_metrics(home: Path, data: DistillationData, tmp_path: Path) -> None:
    artifact = train_student(data, CONFIG.model_copy(update={"prune_to": ()}), {}, tmp_path)
    entry = read_json(tmp_path / LOG)[-1]
    assert -1 <= entry["mean_cosine"] <= 1 <= entry["effective_rank"] <= 16
    assert 0 < entry["retention_recall@50"] <= 1.5
    assert isinstance(entry["collapse_signs"], list)
    assert "dev_retention_ndcg_at_10" in artifact.attributes


def test_bounds_of_the_configuration_refuse_a_collapsed_student(home: Path, data: DistillationData, tmp_path: Path) -> None:
    short = {"epochs": 1, "prune_to": (), "refine_epochs": 0}
    with pytest.raises(CollapseError, match="mean cosine"):
        train_student(data, CONFIG.model_copy(update={**short, "max_mean_cosine": 0.0001}), {}, tmp_path)
    # 16 dev queries can have an effective rank of 16 at most, and half of that is asked for.
    wide = replace(data, dev=replace(data.dev, queries=[queries()[0]] * 16))
    with pytest.raises(CollapseError, match="effective rank of 1"):
        train_student(wide, CONFIG.model_copy(update={**short, "max_mean_cosine": 1.0, "seed": 1}), {}, tmp_path)


def test_signs_of_collapse_by_hand() -> None:
    narrow, wide = Spread(0.9, 3.0), Spread(0.1, 40.0)
    metrics = {"recall@50": 0.2, "ndcg@10": 0.3, "score": 0.5}
    retention = retention_of(metrics, {"recall@50": 0.8, "ndcg@10": 0.0, "score": 0.8})
    assert retention == {"retention_recall@50": 0.25}
    assert collapse_signs(narrow, wide, retention) == [
        "retention_recall@50 is 25%, below 50%",
        "the effective rank is 3.0, less than half of the teacher's 40.0",
    ]
    assert collapse_signs(wide, wide, {"retention_recall@50": 0.9}) == []
    assert collapse_signs(narrow, None, {}) == []


def test_spread_by_hand() -> None:
    axes = np.eye(4, dtype=np.float32)
    assert spread_of(axes) == Spread(0.0, pytest.approx(4.0))
    assert spread_of(np.repeat(axes[:1], 3, axis=0)) == Spread(pytest.approx(1.0), pytest.approx(1.0))
    assert spread_of(axes[:1]) == Spread(0.0, 1.0)
