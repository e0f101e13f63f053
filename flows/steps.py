"""The steps of a full release: each names the function of `components/` that makes it, its inputs, and the settings in its key.

None of them makes anything here. What a step's function imports is the code by which the step is keyed; the heavy libraries are imported
within the rooms' functions, so that a flow which finds every step finished never loads torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact, VectorShards, by_role
from components.data.contracts import contracts_digest, contracts_folder
from components.data.snapshot import snapshot
from components.data.sources import remarks_on, source_digest
from components.data.validation import require_valid, validate
from components.distillation.config import DistillationConfig
from components.distillation.generation import generate_for, read_generated
from components.distillation.new_teacher import MapInputs, map_query_tower
from components.distillation.query_sources import TeacherInputs, encode_teacher_queries
from components.distillation.train import StudentInputs, distil
from components.evaluation.systems import EvaluationInputs, evaluate_release
from components.index.build import IndexInputs, build_for_dataset
from components.index.config import EncodingConfig
from components.index.encode import EncodingInputs, encode_dataset
from components.index.index_keys import is_exact, resolve_key
from components.index.refresh import Changes, RefreshInputs, refresh_for_dataset
from components.index.search import open_documents
from components.settings import expanded
from components.towers.base_models import folder_identity, named_as, pinned_revision
from components.towers.config import WITHOUT_WEIGHTS, CompanionConfig, JudgeConfig, TowerConfig
from components.towers.train import SHARED, companion_towers, join_companion, train_companion_on, train_on
from components.towers.trained.adoption import adopt_vectors
from components.towers.trained.endpoint import BASE as ENDPOINT
from components.towers.trained.endpoint import take_endpoint
from components.towers.trained.published import with_own_settings
from components.towers.trained.vector_files import files_digest
from flows.config import RetrainConfig
from flows.encoding_runners import runner_of
from flows.runner import Make, Step

Config = TypeVar("Config", bound=RetrainConfig)
Kind = TypeVar("Kind", bound=Artifact)
# What a killed attempt leaves for the next one to continue from.
TRAINING_FILES = ("checkpoint.pt", "negatives_*.npy", "mining_report.*")
SHARD_FILES = ("vectors-*.parquet", "shard-*.json")
# Settings that a step does not read, or that only say when it refuses: a change of them makes nothing again.
OF_LOADING = {"probe_tolerance"}
OF_REFRESHES = {"compact_share", "max_imbalance", "max_distance", "max_recall_loss"}
# What is in the texts or in the teacher, which are inputs.
OF_TARGETS = {"titles", "sentences", "spans", "generated", "generator", "generator_revision", "map_documents"}


def at_commits(config: Config) -> Config:
    """The configuration with every model of a hub pinned to the commit that its name stands for now.

    It is recorded so, and the steps' keys hold the commits: a model that moved on the hub is trained on anew, never taken for the old one.
    A teacher that is taken as it is brings the settings that nobody gave. Raises ModelError for a model that is not there.
    """
    towers, student = config.towers, config.distillation
    towers = with_own_settings(towers.model_copy(update={"revision": pinned_revision(towers.base_model, towers.revision)}))
    for section in ("companion", "judge"):
        own: CompanionConfig | JudgeConfig = getattr(towers, section)
        if own.base_model:
            with named_as(section):
                pinned = own.model_copy(update={"revision": pinned_revision(own.base_model, own.revision)})
            towers = towers.model_copy(update={section: pinned})
    named = {"revision": student.student, "generator_revision": student.generator if student.generated else ""}
    found = {
        field: pinned_revision(name, getattr(student, field)) if name not in ("", "teacher") else None for field, name in named.items()
    }
    return config.model_copy(update={"towers": towers, "distillation": student.model_copy(update=found)})


def snapshot_step(config: RetrainConfig) -> Step:
    """Read the source and keep it as tables; the key holds the digest of the source's files.

    What was not read of the folder is said every time: it is no part of the data, so a change of it makes nothing anew.
    """
    for remark in remarks_on(config.data):
        print(f"[snapshot_data] {remark}", flush=True)
    digest = source_digest(config.data)
    settings = {**config.data.model_dump(exclude={"contracts"}), "source_digest": digest}  # those are the next step's
    return Step("snapshot_data", partial(snapshot, config.data, expected=digest), config=settings)


def validation_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Hold the tables against the data contracts."""
    contracts = contracts_folder(config.data.contracts)
    digest = contracts_digest(contracts)
    return Step("validate_data", partial(validate, dataset, contracts, expected=digest), {"dataset": dataset}, {"contracts": digest})


def checked_validation(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """`validation_step` that has failed where a contract is broken: its report stays, and nothing follows it."""
    return replace(validation_step(config, dataset), check=require_valid)


def towers_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Stage 1: train both towers, or take a teacher that is trained already; the key holds what the vectors of such a one are.

    Each of these is a function of its own, so that what one of them reads changes nothing in the key of another.
    """
    towers, judge = config.towers, config.towers.judge
    settings = {**towers_key(towers), **_folders(towers.base_model)}
    settings["judge"] = {**judge.model_dump(), **_folders(judge.base_model)} if judge.base_model else None
    make: Make = partial(train_on, dataset, towers)
    if towers.base_model in WITHOUT_WEIGHTS:
        make = partial(take_endpoint, towers, {"dataset": dataset.digest})
    if towers.vectors is not None:
        stored = expanded(towers.vectors)
        settings["vectors_digest"] = files_digest(stored)
        if towers.base_model in WITHOUT_WEIGHTS:
            make = partial(adopt_vectors, dataset, stored, expected=settings["vectors_digest"])
    return Step("train_towers", make, {"dataset": dataset}, settings, resumes=TRAINING_FILES)


def companion_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Train the small encoder beside the towers, which neither reads them nor is read by them."""
    towers = config.towers
    own = towers_key(companion_towers(towers))
    shared = {field: own.pop(field) for field in (*SHARED, "chunk_size")}
    del own["lora_alpha"]  # twice the rank
    settings = {"companion": {**own, **_folders(towers.companion.base_model)}, **shared}
    make = partial(train_companion_on, dataset, towers)
    return Step("train_companion", make, {"dataset": dataset}, settings, resumes=TRAINING_FILES)


def joined_step(config: RetrainConfig, towers: Artifact, companion: Artifact) -> Step:
    """Put the companion beside the towers: what its cosine counts in a score trains nothing again."""
    share = config.towers.companion.share
    make = partial(join_companion, towers, companion, share)
    return Step("join_companion", make, {"towers": towers, "companion": companion}, {"companion": {"share": share}})


def stage_one(config: RetrainConfig, dataset: DatasetArtifact, run: Callable[[Step], Artifact]) -> tuple[Artifact, Step]:
    """Both towers as one artifact, with the step that made it; `run` makes each step of the stage or finds it finished.

    The settings of the step that is returned are those of the whole stage, for the record of both towers.
    """
    step = towers_step(config, dataset)
    if not config.towers.companion.base_model:
        return run(step), step
    beside = companion_step(config, dataset)
    companion = run(beside)  # first: it takes minutes, and where it collapses the hours of the others are spared
    joined = joined_step(config, run(step), companion)
    whole = {**step.config, "companion": {**beside.config["companion"], **joined.config["companion"]}}
    return run(joined), replace(joined, config=whole)


def towers_key(towers: TowerConfig) -> dict[str, Any]:
    """The settings in the key of what trains as stage 1 does: those of an endpoint only where one is the teacher; no other model's."""
    return towers.model_dump(exclude={"companion", "judge"} | (set() if towers.base_model == ENDPOINT else {"endpoint"}))


def _folders(*models: str) -> dict[str, str]:
    return {key: value for name in models for key, value in folder_identity(name).items()}


def vectors_step(config: RetrainConfig, dataset: DatasetArtifact, document_tower: EncoderArtifact) -> Step:
    """Encode the corpus in shards, where `config.encoding` says."""
    inputs, encoding = EncodingInputs(dataset, document_tower), config.encoding
    make = partial(encode_dataset, inputs, encoding, config.index.probe_tolerance, runner_of(encoding))
    return Step("encode_corpus", make, by_role(inputs), encoding_key(encoding), resumes=SHARD_FILES)


def delta_step(config: RetrainConfig, inputs: EncodingInputs, index: IndexArtifact, changes: Changes) -> Step:
    """Encode the documents that were added or changed since `index` was made."""
    encoding = config.encoding
    make = partial(encode_dataset, inputs, encoding, config.index.probe_tolerance, runner_of(encoding), rows=changes.encoded)
    return Step("encode_changes", make, {**by_role(inputs), "index": index}, encoding_key(encoding), resumes=SHARD_FILES)


def encoding_key(encoding: EncodingConfig) -> dict[str, Any]:
    """The settings in the key of what is encoded: not those that change no vector, as the runner."""
    return encoding.model_dump(include={"tokens_per_batch", "shard_size"})


def index_step(config: RetrainConfig, vectors: VectorShards, dataset: DatasetArtifact, targets: Artifact | None = None) -> Step:
    """Build the index over the encoded corpus, with the titles that search results show.

    `targets`: the artifact of `targets_step`, whose dev queries an approximate index is tuned with (see `needs_queries`). Without it an
    approximate index is tuned with documents for queries.
    """
    inputs = IndexInputs(vectors, dataset, targets)
    settings = config.index.model_dump(exclude=OF_LOADING | OF_REFRESHES)
    return Step("build_index", partial(build_for_dataset, inputs, config.index), by_role(inputs), settings)


def refresh_step(config: RetrainConfig, inputs: RefreshInputs, changes: Changes) -> Step:
    """Carry an index over, without what was removed and with what was encoded."""
    settings = config.index.model_dump(exclude=OF_LOADING)
    return Step("refresh_index", partial(refresh_for_dataset, inputs, changes, config.index), by_role(inputs), settings)


def needs_queries(config: RetrainConfig, vectors: VectorShards) -> bool:
    """Whether the index of these vectors is approximate, so that its search parameters are tuned with queries."""
    return not is_exact(resolve_key(config.index, vectors.counts["documents"], int(vectors.attributes["dimension"] or 0)))


def map_step(config: RetrainConfig, inputs: MapInputs) -> Step:
    """Lead a new teacher's queries into the space of an index that stays."""
    settings = config.distillation.model_dump(include={"map_documents", "seed"})
    return Step("map_query_tower", partial(map_query_tower, inputs, config.distillation, open_documents), by_role(inputs), settings)


def generation_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Let a decoder write queries for documents. It needs no tower, so towers that are trained again find it finished."""
    keys = {key: getattr(config.distillation, key) for key in ("generated", "generator", "generator_revision", "precision", "seed")}
    settings = {**keys, **_folders(config.distillation.generator)}
    make = partial(generate_for, dataset, config.distillation)
    return Step("generate_queries", make, {"dataset": dataset}, settings, resumes=("generated_queries.jsonl",))


def targets_step(
    config: RetrainConfig,
    dataset: DatasetArtifact,
    query_tower: EncoderArtifact,
    generated: Artifact | None = None,
    document_tower: EncoderArtifact | None = None,
) -> Step:
    """Compute the teacher's query vectors once. `generated`: the artifact of `generation_step`, when queries were generated.

    `document_tower`: needed where the teacher is stored vectors alone, since those of documents stand in for missing ones.
    """
    chosen = {key: getattr(config.distillation, key) for key in ("titles", "sentences", "spans", "generated", "seed")}
    stored = query_tower.attributes.get("base_model") == "vectors"
    inputs = TeacherInputs(dataset, query_tower, generated, document_tower if stored else None)
    written: Callable[[], Sequence[str]] = partial(read_generated, generated.path) if generated else tuple
    make = partial(encode_teacher_queries, inputs, config.distillation, written)
    return Step("encode_teacher_queries", make, by_role(inputs), chosen)


def student_step(config: RetrainConfig, inputs: StudentInputs) -> Step:
    """Stage 2: align, prune and refine the student."""
    settings = {**config.distillation.model_dump(exclude=OF_TARGETS), **_folders(config.distillation.student)}
    make = partial(distil, inputs, config.distillation, open_documents)
    return Step("distil_query_tower", make, by_role(inputs), settings, resumes=("checkpoint.pt",))


def evaluation_step(config: RetrainConfig, inputs: EvaluationInputs) -> Step:
    """Measure BM25, the untrained encoders, teacher and student."""
    settings = {**config.evaluation.model_dump(), **untrained_key(config.distillation)}
    return Step("evaluate", partial(evaluate_release, inputs, config.distillation, config.evaluation), by_role(inputs), settings)


def untrained_key(distillation: DistillationConfig) -> dict[str, Any]:
    """What the student's encoder before training depends on, which is no artifact."""
    settings = distillation.model_dump(include={"student", "revision", "form", "layers", "prune_to", "query_prompt", "pooling"})
    return {**settings, **_folders(distillation.student)}


def typed(artifact: Artifact, kind: type[Kind]) -> Kind:
    """`artifact` as the artifact type `kind`, which its manifest has to name."""
    return kind.model_validate(artifact.model_dump())
