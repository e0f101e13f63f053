"""What the cells of a study share: its configuration, the steps of a release for any variation of it, and measuring steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact, VectorShards, open_artifact
from components.distillation.train import StudentInputs
from components.errors import CollapseError, ConfigError
from components.settings import LARGEST_SEED, StepConfig
from components.towers.base_models import pinned_revision
from flows.config import RetrainConfig, did_you_mean, explain
from flows.recorder import Recorder
from flows.retrain import require_usable
from flows.runner import Step
from flows.steps import (
    at_commits,
    checked_validation,
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

if TYPE_CHECKING:
    from components.distillation.query_sources import Noise
    from components.evaluation.rankers import Ranker


NoiseKind = Literal["typos", "dropped_words", "upper_case", "lower_case", "verbosity"]
Rate = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Layers = Annotated[int, Field(ge=1)]
Documents = Annotated[int, Field(ge=200, le=10**12)]
LearningRate = Annotated[float, Field(gt=0, le=1)]


class StudyConfig(StepConfig):
    """What the studies vary and measure; each reads the fields it needs."""

    layers: tuple[Layers, ...] = Field(
        (1, 2, 4, 6), description="retention, worth: numbers of layers kept; those the encoder does not have are left out"
    )
    static: bool = Field(True, description="retention, worth: also the static student, which has no transformer")
    seeds: tuple[Seed, ...] = Field(
        (),
        description="Seeds that everything a study compares is trained with; empty: that of the section and the two after it. With one "
        "seed nothing is claimed",
    )
    noise: dict[NoiseKind, tuple[Rate, ...]] = Field(
        {"typos": (0.1, 0.3), "dropped_words": (0.1, 0.3), "upper_case": (1.0,), "lower_case": (1.0,), "verbosity": (1.0,)},
        description="robustness: typos, dropped_words, upper_case, lower_case, verbosity, each with the shares from 0 to 1 of the words "
        "(for verbosity of the queries) that change",
    )
    noise_seed: int = Field(13, ge=0, description="robustness: seed of the noise")
    foreign_documents: str = Field("", description="robustness: data folder whose documents are mixed into the index; empty for none")
    max_foreign_documents: int = Field(10_000, ge=50, description="robustness: at most this many of them")
    watts: float = Field(65.0, gt=0, le=100_000, description="cost_benefit: power that the machine draws under load, in watts")
    price_per_kwh: float = Field(0.3, ge=0, le=1000, description="cost_benefit: price of a kilowatt-hour of electricity")
    price_per_hour: float = Field(0.1, ge=0, le=100_000, description="cost_benefit: price of the machine for an hour, power apart")
    small_encoder: str = Field(
        "", description="baselines, worth: encoder of the untrained, symmetric and end-to-end systems; empty: the student's"
    )
    small_revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of study.small_encoder from a hub; null: its main branch"
    )
    small_learning_rates: tuple[LearningRate, ...] = Field(
        (1e-4, 3e-4), min_length=1, description="baselines, worth: peak learning rates of the small encoders; the best on dev counts"
    )
    pair_passes: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="baselines, worth: passes of the symmetric and end-to-end pairs over train judgements and titles; null: as many as the "
        "student's refinement and the companion's training take",
    )
    worth_margin: float | None = Field(
        None, gt=0, le=0.5, description="worth: largest loss against the best that is accepted for less cost; null: policy.margin"
    )
    worth_queries: int = Field(
        1_000_000,
        ge=1,
        le=10**12,
        description="worth: queries that a system answers before it is built anew; their time is a part of its cost",
    )
    scaling_models: tuple[str, ...] = Field(
        (),
        description="scaling_law: decoders of one family, such as decoder-128x4 or gemma3-270m@6; empty: towers.base_model cut to layers",
    )
    scaling_layers: tuple[int, ...] = Field(
        (1, 2, 4, 8), description="scaling_law: layers kept of towers.base_model beside the whole one, when scaling_models is empty"
    )
    scaling_shares: tuple[float, ...] = Field(
        (0.25, 0.5, 1.0), min_length=1, description="scaling_law: shares of the training pairs, above 0 up to 1"
    )
    scaling_negatives: int = Field(256, ge=1, le=100_000, description="scaling_law: random negatives of the contrastive entropy")
    scaling_refits: int = Field(200, ge=20, le=10_000, description="scaling_law: resamples behind the intervals of a fit")
    growth_sizes: tuple[Documents, ...] = Field(
        (10_000, 30_000, 100_000, 200_000, 400_000, 1_000_000),
        min_length=1,
        description="corpus_growth: documents in each measured index; beyond the real ones they are synthetic",
    )
    growth_targets: tuple[Documents, ...] = Field(
        (100_000_000, 1_000_000_000), description="corpus_growth: documents that the measurements are extrapolated to"
    )
    growth_queries: int = Field(500, ge=20, le=100_000, description="corpus_growth: at most this many judged queries are asked")
    currency: str = Field("USD", pattern=r"^[A-Za-z\p{Sc}]{1,8}$", description="cost_benefit: currency of the prices, as EUR or $")

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands there twice, which would count one training as two; name different seeds")
        return seeds

    @model_validator(mode="after")
    def _of_an_encoder(self) -> StudyConfig:
        if self.small_revision and not self.small_encoder:
            raise ValueError("small_revision is that of small_encoder, which is empty; the student's own is distillation.revision")
        return self


class StudySettings(RetrainConfig):
    """A retraining's configuration with the section `study`."""

    study: StudyConfig = Field(default_factory=StudyConfig, description="What the studies vary")


# --- What the cells of a study share: its configuration, the steps of a release for any variation of it, and measuring steps.


class Context:
    """Runs every step once and records it in the study's run. Where a method takes `config`, None stands for the study's own."""

    def __init__(self, config: StudySettings, recorder: Recorder, wanted: Sequence[str] = ()) -> None:
        """`wanted` are the cells that the user asked for; none: all."""
        self.config, self.recorder, self._wanted = at_commits(config), recorder, list(wanted)
        self._done: dict[Path, Artifact | CollapseError] = {}
        self._made_of: dict[str, list[Artifact]] = {}  # the towers of a stage 1 by their digest, and what else its steps made

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Those of the study's `names` that the user asked for, in their order; raises ConfigError for one that does not exist."""
        for name in self._wanted:
            if name not in names:
                raise ConfigError(f"Unknown cell '{name}'{did_you_mean(name, names) or '.'} Cells: {', '.join(names)}.")
        return [name for name in names if name in self._wanted or not self._wanted]

    def changed(self, **sections: Mapping[str, Any]) -> StudySettings:
        """The study's configuration with other fields: changed(distillation={"epochs": 1}). Wrong fields are a ConfigError."""
        values = self.config.model_dump()
        for section, fields in sections.items():
            # The commit of a model says nothing about another one.
            moved = {"revision": None} if {"base_model", "student"} & set(fields) else {}
            values[section] = {**values[section], **moved, **fields}
        try:
            return at_commits(StudySettings.model_validate(values))
        except ValidationError as error:
            raise ConfigError(explain(error, StudySettings, "as the study changes it")) from None

    def run(self, step: Step) -> Artifact:
        """The step's artifact: found finished or made, and recorded, once in this study; one that collapsed is not tried twice."""
        if step.folder not in self._done:
            try:
                self._done[step.folder] = self.recorder.run(step, metrics_of)
            except CollapseError as error:
                self._done[step.folder] = error
        done = self._done[step.folder]
        if isinstance(done, CollapseError):
            raise done
        return done

    @cached_property
    def dataset(self) -> DatasetArtifact:
        """The data, held against its contracts and against what the study's configuration needs of it."""
        dataset: DatasetArtifact = typed(self.run(snapshot_step(self.config)), DatasetArtifact)
        self.run(checked_validation(self.config, dataset))
        require_usable(self.config, dataset)
        return dataset

    def check(self, config: StudySettings) -> None:
        """Refuse a configuration that would only fail after a training (see flows.retrain.require_usable)."""
        require_usable(config, self.dataset)

    def pin_small_encoder(self) -> None:
        """Take the encoder of the baselines at the commit that its name stands for now, as all other models are."""
        study = self.config.study
        if study.small_encoder:
            found = study.model_copy(update={"small_revision": pinned_revision(study.small_encoder, study.small_revision)})
            self.config = self.config.model_copy(update={"study": found})

    def require_training(self, config: StudySettings) -> None:
        """Raise ConfigError where a study varies the training of towers that are taken as they are: no cell would differ from another."""
        if config.towers.training == "none":
            raise ConfigError(
                f"This study varies the training of the towers, and '{config.towers.base_model}' is taken as it is (towers.training none). "
                "Set towers.training to lora or full, with a base model that has weights."
            )

    def stage_one(self, config: StudySettings | None = None) -> Artifact:
        """Both towers as the one artifact that their training makes."""
        config = config or self.config
        self.generated(config)  # a generator that cannot write is found before the towers are trained
        made: list[Artifact] = []

        def run(step: Step) -> Artifact:
            made.append(self.run(step))
            return made[-1]

        towers, _ = stage_one(config, self.dataset, run)
        self._made_of[towers.digest] = made
        return towers

    def generated(self, config: StudySettings | None = None) -> Artifact | None:
        """The queries that a decoder writes for documents; None when none are asked for."""
        config = config or self.config
        return self.run(generation_step(config, self.dataset)) if config.distillation.generated else None

    def towers(self, config: StudySettings | None = None) -> tuple[EncoderArtifact, EncoderArtifact]:
        """Query tower (the teacher) and document tower."""
        whole = self.stage_one(config)
        query, document = (typed(open_artifact(whole.path / role), EncoderArtifact) for role in ("query_tower", "document_tower"))
        return query, document

    def vectors(self, config: StudySettings | None = None) -> VectorShards:
        """The corpus under the document tower."""
        config = config or self.config
        vectors: VectorShards = typed(self.run(vectors_step(config, self.dataset, self.towers(config)[1])), VectorShards)
        return vectors

    def index(self, config: StudySettings | None = None) -> IndexArtifact:
        """The index over those vectors, tuned with the teacher's dev queries when it is approximate."""
        config = config or self.config
        vectors = self.vectors(config)
        targets = self.targets(config) if needs_queries(config, vectors) else None
        index: IndexArtifact = typed(self.run(index_step(config, vectors, self.dataset, targets)), IndexArtifact)
        return index

    def targets(self, config: StudySettings | None = None) -> Artifact:
        """The teacher's query vectors, of generated queries too if they are asked for."""
        config = config or self.config
        query, document = self.towers(config)
        return self.run(targets_step(config, self.dataset, query, self.generated(config), document))

    def student(self, config: StudySettings | None = None) -> EncoderArtifact:
        """The student of this configuration, on the shared teacher as long as no section but the distillation differs."""
        config = config or self.config
        query, _ = self.towers(config)
        inputs = StudentInputs(self.dataset, self.targets(config), self.index(config), query, self.vectors(config))
        return typed(self.run(student_step(config, inputs)), EncoderArtifact)

    def timing(self, artifact: Artifact) -> dict[str, float] | None:
        """Seconds and attempts of the making of an artifact that this study has run or found; None when they were not recorded.

        Of towers with a companion those of both trainings together.
        """
        found = [self.recorder.timings.get(each.digest) for each in self._made_of.get(artifact.digest, [artifact])]
        known = [timing for timing in found if timing]
        if len(known) < len(found):
            return None
        return {"seconds": sum(timing.seconds for timing in known), "attempts": max(timing.attempts for timing in known)}

    def scores(self, system: str, encoder: EncoderArtifact, index: IndexArtifact, noise: Noise | None = None) -> Artifact:
        """Metrics per query of a tower or student on an index, for every split of the evaluation (see components.studies.scores)."""
        from components.evaluation.systems import open_dense

        return self.scores_of(system, partial(open_dense, encoder, index), {"encoder": encoder, "index": index}, noise=noise)

    def scores_of(
        self,
        system: str,
        opener: Callable[[], Ranker],
        inputs: Mapping[str, Artifact],
        settings: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> Artifact:
        """The same for any ranker, which `opener` opens; `inputs` and `settings` must hold all that determines it."""
        from components.studies.scores import write_scores

        config, everything = self.config.evaluation, {"dataset": self.dataset, **inputs}
        asked = config.model_dump(include={"split", "extra_splits", "depth", "query_groups"})
        noisy = {"noise": noise._asdict()} if noise else {}
        make = partial(write_scores, opener, everything, config, noise=noise)
        return self.run(Step("study_scores", make, everything, {"system": system, **asked, **noisy, **(settings or {})}))

    def rankings_of(
        self, system: str, opener: Callable[[], Ranker], inputs: Mapping[str, Artifact], settings: Mapping[str, Any] | None = None
    ) -> Artifact:
        """What a ranker finds for the judged queries, and for those that fusions are chosen on; arguments as of `scores_of`."""
        from components.studies.scores import write_rankings

        config, everything = self.config.evaluation, {"dataset": self.dataset, **inputs}
        asked = config.model_dump(include={"split", "extra_splits", "depth"})
        make = partial(write_rankings, opener, everything, config)
        return self.run(Step("study_rankings", make, everything, {"system": system, **asked, **(settings or {})}))

    def scores_of_found(self, system: str, found: Mapping[str, Artifact]) -> Artifact:
        """Metrics per query of `rankings`, an artifact of `rankings_of`, fused with those of `lexical` where it is given."""
        from components.studies.scores import write_found

        config, inputs = self.config.evaluation, {"dataset": self.dataset, **found}
        asked = config.model_dump(include={"split", "extra_splits", "depth", "query_groups"})
        return self.run(Step("study_found_scores", partial(write_found, inputs, config), inputs, {"system": system, **asked}))

    def measure(
        self,
        name: str,
        numbers: Callable[[Path], Mapping[str, Any]],
        inputs: Mapping[str, Artifact],
        settings: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Any other measurement: `numbers` may write files into the step's folder and returns what is kept as result.json."""
        from components.studies.scores import write_result

        return self.run(Step(f"study_{name}", partial(write_result, numbers, inputs), inputs, settings or {}))


def metrics_of(artifact: Artifact) -> Mapping[str, float]:
    """The numbers of a study's measurement, for its run in MLflow; none for other artifacts."""
    from components.studies.scores import flat_numbers

    return flat_numbers(artifact) if artifact.kind == "study" else {}
