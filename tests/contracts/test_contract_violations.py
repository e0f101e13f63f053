from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from components.artifacts import Artifact, verify
from components.data import validation
from components.data.config import DataConfig
from components.data.contracts import contracts_digest, contracts_folder
from components.data.dataset import normalise_text
from components.data.snapshot import snapshot
from components.data.validation import load_report, require_valid, validate
from components.data.validation_report import RuleResult
from components.errors import ConfigError, DataError
from flows.steps import validation_step
from tests.data_world import Row, documents, qrels, queries, write_folder, write_lines, write_rows

Change = Callable[[Path], object]


def check(folder: Path, contracts: Path | None = None) -> Artifact:
    work = folder.parent
    for name in ("dataset", "validation"):
        (work / name).mkdir(exist_ok=True)
    dataset = snapshot(DataConfig(source=str(folder)), work / "dataset")
    return validate(dataset, contracts or contracts_folder(""), work / "validation")


def changed_rows(name: str, rows: list[Row], **changes: Row) -> Change:
    """Rewrite a file with some rows changed; the keys are `row<number>`."""
    for key, change in changes.items():
        rows[int(key[3:])] |= change
    return lambda folder: write_rows(folder / name, rows)


def added_lines(name: str, *lines: str) -> Change:
    return lambda folder: write_lines(folder / name, [*(folder / name).read_text().splitlines(), *lines])


BROKEN: dict[str, tuple[Change, str, int, str]] = {
    "empty document": (changed_rows("corpus.jsonl", documents(), row7={"text": " \n"}), "text.not_blank", 1, "doc_id 'd7'"),
    "document without an id": (changed_rows("corpus.jsonl", documents(), row259={"_id": ""}), "doc_id.length", 1, "doc_id ''"),
    "duplicate document id": (changed_rows("corpus.jsonl", documents(), row250={"_id": "d9"}), "doc_id.unique", 2, "doc_id 'd9'"),
    "duplicate query id": (changed_rows("queries.jsonl", queries(), row9={"_id": "q8"}), "query_id.unique", 2, "query_id 'q8'"),
    "empty query": (changed_rows("queries.jsonl", queries(), row4={"text": ""}), "text.not_blank", 1, "query_id 'q4'"),
    "null query": (changed_rows("queries.jsonl", queries(), row4={"text": None}), "text.not_blank", 1, "query_id 'q4'"),
    "too long an id": (changed_rows("corpus.jsonl", documents(), row259={"_id": "x" * 600}), "doc_id.length", 1, "doc_id 'xxx"),
    "unknown document": (added_lines("qrels/test.tsv", "q1\tnowhere\t1"), "doc_id.references", 1, "there is no doc_id 'nowhere'"),
    "unknown query": (added_lines("qrels/test.tsv", "nobody\td1\t1"), "query_id.references", 1, "there is no query_id 'nobody'"),
    "negative score": (added_lines("qrels/test.tsv", "q140\td1\t-1"), "score.range", 1, "score is '-1'"),
    "too high a score": (added_lines("qrels/test.tsv", "q140\td1\t101"), "score.range", 1, "score is '101'"),
    "two scores for a pair": (added_lines("qrels/test.tsv", "q140\td140\t2"), "judgements.one_score_per_pair", 2, "query_id 'q140'"),
    "test query in train": (
        changed_rows("queries.jsonl", queries(), row150={"text": "where is number 3?"}),
        "leakage.test_in_train.exact",
        1,
        "query_id 'q150': same text as q3 in train",
    ),
    "test query in train but for case and punctuation": (
        changed_rows("queries.jsonl", queries(), row150={"text": "Where is number 3"}),
        "leakage.test_in_train.normalised",
        1,
        "query_id 'q150': same text as q3 in train",
    ),
    "query judged in both": (added_lines("qrels/test.tsv", "q5\td5\t1"), "leakage.test_in_train.exact", 1, "query_id 'q5'"),
    "too few test queries": (
        lambda folder: write_lines(folder / "qrels" / "test.tsv", qrels("test")[:7]),
        "judgements.test_queries",
        1,
        "Found: 7",
    ),
    "no train queries": (lambda folder: (folder / "qrels" / "train.tsv").unlink(), "judgements.train_queries", 1, "Found: 0"),
    "id that ends in a line break": (
        changed_rows("queries.jsonl", queries(), row9={"_id": "q9\n"}),
        "query_id.references",
        1,
        "there is no query_id 'q9', but there is 'q9\\n': they differ in white space at an end",
    ),
    "id in another of Unicode's forms": (
        changed_rows("corpus.jsonl", documents(), row150={"_id": "e\u0301150"}, row151={"_id": "\u200bd151"}),
        "doc_id.references",
        2,
        "there is no doc_id 'd151', but there is '\\u200bd151' where this is 'd151': they look the same and are other characters",
    ),
    "id that lost its leading zeros, or became a decimal number": (
        lambda folder: (
            write_rows(folder / "corpus.jsonl", [*documents(), *({"_id": name, "text": "more"} for name in ("007", "8"))]),
            write_lines(folder / "qrels" / "train.tsv", [*qrels("train"), "q1\t7\t1", "q2\t8.0\t1"]),
        ),
        "doc_id.references",
        2,
        "there is no doc_id '8.0', but there is '8': they are one number, written otherwise",
    ),
    "id with a blank within": (changed_rows("corpus.jsonl", documents(), row250={"_id": "d 250"}), "doc_id.no_spaces", 1, "doc_id 'd 250'"),
    "id with a blank at its end": (
        changed_rows("queries.jsonl", queries(), row150={"_id": "q150 "}),
        "query_id.no_spaces",
        1,
        "query_id 'q150 '",
    ),
    "document of letters that nobody sees": (
        changed_rows("corpus.jsonl", documents(), row7={"text": "\u200b\u00ad"}),
        "text.not_blank",
        1,
        "doc_id 'd7'",
    ),
    "too few documents": (lambda folder: write_rows(folder / "corpus.jsonl", documents()[:3]), "documents.minimum", 1, "Found: 3"),
}


def test_data_that_breaks_nothing_is_accepted(tmp_path: Path) -> None:
    validation = check(write_folder(tmp_path / "data"))
    assert validation.attributes["passed"] is True
    assert (validation.attributes["errors"], validation.attributes["warnings"]) == (0, 0)
    assert validation.attributes["contracts"] == "documents 1.1.0, judgements 1.0.0, queries 1.4.0"
    assert validation.counts["rules"] > 60
    verify(validation.path)
    require_valid(validation)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_data_is_refused_by_rule_count_and_row(tmp_path: Path, name: str) -> None:
    change, rule, count, row = BROKEN[name]
    folder = write_folder(tmp_path / "data")
    change(folder)
    validation = check(folder)
    assert validation.attributes["passed"] is False
    broken = {result.rule: result for result in load_report(validation).errors}
    assert broken[rule].count == count
    with pytest.raises(DataError) as caught:
        require_valid(validation)
    line = next(line for line in str(caught.value).splitlines() if f"rule {rule}:" in line)
    assert line.startswith(f"  - contract {broken[rule].contract} {broken[rule].version}, rule {rule}: ")
    assert row in line


def warnings(folder: Path) -> dict[str, RuleResult]:
    validation = check(folder)
    require_valid(validation)
    return {result.rule: result for result in load_report(validation).warnings}


def test_equal_documents_long_texts_and_further_leaks_only_warn(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    rows = documents()
    rows[1] |= {"title": rows[2]["title"], "text": rows[2]["text"]}
    rows[5]["text"] = "long " * 30_000
    write_rows(folder / "corpus.jsonl", rows)
    write_lines(folder / "qrels" / "holdout.tsv", ["q2\td2\t1"])
    write_rows(folder / "queries_unlabelled.jsonl", [{"_id": "u1", "text": "Where is number 141"}])
    found = warnings(folder)
    assert found["documents.duplicate_content"].count == 2
    assert found["text.long"].offenders[0].ids == {"doc_id": "d5"}
    assert str(found["leakage.further_splits_in_train.normalised"].offenders[0]) == "query_id 'q2': same text as q2 in train"
    assert "leakage.further_splits_in_dev.normalised" not in found and "leakage.further_splits_in_test.normalised" not in found
    assert str(found["leakage.test_in_unlabelled.normalised"].offenders[0]) == "query_id 'u1': same text as q141 in test"


def test_a_further_split_that_repeats_dev_or_test_queries_is_warned_of(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    dev, test = ((folder / "qrels" / f"{split}.tsv").read_text().splitlines()[1].split("\t")[0] for split in ("dev", "test"))
    write_lines(folder / "qrels" / "others.tsv", [f"{dev}\td2\t1", f"{test}\td2\t1"])
    texts = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines())}
    write_rows(folder / "queries_unlabelled.jsonl", [{"_id": "u1", "text": texts[dev].upper()}])
    found = warnings(folder)
    assert str(found["leakage.further_splits_in_dev.normalised"].offenders[0]) == f"query_id '{dev}': same text as {dev} in dev"
    assert str(found["leakage.further_splits_in_test.normalised"].offenders[0]) == f"query_id '{test}': same text as {test} in test"
    assert str(found["leakage.dev_in_unlabelled.normalised"].offenders[0]) == f"query_id 'u1': same text as {dev} in dev"


def with_contract(tmp_path: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    """Our contracts with one of them changed."""
    contracts = tmp_path / "contracts"
    contracts.mkdir(exist_ok=True)
    for path in contracts_folder("").glob("*.yaml"):
        (contracts / path.name).write_text(path.read_text())
    contract = yaml.safe_load((contracts / f"{name}.yaml").read_text())
    change(contract["schema"])
    (contracts / f"{name}.yaml").write_text(yaml.safe_dump(contract))
    return contracts


@pytest.mark.parametrize(
    ("held_out", "seen", "found"),
    [("tset", "train", "no judgement is of the split 'tset'; the data has dev, test, train"), ("test", "trian", "the split 'trian'")],
)
def test_a_leakage_rule_about_a_split_that_is_not_there_does_not_pass(tmp_path: Path, held_out: str, seen: str, found: str) -> None:
    implementation = {"rule": "no_leakage", "held_out": held_out, "seen": seen, "match": "exact"}
    rule = {"name": "mine", "type": "custom", "engine": "scalingnote", "implementation": implementation}
    contracts = with_contract(tmp_path, "queries", lambda tables: tables[0]["quality"].append(rule))
    (broken,) = load_report(check(write_folder(tmp_path / "data"), contracts)).errors
    assert broken.rule == "mine"
    assert "Found: could not be checked: " in broken.summary and found in broken.summary


def test_unlabelled_queries_can_be_the_held_out_side_under_either_table(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    unlabelled = [{"_id": f"u{n}", "text": f"something else {n}"} for n in range(300)]
    unlabelled[250]["text"] = "where is number 170?"
    write_rows(folder / "queries_unlabelled.jsonl", unlabelled)
    implementation = {"rule": "no_leakage", "held_out": "unlabelled", "seen": "test", "match": "exact"}
    rule = {"name": "mine", "type": "custom", "engine": "scalingnote", "implementation": implementation}
    for table, row in ((0, "query_id 'q170': same text as u250 in unlabelled"), (1, "query_id 'u250': same text as q170 in test")):
        contracts = with_contract(tmp_path, "queries", lambda tables, table=table: tables[table]["quality"].append(rule))
        (broken,) = load_report(check(folder, contracts)).errors
        assert (broken.rule, broken.count, str(broken.offenders[0])) == ("mine", 1, row)


def test_test_and_dev_queries_that_are_titles_are_warned_of(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    rows = documents()
    rows[7]["title"], rows[8]["title"] = "Where is number 150", "where is  number 170?"
    write_rows(folder / "corpus.jsonl", rows)
    report = load_report(check(folder))
    assert not report.errors
    found = {result.rule: result for result in report.warnings}
    assert {name for name in found if "titles" in name} == {"leakage.test_in_titles.normalised"}
    assert found["leakage.test_in_titles.normalised"].count == 2
    assert str(found["leakage.test_in_titles.normalised"].offenders[0]) == f"query_id 'q150': same text as {rows[7]['_id']} in titles"


def test_an_id_with_a_line_break_forges_no_line_where_a_leak_is_told(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    unlabelled = {"_id": "u1\n  - no leak at all", "text": "where is number 150?"}
    write_rows(folder / "queries_unlabelled.jsonl", [unlabelled])
    rule = {"rule": "no_leakage", "held_out": "test", "seen": "unlabelled", "match": "exact"}
    entry = {"name": "mine", "type": "custom", "engine": "scalingnote", "implementation": rule}
    contracts = with_contract(tmp_path, "queries", lambda tables: tables[0]["quality"].append(entry))
    (broken,) = load_report(check(folder, contracts)).errors
    assert str(broken.offenders[0]) == "query_id 'q150': same text as u1\\n  - no leak at all in unlabelled"


ASKED: dict[str, tuple[Change, str, list[str]]] = {
    "row_count": (
        lambda folder: write_rows(folder / "corpus.jsonl", documents()[:12]),
        "documents.minimum",
        ["rows of documents is at least 20", "Found: 12"],
    ),
    "judged_queries": (
        lambda folder: write_lines(folder / "qrels" / "test.tsv", qrels("test")[:12]),
        "judgements.test_queries",
        ["queries of the split test with a relevant document is at least 20", "Found: 12"],
    ),
    "length": (
        changed_rows("corpus.jsonl", documents(), row259={"_id": "x" * 600}),
        "doc_id.length",
        ["number of characters of doc_id is from 1 to 512", "doc_id has 600 characters"],
    ),
    "pattern": (changed_rows("corpus.jsonl", documents(), row259={"_id": "d 259"}), "doc_id.no_spaces", [r"doc_id matches ^\S*\Z"]),
    "range": (added_lines("qrels/test.tsv", "q140\td1\t101"), "score.range", ["score is from 0 to 100", "score is '101'"]),
    "references": (added_lines("qrels/test.tsv", "q1\tx\t1"), "doc_id.references", ["doc_id is one of documents.doc_id"]),
    "unique": (changed_rows("queries.jsonl", queries(), row9={"_id": "q8"}), "query_id.unique", ["query_id is there once only"]),
    "unique_together": (
        added_lines("qrels/test.tsv", "q140\td140\t2"),
        "judgements.one_score_per_pair",
        ["split, query_id, doc_id together are there once only"],
    ),
    "not_blank": (changed_rows("queries.jsonl", queries(), row4={"text": ""}), "text.not_blank", ["text has a visible character"]),
    "no_leakage": (
        changed_rows("queries.jsonl", queries(), row150={"text": "where is number 3?"}),
        "leakage.test_in_train.exact",
        ["no text of a query of test stands in train (exact)"],
    ),
}


@pytest.mark.parametrize("check_name", ASKED)
def test_every_message_states_what_was_asked_and_what_was_found(tmp_path: Path, check_name: str) -> None:
    change, name, words = ASKED[check_name]
    folder = write_folder(tmp_path / "data")
    change(folder)
    report = load_report(check(folder))
    (broken,) = (result for result in (*report.errors, *report.warnings) if result.rule == name)
    for word in words:
        assert word in broken.summary


def test_the_rules_of_a_contract_of_ones_own_state_what_they_ask(tmp_path: Path) -> None:
    def change(tables: list[dict[str, Any]]) -> None:
        score, split = (next(c for c in tables[0]["properties"] if c["name"] == name) for name in ("score", "split"))
        score["logicalTypeOptions"] = {"minimum": 5, "maximum": 5}
        split["enum"] = [{"value": "train"}, {"value": "eval"}]
        tables[0]["quality"].append({"name": "mine", "type": "library", "metric": "rowCount", "mustBeLessThan": 10, "description": "Few"})

    contracts = with_contract(tmp_path, "judgements", change)
    broken = {result.rule: result.summary for result in load_report(check(write_folder(tmp_path / "data"), contracts)).errors}
    assert "score is exactly 5." in broken["score.range"]
    assert "split is one of train, eval." in broken["split.allowed_values"]
    assert "Few. Asked: the number of rows of judgements is at most 9. Found: 260" in broken["mine"]


def test_queries_of_punctuation_alone_do_not_count_as_equal(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    changed_rows("queries.jsonl", queries(), row0={"text": "$?"}, row150={"text": "$!"})(folder)
    require_valid(check(folder))


def test_a_text_that_begins_with_white_space_is_not_blank(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    changed_rows("corpus.jsonl", documents(), row0={"text": "\n\u200b \u00a0 words"})(folder)
    require_valid(check(folder))


def test_missing_values_of_a_parquet_source_are_found(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "corpus.jsonl").unlink()
    frame = pd.DataFrame([{"doc_id": row["_id"], "title": row["title"], "text": row["text"]} for row in documents()])
    frame.loc[3, "text"] = None
    frame.to_parquet(folder / "corpus.parquet")
    broken = {result.rule: result for result in load_report(check(folder)).errors}
    assert broken["text.required"].offenders[0].ids == {"doc_id": "d3"}


def test_first_offenders_only_but_all_are_counted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    rows = documents()
    for row in rows[:100]:
        row["text"] = ""
    write_rows(folder / "corpus.jsonl", rows)
    result = load_report(check(folder)).errors[0]
    assert result.count == 100
    assert [offender.ids["doc_id"] for offender in result.offenders] == ["d0", "d1", "d2", "d3", "d4"]


def test_the_contract_decides_what_is_an_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    changed_rows("corpus.jsonl", documents(), row7={"text": ""})(folder)
    contracts = tmp_path / "contracts"
    contracts.mkdir()
    for path in contracts_folder("").glob("*.yaml"):
        (contracts / path.name).write_text(path.read_text())
    contract = yaml.safe_load((contracts / "documents.yaml").read_text())
    text = next(column for column in contract["schema"][0]["properties"] if column["name"] == "text")
    next(rule for rule in text["quality"] if rule["name"] == "text.not_blank")["severity"] = "warning"
    contract["version"] = "2.0.0"
    (contracts / "documents.yaml").write_text(yaml.safe_dump(contract))
    validation = check(folder, contracts)
    require_valid(validation)
    assert validation.attributes["warnings"] == 1
    assert str(validation.attributes["contracts"]).startswith("documents 2.0.0")


def test_the_page_needs_nothing_from_outside_and_escapes_the_data(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    changed_rows("corpus.jsonl", documents(), row7={"text": "", "_id": "<script>alert(1)</script>"})(folder)
    page = (check(folder).path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "Refused" in page


def test_the_same_data_gives_the_same_report(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    assert check(folder).digest == check(folder).digest


def dirty(folder: Path) -> Path:
    """Rows that break most rules, some of them several at once, and rows that only look as if they did."""
    write_folder(folder)
    texts = [" ", "\u200b", "x" * 2001, "caf\u00e9", "CAF\u00c9", "10\u00b2", "102", "a\u00a0b", "Entry 3", "?!", None, "y" * 100_001]
    ids = ["", "d1 ", "d 1", "d\u00a01", "d9", "d9", "x" * 600, "d1\n", "ok"]
    rows = [{"_id": ids[n % len(ids)], "title": texts[n % 12], "text": texts[n % 7]} for n in range(70)]
    write_rows(folder / "corpus.jsonl", [*documents(), *rows])
    asked = [{"_id": row["_id"].replace("d", "q"), "text": row["title"]} for row in rows]
    write_rows(folder / "queries.jsonl", [*queries(), *asked])
    write_rows(folder / "unlabelled.jsonl", [{"_id": f"u{n % 11}", "text": texts[n % 12]} for n in range(40)])
    for split in ("train", "dev", "test", "test_x"):
        judged = [f"q{n}\td{n}\t{n % 3 * 60 - 1}" for n in (3, 9, 9, 270)]
        known = qrels(split) if split != "test_x" else []
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *known, *judged])
    return folder


OWN = """
apiVersion: v3.1.0
kind: DataContract
id: own
name: own
version: 1.0.0
status: active
schema:
  - name: documents
    properties:
      - {name: doc_id, logicalType: integer, required: true, unique: true, logicalTypeOptions: {minLength: 2, pattern: '^[\\w ]+$'}}
      - {name: title, logicalType: string, enum: [{value: Entry 3}, {value: '?!'}], logicalTypeOptions: {pattern: '(?i)entry|caf(?=é)'}}
      - {name: text, logicalTypeOptions: {minLength: 3, minimum: 3}}
  - name: queries
    properties: [{name: query_id, relationships: [{type: foreignKey, to: documents.doc_id}]}]
    quality:
      - {name: exact, type: custom, engine: scalingnote, implementation: {rule: no_leakage, held_out: 'test*', seen: titles, match: exact}}
      - name: own
        type: custom
        engine: scalingnote
        implementation: {rule: no_leakage, held_out: unlabelled, seen: t*, match: normalised}
      - {name: both, type: library, metric: duplicateValues, mustBe: 0, arguments: {properties: [query_id, text]}}
  - name: judgements
    properties:
      - {name: score, logicalType: number, logicalTypeOptions: {maximum: 1}, enum: [{value: '0'}]}
      - {name: split, logicalType: boolean, enum: [{value: train}]}
"""


@pytest.mark.parametrize("own", [False, True])
def test_a_suite_finds_in_the_rows_that_it_is_shown_what_it_finds_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    folder, contracts = dirty(tmp_path / "data"), contracts_folder("")
    if own:
        contracts = tmp_path / "contracts"
        write_lines(contracts / "own.yaml", OWN.strip().splitlines())
    shown = load_report(check(folder, contracts))
    monkeypatch.setattr(validation, "may_break", lambda frame, helpers, rules: np.ones(len(frame), bool))
    assert load_report(check(folder, contracts)) == shown
    assert len([result for result in shown.results if not result.passed]) > 10
    assert {result.checked for result in shown.results if result.table == "documents"} == {330}


def test_of_documents_without_fault_a_suite_is_shown_one_and_few_titles_are_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "data")
    write_rows(folder / "corpus.jsonl", [row | {"_id": f"d{n}", "text": f"{row['text']} {n}"} for n, row in enumerate(documents() * 8)])
    shown: list[int] = []
    sieve = validation.may_break

    def noted(*arguments: Any) -> Any:
        rows = sieve(*arguments)
        shown.append(int(rows.sum()))
        return rows

    monkeypatch.setattr(validation, "may_break", noted)
    normalised: list[str] = []
    monkeypatch.setattr(validation, "_normalised", lru_cache(None)(lambda text: normalised.append(text) or normalise_text(text)))
    require_valid(check(folder))
    assert shown == [1, 1, 1, 0]  # documents, judgements, queries; none are unlabelled
    assert len(normalised) == 140  # queries of dev and test, none of train, and none of 2,080 titles


def test_contracts_that_change_while_they_are_read_are_not_checked_under_the_key_of_others(tmp_path: Path) -> None:
    contracts = tmp_path / "contracts"
    shutil.copytree(contracts_folder(""), contracts)
    folder, digest = write_folder(tmp_path / "data"), contracts_digest(contracts)
    dataset = snapshot(DataConfig(source=str(folder)), empty(tmp_path / "dataset"))
    assert validate(dataset, contracts, empty(tmp_path / "first"), digest).attributes["passed"]
    queries_contract = contracts / "queries.yaml"
    queries_contract.write_text(queries_contract.read_text().replace("severity: error", "severity: warning"))
    with pytest.raises(ConfigError, match=r"The contracts in .* changed while they were read"):
        validate(dataset, contracts, empty(tmp_path / "second"), digest)
    assert not any((tmp_path / "second").iterdir())
    config: Any = SimpleNamespace(data=SimpleNamespace(contracts=str(contracts)))
    step = validation_step(config, dataset)  # its key is that of the contracts as they are now
    queries_contract.write_text(queries_contract.read_text().replace("severity: warning", "severity: error"))
    with pytest.raises(ConfigError, match=r"The contracts in .* changed while they were read"):
        step.make(empty(tmp_path / "third"))


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_queries_of_emoji_alone_leak_only_where_they_are_the_same(tmp_path: Path) -> None:
    folder, rows = write_folder(tmp_path / "data"), queries()
    texts = {0: "🍕", 1: "🍣🍶", 150: " 🍕 ", 151: "🍶🍣", 152: "->"}
    for number, text in texts.items():
        rows[number]["text"] = text
    write_rows(folder / "queries.jsonl", rows)
    broken = {result.rule: result.count for result in load_report(check(folder)).errors}
    assert broken == {"leakage.test_in_train.normalised": 1}
