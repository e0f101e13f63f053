"""Ablation of the towers' training: each cell changes one thing of stage 1, and the table says what the teacher gains or loses by it.

All cells take as many steps with as many pairs as the base. Mined negatives are more documents to read in each step, so their cells
take longer; the last note says what the positive-aware filter alone gives.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import Artifact
from components.towers.config import TowerConfig
from flows.studies.context import Context, StudySettings
from flows.studies.framework import (
    Cell,
    Changes,
    Results,
    about_queries,
    about_seeds,
    cells_of,
    decided_note,
    over_base,
    plot_changes,
    variants_of,
)

if TYPE_CHECKING:
    import pandas as pd

HARD_NEGATIVES = 2  # of each pair, in the cells that mine, where the configuration itself has none
POSITIVE_SHARE = TowerConfig.model_fields["positive_share"].default  # of the filter, where the configuration itself has none
FILTERED, UNFILTERED = "mined", "mined-unfiltered"

OBJECTIVES: Changes = {
    **{f"temperature-{t:g}": {"temperature": t} for t in (0.02, 0.05, 0.1)},
    **{f"query-prediction-{weight:g}": {"query_prediction_weight": weight} for weight in (0.03, 0.1, 0.3)},
    "suspects-not-masked": {"suspect_margin": None},
}
ENCODINGS: Changes = {
    "mean-pooling": {"pooling": "mean"},
    "bidirectional": {"attention": "bidirectional"},
}
MERGED = 3  # weights whose mean the towers become, in the cell that merges, from the last fifth of the steps


def changes(config: StudySettings) -> Changes:
    """Name of every cell -> the fields of the section towers that it changes."""
    merged = {"merge_last": MERGED, "checkpoint_every": max(1, config.towers.steps // (5 * (MERGED - 1)))}
    return {"base": {}, **_negatives(config.towers), **OBJECTIVES, **ENCODINGS, f"merged-{MERGED}": merged}


def _negatives(towers: TowerConfig) -> Changes:
    """In-batch negatives alone, and mined ones with and without the filter, mined after a third of the steps and after two thirds."""
    third = max(1, towers.steps // 3)
    mined = {"hard_negatives": HARD_NEGATIVES, "mining_start": third, "mining_interval": third} if not towers.hard_negatives else {}
    return {
        "in-batch-only": {"hard_negatives": 0},
        FILTERED: {**mined, "positive_share": towers.positive_share or POSITIVE_SHARE},
        UNFILTERED: {**mined, "positive_share": None},
    }


def cells(context: Context) -> list[Cell]:
    """The base and every cell that is wanted, with each seed; each teacher searches the index of its own document tower."""
    context.require_training(context.config)
    settings = cells_of(context, "towers", changes(context.config))
    return [Cell(name, partial(_score, context, name, changed)) for name, changed in settings.items()]


def _score(context: Context, name: str, config: StudySettings) -> Artifact:
    return context.scores(name, context.towers(config)[0], context.index(config))


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a variant, over its seeds: quality of the teacher and difference to the base."""
    import pandas as pd

    from components.studies.report import levels

    runs = variants_of(results)
    rows = [
        {"system": name, "seeds": len(found), **levels(found, config.evaluation), **over_base(name, runs, config)}
        for name, found in runs.items()
    ]
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """What each change gains or loses."""
    plot_changes(frame, path, "Towers: one change at a time")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What was compared, which differences are none, and what the filter of the mined negatives gives."""
    trained = f"{config.towers.steps:,} steps of {config.towers.batch_size} pairs"
    return [
        about_queries(next(iter(results.values())), config),
        about_seeds(results, config),
        f"Every cell changes the base's section towers in the way its name says; all take {trained}. Teacher on its own index, no student.",
        decided_note(frame),
        *_filter_note(results, config),
    ]


def _filter_note(results: Results, config: StudySettings) -> list[str]:
    from components.studies.report import HIGH, LOW, claim_of, gained, told_ends

    runs = variants_of(results)
    if FILTERED not in runs or UNFILTERED not in runs:
        return []
    row = gained(runs[FILTERED], runs[UNFILTERED], config.evaluation, "")
    said = ", ".join(f"{name} {row[name]:+.3f}{told_ends(row[name + LOW], row[name + HIGH])}" for name in ("R@50", "nDCG@10"))
    silent = "".join(f" ({word})" for word in claim_of(len(runs[FILTERED]), len(runs[UNFILTERED])).values())
    return [f"Mined negatives with the positive-aware filter minus without it: {said}{silent}."]
