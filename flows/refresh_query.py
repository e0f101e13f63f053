"""Query refresh: a new student for the vector space of a release. Its document tower, vectors and index stay; no document is encoded.

snapshot -> validate -> generate -> teacher queries -> distil and refine against the release's index -> evaluate -> decide, register

With a new teacher, which is trained first: validate -> train towers -> map its query tower into the index's space -> teacher queries. A
sample of the documents is encoded for the map, the index stays as it is.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, open_artifact
from components.distillation.new_teacher import MapInputs
from components.distillation.train import StudentInputs
from components.errors import ConfigError, DataError
from components.evaluation.systems import EvaluationInputs
from components.index.refresh import changes_since, read_documents
from components.release.manifest import EVALUATION_FOLDER
from components.release.open import PinnedRelease
from components.towers.config import WITHOUT_WEIGHTS
from components.tracking.runs import FlowRun
from flows.adopt import adopted_run
from flows.candidate import CandidateParts, CandidateResult, register_candidate, require_decidable, verdict_line
from flows.config import RetrainConfig, amend_config
from flows.parameters import NO_SETTINGS, NOTHING, Name, Preset, ReleaseRef, SettingsForm, require_steps, steps_form
from flows.recorder import Recorder, recorded_flow
from flows.refresh_index import RefreshConfig, checked_data, configured, describe_changes, open_base, requested_refresh, unknown_queries
from flows.reporting import AS_OURS, ended
from flows.retrain import AGAIN as OF_RETRAIN
from flows.retrain import build_parts, train_both
from flows.runner import Step
from flows.steps import at_commits, evaluation_step, generation_step, map_step, student_step, targets_step, typed, untrained_key

CHANGEABLE = ("data.on_violation", "data.max_dropped_share", "distillation", "evaluation", "policy")
WITH_A_NEW_TEACHER = (*CHANGEABLE, "towers")
Settings = Annotated[dict[str, Any], SettingsForm(WITH_A_NEW_TEACHER)]
AGAIN = (*OF_RETRAIN, "map_query_tower")
Again = Annotated[list[str], steps_form(AGAIN)]


class QueryRefreshConfig(RefreshConfig):
    """A refresh of the query side, which may have another teacher."""

    new_teacher: bool = Field(
        False, description="Train another teacher, by the section towers, and lead its queries into the space of the release's index"
    )

    @property
    def changeable(self) -> tuple[str, ...]:
        """Sections and `section.field` that this refresh may change."""
        return WITH_A_NEW_TEACHER if self.new_teacher else CHANGEABLE


@flow(name="refresh-query-tower", **AS_OURS)
def refresh_query_tower(
    name: Name = "retriever",
    release: ReleaseRef = "champion",
    data: str = "",
    preset: Preset | None = None,
    settings: Settings = NO_SETTINGS,
    new_teacher: bool = False,
    request: QueryRefreshConfig | None = None,
    again: Again = NOTHING,
) -> CandidateResult:
    """Teach a new student the query tower of a release, or a new teacher's, and register the candidate; index version and digest stay.

    Returns what `retrain` returns, with the release it started from and the seconds. The documents have to be those of the index.

    Args:
        name: Name of the retriever
        release: Release to start from: champion, previous, candidate/N or release/N; or adopted, the vectors that were adopted last
        data: Data folder; empty: the one that the release was built from
        preset: Preset that what this refresh may change is taken from, gates apart; none: the release's own settings
        settings: Settings over the release's, as sections or by dotted names
        new_teacher: Train another teacher by the section towers, and lead its queries into the space of the release's index
        request: All of these in one, instead of the others
        again: Steps that are made anew although they are finished; what follows them is made anew where their result has changed
    """
    from components.settings import activate

    given = {"name": name, "release": release, "data": data, "preset": preset, "settings": settings, "new_teacher": new_teacher}
    chosen = requested_refresh(QueryRefreshConfig, request, **given)
    require_steps("refresh-query-tower", again, AGAIN)
    activate()
    started = time.monotonic()
    if (adopted := adopted_run(chosen)) is not None:
        require_released(chosen)
        result = _first_release(chosen, adopted, again)
        told = {"base": "the adopted vectors", "seconds": time.monotonic() - started}
        return ended(result.model_copy(update=told), verdict_line(result))
    base, config = open_base(chosen)
    config = at_commits(config)
    if chosen.new_teacher:
        require_weights(config)
    with recorded_flow(config.name, "refresh-query-tower", config.model_dump(mode="json"), again) as recorder:
        recorder.adopt_lineage(base.ancestry(), base.flows())
        dataset, validation = checked_data(config, recorder, base)
        require_same_documents(config, base, dataset)
        note = f"Query refresh of {base.title}: a new query encoder for its index, whose documents did not change."
        if chosen.new_teacher:
            base = replace(base, query_tower=_new_teacher(config, recorder, base, dataset))
            note = f"{note} {told_of_map(base)}"
        student = _new_student(config, recorder, base, dataset)
        evaluation = recorder.run(_evaluation(config, recorder, base, dataset, student))
        towers = (base.query_tower, base.document_tower, student)
        notes = (note, *unknown_queries(base, dataset))
        parts = CandidateParts(dataset, validation, *towers, base.index, evaluation, "query-refresh", notes, base.artifact.path)
        result = register_candidate(config, recorder, parts)
    return ended(result.model_copy(update={"base": base.title, "seconds": time.monotonic() - started}), verdict_line(result))


def _first_release(request: RefreshConfig, adopted: FlowRun, again: list[str]) -> CandidateResult:
    """The candidate over documents that `scalingnote adopt` took over: its steps are found finished, the student is new."""
    require_decidable(request.name)
    config = at_commits(configured(request, adopted, CHANGEABLE))
    with recorded_flow(config.name, "refresh-query-tower", config.model_dump(mode="json"), again) as recorder:
        note = (
            f"The documents' vectors were adopted by the run {adopted.run_id} ({adopted.started} UTC); the query encoder was made for them."
        )
        return register_candidate(config, recorder, replace(build_parts(config, recorder), notes=(note,)))


def require_same_documents(config: RetrainConfig, base: PinnedRelease, dataset: DatasetArtifact) -> None:
    """Raise DataError when the documents are not those of the release's index; its queries and judgements may be new."""
    changes = changes_since(base.index.path, read_documents(dataset.path))
    if changes:
        raise DataError(
            f"The documents of {config.data.source} are not those in the index of {base.title}: {describe_changes(changes)} "
            "Refresh the index first (scalingnote refresh-index --data DIR), or give the folder that it was built from with --data."
        )


def require_released(request: QueryRefreshConfig) -> None:
    """Raise ConfigError where a new teacher is asked for before adopted vectors have their first query encoder."""
    if request.new_teacher:
        raise ConfigError(
            f"A new teacher follows the query encoder of a release, and the vectors that '{request.name}' adopted have none yet. Make it "
            "(scalingnote refresh-query-tower --release adopted), then start from its candidate: --new-teacher --release candidate/N."
        )


def require_weights(config: RetrainConfig) -> None:
    """Raise ConfigError for a new teacher that has no query tower which a map could lead elsewhere."""
    if config.towers.base_model in WITHOUT_WEIGHTS:
        raise ConfigError(
            f"towers.base_model is '{config.towers.base_model}'; a new teacher for an index that stays needs weights of its own. "
            "Name a model, or build a release of that teacher: scalingnote retrain."
        )
    if config.towers.companion.base_model:
        raise ConfigError(
            "A new teacher for an index that stays answers through one map, which a companion has no part in. Set "
            "towers.companion.base_model to '', or build a release of both: scalingnote retrain."
        )


def _require_usable(config: RetrainConfig, base: PinnedRelease, dataset: DatasetArtifact) -> None:
    """Refuse what would only fail once the new teacher is trained: sources without texts, texts too long, a student that cannot be made."""
    from components.data.dataset import load_dataset
    from components.distillation.student import check_before_towers
    from components.distillation.train import check_sources

    check_sources(load_dataset(dataset.path), config.distillation)
    check_before_towers(config.distillation, config.towers, int(str(base.index.attributes["dimension"])))


def _new_teacher(config: RetrainConfig, recorder: Recorder, base: PinnedRelease, dataset: DatasetArtifact) -> EncoderArtifact:
    """The query tower of a teacher that is trained now, with the map into the space of the release's index."""
    _require_usable(config, base, dataset)
    query, document = train_both(config, recorder, dataset)
    if query.digest == base.query_tower.digest:
        raise ConfigError(
            f"This is the teacher that {base.title} has already. Change the section towers or the data, or leave --new-teacher out."
        )
    return typed(recorder.run(map_step(config, MapInputs(dataset, query, document, base.index))), EncoderArtifact)


def told_of_map(base: PinnedRelease) -> str:
    """What a reviewer has to know of a mapped teacher; none of its figures is of test queries."""
    tower, documents = base.query_tower, base.index.counts["documents"]
    own, mapped = (float(tower.attributes[f"dev_ndcg_at_10_{which}"] or 0) for which in ("own", "mapped"))
    return (
        f"A new teacher ({tower.attributes['base_model']}) answers through a map into the index's space, for which "
        f"{tower.counts['mapped_documents']:,} of {documents:,} documents were encoded. Among these alone its dev queries have {own:.3f} "
        f"nDCG@10 in its own space and {mapped:.3f} through the map, which was chosen on dev."
    )


def _new_student(config: RetrainConfig, recorder: Recorder, base: PinnedRelease, dataset: DatasetArtifact) -> EncoderArtifact:
    from components.data.dataset import load_dataset
    from components.distillation.student import check_student
    from components.distillation.train import check_sources

    check_sources(load_dataset(dataset.path), config.distillation)
    check_student(config.distillation, int(str(base.index.attributes["dimension"])), base.query_tower.path)
    generated = recorder.run(generation_step(config, dataset)) if config.distillation.generated else None
    targets = recorder.run(targets_step(config, dataset, base.query_tower, generated, base.document_tower))
    return typed(recorder.run(student_step(config, StudentInputs(dataset, targets, base.index, base.query_tower))), EncoderArtifact)


def _evaluation(config: RetrainConfig, recorder: Recorder, base: PinnedRelease, dataset: DatasetArtifact, student: EncoderArtifact) -> Step:
    """What does not depend on the student is not measured again where nothing else changed: documents are read by the baselines."""
    inputs = EvaluationInputs(dataset, base.query_tower, student, base.index)
    earlier = open_artifact(base.artifact.path / EVALUATION_FOLDER)
    same_teacher = base.query_tower.digest == base.manifest.pins.query_tower.digest
    if same_teacher and _same_baselines(config, base, earlier, dataset):
        recorder.adopt_lineage(base.ancestry(earlier.digest), base.flows())
        inputs = replace(inputs, earlier=earlier)
    return evaluation_step(config, inputs)


def _same_baselines(config: RetrainConfig, base: PinnedRelease, earlier: Artifact, dataset: DatasetArtifact) -> bool:
    """Whether the release's evaluation measured the same untrained encoder on the same data, to the same depth."""
    before = amend_config(base.manifest.config, {}, base.title)
    encoder = untrained_key(before.distillation) == untrained_key(config.distillation)
    return encoder and earlier.parents.get("dataset") == dataset.digest and before.evaluation.depth == config.evaluation.depth
