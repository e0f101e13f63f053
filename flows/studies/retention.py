"""Retention: students of several sizes, all distilled from one teacher: what each keeps of its quality, and how fast each is.

Students are trained with each seed; the teacher is one, so what they keep is said of this teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from components.errors import CollapseError, ConfigError
from flows.studies.context import Context, StudySettings
from flows.studies.framework import (
    Cell,
    Results,
    about_queries,
    about_seeds,
    about_untimed,
    by_system,
    is_taken_as_it_is,
    require,
    seeded,
    seeds_of,
)

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.config import EvaluationConfig

TEACHER, STATIC = "teacher", "static"


def student_forms(context: Context) -> dict[str, StudySettings]:
    """Name -> configuration of each student wanted; numbers of layers that the encoder does not have are left out.

    Raises ConfigError for a wrong name in --cells, for one that the encoder does not have, and when nothing is left.
    """
    study = context.config.study
    wanted = context.chosen([*(_name(count) for count in study.layers), *([STATIC] if study.static else [])])
    forms = fields_of(context.config)
    found = [name for name in wanted if name in forms]
    if not found:
        has = layers_of(context.config)
        student = context.config.distillation.student
        raise ConfigError(f"study.layers is {list(study.layers)}, but '{student}' has {has} layers. Name a number up to that.")
    students = {name: context.changed(distillation={**forms[name], "prune_to": ()}) for name in found}
    for config in students.values():
        context.check(config)
    return students


def fields_of(config: StudySettings) -> dict[str, dict[str, Any]]:
    """Name of each student that the encoder can be cut to -> the fields of the section distillation that make it."""
    layers = layers_of(config)
    forms = {_name(count): _cut(count, layers) for count in config.study.layers if count <= layers}
    return forms | ({STATIC: {"form": "static", "layers": None, "pooling": None}} if config.study.static else {})


def layers_left_out(config: StudySettings) -> list[int]:
    """Those of study.layers that the encoder does not have."""
    layers = layers_of(config)
    return [count for count in config.study.layers if count > layers]


def layers_of(config: StudySettings) -> int:
    """Layers of the student's encoder; of the towers' model for the student `teacher`."""
    from components.towers.model_size import count_layers

    towers, student = config.towers, config.distillation
    return count_layers(*((towers.base_model, towers.revision) if student.student == TEACHER else (student.student, student.revision)))


def _name(count: int) -> str:
    return f"layers-{count}"


def _cut(count: int, layers: int) -> dict[str, Any]:
    return {"form": "transformer", "layers": None if count == layers else count}


# --- Retention: students of several sizes, all distilled from one teacher: what each keeps of its quality, and how fast each is.


SPEED = "speed"
SIZES = ("M parameters", "without embeddings")  # columns
TIMES = ("queries/s", "p50 ms", "tokens/s", "MFLOP a query")


def cells(context: Context) -> list[Cell]:
    """The teacher, each student with each seed, and one cell that times them all in turns, so that their speeds belong to one run."""
    forms, seeds = student_forms(context), seeds_of(context.config, "distillation")
    trained = {(name, seed): _trained_with(form, seed) for name, form in forms.items() for seed in seeds}

    def student(name: str, seed: int) -> Artifact:
        return context.scores(name, context.student(trained[name, seed]), context.index())

    teacher = Cell(TEACHER, lambda: context.scores(TEACHER, context.towers()[0], context.index()))
    students = [Cell(seeded(name, seed), partial(student, name, seed)) for name, seed in trained]
    timed = {name: [trained[name, seed] for seed in seeds] for name in forms}
    return [teacher, *students, Cell(SPEED, lambda: _speed(context, timed))]


def _trained_with(config: StudySettings, seed: int) -> StudySettings:
    return config.model_copy(update={"distillation": config.distillation.model_copy(update={"seed": seed})})


def _speed(context: Context, students: Mapping[str, Sequence[StudySettings]]) -> Artifact:
    """Of each student the first seed that did not collapse: they are all equally fast."""
    encoders: dict[str, Artifact] = {TEACHER: context.towers()[0]}
    for name, config in ((name, config) for name, seeds in students.items() for config in seeds if name not in encoders):
        try:
            encoders[name] = context.student(config)
        except CollapseError:  # its own cell has said so
            continue
    evaluation = context.config.evaluation
    settings = evaluation.model_dump(include={"split", "latency_queries", "throughput_batch", "speed_precision", "seed"})
    inputs = {**encoders, "dataset": context.dataset}
    return context.measure("speed", partial(speeds_of_encoders, encoders, context.dataset, evaluation), inputs, settings)


def speeds_of_encoders(encoders: Mapping[str, Artifact], dataset: Artifact, evaluation: EvaluationConfig, _: Path) -> dict[str, Any]:
    """The measurement study_speed: `encoder_speeds` of the teacher and its students."""
    from components.evaluation.speed import encoder_speeds

    return encoder_speeds(encoders, dataset, evaluation)


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row for teacher and each student: size, quality, share kept, speed."""
    import pandas as pd

    from components.studies.report import claim_of, kept, levels
    from components.studies.scores import read_result

    require(results, TEACHER)
    speeds, runs = read_result(require(results, SPEED).path)["systems"], by_system(results)
    rows = []
    for name, found in runs.items():
        size, timed = _speed_columns(speeds.get(name), speeds.get(TEACHER))
        own = {} if name == TEACHER else {**kept(found, runs[TEACHER], config.evaluation), **claim_of(len(found))}
        rows.append({"system": name, "seeds": len(found), **size, **levels(found, config.evaluation), **own, **timed})
    return pd.DataFrame(rows)


def _speed_columns(speed: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns of the size and of the times of a system; they stand there without a value for one that was not timed."""
    if speed is None:
        return dict.fromkeys(SIZES), dict.fromkeys(TIMES)
    flops = speed["flops_per_query"]
    size = {"M parameters": speed["parameters"] / 1e6, "without embeddings": speed["parameters_without_embeddings"] / 1e6}
    timed = {"queries/s": speed["qps"], **({"speed-up": speed["qps"] / teacher["qps"]} if teacher else {}), "p50 ms": speed["p50_ms"]}
    timed |= {"tokens/s": speed["tokens_per_second"], "MFLOP a query": None if flops is None else flops / 1e6}
    return size, timed


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Quality over speed."""
    from components.studies.report import quality_over

    quality_over(frame, "queries/s", ("R@50", "nDCG@10"), path, "Quality over speed")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """How it was measured, and what was left out."""
    from components.studies.scores import read_result

    measured = read_result(require(results, SPEED).path)
    machine = measured["machine"]
    speed = (
        "Speed: encoding of queries alone, tokenisation included, all systems in turns in one run, each by its fastest way; "
        f"queries/s at batch {config.evaluation.throughput_batch}, p50 at batch 1; {machine}."
    )
    lines = [
        about_queries(results[TEACHER], config, chances=False),
        about_seeds(results, config, "distillation"),
        "The teacher is taken as it is." if is_taken_as_it_is(config) else "The teacher is one training, with its own seed.",
        speed,
    ]
    lines += about_untimed(frame["system"].tolist(), measured["systems"])
    if missing := layers_left_out(config):
        lines.append(f"Left out, since '{config.distillation.student}' has fewer layers: {', '.join(map(str, missing))}.")
    return lines
