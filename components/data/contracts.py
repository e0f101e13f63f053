"""Data contracts: Open Data Contract Standard 3 YAML files, turned into the closed set of rules that they may state.

No rule is skipped in silence. Every part of a contract that promises something about the data becomes a rule or is refused with the parts
that can be used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components import settings
from components.artifacts import digest_of, file_sha256
from components.data.dataset import TABLES
from components.data.values import is_storable
from components.errors import ConfigError

if TYPE_CHECKING:
    from open_data_contract_standard.model import DataQuality, OpenDataContractStandard, SchemaObject, SchemaProperty


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


# --- The `quality` entries of a contract: the standard's own metrics, and the rules only retrieval data needs (engine: scalingnote).


UNLABELLED = "unlabelled"
TITLES = "titles"  # those of the documents: a student learns from them as from queries
FURTHER = "further_splits"  # whatever they are called: all but those that have rules of their own

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
_POSIX = re.compile(r"\[:\^?[a-z]+:\]")
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
    _require_read(quality, ("query", "engine", "implementation"), f"the metric {metric}", place)
    if quality.arguments and metric != "invalidValues" and (metric != "duplicateValues" or place.column is not None):
        words = " Words such as N/A are found by invalidValues with the pattern '^(?!N/A$)'." if metric == "missingValues" else ""
        raise ConfigError(f"{place}: the metric {metric} takes no arguments here; found {', '.join(quality.arguments)}.{words}")
    if metric == "rowCount":
        if quality.unit != "rows":  # the standard's own word for what is counted here
            _require_read(quality, ("unit",), "the metric rowCount", place)
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


def _require_read(quality: DataQuality, fields: Sequence[str], what: str, place: Place) -> None:
    """Raises ConfigError where a field is given that changes what the standard asks for, and that nothing here looks at."""
    if unread := next((name for name in fields if getattr(quality, name) is not None), None):
        raise ConfigError(f"{place}: {what} is checked without '{unread}', so that would be passed over. Remove it.")


def _custom(quality: DataQuality, place: Place) -> tuple[Check, dict[str, Any]]:
    implementation = quality.implementation
    if quality.engine != ENGINE or not isinstance(implementation, dict):
        raise ConfigError(f"{place}: a custom quality entry needs 'engine: {ENGINE}' and 'implementation: {{rule: ...}}'.")
    parameters = {key: value for key, value in implementation.items() if key != "rule"}
    check = next((name for name in CUSTOM_RULES if name == implementation.get("rule")), None)
    if check is None:
        raise ConfigError(f"{place}: unknown rule '{implementation.get('rule')}'. Allowed: {', '.join(CUSTOM_RULES)}.")
    _require_read(quality, ("metric", "rule", "query", "arguments", "unit", *_ALL_OPERATORS), f"the rule {check}", place)
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
    if listed := next((name for name in ("held_out", "seen", "split") if not isinstance(parameters.get(name, ""), str)), None):
        advice = "Write a rule for each." if isinstance(parameters[listed], list) else "Put it in quotes."
        raise ConfigError(f"{place}: {listed} must be the name of one split; found {parameters[listed]!r:.60}. {advice}")
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
    if place.table == UNLABELLED and UNLABELLED not in (held_out, seen):
        raise ConfigError(f"{place}: a rule of {held_out} and {seen} belongs under the table queries.")
    if place.table != UNLABELLED and {held_out, seen} == {UNLABELLED, TITLES}:
        raise ConfigError(f"{place}: a rule of {held_out} and {seen} belongs under the table {UNLABELLED}.")


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
    if set(arguments) != {"properties"} or not isinstance(columns, list) or len(columns) < 2 or any(name not in known for name in columns):
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
    if not isinstance(pattern, str):
        raise ConfigError(f"{place}: a pattern is a text in quotes; found {pattern!r:.60}.")
    if found := _POSIX.search(pattern):
        raise ConfigError(
            f"{place}: '{pattern}' holds {found[0]}, which Python's expressions do not know. Write its letters out, as [a-z]."
        )
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
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
    """sha256 over the contracts' files by name and content; a part of the key of a validation. Raises ConfigError."""
    files = _files(folder)
    try:
        return digest_of({path.name: file_sha256(path) for path in files})
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}. Put a contract in its place, or remove it.") from None


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
    try:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml") and not path.name.startswith("."))
    except OSError:
        files = []
    if not files:
        raise ConfigError(f"No contracts (*.yaml) in {folder}. Give a folder with contracts for {', '.join(REQUIRED_TABLES)}.")
    if odd := next((path.name for path in files if not is_storable(path.name)), None):
        raise ConfigError(f"{folder}: the name {os.fsencode(odd)!r} of a contract is not UTF-8, and reports name it. Rename the file.")
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
        # A second `quality` of a column would take the place of the first, whose rules nobody would check.
        raw = settings.strict_yaml(path.read_text(encoding="utf-8"), merging=True)
        contract = OpenDataContractStandard.model_validate(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}. Put a contract in its place, or remove it.") from None
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
    if column.enum is not None:
        rules.append(place.derived("allowed_values", "allowed_values", values=[entry.value for entry in column.enum]))
    rules += _option_rules(column.logicalTypeOptions or {}, place)
    for relation in column.relationships or []:
        if relation.type not in (None, "foreignKey") or relation.from_ is not None:
            raise ConfigError(f"{place}: a relationship is a foreignKey that starts from its own column; give 'to: table.column' alone.")
        target = _target(relation.to, place)
        if "score" in (place.column, target.partition(".")[2]):
            raise ConfigError(f"{place}: a relationship to {target} cannot be checked: a score is a number, and ids are texts. Name an id.")
        rules.append(place.derived("references", "references", to=target))
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
