"""Rows that public data sets break rules with: refused, or dropped, counted and kept with reasons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from components.data.config import DataConfig, ViolationConfig
from components.data.contracts import contracts_folder
from components.data.dataset import load_dataset
from components.data.left_out import QUARANTINE_FILE
from components.data.snapshot import snapshot
from components.data.sources import read_source
from components.data.validation import load_report, require_valid, validate
from components.errors import ConfigError, DataError
from flows.config import load_config
from tests.data_world import SPLITS, documents, qrels, queries, write_folder, write_lines, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def config(folder: Path, share: float = 0.05, **classes: str) -> DataConfig:
    return DataConfig.model_validate({"source": str(folder), "on_violation": classes or "drop", "max_dropped_share": share})


def add(folder: Path, split: str, *lines: str) -> None:
    path = folder / "qrels" / f"{split}.tsv"
    write_lines(path, [*path.read_text().splitlines(), *lines])


def counts(given: DataConfig) -> dict[str, int]:
    return {f"{entry.rule} {entry.split}".strip(): len(entry.rows) for entry in read_source(given).left_out}


def arguana(folder: Path) -> None:
    """Queries are documents, and one in a hundred judged documents is not in the corpus."""
    write_rows(folder / "queries.jsonl", [{"_id": f"d{n}", "text": f"What entry {n} is about"} for n in range(260)])
    for split, numbers in SPLITS.items():
        write_lines(folder / "qrels" / f"{split}.tsv", [f"d{n}\td{n + 1 if n % 100 else 'gone'}\t1" for n in numbers if n < 259])


def nfcorpus(folder: Path) -> None:
    """Judgements in grades of queries that are not there, and the same judgement several times."""
    for split in SPLITS:
        add(folder, split, f"PLAIN-{split}\td1\t2", *qrels(split)[:1])


def test_data_of_arguanas_kind_is_refused_or_its_dangling_judgements_are_dropped(folder: Path, tmp_path: Path) -> None:
    arguana(folder)
    assert counts(config(folder, dangling_judgements="drop")) == {"dangling_document test": 1, "dangling_document train": 2}
    with pytest.raises(DataError, match=r"rule doc_id\.references: .* 3 rows break it, first .*there is no doc_id 'dgone'"):
        require_valid(report_of(DataConfig(source=str(folder)), tmp_path))


def test_data_of_nfcorpus_kind_loses_unknown_queries_and_repetitions(folder: Path) -> None:
    nfcorpus(folder)
    tables = read_source(config(folder, 0.1))
    assert counts(config(folder, 0.1)) == {f"{rule} {split}": 1 for rule in ("dangling_query", "duplicate_judgement") for split in SPLITS}
    whole = read_source(DataConfig(source=str(write_folder(folder.parent / "clean"))))
    pd.testing.assert_frame_equal(tables.judgements, whole.judgements)


def test_nothing_is_dropped_unless_asked_for(folder: Path) -> None:
    nfcorpus(folder)
    assert len(read_source(DataConfig(source=str(folder))).judgements) == 266
    assert counts(config(folder, exact_duplicates="drop")) == {f"duplicate_judgement {split}": 1 for split in SPLITS}
    assert counts(config(folder, dangling_judgements="drop")) == {f"dangling_query {split}": 1 for split in SPLITS}
    assert counts(config(folder, blank_texts="drop")) == {}


def test_a_clean_source_is_the_same_with_and_without_dropping(folder: Path, tmp_path: Path) -> None:
    digests = []
    for name, given in (("a", DataConfig(source=str(folder))), ("b", config(folder))):
        (tmp_path / name).mkdir()
        digests.append(snapshot(given, tmp_path / name).digest)
        assert not (tmp_path / name / QUARANTINE_FILE).exists()
    assert digests[0] == digests[1]


def test_contradicting_judgements_are_never_dropped_by_any_rule(folder: Path) -> None:
    pair = ["q140\td140\t2", "q141\tgone\t1", "q141\tgone\t3", "q142\td142\t1"]
    add(folder, "test", *pair)
    tables = read_source(config(folder))
    test = tables.judgements.query("split == 'test'")
    assert test.query("query_id == 'q140'")["score"].tolist() == [1, 2]
    assert test.query("doc_id == 'gone'")["score"].tolist() == [1, 3]
    assert counts(config(folder)) == {"duplicate_judgement test": 1}


def test_the_same_pair_in_two_splits_is_no_repetition(folder: Path) -> None:
    write_lines(folder / "qrels" / "test_far.tsv", qrels("test"))
    assert counts(config(folder)) == {}


def test_blank_documents_and_queries_go_with_their_judgements(folder: Path) -> None:
    documents_, queries_ = documents(), queries()
    documents_[3]["text"], queries_[150]["text"] = "\u200b", " "
    write_rows(folder / "corpus.jsonl", documents_)
    write_rows(folder / "queries.jsonl", queries_)
    write_rows(folder / "queries_unlabelled.jsonl", [{"text": "a"}] * 30 + [{"text": "\n"}])
    given = config(folder, blank_texts="drop")
    assert counts(given) == {
        "blank_document": 1,
        "blank_query": 1,
        "blank_unlabelled_query": 1,
        "judgement_of_blank_document train": 1,
        "judgement_of_blank_query test": 1,
    }
    tables = read_source(given)
    assert [entry.unanswered for entry in tables.left_out] == [0, 0, 0, 1, 0]
    assert "d3" not in set(tables.documents["doc_id"]) and "q150" not in set(tables.queries["query_id"])


def test_a_blank_row_of_an_id_that_has_another_text_takes_no_judgement_away(folder: Path) -> None:
    write_rows(folder / "corpus.jsonl", [*documents(), {"_id": "d5", "text": " "}])
    assert counts(config(folder, blank_texts="drop")) == {"blank_document": 1}


def test_repeated_documents_of_two_files_are_dropped_and_changed_ones_are_left_to_the_contracts(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    write_rows(folder / "corpus" / "a.jsonl", documents()[:200])
    write_rows(folder / "corpus" / "b.jsonl", [*documents()[195:], {**documents()[1], "title": "another"}])
    tables = read_source(config(folder, exact_duplicates="drop"))
    assert counts(config(folder, exact_duplicates="drop")) == {"duplicate_document": 5}
    assert tables.documents["doc_id"].tolist() == [f"d{n}" for n in range(260)] + ["d1"]
    with pytest.raises(DataError, match="stands in two files"):
        read_source(config(folder, dangling_judgements="drop"))


def test_more_than_the_allowed_share_is_refused_by_split_with_the_counts(folder: Path) -> None:
    add(folder, "dev", "nobody\td1\t1", "q120\tgone\t1")
    assert counts(config(folder, 0.1)) == {"dangling_document dev": 1, "dangling_query dev": 1}
    with pytest.raises(DataError) as caught:
        read_source(config(folder))
    assert "would drop 2 of 22 judgements of the split dev (9.1%)" in str(caught.value)
    assert "1 because there is no such document (dangling_document), first query_id 'q120', doc_id 'gone'" in str(caught.value)
    assert "data.max_dropped_share allows 5.0%" in str(caught.value)


def test_every_row_is_kept_with_its_reason_and_counted_in_the_manifest(folder: Path, tmp_path: Path) -> None:
    nfcorpus(folder)
    out = tmp_path / "out"
    out.mkdir()
    (out / QUARANTINE_FILE).write_text("half of a killed attempt")
    artifact = snapshot(config(folder, 0.1), out)
    lines = [json.loads(line) for line in (out / QUARANTINE_FILE).read_text().splitlines()]
    assert len(lines) == 6
    assert {
        "rule": "dangling_query",
        "reason": "there is no such query",
        "table": "judgements",
        "row": {"query_id": "PLAIN-test", "doc_id": "d1", "score": 2, "split": "test"},
    } in lines
    assert (artifact.counts["dropped_dangling_query"], artifact.counts["dropped_duplicate_judgement"]) == (3, 3)
    assert len(load_dataset(artifact).all_judgements) == artifact.counts["judgements"] == 260


def report_of(given: DataConfig, tmp_path: Path) -> Any:
    for name in ("dataset", "validation"):
        (tmp_path / name).mkdir(exist_ok=True)
    return validate(snapshot(given, tmp_path / "dataset"), contracts_folder(""), tmp_path / "validation")


def test_the_report_says_what_was_left_out_and_from_how_many(folder: Path, tmp_path: Path) -> None:
    arguana(folder)
    validation = report_of(config(folder, dangling_judgements="drop"), tmp_path)
    require_valid(validation)
    report = load_report(validation)
    assert validation.counts["rows_left_out"] == report.dropped == 3
    assert [entry.summary for entry in report.left_out] == [
        (
            "1 of 119 judgements of the split test: there is no such document (dangling_document), first query_id 'd200', doc_id 'dgone'. "
            "1 query has no relevant document left."
        ),
        (
            "2 of 120 judgements of the split train: there is no such document (dangling_document), first query_id 'd0', doc_id 'dgone'. "
            "2 queries have no relevant document left."
        ),
    ]
    page = (validation.path / "report.html").read_text()
    assert "Rows left out of the data" in page and "dangling_document" in page and "1 of 119" in page


def test_a_refusal_names_the_setting_that_would_drop_the_rows(folder: Path, tmp_path: Path) -> None:
    nfcorpus(folder)
    with pytest.raises(DataError) as caught:
        require_valid(report_of(DataConfig(source=str(folder)), tmp_path))
    assert "leave such rows out (--set data.on_violation.dangling_judgements=drop --set data.on_violation.exact_duplicates=drop)" in str(
        caught.value
    )


def test_what_the_second_of_two_mixed_sets_loses_bears_its_name(folder: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other")
    write_rows(other / "corpus.jsonl", [{"_id": f"d{n}", "text": f"Another {n}"} for n in range(260)])
    write_rows(other / "queries.jsonl", [{"_id": f"q{n}", "text": f"what of {n}?"} for n in range(260)])
    add(other, "test", "q140\tgone\t1")
    given = config(folder).model_copy(update={"mix": (str(other),)})
    (entry,) = read_source(given).left_out
    assert (entry.source, entry.total, entry.rows.iloc[0]["doc_id"]) == ("other", 121, "gone")
    (line,) = report_and_lines(given, tmp_path)
    assert line["data_set"] == "other"


def report_and_lines(given: DataConfig, tmp_path: Path) -> list[dict[str, Any]]:
    out = tmp_path / "out"
    out.mkdir()
    snapshot(given, out)
    return [json.loads(line) for line in (out / QUARANTINE_FILE).read_text().splitlines()]


def test_one_word_stands_for_all_classes_and_others_are_refused() -> None:
    drop = ViolationConfig(dangling_judgements="drop", exact_duplicates="drop", blank_texts="drop")
    assert load_config(overrides={"data.on_violation": "drop"}).data.on_violation == drop
    assert load_config(overrides={"data.on_violation.blank_texts": "drop"}).data.on_violation == ViolationConfig(blank_texts="drop")
    assert set(DataConfig().on_violation.model_dump().values()) == {"refuse"}
    for field, value in (("data.on_violation", "ignore"), ("data.on_violation.blank_text", "drop"), ("data.max_dropped_share", 0.9)):
        with pytest.raises(ConfigError, match=field):
            load_config(overrides={field: value})
    with pytest.raises(ValidationError):
        DataConfig(max_dropped_share=0)
