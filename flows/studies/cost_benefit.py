"""Cost against benefit: what training and serving each system takes in time, energy and money, and the quality that this buys."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from flows.studies.config import StudySettings
from flows.studies.context import Context
from flows.studies.framework import Cell, Results, require

if TYPE_CHECKING:
    import pandas as pd

BM25, UNTRAINED, TEACHER, STUDENT = "bm25", "student_untrained", "teacher", "student"
BUILDING, SERVING = "building", "serving"
RANKING_ROOMS = ("evaluation", "index", "distillation", "towers")


def cells(context: Context) -> list[Cell]:
    """Quality of each system, then what building took, then the speed of all in turns in one run."""
    names = [BM25, *([UNTRAINED] if context.config.evaluation.untrained_student else []), TEACHER, STUDENT]
    wanted = [name for name in names if name == BM25 or name in context.chosen(names)]
    quality = [Cell(name, partial(_quality, context, name)) for name in wanted]
    return [*quality, Cell(BUILDING, partial(_building, context, wanted)), Cell(SERVING, partial(_serving, context, wanted))]


def _quality(context: Context, name: str) -> Artifact:
    def ranker() -> Any:
        return _rankers(context, [name])[name]

    settings = context.config.distillation.model_dump(include={"student", "form", "layers"}) if name == UNTRAINED else {}
    return context.scores_of(name, ranker, _parts(context, [name]), settings)


def _parts(context: Context, names: list[str]) -> dict[str, Artifact]:
    parts: dict[str, Artifact] = {}
    if TEACHER in names:
        parts |= {"query_tower": context.towers()[0], "index": context.index()}
    if STUDENT in names:
        parts |= {"query_encoder": context.student(), "index": context.index()}
    return parts


def _rankers(context: Context, names: list[str]) -> dict[str, Any]:
    from components.evaluation.systems import open_systems

    return open_systems({"dataset": context.dataset, **_parts(context, names)}, names, context.config.distillation)


def _building(context: Context, names: list[str]) -> Artifact:
    """Seconds that each step took when it was made, whenever that was."""
    steps = {"snapshot_data": context.dataset}
    if TEACHER in names or STUDENT in names:
        steps |= {"train_towers": context.stage_one(), "encode_corpus": context.vectors(), "build_index": context.index()}
    if STUDENT in names:
        steps |= {"encode_teacher_queries": context.targets(), "distil_query_tower": context.student()}
    timings = {name: context.timing(artifact) for name, artifact in steps.items()}
    return context.measure("building", ("evaluation",), lambda _: {"steps": timings}, steps, {"timings": timings})


def _serving(context: Context, names: list[str]) -> Artifact:
    evaluation = context.config.evaluation

    def numbers(_: Path) -> dict[str, Any]:
        from components.evaluation.encoder_speed import serving_speeds

        return serving_speeds(lambda: _rankers(context, names), context.dataset, evaluation)

    settings = evaluation.model_dump(include={"split", "depth", "latency_queries", "throughput_batch", "seed"})
    student = context.config.distillation.model_dump(include={"student", "form", "layers"})
    inputs = {"dataset": context.dataset, **_parts(context, names)}
    return context.measure("serving", RANKING_ROOMS, numbers, inputs, {**settings, **student, "systems": names})


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a system: quality and gain over the baselines, time, energy and price of building, price of serving."""
    import pandas as pd

    from components.evaluation.cost import energy_kwh, money, money_per_million
    from components.evaluation.scores import read_result

    prices, unit = prices_of(config), config.study.currency
    built = read_result(require(results, BUILDING).path)["steps"]
    served = read_result(require(results, SERVING).path)["systems"]
    rows = []
    for name in _systems(results):
        seconds = building_seconds(name, built) + served[name]["opening_seconds"] * (name in (BM25, UNTRAINED))
        row = {
            **_quality_columns(results, name, config),
            "building h": seconds / 3600,
            "kWh": energy_kwh(seconds, prices),
            f"building {unit}": money(seconds, prices),
            "queries/s": served[name]["qps"],
            "p50 ms": served[name]["p50_ms"],
            f"{unit} per million queries": money_per_million(served[name]["qps"], prices),
        }
        rows.append({"system": name, **row})
    return pd.DataFrame(rows)
