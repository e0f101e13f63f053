"""What a plan counts against what the code really does, on tiny models: tokens with their padding, texts, batches, steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.data.config import DataConfig
from components.data.dataset import Dataset, load_dataset
from components.data.snapshot import snapshot
from components.index import search
from components.planning import calibration, cost
from components.planning.calibration import _Clock, calibrate
from components.planning.cost import UNITS, step_tokens
from components.planning.facts import Facts, gather_facts, padded
from components.towers import two_towers as backbone
from components.towers.base_models import resolve_base
from components.towers.loop import Training
from components.towers.pairs import training_pairs
from components.towers.two_towers import TwoTowers
from flows.config import RetrainConfig, load_config
from tests.data_world import queries, write_folder, write_rows


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Queries of very different lengths, so that padding counts."""
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    folder = write_folder(tmp_path / "data")
    rows = [{**row, "text": row["text"] + " and so on" * (n % 7)} for n, row in enumerate(queries())]
    write_rows(folder / "queries.jsonl", rows)
    (tmp_path / "snapshot").mkdir()
    return load_dataset(snapshot(DataConfig(source=str(folder)), tmp_path / "snapshot"))


def config(**changes: Any) -> RetrainConfig:
    return load_config("smoke", None, {key.replace("__", "."): value for key, value in changes.items()})


def facts_of(dataset: Dataset, settings: RetrainConfig) -> Facts:
    return gather_facts(dataset, settings.towers, settings.distillation, settings.evaluation)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_tokens_are_those_of_the_batches_that_are_trained(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen: dict[bool, int] = {True: 0, False: 0}
    pad = backbone.pad_batch

    def counted(rows: Any, pad_id: int, even: bool) -> Any:
        batch = pad(rows, pad_id, even)
        seen[torch.is_grad_enabled()] += batch["input_ids"].numel()
        return batch

    settings = config(towers__steps=12, towers__batch_size=16, towers__chunk_size=3, towers__precision=precision)
    pairs = training_pairs(dataset)
    run = Training(
        TwoTowers(resolve_base("tiny-decoder", [*pairs.documents, *pairs.queries]), settings.towers), pairs, settings.towers, tmp_path
    )
    monkeypatch.setattr(backbone, "pad_batch", counted)
    run.to_end()
    graph, cached = step_tokens(settings.towers, facts_of(dataset, settings))
    assert cached > 0
    assert 12 * graph == pytest.approx(seen[True], rel=0.05)
    assert 12 * cached == pytest.approx(seen[False], rel=0.05)


def test_lengths_are_those_of_the_towers_and_the_student(dataset: Dataset) -> None:
    settings = config()
    found, pairs = facts_of(dataset, settings), training_pairs(dataset)
    towers = TwoTowers(resolve_base("tiny-decoder", [*pairs.documents, *pairs.queries]), settings.towers)
    rows = towers.tokens(dataset.judged_queries("train")["text"].tolist(), "query")
    assert sorted(np.minimum(found.sources["train"].teacher, settings.towers.max_query_length)) == sorted(map(len, rows))
    real = padded(found.sources["train"].teacher, len(rows), settings.towers.max_query_length, 256)
    assert real == padded(np.array([len(row) for row in rows]), len(rows), 10**6, 256)
    rough = gather_facts(dataset, settings.towers, settings.distillation, settings.evaluation, rough=True)
    assert (rough.documents.count, rough.targets, rough.judged_counts) == (found.documents.count, found.targets, found.judged_counts)


def test_models_that_load_slowly_and_a_slow_first_call_leave_the_full_size_to_be_measured() -> None:
    clock, called = _Clock(100.0), list[int]()
    clock.started -= 1000.0

    def call(size: int) -> None:
        called.append(size)
        time.sleep(0.5 if len(called) == 1 else 0.001)

    seconds, size = clock.grown(call, 2, 64, 0.4)
    assert size == 64 and called == [2, 2, 64, 64]
    assert seconds[0] < 0.5


def test_a_call_that_would_take_longer_than_its_share_is_measured_at_a_smaller_size() -> None:
    clock = _Clock(20.0)
    seconds, size = clock.grown(lambda size: time.sleep(0.05 * size), 2, 64, 0.2)
    assert 2 <= size <= 40 and seconds[0] >= 0.05 * size


def test_vectors_are_as_wide_as_a_teacher_that_is_taken_as_it_is_gives_them(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.distillation.student.initial.head_width", lambda towers: 96)
    settings = config(towers__base_model="tiny-encoder", towers__training="none", index__index_key="IVF4,PQ24")
    found = gather_facts(dataset, settings.towers, settings.distillation, settings.evaluation, rough=True)
    assert found.teacher.width != 96 and cost.dimension_of(settings, found) == 96
    assert "build_index" in cost.needs_of(settings, found, 4), "codes that do not divide the width of the model itself"


def test_a_search_is_measured_at_the_width_of_the_vectors(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, made = config(towers__dimension=24, towers__matryoshka=[24]), search.index_in_memory
    widths: list[int] = []
    monkeypatch.setattr(search, "index_in_memory", lambda vectors, *rest: widths.append(vectors.shape[1]) or made(vectors, *rest))
    clock = _Clock(1.0)
    calibration._search(clock, calibration._Sample(dataset, settings), settings)
    assert widths == [24] and clock.rates["score"] > (0, 0)


def test_a_calibration_measures_every_unit_and_leaves_nothing(dataset: Dataset, tmp_path: Path) -> None:
    found = calibrate(dataset, config(), 2.0)
    assert set(found.wall) == set(found.cpu) == set(UNITS)
    assert all(rate >= 0 for rate in [*found.wall.values(), *found.cpu.values()])
    assert all(found.wall[unit] > 0 for unit in UNITS if unit != "refine_score")  # a difference of two times, which may come out as none
    assert not [path for path in (tmp_path / "home" / "work").iterdir() if path.name.startswith(".calibration")]
    assert cost.seconds_of(cost.work_of(config(), facts_of(dataset, config()))["evaluate"], found.wall) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation__student": "teacher", "distillation__pooling": "last"},
        {"distillation__form": "static", "evaluation__untrained_student": False},
        {"towers__training": "full"},
        {"distillation__refine_epochs": 0, "distillation__source_shares": {"train": 1.0}},
        {"distillation__prune_to": [1]},
    ],
    ids=str,
)
def test_other_kinds_of_students_and_towers_can_be_measured(dataset: Dataset, changes: dict[str, Any]) -> None:
    settings = config(**changes)
    found = calibrate(dataset, settings, 1.0)
    work = cost.work_of(settings, facts_of(dataset, settings))
    assert sum(cost.seconds_of(part, found.wall) for part in work.values()) > 0
