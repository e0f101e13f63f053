"""Ablation of the distillation: each cell changes one thing, and the table says what that gains or loses against the base."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Cell, Results, about_queries, require
from flows.studies.student_forms import layers_of

if TYPE_CHECKING:
    import pandas as pd

Changes = dict[str, dict[str, Any]]
TEACHER, BASE = "teacher", "base"
MORE_QUERIES = 20_000  # sentences at most, in the cell that adds them
REFINE_EPOCHS = 3  # in the cells about refinement, where the configuration itself has none

LOSSES: Changes = {
    "mse-only": {"mse_weight": 1.0, "cosine_weight": 0.0},
    "cosine-only": {"mse_weight": 0.0, "cosine_weight": 1.0},
    "mse-and-cosine": {"mse_weight": 1.0, "cosine_weight": 1.0},
    "mse-10": {"mse_weight": 10.0, "cosine_weight": 1.0},
    "cosine-10": {"mse_weight": 1.0, "cosine_weight": 10.0},
    **{f"similarity-{t:g}": {"similarity_weight": 1.0, "similarity_temperature": t} for t in (0.02, 0.05, 0.1)},
}
TRAINING: Changes = {
    **{f"batch-{size}": {"batch_size": size} for size in (16, 32, 128)},
    "one-cycle": {"schedule": "one_cycle"},
    "cyclic": {"schedule": "cyclic"},
    "two-layer-head": {"head": "two_layer"},
}
SOURCES: Changes = {
    "train-queries-only": {"titles": 0, "sentences": 0, "generated": 0, "source_shares": {"train": 1.0}},
    "no-titles": {"titles": 0, "source_shares": {}},
    "sentences": {"sentences": MORE_QUERIES, "source_shares": {}},
}


def changes(config: StudySettings, layers: int) -> Changes:
    """Name of every cell but the teacher -> the fields of the section distillation that it changes; `layers` has the encoder."""
    return {BASE: {}, **LOSSES, **_refinements(config.distillation.refine_epochs), **_students(layers), **SOURCES, **TRAINING}


def _refinements(epochs: int) -> Changes:
    on = {"refine_epochs": epochs or REFINE_EPOCHS}
    return {
        "aligned-only": {"refine_epochs": 0},
        "refined": on,
        "refined-mined": {**on, "refine_negatives": "mined"},
        "refined-mined-unfiltered": {**on, "refine_negatives": "mined", "refine_positive_share": None},
        "refined-unfiltered": {**on, "refine_positive_share": None},
    }


def _students(layers: int) -> Changes:
    """Initialisations: which layers the student starts from, all of half the encoder's depth, and the teacher's own."""
    half = max(1, layers // 2)
    chosen: Changes = {
        "first-layers": {"layers": tuple(range(half))},
        "last-layers": {"layers": tuple(range(layers - half, layers))},
        "first-and-last-layers": {"layers": half},
        "pruned-step-by-step": {"layers": None, "prune_to": (half,)},
    }
    cuts = {name: {"form": "transformer", "prune_to": (), **fields} for name, fields in chosen.items()} if layers > 1 else {}
    return {**cuts, "from-the-teacher": {"student": "teacher", "form": "transformer", "layers": 2, "prune_to": ()}}


def cells(context: Context) -> list[Cell]:
    """The teacher, the base, and every cell that is wanted, with each seed."""
    config = context.config
    variants = changes(config, layers_of(config))
    wanted = {BASE: None, **dict.fromkeys(context.chosen(list(variants)))}
    seeds = config.study.seeds or (config.distillation.seed,)
    settings = {(name, seed): context.changed(distillation={**variants[name], "seed": seed}) for name in wanted for seed in seeds}
    for changed in settings.values():
        context.check(changed)
    trained = [Cell(_cell(*key), partial(_score, context, key, changed)) for key, changed in settings.items()]
    return [Cell(TEACHER, lambda: context.scores(TEACHER, context.towers()[0], context.index())), *trained]


def _cell(name: str, seed: int) -> str:
    return f"{name}@{seed}"


def _score(context: Context, key: tuple[str, int], config: StudySettings) -> Artifact:
    return context.scores(_cell(*key), context.student(config), context.index())


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a cell, averaged over its seeds: quality, share kept of the teacher's, difference to the base."""
    import pandas as pd

    from components.evaluation.comparisons import average, gained, kept, levels
    from components.evaluation.scores import load_scores

    teacher = load_scores(require(results, TEACHER).path)
    runs: dict[str, list[Any]] = {}
    for cell in (cell for cell in results if cell != TEACHER):
        runs.setdefault(cell.rpartition("@")[0], []).append(load_scores(results[cell].path))
    means = {name: average(found) for name, found in runs.items()}
    base = means[BASE] if BASE in means else load_scores(require(results, BASE).path)
    rows = []
    for name, scores in means.items():
        own: Mapping[str, float] = {} if name == BASE else gained(scores, base, config.evaluation, "over base ")
        kept_of = kept(scores, teacher, config.evaluation)
        rows.append({"system": name, "seeds": len(runs[name]), **levels(scores, config.evaluation), **kept_of, **own})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """What each change gains or loses."""
    from components.evaluation.study_plots import bars

    shown = [column for column in ("over base R@50", "over base nDCG@10") if column in frame] or ["R@50", "nDCG@10"]
    bars(frame, "system", shown, path, "Distillation: one change at a time")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What was compared, and which differences are none."""
    decided = [str(row["system"]) for row in frame.to_dict("records") if _apart(row, "over base nDCG@10")]
    return [
        about_queries(results[TEACHER], config),
        "Every cell changes the base's section distillation in the way its name says; teacher, index and data are the same.",
        f"nDCG@10 apart from the base's (interval without 0): {', '.join(decided) or 'none'}. Of twenty cells one is so by chance.",
    ]


def _apart(row: Mapping[Any, Any], column: str) -> bool:
    from components.evaluation.study_report import HIGH, LOW

    return bool(row.get(column + LOW, 0) > 0 or row.get(column + HIGH, 0) < 0)
