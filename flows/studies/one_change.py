"""What ablations share: a base, cells that each change some fields of one section, with one or more seeds, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Results, require

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.scores import Scores

Changes = dict[str, dict[str, Any]]
BASE = "base"
SHOWN = ("over base R@50", "over base nDCG@10")


def cells_of(context: Context, section: Literal["towers", "distillation"], variants: Changes) -> dict[str, StudySettings]:
    """Cell name -> configuration: the base and every variant that is wanted, each with each seed; refused before anything is trained."""
    wanted = {BASE: None, **dict.fromkeys(context.chosen(list(variants)))}
    seeds = context.config.study.seeds or (getattr(context.config, section).seed,)
    settings = {f"{name}@{seed}": context.changed(**{section: {**variants[name], "seed": seed}}) for name in wanted for seed in seeds}
    for changed in settings.values():
        context.check(changed)
    return settings


def by_variant(results: Results) -> dict[str, list[Scores]]:
    """The scores of each variant's seeds; cells without a seed in their name are none of them."""
    from components.evaluation.scores import load_scores

    runs: dict[str, list[Scores]] = {}
    for cell, artifact in results.items():
        name, seeded, _ = cell.rpartition("@")
        if seeded:
            runs.setdefault(name, []).append(load_scores(artifact.path))
    return runs


def means_of(runs: Mapping[str, Sequence[Scores]]) -> dict[str, Scores]:
    """The mean over seeds of each variant; raises CollapseError when the base is not among them."""
    from components.evaluation.comparisons import average

    means = {name: average(found) for name, found in runs.items()}
    if BASE not in means:
        require({}, BASE)
    return means


def over_base(name: str, means: Mapping[str, Scores], config: StudySettings) -> Mapping[str, float]:
    """Columns of what a variant gains over the base; none for the base itself."""
    from components.evaluation.comparisons import gained

    return {} if name == BASE else gained(means[name], means[BASE], config.evaluation, "over base ")


def plot_changes(frame: pd.DataFrame, path: Path, title: str) -> None:
    """What each change gains or loses."""
    from components.evaluation.study_plots import bars

    shown = [column for column in SHOWN if column in frame] or ["R@50", "nDCG@10"]
    bars(frame, "system", shown, path, title)


def decided_note(frame: pd.DataFrame) -> str:
    """Which differences are apart from zero."""
    apart = [str(row["system"]) for row in frame.to_dict("records") if _apart(row, SHOWN[1])]
    return f"nDCG@10 apart from the base's (interval without 0): {', '.join(apart) or 'none'}. Of twenty cells one is so by chance."


def _apart(row: Mapping[Any, Any], column: str) -> bool:
    from components.evaluation.study_report import HIGH, LOW

    return bool(row.get(column + LOW, 0) > 0 or row.get(column + HIGH, 0) < 0)
