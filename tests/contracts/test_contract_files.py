from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard

from components.data import validation
from components.data.contracts import Check, Place, contracts_digest, contracts_folder, load_contracts, regular_expression
from components.data.validation import compile_suite
from components.errors import ConfigError
from tests.third_party import there, tool

OURS = contracts_folder("")
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OURS, tmp_path / "contracts"))


def refused(folder: Path, name: str, change: Change) -> str:
    """Change one contract, its first table given to `change`, and return the message that refuses it."""
    path = folder / f"{name}.yaml"
    contract = yaml.safe_load(path.read_text())
    change(contract["schema"][0])
    path.write_text(yaml.safe_dump(contract))
    with pytest.raises(ConfigError) as caught:
        load_contracts(folder)
    return str(caught.value)


def quality(**fields: Any) -> Change:
    return lambda table: table["quality"].append(fields)


def leakage(held_out: str, seen: str) -> Change:
    implementation = {"rule": "no_leakage", "held_out": held_out, "seen": seen, "match": "exact"}
    return quality(type="custom", engine="scalingnote", implementation=implementation)


@pytest.mark.parametrize("path", sorted(OURS.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_contracts_follow_the_standard(path: Path) -> None:
    contract = yaml.safe_load(path.read_text())
    assert contract["apiVersion"] == "v3.1.0"
    jsonschema.validate(contract, json.loads(OpenDataContractStandard.json_schema()))


@pytest.mark.skipif(not there("datacontract"), reason="datacontract-cli is not installed")
@pytest.mark.parametrize("path", sorted(OURS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_linter_of_the_data_contract_cli_passes_our_contracts(path: Path, tmp_path: Path) -> None:
    program = str(tool("datacontract"))
    linted = subprocess.run([program, "lint", path], capture_output=True, text=True, timeout=600, check=False)
    assert linted.returncode == 0 and "Data contract is valid" in linted.stdout, linted.stdout + linted.stderr
    contract = yaml.safe_load(path.read_text())
    del contract["version"]
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(contract))
    broken = subprocess.run([program, "lint", tmp_path / "broken.yaml"], capture_output=True, text=True, timeout=600, check=False)
    assert broken.returncode != 0, "it looks into the file"


def test_every_check_has_an_expectation_and_says_which_rows_may_break_it() -> None:
    assert set(get_args(Check)) == set(validation._COMPILERS) == {*validation._SIEVES, *validation._OF_ALL_ROWS}


def test_every_rule_is_compiled_and_names_its_contract() -> None:
    for contract in load_contracts(OURS):
        for table in {rule.table for rule in contract.rules}:
            suite = compile_suite(contract, table)
            rules = [rule for rule in contract.rules if rule.table == table]
            assert [expectation.meta["rule"] for expectation in suite.expectations] == [rule.name for rule in rules]
            for expectation, rule in zip(suite.expectations, rules, strict=True):
                assert expectation.meta["contract"] == contract.name
                assert expectation.meta["version"] == contract.version
                assert expectation.severity.value == {"error": "critical", "warning": "warning"}[rule.severity]


def test_what_the_contracts_cover() -> None:
    rules = {(rule.table, rule.check) for contract in load_contracts(OURS) for rule in contract.rules}
    for table in ("documents", "queries"):
        assert {(table, check) for check in ("type", "unique", "not_blank", "length", "row_count")} <= rules
    assert {("judgements", check) for check in ("references", "range", "unique_together", "judged_queries")} <= rules
    assert ("queries", "no_leakage") in rules


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("queries", quality(type="library", metric="uniqueness", mustBe=0), "unknown metric 'uniqueness'. Allowed: rowCount, duplicate"),
        (
            "queries",
            quality(type="custom", engine="scalingnote", implementation={"rule": "no_leaks"}),
            "unknown rule 'no_leaks'. Allowed: not_blank, length, no_leakage, judged_queries",
        ),
        ("queries", quality(type="custom", engine="soda", implementation={"rule": "x"}), "needs 'engine: scalingnote'"),
        ("queries", quality(type="sql", query="SELECT 1", mustBe=0), "of type 'sql' would not be checked. Allowed: library, custom"),
        ("queries", quality(type="library", metric="rowCount", mustBeGreaterThan=1, severity="fatal"), "Allowed: error, warning"),
        ("queries", quality(type="library", metric="rowCount"), "rowCount needs exactly one of"),
        ("queries", quality(type="library", metric="rowCount", mustBeBetween=[9, 3]), "9 is above the largest, 3"),
        ("queries", quality(type="library", metric="nullValues", mustBe=0), "belongs under a column"),
        (
            "queries",
            quality(type="custom", engine="scalingnote", implementation={"rule": "no_leakage", "held_out": "test", "seen": "train"}),
            "needs the parameter 'match'",
        ),
        (
            "documents",
            quality(type="custom", engine="scalingnote", implementation={"rule": "judged_queries", "split": "test", "min": 3}),
            "belongs under the table judgements",
        ),
        ("judgements", quality(type="library", metric="duplicateValues", mustBe=0, arguments={"properties": ["a", "b"]}), "two or more of"),
        ("documents", lambda table: table.update(name="docs"), "there is no such table. Allowed: documents, queries"),
        ("documents", lambda table: table["properties"][0].update(name="id"), "there is no column 'id'. Allowed: doc_id"),
        ("documents", lambda table: table["properties"][0].update(logicalType="date"), "Allowed: string, integer, number, boolean"),
        ("documents", lambda table: table["properties"][1].update(logicalTypeOptions={"format": "uri"}), "the option 'format'"),
        ("documents", lambda table: table["properties"][1].update(logicalTypeOptions={"pattern": "("}), "not a regular expression"),
        ("documents", lambda table: table["properties"][1].update(logicalTypeOptions={"maxLength": "x"}), "must be a whole number"),
        ("judgements", lambda table: table["properties"][0]["relationships"][0].update(to="users.id"), "relationship to 'users.id'"),
        ("judgements", lambda table: table["properties"][0]["relationships"][0].update(to="judgements.score"), "a score is a number"),
        ("judgements", lambda table: table["properties"][2].update(relationships=[{"to": "queries.query_id"}]), "a score is a number"),
        ("documents", lambda table: table.update(qualty=[]), "schema.0.qualty is no field"),
        ("documents", lambda table: table["properties"][2].update(requird=True), "schema.0.properties.2.requird is no field"),
        ("documents", lambda table: table["properties"][2]["quality"][0].update(severty="error"), "quality.0.severty is no field"),
        ("queries", lambda table: table["quality"].append(table["quality"][0]), "two rules named 'queries.minimum'"),
        ("queries", quality(type="library", metric="rowCount", mustBeLessThan=0), "counts something and cannot be below 0; found -1"),
        ("documents", lambda table: table["properties"][1].update(logicalTypeOptions={"maxLength": -1}), "cannot be below 0; found -1"),
        ("judgements", lambda table: table["properties"][2].update(logicalTypeOptions={"minimum": 1, "maximum": -1}), "1 is above the"),
        ("queries", leakage("unlabelled", "unlabelled"), "a query always equals itself. Name two splits"),
        ("queries", leakage("titles", "test"), "they can be seen only"),
        ("queries", leakage("train", "train"), "a query always equals itself. Name two splits"),
    ],
)
def test_a_contract_that_cannot_be_checked_is_refused(folder: Path, name: str, change: Change, message: str) -> None:
    found = refused(folder, name, change)
    assert message in found
    assert f"{name}.yaml" in found


def test_a_contract_whose_name_is_no_utf_8_is_refused_by_name(folder: Path) -> None:
    (folder / os.fsdecode(b"old\xff.yaml")).write_text("a: 1")
    with pytest.raises(ConfigError, match=r"the name b'old\\xff\.yaml' of a contract is not UTF-8"):
        contracts_digest(folder)


def test_a_table_without_a_contract_and_an_empty_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "judgements.yaml").unlink()
    with pytest.raises(ConfigError, match="no contract for the table judgements"):
        load_contracts(folder)
    with pytest.raises(ConfigError, match="No contracts"):
        load_contracts(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- a", "YAML"), ("", "queries.yaml"), ("kind: DataContract\nid: x", "expected kind: DataContract")],
)
def test_a_file_that_is_no_contract_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "queries.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_contracts(folder)
    assert "queries.yaml" in str(caught.value)
    assert message in str(caught.value) or message == "YAML"


def test_the_digest_of_the_contracts_follows_their_content(folder: Path) -> None:
    assert contracts_digest(folder) == contracts_digest(OURS)
    with (folder / "queries.yaml").open("a") as handle:
        handle.write("# a remark\n")
    assert contracts_digest(folder) != contracts_digest(OURS)


def test_two_contracts_of_one_name_are_refused_with_both_files(folder: Path) -> None:
    shutil.copy(folder / "documents.yaml", folder / "documents-old.yaml")
    with pytest.raises(ConfigError, match=r"two contracts of the name 'documents': documents-old\.yaml and documents\.yaml"):
        load_contracts(folder)


def test_a_leakage_rule_about_no_row_of_its_table_is_refused(folder: Path) -> None:
    contract = yaml.safe_load((folder / "queries.yaml").read_text())
    leakage("test", "train")(contract["schema"][1])
    (folder / "queries.yaml").write_text(yaml.safe_dump(contract))
    with pytest.raises(ConfigError, match="a rule of test and train belongs under the table queries"):
        load_contracts(folder)


UNDER_A_TEXT = "        quality:\n          - name: text.not_blank"
SIDES = "held_out: dev, seen: titles"


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("documents", UNDER_A_TEXT, f"        quality: []\n{UNDER_A_TEXT}", "the field 'quality' is given twice"),
        ("documents", "maxLength: 10000}", "maxLength: 010000}", "the number 010000 is not in plain digits"),
        ("documents", "status: active", "status: active\ncontractCreatedTs: 2026-02-30", "is no timestamp"),
        ("documents", "schema:", f"description: {'[' * 5000}\nschema:", "nested too deeply"),
        ("documents", "metric: rowCount", "metric: rowCount\n        unit: percent", "is checked without 'unit'"),
        ("documents", "metric: rowCount", "metric: rowCount\n        query: SELECT 1", "is checked without 'query'"),
        ("documents", "{rule: not_blank}", "{rule: not_blank}\n            mustBeLessThan: 5", "without 'mustBeLessThan'"),
        ("documents", "{pattern: '^\\S*$'}", "{pattern: [a]}", "a pattern is a text in quotes; found ['a']"),
        ("documents", "^\\S*$", "[[:alpha:]]", "holds [:alpha:], which Python's expressions do not know"),
        ("documents", "{pattern: '^\\S*$'}", "{pattern: }", "a pattern is a text in quotes; found None"),
        (
            "documents",
            UNDER_A_TEXT,
            UNDER_A_TEXT.replace(
                "text.not_blank",
                "n\n            metric: missingValues\n            mustBe: 0\n            arguments: {missingValues: [N/A]}",
            )
            + "\n          - name: text.not_blank",
            "missingValues takes no arguments here; found missingValues. Words such as N/A are found by invalidValues",
        ),
        ("judgements", "[split, query_id, doc_id]", "[[split], query_id]", "with two or more of: query_id, doc_id, score, split"),
        ("judgements", "split: train, min: 20", "split: [train], min: 20", "split must be the name of one split; found ['train']"),
        ("judgements", "to: queries.query_id", "to: queries.query_id\n            from: judgements.doc_id", "starts from its own column"),
        ("queries", SIDES, "held_out: 2024, seen: train", "held_out must be the name of one split; found 2024. Put it in quotes."),
        ("queries", SIDES, "held_out: [dev, test], seen: train", "held_out must be the name of one split; found ['dev', 'test']"),
        ("queries", SIDES, "held_out: unlabelled, seen: titles", "a rule of unlabelled and titles belongs under the table unlabelled"),
    ],
)
def test_what_a_contract_asks_for_and_nobody_would_check_is_refused(name: str, before: str, after: str, message: str, folder: Path) -> None:
    text = (folder / f"{name}.yaml").read_text()
    assert before in text
    (folder / f"{name}.yaml").write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        load_contracts(folder)
    assert message in str(caught.value) and f"{name}.yaml" in str(caught.value)


def test_fields_of_a_contract_may_be_merged_and_its_file_may_end_in_capitals(folder: Path) -> None:
    path = folder / "documents.yaml"
    text = path.read_text().replace("logicalTypeOptions: {maxLength: 10000}", "logicalTypeOptions: {<<: &most {maxLength: 10000}}")
    text = text.replace("logicalTypeOptions: {maxLength: 10000000}", "logicalTypeOptions: {<<: *most, maxLength: 500}")
    path.write_text(text)
    rules = {rule.name: rule.parameters for contract in load_contracts(folder) for rule in contract.rules if rule.table == "documents"}
    assert (rules["title.length"], rules["text.length"]) == ({"max": 10000}, {"max": 500})
    path.rename(folder / "documents.YAML")
    (folder / ".#documents.yaml").symlink_to("somebody@desk.4711")  # of Emacs, while the file is open there
    assert len(load_contracts(folder)) == len(load_contracts(OURS))


def test_rows_may_be_named_as_the_unit_of_a_number_of_rows(folder: Path) -> None:
    path = folder / "documents.yaml"
    path.write_text(path.read_text().replace("metric: rowCount", "metric: rowCount\n        unit: rows", 1))
    assert load_contracts(folder)


def test_a_contract_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "further.yaml").mkdir()
    for reading in (load_contracts, contracts_digest):
        with pytest.raises(ConfigError, match=r"further\.yaml cannot be read: Is a directory"):
            reading(folder)
    with pytest.raises(ConfigError, match="No contracts"):
        load_contracts(folder / "documents.yaml")


def test_a_bound_below_zero_is_a_number_like_any_other(folder: Path) -> None:
    contract = yaml.safe_load((folder / "judgements.yaml").read_text())
    contract["schema"][0]["properties"][2]["logicalTypeOptions"] = {"maximum": -1}
    (folder / "judgements.yaml").write_text(yaml.safe_dump(contract))
    (rule,) = (rule for loaded in load_contracts(folder) for rule in loaded.rules if rule.name == "score.range")
    assert rule.parameters == {"max": -1}


@pytest.mark.parametrize(
    ("written", "meant"),
    [(r"^\S*$", r"^\S*\Z"), (r"^a$|^b$", r"^a\Z|^b\Z"), (r"[$]\$", r"[$]\$"), (r"[]$]$", r"[]$]\Z"), ("(?m)^a$", "(?m)^a$")],
)
def test_the_end_of_a_pattern_is_the_end_of_the_text(written: str, meant: str) -> None:
    assert regular_expression(written, Place("c", "1", "f", "documents")) == meant
