"""Corpus growth: latency, memory, build time and recall of the index over corpus sizes, and what larger corpora should cost.

The real document vectors come first, in a fixed random order; sizes beyond them are filled with synthetic vectors that resemble them
and are marked so. Each size is built and searched in processes of its own, and only its numbers are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from components.errors import ConfigError
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Results, require_any

if TYPE_CHECKING:
    import pandas as pd

PRODUCTION = "production"


def cells(context: Context) -> list[Cell]:
    """One cell for each size, small ones first, then how the corpus stands to the champion's index."""
    sizes = {_name(size): size for size in sorted(set(context.config.study.growth_sizes))}
    chosen = context.chosen(list(sizes))
    _require_measurable(context.config, [sizes[name] for name in chosen])
    return [*(Cell(name, partial(_measure, context, sizes[name])) for name in chosen), Cell(PRODUCTION, partial(_production, context))]


def _require_measurable(config: StudySettings, sizes: Sequence[int]) -> None:
    """Raise ConfigError for a size whose index cannot be trained, or not be held against exact search, before anything is trained."""
    from components.distillation.student import width_of
    from components.index.index_keys import is_exact, usable_key

    width = width_of(config.towers)
    for size in sizes:
        key = usable_key(config.index, size, width)
        if config.index.refine == "none" and not is_exact(key):
            raise ConfigError(
                f"index.refine is none, so an index {key} of {size:,} documents keeps no vectors that its recall could be measured "
                "against. Set index.refine to fp16 or int8."
            )


def _name(size: int) -> str:
    """10k, 1500, 1M: as short as it can be without rounding."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


def _queries(context: Context) -> Artifact:
    """Vectors of judged queries for the measurement and of dev queries for the tuning, from the query tower."""
    from components.studies.growth_cell import write_growth_queries

    dataset, tower = context.dataset, context.towers()[0]
    split, count = context.config.evaluation.split, context.config.study.growth_queries
    seed, tuning, groups = context.config.evaluation.seed, context.config.index.tuning_queries, context.config.evaluation.query_groups
    numbers = partial(write_growth_queries, dataset, tower, split, (count, tuning, seed), groups=groups)
    settings = {"split": split, "count": count, "seed": seed, "tuning": tuning, "groups": groups}
    return context.measure("growth_queries", numbers, {"dataset": dataset, "query_tower": tower}, settings)


def _measure(context: Context, size: int) -> Artifact:
    from components.studies.growth_cell import GrowthRule, measure_size

    config, vectors, queries = context.config, context.vectors(), _queries(context)
    rule = {"depth": config.evaluation.depth, "batch": config.evaluation.throughput_batch, "seed": config.evaluation.seed}
    numbers = partial(measure_size, vectors, size, GrowthRule(queries.path, config.index, **rule))
    settings = {"documents": size, **rule, "index": config.index.model_dump()}
    return context.measure("growth", numbers, {"vectors": vectors, "queries": queries}, settings)


def _production(context: Context) -> Artifact:
    """The corpus at hand against what the champion's index was tuned for."""
    from components.release.open import champion_index

    documents, champion = context.dataset.counts["documents"], champion_index(context.config.name)
    about = {"documents": documents, "champion": champion}
    return context.measure("growth_production", partial(against_champion, documents, champion), {"dataset": context.dataset}, about)


def against_champion(documents: int, champion: Mapping[str, Any] | None, _: Path) -> dict[str, Any]:
    """The measurement study_growth_production: the size of the corpus, and a warning where the champion's index was tuned for another."""
    from components.studies.growth_law import tuning_warning

    warning = tuning_warning(documents, champion["tuned_documents"]) if champion else None
    return {"documents": documents, "champion": champion, "warning": warning}


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a size, then the sizes extrapolated to."""
    from components.studies.growth_law import growth_table

    require_any(measured := _measured(results))
    return growth_table(measured, config.study.growth_targets)


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Building, memory, latency and recall over documents."""
    from components.studies.growth_law import draw_growth

    draw_growth(frame, path)


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """How it was measured, each law, what stands against the extrapolations, and the production corpus."""
    from components.evaluation.speed import describe_machine
    from components.studies.growth_law import law_notes, reach_notes

    cells, evaluation = _measured(results), config.evaluation
    measured = (
        f"{cells[0]['queries']:,} judged queries ({evaluation.split}) of the query tower, {evaluation.depth} documents each; p50, p95 at "
        f"batch 1, batch ms and queries/s at batch {evaluation.throughput_batch}, search alone; {describe_machine()}."
    )
    memory = (
        "Resident: what the opened, memory-mapped index added to its process after all queries, mapped pages included. Build peak: what "
        f"building added. Recall@{evaluation.depth} against exact search over the same vectors, its interval over the units of the queries."
    )
    keys = {target: _key(config, target, int(cells[-1]["dimension"])) for target in config.study.growth_targets}
    return [measured, memory, *law_notes(cells), *reach_notes(cells, config.study.growth_targets, keys), *_warning(results)]


def files(results: Results, config: StudySettings) -> dict[str, Any]:
    """The laws, for programs."""
    from components.studies.growth_law import fit_laws

    return {"laws.json": {column: law.describe() for column, law in fit_laws(_measured(results)).items()}}


def _key(config: StudySettings, documents: int, dimension: int) -> str:
    from components.index.index_keys import resolve_key

    return resolve_key(config.index, documents, dimension)


def _measured(results: Results) -> list[Mapping[str, Any]]:
    from components.studies.scores import read_result

    return [read_result(artifact.path) for name, artifact in results.items() if name != PRODUCTION]


def _warning(results: Results) -> list[str]:
    from components.studies.scores import read_result

    found = read_result(results[PRODUCTION].path)
    if not found["champion"]:
        return ["No release is champion yet, so there is no index in production to compare the corpus with."]
    return [found["warning"] or f"The corpus of {found['documents']:,} documents is within the range the champion's index was tuned for."]
