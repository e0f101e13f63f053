"""What a validation found: one result for each rule, as JSON for programs and as sentences for people."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from components.data.rules import Rule, Severity

SCHEMA_VERSION = 1


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

    @property
    def summary(self) -> str:
        """One sentence that names contract, rule, count and the first offending ids."""
        text = f"contract {self.contract} {self.version}, rule {self.rule}: {self.requirement} "
        if self.offenders:
            rows = "row breaks" if self.count == 1 else "rows break"
            return f"{text}{self.count:,} {rows} it, first {'; '.join(str(offender) for offender in self.offenders)}"
        return f"{text}Found: {self.found or f'{self.count:,} rows that break it'}"


class ContractUsed(_Frozen):
    """A contract that was checked, by version and content."""

    name: str
    version: str
    file: str
    sha256: str


class ValidationReport(_Frozen):
    """Every rule of every contract about one dataset."""

    schema_version: int = SCHEMA_VERSION
    dataset: str
    dataset_digest: str
    counts: dict[str, int]
    contracts: tuple[ContractUsed, ...]
    results: tuple[RuleResult, ...]

    @property
    def errors(self) -> tuple[RuleResult, ...]:
        """Broken rules that stop the flow."""
        return tuple(result for result in self.results if not result.passed and result.severity == "error")

    @property
    def warnings(self) -> tuple[RuleResult, ...]:
        """Broken rules that are only reported."""
        return tuple(result for result in self.results if not result.passed and result.severity == "warning")


def requirement(rule: Rule) -> str:
    """What `rule` asks for, as a sentence: the contract's own words, or some that follow from the check."""
    if rule.description:
        return rule.description if rule.description.endswith(".") else f"{rule.description}."
    return _SENTENCES[rule.check].format(table=rule.table, column=rule.column, bounds=_bounds(rule), **_worded(rule))


def _worded(rule: Rule) -> dict[str, str]:
    """The parameters a sentence may name, lists written out."""
    shown = {name: value for name, value in rule.parameters.items() if name not in ("min", "max")}
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in shown.items()}


def _bounds(rule: Rule) -> str:
    low, high = rule.parameters.get("min"), rule.parameters.get("max")
    if low is None:
        return f"at most {high}"
    return f"at least {low}" if high is None else f"from {low} to {high}"


_SENTENCES: dict[str, str] = {
    "column_exists": "The table {table} has a column {column}.",
    "type": "{column} is of the type {type}.",
    "not_null": "{column} is never missing.",
    "unique": "{column} is there once only.",
    "unique_together": "{columns} together are there once only.",
    "length": "{column} has {bounds} characters.",
    "pattern": "{column} matches {pattern}.",
    "range": "{column} is {bounds}.",
    "allowed_values": "{column} is one of {values}.",
    "not_blank": "{column} is more than white space.",
    "row_count": "{table} has {bounds} rows.",
    "references": "{column} is one of {to}.",
    "no_leakage": "No query of {held_out} stands in {seen}.",
    "judged_queries": "The split {split} has {bounds} judged queries.",
}
