"""Each sentence that compares, with its test: `python -m tests.benchmarks.claims CLAIMS.yaml [--strict]`.

CLAIMS.yaml is a list. Each entry `says` a sentence, names the measurement and what it `expects` of the difference:

    - says: The student is above its untrained encoder in nDCG@10.
      evaluation: evaluation            # folder of an evaluation, beside the file; with system, baseline and metric
      system: student
      baseline: student_untrained
      metric: ndcg@10
      expects: above                    # or below, or level with a margin
    - says: Two layers of the head gain recall.
      table: studies/head/table.csv     # table of a study; `row` is the value of its first column, `column` has ends `... low`, `... high`
      row: two_layer
      column: gain R@50
      expects: above

A claim holds when the whole interval says so, does not hold when the whole interval says the contrary, and is not decidable in between, or
where there is no interval: one seed, no baseline. A row of a study's table that says that it claims nothing (`claim`) has none, nor has a
difference whose chance (`... p`, corrected for the whole table) is not small. `--strict` ends with exit status 1 unless every claim holds.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from components.errors import ConfigError, ScalingNoteError
from components.evaluation.report import load_summary
from components.studies.report import CHANCE, CLAIM, LEVEL, NO_CLAIM

Outcome = Literal["holds", "does not hold", "not decidable"]


class Measured(NamedTuple):
    """A difference and the ends of its interval; None where there is no interval."""

    value: float
    low: float | None
    high: float | None


class Claim(BaseModel):
    """One sentence, where its measurement lies, and what it expects."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    says: str = Field(min_length=1)
    expects: Literal["above", "below", "level"]
    margin: float | None = Field(None, gt=0)
    evaluation: str | None = None
    system: str = ""
    baseline: str = ""
    metric: str = ""
    table: str | None = None
    row: str = ""
    column: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Claim:
        if (self.evaluation is None) == (self.table is None):
            raise ValueError("name either evaluation or table")
        needed = ("system", "baseline", "metric") if self.table is None else ("row", "column")
        if missing := [name for name in needed if not getattr(self, name)]:
            raise ValueError(f"name {' and '.join(missing)} too")
        if (self.expects == "level") != (self.margin is not None):
            raise ValueError("level needs a margin, above and below need none")
        return self


def read_claims(file: Path) -> list[Claim]:
    """The claims of a file; raises ConfigError that says which entry is wrong."""
    try:
        return TypeAdapter(list[Claim]).validate_python(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read as YAML: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file}: entry {'.'.join(str(part) for part in first['loc']) or '0'}: {first['msg']}") from None


def measured(claim: Claim, root: Path) -> Measured:
    """What was measured, paths taken from `root`; raises ConfigError where the measurement is not there."""
    return _in_evaluation(claim, root / claim.evaluation) if claim.evaluation is not None else _in_table(claim, root / str(claim.table))


def outcome(claim: Claim, found: Measured) -> Outcome:
    """Whether the whole interval lies where the claim says, wholly elsewhere, or on both sides."""
    _, low, high = found
    if low is None or high is None:
        return "not decidable"
    if claim.expects == "level":
        margin = float(claim.margin or 0)
        return "holds" if -margin < low and high < margin else "does not hold" if low > margin or high < -margin else "not decidable"
    good, bad = (low > 0, high < 0) if claim.expects == "above" else (high < 0, low > 0)
    return "holds" if good else "does not hold" if bad else "not decidable"


def render(claims: Sequence[Claim], found: Sequence[Measured]) -> str:
    """A Markdown table, a claim a line."""
    lines = ["| claim | expects | measured | outcome |", "|---|---|---|---|"]
    for claim, value in zip(claims, found, strict=True):
        expects = f"level within {claim.margin:g}" if claim.margin is not None else claim.expects
        ends = "no interval" if value.low is None or value.high is None else f"[{value.low:+.3f} {value.high:+.3f}]"
        lines.append(f"| {claim.says.replace('|', '/')} | {expects} | {value.value:+.3f} {ends} | {outcome(claim, value)} |")
    return "\n".join(lines)


def _in_evaluation(claim: Claim, folder: Path) -> Measured:
    for found in load_summary(folder).comparisons:
        if (found.system, found.baseline, found.metric) == (claim.system, claim.baseline, claim.metric):
            return Measured(found.difference, found.low, found.high)
    raise ConfigError(
        f"{folder} does not compare {claim.system} with {claim.baseline} in {claim.metric}; '{claim.says}' has no measurement."
    )


def _in_table(claim: Claim, file: Path) -> Measured:
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    named = [row for row in rows if next(iter(row.values()), None) == claim.row]
    if not named or claim.column not in named[0]:
        raise ConfigError(f"{file} has no row '{claim.row}' with a column '{claim.column}'; '{claim.says}' has no measurement.")
    if len(named) > 1:
        raise ConfigError(f"{file} has {len(named)} rows '{claim.row}', so nothing says which one '{claim.says}' is about.")
    row = named[0]
    value, low, high = (_number(row.get(name)) for name in (claim.column, f"{claim.column} low", f"{claim.column} high"))
    if value is None:
        raise ConfigError(f"{file}: row '{claim.row}', column '{claim.column}' holds no number; '{claim.says}' has no measurement.")
    chance = _number(row.get(f"{claim.column}{CHANCE}"))
    by_chance = claim.expects != "level" and chance is not None and chance >= LEVEL
    return Measured(value, None, None) if row.get(CLAIM) == NO_CLAIM or by_chance else Measured(value, low, high)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; exit status 1 with --strict when a claim does not hold, 2 for claims that cannot be read."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("claims", type=Path)
    parser.add_argument("--strict", action="store_true", help="exit status 1 unless every claim holds")
    options = parser.parse_args(arguments)
    try:
        claims = read_claims(options.claims)
        found = [measured(claim, options.claims.parent) for claim in claims]
    except ScalingNoteError as error:
        print(error, file=sys.stderr)
        return 2
    print(render(claims, found))
    return int(options.strict and any(outcome(claim, value) != "holds" for claim, value in zip(claims, found, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
