"""Robustness: what teacher and student lose on noisy queries, and when documents of another domain stand in the index."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, VectorShards
from flows.steps import snapshot_step, typed, vectors_step
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Results, about_queries, about_seeds, by_system, require, require_any, seeded, whole_trainings

if TYPE_CHECKING:
    import pandas as pd

CLEAN, FOREIGN = "clean", "foreign_documents"
SYSTEMS = ("teacher", "student")


def cells(context: Context) -> list[Cell]:
    """Each condition that is wanted, for teacher and student of each seed; the clean one always."""
    study = context.config.study
    kinds = context.chosen([*study.noise, *([FOREIGN] if study.foreign_documents else [])])
    if FOREIGN in kinds:
        snapshot_step(_foreign_settings(context.config))  # a missing folder is said before anything is trained
    asked: dict[str, Callable[[str, StudySettings], Artifact]] = {CLEAN: partial(_clean, context)}
    for kind in kinds:
        for rate in study.noise.get(kind, ()):  # type: ignore[call-overload]
            asked[f"{kind} {100 * rate:g}%"] = partial(_noisy, context, kind, rate)  # in full: 10.1% and 10.4% are two conditions
    if FOREIGN in kinds:
        asked[FOREIGN] = partial(_mixed, context)
    trainings = whole_trainings(context)
    return [
        Cell(seeded(_cell(condition, system), seed), partial(ask, system, config))
        for condition, ask in asked.items()
        for system in SYSTEMS
        for seed, config in trainings.items()
    ]


def _cell(condition: str, system: str) -> str:
    return f"{condition}@{system}"


def _encoder(context: Context, system: str, config: StudySettings) -> EncoderArtifact:
    return context.towers(config)[0] if system == "teacher" else context.student(config)


def _clean(context: Context, system: str, config: StudySettings) -> Artifact:
    return context.scores(system, _encoder(context, system, config), context.index(config))


def _noisy(context: Context, kind: str, rate: float, system: str, config: StudySettings) -> Artifact:
    from components.distillation.query_sources import Noise

    noise = Noise(kind, rate, context.config.study.noise_seed)
    return context.scores(system, _encoder(context, system, config), context.index(config), noise)


def _mixed(context: Context, system: str, config: StudySettings) -> Artifact:
    """The same queries on an exact index that also holds the foreign documents."""
    from components.evaluation.systems import open_mixed

    encoder, vectors, foreign = _encoder(context, system, config), context.vectors(config), _foreign_vectors(context, config)
    opener = partial(open_mixed, encoder, vectors, foreign)
    return context.scores_of(system, opener, {"encoder": encoder, "vectors": vectors, "foreign": foreign})


def _foreign_vectors(context: Context, config: StudySettings) -> VectorShards:
    foreign = _foreign_settings(config)
    documents: DatasetArtifact = typed(context.run(snapshot_step(foreign)), DatasetArtifact)
    vectors: VectorShards = typed(context.run(vectors_step(foreign, documents, context.towers(config)[1])), VectorShards)
    return vectors


def _foreign_settings(config: StudySettings) -> StudySettings:
    """The configuration whose data are the foreign documents."""
    data = {"source": config.study.foreign_documents, "max_documents": config.study.max_foreign_documents, "mix": ()}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row for each condition and system: quality, and what was lost against the same system's clean one (below 0: lost)."""
    import pandas as pd

    from components.studies.report import levels

    runs, rows = by_system(results), []
    require_any(runs)
    for name, found in runs.items():
        condition, _, system = name.rpartition("@")
        own = {} if condition == CLEAN else _changes(results, name, config)
        rows.append({"queries": condition, "system": system, "seeds": len(found), **levels(found, config.evaluation), **own})
    return pd.DataFrame(rows)


def _changes(results: Results, name: str, config: StudySettings) -> dict[str, Any]:
    """What a system loses under a condition, each of its trainings against the same one on clean queries."""
    from components.studies.report import claim_of, gained, kept
    from components.studies.scores import load_scores

    clean = _cell(CLEAN, name.rpartition("@")[2])
    pairs = [
        (load_scores(artifact.path), load_scores(require(results, cell.replace(name, clean, 1)).path))
        for cell, artifact in results.items()
        if cell.rpartition("@")[0] == name
    ]
    noisy, before = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    changed = gained(noisy, before, config.evaluation, "change ", same_trainings=True)
    return {**changed, **kept(noisy, before, config.evaluation), **claim_of(len(pairs))}


def plot(frame: pd.DataFrame, path: Path) -> None:
    """The change against clean queries, teacher beside student."""
    from components.studies.report import bars

    shown = [column for column in ("change R@50", "change nDCG@10") if column in frame] or ["R@50", "nDCG@10"]
    bars(frame, "queries", shown, path, "Change against clean queries", series="system")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What the conditions are."""
    study = config.study
    lines = [
        about_queries(next(iter(results.values())), config),
        about_seeds(results, config),
        (
            "Percentages are the share of the words that change, for verbosity of the queries. Both systems are asked the same texts, "
            f"which depend on the query and on study.noise_seed ({study.noise_seed}) alone."
        ),
    ]
    mixed = [artifact for name, artifact in results.items() if name.startswith(f"{FOREIGN}@")]
    if mixed:
        others = f"{mixed[0].counts['foreign_documents']:,} of '{Path(study.foreign_documents).name}'"
        lines.append(
            f"{FOREIGN}: clean queries, exact search among the own documents and {others}. The clean row searches the index of the towers: "
            "where that is approximate, the change is too small by what it loses."
        )
    return lines
