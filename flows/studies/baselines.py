"""Baselines: every way to build a retriever on equal training pairs, side by side with the student, each with its cost.

BM25; the small encoder untrained; the same encoder trained alone for queries and documents (symmetric); an LLM document tower with
the small query encoder, trained end to end; the teacher as published, where it is an embedding model; the teacher; the student after
alignment; the student after refinement. The small encoder is the published one, whole; where the student has another form, a cell with
`-cut` behind its name has that form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact, EncoderArtifact, IndexArtifact, VectorShards, open_artifact
from components.distillation.config import DistillationConfig
from components.errors import CollapseError, ConfigError
from components.evaluation.config import EvaluationConfig
from components.towers.base_models import folder_identity
from components.towers.config import TowerConfig
from flows.runner import Step
from flows.steps import TRAINING_FILES, index_step, towers_key, typed, untrained_key, vectors_step
from flows.studies.context import Context, StudySettings
from flows.studies.framework import Cell, Results, about_queries, about_seeds, about_untimed, by_system, require, seeded, whole_trainings

if TYPE_CHECKING:
    import pandas as pd

    from components.evaluation.rankers import Ranker

BM25, UNTRAINED, SYMMETRIC, END_TO_END, PUBLISHED = "bm25", "untrained", "symmetric", "end-to-end", "teacher-published"
TEACHER, ALIGNED, STUDENT = "teacher", "student-aligned", "student"
COST, CUT, AGAIN = "cost", "-cut", "again"
OF_SMALL_ENCODERS = (UNTRAINED, SYMMETRIC, END_TO_END)
# What their training reads of the section distillation; the student's own losses and epochs are none of theirs.
OF_SMALL = {
    "student", "revision", "form", "layers", "head", "head_width", "pooling", "query_prompt", "max_query_length", "titles", "sentences",
    "spans", "refine_titles", "train_embeddings", "precision", "seed",
}  # fmt: skip
FIXED = (BM25, UNTRAINED, UNTRAINED + CUT, PUBLISHED)  # what is not trained, and needs no seeds


@dataclass(frozen=True)
class System:
    """What opens a ranker, all that determines it, and the artifacts that were trained and encoded for it."""

    opener: Callable[[], Ranker]
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: tuple[Artifact, ...] = ()
    encoded: tuple[Artifact, ...] = ()


Build = Callable[[StudySettings], System]  # by the configuration of one seed


def cells(context: Context) -> list[Cell]:
    """One cell a system and seed; the student is always among them, since the others are compared with it.

    Then what each of them costs, of the first seed that did not collapse.
    """
    require_small_encoder(context.config)
    context.pin_small_encoder()
    systems, trainings = systems_of(context), whole_trainings(context)
    chosen = {*context.chosen([*systems, COST]), STUDENT}
    wanted = {name: build for name, build in systems.items() if name in chosen}
    found = []
    for name, build in wanted.items():
        if name in FIXED:
            found.append(Cell(name, partial(_scores, context, name, build, context.config)))
        else:
            found += [Cell(seeded(name, seed), partial(_scores, context, name, build, config)) for seed, config in trainings.items()]
    return [*found, *([Cell(COST, partial(_cost, context, wanted, list(trainings.values())))] if COST in chosen else [])]


def systems_of(context: Context) -> dict[str, Build]:
    """Name -> what builds the system with a seed's configuration, in the order of the table."""
    # Where no LLM is trained there is none that could be trained with the small encoder.
    kinds = [name for name in OF_SMALL_ENCODERS if name != END_TO_END or trains_towers(context.config)]
    small = {f"{name}{suffix}": suffix for name in kinds for suffix in small_encoders(context.config)}
    builders = {UNTRAINED: _untrained, SYMMETRIC: _symmetric, END_TO_END: _end_to_end}
    found: dict[str, Build] = {BM25: partial(_bm25, context)}
    found |= {name: partial(builders[name.removesuffix(CUT)], context, suffix) for name, suffix in small.items()}
    if _is_embedding_model(context.config):
        found[PUBLISHED] = partial(_published_teacher, context)
    found[TEACHER] = lambda config: _dense(context, config, context.towers(config)[0], context.stage_one(config))
    if context.config.distillation.refine_epochs:  # else the student is aligned only
        found[ALIGNED] = lambda config: student_system(context, _aligned_only(config))
    return found | {STUDENT: lambda config: student_system(context, config)}


def trains_towers(config: StudySettings) -> bool:
    """Whether the teacher is trained here, and not taken as it is."""
    return config.towers.training != "none"


def left_out(config: StudySettings) -> list[str]:
    """A note on the systems that there are none of where the teacher is taken as it is."""
    why = "since the teacher is taken as it is (towers.training none)"
    return [] if trains_towers(config) else [f"{END_TO_END}, ScalingDoc, is left out, {why}."]


def about_tuning(results: Results, config: StudySettings) -> list[str]:
    """A note where the index of the end-to-end pair is approximate: no dev queries are encoded for it before it is built."""
    pair = next((artifact for cell, artifact in results.items() if cell.startswith(END_TO_END)), None)
    documents, key = 0 if pair is None else pair.counts.get("dataset_documents", 0), config.index.index_key
    if pair is None or key == "Flat" or (key == "auto" and documents < config.index.exact_below):
        return []
    told = f"The approximate index of {END_TO_END} is tuned with documents in the place of queries, the teacher's with its dev queries"
    return [f"{told}: of real queries it may miss more than index.target_recall says."]


def _aligned_only(config: StudySettings) -> StudySettings:
    return config.model_copy(update={"distillation": config.distillation.model_copy(update={"refine_epochs": 0})})


def small_encoders(config: StudySettings) -> dict[str, DistillationConfig]:
    """The encoder of the baselines by the end of its cell's name: as published, and in the student's form where that is another.

    The student may have layers that another encoder, named for the baselines, has not: then there is no such form of it.
    """
    from components.distillation.student import as_published, as_trained, shape_of

    named = config.study.small_encoder
    changes = {"student": named, "revision": config.study.small_revision} if named else {}
    own = as_trained(config.distillation.model_copy(update=changes))
    published, asked = as_published(own), own.layers
    needed = 0 if not named or asked is None else asked if isinstance(asked, int) else 1 + max(asked)
    there = not needed or needed <= shape_of(own.student, own.revision).layers
    return {"": published, **({CUT: own} if own != published and there else {})}


def about_forms(config: StudySettings) -> list[str]:
    """A note where the encoder of the baselines has no form of the student's, since that is cut to layers which it lacks."""
    from components.distillation.student import as_trained

    forms = small_encoders(config)
    if CUT in forms or as_trained(config.distillation).layers is None:
        return []
    return [f"Systems of the student's form ({CUT}) are left out: '{forms[''].student}' has not the layers that the student is cut to."]


def require_small_encoder(config: StudySettings) -> None:
    """Raise ConfigError where the baselines have no encoder of their own."""
    if "teacher" in (config.study.small_encoder, config.study.small_encoder or config.distillation.student):
        raise ConfigError("The student is a part of the teacher, and the baselines need an encoder of their own: set study.small_encoder.")


def _is_embedding_model(config: StudySettings) -> bool:
    """Whether the teacher's base was published as a model of embeddings, which can be asked as it is."""
    from components.towers.base_models import folder_identity, is_on_hub, resolve_base

    name = config.towers.base_model
    if not is_on_hub(name) and not folder_identity(name):
        return False
    return (Path(resolve_base(name, (), config.towers.revision).location) / "modules.json").is_file()


def _scores(context: Context, name: str, build: Build, config: StudySettings) -> Artifact:
    system = build(config)
    return context.scores_of(name, system.opener, system.inputs, system.settings)


def _bm25(context: Context, config: StudySettings) -> System:
    from components.evaluation.systems import open_bm25

    stemmer = config.evaluation.bm25_stemmer
    return System(partial(open_bm25, context.dataset, stemmer), settings={"bm25_stemmer": stemmer})


def _untrained(context: Context, form: str, config: StudySettings) -> System:
    return _not_trained(context, small_encoders(config)[form])


def _not_trained(context: Context, small: DistillationConfig) -> System:
    from components.distillation.student import as_published
    from components.evaluation.systems import CUT as IN_ANOTHER_FORM
    from components.evaluation.systems import open_untrained
    from components.evaluation.table import UNTRAINED as AS_PUBLISHED

    name = AS_PUBLISHED if small == as_published(small) else IN_ANOTHER_FORM
    return System(partial(open_untrained, context.dataset, small, None, name), settings=untrained_key(small))


def _published_teacher(context: Context, config: StudySettings) -> System:
    towers = config.towers
    return _not_trained(context, DistillationConfig(student=towers.base_model, revision=towers.revision))


def _dense(context: Context, config: StudySettings, encoder: EncoderArtifact, *trained: Artifact) -> System:
    """A query encoder on the teacher's index."""
    from components.evaluation.systems import open_dense

    index, vectors = context.index(config), context.vectors(config)
    return System(partial(open_dense, encoder, index), {"encoder": encoder, "index": index}, {}, trained, (vectors,))


def student_system(context: Context, config: StudySettings) -> System:
    """A student of this configuration on its teacher's index."""
    student = context.student(config)
    generated = context.generated(config)
    made = (context.stage_one(config), context.targets(config), student)
    return _dense(context, config, student, *made, *((generated,) if generated else ()))


def _symmetric(context: Context, form: str, config: StudySettings) -> System:
    def system(encoder: Artifact) -> System:
        return System(partial(open_symmetric, encoder, context.dataset), {"encoder": encoder}, {}, (encoder,))

    return _best_on_dev(context, SYMMETRIC, config, form, system)


def open_symmetric(encoder: Artifact, dataset: Artifact) -> Ranker:
    """The symmetric pair over the documents of a data set, which it encodes now."""
    from components.data.dataset import load_dataset
    from components.evaluation.rankers import symmetric_ranker
    from components.studies.trained_baselines import symmetric_roles

    tables, (query, document) = load_dataset(dataset), symmetric_roles(encoder)
    return symmetric_ranker(query, tables, SYMMETRIC, document.encode(tables.document_texts(), progress=f"{SYMMETRIC}: documents"))


def _end_to_end(context: Context, form: str, config: StudySettings) -> System:
    from components.evaluation.systems import open_dense

    def system(pair: Artifact) -> System:
        query, document = (typed(open_artifact(pair.path / part), EncoderArtifact) for part in ("query_encoder", "document_tower"))
        vectors: VectorShards = typed(context.run(vectors_step(config, context.dataset, document)), VectorShards)
        index: IndexArtifact = typed(context.run(index_step(config, vectors, context.dataset)), IndexArtifact)
        return System(partial(open_dense, query, index), {"encoder": query, "index": index}, {}, (pair,), (vectors,))

    return _best_on_dev(context, END_TO_END, config, form, system)


def _training_step(context: Context, name: str, config: StudySettings, form: str, rate: float) -> Step:
    dataset, towers, passes, small = context.dataset, config.towers, _passes(config), small_encoders(config)[form]
    more = _steps_of_companion(config)
    make = partial(train_baseline, name, dataset, (towers, small), (rate, passes, more))
    settings = towers_key(towers.model_copy(update={"steps": 0}) if passes else towers)  # the passes say how many steps it takes
    # A folder's name alone would hide that other weights lie there now. The symmetric pair has nothing of the LLM.
    settings |= folder_identity(towers.base_model) if name == END_TO_END else {}
    own = {**small.model_dump(include=OF_SMALL), **folder_identity(small.student)}
    keyed = {"towers": settings, "small": own, "learning_rate": rate, "passes": passes}
    keyed |= {"more_steps": more} if more else {}
    return Step(f"train_{name.replace('-', '_')}", make, {"dataset": dataset}, keyed, resumes=TRAINING_FILES)


def train_baseline(
    name: str, dataset: Artifact, configs: tuple[TowerConfig, DistillationConfig], rule: tuple[float, float, int], folder: Path
) -> Artifact:
    """The steps train_symmetric and train_end_to_end.

    `rule`: the learning rate, passes over the pairs (0: the towers' own steps), and steps beyond them.
    """
    from components.data.dataset import load_dataset
    from components.studies.trained_baselines import for_passes, pairs_with_titles, train_asymmetric, train_symmetric

    (towers, small), (rate, passes, more) = configs, rule
    pairs = pairs_with_titles(load_dataset(dataset), small, towers.batches_by)
    settings = for_passes(towers, len(pairs.pairs), passes) if passes else towers
    settings = settings.model_copy(update={"steps": settings.steps + more})
    train: Callable[..., Artifact] = train_symmetric if name == SYMMETRIC else train_asymmetric
    return train(pairs, (settings, small), rate, {"dataset": dataset.digest}, folder)


def _passes(config: StudySettings) -> float:
    """Passes over the pairs: what is asked for, or those of the student's refinement; 0: the towers' own steps."""
    return config.study.pair_passes or float(config.distillation.refine_epochs)


def _steps_of_companion(config: StudySettings) -> int:
    """Steps of the companion, from which the student starts; none where the passes of the pairs are asked for."""
    own = config.towers.companion
    return own.steps if own.base_model and config.study.pair_passes is None else 0


def _best_on_dev(context: Context, name: str, config: StudySettings, form: str, system: Callable[[Artifact], System]) -> System:
    """Train with every learning rate and take the one that is best on dev, so that no baseline loses by a badly chosen rate.

    A rate whose encoder collapsed is not chosen; raises CollapseError where every one did.
    """
    systems, collapsed = dict[float, System](), list[CollapseError]()
    for rate in context.config.study.small_learning_rates:
        try:
            systems[rate] = system(context.run(_training_step(context, name, config, form, rate)))
        except CollapseError as error:
            collapsed.append(error)
    if not systems:
        raise collapsed[0]
    return next(iter(systems.values())) if len(systems) == 1 else max(systems.values(), key=partial(_dev_score, context))


def _dev_score(context: Context, system: System) -> float:
    """Sum of R@50 and nDCG@10 on dev, by which the student's checkpoints are chosen, too."""
    from components.studies.scores import read_result

    depth, everything = context.config.evaluation.depth, {"dataset": context.dataset, **system.inputs}
    numbers = partial(dev_means, system.opener, context.dataset, depth)
    found = read_result(context.measure("dev", numbers, everything, {"depth": depth}).path)
    return float(found["recall@50"] + found["ndcg@10"])


def dev_means(opener: Callable[[], Ranker], dataset: Artifact, depth: int, _: Path) -> dict[str, float]:
    """The measurement study_dev: every metric's mean over the judged dev queries."""
    from components.data.dataset import load_dataset
    from components.studies.report import mean_metrics

    return mean_metrics(opener(), load_dataset(dataset), "dev", depth)


def first_whole(build: Build, trainings: Sequence[StudySettings]) -> System | None:
    """The system of the first seed that did not collapse: they are all equally fast; None where every one did, as its own cells say."""
    for config in trainings:
        try:
            return build(config)
        except CollapseError:
            continue
    return None


def _cost(context: Context, wanted: Mapping[str, Build], trainings: Sequence[StudySettings]) -> Artifact:
    """Seconds of training and of encoding the documents by system, and the speed of whole answers of all in turns."""
    systems = {name: system for name, build in wanted.items() if (system := first_whole(build, trainings)) is not None}
    # Functions alone: what a System holds would not be counted as code of the step.
    openers, evaluation = {name: system.opener for name, system in systems.items()}, context.config.evaluation
    seconds = {
        name: {"training": seconds_of(context, system.trained), "encoding": seconds_of(context, system.encoded)}
        for name, system in systems.items()
    }
    pairs = {name: system.trained[0].counts for name, system in systems.items() if name.removesuffix(CUT) in (SYMMETRIC, END_TO_END)}
    inputs = {"dataset": context.dataset, **{f"{name}.{role}": a for name, s in systems.items() for role, a in s.inputs.items()}}
    again = sorted(name for name, system in systems.items() if made_again(context, (*system.trained, *system.encoded)))
    known = {"seconds": seconds, "pairs": pairs, **({AGAIN: again} if again else {})}
    settings = evaluation.model_dump(include={"split", "depth", "latency_queries", "throughput_batch", "speed_precision", "seed"})
    untrained = {name: dict(system.settings) for name, system in systems.items() if system.settings}
    keyed = {**settings, "seconds": seconds, "systems": list(systems), **untrained, **({AGAIN: again} if again else {})}
    return context.measure("baseline_costs", partial(speeds_beside, known, openers, context.dataset, evaluation), inputs, keyed)


def speeds_beside(
    known: Mapping[str, Any], openers: Mapping[str, Callable[[], Ranker]], dataset: Artifact, evaluation: EvaluationConfig, _: Path
) -> dict[str, Any]:
    """The measurement of costs: the speed of whole answers of all systems in turns, beside what is `known` of their making."""
    from components.evaluation.speed import serving_speeds

    return {**serving_speeds(openers, dataset, evaluation), **known}


def seconds_of(context: Context, artifacts: tuple[Artifact, ...]) -> float | None:
    """Seconds that the making of all took; None where there are none, or where one was not recorded."""
    found = [context.timing(artifact) for artifact in artifacts]
    known = [timing["seconds"] for timing in found if timing]
    return sum(known) if known and len(known) == len(found) else None


def made_again(context: Context, artifacts: tuple[Artifact, ...]) -> bool:
    """Whether the making of one took several attempts, of which the seconds of the last one alone are known."""
    return any(timing["attempts"] > 1 for artifact in artifacts if (timing := context.timing(artifact)))


def about_attempts(costs: Mapping[str, Any]) -> list[str]:
    """The note on systems whose training or encoding was killed or failed, and went on in another attempt."""
    again = ", ".join(costs.get(AGAIN, ()))
    return [f"Made in several attempts, of which only the last one's seconds are counted, so it took longer: {again}."] if again else []


def tabulate(results: Results, config: StudySettings) -> pd.DataFrame:
    """One row a system: levels, the student's distance from it with paired intervals over seeds and queries, and its cost."""
    import pandas as pd

    from components.studies.report import side_by_side
    from components.studies.scores import read_result

    systems = by_system(results)
    if STUDENT not in systems:
        require({}, STUDENT)
    costs = read_result(results[COST].path) if COST in results else None
    rows = side_by_side(systems, STUDENT, config.evaluation, FIXED)
    return pd.DataFrame([{**row, **(_cost_columns(row["system"], costs) if costs else {})} for row in rows])


def _cost_columns(name: str, costs: Mapping[str, Any]) -> dict[str, float | None]:
    """What one system costs; the documents of BM25, untrained encoders and symmetric pairs are read when the system is opened."""
    seconds, speed = costs["seconds"][name], costs["systems"].get(name)
    if speed is None:  # not timed
        return {"training s": seconds["training"], "documents s": seconds["encoding"]}
    parameters, flops = speed.get("parameters"), speed["flops_per_query"]
    return {
        "training s": seconds["training"],
        "documents s": speed["opening_seconds"] if seconds["encoding"] is None else seconds["encoding"],
        "M parameters": None if parameters is None else parameters / 1e6,
        "queries/s": speed["qps"],
        "p50 ms": speed["p50_ms"],
        "tokens/s": speed["tokens_per_second"],
        "MFLOP a query": None if flops is None else flops / 1e6,
    }


def plot(frame: pd.DataFrame, path: Path) -> None:
    """A bar with its interval for each system and metric."""
    from components.studies.report import bars

    bars(frame, "system", ("R@50", "nDCG@10", "MRR@10"), path, "Baselines")


def notes(results: Results, frame: pd.DataFrame, config: StudySettings) -> list[str]:
    """What was equal, what was chosen, and where the student stands."""
    from components.studies.report import LEVEL, verdict

    others = [row for row in frame.to_dict("records") if row["system"] != STUDENT]
    standing = {m: ", ".join(f"{verdict(row, STUDENT, m)} {row['system']}" for row in others) for m in ("nDCG@10", "R@50")}
    return [
        about_queries(next(iter(results.values())), config),
        about_seeds(results, config),
        "A difference above 0 is the student's lead.",
        _equal(config),
        *left_out(config),
        *about_forms(config),
        *about_tuning(results, config),
        *(_about_costs(results[COST], config) if COST in results else []),
        *(f"In {metric}, by p below {LEVEL:g} after Holm's correction, the student is {found}." for metric, found in standing.items()),
    ]


def _equal(config: StudySettings) -> str:
    towers, passes, rates = config.towers, _passes(config), ", ".join(f"{rate:g}" for rate in config.study.small_learning_rates)
    how = f"{passes:g} pass{'' if passes == 1 else 'es'}" if passes else f"{towers.steps:,} batches"
    more, beside = _steps_of_companion(config), config.towers.companion
    how += f" and {more:,} batches" if more else ""
    of_companion = " and its companion" if more else ", without its companion's batches" if beside.base_model else ""
    as_many = f"the student's refinement{of_companion}"
    if not passes:
        as_many = f"towers.steps {'and the companion say' if more else 'says'}, since the student is not refined"
    titles = " and titles" if config.distillation.refine_titles else ""
    other = "" if passes == config.distillation.refine_epochs else "not "
    pairs = f"Symmetric{' and end-to-end' if trains_towers(config) else ''} pairs"
    teacher = f"{towers.steps:,} batches of the judgements alone" if trains_towers(config) else "none of them, being taken as it is"
    teacher += f" (LLM {towers.base_model}"
    teacher += f", with a companion {beside.base_model} that saw {beside.steps:,}" if beside.base_model else ""
    teacher += f", judged by {towers.judge.base_model}, as no pair was" if towers.judge.base_model else ""
    return (
        f"{pairs} saw the train judgements{titles} in {how}, batches of {towers.batch_size} ({other}as many as "
        f"{as_many}), the teacher {teacher}, small encoder "
        f"{small_encoders(config)[''].student}); peak learning rate of the small encoders: the best on dev of {rates}."
    )


def _about_costs(costs: Artifact, config: StudySettings) -> list[str]:
    from components.studies.scores import read_result

    found = read_result(costs.path)
    seen = [f"{name} {counts['pairs_seen']:,} of {counts['pairs']:,} pairs" for name, counts in found["pairs"].items()]
    return [
        *([f"Pairs seen in the training that counts: {', '.join(seen)}."] if seen else []),
        *about_untimed(found["seconds"], found["systems"]),
        *about_attempts(found),
        (
            "Training: seconds of one training, of the first seed that did not collapse, with all it stands on, the choice of the learning "
            "rate left out. "
            f"Speed: whole answers, {config.evaluation.depth} documents, all systems in turns, each by its fastest way, queries/s at batch "
            f"{config.evaluation.throughput_batch}; {found['machine']}."
        ),
    ]
