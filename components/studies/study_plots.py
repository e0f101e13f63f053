"""Plots of the studies. Drawn on figures of their own: pyplot would keep state between them and look for a display."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.studies.report import HIGH, LOW

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


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
