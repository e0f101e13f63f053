"""Data contracts: Open Data Contract Standard 3 YAML files, turned into the closed set of rules that they may state.

No rule is skipped in silence. A rule that looks at more than one table works on a column that is computed for it.

Each holds, under the rule's name, an explanation in the rows that break the rule and nothing in all others (for `judged_queries`: the ids
that count). So the suite itself only checks single columns, which stays fast for millions of rows.

Every part of a contract that promises something about the data becomes a rule or is refused with the parts that can be used.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from components import settings
from components.artifacts import digest_of, file_sha256
from components.data.dataset import NAMED_SPLITS, TABLES, Dataset, are_among, may_read_as, normalise_text
from components.data.values import on_one_line
from components.errors import ConfigError
from components.text import INVISIBLE

if TYPE_CHECKING:
    from open_data_contract_standard.model import DataQuality, OpenDataContractStandard, SchemaObject, SchemaProperty


_DIGITS = re.compile(r"0*([0-9]+)(?:\.0+)?")
_UNSEEN = re.compile(f"[{INVISIBLE}]")
Severity = Literal["error", "warning"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning")
Check = Literal[
    "column_exists",
    "type",
    "not_null",
    "unique",
    "unique_together",
    "length",
    "pattern",
    "range",
    "allowed_values",
    "not_blank",
    "row_count",
    "references",
    "no_leakage",
    "judged_queries",
]


@dataclass(frozen=True)
class Rule:
    """One checkable sentence of a contract about one table, or about one of its columns.

    `parameters` belong to the check: min and max (inclusive), pattern, values, columns, to, held_out, seen, match, split, type.
    """

    contract: str
    version: str
    table: str
    name: str
    check: Check
    column: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = "error"
    description: str = ""


@dataclass(frozen=True)
class Contract:
    """A contract's name, version and rules in the order of its file."""

    name: str
    version: str
    file: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class Place:
    """Where in a contract a rule is written: what its rule is about, and how an error names it."""

    contract: str
    version: str
    file: str
    table: str
    column: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.table}" + (f".{self.column}" if self.column else "")

    def rule(self, check: Check, name: str, parameters: Mapping[str, Any], severity: Severity = "error", description: str = "") -> Rule:
        """A rule about this place's table and column."""
        return Rule(self.contract, self.version, self.table, name, check, self.column, parameters, severity, description)

    def derived(self, check: Check, label: str, **parameters: Any) -> Rule:
        """A rule that follows from a column's definition, named after both; such rules are always errors."""
        return self.rule(check, f"{self.column or self.table}.{label}", parameters)


# --- Columns computed before a suite runs, for rules that look at more than one table.


UNLABELLED = "unlabelled"
TITLES = "titles"  # those of the documents: a student learns from them as from queries
FURTHER = "further_splits"  # whatever they are called: all but those that have rules of their own
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
        explained[place] = f"same text as {known[key]} in {where}" if key in known else None
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
    """What is compared; empty for a text that cannot leak, such as one of punctuation alone once it is normalised."""
    if not isinstance(text, str):
        return ""
    return _normalised(text) if normalised else text


def _judged(dataset: Dataset, rule: Rule) -> pd.Series:
    """The query's id in the rows that judge a document as relevant in the rule's split."""
    judgements = dataset.all_judgements
    counts = (judgements["split"] == rule.parameters["split"]) & (judgements["score"] > 0)
    return judgements["query_id"].astype(object).where(counts, None)


# --- The `quality` entries of a contract: the standard's own metrics, and the rules only retrieval data needs (engine: scalingnote).


ENGINE = "scalingnote"
METRICS = ("rowCount", "duplicateValues", "nullValues", "missingValues", "invalidValues")
# Of each custom rule: its parameters, and those of them that it cannot do without.
CUSTOM_RULES: dict[Check, tuple[frozenset[str], frozenset[str]]] = {
    "not_blank": (frozenset(), frozenset()),
    "length": (frozenset({"min", "max"}), frozenset()),
    "no_leakage": (frozenset({"held_out", "seen", "match"}), frozenset({"held_out", "seen", "match"})),
    "judged_queries": (frozenset({"split", "min"}), frozenset({"split", "min"})),
}
MATCHES = ("exact", "normalised")
# An escaped character, a set of characters, or the end: $ means itself in the first two.
_TOKEN = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
_COLUMN_RULES = ("not_blank", "length")
_TABLES_OF = {"no_leakage": ("queries", "unlabelled"), "judged_queries": ("judgements",)}
_LOWER = {"mustBeGreaterOrEqualTo": 0, "mustBeGreaterThan": 1}
_UPPER = {"mustBeLessOrEqualTo": 0, "mustBeLessThan": -1}
_OPERATORS = ("mustBe", *_LOWER, *_UPPER, "mustBeBetween")
_ALL_OPERATORS = (*_OPERATORS, "mustNotBe", "mustNotBeBetween")


def quality_rule(quality: DataQuality, place: Place) -> Rule:
    """One quality entry as a rule about the table and column of `place`; raises ConfigError with what is allowed."""
    kind = quality.type or "library"
    if kind not in ("library", "custom"):
        raise ConfigError(f"{place}: a quality entry of type '{kind}' would not be checked. Allowed: library, custom.")
    check, parameters = _library(quality, place) if kind == "library" else _custom(quality, place)
    name = quality.name or f"{place.column or place.table}.{check}"
    return place.rule(check, name, parameters, _severity(quality.severity, place), quality.description or "")


def _severity(value: str | None, place: Place) -> Severity:
    for severity in SEVERITIES:
        if severity == (value or "error"):
            return severity
    raise ConfigError(f"{place}: unknown severity '{value}'. Allowed: {', '.join(SEVERITIES)}.")


def _library(quality: DataQuality, place: Place) -> tuple[Check, dict[str, Any]]:
    metric = quality.metric or quality.rule
    if metric not in METRICS:
        raise ConfigError(f"{place}: unknown metric '{metric}'. Allowed: {', '.join(METRICS)}.")
    if metric == "rowCount":
        return "row_count", _bounds(quality, place)
    if _given(quality) != {"mustBe": 0}:
        raise ConfigError(f"{place}: the metric {metric} is checked as 'mustBe: 0' only; use severity: warning to let violations pass.")
    arguments = quality.arguments or {}
    if metric == "duplicateValues" and place.column is None:
        return "unique_together", {"columns": _columns(arguments, place)}
    if place.column is None:
        raise ConfigError(f"{place}: the metric {metric} belongs under a column.")
    if metric == "invalidValues":
        return _valid_values(arguments, place)
    if metric == "missingValues":
        return "not_blank", {}
    return ("unique" if metric == "duplicateValues" else "not_null"), {}


def _custom(quality: DataQuality, place: Place) -> tuple[Check, dict[str, Any]]:
    implementation = quality.implementation
    if quality.engine != ENGINE or not isinstance(implementation, dict):
        raise ConfigError(f"{place}: a custom quality entry needs 'engine: {ENGINE}' and 'implementation: {{rule: ...}}'.")
    parameters = {key: value for key, value in implementation.items() if key != "rule"}
    check = next((name for name in CUSTOM_RULES if name == implementation.get("rule")), None)
    if check is None:
        raise ConfigError(f"{place}: unknown rule '{implementation.get('rule')}'. Allowed: {', '.join(CUSTOM_RULES)}.")
    _check_parameters(check, parameters, place)
    _check_place(check, place)
    if check == "no_leakage":
        _check_side(parameters, place)
    return check, parameters


def _check_parameters(check: Check, parameters: Mapping[str, Any], place: Place) -> None:
    allowed, needed = CUSTOM_RULES[check]
    if unknown := sorted(set(parameters) - allowed):
        raise ConfigError(f"{place}: the rule {check} has no parameter '{unknown[0]}'. Allowed: {', '.join(sorted(allowed)) or 'none'}.")
    if missing := sorted(needed - set(parameters)):
        raise ConfigError(f"{place}: the rule {check} needs the parameter '{missing[0]}'.")
    if check == "length" and not parameters:
        raise ConfigError(f"{place}: the rule length needs min, max or both.")
    if check == "no_leakage" and parameters["match"] not in MATCHES:
        raise ConfigError(f"{place}: the rule no_leakage has no match '{parameters['match']}'. Allowed: {', '.join(MATCHES)}.")
    check_counts({name: value for name, value in parameters.items() if name in ("min", "max")}, place)


def check_counts(parameters: Mapping[str, Any], place: Place) -> None:
    """Raises ConfigError for a bound that no number of rows, queries or characters can be held against."""
    check_numbers(parameters, place)
    if below := next((name for name, value in parameters.items() if value < 0), None):
        raise ConfigError(f"{place}: the bound {below} counts something and cannot be below 0; found {parameters[below]}.")


def check_numbers(parameters: Mapping[str, Any], place: Place) -> None:
    """Raises ConfigError for a bound that is not a whole number, or for a smallest value above the largest."""
    for name, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{place}: the bound {name} must be a whole number; found '{value}'.")
    if parameters.get("min", float("-inf")) > parameters.get("max", float("inf")):
        raise ConfigError(f"{place}: the smallest allowed value {parameters['min']} is above the largest, {parameters['max']}.")


def _check_place(check: Check, place: Place) -> None:
    if check in _COLUMN_RULES and place.column is None:
        raise ConfigError(f"{place}: the rule {check} belongs under a column.")
    tables = _TABLES_OF.get(check)
    if tables and (place.column is not None or place.table not in tables):
        raise ConfigError(f"{place}: the rule {check} belongs under the table {' or '.join(tables)}, not under a column.")


def _check_side(parameters: Mapping[str, Any], place: Place) -> None:
    """Raises ConfigError for a leakage rule about no rows of its own table: what it finds could not be shown there."""
    held_out, seen = parameters["held_out"], parameters["seen"]
    if held_out == TITLES:
        raise ConfigError(f"{place}: held_out is {TITLES}, but nothing is measured with the titles of documents; they can be seen only.")
    if held_out == seen:
        raise ConfigError(f"{place}: held_out and seen are both {seen}; a query always equals itself. Name two splits.")
    if place.table == "unlabelled" and "unlabelled" not in (held_out, seen):
        raise ConfigError(f"{place}: a rule of {held_out} and {seen} belongs under the table queries.")


def _given(quality: DataQuality) -> dict[str, Any]:
    return {name: value for name in _ALL_OPERATORS if (value := getattr(quality, name)) is not None}


def _bounds(quality: DataQuality, place: Place) -> dict[str, Any]:
    """Bounds of a row count, both inclusive."""
    given = _given(quality)
    if len(given) != 1 or not set(given) <= set(_OPERATORS):
        raise ConfigError(f"{place}: rowCount needs exactly one of {', '.join(_OPERATORS)}; found {', '.join(given) or 'none'}.")
    name, value = next(iter(given.items()))
    low, high = value if name == "mustBeBetween" else (value, value)
    bounds = {} if name in _UPPER else {"min": low}
    if name not in _LOWER:
        bounds["max"] = high
    check_numbers(bounds, place)
    shift = {**_LOWER, **_UPPER}.get(name, 0)
    shifted = {key: bound + shift for key, bound in bounds.items()}
    check_counts(shifted, place)
    return shifted


def _columns(arguments: Mapping[str, Any], place: Place) -> list[str]:
    columns = arguments.get("properties")
    known = TABLES[place.table]
    if not isinstance(columns, list) or len(columns) < 2 or not set(columns) <= set(known):
        raise ConfigError(f"{place}: duplicateValues needs 'arguments: {{properties: [...]}}' with two or more of: {', '.join(known)}.")
    return [str(column) for column in columns]


def _valid_values(arguments: Mapping[str, Any], place: Place) -> tuple[Check, dict[str, Any]]:
    if set(arguments) == {"validValues"} and isinstance(arguments["validValues"], list):
        return "allowed_values", {"values": arguments["validValues"]}
    if set(arguments) == {"pattern"}:
        return "pattern", {"pattern": regular_expression(arguments["pattern"], place)}
    raise ConfigError(f"{place}: invalidValues needs either 'arguments: {{validValues: [...]}}' or 'arguments: {{pattern: ...}}'.")


def regular_expression(pattern: Any, place: Place) -> str:
    """`pattern` with its $ meaning the very end, as in the standard's own expressions; raises ConfigError for what is none.

    Python's $ also stands before a line break at the end, so that an id ending in one would pass.
    """
    try:
        compiled = re.compile(str(pattern))
    except re.error as error:
        raise ConfigError(f"{place}: '{pattern}' is not a regular expression ({error}).") from None
    if compiled.flags & re.MULTILINE:
        return compiled.pattern
    return _TOKEN.sub(lambda token: r"\Z" if token[0] == "$" else token[0], compiled.pattern)


# --- Read data contracts: Open Data Contract Standard 3 YAML files, turned into the rules they state.


REQUIRED_TABLES = ("documents", "queries", "judgements")
LOGICAL_TYPES = ("string", "integer", "number", "boolean")
LENGTH_OPTIONS = {"minLength": "min", "maxLength": "max"}
RANGE_OPTIONS = {"minimum": "min", "maximum": "max"}
_OPTIONS = (*LENGTH_OPTIONS, *RANGE_OPTIONS, "pattern")


def contracts_folder(configured: str) -> Path:
    """The folder named in the configuration, or the one that comes with the project."""
    return settings.expanded(configured) if configured else settings.shipped("data_contracts")


def contracts_digest(folder: Path) -> str:
    """sha256 over the contracts' files by name and content; a part of the key under which a validation is cached."""
    return digest_of({path.name: file_sha256(path) for path in _files(folder)})


def load_contracts(folder: Path) -> list[Contract]:
    """Every contract of `folder`; raises ConfigError with file and place for what cannot be checked."""
    contracts = [_load(path) for path in _files(folder)]
    if twice := _first_repeated((contract.name, "") for contract in contracts):
        files = " and ".join(contract.file for contract in contracts if contract.name == twice[0])
        raise ConfigError(f"{folder} has two contracts of the name '{twice[0]}': {files}. Give each its own name, or remove one.")
    covered = {rule.table for contract in contracts for rule in contract.rules}
    if missing := [table for table in REQUIRED_TABLES if table not in covered]:
        raise ConfigError(f"{folder} has no contract for the table {missing[0]}. Every one of {', '.join(REQUIRED_TABLES)} needs one.")
    return contracts


def _files(folder: Path) -> list[Path]:
    files = sorted(path for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))
    if not files:
        raise ConfigError(f"No contracts (*.yaml) in {folder}. Give a folder with contracts for {', '.join(REQUIRED_TABLES)}.")
    return files


def _load(path: Path) -> Contract:
    contract = _parse(path)
    version, name = contract.version, contract.name or contract.id
    if not version or not name or contract.kind != "DataContract" or not (contract.apiVersion or "").startswith("v3."):
        raise ConfigError(f"{path}: expected kind: DataContract, apiVersion: v3.1.0, a name and a version.")
    rules = [rule for table in contract.schema_ or [] for rule in _table_rules(table, Place(name, version, str(path), table.name or ""))]
    if twice := _first_repeated((rule.table, rule.name) for rule in rules):
        raise ConfigError(f"{path}: the table {twice[0]} has two rules named '{twice[1]}'. Give each its own name.")
    return Contract(name, version, path.name, tuple(rules))


def _parse(path: Path) -> OpenDataContractStandard:
    import yaml
    from open_data_contract_standard.model import OpenDataContractStandard
    from pydantic import ValidationError

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        contract = OpenDataContractStandard.model_validate(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {place}: {first['msg']}. See the Open Data Contract Standard 3.1 for the fields.") from None
    # The standard's own model ignores unknown fields below the first level, so a misspelt rule would never be checked.
    if unknown := _unknown_field(raw, contract.model_dump(by_alias=True, exclude_unset=True)):
        raise ConfigError(f"{path}: {unknown} is no field of the Open Data Contract Standard 3.1. Correct its name or remove it.")
    return contract


def _unknown_field(raw: Any, read: Any) -> str | None:
    """Path of the first field of `raw` that was not read, or None."""
    if isinstance(raw, list) and isinstance(read, list):
        pairs = [(str(number), *both) for number, both in enumerate(zip(raw, read, strict=True))]
    elif isinstance(raw, dict) and isinstance(read, dict):
        if missing := [key for key in raw if key not in read]:
            return str(missing[0])
        pairs = [(str(key), value, read[key]) for key, value in raw.items()]
    else:
        return None
    found = ((key, _unknown_field(one, other)) for key, one, other in pairs)
    return next((f"{key}.{below}" for key, below in found if below), None)


def _table_rules(table: SchemaObject, place: Place) -> list[Rule]:
    if place.table not in TABLES:
        raise ConfigError(f"{place}: there is no such table. Allowed: {', '.join(TABLES)}.")
    if table.relationships:
        raise ConfigError(f"{place}: write relationships under the column they start from, with 'to: table.column'.")
    columns = table.properties or []
    rules = [rule for column in columns for rule in _column_rules(column, replace(place, column=column.name or ""))]
    return rules + _key_rules(columns, place) + [quality_rule(quality, place) for quality in table.quality or []]


def _column_rules(column: SchemaProperty, place: Place) -> list[Rule]:
    if place.column not in TABLES[place.table]:
        raise ConfigError(f"{place}: there is no column '{place.column}'. Allowed: {', '.join(TABLES[place.table])}.")
    if column.properties or column.items or column.map:
        raise ConfigError(f"{place}: nested columns cannot be checked; the tables here are flat.")
    rules = [place.derived("column_exists", "exists")]
    if column.logicalType:
        rules.append(place.derived("type", "type", type=_logical_type(column.logicalType, place)))
    if column.required:
        rules.append(place.derived("not_null", "required"))
    if column.unique:
        rules.append(place.derived("unique", "unique"))
    if column.enum:
        rules.append(place.derived("allowed_values", "allowed_values", values=[entry.value for entry in column.enum]))
    rules += _option_rules(column.logicalTypeOptions or {}, place)
    rules += [place.derived("references", "references", to=_target(relation.to, place)) for relation in column.relationships or []]
    return rules + [quality_rule(quality, place) for quality in column.quality or []]


def _option_rules(options: Mapping[str, Any], place: Place) -> list[Rule]:
    if unknown := [option for option in options if option not in _OPTIONS]:
        raise ConfigError(f"{place}: the option '{unknown[0]}' cannot be checked. Allowed: {', '.join(_OPTIONS)}.")
    length = {short: options[option] for option, short in LENGTH_OPTIONS.items() if option in options}
    bounds = {short: options[option] for option, short in RANGE_OPTIONS.items() if option in options}
    check_counts(length, place)
    check_numbers(bounds, place)
    rules = [place.derived("length", "length", **length)] if length else []
    if bounds:
        rules.append(place.derived("range", "range", **bounds))
    if "pattern" in options:
        rules.append(place.derived("pattern", "pattern", pattern=regular_expression(options["pattern"], place)))
    return rules


def _key_rules(columns: Sequence[SchemaProperty], place: Place) -> list[Rule]:
    keys = sorted((column for column in columns if column.primaryKey), key=lambda column: column.primaryKeyPosition or 0)
    names = [column.name for column in keys]
    if len(names) > 1:
        return [place.derived("unique_together", "key", columns=names)]
    return [replace(place, column=key.name).derived("unique", "unique") for key in keys if not key.unique]


def _logical_type(value: str, place: Place) -> str:
    if value not in LOGICAL_TYPES:
        raise ConfigError(f"{place}: the logicalType '{value}' cannot be checked. Allowed: {', '.join(LOGICAL_TYPES)}.")
    return value


def _target(value: str | list[str] | None, place: Place) -> str:
    table, _, column = str(value).partition(".")
    if not isinstance(value, str) or column not in TABLES.get(table, ()):
        raise ConfigError(f"{place}: the relationship to '{value}' cannot be checked. Expected table.column, such as documents.doc_id.")
    return value


def _first_repeated(keys: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    seen: set[tuple[str, str]] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None
