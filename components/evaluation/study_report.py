"""A study's table and plot as files: Markdown for people, CSV with every number apart, PNG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, seal, write_atomic
from components.evaluation.scores import KIND
from components.evaluation.significance import Interval

if TYPE_CHECKING:
    import pandas as pd

LOW, HIGH = " low", " high"  # the ends of column `x` stand in `x low` and `x high`
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
    """The three columns of a value with its interval."""
    return {name: interval.difference, name + LOW: interval.low, name + HIGH: interval.high}


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
    ends = f" [{number(low)} {number(high)}]" if low is not None and number(low) != "-" else ""
    return number(value).replace("|", "\\|") + ends
