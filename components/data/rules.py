"""The rules our contracts can state: one closed set, so that no rule of a contract is ever skipped in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
