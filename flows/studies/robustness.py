"""Robustness: what teacher and student lose on noisy queries, and when documents of another domain stand in the index."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, VectorShards
from flows.release_steps import snapshot_step, typed, vectors_step
from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Cell, Results, about_queries, require

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.rankers import Ranker

CLEAN, FOREIGN = "clean", "foreign_documents"
SYSTEMS = ("teacher", "student")


def cells(context: Context) -> list[Cell]:
    """Each condition that is wanted, for teacher and student; the clean one always."""
    study = context.config.study
    kinds = context.chosen([*study.noise, *([FOREIGN] if study.foreign_documents else [])])
    if FOREIGN in kinds:
        snapshot_step(_foreign_settings(context.config))  # a missing folder is said before anything is trained
    found = [Cell(_cell(CLEAN, system), partial(_clean, context, system)) for system in SYSTEMS]
    for kind in kinds:
        for rate in study.noise.get(kind, ()):  # type: ignore[call-overload]
            found += [Cell(_cell(f"{kind} {rate:.0%}", system), partial(_noisy, context, system, kind, rate)) for system in SYSTEMS]
    if FOREIGN in kinds:
        found += [Cell(_cell(FOREIGN, system), partial(_mixed, context, system)) for system in SYSTEMS]
    return found


def _cell(condition: str, system: str) -> str:
    return f"{condition}@{system}"


def _encoder(context: Context, system: str) -> EncoderArtifact:
    return context.towers()[0] if system == "teacher" else context.student()


def _clean(context: Context, system: str) -> Artifact:
    return context.scores(system, _encoder(context, system), context.index())


def _noisy(context: Context, system: str, kind: str, rate: float) -> Artifact:
    from components.evaluation.noise import Noise

    noise = Noise(kind, rate, context.config.study.noise_seed)
    return context.scores(system, _encoder(context, system), context.index(), noise)


def _mixed(context: Context, system: str) -> Artifact:
    """The same queries on an exact index that also holds the foreign documents."""
    encoder, vectors, foreign = _encoder(context, system), context.vectors(), _foreign_vectors(context)

    def ranker() -> Ranker:
        from components.evaluation.systems import open_mixed

        return open_mixed(encoder, vectors, foreign)

    return context.scores_of(system, ranker, {"encoder": encoder, "vectors": vectors, "foreign": foreign})


def _foreign_vectors(context: Context) -> VectorShards:
    config = _foreign_settings(context.config)
    documents: DatasetArtifact = typed(context.run(snapshot_step(config)), DatasetArtifact)
    vectors: VectorShards = typed(context.run(vectors_step(config, documents, context.towers()[1])), VectorShards)
    return vectors


def _foreign_settings(config: StudySettings) -> StudySettings:
    """The configuration whose data are the foreign documents."""
    data = {"source": config.study.foreign_documents, "max_documents": config.study.max_foreign_documents, "mix": ()}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row for each condition and system: quality, and what was lost against the same system's clean one (below 0: lost)."""
    import pandas as pd

    from components.evaluation.comparisons import gained, kept, levels
    from components.evaluation.scores import load_scores

    rows = []
    for name, artifact in results.items():
        condition, _, system = name.rpartition("@")
        scores, clean = load_scores(artifact.path), load_scores(require(results, _cell(CLEAN, system)).path)
        evaluation = config.evaluation
        own = {} if condition == CLEAN else {**gained(scores, clean, evaluation, "change "), **kept(scores, clean, evaluation)}
        rows.append({"queries": condition, "system": system, **levels(scores, evaluation), **own})
    return pd.DataFrame(rows)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """The change against clean queries, teacher beside student."""
    from components.evaluation.study_plots import bars

    shown = [column for column in ("change R@50", "change nDCG@10") if column in frame] or ["R@50", "nDCG@10"]
    bars(frame, "queries", shown, path, "Change against clean queries", series="system")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What the conditions are."""
    study = config.study
    lines = [
        about_queries(next(iter(results.values())), config),
        (
            "Percentages are the share of the words that change, for verbosity of the queries. Both systems are asked the same texts, "
            f"which depend on the query and on study.noise_seed ({study.noise_seed}) alone."
        ),
    ]
    mixed = [artifact for name, artifact in results.items() if name.startswith(f"{FOREIGN}@")]
    if mixed:
        others = f"{mixed[0].counts['foreign_documents']:,} of '{Path(study.foreign_documents).name}'"
        lines.append(f"{FOREIGN}: clean queries, exact search among the own documents and {others}.")
    return lines
