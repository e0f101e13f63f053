"""Compile a contract's rules to Great Expectations suites; each expectation's meta names contract, version and rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from components.data.helper_columns import helper_column_name
from components.data.rules import Check, Contract, Rule
from components.visible import VISIBLE

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations import Expectation

# What a column of a logical type holds once a table is read with its text columns as Python strings, or with pandas' nullable types.
_PHYSICAL_TYPES = {
    "string": ["str", "StringDtype"],
    "integer": ["int64", "Int64Dtype"],
    "number": ["int64", "float64", "Int64Dtype", "Float64Dtype"],
    "boolean": ["bool", "BooleanDtype"],
}
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
