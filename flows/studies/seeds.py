"""Seeds of the studies: every training is repeated, since one alone could have come out otherwise by more than what is compared.

A cell of a trained system is named `system@seed`; what is not trained has a cell without a seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Results

if TYPE_CHECKING:
    from components.release.training_noise import TrainingNoise
    from components.studies.scores import Scores

STUDENTS = ("student", "clean@student")  # systems of the studies that train towers and student as a release does
SEEDS = 3  # unless study.seeds says otherwise: the section's own seed, which a release has trained with, and those after it
MARK = "@"


def seeds_of(config: StudySettings, section: Literal["towers", "distillation"]) -> tuple[int, ...]:
    """The seeds that a section is trained with."""
    first: int = getattr(config, section).seed
    return config.study.seeds or tuple(range(first, first + SEEDS))


def whole_trainings(context: Context) -> dict[int, StudySettings]:
    """Seed -> the study's configuration in which towers and student are trained with it; refused before anything is trained."""
    pairs = zip(seeds_of(context.config, "towers"), seeds_of(context.config, "distillation"), strict=True)
    found = {seed: context.changed(towers={"seed": seed}, distillation={"seed": other}) for seed, other in pairs}
    for config in found.values():
        context.check(config)
    return found


def seeded(name: str, seed: int) -> str:
    """The name of a system's cell with one seed."""
    return f"{name}{MARK}{seed}"


def by_system(results: Results) -> dict[str, list[Scores]]:
    """The scores of each system, one for each of its seeds; one for a system that is not trained."""
    from components.studies.scores import SCORES_FILE, load_scores

    runs: dict[str, list[Scores]] = {}
    for cell, artifact in results.items():
        name, mark, _ = cell.rpartition(MARK)
        if (artifact.path / SCORES_FILE).is_file():
            runs.setdefault(name if mark else cell, []).append(load_scores(artifact.path))
    return runs


def about_seeds(cells: Results) -> str:
    """The note that says with how many seeds the systems of a table were trained, and what the intervals make of them."""
    seeds = sorted({int(cell.rpartition(MARK)[2]) for cell in cells if MARK in cell})
    if len(seeds) < 2:
        return (
            "Every system was trained with one seed alone: another seed may move it by more than what is compared, so nothing is claimed. "
            "study.seeds names more."
        )
    return (
        f"Every system was trained with the seeds {', '.join(map(str, seeds))}; values are means over them. Intervals hold the noise of "
        "training and of the queries (seeds and units of queries are drawn together)."
    )


def noise_of(study: str, results: Results, config: StudySettings) -> TrainingNoise | None:
    """How far the student's trainings lie apart, for releases of the same configuration; None where it had one seed or is no whole one."""
    from components.release.training_noise import kind_of, measured
    from components.studies.scores import read_result

    towers, students = seeds_of(config, "towers"), seeds_of(config, "distillation")
    pairs, split = {seed: (seed, other) for seed, other in zip(towers, students, strict=True)}, f"{config.evaluation.split}."
    found, kind = {}, ""
    for cell, artifact in results.items():
        name, _, seed = cell.rpartition(MARK)
        if name in STUDENTS and int(seed) in pairs:
            means = {key.removeprefix(split): value for key, value in read_result(artifact.path).items() if key.startswith(split)}
            found[pairs[int(seed)]] = (f"study {study}", means)
            kind = kind_of(config.model_dump(mode="json"), artifact.parents["dataset"])
    return measured(kind, found)
