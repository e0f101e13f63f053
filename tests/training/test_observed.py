"""What whoever watches a training is told while it runs: the curves that MLflow draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from components.distillation.config import DistillationConfig
from components.distillation.train import train_student, training_epochs
from components.progress import observed_by
from components.towers.config import TowerConfig
from components.towers.train import losses_of, train_towers
from tests.training.student_world import word_data
from tests.training.tiny_world import pairs


class Watcher:
    """Keeps what it is told, by name."""

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}

    def started(self) -> None:
        pass

    def measured(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.curves.setdefault(name, []).append((step, value))


def test_stage_one_tells_loss_rate_gradient_and_speed_of_every_step(home: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    lenient = {"max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    config = TowerConfig(base_model="tiny-decoder", steps=4, batch_size=8, chunk_size=8, lora_rank=2, precision="float32", **lenient)
    with observed_by(watcher):
        train_towers(pairs(), config, {}, tmp_path)
    assert set(watcher.curves) == {f"training/towers_{name}" for name in ("loss", "learning_rate", "gradient_norm", "pairs_per_second")}
    losses = losses_of(tmp_path / "query_tower")
    assert losses is not None
    assert watcher.curves["training/towers_loss"] == [(place, pytest.approx(loss)) for place, loss in enumerate(losses, 1)]
    rates = [rate for _, rate in watcher.curves["training/towers_learning_rate"]]
    assert max(rates) <= config.learning_rate and rates[-1] < max(rates)
    assert all(norm > 0 for _, norm in watcher.curves["training/towers_gradient_norm"])


def test_stage_two_tells_every_batch_and_what_each_epoch_reached(home: Path, tmp_path: Path) -> None:
    watcher = Watcher()
    config = DistillationConfig(student="tiny-encoder", epochs=2, refine_epochs=1, batch_size=16, precision="float32")
    with observed_by(watcher):
        train_student(word_data(), config, {}, tmp_path)
    epochs = training_epochs(tmp_path)
    assert epochs is not None
    aligned = [epoch["loss"] for epoch in epochs if epoch["phase"] == "align"]
    assert watcher.curves["training/student_loss_align"] == list(enumerate(aligned, 1))
    assert watcher.curves["training/student_loss_refine"] == [(1, epochs[-1]["loss"])]
    assert watcher.curves["training/student_dev_ndcg@10"] == [(place, epoch["ndcg@10"]) for place, epoch in enumerate(epochs, 1)]
    steps = [step for step, _ in watcher.curves["training/student_batch_loss"]]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) >= 3 * 4
    for name in ("learning_rate", "gradient_norm", "queries_per_second"):
        assert len(watcher.curves[f"training/student_{name}"]) == len(steps)
