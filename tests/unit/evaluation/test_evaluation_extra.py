"""Extra splits and the spread of the query vectors in the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.artifacts import verify
from components.data.dataset import Dataset
from components.errors import DataError
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import DenseRanker, Ranker, symmetric_ranker
from components.evaluation.report import EXTRA_FILE, REPORT_FILE, Summary, load_summary
from components.evaluation.summarize import require_judged
from components.evaluation.table import render_shift, render_table
from tests.encoders import WORDS, WordEncoder, dataset_of

CONFIG = EvaluationConfig(latency_queries=20, throughput_batch=4, bootstrap_samples=200, extra_splits=("shifted",))
DOCUMENTS = {f"d{i}": word for i, word in enumerate(WORDS)}
MAIN = [(f"q{i}", f"d{i}", 1) for i in range(len(WORDS))]
SHIFTED = [(f"s{i}", f"d{i}", 1) for i in range(4)]


class HalfBlind(WordEncoder):
    """Sees no difference between the words of the second half of WORDS, nor in texts that begin with 'please'."""

    def encode(self, texts: list[str], batch_size: int | None = None, progress: str | None = None) -> np.ndarray:  # type: ignore[override]
        return super().encode(["nothing" if text.startswith("please") or text in WORDS[4:] else text for text in texts])


def data() -> Dataset:
    """Eight queries of one word in test; four others of the split shifted, three of which begin with 'please'."""
    queries = {f"q{i}": word for i, word in enumerate(WORDS)} | {f"s{i}": f"please {WORDS[i]}" if i else WORDS[i] for i in range(4)}
    plain = dataset_of(DOCUMENTS, queries, MAIN)
    shifted = pd.DataFrame([(*row, "shifted") for row in SHIFTED], columns=["query_id", "doc_id", "score", "split"])
    return replace(plain, all_judgements=pd.concat([plain.all_judgements, shifted], ignore_index=True))


def systems() -> dict[str, Ranker]:
    teacher = symmetric_ranker(WordEncoder(), data())
    return {"teacher": teacher, "student": DenseRanker(HalfBlind(), teacher.index)}


def summary_of(folder: Path) -> Summary:
    return load_summary(evaluate(systems(), data(), CONFIG, folder, {}).path)


def test_an_extra_split_has_its_own_metrics_and_retention(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    extra = summary.extra["shifted"]
    assert (summary.split, summary.queries, extra.queries) == ("test", 8, 4)
    # The student knows one of the four queries; for the others it finds the documents in the order of their ids.
    assert extra.systems["teacher"].metrics["recall@1"] == 1
    assert extra.systems["student"].metrics["recall@1"] == 0.25
    expected = (1 + 1 / np.log2(3) + 1 / np.log2(4) + 1 / np.log2(5)) / 4
    assert extra.systems["student"].metrics["ndcg@10"] == pytest.approx(expected)
    assert extra.retention == pytest.approx({"recall@50": 1.0, "ndcg@10": expected})
    low, high = extra.retention_intervals["ndcg@10"]
    assert low < expected < high
    assert extra.judgements_digest != summary.judgements_digest


def test_values_and_rankings_of_an_extra_split_are_kept_apart(tmp_path: Path) -> None:
    artifact = evaluate(systems(), data(), CONFIG, tmp_path, {})
    verify(tmp_path, artifact.digest)
    assert artifact.counts == {"queries": 8, "systems": 2, "queries_shifted": 4}
    files = {path.name for path in tmp_path.glob("*.trec")}
    assert files == {f"{prefix}{name}.trec" for prefix in ("", "shifted.") for name in ("teacher", "student", "qrels")}
    extra = pd.read_parquet(tmp_path / EXTRA_FILE)
    assert set(extra["split"]) == {"shifted"}
    assert set(pd.read_parquet(tmp_path / "per_query.parquet")["query_id"]) == {f"q{i}" for i in range(8)}
    evaluate(systems(), data(), CONFIG.model_copy(update={"extra_splits": ()}), tmp_path, {})
    assert not (tmp_path / EXTRA_FILE).exists()


def test_health_tells_spread_vectors_from_crowded_ones(tmp_path: Path) -> None:
    health = summary_of(tmp_path).health
    # The teacher gives eight different axes; the student four, and the same ninth one four times: 6 of 28 pairs have the cosine 1.
    assert (health["teacher"].mean_cosine, health["teacher"].effective_rank) == pytest.approx((0, 8))
    shares = np.array([1, 1, 1, 1, 2]) / 6
    assert health["student"].mean_cosine == pytest.approx(6 / 28)
    assert health["student"].effective_rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-5)
    assert health["student"].queries == 8


def test_the_report_shows_both(tmp_path: Path) -> None:
    summary = summary_of(tmp_path)
    text = render_table(summary)
    assert render_shift(summary) in text
    assert "Extra judgements: shifted, 4 judged queries" in text
    assert "mean cosine" in text and "effective rank" in text and "8.0" in text
    assert max(map(len, text.splitlines())) <= 82


def test_a_report_of_an_older_version_is_still_read(tmp_path: Path) -> None:
    summary_of(tmp_path)
    raw = json.loads((tmp_path / REPORT_FILE).read_text())
    del raw["extra"], raw["health"]
    (tmp_path / REPORT_FILE).write_text(json.dumps(raw))
    old = load_summary(tmp_path)
    assert (old.extra, old.health, render_shift(old)) == ({}, {}, "")


def test_an_extra_split_that_cannot_be_measured_is_named(tmp_path: Path) -> None:
    require_judged(data(), ("test", "shifted"))
    with pytest.raises(DataError, match="no judgements for the split 'nowhere'; it has: shifted, test"):
        require_judged(data(), ("test", "nowhere"))
    with pytest.raises(DataError, match="'nowhere'"):
        evaluate(systems(), data(), CONFIG.model_copy(update={"extra_splits": ("nowhere",)}), tmp_path, {})
    irrelevant = data().all_judgements.assign(score=0)
    with pytest.raises(DataError, match="no relevant document for any query of the split 'shifted'"):
        require_judged(replace(data(), all_judgements=irrelevant), ("shifted",))
