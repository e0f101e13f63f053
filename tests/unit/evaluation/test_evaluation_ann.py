"""Recall of an index against exact search: worked out by hand for an index that loses documents, and for an exact one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from components.artifacts import VectorShards, seal
from components.errors import ArtifactError
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import MOST_QUERIES, evaluate, exact_neighbours, measure_ann, recall_at
from components.evaluation.metrics import JudgedSplit
from components.evaluation.rankers import DenseRanker, Ranker, symmetric_ranker
from components.evaluation.report import ANN_FILE, REPORT_FILE, load_evaluation, load_summary
from components.evaluation.table import render_table
from components.index.build import build_index
from components.index.config import IndexConfig
from components.index.search import VectorIndex, index_in_memory, load_index
from components.index.shards import ShardKeys, write_shard
from tests.encoders import WORDS, WordEncoder, dataset_of

CONFIG = EvaluationConfig(latency_queries=20, throughput_batch=4, bootstrap_samples=200)
Found = tuple[NDArray[np.float32], list[list[str]]]


class Lossy(VectorIndex):
    """Never finds the documents in `lost`; its exact search does."""

    lost: frozenset[str] = frozenset()

    def search(self, vectors: NDArray[np.float32], k: int) -> Found:
        scores, ids = super().search(vectors, len(self))
        kept = [[(s, i) for s, i in zip(row, best, strict=True) if i not in self.lost][:k] for row, best in zip(scores, ids, strict=True)]
        return np.array([[s for s, _ in row] for row in kept], np.float32), [[i for _, i in row] for row in kept]


def lossy(index: VectorIndex, lost: Sequence[str]) -> VectorIndex:
    found = Lossy(**{name: getattr(index, name) for name in index.__dataclass_fields__})
    object.__setattr__(found, "lost", frozenset(lost))
    return found


def circle(documents: int) -> VectorIndex:
    """Documents d000, d001, ... on a quarter circle: the nearest of the query (1, 0) are d000, d001, ... in this order."""
    angles = np.linspace(0.0, 1.5, documents)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    return index_in_memory(vectors, [f"d{i:03d}" for i in range(documents)], "space")


ALONG = np.array([[1.0, 0.0]], np.float32)


@pytest.mark.parametrize(("k", "share"), [(10, 7 / 10), (100, 96 / 100)])
def test_recall_is_the_share_of_the_true_neighbours_that_are_found(k: int, share: float) -> None:
    index = lossy(circle(200), ["d001", "d005", "d009", "d099", "d150"])
    nearest = exact_neighbours(index, ALONG, 100)
    assert list(nearest[0])[:100] == [f"d{i:03d}" for i in range(100)]
    assert recall_at(index, ALONG, k, nearest).tolist() == [pytest.approx(share)]


def test_a_document_that_an_index_returns_twice_is_found_once() -> None:
    class Stammering:
        def search(self, vectors: np.ndarray, k: int) -> tuple[None, list[list[str]]]:
            return None, [["d000", "d000", "d001", "d001"]]

    nearest = [{"d000": 0.9, "d001": 0.8, "d002": 0.7, "d003": 0.6}]
    assert recall_at(Stammering(), ALONG, 4, nearest).tolist() == [0.5]  # type: ignore[arg-type]


def test_fewer_documents_than_asked_for_are_all_wanted() -> None:
    index = lossy(circle(8), ["d003", "d007"])
    assert recall_at(index, ALONG, 100, exact_neighbours(index, ALONG, 100)).tolist() == [6 / 8]
    assert recall_at(index, ALONG, 10, exact_neighbours(index, ALONG, 100)).tolist() == [6 / 8]


def test_it_does_not_matter_which_of_equal_documents_is_found() -> None:
    """300 equal documents: an index that finds any ten of them has found the ten nearest, though other ids come first."""
    same = index_in_memory(np.tile(ALONG, (300, 1)), [f"d{i:03d}" for i in range(300)], "space")
    index = lossy(same, [f"d{i:03d}" for i in range(150)])
    nearest = exact_neighbours(index, ALONG, 100)
    assert len(nearest[0]) == 300
    assert recall_at(index, ALONG, 10, nearest).tolist() == [1.0]
    assert recall_at(index, ALONG, 100, nearest).tolist() == [1.0]


def test_an_exact_index_measures_one_by_the_same_code() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(700, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[350:600] = vectors[0]  # a tie longer than any depth that is asked for
    index = index_in_memory(vectors, [f"d{i}" for i in range(700)], "space")
    queries = np.concatenate([vectors[:60], -vectors[:5]])
    nearest = exact_neighbours(index, queries, 100)
    for k in (10, 100):
        assert recall_at(index, queries, k, nearest).tolist() == [1.0] * 65


def words() -> tuple[DenseRanker, dict[str, str]]:
    """One document a word; of the query for word i the student ranks d<i> first."""
    data = dataset_of({f"d{i}": word for i, word in enumerate(WORDS)}, {}, [])
    return symmetric_ranker(WordEncoder(), data), {f"q{i}": word for i, word in enumerate(WORDS)}


def report_of(folder: Path, student: DenseRanker) -> Path:
    _, queries = words()
    dataset = dataset_of({f"d{i}": w for i, w in enumerate(WORDS)}, queries, [(f"q{i}", f"d{i}", 1) for i in range(8)])
    systems: dict[str, Ranker] = {"teacher": words()[0], "student": student}
    return evaluate(systems, dataset, CONFIG, folder, {}).path


def test_the_report_holds_recall_with_its_interval_and_what_the_index_costs(tmp_path: Path) -> None:
    plain, _ = words()
    evaluation = load_evaluation(report_of(tmp_path, DenseRanker(WordEncoder(), lossy(plain.index, ["d3", "d6"]))))
    ann = evaluation.summary.ann
    assert ann is not None and evaluation.ann is not None
    # There are eight documents, so every query wants all of them, and finds six.
    values = evaluation.ann[evaluation.ann["metric"] == "recall@100"]["value"]
    assert (ann.queries, ann.documents) == (8, 8)
    assert values.tolist() == [6 / 8] * 8
    assert ann.recall == {"recall@10": 6 / 8, "recall@100": 6 / 8}
    # The student finds six of eight answers first, and would find all by exact search.
    assert ann.ndcg_lost == pytest.approx(2 / 8)
    low, high = ann.ndcg_lost_interval
    assert -0.1 < low < 2 / 8 < high  # eight queries say little of others, so a loss of nothing is not excluded
    assert set(evaluation.per_query["system"]) == {"teacher", "student"}


def test_an_exact_index_costs_nothing_and_the_table_says_so(tmp_path: Path) -> None:
    summary = load_summary(report_of(tmp_path, words()[0]))
    assert summary.ann is not None
    assert summary.ann.recall == {"recall@10": 1.0, "recall@100": 1.0}
    assert summary.ann.intervals == {"recall@10": (1.0, 1.0), "recall@100": (1.0, 1.0)}
    assert (summary.ann.ndcg_lost, summary.ann.ndcg_lost_interval) == (0.0, (0.0, 0.0))
    text = render_table(summary)
    assert "Index against exact search" in text
    lines = [line.split() for line in text.splitlines() if line.startswith("recall@") and line.endswith("queries")]
    assert lines == [["recall@10", "1.00", "[1.00", "1.00]", "8", "queries"], ["recall@100", "1.00", "[1.00", "1.00]", "8", "queries"]]
    assert max(map(len, text.splitlines())) <= 82


def test_only_so_many_queries_are_searched_spread_evenly() -> None:
    count = MOST_QUERIES + 1
    ids = [f"q{i:05d}" for i in range(count)]
    judged = JudgedSplit(ids, ids, pd.DataFrame({"query_id": ids, "doc_id": "d000", "score": 1}))
    served = pd.DataFrame({"query_id": ids, "metric": "ndcg@10", "value": 1.0})
    measured = measure_ann(circle(20), np.tile(ALONG, (count, 1)), judged, served, CONFIG)
    assert measured.summary.queries == (count + 1) // 2
    assert set(measured.per_query["query_id"]) == set(ids[::2])


def test_a_report_without_the_recall_of_the_index_is_still_read(tmp_path: Path) -> None:
    report_of(tmp_path, words()[0])
    raw = json.loads((tmp_path / REPORT_FILE).read_text())
    del raw["ann"]
    (tmp_path / REPORT_FILE).write_text(json.dumps(raw))
    old = load_evaluation(tmp_path)
    assert (old.summary.ann, old.ann) == (None, None)
    assert "Index against exact search" not in render_table(old.summary)


def test_lost_values_of_the_index_are_named(tmp_path: Path) -> None:
    report_of(tmp_path, words()[0])
    (tmp_path / ANN_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"ann\.parquet cannot be read.*Evaluate again"):
        load_evaluation(tmp_path)


def test_an_approximate_index_measures_what_it_really_loses(tmp_path: Path) -> None:
    """One of eight lists visited: the share of the true neighbours, worked out with NumPy, that lies in what the search returns."""
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(440, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    documents, queries = rows[:400], rows[400:]
    ids = [f"d{i:03d}" for i in range(400)]
    for name in ("vectors", "index"):
        (tmp_path / name).mkdir()
    write_shard(tmp_path / "vectors", ShardKeys(0, ids, ids), documents, "space")
    made = seal(tmp_path / "vectors", "vectors", counts={"documents": 400, "shards": 1}, attributes={"space_id": "space", "dimension": 8})
    config = IndexConfig(index_key="IVF8,Flat", nprobe=1, tuning_queries=10)
    index = load_index(build_index(VectorShards(**made.model_dump()), config, tmp_path / "index").path, "space")
    true = np.argsort(-queries @ documents.T, axis=1)[:, :10]
    expected = [len(set(found) & {ids[i] for i in best}) / 10 for found, best in zip(index.search(queries, 10)[1], true, strict=True)]
    assert recall_at(index, queries, 10, exact_neighbours(index, queries, 100)).tolist() == expected
    assert 0.2 < np.mean(expected) < 1
