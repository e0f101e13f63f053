"""What a validation found: one result for each rule, as JSON for programs, as sentences and as one HTML page for people."""

from __future__ import annotations

from itertools import groupby

from markupsafe import Markup
from pydantic import BaseModel, ConfigDict

from components.data.contracts import Rule, Severity
from components.templates import page, piece


def render(report: ValidationReport) -> str:
    """The whole page; everything that comes from the data is escaped."""
    tables = groupby(report.results, key=lambda result: f"{result.contract} {result.version}, table {result.table}")
    sections = [(title, list(results)) for title, results in tables]
    return page("data/report.html.j2", report=report, tiles=_tiles(report), sections=sections)


def contract_blocks(report: ValidationReport) -> Markup:
    """What a page about something else shows of the validation: broken rules, dropped rows, every rule behind a click, the contracts."""
    return piece("data/contract_blocks.html.j2", "blocks", report)


def _tiles(report: ValidationReport) -> dict[str, int]:
    left_out = {"rows left out": report.dropped} if report.left_out else {}
    counts = {name: count for name, count in sorted(report.counts.items()) if not name.startswith("dropped_")}
    found = {"rules checked": len(report.results), "errors": len(report.errors), "warnings": len(report.warnings)}
    return {**found, **left_out, **counts}


# --- What a validation found: one result for each rule, as JSON for programs and as sentences for people.


SCHEMA_VERSION = 2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Offender(_Frozen):
    """One row that breaks a rule: its ids, and what was found there."""

    ids: dict[str, str]
    found: str

    def __str__(self) -> str:
        ids = ", ".join(f"{name} '{value}'" for name, value in self.ids.items())
        return f"{ids}: {self.found}" if self.found else ids


class RuleResult(_Frozen):
    """The outcome of one rule. `count` is the number of rows that break it, or 1 for a rule about the whole table."""

    contract: str
    version: str
    table: str
    rule: str
    severity: Severity
    requirement: str
    passed: bool
    count: int
    checked: int
    found: str = ""
    offenders: tuple[Offender, ...] = ()
    droppable: str = ""  # the field of data.on_violation that can leave such rows out

    @property
    def summary(self) -> str:
        """One sentence that names contract, rule, count and the first offending ids."""
        text = f"contract {self.contract} {self.version}, rule {self.rule}: {self.requirement} "
        if self.offenders:
            rows = "row breaks" if self.count == 1 else "rows break"
            return f"{text}{self.count:,} {rows} it, first {'; '.join(str(offender) for offender in self.offenders)}"
        return f"{text}Found: {self.found or f'rows that break it: {self.count:,}'}"


class ContractUsed(_Frozen):
    """A contract that was checked, by version and content."""

    name: str
    version: str
    file: str
    sha256: str


class RowsLeftOut(_Frozen):
    """Rows that were dropped before the contracts were checked: `rows` of `total` of a table, or of the judgements of a split."""

    rule: str
    table: str
    split: str = ""
    reason: str
    rows: int
    total: int
    unanswered: int = 0
    source: str = ""
    first: str = ""

    @property
    def summary(self) -> str:
        """One sentence with count, place, rule and the ids of the first row."""
        of = f"{self.table} of the split {self.split}" if self.split else self.table
        lost = f" {self.lost}." if self.lost else ""
        origin = f"{self.source}: " if self.source else ""
        return f"{origin}{self.rows:,} of {self.total:,} {of}: {self.reason} ({self.rule}), first {self.first}.{lost}"

    @property
    def lost(self) -> str:
        """What it means for the queries; empty when none is without an answer now."""
        queries = "1 query has" if self.unanswered == 1 else f"{self.unanswered:,} queries have"
        return f"{queries} no relevant document left" if self.unanswered else ""


class ValidationReport(_Frozen):
    """Every rule of every contract about one dataset, and what was left out of it before."""

    schema_version: int = SCHEMA_VERSION
    dataset: str
    dataset_digest: str
    counts: dict[str, int]
    contracts: tuple[ContractUsed, ...]
    results: tuple[RuleResult, ...]
    left_out: tuple[RowsLeftOut, ...] = ()

    @property
    def errors(self) -> tuple[RuleResult, ...]:
        """Broken rules that stop the flow."""
        return tuple(result for result in self.results if not result.passed and result.severity == "error")

    @property
    def warnings(self) -> tuple[RuleResult, ...]:
        """Broken rules that are only reported."""
        return tuple(result for result in self.results if not result.passed and result.severity == "warning")

    @property
    def dropped(self) -> int:
        """Rows that were left out, of all tables."""
        return sum(entry.rows for entry in self.left_out)


def requirement(rule: Rule) -> str:
    """What `rule` asks for: the contract's own words, and the check itself with its numbers, which those words may not say."""
    asked = _SENTENCES[rule.check].format(table=rule.table, column=rule.column, bounds=_bounds(rule), **_worded(rule))
    if not rule.description:
        return asked
    said = rule.description if rule.description.endswith((".", "!", "?")) else f"{rule.description}."
    return f"{said} Asked: {asked}"


def _worded(rule: Rule) -> dict[str, str]:
    """The parameters a sentence may name, lists written out."""
    shown = {name: value for name, value in rule.parameters.items() if name not in ("min", "max")}
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in shown.items()}


def _bounds(rule: Rule) -> str:
    low, high = rule.parameters.get("min"), rule.parameters.get("max")
    shown = [f"{bound:,}" if isinstance(bound, int | float) else "" for bound in (low, high)]
    if low is None:
        return f"at most {shown[1]}"
    if high is None:
        return f"at least {shown[0]}"
    return f"exactly {shown[0]}" if low == high else f"from {shown[0]} to {shown[1]}"


_SENTENCES: dict[str, str] = {
    "column_exists": "the table {table} has a column {column}.",
    "type": "{column} is of the type {type}.",
    "not_null": "{column} is never missing.",
    "unique": "{column} is there once only.",
    "unique_together": "{columns} together are there once only.",
    "length": "the number of characters of {column} is {bounds}.",
    "pattern": "{column} matches {pattern}.",
    "range": "{column} is {bounds}.",
    "allowed_values": "{column} is one of {values}.",
    "not_blank": "{column} has a visible character.",
    "row_count": "the number of rows of {table} is {bounds}.",
    "references": "{column} is one of {to}.",
    "no_leakage": "no text of a query of {held_out} stands in {seen} ({match}).",
    "judged_queries": "the number of queries of the split {split} with a relevant document is {bounds}.",
}
