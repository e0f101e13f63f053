"""Table, sentences and figure of the study of growth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.index.index_keys import is_exact
from components.studies.growth_law import WIDEST, Extrapolation, Law, extrapolate, extrapolate_latency, fit_growth
from components.studies.report import HIGH, LOW, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GB = 1e9
DOCUMENTS, ORIGIN, SPEED, RECALL = "documents", "documents are", "queries/s", "recall@k"
EXTRAPOLATED = "extrapolated"
# Column -> what a cell measured, and the number that makes it the column's unit.
COLUMNS = {
    "build s": ("build_seconds", 1.0),
    "build peak GB": ("build_peak_bytes", GB),
    "files GB": ("file_bytes", GB),
    "resident GB": ("resident_bytes", GB),
    "p50 ms": ("p50_ms", 1.0),
    "p95 ms": ("p95_ms", 1.0),
    "batch ms": ("batch_ms", 1.0),
}
# The laws, in the order of the notes; what is timed follows the comparisons of a query, not the documents.
LAWS = {"build s": "power", "files GB": "line", "resident GB": "line", "p50 ms": "line", "p95 ms": "line", "batch ms": "line"}
OVER_WORK = ("p50 ms", "p95 ms", "batch ms")
WORK = "comparisons"
Cells = Sequence[Mapping[str, Any]]


def measured_kind(cells: Cells) -> list[Mapping[str, Any]]:
    """The cells that the laws are fitted to: approximate indexes, and exact ones only when there are no others, largest last.

    The two cost different amounts for a document, so one law cannot hold for both.
    """
    ordered = sorted(cells, key=lambda cell: cell["documents"])
    approximate = [cell for cell in ordered if not is_exact(str(cell["index_key"]))]
    return approximate or ordered


def fit_laws(cells: Cells) -> dict[str, Law]:
    """A law for each column, and `comparisons` for those of a query over documents."""
    points = measured_kind(cells)
    sizes, work = [cell["documents"] for cell in points], [cell[WORK] for cell in points]
    laws = {WORK: fit_growth("power", sizes, work)}
    for column, form in LAWS.items():
        field, unit = COLUMNS[column]
        laws[column] = fit_growth(form, work if column in OVER_WORK else sizes, [cell[field] / unit for cell in points])  # type: ignore[arg-type]
    return laws


def foretell(laws: Mapping[str, Law], documents: float) -> dict[str, Extrapolation]:
    """What the laws say about a corpus of so many documents, by column; what was not fitted is left out."""
    found = {
        column: extrapolate_latency(laws[column], laws[WORK], documents) if column in OVER_WORK else extrapolate(laws[column], documents)
        for column in LAWS
    }
    return {column: value for column, value in found.items() if value is not None}


def growth_table(cells: Cells, targets: Sequence[int]) -> pd.DataFrame:
    """One row a measured size, then one for each size that is extrapolated to, with intervals."""
    import pandas as pd

    laws = fit_laws(cells)
    rows = [_measured(cell) for cell in sorted(cells, key=lambda cell: cell["documents"])]
    rows += [_extrapolated(laws, target) for target in sorted(targets)]
    return pd.DataFrame(rows)


def _measured(cell: Mapping[str, Any]) -> dict[str, Any]:
    real = cell["documents"] - cell["synthetic"]
    origin = "real" if not cell["synthetic"] else f"synthetic beyond {real:,} real"
    row: dict[str, Any] = {DOCUMENTS: cell["documents"], ORIGIN: origin, "index": cell["index_key"], "nprobe": cell["nprobe"]}
    row |= {column: cell[field] / unit for column, (field, unit) in COLUMNS.items()}
    recall = {RECALL: cell["recall"], RECALL + LOW: cell.get("recall_low"), RECALL + HIGH: cell.get("recall_high")}
    return {**row, SPEED: 1000 / cell["batch_ms"], "open s": cell["open_seconds"], **recall}


def _extrapolated(laws: Mapping[str, Law], documents: int) -> dict[str, Any]:
    row: dict[str, Any] = {DOCUMENTS: documents, ORIGIN: EXTRAPOLATED, "index": "-"}
    for column, found in foretell(laws, documents).items():
        row |= {column: found.value, column + LOW: found.low, column + HIGH: found.high}
        if column == "batch ms" and found.value > 0:
            row[SPEED] = 1000 / found.value
    return row


def law_notes(cells: Cells) -> list[str]:
    """One sentence a law: its parameters, or why the points do not support it."""
    points = measured_kind(cells)
    kind = "exact search" if is_exact(str(points[-1]["index_key"])) else "approximate indexes"
    head = f"Extrapolated from the {len(points)} {kind} measured here. In brackets: 95% intervals for one measurement."
    names = {WORK: "w, the vectors that a query is compared with, over documents n", **{c: f"{c} over n" for c in LAWS}}
    names |= {column: f"{column} over w" for column in OVER_WORK}
    return [head, *(f"{names[column]}: {_sentence(law)}" for column, law in fit_laws(cells).items())]


def _sentence(law: Law) -> str:
    if not law.parameters:
        return f"{law.formula} was not fitted: {'; '.join(law.reasons)}."
    values = ", ".join(f"{name} = {number(value)}" for name, value in law.parameters.items())
    head = f"{law.formula} with {values}; R2 {law.r2:.3f} on {law.points} points"
    return f"{head}." if law.supported else f"{head}. The points do not support this law: {'; '.join(law.reasons)}."


def reach_notes(cells: Cells, targets: Sequence[int], keys: Mapping[int, str]) -> list[str]:
    """What stands against each extrapolation: its distance, another type of index (`keys`: target -> automatic key), wide intervals."""
    points, laws = measured_kind(cells), fit_laws(cells)
    largest = points[-1]
    lines = []
    for target in sorted(targets):
        wide = [column for column, found in foretell(laws, target).items() if not found.decides]
        lines.append(
            f"{target:,} documents are {target / largest['documents']:,.0f} times the largest index measured. No law sees a limit that is "
            f"crossed on the way, such as memory or cache. {_other_kind(str(largest['index_key']), keys.get(target))}"
            + (f"Intervals wider than a factor of {WIDEST:g}, so the points say nothing about: {', '.join(wide)}." if wide else "")
        )
    return [line.strip() for line in lines]


def _other_kind(measured: str, key: str | None) -> str:
    if key is None or _family(key) == _family(measured):
        return ""
    return f"The key `auto` takes {key} there, another type than the {measured} measured. "


def _family(key: str) -> str:
    """A key without its numbers: types that differ in size alone grow by the same law."""
    return "".join(c for c in key if not c.isdigit())


def draw_growth(frame: pd.DataFrame, path: Path) -> None:
    """Four panels over documents, logarithmic: building, memory, latency, recall; extrapolated values hollow, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    figure.suptitle("The index over the size of its corpus")
    panels = figure.subplots(2, 2).ravel()
    for axes, columns in zip(panels, (("build s",), ("resident GB", "files GB"), ("p50 ms", "p95 ms"), (RECALL,)), strict=True):
        for column in columns:
            _series(axes, frame, column)
        axes.set(xlabel="documents", xscale="log", yscale="linear" if columns == (RECALL,) else "log", ylabel=columns[0])
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _series(axes: Axes, frame: pd.DataFrame, column: str) -> None:
    if column not in frame:
        return
    rows = frame.dropna(subset=[column])
    measured, beyond = rows[rows[ORIGIN] != EXTRAPOLATED], rows[rows[ORIGIN] == EXTRAPOLATED]
    drawn = axes.plot(measured[DOCUMENTS], measured[column], "o-", label=column)
    if len(beyond) and column + LOW in frame:
        arms = [(beyond[column] - beyond[column + LOW]).clip(lower=0), (beyond[column + HIGH] - beyond[column]).clip(lower=0)]
        axes.errorbar(
            beyond[DOCUMENTS].astype(float),
            beyond[column].to_numpy(np.float64),
            yerr=arms,
            fmt="o",
            mfc="none",
            capsize=3,
            color=drawn[0].get_color(),
            label=f"{column}, {EXTRAPOLATED}",
        )
