"""Ablation of the distillation: each cell changes one thing, and the table says what that gains or loses against the base."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import Artifact
from components.towers.config import WITHOUT_WEIGHTS
from flows.studies.context import Context, StudySettings
from flows.studies.framework import (
    BASE,
    Cell,
    Changes,
    Results,
    about_queries,
    about_seeds,
    cells_of,
    decided_note,
    over_base,
    plot_changes,
    require,
    variants_of,
)
from flows.studies.retention import layers_of

if TYPE_CHECKING:
    import pandas as pd

TEACHER = "teacher"
MORE_QUERIES = 20_000  # sentences, spans or noised texts at most, in the cell that adds them
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
    "train-queries-only": {"titles": 0, "sentences": 0, "spans": 0, "generated": 0, "noised": 0, "source_shares": {"train": 1.0}},
    "no-titles": {"titles": 0, "source_shares": {}},
    "sentences": {"sentences": MORE_QUERIES, "source_shares": {}},
    "spans": {"spans": MORE_QUERIES, "source_shares": {}},
    "noised": {"noised": MORE_QUERIES, "source_shares": {}},
}


def changes(config: StudySettings, layers: int) -> Changes:
    """Name of every cell but the teacher -> the fields of the section distillation that it changes; `layers` has the encoder."""
    return {BASE: {}, **LOSSES, **_refinements(config.distillation.refine_epochs), **_students(config, layers), **SOURCES, **TRAINING}


def _refinements(epochs: int) -> Changes:
    on = {"refine_epochs": epochs or REFINE_EPOCHS}
    return {
        "aligned-only": {"refine_epochs": 0},
        "refined": on,
        "refined-mined": {**on, "refine_negatives": "mined"},
        "refined-spread": {**on, "refine_negatives": "spread"},
        "refined-mined-unfiltered": {**on, "refine_negatives": "mined", "refine_positive_share": None},
        "refined-unfiltered": {**on, "refine_positive_share": None},
    }


def _students(config: StudySettings, layers: int) -> Changes:
    """Initialisations: which layers the student starts from, all of half the encoder's depth, and the teacher's own where it has any."""
    half = max(1, layers // 2)
    chosen: Changes = {
        "first-layers": {"layers": tuple(range(half))},
        "last-layers": {"layers": tuple(range(layers - half, layers))},
        "first-and-last-layers": {"layers": half},
        "pruned-step-by-step": {"layers": None, "prune_to": (half,)},
    }
    cuts = {name: {"form": "transformer", "prune_to": (), **fields} for name, fields in chosen.items()} if layers > 1 else {}
    if config.towers.base_model in WITHOUT_WEIGHTS:
        return cuts
    return {**cuts, "from-the-teacher": {"student": "teacher", "form": "transformer", "layers": 2, "prune_to": ()}}


def cells(context: Context) -> list[Cell]:
    """The teacher, the base, and every cell that is wanted, with each seed."""
    settings = cells_of(context, "distillation", changes(context.config, layers_of(context.config)))
    trained = [Cell(name, partial(_score, context, name, changed)) for name, changed in settings.items()]
    return [Cell(TEACHER, lambda: context.scores(TEACHER, context.towers()[0], context.index())), *trained]


def _score(context: Context, name: str, config: StudySettings) -> Artifact:
    return context.scores(name, context.student(config), context.index())


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a variant, over its seeds: quality, share kept of the teacher's, difference to the base."""
    import pandas as pd

    from components.studies.report import kept, levels
    from components.studies.scores import load_scores

    teacher, runs = load_scores(require(results, TEACHER).path), variants_of(results, TEACHER)
    rows = []
    for name, found in runs.items():
        columns = {**levels(found, config.evaluation), **kept(found, teacher, config.evaluation), **over_base(name, runs, config)}
        rows.append({"system": name, "seeds": len(found), **columns})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """What each change gains or loses."""
    plot_changes(frame, path, "Distillation: one change at a time")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What was compared, and which differences are none."""
    return [
        about_queries(results[TEACHER], config),
        about_seeds(results, config, "distillation"),
        "Every cell changes the base's section distillation in the way its name says; teacher, index and data are the same.",
        decided_note(frame),
    ]
