from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from components.artifacts import EvalReport, verify
from components.data.dataset import Dataset
from components.errors import ArtifactError, DataError
from components.evaluation.bm25 import bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import Ranker, symmetric_ranker
from components.evaluation.report import REPORT_FILE, load_evaluation, load_summary
from components.evaluation.table import render_table
from components.evaluation.units import paired_bootstrap
from tests.encoders import WORDS, WordEncoder, dataset_of

CONFIG = EvaluationConfig(latency_queries=20, throughput_batch=4, bootstrap_samples=200)
DOCUMENTS = {f"d{i}": word for i, word in enumerate(WORDS)}
QUERIES = {f"q{i}": word for i, word in enumerate(WORDS)} | {"unjudged": "apple"}
JUDGEMENTS = [(f"q{i}", f"d{i}", 1) for i in range(len(WORDS))]


class Fixed:
    """Finds the right document for the first `right` queries and nothing for the others."""

    def __init__(self, right: int) -> None:
        self.right = right

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        return [[(f"d{i}", 1.0)] if i < self.right else [] for i in range(len(queries))]


def data(judgements: Sequence[tuple[str, str, int]] = JUDGEMENTS, queries: dict[str, str] = QUERIES) -> Dataset:
    return dataset_of(DOCUMENTS, queries, judgements)


def report(folder: Path, systems: dict[str, Ranker] | None = None, dataset: Dataset | None = None) -> EvalReport:
    folder.mkdir(exist_ok=True)
    chosen = systems or {"bm25": Fixed(2), "student_untrained": Fixed(0), "teacher": Fixed(8), "student": Fixed(6)}
    return evaluate(chosen, dataset or data(), CONFIG, folder, {"dataset": "a" * 64})


def test_means_go_over_all_judged_queries(tmp_path: Path) -> None:
    summary = load_summary(report(tmp_path).path)
    assert summary.queries == 8
    assert {name: s.metrics["recall@50"] for name, s in summary.systems.items()} == {
        "bm25": 0.25,
        "student_untrained": 0.0,
        "teacher": 1.0,
        "student": 0.75,
    }
    low, high = summary.systems["student"].intervals["ndcg@10"]
    assert low < 0.75 < high


def test_comparisons_and_retention(tmp_path: Path) -> None:
    evaluation = load_evaluation(report(tmp_path).path)
    summary, table = evaluation.summary, evaluation.per_query
    assert summary.retention == {"recall@50": 0.75, "ndcg@10": 0.75}
    assert summary.retention_intervals["recall@50"][0] < 0.75 < summary.retention_intervals["recall@50"][1]
    found = next(c for c in summary.comparisons if (c.system, c.baseline, c.metric) == ("student", "bm25", "ndcg@10"))
    assert (found.difference, found.queries, found.confidence) == (0.5, 8, 0.95)
    by_system = {s: g.sort_values("query_id")["value"] for s, g in table[table["metric"] == "ndcg@10"].groupby("system")}
    again = paired_bootstrap(by_system["student"], by_system["bm25"], 200, 0.95, CONFIG.seed)
    assert (found.low, found.high) == (again.low, again.high)


def test_no_retention_of_a_teacher_that_finds_nothing(tmp_path: Path) -> None:
    summary = load_summary(report(tmp_path, {"teacher": Fixed(0), "student": Fixed(3)}).path)
    assert summary.retention == {}
    assert summary.speed is None


def test_the_artifact_verifies_and_holds_a_run_file_per_system(tmp_path: Path) -> None:
    (tmp_path / "old.trec").write_text("leftover of a killed attempt")
    artifact = report(tmp_path)
    assert verify(tmp_path, artifact.digest).kind == "evaluation"
    names = sorted(path.stem for path in tmp_path.glob("*.trec"))
    assert names == ["bm25", "qrels", "student", "student_untrained", "teacher"]
    assert (tmp_path / "qrels.trec").read_text().splitlines()[0].split()[::2] == ["q0", "d0"]
    assert (tmp_path / "student.trec").read_text().splitlines()[0] == "q0 Q0 d0 1 1 student"
    assert report(tmp_path).digest == artifact.digest


def test_the_digest_of_the_judgements_sees_texts_and_judgements_but_not_their_order(tmp_path: Path) -> None:
    def digest(name: str, dataset: Dataset) -> str:
        return load_summary(report(tmp_path / name, dataset=dataset).path).judgements_digest

    original = digest("a", data())
    assert digest("b", data(JUDGEMENTS[::-1], dict(reversed(list(QUERIES.items()))))) == original
    assert digest("c", data([*JUDGEMENTS, ("q0", "d1", 1)])) != original
    assert digest("d", data(queries=QUERIES | {"q0": "pear"})) != original
    assert digest("e", data(queries=QUERIES | {"unjudged": "pear"})) == original


def test_real_rankers_and_their_speed(tmp_path: Path) -> None:
    dense = symmetric_ranker(WordEncoder(), data())
    summary = load_summary(report(tmp_path, {"bm25": bm25_ranker(data(), progress=False), "teacher": dense, "student": dense}).path)
    assert all(s.metrics["recall@1"] == 1 for s in summary.systems.values())
    assert summary.speed is not None
    assert 0 < summary.speed.student.queries == summary.speed.teacher.queries <= 20
    assert summary.speed.student.batch_size == 4
    assert 0 < summary.speed.student.p50_ms <= summary.speed.student.p95_ms
    assert summary.speed.speed_up == pytest.approx(summary.speed.student.qps / summary.speed.teacher.qps)
    assert summary.speed.search_p50_ms > 0


def test_report_table_and_lineage_name_the_bm25_that_was_measured(tmp_path: Path) -> None:
    dense = symmetric_ranker(WordEncoder(), data())
    artifact = report(tmp_path, {"bm25": bm25_ranker(data(), "de", progress=False), "teacher": dense, "student": dense})
    setup = load_summary(artifact.path).bm25
    assert setup is not None and (setup.stemmer, setup.told, setup.k1, setup.b, setup.dev_queries) == ("german", False, 1.2, 0.75, 0)
    assert "Snowball's stemmer german, k1 1.2 and b 0.75 as Lucene has them, no stop words removed" in setup.words
    assert artifact.attributes["bm25"] == setup.words and setup.words in render_table(load_summary(artifact.path))


def test_the_table_shows_numbers_intervals_and_sample_size(tmp_path: Path) -> None:
    dense = symmetric_ranker(WordEncoder(), data())
    text = render_table(load_summary(report(tmp_path, {"bm25": Fixed(2), "teacher": dense, "student": dense}).path))
    assert "8 judged queries (test), 8 documents; in brackets: 95% interval" in text
    assert "BM25" in text and "nDCG@10" in text and ".250 [" in text and "1.00 [1.00 1.00]" in text
    assert "student - BM25" in text and "8 queries" in text
    assert "100.0% [100.0% 100.0%]" in text
    assert "queries/s, batch 4" in text
    assert "8 queries, each a unit of its own" in text


def in_pages(pages: int) -> Dataset:
    """The documents on so many pages, one after the other, by which the splits were made."""
    documents = data().documents
    numbered = [f'{{"page": {number * pages // len(documents)}}}' for number in range(len(documents))]
    return replace(data(), documents=documents.assign(metadata=numbered), query_groups="page")


def test_the_report_keeps_and_tells_the_units_of_its_queries(tmp_path: Path) -> None:
    evaluation = load_evaluation(report(tmp_path / "pages", dataset=in_pages(2)).path)
    units, summary, alone = evaluation.units_of(), evaluation.summary, load_summary(report(tmp_path / "alone").path)
    assert units is not None and units.of([f"q{n}" for n in range(8)]).tolist() == [0] * 4 + [1] * 4
    assert summary.units is not None and (summary.units.units, summary.units.largest) == (2, 4)
    assert set(summary.units.design_effects) == {"recall@50", "ndcg@10"}
    assert "8 queries in 2 units of up to 4" in summary.units.words and "same page" in summary.units.words
    assert all(found.units == 2 for found in summary.comparisons) and all(found.units is None for found in alone.comparisons)
    assert summary.systems["student"].intervals["ndcg@10"] == (0.0, 1.0)  # two units tell next to nothing, and a share ends there
    assert alone.systems["student"].intervals["ndcg@10"][0] > 0.2
    assert "8 queries in 2 units" in render_table(summary) and max(map(len, render_table(summary).splitlines())) <= 82


def test_of_queries_in_a_single_unit_no_interval_is_given(tmp_path: Path) -> None:
    dense = symmetric_ranker(WordEncoder(), in_pages(1))
    summary = load_summary(report(tmp_path, {"bm25": Fixed(2), "teacher": dense, "student": dense}, in_pages(1)).path)
    assert all(not system.intervals for system in summary.systems.values()) and not summary.retention_intervals
    assert {(found.low, found.high, found.units) for found in summary.comparisons} == {(None, None, 1)}
    assert summary.ann is not None and summary.ann.ndcg_lost_interval is None and not summary.ann.intervals
    text = render_table(summary)
    assert "All 8 queries are one unit" in text and "no interval" in text and "100.0% no interval" in text


def test_a_report_of_before_there_were_units_counts_its_queries_one_by_one(tmp_path: Path) -> None:
    folder = report(tmp_path).path
    content = json.loads((folder / REPORT_FILE).read_text())
    del content["units"]
    for found in content["comparisons"]:
        del found["units"]
    (folder / REPORT_FILE).write_text(json.dumps(content))
    (folder / "units.parquet").unlink()
    evaluation = load_evaluation(folder)
    assert evaluation.units is None and evaluation.units_of() is None and evaluation.summary.units is None
    assert "unit" not in render_table(evaluation.summary)


def test_the_table_of_four_systems_fits_a_terminal(tmp_path: Path) -> None:
    lines = render_table(load_summary(report(tmp_path).path)).splitlines()
    assert lines[2].split() == ["BM25", "untrained", "teacher", "student"]
    assert max(map(len, lines)) <= 82


def test_nothing_judged_or_a_query_without_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'test'"):
        report(tmp_path, dataset=data([]))
    with pytest.raises(DataError, match="no relevant document"):
        report(tmp_path, dataset=data([("q0", "d0", 0)]))
    with pytest.raises(DataError, match="no text, the first is 'q9'"):
        report(tmp_path, dataset=data([*JUDGEMENTS, ("q9", "d1", 1)]))


def test_a_query_judged_without_a_relevant_document_is_not_counted(tmp_path: Path) -> None:
    assert load_summary(report(tmp_path, dataset=data([*JUDGEMENTS, ("unjudged", "d1", 0)])).path).queries == 8


def test_a_broken_report_is_named(tmp_path: Path) -> None:
    artifact = report(tmp_path)
    path = artifact.path / REPORT_FILE
    original = path.read_text()
    path.write_text(original.replace('"queries": 8', '"queries": "many"'))
    with pytest.raises(ArtifactError, match="queries"):
        load_evaluation(tmp_path)
    path.write_text(original.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(ArtifactError, match="Update scalingnote"):
        load_evaluation(tmp_path)
    path.write_text(original)
    (tmp_path / "per_query.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"per_query\.parquet"):
        load_evaluation(tmp_path)
