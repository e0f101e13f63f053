"""A study's table and plot as files: Markdown for people, CSV with every number apart, PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, seal, write_atomic
from components.evaluation.significance import Interval, holm
from components.studies.scores import KIND

if TYPE_CHECKING:
    import pandas as pd

LOW, HIGH, CHANCE = " low", " high", " p"  # the ends of column `x` stand in `x low` and `x high`, its chance (p value) in `x p`
CLAIM, NO_CLAIM = "claim", "one seed: no claim"
LEVEL = 0.05  # of all comparisons of a table together
Plot = Callable[["pd.DataFrame", Path], None]


def write_study_report(
    name: str, frame: pd.DataFrame, notes: Sequence[str], plot: Plot, parents: Mapping[str, str], folder: Path
) -> Artifact:
    """Write table.md, table.csv and plot.png of a study into `folder` and seal them."""
    text = f"# {name}\n\n{markdown_table(frame)}\n\n" + "".join(f"- {note}\n" for note in notes)
    write_atomic(folder / "table.md", text.encode())
    write_atomic(folder / "table.csv", frame.to_csv(index=False).encode())
    plot(frame, folder / "plot.png")
    return seal(folder, KIND, counts={"rows": len(frame)}, parents=parents, attributes={"study": name})


def with_interval(name: str, interval: Interval) -> dict[str, float]:
    """The three columns of a value with its interval; a fourth one for its chance, where that was asked."""
    row = {name: interval.difference, name + LOW: interval.low, name + HIGH: interval.high}
    return row if interval.p is None else {**row, name + CHANCE: interval.p}


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """The study's table with its chances corrected for their number, by Holm; a row that claims nothing (`NO_CLAIM`) has none."""
    columns = [column for column in frame.columns if str(column).endswith(CHANCE)]
    if not columns:
        return frame
    found = frame.copy()
    if CLAIM in found:
        found.loc[found[CLAIM] == NO_CLAIM, columns] = math.nan
    places = [(row, column) for row in found.index for column in columns if not math.isnan(found.at[row, column])]
    for place, chance in zip(places, holm([float(found.at[place]) for place in places]), strict=True):
        found.at[place] = chance
    return found


def claim_of(*seeds: int) -> dict[str, str]:
    """The column that says that a comparison of systems trained with so many seeds claims nothing; empty where it may claim something."""
    return {CLAIM: NO_CLAIM} if min(seeds) < 2 else {}


def apart(row: Mapping[Any, Any], column: str) -> bool:
    """Whether a difference of the corrected table is apart from 0, and may be claimed."""
    chance = row.get(column + CHANCE)
    return row.get(CLAIM) != NO_CLAIM and chance is not None and not math.isnan(chance) and chance < LEVEL


def markdown_table(frame: pd.DataFrame) -> str:
    """The frame as a Markdown table with aligned columns; an interval stands in brackets behind its value."""
    columns = [str(c) for c in frame.columns]
    shown = [c for c in columns if not _is_end(c, columns)]
    rows = [[_cell(row, column) for column in shown] for row in frame.to_dict("records")]
    widths = [max(3, len(column), *(len(row[i]) for row in rows)) if rows else max(3, len(column)) for i, column in enumerate(shown)]
    lines = [[column.ljust(w) for column, w in zip(shown, widths, strict=True)], [_rule(w, i) for i, w in enumerate(widths)]]
    lines += [[cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: Any) -> str:
    """A value as people read it: three digits that count, thousands apart; a missing one as a dash."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    if 0 < abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _rule(width: int, place: int) -> str:
    return "-" * (width - 1) + ":" if place else "-" * width


def _is_end(column: str, columns: Sequence[str]) -> bool:
    return any(column.endswith(end) and column.removesuffix(end) in columns for end in (LOW, HIGH))


def _cell(row: Mapping[Any, Any], column: str) -> str:
    value, low, high = row[column], row.get(column + LOW), row.get(column + HIGH)
    ends = _ends(low, high)
    return number(value).replace("|", "\\|") + ends


def _ends(low: float | None, high: float | None) -> str:
    """An interval without ends, of a single unit, says so."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" [{number(low)} {number(high)}]" if math.isfinite(low) and math.isfinite(high) else " [no interval]"
