"""The `quality` entries of a contract: the standard's own metrics, and the rules only retrieval data needs (engine: scalingnote)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from components.data.dataset import TABLES
from components.data.helper_columns import TITLES
from components.data.rules import SEVERITIES, Check, Place, Rule, Severity
from components.errors import ConfigError

if TYPE_CHECKING:
    from open_data_contract_standard.model import DataQuality

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
