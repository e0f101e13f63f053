"""Cost against benefit: what building and serving each system takes in time, energy and money, and the quality that this buys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from components.errors import CollapseError
from flows.steps import untrained_key
from flows.studies.baselines import speeds_beside
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Results, about_queries, about_seeds, about_untimed, by_system, require, seeded, whole_trainings

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.rankers import Ranker
    from components.studies.scores import Scores
    from components.studies.worth import Prices

BM25, UNTRAINED, CUT, TEACHER, STUDENT = "bm25", "student_untrained", "student_cut", "teacher", "student"
BUILDING, SERVING = "building", "serving"
# What has to be built before a system can serve; queries are generated only where the configuration asks for them.
TEACHER_STEPS = ("train_towers", "encode_corpus", "build_index")
STUDENT_STEPS = ("generate_queries", "encode_teacher_queries", "distil_query_tower")
STEPS = {TEACHER: TEACHER_STEPS, STUDENT: (*TEACHER_STEPS, *STUDENT_STEPS)}


def cells(context: Context) -> list[Cell]:
    """Quality of each system with each seed, then the time that building took, then the speed of all in turns.

    Both are of the first seed with which nothing collapsed.
    """
    from components.evaluation.systems import untrained_systems

    untrained = list(untrained_systems(context.config.distillation)) if context.config.evaluation.untrained_student else []
    names = [BM25, *untrained, TEACHER, STUDENT]
    chosen = context.chosen(names)
    wanted = [name for name in names if name == BM25 or name in chosen]
    trainings = whole_trainings(context)
    each = list(trainings.values())
    quality = [Cell(name, partial(_not_trained, context, name, each)) for name in wanted if name not in STEPS]
    for name in (name for name in wanted if name in STEPS):
        quality += [Cell(seeded(name, seed), partial(_quality, context, name, config)) for seed, config in trainings.items()]
    building, serving = partial(_building, context, wanted, each), partial(_serving, context, wanted, each)
    return [*quality, Cell(BUILDING, building), Cell(SERVING, serving)]


def _first_whole(context: Context, names: Sequence[str], trainings: Sequence[StudySettings]) -> StudySettings:
    """The first training in which none of the systems `names` collapses; the last one where each has one that does."""
    for config in trainings[:-1]:
        try:
            _parts(context, names, config)
            return config
        except CollapseError:  # the cell of that system and seed has said so
            continue
    return trainings[-1]


def _not_trained(context: Context, name: str, trainings: Sequence[StudySettings]) -> Artifact:
    return _quality(context, name, _first_whole(context, [name], trainings))


def _quality(context: Context, name: str, config: StudySettings) -> Artifact:
    inputs = {"dataset": context.dataset, **_parts(context, [name], config)}
    return context.scores_of(name, _opener(name, inputs, config), inputs, _baseline_settings(context, [name]))


def _parts(context: Context, names: Sequence[str], config: StudySettings) -> dict[str, Artifact]:
    """The artifacts that the systems `names`, as `config` trains them, are opened from."""
    parts: dict[str, Artifact] = {}
    if set(names) & {UNTRAINED, CUT, TEACHER}:
        parts["query_tower"] = context.towers(config)[0]
    if set(names) & {TEACHER, STUDENT}:
        parts["index"] = context.index(config)
    if STUDENT in names:
        parts["query_encoder"] = context.student(config)
    return parts


def _baseline_settings(context: Context, names: Sequence[str]) -> dict[str, Any]:
    """What names the untrained encoders and BM25, which are no artifacts."""
    encoder = untrained_key(context.config.distillation) if {UNTRAINED, CUT} & set(names) else {}
    return {**encoder, **({"bm25_stemmer": context.config.evaluation.bm25_stemmer} if BM25 in names else {})}


def _opener(name: str, inputs: Mapping[str, Artifact], config: StudySettings) -> Callable[[], Ranker]:
    from components.evaluation.systems import open_system

    return partial(open_system, name, inputs, config.distillation, config.evaluation.bm25_stemmer)


def _building(context: Context, names: Sequence[str], trainings: Sequence[StudySettings]) -> Artifact:
    """Seconds that each step took when it was made, whenever that was."""
    config = _first_whole(context, names, trainings)
    steps: dict[str, Artifact] = {}
    if set(names) & {TEACHER, STUDENT}:
        steps |= {"train_towers": context.stage_one(config), "encode_corpus": context.vectors(config), "build_index": context.index(config)}
    if STUDENT in names:
        steps |= {"encode_teacher_queries": context.targets(config), "distil_query_tower": context.student(config)}
        steps |= {"generate_queries": made} if (made := context.generated(config)) else {}
    timings = {name: context.timing(artifact) for name, artifact in steps.items()}
    return context.measure("building", partial(recorded_times, timings), steps, {"timings": timings})


def recorded_times(timings: Mapping[str, Any], _: Path) -> dict[str, Any]:
    """The measurement study_building: what was measured when the steps were made."""
    return {"steps": timings}


def _serving(context: Context, names: Sequence[str], trainings: Sequence[StudySettings]) -> Artifact:
    config = _first_whole(context, names, trainings)
    evaluation, inputs = config.evaluation, {"dataset": context.dataset, **_parts(context, names, config)}
    numbers = partial(speeds_beside, {}, {name: _opener(name, inputs, config) for name in names}, context.dataset, evaluation)
    settings = evaluation.model_dump(include={"split", "depth", "latency_queries", "throughput_batch", "speed_precision", "seed"})
    return context.measure("serving", numbers, inputs, {**settings, **_baseline_settings(context, names), "systems": names})


def building_seconds(name: str, steps: Mapping[str, Any], opening_seconds: float) -> float | None:
    """Seconds until a system can serve: its steps', or its opening where there is nothing to train. None when one was not recorded."""
    if name not in STEPS:
        return opening_seconds
    found = [steps[step] for step in STEPS[name] if step in steps]
    return sum(timing["seconds"] for timing in found) if all(found) else None


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a system: quality and gain over the baselines, time, energy and price of building, price of serving."""
    import pandas as pd

    built = _numbers(results, BUILDING)["steps"]
    served = _numbers(results, SERVING)["systems"]
    runs, rows = by_system(results), []
    for name in runs:
        speed = served.get(name)
        seconds = building_seconds(name, built, speed["opening_seconds"] if speed else 0.0)
        rows.append({"system": name, **_quality_columns(runs, name, config), **_cost_columns(seconds, speed, config)})
    return pd.DataFrame(rows)


def _numbers(results: Results, cell: str) -> dict[str, Any]:
    from components.studies.scores import read_result

    return read_result(require(results, cell).path)


def _quality_columns(runs: Mapping[str, Sequence[Scores]], name: str, config: StudySettings) -> dict[str, Any]:
    from components.studies.report import claim_of, gained, levels

    found = runs[name]
    row: dict[str, Any] = {"seeds": len(found) if name in STEPS else 0, **levels(found, config.evaluation)}
    if name in STEPS:
        row |= claim_of(len(found))
        for baseline in (other for other in (BM25, UNTRAINED) if other in runs):
            row |= gained(found, runs[baseline], config.evaluation, f"over {baseline} ")
    return row


def _cost_columns(seconds: float | None, speed: Mapping[str, Any] | None, config: StudySettings) -> dict[str, float | None]:
    """What building took, and what serving takes; the latter not of a system that was not timed."""
    from components.studies.worth import SECONDS_PER_HOUR, energy_kwh, money, money_per_million

    prices, unit = prices_of(config), config.study.currency
    built: dict[str, float | None] = (
        {"device-hours": None, "kWh": None, f"building {unit}": None}
        if seconds is None
        else {
            "device-hours": seconds / SECONDS_PER_HOUR,
            "kWh": energy_kwh(seconds, prices),
            f"building {unit}": money(seconds, prices),
        }
    )
    if speed is None:
        return built
    flops = speed["flops_per_query"]
    work = {"tokens/s": speed["tokens_per_second"], "MFLOP a query": None if flops is None else flops / 1e6}
    served = {"queries/s": speed["qps"], "p50 ms": speed["p50_ms"], serving_column(config): money_per_million(speed["qps"], prices)}
    return {**built, **served, **work}


def prices_of(config: StudySettings) -> Prices:
    """The stated power and prices."""
    from components.studies.worth import Prices

    return Prices(config.study.watts, config.study.price_per_kwh, config.study.price_per_hour)


def serving_column(config: StudySettings) -> str:
    """Name of the column with the price of a million queries."""
    return f"{config.study.currency} per million queries"


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Quality over the price of serving."""
    from components.studies.report import quality_over

    column = next(column for column in frame.columns if column.endswith("per million queries"))
    quality_over(frame, column, ("R@50", "nDCG@10"), path, "Quality over the price of serving")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """The formulas with their stated values, what the times hold, and when the student has paid for itself."""
    study = config.study
    hour = prices_of(config).of_an_hour
    lines = [
        about_queries(results[BM25], config),
        about_seeds(results, config),
        f"Energy = hours x {study.watts:g} W / 1000. The watts are stated (study.watts), not measured.",
        (
            f"Price = hours x {hour:g} {study.currency}: {study.price_per_hour:g} for the machine and {study.watts:g} W / 1000 x "
            f"{study.price_per_kwh:g} for electricity. A million queries take 1,000,000 / (queries/s) / 3600 hours of a busy machine."
        ),
        (
            f"Building, of the first seed that did not collapse: {_described(_numbers(results, BUILDING)['steps'])}; of {BM25} and "
            "untrained encoders the reading of the documents."
        ),
        (
            f"Serving: encoding and search of {config.evaluation.depth} documents, all systems in turns, each by its fastest way; "
            f"queries/s at batch {config.evaluation.throughput_batch}, p50 at batch 1; {_numbers(results, SERVING)['machine']}."
        ),
    ]
    return lines + about_untimed(frame["system"].tolist(), _numbers(results, SERVING)["systems"]) + _break_even(frame, config)


def _described(steps: Mapping[str, Any]) -> str:
    known = [name for name in STEPS[STUDENT] if name in steps]
    return ", ".join(f"{name} {_seconds(steps[name])}" for name in known) or "nothing was trained"


def _seconds(timing: Mapping[str, float] | None) -> str:
    if timing is None:
        return "not recorded (made before times were kept)"
    again = f" (the last of {timing['attempts']:.0f} attempts, so more in all)" if timing["attempts"] > 1 else ""
    return f"{timing['seconds']:,.1f} s{again}"


def _break_even(frame: pd.DataFrame, config: StudySettings) -> list[str]:
    from components.studies.worth import break_even

    rows = {str(row["system"]): row for row in frame.to_dict("records")}
    building, serving = f"building {config.study.currency}", serving_column(config)
    if not {TEACHER, STUDENT} <= set(rows) or frame[building].isna().any():
        return []
    teacher, student = rows[TEACHER], rows[STUDENT]
    if teacher[serving] != teacher[serving]:  # nan: it was not timed
        return []
    queries = break_even(student[building], teacher[building], teacher[serving], student[serving])
    if queries is None:
        return ["The student is not cheaper to serve than the teacher here, so its distillation never pays for itself."]
    return [f"Against serving the teacher the distillation has paid for itself after {queries:,.3g} million queries."]
