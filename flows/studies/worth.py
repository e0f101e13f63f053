"""Worth: what a team would pick on its own data, from BM25 to the student fused with it, in one table with cost, and what to deploy.

BM25; the small encoder as downloaded; the same encoder trained for queries and documents (symmetric); ScalingDoc, an LLM document tower
with the small query encoder, trained end to end; the teacher; students of several sizes. Each but BM25 also fused with BM25 (NAME+bm25).
What a system finds is kept and asked once; fusions are chosen on dev and worked out from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from flows.studies.baselines import (
    AGAIN,
    BM25,
    END_TO_END,
    FIXED,
    SYMMETRIC,
    TEACHER,
    UNTRAINED,
    Build,
    System,
    about_attempts,
    about_tuning,
    first_whole,
    left_out,
    made_again,
    require_small_encoder,
    seconds_of,
    speeds_beside,
    student_system,
    systems_of,
)
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Results, about_queries, about_seeds, about_untimed, by_system, require, seeded, whole_trainings
from flows.studies.retention import fields_of, layers_left_out

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.config import EvaluationConfig
    from components.evaluation.rankers import Ranker
    from components.studies.scores import Scores
    from components.studies.worth import Recommendation

COST, WITH_BM25 = "cost", "+bm25"
BASELINES = (UNTRAINED, SYMMETRIC, END_TO_END)
RIVALS = (BM25, UNTRAINED, SYMMETRIC)  # what a team would pick without an LLM, which teacher and students are held against


def cells(context: Context) -> list[Cell]:
    """One cell a system and seed, one more where it is fused with BM25, then what each of them costs.

    The cost is of the first seed that did not collapse.
    """
    require_small_encoder(context.config)
    context.pin_small_encoder()
    builds, trainings = _builds(context), whole_trainings(context)
    names = [BM25, *(name for dense in builds if dense != BM25 for name in (dense, dense + WITH_BM25))]
    chosen = {*context.chosen([*names, COST]), BM25}
    found = []
    for name in (name for name in names if name in chosen):
        dense = name.removesuffix(WITH_BM25)
        run = partial(_quality, context, dense, builds, name != dense)
        if dense in FIXED:
            found.append(Cell(name, partial(run, context.config)))
        else:
            found += [Cell(seeded(name, seed), partial(run, config)) for seed, config in trainings.items()]
    costed = {name: builds[name.removesuffix(WITH_BM25)] for name in names if name in chosen}
    return [*found, Cell(COST, partial(_cost, context, costed, list(trainings.values())))]


def _builds(context: Context) -> dict[str, Build]:
    """Every system but the fused ones by its name."""
    known = systems_of(context)
    found = {name: known[name] for name in (BM25, *BASELINES, TEACHER) if name in known}
    for name, fields in fields_of(context.config).items():
        context.check(context.changed(distillation={**fields, "prune_to": ()}))
        found[name] = partial(_student, context, fields)
    return found


def _student(context: Context, fields: Mapping[str, Any], config: StudySettings) -> System:
    distillation = config.distillation.model_copy(update={**fields, "prune_to": ()})
    return student_system(context, config.model_copy(update={"distillation": distillation}))


def _quality(context: Context, name: str, builds: Mapping[str, Build], fused: bool, config: StudySettings) -> Artifact:
    found = _found(context, name, builds[name](config))
    lexical = {"lexical": _found(context, BM25, builds[BM25](context.config))} if fused else {}
    return context.scores_of_found(f"{name}{WITH_BM25}" if fused else name, {"rankings": found, **lexical})


def _found(context: Context, name: str, system: System) -> Artifact:
    return context.rankings_of(name, system.opener, system.inputs, system.settings)


def _cost(context: Context, builds: Mapping[str, Build], trainings: Sequence[StudySettings]) -> Artifact:
    """Seconds of building by system, and the speed of whole answers of all in turns; of a fused system those of both together."""
    systems = {name: system for name, build in builds.items() if (system := first_whole(build, trainings)) is not None}
    # Functions alone: what a System holds would not be counted as code of the step.
    openers = {name.removesuffix(WITH_BM25): system.opener for name, system in systems.items()}
    names, evaluation = list(systems), context.config.evaluation
    built = {name: _building_seconds(context, system) for name, system in systems.items()}
    again = sorted(name for name, system in systems.items() if made_again(context, _steps_of(system)))
    known = {"built": built, **({AGAIN: again} if again else {})}
    inputs = {"dataset": context.dataset, **{f"{name}.{role}": a for name, s in systems.items() for role, a in s.inputs.items()}}
    numbers = partial(speeds_of_fused, names, openers, (context.dataset, evaluation), known)
    settings = evaluation.model_dump(include={"split", "depth", "latency_queries", "throughput_batch", "speed_precision", "seed"})
    named = {name: dict(system.settings) for name, system in systems.items() if system.settings}
    return context.measure("worth_costs", numbers, inputs, {**settings, **known, "systems": names, **named})


def speeds_of_fused(
    names: Sequence[str],
    openers: Mapping[str, Callable[[], Ranker]],
    asked: tuple[Artifact, EvaluationConfig],
    known: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """The measurement study_worth_costs: `speeds_beside` of systems, some of them fused with BM25, each opened once.

    `asked` are the data set, whose queries are asked, and how.
    """
    from components.evaluation.rankers import FusedRanker
    from components.evaluation.report import FusionSetup

    once = {name: cache(opener) for name, opener in openers.items()}

    def opened(name: str) -> Ranker:
        dense = name.removesuffix(WITH_BM25)
        # How the two are weighted takes no time.
        return once[name]() if dense == name else FusedRanker(once[dense](), once[BM25](), FusionSetup())

    return speeds_beside(known, {name: partial(opened, name) for name in names}, *asked, folder)


def _building_seconds(context: Context, system: System) -> float | None:
    """Seconds of all steps that a system stands on; 0 where there are none: opening it is its building then."""
    steps = _steps_of(system)
    return seconds_of(context, steps) if steps else 0.0


def _steps_of(system: System) -> tuple[Artifact, ...]:
    """What the steps made that a system stands on."""
    return (*system.trained, *system.encoded, *([system.inputs["index"]] if "index" in system.inputs else []))


def _hours(name: str, costs: Mapping[str, Any], config: StudySettings) -> tuple[float | None, float | None]:
    """Hours of building, and of building and serving; documents that are read when a system is opened belong to its building."""
    from components.studies.worth import SECONDS_PER_HOUR, hours_of

    dense, systems = name.removesuffix(WITH_BM25), costs["systems"]
    opened = [part for part in dict.fromkeys((dense, *([BM25] if name != dense else []))) if part in (BM25, UNTRAINED, SYMMETRIC)]
    if (built := costs["built"][name]) is None:
        return None, None
    # A part that is no row of its own was opened with the system.
    seconds = built + sum(systems[part if part in systems else name]["opening_seconds"] for part in opened)
    return seconds / SECONDS_PER_HOUR, hours_of(seconds, systems[name]["qps"], config.study.worth_queries)


def _choice(results: Results, config: StudySettings) -> Recommendation:
    from components.studies.scores import read_result
    from components.studies.worth import choose

    runs, costs = by_system(results), read_result(require(results, COST).path)
    hours = {name: _hours(name, costs, config)[1] if name in costs["systems"] else None for name in runs}
    fixed = [name for name in runs if name.removesuffix(WITH_BM25) in FIXED]
    return choose(runs, hours, _margin(config), config.study.worth_queries, config.evaluation, fixed)


def _margin(config: StudySettings) -> float:
    return config.policy.margin if config.study.worth_margin is None else config.study.worth_margin


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a system: levels, what it lacks of the best, what teacher and students gain over the rivals, and the cost."""
    import pandas as pd

    from components.studies.report import METRIC_TITLES, levels, with_interval
    from components.studies.scores import read_result

    runs, costs, choice = by_system(results), read_result(require(results, COST).path), _choice(results, config)
    rows = []
    for name, found in runs.items():
        row: dict[str, Any] = {"system": name, "seeds": 0 if name.removesuffix(WITH_BM25) in FIXED else len(found)}
        row |= levels(found, config.evaluation)
        standing = choice.standings[name]
        for metric, behind in standing.behind.items():
            row |= with_interval(f"behind the best, {METRIC_TITLES[metric]}", behind)
            row.pop(f"behind the best, {METRIC_TITLES[metric]} p", None)  # the rule asks for the interval
        rows.append({**row, **_gains(runs, name, config), **_cost_columns(name, costs, config), "good enough": standing.good_enough})
    return pd.DataFrame(rows)


def _gains(runs: Mapping[str, Sequence[Scores]], name: str, config: StudySettings) -> dict[str, Any]:
    from components.studies.report import claim_of, gained

    dense = name.removesuffix(WITH_BM25)
    if dense in (BM25, *BASELINES):
        return {}
    rivals = [rival for rival in RIVALS if rival in runs]
    # A rival that was trained could have come out otherwise as well.
    row: dict[str, Any] = dict(claim_of(len(runs[name]), *(len(runs[rival]) for rival in rivals if rival not in FIXED)))
    for rival in rivals:
        row |= gained(runs[name], runs[rival], config.evaluation, f"over {rival} ")
    return row


def _cost_columns(name: str, costs: Mapping[str, Any], config: StudySettings) -> dict[str, float | None]:
    if name not in costs["systems"]:
        return {}
    speed, (building, whole) = costs["systems"][name], _hours(name, costs, config)
    size = speed["bytes"]
    return {
        "building h": building,
        "queries/s": speed["qps"],
        "p50 ms": speed["p50_ms"],
        "p95 ms": speed["p95_ms"],
        "MB": None if size is None else size / 1e6,
        _whole_column(config): whole,
    }


def _whole_column(config: StudySettings) -> str:
    return f"h with {config.study.worth_queries:,} queries"


def plot(frame: pd.DataFrame, path: Path) -> None:
    """Quality over the hours of building and serving."""
    from components.studies.report import quality_over

    column = next(column for column in frame.columns if str(column).startswith("h with "))
    quality_over(frame, column, ("R@50", "nDCG@10"), path, "Quality over hours of building and serving")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What to deploy, by which rule, what beats the rivals, and how everything was measured."""
    from components.studies.scores import read_result
    from components.studies.worth import RISK

    costs, margin = read_result(require(results, COST).path), _margin(config)
    setups: dict[str, list[str]] = {}
    for cell, artifact in results.items():
        if setup := artifact.attributes.get("setup"):
            setups.setdefault(str(setup), []).append(cell)
    unknown = [name for name, seconds in costs["built"].items() if seconds is None]
    missing, untimed = layers_left_out(config), about_untimed(costs["built"], costs["systems"])
    return [
        _choice(results, config).sentence,
        (
            f"The rule: the cheapest system whose interval against the best excludes a loss above {margin:g} in R@50 and in nDCG@10 "
            f"(one-sided {1 - RISK:.0%}, for all systems together by Bonferroni; the brackets of 'behind the best'). Cheapest: least hours "
            f"for building once and answering {config.study.worth_queries:,} queries (study.worth_queries)."
        ),
        _beaten(frame),
        about_queries(next(iter(results.values())), config),
        about_seeds(results, config),
        *_about_end_to_end(frame, config),
        *about_tuning(results, config),
        (
            "Building: seconds of the steps of the first seed that did not collapse, with all they stand on, without the choice of "
            "learning rates, and the reading of documents where no index is built. Speed: whole answers, "
            f"{config.evaluation.depth} documents, all systems in turns, each by its fastest way, queries/s at batch "
            f"{config.evaluation.throughput_batch}, p50 and p95 at batch 1; of a fused system both together; {costs['machine']}. "
            "MB: weights, index (files, or vectors in float32 where it lies in memory), BM25's table."
        ),
        *untimed,
        *about_attempts(costs),
        *([f"Not chosen among, since the time of their building was not recorded: {', '.join(unknown)}."] if unknown else []),
        *([f"Left out, since '{config.distillation.student}' has fewer layers: {', '.join(map(str, missing))}."] if missing else []),
        *(f"{setup} ({', '.join(of)})." for setup, of in setups.items()),
    ]


def _about_end_to_end(frame: pd.DataFrame, config: StudySettings) -> list[str]:
    if missing := left_out(config):
        return missing
    told = f"{END_TO_END} is ScalingDoc: LLM document tower ({config.towers.base_model}) and small query encoder, trained end to end."
    return [told] if {END_TO_END, END_TO_END + WITH_BM25} & set(frame["system"]) else []


def _beaten(frame: pd.DataFrame) -> str:
    """Which systems lie above every rival in both metrics, by the corrected table."""
    from components.studies.report import LEVEL, apart

    columns = [name.removesuffix(" p") for name in map(str, frame.columns) if name.startswith("over ") and name.endswith(" p")]
    columns = [column for column in columns if column.endswith((" R@50", " nDCG@10"))]
    rows = frame.to_dict("records")
    above = [str(row["system"]) for row in rows if columns and all(apart(row, column) and row[column] > 0 for column in columns)]
    rivals = ", ".join(dict.fromkeys(column.split(" ")[1] for column in columns))
    return f"Above each of {rivals or 'no rival'} in R@50 and nDCG@10 (p below {LEVEL:g} by Holm): {', '.join(above) or 'none'}."


def files(results: Results, config: StudySettings) -> dict[str, Any]:
    """The decision for programs, beside the table."""
    choice = _choice(results, config)
    standings = {
        name: {
            "hours": found.hours,
            "good_enough": found.good_enough,
            "behind": {metric: [gap.difference, *(gap.ends if gap.known else (None, None))] for metric, gap in found.behind.items()},
        }
        for name, found in choice.standings.items()
    }
    told = {"chosen": choice.chosen, "sentence": choice.sentence, "best": dict(choice.best), "margin": choice.margin}
    return {"choice.json": {**told, "shown": choice.shown, "claimed": choice.claimed, "queries": choice.queries, "standings": standings}}
