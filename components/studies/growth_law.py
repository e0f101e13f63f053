"""How an index grows with its corpus: a law for each quantity, what larger corpora should cost, when a tuning no longer holds.

    memory, disk   y = a + b n            what does not depend on the corpus, and the bytes of a document
    building       y = c n^p              each document is compared with a number of centroids that grows as a power of n
    comparisons    w = c n^p              vectors that one query is compared with; w itself is known of every index (see `comparisons`)
    latency        y = a + b w            a fixed part, and a time for each comparison

Each law has two parameters and is fitted by ordinary least squares of relative errors (lines, divided by n or w) or of logarithms
(powers). Intervals are those of Student's t for one new measurement. Recall is not extrapolated: it is tuned to the same target at every
size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.index.drift import TUNED_RANGE
from components.index.index_keys import is_exact
from components.studies.report import HIGH, LOW, number

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


Floats = NDArray[np.float64]
Form = Literal["line", "power"]

CONFIDENCE = 0.95
LEAST_POINTS = 3
LOWEST_R2 = 0.8
LEAST_SPAN = 4.0  # the largest size over the smallest
WIDEST = 10.0  # the upper end of an interval over the lower one, from which on it says nothing


@dataclass(frozen=True)
class Law:
    """A fitted law. `supported` is False when the points do not carry it, and `reasons` then says why.

    `parameters` are those of the formula, empty when nothing was fitted; `r2` is that of the logarithms.
    """

    form: Form
    formula: str
    points: int
    supported: bool
    reasons: tuple[str, ...]
    parameters: dict[str, float]
    r2: float | None
    noise: float = 0.0  # standard deviation of one measurement around the law, in fitted values
    inverse: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 0.0), (0.0, 0.0))  # of the normal equations' matrix

    def describe(self) -> dict[str, Any]:
        """All that is for people and JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("noise", "inverse")}


@dataclass(frozen=True)
class Extrapolation:
    """The value of a law at one size with the ends of the interval that one measurement should fall into."""

    value: float
    low: float
    high: float

    @property
    def decides(self) -> bool:
        """Whether the interval is narrow enough to say anything."""
        return self.low > 0 and self.high / self.low <= WIDEST


@dataclass(frozen=True)
class _Form:
    """How a law becomes linear: design (n,) -> (n, 2), response (y, x) -> fitted values, value (fitted values, x) -> y."""

    formula: str
    names: tuple[str, str]
    design: Callable[[Floats], Floats]
    response: Callable[[Floats, Floats], Floats]
    value: Callable[[Floats, Floats], Floats]


FORMS: dict[Form, _Form] = {
    # Divided by x: measurements of 10,000 and of a million documents are off by the same share, not by the same number of bytes.
    "line": _Form("y = a + b x", ("a", "b"), lambda x: np.stack([1 / x, np.ones_like(x)], 1), lambda y, x: y / x, lambda z, x: z * x),
    "power": _Form(
        "y = c x^p", ("c", "p"), lambda x: np.stack([np.ones_like(x), np.log(x)], 1), lambda y, _: np.log(y), lambda z, _: np.exp(z)
    ),
}


def fit_growth(form: Form, sizes: ArrayLike, values: ArrayLike) -> Law:
    """Fit a law to measurements `values` (all above 0) at `sizes` (documents or comparisons), float (n,) each."""
    x, y = np.asarray(sizes, np.float64), np.asarray(values, np.float64)
    kind = FORMS[form]
    if refusal := _unfit(x, y):
        return Law(form, kind.formula, len(x), False, refusal, {}, None)
    design, response = kind.design(x), kind.response(y, x)
    inverse = np.linalg.inv(design.T @ design)
    theta = inverse @ design.T @ response
    error = float(((response - design @ theta) ** 2).sum())
    r2 = _r2(y, kind.value(design @ theta, x))
    reasons = _doubts(x, float(theta[1]), r2)
    return Law(
        form,
        kind.formula,
        len(x),
        not reasons,
        reasons,
        {kind.names[0]: float(np.exp(theta[0]) if form == "power" else theta[0]), kind.names[1]: float(theta[1])},
        r2,
        float(np.sqrt(error / (len(x) - 2))),
        ((float(inverse[0, 0]), float(inverse[0, 1])), (float(inverse[1, 0]), float(inverse[1, 1]))),
    )


def extrapolate(law: Law, size: float) -> Extrapolation | None:
    """What the law says at a size that was not measured; None when nothing was fitted. A quantity is never below 0."""
    from scipy.stats import t

    if not law.parameters:
        return None
    kind, x = FORMS[law.form], np.array([size], np.float64)
    row = kind.design(x)[0]
    first, second = law.parameters.values()
    theta = np.array([np.log(first) if law.form == "power" else first, second])
    middle = float(row @ theta)
    off = float(t.ppf((1 + CONFIDENCE) / 2, law.points - 2)) * law.noise * float(np.sqrt(1 + row @ np.array(law.inverse) @ row))
    value, low, high = (max(0.0, float(kind.value(np.array([z]), x)[0])) for z in (middle, middle - off, middle + off))
    return Extrapolation(value, low, high)


def extrapolate_latency(latency: Law, work: Law, size: float) -> Extrapolation | None:
    """Latency at a corpus size: the law of latency over comparisons at the comparisons that their own law foretells.

    The ends stand for both laws missing to the same side, so the interval is rather too wide than too narrow.
    """
    compared = extrapolate(work, size)
    if compared is None:
        return None
    middle, low, high = (extrapolate(latency, max(w, 1.0)) for w in (compared.value, compared.low, compared.high))
    if middle is None or low is None or high is None:
        return None
    return Extrapolation(middle.value, min(low.low, middle.low), max(high.high, middle.high))


def comparisons(index_key: str, documents: int, nprobe: int | None, ef_search: int | None) -> float:
    """Vectors that one query is compared with: all of them in exact search; the centroids and the lists that are visited in an inverted
    file (lists of equal length); in a graph the width of its search at about log2 n steps.
    """
    lists = re.search(r"IVF(\d+)", index_key)
    if lists:
        count = int(lists[1])
        return count + min(nprobe or 1, count) * documents / count
    if "HNSW" in index_key or "NSG" in index_key:
        return (ef_search or 16) * float(np.log2(max(documents, 2)))
    return float(documents)


def tuning_warning(documents: int, tuned_documents: int | None) -> str | None:
    """A sentence when a corpus of `documents` has left the range that the index's parameters were tuned for; else None.

    `tuned_documents` is the attribute of the index (None: exact search or an old index, which has nothing to tune). Lists that are much
    longer than at the tuning cost latency, much shorter ones recall.
    """
    if tuned_documents is None or tuned_documents / TUNED_RANGE <= documents <= tuned_documents * TUNED_RANGE:
        return None
    grown = documents > tuned_documents
    return (
        f"The corpus has {documents:,} documents; the index parameters were tuned at {tuned_documents:,} and hold for "
        f"{tuned_documents / TUNED_RANGE:,.0f} to {tuned_documents * TUNED_RANGE:,.0f}. "
        f"Expect {'slower searches' if grown else 'a lower recall'}: build the index anew with `scalingnote retrain`."
    )


def _unfit(x: Floats, y: Floats) -> tuple[str, ...]:
    """Why a fit is not even tried."""
    if len(x) < LEAST_POINTS:
        return (f"{len(x)} points for 2 parameters; at least {LEAST_POINTS} are needed",)
    if len(np.unique(x)) < 2:
        return ("all points have the same size",)
    return () if (x > 0).all() and (y > 0).all() else ("a measured value is not above 0",)


def _doubts(x: Floats, slope: float, r2: float) -> tuple[str, ...]:
    """Why a fit is not to be believed."""
    reasons = []
    if slope <= 0:
        reasons.append("the values do not grow with the size")
    if x.max() / x.min() < LEAST_SPAN:
        reasons.append(f"the sizes span a factor of {x.max() / x.min():.2g}; at least {LEAST_SPAN:g} is asked for")
    if r2 < LOWEST_R2:
        reasons.append(f"the law explains {max(r2, 0):.0%} of the variance; at least {LOWEST_R2:.0%} are asked for")
    return tuple(reasons)


def _r2(y: Floats, fitted: Floats) -> float:
    """Of the logarithms, so that the largest size does not decide alone."""
    logs = np.log(y)
    total = float(((logs - logs.mean()) ** 2).sum())
    error = float(((logs - np.log(np.maximum(fitted, 1e-12))) ** 2).sum())
    return 1 - error / total if total > 0 else 0.0


# --- Table, sentences and figure of the study of growth.


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
