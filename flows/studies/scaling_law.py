"""Scaling law: contrastive entropy over model sizes and amounts of training pairs, the laws it follows, and a prediction put to the test.

Every cell trains towers of one size on one share of the training pairs, with as many passes over them as the whole set gets in
`towers.steps`. The laws fitted on all but the largest size say what that size will give before its cells are run; their order and the
parents of the sealed prediction show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact, VectorShards, open_artifact
from components.errors import CollapseError, ConfigError
from flows.runner import Step
from flows.steps import index_step, towers_step, typed, vectors_step
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Results, require_any

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.config import EvaluationConfig
    from components.studies.scaling_cell import EntropyRule

PREDICTION, FITS = "prediction", "fits"
NO_CELLS = (PREDICTION, FITS)


@dataclass(frozen=True)
class Point:
    """One cell: a base model of `parameters` (without embeddings) on `share` of the pairs; `pairs` distinct ones are seen in `steps`."""

    model: str
    parameters: int
    share: float
    steps: int
    pairs: int

    @property
    def name(self) -> str:
        """The cell's name."""
        return f"{self.model} on {self.share:g}"


def cells(context: Context) -> list[Cell]:
    """Cells of the smaller sizes, the prediction, the cells of the largest size, and the fits over all."""
    grid = _grid(context)
    chosen = context.chosen([point.name for point in grid])
    points = [point for point in grid if point.name in chosen]
    largest = max(point.parameters for point in points)
    small, large = ([p for p in points if (p.parameters == largest) is wanted] for wanted in (False, True))
    runs = {point.name: Cell(point.name, partial(_measure, context, point)) for point in points}
    foretold = Cell(PREDICTION, partial(_predict, context, [runs[p.name] for p in small], large))
    fits = Cell(FITS, partial(_fit, context, [runs[p.name] for p in points]))
    return [*(runs[p.name] for p in small), foretold, *(runs[p.name] for p in large), fits]


def _grid(context: Context) -> list[Point]:
    """All cells, small models first; everything that can be wrong with them is found here, before anything is trained."""
    from components.studies.scaling_cell import require_measurable, train_pair_count
    from components.towers.negatives import check_mining

    config, dataset = context.config, context.dataset
    require_measurable(dataset, config.evaluation.split, config.study.scaling_negatives)
    sizes = _sizes(config)
    points = []
    for model in sorted(sizes, key=lambda name: sizes[name]):
        for share in _shares(config):
            kept, steps = train_pair_count(dataset, share), max(1, round(config.towers.steps * share))
            _require_a_batch(kept, share, config)
            point = Point(model, sizes[model], share, steps, min(kept, steps * config.towers.batch_size))
            settings = _settings_of(context, point)
            context.require_training(settings)
            check_mining(settings.towers)
            points.append(point)
    return points


def _sizes(config: StudySettings) -> dict[str, int]:
    """Base model -> parameters without embeddings."""
    from components.towers.base_models import resolve_base
    from components.towers.model_size import non_embedding_parameters

    names = config.study.scaling_models or _layer_subsets(config)
    # The models built here are built from texts; their size does not depend on which.
    sizes = {name: non_embedding_parameters(resolve_base(name, ["any text"], _revision(name, config))) for name in names}
    if len(set(sizes.values())) < len(sizes):
        raise ConfigError(f"Two of the models have the same size, which no law of size can tell apart: {sizes}. Leave one out.")
    return sizes


def _layer_subsets(config: StudySettings) -> list[str]:
    from components.towers.model_size import count_layers

    base = config.towers.base_model
    total = count_layers(base, config.towers.revision)
    return [*(f"{base}@{count}" for count in sorted(set(config.study.scaling_layers)) if 1 <= count < total), base]


def _revision(name: str, config: StudySettings) -> str | None:
    """The commit of the configured base model for it and its cuts; any other model is asked for as it is on its hub now."""
    base = config.towers.base_model
    return config.towers.revision if name == base or name.startswith(f"{base}@") else None


def _shares(config: StudySettings) -> list[float]:
    shares = sorted(set(config.study.scaling_shares))
    if not 0 < shares[0] <= shares[-1] <= 1:
        raise ConfigError(f"study.scaling_shares is {shares}; every share must be above 0 and at most 1.")
    return shares


def _require_a_batch(kept: int, share: float, config: StudySettings) -> None:
    if kept < config.towers.batch_size:
        raise ConfigError(
            f"A share of {share:g} leaves {kept} training pairs, fewer than a batch of {config.towers.batch_size}. "
            "Raise the shares in study.scaling_shares, or lower towers.batch_size."
        )


def _settings_of(context: Context, point: Point) -> StudySettings:
    """The study's configuration for one cell; what counts steps is cut with the pairs."""
    from components.towers.base_models import decoder_shape

    towers = context.config.towers
    changes: dict[str, Any] = {
        "base_model": point.model,
        "revision": _revision(point.model, context.config),
        "steps": point.steps,
        "mining_start": round(towers.mining_start * point.share),
        "mining_interval": max(1, round(towers.mining_interval * point.share)) if towers.mining_interval else 0,
        "lora_layers": None,  # of any model as large a part is trained as of any other
        "companion": {},  # whose size would be no point's
    }
    if decoder_shape(point.model):
        changes["training"] = "full"  # adapters on a random model would leave most of it random
    return context.changed(towers=changes)


def _measure(context: Context, point: Point) -> Artifact:
    from components.studies.scaling_cell import EntropyRule

    config, dataset = _settings_of(context, point), context.dataset
    whole = context.run(towers_step(config, _share(context, point.share)))
    query, document = (typed(open_artifact(whole.path / role), EncoderArtifact) for role in ("query_tower", "document_tower"))
    vectors: VectorShards = typed(context.run(vectors_step(config, dataset, document)), VectorShards)
    index: IndexArtifact = typed(context.run(index_step(config, vectors, dataset)), IndexArtifact)
    inputs = {"dataset": dataset, "query_tower": query, "vectors": vectors, "index": index}
    about = {"model": point.model, "parameters": point.parameters, "share": point.share, "pairs": point.pairs, "steps": point.steps}
    rule = (config.study.scaling_negatives, config.towers.temperature, config.evaluation.seed)
    numbers = partial(measured_beside, about, inputs, config.evaluation, EntropyRule(*rule))
    measured = config.evaluation.model_dump(include={"split", "depth", "bootstrap_samples", "seed", "query_groups"})
    return context.measure("scaling", numbers, inputs, {**about, "rule": rule, **measured})


def measured_beside(
    about: Mapping[str, Any], inputs: Mapping[str, Artifact], evaluation: EvaluationConfig, rule: EntropyRule, folder: Path
) -> dict[str, Any]:
    """The measurement study_scaling: `measure_cell`, beside what the cell is `about`."""
    from components.studies.scaling_cell import measure_cell

    return {**about, **measure_cell(inputs, evaluation, rule, folder)}


def _share(context: Context, share: float) -> DatasetArtifact:
    """The data with a share of its training pairs; the data itself for all of them, so that other studies' towers are found again."""
    from components.studies.scaling_cell import write_train_share

    if share == 1:
        return context.dataset
    seed, dataset = context.config.data.seed, context.dataset
    make = partial(write_train_share, dataset, share, seed)
    found: DatasetArtifact = typed(
        context.run(Step("keep_train_share", make, {"dataset": dataset}, {"share": share, "seed": seed})), DatasetArtifact
    )
    return found


def _predict(context: Context, small: Sequence[Cell], large: Sequence[Point]) -> Artifact:
    """What the laws of the smaller sizes say about the largest one; made from their artifacts alone."""
    wanted = [(float(point.parameters), float(point.pairs)) for point in large]
    seed, refits = context.config.evaluation.seed, context.config.study.scaling_refits
    inputs = _finished(small)
    settings = {"wanted": wanted, "seed": seed, "refits": refits}
    return context.measure(PREDICTION, partial(foretold, inputs, wanted, (seed, refits)), inputs, settings)


def foretold(finished: Mapping[str, Artifact], wanted: Sequence[tuple[float, float]], rule: tuple[int, int], _: Path) -> dict[str, Any]:
    """The measurement study_prediction: `foretell` from finished cells. `rule`: the seed, and resamples behind an interval."""
    from components.studies.scaling_cell import foretell

    return foretell(_numbers(finished), wanted, *rule)


def _fit(context: Context, everything: Sequence[Cell]) -> Artifact:
    """The laws over all cells."""
    seed, refits = context.config.evaluation.seed, context.config.study.scaling_refits
    inputs = _finished(everything)
    return context.measure(FITS, partial(fitted, inputs, (seed, refits)), inputs, {"seed": seed, "refits": refits})


def fitted(finished: Mapping[str, Artifact], rule: tuple[int, int], _: Path) -> dict[str, Any]:
    """The measurement study_fits: the laws over finished cells; `rule` as of `foretold`."""
    from components.studies.scaling_cell import fit_all

    return {name: fit.describe() for name, fit in fit_all(_numbers(finished), *rule).items()}


def _finished(cells: Sequence[Cell]) -> dict[str, Artifact]:
    """Artifacts of cells that were run before; one that collapsed is left out, as its own cell has said."""
    found = {}
    for cell in cells:
        try:
            found[cell.name] = cell.run()
        except CollapseError:
            continue
    return found


def _numbers(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    from components.studies.scores import read_result

    return [read_result(artifact.path) for artifact in artifacts.values()]


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a cell, the predictions beside those they are about."""
    from components.studies.scaling_law import scaling_table

    measured = _numbers({name: a for name, a in results.items() if name not in NO_CELLS})
    require_any(measured)
    return scaling_table(measured, _predicted(results))


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Entropy over model size and over training pairs, with the fitted curves."""
    from components.studies.scaling_law import draw_scaling

    draw_scaling(frame, path)


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """How it was measured, each law or why there is none, and how the prediction came out."""
    from components.studies.scaling_law import fit_notes, prediction_notes
    from components.studies.scores import read_result

    study, towers = config.study, config.towers
    measured = (
        f"Contrastive entropy in nats of a relevant document among it and {study.scaling_negatives} random ones "
        f"({config.evaluation.split}), cosines divided by towers.temperature ({towers.temperature:g}), softmax at "
        "temperature 1. In brackets: 95% intervals over the queries. Every cell is one training (one seed: no claim by itself); what "
        "another seed would change is a part of the scatter around the fitted laws."
    )
    sizes = (
        "N counts the parameters of one tower without its token embeddings, D the distinct training pairs seen. Every cell passes over its "
        f"pairs as often as {towers.steps:,} steps pass over all of them; all other settings are equal, the peak learning rate of "
        f"{towers.learning_rate:g} (towers.learning_rate) among them: a size that wants another one is shown below what it could give."
    )
    fits = read_result(results[FITS].path) if FITS in results else {}
    return [measured, sizes, *fit_notes(fits), *prediction_notes(frame, _predicted(results))]


def files(results: Results, config: StudySettings) -> dict[str, Any]:
    """The fitted parameters and the prediction, for programs."""
    from components.studies.scores import read_result

    return {f"{name}.json": read_result(results[name].path) for name in NO_CELLS if name in results}


def _predicted(results: Results) -> dict[str, Any]:
    from components.studies.scores import read_result

    return read_result(results[PREDICTION].path) if PREDICTION in results else {"fits": {}, "predictions": []}
