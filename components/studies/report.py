"""A study's table and plot as files: Markdown for people, CSV with every number apart, PNG.

Columns are levels, shares kept and differences, each with its interval.

A system is given by its scores, or by those of each of its trainings with different seeds: the interval then holds the noise of training
beside that of the queries (see `seeded_interval`), and the value is the mean over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, seal, write_atomic
from components.errors import DataError
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import per_query_metrics
from components.evaluation.summarize import CONFIDENCE, RETAINED, judged_split
from components.evaluation.table import told_units
from components.evaluation.units import Interval, Numbers, Statistic, Units, design_effect, seeded_interval
from components.studies.scores import KIND, Scores, splits_of
from components.text import one_line

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from components.data.dataset import Dataset
    from components.evaluation.rankers import Ranker


def quality_over(frame: pd.DataFrame, x: str, metrics: Sequence[str], path: Path, title: str) -> None:
    """One panel for each metric: its value with its interval over column `x` on a logarithmic axis, points named by `system`."""
    figure, panels = _figure(len(metrics), title)
    for axes, metric in zip(panels, metrics, strict=True):
        rows = frame.dropna(subset=[x, metric])
        axes.errorbar(rows[x], rows[metric], yerr=_arms(rows, metric), fmt="o", capsize=3)
        for name, across, up in zip(rows["system"], rows[x], rows[metric], strict=True):
            axes.annotate(str(name), (across, up), textcoords="offset points", xytext=(5, 5), fontsize=8)
        if len(rows) and (rows[x] > 0).all():
            axes.set_xscale("log")
        axes.margins(x=0.2, y=0.1)  # room for the names
        axes.set(xlabel=x, ylabel=metric)
        axes.grid(alpha=0.3)
    _save(figure, path)


def bars(frame: pd.DataFrame, label: str, metrics: Sequence[str], path: Path, title: str, series: str | None = None) -> None:
    """One panel for each metric: a horizontal bar with its interval for each row, in the table's order; groups by `series` if given."""
    figure, panels = _figure(len(metrics), title, height=1.5 + 0.3 * len(frame))
    for axes, metric in zip(panels, metrics, strict=True):
        _bar_panel(axes, frame.dropna(subset=[metric]), label, metric, series)
    _save(figure, path)


def _bar_panel(axes: Axes, frame: pd.DataFrame, label: str, metric: str, series: str | None) -> None:
    names = list(dict.fromkeys(frame[label]))
    groups = list(dict.fromkeys(frame[series])) if series else [None]
    thickness = 0.8 / max(1, len(groups))
    for number, group in enumerate(groups):
        rows = frame if group is None else frame[frame[series] == group]
        places = [names.index(name) + (number - (len(groups) - 1) / 2) * thickness for name in rows[label]]
        axes.barh(places, rows[metric], thickness, xerr=_arms(rows, metric), capsize=2, label=group)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel=metric)
    axes.grid(axis="x", alpha=0.3)
    if series:
        axes.legend(fontsize=8)


def _figure(panels: int, title: str, height: float = 4.5) -> tuple[Any, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * panels, height), layout="constrained")
    figure.suptitle(title)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _arms(rows: pd.DataFrame, metric: str) -> Any:
    """Lengths below and above the value, or None when the metric has no interval. A percentile interval may miss its value by a hair.

    One without ends, of a single unit, is not drawn.
    """
    if metric + LOW not in rows:
        return None
    below, above = rows[metric] - rows[metric + LOW], rows[metric + HIGH] - rows[metric]
    return [arm.clip(lower=0).replace(math.inf, math.nan) for arm in (below, above)]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)


# --- A study's table and plot as files: Markdown for people, CSV with every number apart, PNG.


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


def holm(chances: Sequence[float]) -> list[float]:
    """The chances (p values) of one table corrected for their number, in their order, at most 1.

    Source: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    order = sorted(range(len(chances)), key=lambda place: chances[place])
    found, highest = [0.0] * len(chances), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - rank) * chances[place]))
        found[place] = highest
    return found


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
    heads, rows = [_plain(c) for c in shown], [[_cell(row, column) for column in shown] for row in frame.to_dict("records")]
    widths = [max(3, len(head), *(len(row[i]) for row in rows)) if rows else max(3, len(head)) for i, head in enumerate(heads)]
    lines = [[column.ljust(w) for column, w in zip(heads, widths, strict=True)], [_rule(w, i) for i, w in enumerate(widths)]]
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


def beside(value: float, bound: float, told: str) -> str:
    """A value as it is told, with more digits where it would else read as lying on the other side of what it is held against, or on it."""
    for digits in range(4, 10):
        if math.isnan(value) or value == bound or (float(told) - bound) * (value - bound) > 0:
            break
        told = f"{value:.{digits}f}"
    return told


def _rule(width: int, place: int) -> str:
    return "-" * (width - 1) + ":" if place else "-" * width


def _is_end(column: str, columns: Sequence[str]) -> bool:
    return any(column.endswith(end) and column.removesuffix(end) in columns for end in (LOW, HIGH))


def _cell(row: Mapping[Any, Any], column: str) -> str:
    value, low, high = row[column], row.get(column + LOW), row.get(column + HIGH)
    if column.endswith(CHANCE) and isinstance(value, float) and not math.isnan(value):
        return beside(value, LEVEL, number(value))  # 0.0496 is claimed and 0.0504 is not: told as 0.050 both would read alike
    return _plain(number(value)) + told_ends(low, high)


def _plain(text: str) -> str:
    """A name that ends neither its cell nor its row: those of splits, models and folders are whoever made them to choose."""
    return one_line(text).replace("|", "\\|")


def told_ends(low: float | None, high: float | None) -> str:
    """The ends of an interval behind its value; one without ends, of a single unit, says so."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return ""
    return f" [{number(low)} {number(high)}]" if math.isfinite(low) and math.isfinite(high) else " [no interval]"


# --- Columns of a study's table from metrics per query: levels, shares kept and differences, each with its interval.


METRIC_TITLES = {"recall@50": "R@50", "ndcg@10": "nDCG@10"}
Values = Mapping[tuple[str, str], NDArray[np.float64]]
Runs = Values | Sequence[Values]  # the scores of one system, or of each of its seeds
Row = dict[str, float]


def levels(runs: Runs, config: EvaluationConfig) -> Row:
    """R@50 and nDCG@10 on every split, with intervals."""
    return _columns(config, partial(compare, runs, None, "mean", config), "")


def kept(runs: Runs, reference: Runs, config: EvaluationConfig) -> Row:
    """The share of the reference's R@50 and nDCG@10 that is kept, paired by query; nothing where the reference has 0."""
    return _columns(config, partial(compare, runs, reference, "ratio", config), "kept ")


def gained(runs: Runs, reference: Runs, config: EvaluationConfig, word: str = "gain ", same_trainings: bool = False) -> Row:
    """R@50 and nDCG@10 minus the reference's, paired by query; below 0 for a loss. `x p` is the chance of as much if there is nothing.

    `same_trainings`: both are the same trainings in the same order, asked in two ways, so that they are paired by seed as well.
    """
    if same_trainings:
        runs, reference = differences(runs, reference), None  # type: ignore[assignment]
    return _columns(config, partial(compare, runs, reference, "difference", config), word)


def differences(runs: Runs, reference: Runs) -> list[Scores]:
    """Each training's scores minus the reference's of the same training: what `compare` takes for `runs`, without a reference."""
    pairs = zip(seeds_of(runs), seeds_of(reference), strict=True)
    return [Scores({key: own[key] - other[key] for key in own}, _units(own)) for own, other in pairs]


def compare(
    runs: Runs,
    reference: Runs | None,
    statistic: Statistic,
    config: EvaluationConfig,
    split: str,
    metric: str,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """The statistic in one metric of one split over seeds and units, with its chance for a difference; None for a share of 0.

    Raises DataError when the units of two runs differ.
    """
    own, others = seeds_of(runs), [] if reference is None else seeds_of(reference)
    first, second = [run[split, metric] for run in own], [run[split, metric] for run in others] or None
    if statistic == "ratio" and not np.mean(second or 0.0) > 0:
        return None
    known = [units[split] for run in (*own, *others) if split in (units := _units(run))]
    if any(not np.array_equal(units, known[0]) for units in known[1:]):
        raise DataError(f"Another cell grouped the queries of '{split}' into other units. Run the study again.")
    asked: Statistic = "mean" if second is None else statistic
    found = seeded_interval(first, second, asked, config.bootstrap_samples, confidence, config.seed, known[0] if known else None)
    if statistic == "difference":
        return found
    return replace(found.share if statistic == "mean" else found, p=None)


def _units(run: Values) -> Mapping[str, Numbers]:
    return run.units if isinstance(run, Scores) else {}


def told_worth(scores: Scores, config: EvaluationConfig) -> str:
    """In how many units the queries of `config.split` were drawn, and what these are worth by the values of one system."""
    numbers = scores.units.get(config.split)
    if numbers is None:
        return ""
    rule = f"grouped as evaluation.query_groups says ({config.query_groups})"
    effects = {METRIC_TITLES[metric]: design_effect(scores[config.split, metric], numbers) for metric in RETAINED}
    return told_units(Units(tuple(map(str, range(len(numbers)))), numbers, rule), effects)


def seeds_of(runs: Runs) -> Sequence[Values]:
    """The scores of each seed."""
    return [runs] if isinstance(runs, Mapping) else list(runs)


def _columns(config: EvaluationConfig, compared: Callable[[str, str], Interval | None], word: str) -> Row:
    row: Row = {}
    for split in splits_of(config):
        where = "" if split == config.split else f" ({split})"
        for metric in RETAINED:
            found = compared(split, metric)
            if found is not None:
                row.update(with_interval(f"{word}{METRIC_TITLES[metric]}{where}", found))
    return row


# --- Systems side by side: the level of each, and its distance from one of them, with paired intervals.


METRICS = {"recall@50": "R@50", "ndcg@10": "nDCG@10", "mrr@10": "MRR@10"}


def side_by_side(
    systems: Mapping[str, Runs], reference: str, config: EvaluationConfig, untrained: Collection[str] = ()
) -> list[dict[str, Any]]:
    """One row a system on `config.split`: every metric, and the reference's minus its own; both with intervals over seeds and queries.

    Where one of the two was trained with one seed alone, the row says that it claims nothing; `untrained` names the systems that take none.
    """
    rows = []
    for name, runs in systems.items():
        row: dict[str, Any] = {"system": name, "seeds": 0 if name in untrained else len(seeds_of(runs))}
        for metric, title in METRICS.items():
            found = compare(runs, None, "mean", config, config.split, metric)
            row.update(with_interval(title, found) if found else {})
        for metric, title in METRICS.items() if name != reference else ():
            found = compare(systems[reference], runs, "difference", config, config.split, metric)
            row.update(with_interval(f"{reference} - system, {title}", found) if found else {})
        trained = [len(seeds_of(systems[system])) for system in (name, reference) if system not in untrained]
        rows.append({**row, **(claim_of(*trained) if name != reference and trained else {})})
    return rows


def mean_metrics(ranker: Ranker, dataset: Dataset, split: str, depth: int) -> dict[str, float]:
    """Every metric's mean over the judged queries of a split."""
    judged = judged_split(dataset, split)
    ranking = judged.rankings(ranker.rank(judged.texts, judged.asked(depth)), depth)
    means = per_query_metrics(judged.judgements, ranking).groupby("metric")["value"].mean()
    return {str(metric): float(value) for metric, value in means.items()}


def verdict(row: Mapping[str, Any], reference: str, title: str) -> str:
    """Whether the reference is above or below the row's system in a metric, or not told apart; of a row of the corrected table."""
    column = f"{reference} - system, {title}"
    if not apart(row, column):
        return "not compared (one seed) with" if row.get(CLAIM) == NO_CLAIM else "not apart from"
    return "above" if row[column] > 0 else "below"
