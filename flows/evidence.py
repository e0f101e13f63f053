"""Evidence for the reviewer: the comparison of a candidate with the champion, and the report that is kept with the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.artifacts import Artifact, EncoderArtifact, IndexArtifact, open_artifact, read_manifest
from components.errors import ScalingNoteError
from components.promotion.baseline import Baseline
from components.promotion.standing import release_model
from components.tracking import registry
from flows.config import RetrainConfig
from flows.recorder import Recorder
from flows.steps import Step

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.contest import Contender, Contest
    from components.serving.retriever import Retriever

REPLAYED = 1000  # queries of the log, the newest, that both releases answer
_MEASURED = ("split", "depth", "latency_queries", "throughput_batch", "bootstrap_samples", "seed")


class Compared(NamedTuple):
    """The comparison with the champion, or in a sentence why there is none."""

    artifact: Artifact | None
    missing: str = ""


@dataclass(frozen=True)
class Candidate:
    """The parts of a candidate that answer queries, and the data it is measured on."""

    dataset: Artifact
    query_encoder: EncoderArtifact
    index: IndexArtifact

    def inputs(self) -> dict[str, Artifact]:
        return {"dataset": self.dataset, "query_encoder": self.query_encoder, "index": self.index}


def compare_with_champion(config: RetrainConfig, recorder: Recorder, candidate: Candidate, baseline: Baseline | None) -> Compared:
    """Ask candidate and champion the same queries in one run. A champion that cannot be opened is no reason to build no candidate."""
    if baseline is None:
        return Compared(None, "This is a first release: there is no champion to compare with.")
    try:
        return Compared(recorder.run(_comparison_step(config, candidate, baseline)))
    except ScalingNoteError as error:
        return Compared(None, f"The comparison with release/{baseline.version} failed: {error}")


def _comparison_step(config: RetrainConfig, candidate: Candidate, baseline: Baseline) -> Step:
    """Queries that are logged later do not make a finished comparison anew: the same parts stay the same candidate."""
    champion = open_artifact(registry.artifact_folder(release_model(config.name), baseline.version))
    inputs: dict[str, Artifact] = {**candidate.inputs(), "champion": champion}

    def make(folder: Path) -> Artifact:
        from components.evaluation.contest import hold_contest

        parents = {role: artifact.digest for role, artifact in candidate.inputs().items()}
        return hold_contest(_contest(config, candidate, baseline.version), config.evaluation, parents, folder)

    settings = {**config.evaluation.model_dump(include=set(_MEASURED)), "baseline_version": baseline.version}
    return Step("compare_with_champion", ("evaluation", "serving", "index", "distillation", "towers"), make, inputs, settings)


def _contest(config: RetrainConfig, candidate: Candidate, version: int) -> Contest:
    from components.data.dataset import load_dataset
    from components.evaluation.contest import Contest
    from components.evaluation.summarize import judged_split
    from components.serving.loader import open_release, registry_folder

    opened = open_release(config.name, f"release/{version}")
    pins = opened.manifest.pins
    dataset = load_dataset(candidate.dataset.path)
    source, replayed = replayed_queries(config.name, dataset)
    return Contest(
        candidate=_contender(open_candidate(config, candidate), candidate.query_encoder.path, candidate.index.path),
        champion=_contender(opened.retriever, registry_folder(pins.query_encoder), registry_folder(pins.index)),
        baseline_version=version,
        judged=judged_split(dataset, config.evaluation.split),
        replayed=replayed,
        source=source,
    )


def replayed_queries(name: str, dataset: Dataset) -> tuple[str, Sequence[str]]:
    """Where the queries without judgements come from, and the newest or first of them: the log of answers, else the data set."""
    from components.evaluation.comparison import LOGGED, UNLABELLED
    from components.serving.answers import logged_queries

    if logged := logged_queries(name, REPLAYED):
        return LOGGED, logged
    return UNLABELLED, [str(text) for text in dataset.unlabelled["text"].head(REPLAYED)]


def open_candidate(config: RetrainConfig, candidate: Candidate) -> Retriever:
    """Query encoder and index of the candidate, every file verified."""
    from components.distillation.student import load_student
    from components.serving.retriever import Retriever

    encoder = load_student(candidate.query_encoder.path)
    return Retriever.open(encoder, candidate.query_encoder.path, candidate.index.path, config.index.probe_tolerance)


def _contender(retriever: Retriever, encoder_folder: Path, index_folder: Path) -> Contender:
    from components.evaluation.contest import Contender
    from components.evaluation.rankers import DenseRanker
    from components.index.rows import read_titles

    sizes: dict[str, Any] = {"index": bytes_of(index_folder), "encoder": bytes_of(encoder_folder), "documents": len(retriever.index)}
    return Contender(DenseRanker(retriever.encoder, retriever.index), read_titles(index_folder, retriever.index.rows), sizes)


def bytes_of(folder: Path) -> int:
    """Bytes of an artifact's files."""
    return sum(entry.bytes for entry in read_manifest(folder).files.values())
