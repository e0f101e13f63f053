"""The steps of a full release: what each is made from, and by which function of `components/`.

The heavy imports stand inside the functions: a flow that finds every step finished never loads torch. What `make` imports is also the
code by which a step is keyed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, EvalReport, VectorShards
from components.distillation.config import DistillationConfig
from components.index.config import EncodingConfig
from components.towers.config import WITHOUT_WEIGHTS
from flows.config import RetrainConfig
from flows.runner import Step

Config = TypeVar("Config", bound=RetrainConfig)
# What a killed attempt leaves for the next one to continue from.
TRAINING_FILES = ("checkpoint.pt", "negatives_*.npy", "mining_report.*")
SHARD_FILES = ("vectors-*.parquet", "shard-*.json")


def at_commits(config: Config) -> Config:
    """The configuration with every model of a hub pinned to the commit that its name stands for now.

    It is recorded so, and the steps' keys hold the commits: a model that moved on the hub is trained on anew, never taken for the old one.
    A teacher that is taken as it is brings the settings that nobody gave. Raises ModelError for a model that is not there.
    """
    from components.towers.base_models import pinned_revision
    from components.towers.trained.published import with_own_settings

    towers, student = config.towers, config.distillation
    towers = with_own_settings(towers.model_copy(update={"revision": pinned_revision(towers.base_model, towers.revision)}))
    named = {"revision": student.student, "generator_revision": student.generator if student.generated else ""}
    found = {
        field: pinned_revision(name, getattr(student, field)) if name not in ("", "teacher") else None for field, name in named.items()
    }
    return config.model_copy(update={"towers": towers, "distillation": student.model_copy(update=found)})


def snapshot_step(config: RetrainConfig) -> Step:
    """Read the source and keep it as tables; the key holds the digest of the source's files.

    What was not read of the folder is said every time: it is no part of the data, so a change of it makes nothing anew.
    """
    from components.data.snapshot import snapshot
    from components.data.sources import remarks_on, source_digest

    for remark in remarks_on(config.data):
        print(f"[snapshot_data] {remark}", flush=True)
    digest = source_digest(config.data)
    settings = {**config.data.model_dump(), "source_digest": digest}
    return Step("snapshot_data", lambda folder: snapshot(config.data, folder, digest), config=settings)


def validation_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Hold the tables against the data contracts."""
    from components.data.contracts import contracts_digest, contracts_folder
    from components.data.validation import validate

    contracts = contracts_folder(config.data.contracts)
    settings = {"contracts": contracts_digest(contracts)}
    return Step("validate_data", lambda folder: validate(dataset, contracts, folder), {"dataset": dataset}, settings)


def checked_validation(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """`validation_step` that has failed where a contract is broken: its report stays, and nothing follows it."""
    from components.data.validation import require_valid

    return replace(validation_step(config, dataset), check=require_valid)


def towers_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Stage 1: train both towers, or take a teacher that is trained already; the key holds what the vectors of such a one are.

    Each of these has a making of its own, so that what one of them reads changes nothing in the key of another.
    """
    towers, parents = config.towers, {"dataset": dataset.digest}

    def make(folder: Path) -> Artifact:
        from components.data.dataset import load_dataset
        from components.towers.pairs import training_pairs
        from components.towers.train import train_towers

        pairs = training_pairs(load_dataset(dataset.path), config.towers.batches_by)
        return train_towers(pairs, config.towers, {"dataset": dataset.digest}, folder)

    def take(folder: Path) -> Artifact:
        from components.data.dataset import load_dataset
        from components.towers.trained.adoption import take_stored

        return take_stored(load_dataset(dataset.path), Path(str(config.towers.vectors)).expanduser(), parents, folder)

    def ask(folder: Path) -> Artifact:
        from components.towers.trained.endpoint import take_endpoint

        return take_endpoint(config.towers, parents, folder)

    settings = {**towers.model_dump(), **_folders(towers.base_model)}
    if towers.vectors is not None:
        from components.towers.trained.vector_files import files_digest

        settings["vectors_digest"] = files_digest(Path(towers.vectors).expanduser())
    chosen = make if towers.base_model not in WITHOUT_WEIGHTS else ask if towers.vectors is None else take
    return Step("train_towers", chosen, {"dataset": dataset}, settings, resumes=TRAINING_FILES)


def _folders(*models: str) -> dict[str, str]:
    from components.towers.base_models import folder_identity

    return {key: value for name in models for key, value in folder_identity(name).items()}


def vectors_step(config: RetrainConfig, dataset: DatasetArtifact, document_tower: EncoderArtifact) -> Step:
    """Encode the corpus in shards, where `config.encoding` says."""
    encoding = config.encoding

    def make(folder: Path) -> Artifact:
        from components.index.corpus import StoredDocuments
        from components.index.encode import ShardJob, StoredTower, encode_shards
        from flows.encoding_runners import runner_of

        documents = StoredDocuments(dataset.path / "documents.parquet", encoding.shard_size)
        job = ShardJob(StoredTower(document_tower.path, config.index.probe_tolerance), documents, encoding.tokens_per_batch, folder)
        return encode_shards(job, {"dataset": dataset.digest, "document_tower": document_tower.digest}, runner_of(encoding))

    inputs = {"dataset": dataset, "document_tower": document_tower}
    return Step("encode_corpus", make, inputs, encoding_key(encoding), resumes=SHARD_FILES)


def encoding_key(encoding: EncodingConfig) -> dict[str, Any]:
    """The settings in the key of what is encoded: not those that change no vector, as the runner."""
    return encoding.model_dump(include={"tokens_per_batch", "shard_size"})


def index_step(config: RetrainConfig, vectors: VectorShards, dataset: DatasetArtifact, targets: Artifact | None = None) -> Step:
    """Build the index over the encoded corpus, with the titles that search results show.

    `targets`: the artifact of `targets_step`, whose dev queries an approximate index is tuned with (see `needs_queries`). Without it an
    approximate index is tuned with documents for queries.
    """
    inputs: dict[str, Artifact] = {"vectors": vectors, "dataset": dataset, **({"targets": targets} if targets else {})}

    def make(folder: Path) -> Artifact:
        from components.distillation.teacher_targets import held_out_vectors
        from components.index.build import build_index, display_titles

        queries = held_out_vectors(targets.path) if targets else None
        return build_index(vectors, config.index, folder, display_titles(dataset.path / "documents.parquet"), queries)

    return Step("build_index", make, inputs, config.index.model_dump())


def needs_queries(config: RetrainConfig, vectors: VectorShards) -> bool:
    """Whether the index of these vectors is approximate, so that its search parameters are tuned with queries."""
    from components.index.index_keys import is_exact, resolve_key

    return not is_exact(resolve_key(config.index, vectors.counts["documents"], int(vectors.attributes["dimension"] or 0)))


def generation_step(config: RetrainConfig, dataset: DatasetArtifact) -> Step:
    """Let a decoder write queries for documents. It needs no tower, so towers that are trained again find it finished."""
    keys = {key: getattr(config.distillation, key) for key in ("generated", "generator", "generator_revision", "precision", "seed")}
    settings = {**keys, **_folders(config.distillation.generator)}

    def make(folder: Path) -> Artifact:
        from components.data.dataset import load_dataset
        from components.distillation.generation import generate_queries

        return generate_queries(load_dataset(dataset.path), config.distillation, {"dataset": dataset.digest}, folder)

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
    inputs: dict[str, Artifact] = {"dataset": dataset, "query_tower": query_tower, **({"generated": generated} if generated else {})}
    if document_tower is not None and query_tower.attributes.get("base_model") == "vectors":
        inputs["document_tower"] = document_tower

    def make(folder: Path) -> Artifact:
        from components.data.dataset import load_dataset
        from components.distillation.generation import read_generated
        from components.distillation.query_sources import answerable, dev_queries, learnable
        from components.distillation.teacher_targets import write_teacher_targets
        from components.towers.encoder import open_tower

        data = load_dataset(dataset.path)
        sources, left_out = learnable(data, config.distillation, read_generated(generated.path) if generated else ())
        parents = {role: artifact.digest for role, artifact in inputs.items()}
        documents = open_tower(inputs["document_tower"].path) if "document_tower" in inputs else None
        teacher, sources, held_out = answerable(open_tower(query_tower.path), documents, data, (sources, dev_queries(data)))
        return write_teacher_targets(teacher, sources, parents, folder, held_out, left_out)

    return Step("encode_teacher_queries", make, inputs, chosen)


def student_step(config: RetrainConfig, inputs: dict[str, Any]) -> Step:
    """Stage 2: align, prune and refine the student. `inputs`: dataset, targets, index, query_tower for `student: teacher`, and vectors.

    Without vectors, those that the index stores are taken.
    """

    def make(folder: Path) -> Artifact:
        from components.data.dataset import load_dataset
        from components.distillation.query_sources import mixed_noise
        from components.distillation.student import check_student
        from components.distillation.train import DocumentSide, distillation_data, train_student
        from components.index.search import load_index, vectors_of
        from components.index.shards import read_vectors

        space_id = inputs["index"].space_id
        index = load_index(inputs["index"].path, space_id)
        tower = inputs["query_tower"].path if "query_tower" in inputs else None
        check_student(config.distillation, index.dimension, tower)
        dataset, targets = load_dataset(inputs["dataset"].path), inputs["targets"].path
        stored = None if "vectors" in inputs else vectors_of(index, dataset.documents["doc_id"].tolist())
        unit = read_vectors(inputs["vectors"]).vectors if stored is None else stored
        documents = DocumentSide(unit, space_id, lambda vectors, k: index.search(vectors, k)[1])
        data = distillation_data(dataset, targets, documents, config.distillation, tower, mixed_noise)
        return train_student(data, config.distillation, {role: a.digest for role, a in inputs.items()}, folder)

    settings = {**config.distillation.model_dump(), **_folders(config.distillation.student)}
    return Step("distil_query_tower", make, inputs, settings, resumes=("checkpoint.pt",))


def evaluation_step(config: RetrainConfig, inputs: dict[str, Any]) -> Step:
    """Measure BM25, the untrained encoders, teacher and student. `inputs` as `evaluate_release` has them."""

    def make(folder: Path) -> EvalReport:
        from components.evaluation.systems import evaluate_release

        return evaluate_release(inputs, config.distillation, config.evaluation, folder)

    settings = {**config.evaluation.model_dump(), **untrained_key(config.distillation)}
    return Step("evaluate", make, inputs, settings)


def untrained_key(distillation: DistillationConfig) -> dict[str, Any]:
    """What the student's encoder before training depends on, which is no artifact."""
    settings = distillation.model_dump(include={"student", "revision", "form", "layers", "prune_to", "query_prompt", "pooling"})
    return {**settings, **_folders(distillation.student)}


def typed(artifact: Artifact, kind: type[Any]) -> Any:
    """`artifact` as the artifact type `kind`, which its manifest has to name."""
    return kind.model_validate(artifact.model_dump())
