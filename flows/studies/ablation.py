"""What ablations share: a base, cells that each change some fields of one section, with each seed, and how they are compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.studies.context import Context, StudySettings
from flows.studies.framework import Results, by_system, require, seeded, seeds_of

if TYPE_CHECKING:
    import pandas as pd

    from components.studies.scores import Scores

Changes = dict[str, dict[str, Any]]
BASE = "base"
SHOWN = ("over base R@50", "over base nDCG@10")


def cells_of(context: Context, section: Literal["towers", "distillation"], variants: Changes) -> dict[str, StudySettings]:
    """Cell name -> configuration: the base and every variant that is wanted, each with each seed; refused before anything is trained."""
    wanted = {BASE: None, **dict.fromkeys(context.chosen(list(variants)))}
    seeds = seeds_of(context.config, section)
    settings = {seeded(name, seed): context.changed(**{section: {**variants[name], "seed": seed}}) for name in wanted for seed in seeds}
    for changed in settings.values():
        context.check(changed)
    return settings


def variants_of(results: Results, *others: str) -> dict[str, list[Scores]]:
    """The scores of each variant's seeds without the cells `others`; raises CollapseError when the base is not among them."""
    runs = {name: found for name, found in by_system(results).items() if name not in others}
    if BASE not in runs:
        require({}, BASE)
    return runs


def over_base(name: str, runs: Mapping[str, Sequence[Scores]], config: StudySettings) -> Mapping[str, Any]:
    """Columns of what a variant gains over the base, and whether that may be claimed; none for the base itself."""
    from components.studies.report import claim_of, gained

    if name == BASE:
        return {}
    return {**gained(runs[name], runs[BASE], config.evaluation, "over base "), **claim_of(len(runs[name]), len(runs[BASE]))}


def plot_changes(frame: pd.DataFrame, path: Path, title: str) -> None:
    """What each change gains or loses."""
    from components.studies.report import bars

    shown = [column for column in SHOWN if column in frame] or ["R@50", "nDCG@10"]
    bars(frame, "system", shown, path, title)


def decided_note(frame: pd.DataFrame) -> str:
    """Which differences are apart from zero, of those that may be claimed."""
    from components.studies.report import CLAIM, LEVEL, NO_CLAIM, apart

    rows = frame.to_dict("records")
    compared = [row for row in rows if row["system"] != BASE and row.get(CLAIM) != NO_CLAIM]
    silent = f" {NO_CLAIM[0].upper()}{NO_CLAIM[1:]} ({len(rows) - 1 - len(compared)} cells)." if len(compared) < len(rows) - 1 else ""
    found = [str(row["system"]) for row in compared if apart(row, SHOWN[1])]
    return f"nDCG@10 apart from the base's (p below {LEVEL:g} by Holm over the whole table): {', '.join(found) or 'none'}.{silent}"
