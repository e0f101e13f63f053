"""What the cells of a study share: its configuration, the steps of a release for any variation of it, and measuring steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact, VectorShards, open_artifact
from components.errors import CollapseError, ConfigError
from flows.config_errors import did_you_mean, explain
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
    student_step,
    targets_step,
    towers_step,
    typed,
    vectors_step,
)
from flows.studies.config import StudySettings

if TYPE_CHECKING:
    from components.evaluation.rankers import Ranker
    from components.studies.query_noise import Noise


class Context:
    """Runs every step once and records it in the study's run. Where a method takes `config`, None stands for the study's own."""

    def __init__(self, config: StudySettings, recorder: Recorder, wanted: Sequence[str] = ()) -> None:
        """`wanted` are the cells that the user asked for; none: all."""
        self.config, self.recorder, self._wanted = at_commits(config), recorder, list(wanted)
        self._done: dict[Path, Artifact | CollapseError] = {}

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Those of the study's `names` that the user asked for, in their order; raises ConfigError for one that does not exist."""
        for name in self._wanted:
            if name not in names:
                raise ConfigError(f"Unknown cell '{name}'{did_you_mean(name, names) or '.'} Cells: {', '.join(names)}.")
        return [name for name in names if name in self._wanted or not self._wanted]

    def changed(self, **sections: Mapping[str, Any]) -> StudySettings:
        """The study's configuration with other fields: changed(distillation={"epochs": 1}). Fields are checked as in a file."""
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

    def stage_one(self, config: StudySettings | None = None) -> Artifact:
        """Both towers as the one artifact that their training makes."""
        config = config or self.config
        self.generated(config)  # a generator that cannot write is found before the towers are trained
        return self.run(towers_step(config, self.dataset))

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
        inputs = {
            "dataset": self.dataset,
            "query_tower": self.towers(config)[0],
            "targets": self.targets(config),
            "vectors": self.vectors(config),
            "index": self.index(config),
        }
        student: EncoderArtifact = typed(self.run(student_step(config, inputs)), EncoderArtifact)
        return student

    def timing(self, artifact: Artifact) -> dict[str, float] | None:
        """Seconds and attempts of the making of an artifact that this study has run or found; None when they were not recorded."""
        found = self.recorder.timings.get(artifact.digest)
        return asdict(found) if found else None

    def scores(self, system: str, encoder: EncoderArtifact, index: IndexArtifact, noise: Noise | None = None) -> Artifact:
        """Metrics per query of a tower or student on an index, for every split of the evaluation (see components.studies.scores)."""

        def ranker() -> Ranker:
            from components.evaluation.systems import open_dense

            return open_dense(encoder, index)

        return self.scores_of(system, ranker, {"encoder": encoder, "index": index}, noise=noise)

    def scores_of(
        self,
        system: str,
        ranker: Callable[[], Ranker],
        inputs: Mapping[str, Artifact],
        settings: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
    ) -> Artifact:
        """The same for any ranker; `inputs` and `settings` must hold all that determines it."""
        config = self.config.evaluation
        asked = config.model_dump(include={"split", "extra_splits", "depth", "query_groups"})
        measured = {"system": system, **asked}
        everything = {"dataset": self.dataset, **inputs}

        def make(folder: Path) -> Artifact:
            from components.studies.scores import write_scores

            return write_scores(ranker(), everything, config, folder, noise)

        noisy = {"noise": noise._asdict()} if noise else {}
        return self.run(Step("study_scores", make, everything, {**measured, **noisy, **(settings or {})}))

    def rankings_of(
        self, system: str, ranker: Callable[[], Ranker], inputs: Mapping[str, Artifact], settings: Mapping[str, Any] | None = None
    ) -> Artifact:
        """What a ranker finds for the judged queries, and for those that fusions are chosen on; arguments as of `scores_of`."""
        config = self.config.evaluation
        everything = {"dataset": self.dataset, **inputs}

        def make(folder: Path) -> Artifact:
            from components.studies.scores import write_rankings

            return write_rankings(ranker(), everything, config, folder)

        asked = config.model_dump(include={"split", "extra_splits", "depth"})
        return self.run(Step("study_rankings", make, everything, {"system": system, **asked, **(settings or {})}))

    def scores_of_found(self, system: str, found: Mapping[str, Artifact]) -> Artifact:
        """Metrics per query of `rankings`, an artifact of `rankings_of`, fused with those of `lexical` where it is given."""
        config, inputs = self.config.evaluation, {"dataset": self.dataset, **found}

        def make(folder: Path) -> Artifact:
            from components.studies.scores import write_found

            return write_found(inputs, config, folder)

        asked = config.model_dump(include={"split", "extra_splits", "depth", "query_groups"})
        return self.run(Step("study_found_scores", make, inputs, {"system": system, **asked}))

    def measure(
        self,
        name: str,
        numbers: Callable[[Path], Mapping[str, Any]],
        inputs: Mapping[str, Artifact],
        settings: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Any other measurement: `numbers` may write files into the step's folder and returns what is kept as result.json."""

        def make(folder: Path) -> Artifact:
            from components.studies.scores import write_result

            values = numbers(folder)
            return write_result(values, folder, {role: artifact.digest for role, artifact in inputs.items()})

        return self.run(Step(f"study_{name}", make, inputs, settings or {}))


def metrics_of(artifact: Artifact) -> Mapping[str, float]:
    """The numbers of a study's measurement, for its run in MLflow; none for other artifacts."""
    from components.studies.scores import flat_numbers

    return flat_numbers(artifact) if artifact.kind == "study" else {}
