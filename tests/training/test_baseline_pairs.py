"""The trained baselines on tiny models: what they learn, what they save, and that a killed training continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.artifacts import open_artifact, verify
from components.data.dataset import Dataset
from components.distillation.config import DistillationConfig
from components.distillation.student import load_student
from components.errors import ModelError
from components.studies.trained_baselines import (
    CHECKPOINT,
    DOCUMENT_TOWER,
    QUERY_ENCODER,
    PairTraining,
    for_passes,
    pairs_with_titles,
    symmetric_roles,
    train_asymmetric,
    train_symmetric,
)
from components.towers.config import TowerConfig
from components.towers.contract import check_probes, space_id_of
from components.towers.encoder import load_tower
from tests.encoders import dataset_of
from tests.training.tiny_world import documents, pairs, queries

TOWERS = TowerConfig(
    base_model="tiny-decoder", pooling="mean", steps=40, batch_size=16, chunk_size=16, checkpoint_every=5, lora_rank=4,
    precision="float32", learning_rate=3e-3, hard_negatives=2, mining_start=20, mining_depth=20,
)  # fmt: skip
SMALL = DistillationConfig(student="tiny-encoder", precision="float32", train_embeddings=True)
RATE = 1e-3


def titled(titles: list[str], judgements: list[tuple[str, str, int]], metadata: list[str] | None = None) -> Dataset:
    dataset = dataset_of({f"d{i}": f"text {i}" for i in range(len(titles))}, {"q0": "a stone", "q1": "a pump"}, judgements)
    documents = dataset.documents.assign(title=titles, metadata=metadata or ["{}"] * len(titles))
    return replace(dataset, documents=documents, all_judgements=dataset.all_judgements.assign(split="train"))


def found(query_vectors: np.ndarray, document_vectors: np.ndarray) -> float:
    """Share of queries whose document is among the first five of 64."""
    best = (query_vectors @ document_vectors.T).argsort(1)[:, ::-1][:, :5]
    return float((best == np.arange(len(best))[:, None]).any(1).mean())


def test_the_symmetric_pair_learns_and_is_a_document_encoder_of_its_own_space(home: Path, tmp_path: Path) -> None:
    artifact = train_symmetric(pairs(), (TOWERS, SMALL), RATE, {"dataset": "d"}, tmp_path)
    encoder = load_student(tmp_path, precision="float32")
    assert found(encoder.encode(queries()), encoder.encode(documents())) > 0.3  # 0.08 by chance
    assert encoder.space_id == space_id_of(encoder.contract) == artifact.space_id
    assert (artifact.counts["pairs"], artifact.counts["pairs_seen"]) == (64, 40 * 16)
    assert check_probes(encoder, tmp_path, 1e-3) < 1e-3
    verify(tmp_path)


def test_the_end_to_end_pair_learns_and_shares_the_space_of_its_document_tower(home: Path, tmp_path: Path) -> None:
    artifact = train_asymmetric(pairs(), (TOWERS, SMALL), RATE, {}, tmp_path)
    query, document = load_student(tmp_path / QUERY_ENCODER, "float32"), load_tower(tmp_path / DOCUMENT_TOWER)
    assert found(query.encode(queries()), document.encode(documents())) > 0.3
    assert query.space_id == document.space_id == open_artifact(tmp_path / DOCUMENT_TOWER).space_id
    assert artifact.counts["pairs_seen"] == 40 * 16
    verify(tmp_path)


@pytest.mark.parametrize("train", [train_symmetric, train_asymmetric])
def test_a_killed_training_gives_the_encoder_of_a_straight_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: Any
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    short = TOWERS.model_copy(update={"steps": 12, "mining_start": 4, "mining_interval": 4})
    train(pairs(), (short, SMALL), RATE, {}, straight)
    with monkeypatch.context() as patch:
        original = PairTraining._step

        def step(self: PairTraining, number: int) -> float:
            if number == 7:
                raise KeyboardInterrupt
            return original(self, number)

        patch.setattr(PairTraining, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            train(pairs(), (short, SMALL), RATE, {}, killed)
    assert (killed / CHECKPOINT).exists()
    train(pairs(), (short, SMALL), RATE, {}, killed)
    assert not (killed / CHECKPOINT).exists()
    part = QUERY_ENCODER if train is train_asymmetric else "."
    ours, theirs = (load_student(folder / part, "float32").encode(queries()) for folder in (killed, straight))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_titles_are_pairs_beside_the_train_judgements() -> None:
    dataset = titled(["Kidney stone", "Heart failure", "", "Kidney stone"], [("q0", "d1", 1), ("q1", "d3", 1), ("q1", "d0", 0)])
    found = pairs_with_titles(dataset, SMALL)
    assert found.queries == ["a stone", "a pump", "Kidney stone", "Heart failure"]
    assert found.pairs == [(0, 1), (1, 3), (2, 0), (3, 1), (2, 3)]
    assert found.relevant == {0: {1}, 1: {3}, 2: {0, 3}, 3: {1}}
    assert len(found.origins) == len(found.kinds) == 5
    alone = pairs_with_titles(dataset, SMALL.model_copy(update={"refine_titles": False}))
    assert alone.pairs == [(0, 1), (1, 3)] and alone.queries == ["a stone", "a pump"]
    few = pairs_with_titles(dataset, SMALL.model_copy(update={"titles": 1}))
    assert len(few.queries) == 3


def test_kinds_of_batches_reach_the_titles() -> None:
    dataset = titled(["Kidney stone", "Heart failure"], [("q0", "d1", 1)], ['{"organ": "kidney"}', '{"organ": "heart"}'])
    assert pairs_with_titles(dataset, SMALL, "organ").kinds == ["heart", "kidney", "heart"]


@pytest.mark.parametrize(("passes", "steps"), [(3, 300), (0.5, 50), (0.001, 1)])
def test_passes_are_steps_of_whole_batches(passes: float, steps: int) -> None:
    assert for_passes(TOWERS, 16 * 100 - 1, passes).steps == steps


def test_a_symmetric_pair_keeps_the_prompts_of_its_roles(home: Path, tmp_path: Path) -> None:
    prompted = SMALL.model_copy(update={"query_prompt": "ask: "})
    short = TOWERS.model_copy(update={"steps": 2, "hard_negatives": 0})
    query, document = symmetric_roles(train_symmetric(pairs(), (short, prompted), RATE, {}, tmp_path))
    assert (query.contract.prompt, document.contract.prompt) == ("ask: ", "")
    assert query.space_id == document.space_id
    assert query.tokens(["x"]) == document.tokens(["ask: x"]) != document.tokens(["x"])


def test_a_pair_becomes_the_mean_of_its_last_checkpoints_as_towers_do(home: Path, tmp_path: Path) -> None:
    short = TOWERS.model_copy(update={"steps": 2, "hard_negatives": 0, "checkpoint_every": 1})
    ends = []
    for merged in (1, 2):
        (tmp_path / str(merged)).mkdir()
        train_symmetric(pairs(), (short.model_copy(update={"merge_last": merged}), SMALL), RATE, {}, tmp_path / str(merged))
        ends.append(load_student(tmp_path / str(merged), "float32").encode(queries()))
    assert np.abs(ends[0] - ends[1]).max() > 1e-4


def test_cached_gradients_change_nothing(home: Path, tmp_path: Path) -> None:
    for size in (16, 5):
        (tmp_path / str(size)).mkdir()
        config = TOWERS.model_copy(update={"steps": 4, "chunk_size": size, "mining_start": 2})
        train_symmetric(pairs(), (config, SMALL), RATE, {}, tmp_path / str(size))
    whole, parts = (load_student(tmp_path / size, "float32").encode(queries()) for size in ("16", "5"))
    np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_too_few_pairs_are_refused_before_training(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="only 64 training pairs"):
        train_symmetric(pairs(), (TOWERS.model_copy(update={"batch_size": 65}), SMALL), RATE, {}, tmp_path)
