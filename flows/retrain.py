"""The full release, from data to a candidate: one flow, one step after another.

snapshot -> validate -> train towers -> encode corpus -> build index     (towers: alone, or with their companion's two steps)
               |             |                              |
               +-> generate -+-> teacher queries -> distil and refine -> evaluate -> decide, register candidate
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from prefect import flow

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact, VectorShards, open_artifact, parents_of
from components.distillation.train import StudentInputs
from components.evaluation.systems import EvaluationInputs
from flows.candidate import (
    CandidateParts,
    CandidateResult,
    register_candidate,
    require_decidable,
    say_queries_in_common,
    verdict_line,
)
from flows.config import RetrainConfig
from flows.parameters import NO_SETTINGS, NOTHING, NameOrEmpty, Preset, SettingsForm, requested_config, require_steps, steps_form
from flows.planning import require_room_for
from flows.recorder import Recorder, recorded_flow
from flows.reporting import AS_OURS, ended, say
from flows.runner import Step
from flows.steps import (
    at_commits,
    checked_validation,
    evaluation_step,
    generation_step,
    index_step,
    needs_queries,
    snapshot_step,
    stage_one,
    student_step,
    targets_step,
    typed,
    vectors_step,
)
from flows.why import STEPS

if TYPE_CHECKING:
    from components.data.dataset import Dataset

Settings = Annotated[dict[str, Any], SettingsForm()]
AGAIN = tuple(step for step in STEPS if step not in ("encode_changes", "refresh_index", "map_query_tower"))
TRAINING = tuple(step for step in AGAIN if step not in ("evaluate", "compare_with_champion", "write_candidate"))
Again = Annotated[list[str], steps_form(AGAIN)]


@flow(name="retrain", **AS_OURS)
def retrain(
    preset: Preset | None = None,
    data: str = "",
    name: NameOrEmpty = "",
    settings: Settings = NO_SETTINGS,
    config: RetrainConfig | None = None,
    again: Again = NOTHING,
) -> CandidateResult:
    """Build a candidate and register it; finished steps are taken from the cache, a killed one continues.

    Raises ConfigError for parameters that do not fit (see `requested_config`).

    Args:
        preset: Settings to start from; none: the defaults of all fields
        data: Data folder, or icd10cm for the built-in set; empty: the preset's
        name: Name of the retriever, small letters, digits and hyphens; empty: the preset's
        settings: Settings over the preset, as sections or by dotted names such as towers.steps
        config: A whole configuration, instead of a preset
        again: Steps that are made anew although they are finished; what follows them is made anew where their result has changed
    """
    from components.settings import activate

    chosen = requested_config(preset, data, name, settings, config)
    require_steps("retrain", again, AGAIN)
    activate()
    require_decidable(chosen.name)
    chosen = at_commits(chosen)
    with recorded_flow(chosen.name, "retrain", chosen.model_dump(mode="json"), again) as recorder:
        parts = build_parts(chosen, recorder)
        result = register_candidate(chosen, recorder, parts)
    return ended(result, verdict_line(result))


@flow(name="train", **AS_OURS)
def train(
    preset: Preset | None = None,
    data: str = "",
    name: NameOrEmpty = "",
    settings: Settings = NO_SETTINGS,
    config: RetrainConfig | None = None,
    again: Annotated[list[str], steps_form(TRAINING)] = NOTHING,
) -> dict[str, Any]:
    """Make all models, vectors and the index of a release, and no candidate: the part of `retrain` that a GPU is for.

    `retrain` with the same parameters over the same home folder finds these steps finished and goes on, on a machine without one.
    Returns the digests of what was made. Raises as `retrain` does.

    Args:
        preset: Settings to start from; none: the defaults of all fields
        data: Data folder, or icd10cm for the built-in set; empty: the preset's
        name: Name of the retriever, small letters, digits and hyphens; empty: the preset's
        settings: Settings over the preset, as sections or by dotted names such as towers.steps
        config: A whole configuration, instead of a preset
        again: Steps that are made anew although they are finished; what follows them is made anew where their result has changed
    """
    from components.settings import activate

    chosen = requested_config(preset, data, name, settings, config)
    require_steps("train", again, TRAINING)
    activate()
    chosen = at_commits(chosen)
    with recorded_flow(chosen.name, "train", chosen.model_dump(mode="json"), again) as recorder:
        made, student = build_models(chosen, recorder)
        parts = {"query_tower": made.query_tower, "document_tower": made.document_tower, "index": made.index, "query_encoder": student}
        result = {
            "name": chosen.name,
            "digests": parents_of(parts),
            "cached": recorder.all_cached,
            "mlflow_run_id": recorder.run_id,
        }
    said = "All models were there already." if result["cached"] else "The models are made; retrain makes a candidate of them."
    return ended(result, said)


@dataclass(frozen=True)
class BuiltDocuments:
    """A release without its query encoder. `targets` are the teacher's query vectors where the index was tuned with them."""

    dataset: DatasetArtifact
    validation: Artifact
    query_tower: EncoderArtifact
    document_tower: EncoderArtifact
    vectors: VectorShards
    index: IndexArtifact
    teacher_queries: Step
    targets: Artifact | None


def build_parts(config: RetrainConfig, recorder: Recorder) -> CandidateParts:
    """Run every step that makes a part of the release."""
    made, student = build_models(config, recorder)
    evaluation = recorder.run(evaluation_step(config, EvaluationInputs(made.dataset, made.query_tower, student, made.index)))
    return CandidateParts(made.dataset, made.validation, made.query_tower, made.document_tower, student, made.index, evaluation)


def build_models(config: RetrainConfig, recorder: Recorder) -> tuple[BuiltDocuments, EncoderArtifact]:
    """Run the steps from the data to the student."""
    made = build_documents(config, recorder)
    targets = made.targets or recorder.run(made.teacher_queries)
    learned_from = StudentInputs(made.dataset, targets, made.index, made.query_tower, made.vectors)
    return made, typed(recorder.run(student_step(config, learned_from)), EncoderArtifact)


def build_documents(config: RetrainConfig, recorder: Recorder) -> BuiltDocuments:
    """Run the steps from the data to the index."""
    dataset = typed(recorder.run(snapshot_step(config)), DatasetArtifact)
    validation = recorder.run(checked_validation(config, dataset))
    require_usable(config, dataset)
    require_room_for(config, dataset)
    # Needs no tower, and a generator that cannot write is found before a day of training.
    generated = recorder.run(generation_step(config, dataset)) if config.distillation.generated else None
    query_tower, document_tower = train_both(config, recorder, dataset)
    vectors = typed(recorder.run(vectors_step(config, dataset, document_tower)), VectorShards)
    teacher_queries = targets_step(config, dataset, query_tower, generated, document_tower)
    tuned_with = recorder.run(teacher_queries) if needs_queries(config, vectors) else None
    index = typed(recorder.run(index_step(config, vectors, dataset, tuned_with)), IndexArtifact)
    return BuiltDocuments(dataset, validation, query_tower, document_tower, vectors, index, teacher_queries, tuned_with)


def require_usable(config: RetrainConfig, dataset: DatasetArtifact) -> None:
    """Refuse what would only fail after hours of training.

    Splits without judgements or of train queries, sources without queries, a student that cannot be made, an index that FAISS does not
    know, that needs more documents than there are, or that its gate could only refuse, a policy that asks for what is not measured, a
    runner that is not installed.
    """
    from components.data.dataset import load_dataset
    from components.data.left_out import require_not_trained_on
    from components.distillation.student import check_before_towers, width_of
    from components.distillation.train import check_sources
    from components.evaluation.summarize import require_judged
    from components.gates.decide import require_attainable, require_measured
    from components.index.index_keys import usable_key
    from flows.encoding_runners import runner_of

    require_measured(config.policy, config.evaluation)
    data = load_dataset(dataset.path)
    splits = (config.evaluation.split, *config.evaluation.extra_splits)
    require_judged(data, splits, config.evaluation.query_groups)
    require_not_trained_on(data, splits)
    say_queries_in_common(config, data, refused=True)
    check_sources(data, config.distillation)
    check_before_towers(config.distillation, config.towers)
    key = usable_key(config.index, len(data.documents), width_of(config.towers))
    require_attainable(config.policy, config.index, key)
    runner_of(config.encoding)
    if config.towers.base_model == "endpoint":
        _require_affordable(config, data)


def _require_affordable(config: RetrainConfig, data: Dataset) -> None:
    """Say about how many tokens the endpoint will be sent, and what they cost; raise ConfigError above the limits."""
    from components.distillation.query_sources import dev_queries, query_sources
    from components.evaluation.summarize import judged_split
    from components.planning.cost import GENERATED_TOKENS
    from components.planning.facts import guessed_tokens
    from components.towers.contract import PROBE_TEXTS
    from components.towers.trained.endpoint import require_within

    splits = (config.evaluation.split, *config.evaluation.extra_splits)
    queries = [*dev_queries(data), *(text for split in splits for text in judged_split(data, split).texts)]
    learned = [text for texts in query_sources(data, config.distillation).values() for text in texts]
    towers, endpoint = config.towers, config.towers.endpoint
    tokens = sum(guessed_tokens(towers.document_prompt + text) for text in data.document_texts())
    tokens += sum(guessed_tokens(towers.query_prompt + text) for text in (*queries, *learned))
    tokens += config.distillation.generated * (guessed_tokens(towers.query_prompt) + GENERATED_TOKENS)
    tokens += 10 * sum(map(guessed_tokens, PROBE_TEXTS))
    cost = f", at {endpoint.price:g} a million about {tokens * endpoint.price / 1e6:,.2f}" if endpoint.price else ""
    say(f"[train_towers] {endpoint.url} will be sent about {tokens:,} tokens{cost}; what is in the cache already is not sent again")
    require_within(endpoint, tokens, "The run needs")


def train_both(config: RetrainConfig, recorder: Recorder, dataset: DatasetArtifact) -> tuple[EncoderArtifact, EncoderArtifact]:
    """Stage 1, and its two towers as artifacts of their own."""
    towers, step = stage_one(config, dataset, recorder.run)
    parts = (recorder.record_part(towers, open_artifact(towers.path / role), step) for role in ("query_tower", "document_tower"))
    query, document = (typed(part, EncoderArtifact) for part in parts)
    return query, document
