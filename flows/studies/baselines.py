"""Baselines: every way to build a retriever at equal training pairs, side by side with the student.

BM25; the small encoder untrained; the same encoder trained alone for queries and documents (symmetric); an LLM document tower with
the small query encoder, trained end to end; the teacher; the student after alignment; the student after refinement.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import Artifact, EncoderArtifact, IndexArtifact, VectorShards, open_artifact
from components.distillation.config import DistillationConfig
from components.errors import ConfigError
from flows.release_steps import TRAINING_FILES, index_step, typed, untrained_key, vectors_step
from flows.steps import Step
from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Cell, Results, about_queries, require
from flows.studies.seeds import about_seeds, by_system, seeded, whole_trainings

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.rankers import Ranker

BM25, UNTRAINED, SYMMETRIC, END_TO_END = "bm25", "untrained", "symmetric", "end-to-end"
TEACHER, ALIGNED, STUDENT = "teacher", "student-aligned", "student"
FIXED = (BM25, UNTRAINED)  # what is not trained, and needs no seeds
System = tuple[Callable[[], "Ranker"], dict[str, Artifact]]  # what opens a ranker, and the artifacts that it is made of


def cells(context: Context) -> list[Cell]:
    """One cell a system and seed; the student is always among them, since the others are compared with it."""
    _require_small_encoder(context.config)
    runs: dict[str, Callable[[Context, StudySettings], Artifact]] = {
        BM25: _bm25,
        UNTRAINED: _untrained,
        SYMMETRIC: _symmetric,
        END_TO_END: _end_to_end,
        TEACHER: lambda c, config: c.scores(TEACHER, c.towers(config)[0], c.index(config)),
        ALIGNED: lambda c, config: c.scores(ALIGNED, c.student(_aligned_only(config)), c.index(config)),
        STUDENT: lambda c, config: c.scores(STUDENT, c.student(config), c.index(config)),
    }
    if not context.config.distillation.refine_epochs:
        del runs[ALIGNED]  # the student is aligned only
    chosen = {*context.chosen(list(runs)), STUDENT}
    trainings, found = whole_trainings(context), []
    for name, run in ((name, run) for name, run in runs.items() if name in chosen):
        if name in FIXED:
            found.append(Cell(name, partial(run, context, context.config)))
        else:
            found += [Cell(seeded(name, seed), partial(run, context, config)) for seed, config in trainings.items()]
    return found


def _aligned_only(config: StudySettings) -> StudySettings:
    return config.model_copy(update={"distillation": config.distillation.model_copy(update={"refine_epochs": 0})})


def small_encoder(config: StudySettings) -> DistillationConfig:
    """The encoder of the baselines: the student's, in the student's form and final size."""
    student = config.distillation
    layers = student.prune_to[-1] if student.prune_to else student.layers
    named = config.study.small_encoder
    changes = {"student": named or student.student, "revision": None if named else student.revision, "layers": layers, "prune_to": ()}
    return student.model_copy(update=changes)


def _require_small_encoder(config: StudySettings) -> None:
    if small_encoder(config).student == "teacher":
        raise ConfigError("The student is a part of the teacher, and the baselines need an encoder of their own: set study.small_encoder.")


def _bm25(context: Context, _: StudySettings) -> Artifact:
    def ranker() -> Ranker:
        from components.data.dataset import load_dataset
        from components.evaluation.baselines import bm25_ranker

        return bm25_ranker(load_dataset(context.dataset))

    return context.scores_of(BM25, ranker, {})


def _untrained(context: Context, config: StudySettings) -> Artifact:
    small = small_encoder(config)

    def ranker() -> Ranker:
        from components.data.dataset import load_dataset
        from components.evaluation.systems import untrained_ranker

        return untrained_ranker(load_dataset(context.dataset), small, None)

    return context.scores_of(UNTRAINED, ranker, {}, untrained_key(small))


def _symmetric(context: Context, config: StudySettings) -> Artifact:
    def system(encoder: Artifact) -> System:
        def ranker() -> Ranker:
            from components.data.dataset import load_dataset
            from components.distillation.student import load_student
            from components.evaluation.rankers import symmetric_ranker

            return symmetric_ranker(load_student(encoder.path), load_dataset(context.dataset), SYMMETRIC)

        return ranker, {"encoder": encoder}

    return _best_on_dev(context, SYMMETRIC, config, system)


def _end_to_end(context: Context, config: StudySettings) -> Artifact:
    def system(pair: Artifact) -> System:
        query, document = (typed(open_artifact(pair.path / part), EncoderArtifact) for part in ("query_encoder", "document_tower"))
        vectors: VectorShards = typed(context.run(vectors_step(config, context.dataset, document)), VectorShards)
        index: IndexArtifact = typed(context.run(index_step(config, vectors, context.dataset)), IndexArtifact)

        def ranker() -> Ranker:
            from components.evaluation.systems import open_dense

            return open_dense(query, index)

        return ranker, {"encoder": query, "index": index}

    return _best_on_dev(context, END_TO_END, config, system)


def _training_step(context: Context, name: str, config: StudySettings, rate: float) -> Step:
    dataset, configs = context.dataset, (config.towers, small_encoder(config))

    def make(folder: Path) -> Artifact:
        from components.data.dataset import load_dataset
        from components.distillation.asymmetric import train_asymmetric
        from components.distillation.symmetric import train_symmetric
        from components.towers.pairs import training_pairs

        train: Callable[..., Artifact] = train_symmetric if name == SYMMETRIC else train_asymmetric
        return train(training_pairs(load_dataset(dataset)), configs, rate, {"dataset": dataset.digest}, folder)

    settings = {"towers": configs[0].model_dump(), "small": configs[1].model_dump(), "learning_rate": rate}
    return Step(f"train_{name.replace('-', '_')}", make, {"dataset": dataset}, settings, resumes=TRAINING_FILES)


def _best_on_dev(context: Context, name: str, config: StudySettings, system: Callable[[Artifact], System]) -> Artifact:
    """Train with every learning rate and score the one that is best on dev, so that no baseline loses by a badly chosen rate."""
    rates = context.config.study.small_learning_rates
    systems = {rate: system(context.run(_training_step(context, name, config, rate))) for rate in rates}
    best = rates[0] if len(rates) == 1 else max(rates, key=lambda rate: _dev_score(context, systems[rate]))
    return context.scores_of(name, *systems[best])


def _dev_score(context: Context, system: System) -> float:
    """Sum of R@50 and nDCG@10 on dev, by which the student's checkpoints are chosen, too."""
    ranker, inputs = system

    def numbers(_: Path) -> dict[str, float]:
        from components.data.dataset import load_dataset
        from components.evaluation.side_by_side import mean_metrics

        return mean_metrics(ranker(), load_dataset(context.dataset), "dev", context.config.evaluation.depth)

    from components.evaluation.scores import read_result

    everything = {"dataset": context.dataset, **inputs}
    found = read_result(context.measure("dev", numbers, everything, {"depth": context.config.evaluation.depth}).path)
    return float(found["recall@50"] + found["ndcg@10"])


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a system: levels, and the student's distance from it, with paired intervals over seeds and queries."""
    import pandas as pd

    from components.evaluation.side_by_side import side_by_side

    systems = by_system(results)
    if STUDENT not in systems:
        require({}, STUDENT)
    return pd.DataFrame(side_by_side(systems, STUDENT, config.evaluation, FIXED))


def plot(frame: pd.DataFrame, path: Path) -> None:
    """A bar with its interval for each system and metric."""
    from components.evaluation.study_plots import bars

    bars(frame, "system", ("R@50", "nDCG@10", "MRR@10"), path, "Baselines")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What was equal, what was chosen, and where the student stands."""
    from components.evaluation.side_by_side import verdict
    from components.evaluation.study_report import LEVEL

    towers, small = config.towers, small_encoder(config)
    others = [row for row in frame.to_dict("records") if row["system"] != STUDENT]
    standing = [f"{verdict(row, STUDENT, 'nDCG@10')} {row['system']}" for row in others]
    equal = (
        f"Symmetric and end-to-end pair and teacher saw the same {towers.steps:,} batches of {towers.batch_size} training pairs "
        f"(LLM {towers.base_model}, small encoder {small.student}); peak learning rate of the small encoders: the best on dev of "
        f"{', '.join(f'{rate:g}' for rate in config.study.small_learning_rates)}."
    )
    return [
        about_queries(next(iter(results.values())), config),
        about_seeds(results),
        "A difference above 0 is the student's lead.",
        equal,
        f"In nDCG@10, by p below {LEVEL:g} after Holm's correction, the student is {', '.join(standing)}.",
    ]
