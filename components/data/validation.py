"""Validate a dataset against its contracts: compile their rules to suites, run them, and stop a flow that must not train on it.

A rule that looks at more than one table works on a column that is computed for it. Each holds, under the rule's name, an explanation in the
rows that break the rule and nothing in all others (for `judged_queries`: the ids that count). So the suite itself only checks single
columns, which stays fast for millions of rows.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from components.artifacts import Artifact, DatasetArtifact, Scalar, file_sha256, read_versioned, seal, write_atomic, write_json
from components.data.contracts import FURTHER, TITLES, UNLABELLED, Check, Contract, Rule, contracts_digest, load_contracts
from components.data.dataset import NAMED_SPLITS, Dataset, are_among, load_dataset, may_read_as, normalise_text
from components.data.left_out import read_left_out
from components.data.validation_report import (
    SCHEMA_VERSION,
    ContractUsed,
    Offender,
    RowsLeftOut,
    RuleResult,
    ValidationReport,
    render,
    requirement,
)
from components.data.values import on_one_line
from components.errors import ArtifactError, ConfigError, DataError
from components.text import INVISIBLE, VISIBLE

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.data_context import AbstractDataContext
    from great_expectations.expectations import Expectation


# What a column of a logical type holds once a table is read with its text columns as Python strings, or with pandas' nullable types.
_PHYSICAL_TYPES = {
    "string": ["str", "StringDtype"],
    "integer": ["int64", "Int64Dtype"],
    "number": ["int64", "float64", "Int64Dtype", "Float64Dtype"],
    "boolean": ["bool", "BooleanDtype"],
}
_DIGITS = re.compile(r"0*([0-9]+)(?:\.0+)?")
_UNSEEN = re.compile(f"[{INVISIBLE}]")
_SEVERITIES = {"error": "critical", "warning": "warning"}


def compile_suite(contract: Contract, table: str, without: Container[str] = ()) -> ExpectationSuite:
    """The suite of one table, one expectation for each rule but those named in `without`, in the contract's order."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    rules = [rule for rule in contract.rules if rule.table == table and rule.name not in without]
    return gx.ExpectationSuite(name=f"{contract.name}-{contract.version}-{table}", expectations=[_expectation(rule) for rule in rules])


def _expectation(rule: Rule) -> Expectation:
    from great_expectations import expectations as gxe

    name, arguments = _COMPILERS[rule.check](rule)
    meta = {"contract": rule.contract, "version": rule.version, "rule": rule.name, "table": rule.table, "severity": rule.severity}
    expectation: Expectation = getattr(gxe, name)(**arguments, meta=meta, severity=_SEVERITIES[rule.severity])
    return expectation


def _bounds(rule: Rule) -> dict[str, Any]:
    return {"min_value": rule.parameters.get("min"), "max_value": rule.parameters.get("max")}


def _column(rule: Rule) -> dict[str, Any]:
    return {"column": rule.column}


def _helper(rule: Rule) -> dict[str, Any]:
    return {"column": helper_column_name(rule)}


_COMPILERS: dict[Check, Callable[[Rule], tuple[str, dict[str, Any]]]] = {
    "column_exists": lambda rule: ("ExpectColumnToExist", _column(rule)),
    "type": lambda rule: ("ExpectColumnValuesToBeInTypeList", {**_column(rule), "type_list": _PHYSICAL_TYPES[rule.parameters["type"]]}),
    "not_null": lambda rule: ("ExpectColumnValuesToNotBeNull", _column(rule)),
    "unique": lambda rule: ("ExpectColumnValuesToBeUnique", _column(rule)),
    "unique_together": lambda rule: ("ExpectCompoundColumnsToBeUnique", {"column_list": rule.parameters["columns"]}),
    "length": lambda rule: ("ExpectColumnValueLengthsToBeBetween", {**_column(rule), **_bounds(rule)}),
    "pattern": lambda rule: ("ExpectColumnValuesToMatchRegex", {**_column(rule), "regex": rule.parameters["pattern"]}),
    "range": lambda rule: ("ExpectColumnValuesToBeBetween", {**_column(rule), **_bounds(rule)}),
    "allowed_values": lambda rule: ("ExpectColumnValuesToBeInSet", {**_column(rule), "value_set": list(rule.parameters["values"])}),
    "not_blank": lambda rule: ("ExpectColumnValuesToMatchRegex", {**_column(rule), "regex": VISIBLE}),
    "row_count": lambda rule: ("ExpectTableRowCountToBeBetween", _bounds(rule)),
    "references": lambda rule: ("ExpectColumnValuesToBeNull", _helper(rule)),
    "no_leakage": lambda rule: ("ExpectColumnValuesToBeNull", _helper(rule)),
    "judged_queries": lambda rule: ("ExpectColumnUniqueValueCountToBeBetween", {**_helper(rule), **_bounds(rule)}),
}


# --- Columns computed before a suite runs, for rules that look at more than one table.


# Several rules compare the same queries; forget_texts() lets go of them.
_normalised = lru_cache(maxsize=2_000_000)(normalise_text)


def table_of(dataset: Dataset, name: str) -> pd.DataFrame:
    """One of the dataset's tables by the name contracts use."""
    tables = {
        "documents": dataset.documents,
        "queries": dataset.queries,
        "judgements": dataset.all_judgements,
        UNLABELLED: dataset.unlabelled,
    }
    return tables[name]


def helper_column_name(rule: Rule) -> str:
    """Name of the helper column of `rule`; no table has a column of such a name."""
    return f"rule {rule.name}"


def with_helper_columns(dataset: Dataset, table: str, rules: tuple[Rule, ...]) -> pd.DataFrame:
    """The table with a helper column for each rule that needs one; text columns as Python strings."""
    return as_checked(table_of(dataset, table)).assign(**helper_columns(dataset, rules))


def helper_columns(dataset: Dataset, rules: Iterable[Rule]) -> dict[str, pd.Series]:
    """The helper column of each rule that needs one, by its name, with the index of the rule's table."""
    makers = {"references": _missing_targets, "no_leakage": _leaks, "judged_queries": _judged}
    return {helper_column_name(rule): makers[rule.check](dataset, rule) for rule in rules if rule.check in makers}


def as_checked(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a table with text columns as Python strings, which are what the suites' expectations of types know."""
    return frame.astype({name: object for name in frame.columns if name != "score"})


def forget_texts() -> None:
    """Free the normalised texts that were kept from one rule to the next."""
    _normalised.cache_clear()


def cannot_check(dataset: Dataset, rule: Rule) -> str:
    """Why a rule about splits would pass without having looked at anything: a split that the data does not have; else empty.

    A pattern such as test_*, or `further_splits`, may match nothing: they speak of splits that there may be.
    """
    named = [str(rule.parameters[side]) for side in ("held_out", "seen")] if rule.check == "no_leakage" else []
    for split in named:
        if split not in (UNLABELLED, TITLES, FURTHER) and not any(mark in split for mark in "*?[") and split not in dataset.splits:
            return f"no judgement is of the split '{split}'; the data has {', '.join(dataset.splits) or 'no splits'}"
    return ""


def _missing_targets(dataset: Dataset, rule: Rule) -> pd.Series:
    table, column = str(rule.parameters["to"]).split(".")
    targets, rows = table_of(dataset, table)[column], table_of(dataset, rule.table)[str(rule.column)]
    explained = pd.Series(None, index=rows.index, dtype=object)
    missing = rows.notna().to_numpy() & ~are_among(rows, targets)
    if missing.any():
        known = targets.dropna().tolist()
        alike = {_seen(target): target for target in known}
        numbers = {number: target for target in known if (number := _as_number(target))}
        lost = rows[missing].tolist()
        explained[missing] = [f"there is no {column} '{on_one_line(value)}'{_near(value, alike, numbers)}" for value in lost]
    return explained


def _seen(identifier: str) -> str:
    """What a reader sees of an id: without white space at its ends and letters without a form, in one of Unicode's forms."""
    visible = identifier if identifier.isascii() else unicodedata.normalize("NFKC", _UNSEEN.sub("", identifier))
    return visible.strip()


def _as_number(identifier: str) -> str:
    """What a spreadsheet or pandas makes of an id of digits, such as 7 of 007 and of 7.0; empty for any other."""
    found = _DIGITS.fullmatch(_seen(identifier))
    return found[1] if found else ""


def _near(value: str, alike: Mapping[str, str], numbers: Mapping[str, str]) -> str:
    """A hint where there is an id that looks the same: other white space at its ends, invisible letters, another of Unicode's forms.

    Or one that is the same number.
    """
    near = alike.get(_seen(value))
    if near is None:
        same = numbers.get(_as_number(value))
        written = "they are one number, written otherwise; ids are compared as they stand"
        return "" if same is None else f", but there is '{on_one_line(same)}': {written}"
    if near.strip() == value.strip():
        return f", but there is '{on_one_line(near)}': they differ in white space at an end"
    return f", but there is {near!a} where this is {value!a}: they look the same and are other characters"


def _leaks(dataset: Dataset, rule: Rule) -> pd.Series:
    """For each query of the held-out side whose text also stands on the seen side: the id it stands under there."""
    held_out, seen = str(rule.parameters["held_out"]), str(rule.parameters["seen"])
    normalised = rule.parameters["match"] == "normalised"
    sides = (_queries_of(dataset, held_out), _queries_of(dataset, seen))
    # The offending rows are those of the rule's own table; the contract's reader refuses a rule whose table is on neither side.
    of_seen = (held_out == UNLABELLED) != (rule.table == UNLABELLED)
    rows, others = (sides[1], sides[0]) if of_seen else sides
    # The queries of a split are few, titles and train queries may be millions: only what may equal one of the few is normalised.
    few = min(sides, key=len)["text"].tolist()
    wanted = {key for text in few if (key := _key(text, normalised))}
    twins = _keys_among(wanted, others["text"], normalised)
    known = dict(zip(twins.values(), others["query_id"].iloc[list(twins)].tolist(), strict=True))
    where = held_out if of_seen else seen
    explained: list[str | None] = [None] * len(rows)
    for place, key in _keys_among(wanted, rows["text"], normalised).items():
        explained[place] = f"same text as {on_one_line(str(known[key]))} in {where}" if key in known else None
    return pd.Series(explained, index=rows.index, dtype=object).reindex(table_of(dataset, rule.table).index)


def _keys_among(wanted: set[str], texts: pd.Series, normalised: bool) -> dict[int, str]:
    """The key of each text whose key is one of `wanted`, by its place."""
    places = np.flatnonzero(may_read_as(texts, wanted) if normalised else texts.isin(wanted)).tolist()
    keys = (_key(text, normalised) for text in texts.iloc[places].tolist())
    return {place: key for place, key in zip(places, keys, strict=True) if key in wanted}


def _queries_of(dataset: Dataset, split: str) -> pd.DataFrame:
    """Rows of the queries judged in the splits that match `split` (or are further ones), of the unlabelled queries, or of the titles.

    The index is that of their table.
    """
    if split == UNLABELLED:
        return dataset.unlabelled
    if split == TITLES:
        return dataset.documents[["doc_id", "title"]].set_axis(["query_id", "text"], axis=1)
    judgements = dataset.all_judgements
    names = [str(name) for name in judgements["split"].unique()]
    matching = {name for name in names if (name not in NAMED_SPLITS if split == FURTHER else fnmatchcase(name, split))}
    ids = set(judgements.loc[judgements["split"].isin(matching), "query_id"].tolist())
    return dataset.queries.loc[[query in ids for query in dataset.queries["query_id"].tolist()]]


def _key(text: object, normalised: bool) -> str:
    """What is compared; empty for a text that is missing or blank. One without letters and numbers, as of emoji, stands as it is."""
    if not isinstance(text, str):
        return ""
    return (_normalised(text) or text.strip()) if normalised else text


def _judged(dataset: Dataset, rule: Rule) -> pd.Series:
    """The query's id in the rows that judge a document as relevant in the rule's split."""
    judgements = dataset.all_judgements
    counts = (judgements["split"] == rule.parameters["split"]) & (judgements["score"] > 0)
    return judgements["query_id"].astype(object).where(counts, None)


# --- Validate a dataset against its contracts: run the suites, write the report, and stop a flow that must not train on it.


REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
SHOWN = 5
_FOUND_LENGTH = 100
# Rules whose broken rows data.on_violation can drop, and by which of its fields.
_DROPPABLE = {
    ("references", "judgements"): "dangling_judgements",
    ("unique_together", "judgements"): "exact_duplicates",
    ("unique", "documents"): "exact_duplicates",
    ("unique", "queries"): "exact_duplicates",
    ("unique", "unlabelled"): "exact_duplicates",
    ("not_blank", "documents"): "blank_texts",
    ("not_blank", "queries"): "blank_texts",
    ("not_blank", "unlabelled"): "blank_texts",
}
_IDS = {
    "documents": ["doc_id"],
    "queries": ["query_id"],
    "unlabelled": ["query_id"],
    "judgements": ["split", "query_id", "doc_id"],
}


def validate(dataset: DatasetArtifact, contracts: Path, folder: Path, expected: str | None = None) -> Artifact:
    """Check every rule and write report.json and report.html into `folder`; violations are reported, not raised.

    Raises ConfigError for a contract that cannot be checked, also when the files are not those of the digest `expected` once they have
    been read.
    """
    loaded = load_contracts(contracts)
    if expected is not None and contracts_digest(contracts) != expected:  # what they say would be found under the key of others
        raise ConfigError(f"The contracts in {contracts} changed while they were read. Run the command again when nobody edits them.")
    Thread(target=_import_expectations).start()
    report = ValidationReport(
        dataset=str(dataset.attributes.get("name", "")),
        dataset_digest=dataset.digest,
        counts=dataset.counts,
        contracts=tuple(ContractUsed(name=c.name, version=c.version, file=c.file, sha256=file_sha256(contracts / c.file)) for c in loaded),
        results=tuple(check_contracts(load_dataset(dataset), loaded)),
        left_out=tuple(RowsLeftOut.model_validate(entry) for entry in read_left_out(dataset.path)),
    )
    write_json(folder / REPORT_JSON, report.model_dump(mode="json"))
    write_atomic(folder / REPORT_HTML, render(report).encode())
    attributes: dict[str, Scalar] = {
        "passed": not report.errors,
        "errors": len(report.errors),
        "warnings": len(report.warnings),
        "contracts": ", ".join(f"{contract.name} {contract.version}" for contract in report.contracts),
    }
    counts = {"rules": len(report.results), **({"rows_left_out": report.dropped} if report.left_out else {})}
    return seal(folder, "validation", counts=counts, parents={"dataset": dataset.digest}, attributes=attributes)


def _import_expectations() -> None:
    """What `check_contracts` imports before it uses it: begun beside the reading and sieving of tables, it takes seconds less of a run."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with suppress(Exception):  # raised again where it is needed
        import great_expectations.expectations  # noqa: F401


def load_report(validation: Artifact | Path) -> ValidationReport:
    """The report of a validation artifact; raises ArtifactError when it cannot be read or is of a newer schema."""
    path = (validation if isinstance(validation, Path) else validation.path) / REPORT_JSON
    try:
        return ValidationReport.model_validate(read_versioned(path, SCHEMA_VERSION))
    except ValidationError as error:
        raise ArtifactError(f"{path} is not a validation report ({error.errors()[0]['msg']}). Run the validation again.") from None


def require_valid(validation: Artifact) -> None:
    """Raises DataError that names contract, rule, count and first offending ids of every broken rule of severity error."""
    report = load_report(validation)
    if not report.errors:
        return
    rules = "rule" if len(report.errors) == 1 else "rules"
    listed = "\n".join(f"  - {result.summary}" for result in report.errors)
    droppable = dict.fromkeys(result.droppable for result in report.errors if result.droppable)
    drop = f", leave such rows out ({' '.join(f'--set data.on_violation.{name}=drop' for name in droppable)})" if droppable else ""
    raise DataError(
        f"The data '{report.dataset}' breaks {len(report.errors)} {rules} of its contracts; nothing was trained.\n{listed}\n"
        f"Correct the data{drop}, or change the rule in a copy of the contracts. Full report: {validation.path / REPORT_HTML}"
    )


def check_contracts(dataset: Dataset, contracts: list[Contract]) -> list[RuleResult]:
    """Run the suites of all contracts over the tables; one result for each rule, in the order of the contracts."""
    context = lru_cache(1)(_quiet_context)  # made when the first table has been sieved
    results = []
    for contract in contracts:
        for table in dict.fromkeys(rule.table for rule in contract.rules):
            results += _check_table(context, dataset, contract, table)
    forget_texts()
    return results


def _quiet_context() -> AbstractDataContext:
    """A context that lives in memory, reports nothing to anyone and draws no progress bars."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)  # that module sets INFO for itself
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def _check_table(context: Callable[[], AbstractDataContext], dataset: Dataset, contract: Contract, table: str) -> list[RuleResult]:
    rules = {rule.name: rule for rule in contract.rules if rule.table == table}
    unchecked = {name: why for name, rule in rules.items() if (why := cannot_check(dataset, rule))}
    checked = {name: rule for name, rule in rules.items() if name not in unchecked}
    frame, helpers = table_of(dataset, table), helper_columns(dataset, checked.values())
    of_all = {name for name, rule in checked.items() if rule.check in _OF_ALL_ROWS}
    rows = may_break(frame, helpers, [rule for name, rule in checked.items() if name not in of_all])
    batches = {
        "all rows": (rules.keys() - of_all, pd.DataFrame(helpers, index=frame.index)),
        "rows": (unchecked.keys() | of_all, as_checked(frame.loc[rows]).assign(**{name: column[rows] for name, column in helpers.items()})),
    }
    source = context().data_sources.add_pandas(f"{contract.name}-{table}")
    found: dict[str, Mapping[str, Any]] = {}
    for name, (without, shown) in batches.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all").get_batch({"dataframe": shown})
        outcome = batch.validate(
            compile_suite(contract, table, without=without),
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": _IDS[table], "partial_unexpected_count": SHOWN},
        )
        found |= {result.expectation_config.meta["rule"]: result.to_json_dict() for result in outcome.results}
    return [
        _unchecked(rule, unchecked[name]) if name in unchecked else _result(rule, found[name], len(frame)) for name, rule in rules.items()
    ]


def _unchecked(rule: Rule, why: str) -> RuleResult:
    """A rule that could not be checked is broken: what passes without a check would be believed."""
    return _rule_result(rule, passed=False, count=1, checked=0, found=f"could not be checked: {why}")


def _result(rule: Rule, outcome: Mapping[str, Any], checked: int) -> RuleResult:
    details = outcome["result"]
    passed = bool(outcome["success"])
    return _rule_result(
        rule,
        passed=passed,
        count=0 if passed else int(details.get("unexpected_count") or 1),
        checked=checked,
        found=_found(rule, outcome),
        offenders=() if passed else tuple(_offenders(rule, details)),
    )


def _rule_result(rule: Rule, **outcome: Any) -> RuleResult:
    asked = {"requirement": requirement(rule), "droppable": _DROPPABLE.get((rule.check, rule.table), "")}
    named = {"contract": rule.contract, "version": rule.version, "table": rule.table, "rule": rule.name, "severity": rule.severity}
    return RuleResult(**named, **asked, **outcome)


def _found(rule: Rule, outcome: Mapping[str, Any]) -> str:
    """The measured value of a rule about the whole table, or why the rule could not be checked."""
    if rule.check == "column_exists":
        return "" if outcome["success"] else "no such column"
    if "observed_value" in outcome["result"]:
        return str(outcome["result"]["observed_value"])
    if outcome["success"] or outcome["result"]:
        return ""
    raised = outcome.get("exception_info") or {}
    messages = [info.get("exception_message") for info in (raised, *raised.values()) if isinstance(info, dict)]
    return next((f"could not be checked: {message}" for message in messages if message), "")


def _offenders(rule: Rule, details: Mapping[str, Any]) -> list[Offender]:
    rows = details.get("partial_unexpected_index_list") or []
    values = details.get("partial_unexpected_list") or []
    identifiers = _IDS[rule.table]
    return [
        Offender(ids={name: _shown(row.get(name)) for name in identifiers}, found=_explain(rule, value))
        for row, value in zip(rows, values, strict=False)
    ]


def _explain(rule: Rule, value: object) -> str:
    """What stands in the offending row, unless the ids have said it."""
    if rule.check in ("references", "no_leakage"):
        return str(value)
    if rule.check == "length":
        return f"{rule.column} has {len(str(value)):,} characters"
    if rule.check in ("unique_together", "not_null") or rule.column in _IDS[rule.table]:
        return ""
    return f"{rule.column} is {_shown(value)!r}"


def _shown(value: object) -> str:
    text = "(missing)" if value is None or value != value else on_one_line(str(value))
    return text if len(text) <= _FOUND_LENGTH else f"{text[:_FOUND_LENGTH]}…"


# --- Which rows a suite has to be shown: all that may break a rule. The columns of a million documents would take GBs as Python strings,
# --- and each expectation would make several copies of them.


# Checks of the table as a whole; all others judge each row by itself or, as the unique ones, by the rows that equal it.
_OF_ALL_ROWS = ("row_count", "judged_queries")
_Mask = NDArray[np.bool_]


def may_break(frame: pd.DataFrame, helpers: Mapping[str, pd.Series], rules: Iterable[Rule]) -> _Mask:
    """Which rows of a table may break one of the rules: every one that does, with all rows that equal it, and the first for the columns.

    Each check is the very call that its expectation makes, on text that stays in Arrow; what it cannot tell, it does not leave out.
    """
    found = np.zeros(len(frame), bool)
    found[:1] = True  # a suite looks at columns, which a table without rows has not the types of
    for rule in rules:
        try:
            column = helpers.get(helper_column_name(rule), frame if rule.column is None else frame[rule.column])
            found |= np.asarray(_SIEVES[rule.check](column, rule), bool)
        except (TypeError, ValueError, NotImplementedError, re.error):  # such as a pattern that cannot be searched for: the suite says so
            return np.ones(len(frame), bool)
    return found


def _outside(values: pd.Series, rule: Rule) -> Any:
    low, high = (rule.parameters.get(side) for side in ("min", "max"))
    return ~((True if low is None else values >= low) & (True if high is None else values <= high))


def _mistyped(column: pd.Series, rule: Rule) -> bool:
    """All rows or none: a column of numbers is judged by its own type, one of text by each value, which are texts here."""
    return rule.parameters["type"] != "string" if isinstance(column.dtype, pd.StringDtype) else column.dtype == object


def _not_allowed(column: pd.Series, rule: Rule) -> Any:
    is_text = isinstance(column.dtype, pd.StringDtype)
    return ~column.isin([value for value in rule.parameters["values"] if isinstance(value, str) == is_text])


def _text(column: pd.Series) -> pd.Series:
    if not isinstance(column.dtype, pd.StringDtype):
        raise TypeError("a column of text was expected")
    return column


def _number(column: pd.Series) -> pd.Series:
    if column.dtype != np.int64:
        raise TypeError("a column of whole numbers was expected")
    return column


def _blank(texts: pd.Series) -> Any:
    """Most texts have a letter of ASCII, which Arrow finds at once; only what has none is searched as the expectation does."""
    found = ~np.asarray(texts.str.contains("[!-~]"), bool)
    found[found] = ~np.asarray(texts[found].str.contains(VISIBLE), bool)
    return found


# By check, of a row rule's own column (its helper column, where it has one).
_SIEVES: dict[Check, Callable[[Any, Rule], Any]] = {
    "column_exists": lambda column, rule: False,
    "type": _mistyped,
    "not_null": lambda column, rule: column.isna(),
    "unique": lambda column, rule: column.duplicated(keep=False),
    "unique_together": lambda frame, rule: frame.duplicated(rule.parameters["columns"], keep=False),
    "length": lambda column, rule: _outside(_text(column).str.len(), rule),
    "pattern": lambda column, rule: ~_text(column).str.contains(rule.parameters["pattern"]),
    "range": lambda column, rule: _outside(_number(column), rule),
    "allowed_values": _not_allowed,
    "not_blank": lambda column, rule: _blank(_text(column)),
    "references": lambda column, rule: column.notna(),
    "no_leakage": lambda column, rule: column.notna(),
}
