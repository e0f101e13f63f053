"""The benchmark of BM25 against others: which figures a set is held against, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import bm25_reference
from tests.benchmarks.bm25_reference import BEIR, Published, main, published_for
from tests.data_world import write_lines, write_rows

TEXTS = {"d1": "kidney stones", "d2": "heart failure", "d3": "a broken bone"}


@pytest.fixture
def scifact(tmp_path: Path) -> Path:
    """Three documents in a folder with the name of a set of BEIR."""
    folder = tmp_path / "scifact"
    write_rows(folder / "corpus.jsonl", [{"_id": name, "title": "", "text": text} for name, text in TEXTS.items()])
    write_rows(folder / "queries.jsonl", [{"_id": "q1", "text": "stone of the kidney"}, {"_id": "q2", "text": "bones"}])
    write_lines(folder / "qrels" / "test.tsv", ["query-id\tcorpus-id\tscore", "q1\td1\t1", "q2\td3\t1"])
    return folder


def test_published_figures_are_those_of_the_whole_set_alone() -> None:
    assert published_for("SciFact", 5183, 300) == BEIR["scifact"]
    assert published_for("scifact", 5182, 300) is None and published_for("squad", 5183, 300) is None


def test_a_set_without_published_figures_has_bm25s_beside_ours(scifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(scifact), "--stemmer", "english"]) == 0
    told = capsys.readouterr().out
    assert "scifact, test: 3 documents, 2 judged queries" in told and "published              none for a part of it" in told
    figures = {line.split()[0]: float(line.split()[1]) for line in told.splitlines() if line.startswith(("ours ", "bm25s "))}
    assert figures == {"ours": 1.0, "bm25s": 1.0}


@pytest.mark.parametrize(("ndcg", "status", "verdict"), [(0.99, 0, "within 0.015"), (0.95, 1, "NOT within 0.015")])
def test_a_published_figure_that_is_missed_is_a_failure(
    scifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, ndcg: float, status: int, verdict: str
) -> None:
    monkeypatch.setitem(bm25_reference.BEIR, "scifact", Published(3, 2, ndcg, 1.0))
    assert main(["--data", str(scifact), "--stemmer", "english"]) == status
    told = capsys.readouterr().out
    assert verdict in told and "k1 0.9 and b 0.4" in told


def test_what_cannot_be_read_or_stemmed_is_said_in_a_sentence(scifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(scifact / "nowhere")]) == 3
    assert main(["--data", str(scifact), "--stemmer", "klingon"]) == 3
    assert main(["--data", str(scifact), "--split", "dev"]) == 3
    told = capsys.readouterr().err
    assert "nowhere" in told and "no stemmer for 'klingon'" in told and "split 'dev'" in told
