"""One corpus size measured for real, small: what it keeps, what it leaves behind, and a corpus that grows by synthetic documents."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.artifacts import VectorShards
from components.index.config import IndexConfig
from components.index.shards import read_vectors
from components.studies import growth_cell
from components.studies.growth_cell import (
    QUERIES_FILE,
    SCRATCH,
    TUNING_FILE,
    GrowthRule,
    MeasurementFailed,
    measure_size,
    write_blocks,
    write_growth_corpus,
)
from components.towers.contract import unit

DIMENSION = 16


def vectors_of(rows: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return unit((rng.normal(size=(1, DIMENSION)) + rng.normal(size=(rows, DIMENSION))).astype(np.float32))


@pytest.fixture
def real(tmp_path: Path) -> VectorShards:
    folder = tmp_path / "real"
    folder.mkdir()
    return write_blocks(iter([([f"d{i}" for i in range(300)], vectors_of(300))]), "space", folder, {})


@pytest.fixture
def rule(tmp_path: Path) -> GrowthRule:
    np.save(tmp_path / QUERIES_FILE, vectors_of(20, seed=1))
    np.save(tmp_path / TUNING_FILE, vectors_of(10, seed=2))
    config = IndexConfig(index_key="IVF8,Flat", recall_at=100, train_vectors=512)
    return GrowthRule(tmp_path, config, depth=100, batch=8, seed=13)


def test_a_corpus_begins_with_real_documents_and_goes_on_with_synthetic_ones(real: VectorShards, tmp_path: Path) -> None:
    made = {}
    for documents in (200, 700):
        folder = tmp_path / str(documents)
        folder.mkdir()
        made[documents] = write_growth_corpus(real, documents, 13, folder)
    small, large = (read_vectors(made[n]) for n in (200, 700))
    assert (made[200].counts["synthetic"], made[700].counts["synthetic"]) == (0, 400)
    assert large.doc_ids[:200] == small.doc_ids and small.doc_ids != [f"d{i}" for i in range(200)]
    assert sorted(large.doc_ids[:300]) == sorted(f"d{i}" for i in range(300))
    assert all(doc_id.startswith("synthetic-") for doc_id in large.doc_ids[300:])
    known = dict(zip((original := read_vectors(real)).doc_ids, original.vectors, strict=True))
    np.testing.assert_allclose(large.vectors[:300], [known[doc_id] for doc_id in large.doc_ids[:300]], atol=2e-3)
    assert pq.read_metadata(tmp_path / "700" / "vectors-00000.parquet").num_rows == 300


def test_one_size_gives_all_numbers_and_leaves_no_files(real: VectorShards, rule: GrowthRule, tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    (folder / SCRATCH).mkdir(parents=True)  # as a killed attempt leaves it
    (folder / SCRATCH / "half").write_text("x")
    found = measure_size(real, 500, rule, folder)
    assert list(folder.iterdir()) == []
    assert (found["documents"], found["synthetic"], found["queries"], found["index_key"]) == (500, 200, 20, "IVF8,Flat")
    assert found["comparisons"] == 8 + found["nprobe"] * 500 / 8
    assert 0.9 <= found["recall"] <= 1 and found["tuned_documents"] == 500
    positive = ("build_seconds", "file_bytes", "open_seconds", "p50_ms", "p95_ms", "batch_ms")
    assert all(found[name] > 0 for name in positive) and found["p50_ms"] <= found["p95_ms"]
    assert found["file_bytes"] > 500 * DIMENSION * 2  # the stored vectors alone


def _dies(*_: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_killed_measurement_says_what_to_do(
    real: VectorShards, rule: GrowthRule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth_cell, "build_measured", _dies)
    with pytest.raises(MeasurementFailed, match=r"was killed.*study\.growth_sizes"):
        measure_size(real, 300, rule, tmp_path / "cell")
    assert not (tmp_path / "cell" / SCRATCH).exists()
