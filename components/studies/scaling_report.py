"""Table, sentences and figure of the scaling study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.studies.report import HIGH, LOW, number
from components.studies.scaling_law import Fit, Points, curve, fit_law

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MODEL, SHARE, SIZE, PAIRS, ENTROPY, FORETOLD = "model", "share", "N", "D", "entropy", "predicted"
WORDS = {"model_size": "Model size", "data_size": "Data size", "joint": "Both"}
ON = {"model_size": "on the most pairs", "data_size": "of the largest model", "joint": "over all cells"}


def scaling_table(cells: Sequence[Mapping[str, Any]], foretold: Mapping[str, Any]) -> pd.DataFrame:
    """One row a cell; `predicted` is the joint law's value where it gave one, else that of the law of model size."""
    import pandas as pd

    rows = []
    for cell in cells:
        row = {MODEL: cell["model"], SHARE: cell["share"], SIZE: cell["parameters"], PAIRS: cell["pairs"], "steps": cell["steps"]}
        row |= {ENTROPY: cell["entropy"], ENTROPY + LOW: cell["entropy_low"], ENTROPY + HIGH: cell["entropy_high"]}
        row |= {"R@50": cell["R@50"], "nDCG@10": cell["nDCG@10"]}
        for law in ("model_size", "joint"):
            for found in (p for p in foretold["predictions"] if p["law"] == law):
                if (found["size"], found["pairs"]) == (cell["parameters"], cell["pairs"]):
                    row |= {FORETOLD: found["loss"], FORETOLD + LOW: found["low"], FORETOLD + HIGH: found["high"]}
        rows.append(row)
    frame = pd.DataFrame(rows)
    # Of queries in a single unit there are no ends, and None is no number to draw.
    return frame.astype({column: float for column in (ENTROPY + LOW, ENTROPY + HIGH) if column in frame})


def fit_notes(fits: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One sentence a law: parameters, intervals and R2, or why the points do not support it."""
    return [f"{words}, {ON[law]}: {_fit_sentence(fits[law])}" for law, words in WORDS.items() if law in fits]


def _fit_sentence(fit: Mapping[str, Any]) -> str:
    if not fit["parameters"]:
        return f"{fit['formula']} was not fitted: {'; '.join(fit['reasons'])}."
    ends = {name: " ".join(map(number, interval)) for name, interval in fit["intervals"].items()}
    values = ", ".join(f"{name} = {number(value)} [{ends[name]}]" for name, value in fit["parameters"].items())
    head = f"{fit['formula']} with {values}; R2 of log L {fit['r2']:.3f} on {fit['points']} points"
    return f"{head}." if fit["supported"] else f"{head}. The points do not support this fit: {'; '.join(fit['reasons'])}."


def prediction_notes(frame: pd.DataFrame, foretold: Mapping[str, Any]) -> list[str]:
    """How far off each prediction of the largest size was; a law that could not be fitted without that size predicted nothing."""
    lines = []
    for found in foretold["predictions"]:
        rows = frame[(frame[SIZE] == found["size"]) & (frame[PAIRS] == found["pairs"])]
        if not len(rows):
            continue
        measured = float(rows[ENTROPY].iloc[0])
        doubt = "" if foretold["fits"][found["law"]]["supported"] else "; a law that its points do not support"
        lines.append(
            f"Predicted by {foretold['fits'][found['law']]['formula'].split(' =')[0]} from the smaller sizes before it was run: "
            f"{rows[MODEL].iloc[0]} on {found['pairs']:,.0f} pairs {number(found['loss'])} [{number(found['low'])} "
            f"{number(found['high'])}], measured {number(measured)} ({found['loss'] / measured - 1:+.1%}){doubt}."
        )
    missing = [fit for fit in foretold["fits"].values() if not fit["parameters"]]
    return lines + [f"No prediction by {fit['formula']}: {'; '.join(fit['reasons'])}." for fit in missing]


def draw_scaling(frame: pd.DataFrame, path: Path) -> None:
    """Two panels with logarithmic axes: entropy over N, a series for each share; over D, a series for each model; curves where fitted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    figure.suptitle("Contrastive entropy over model and data size")
    over_size, over_pairs = figure.subplots(1, 2)
    joint = fit_law("joint", _points(frame), refits=0)
    for share, rows in frame.groupby(SHARE):
        _series(over_size, rows, SIZE, f"{share:g} of the pairs", _law(joint, "model_size", rows))
    for model, rows in frame.groupby(MODEL, sort=False):
        _series(over_pairs, rows, PAIRS, str(model), _law(joint, "data_size", rows))
    if FORETOLD in frame:
        rows = frame.dropna(subset=[FORETOLD])
        over_size.plot(rows[SIZE], rows[FORETOLD], "x", color="black", label="predicted before it was run")
    for axes, label in ((over_size, "N, parameters without embeddings"), (over_pairs, "D, training pairs seen")):
        axes.set(xlabel=label, ylabel="contrastive entropy, nats", xscale="log", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _law(joint: Fit, alone: Any, rows: pd.DataFrame) -> Fit:
    """The joint law where it could be fitted, else the one of a single size on these points."""
    return joint if joint.parameters else fit_law(alone, _points(rows), refits=0)


def _points(rows: pd.DataFrame) -> Points:
    return Points.of(rows[SIZE], rows[PAIRS], rows[ENTROPY])


def _series(axes: Axes, rows: pd.DataFrame, x: str, label: str, fit: Fit) -> None:
    rows = rows.sort_values(x)
    arms = [(rows[ENTROPY] - rows[ENTROPY + LOW]).clip(lower=0), (rows[ENTROPY + HIGH] - rows[ENTROPY]).clip(lower=0)]
    drawn = axes.errorbar(rows[x], rows[ENTROPY], yerr=arms, fmt="o", capsize=3, label=label)
    if not fit.parameters or len(rows) < 2:
        return
    along = np.geomspace(rows[x].min(), rows[x].max(), 60)
    fixed = np.full(60, float(rows[PAIRS if x == SIZE else SIZE].iloc[0]))
    points = Points.of(along, fixed, fixed) if x == SIZE else Points.of(fixed, along, fixed)
    axes.plot(along, curve(fit, points), color=drawn[0].get_color(), linewidth=1)
