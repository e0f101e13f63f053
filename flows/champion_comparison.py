"""Evidence for the reviewer: the comparison of a candidate with the champion, and the report that is kept with the candidate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.artifacts import Artifact, open_artifact, read_manifest
from components.errors import ScalingNoteError
from components.release.baseline import Baseline
from components.release.champion import release_model
from components.release.manifest import load_release
from components.release.marks import override_of
from components.tracking import registry
from components.tracking.promotion_records import read_records
from flows.config import RetrainConfig
from flows.recorder import Recorder
from flows.runner import Step

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.champion_comparison import Contender, Contest
    from components.evidence.dossier import Compared, Dossier, Making, StepCost
    from components.release.manifest import LineageNode, ReleaseManifest
    from components.release.training_noise import TrainingNoise
    from components.serving.retriever import Retriever
    from flows.parts import Parts

REPLAYED = 1000  # queries of the log, the newest, that both releases answer
_UNCOMPARED = (
    "When the champion can be opened again, run the same command: finished steps come from the cache. Or a reviewer decides without it."
)
_MEASURED = ("split", "depth", "latency_queries", "throughput_batch", "speed_precision", "bootstrap_samples", "seed", "query_groups")


class Outcome(NamedTuple):
    """The comparison with the champion, or in a sentence why there is none."""

    artifact: Artifact | None
    missing: str = ""


def compare_with_champion(config: RetrainConfig, recorder: Recorder, parts: Parts, baseline: Baseline | None) -> Outcome:
    """Ask candidate and champion the same queries in one run. A champion that cannot be opened is no reason to build no candidate."""
    if baseline is None:
        return Outcome(None, "This is a first release: there is no champion to compare with.")
    if baseline.lost:
        return Outcome(None, f"{baseline.lost} {_UNCOMPARED}")
    try:
        return Outcome(recorder.run(_comparison_step(config, parts, baseline)))
    except ScalingNoteError as error:
        return Outcome(None, f"The comparison with release/{baseline.version} failed: {error} {_UNCOMPARED}")


def _comparison_step(config: RetrainConfig, parts: Parts, baseline: Baseline) -> Step:
    """Queries that are logged later do not make a finished comparison anew: the same parts stay the same candidate."""
    champion = open_artifact(registry.artifact_folder(release_model(config.name), baseline.version))
    inputs: dict[str, Artifact] = {**_answering(parts), "champion": champion}
    version = baseline.version

    def make(folder: Path) -> Artifact:
        from components.evaluation.champion_comparison import hold_contest

        parents = {role: artifact.digest for role, artifact in _answering(parts).items()}
        return hold_contest(_contest(config, parts, version), config.evaluation, parents, folder)

    settings = {**config.evaluation.model_dump(include=set(_MEASURED)), "baseline_version": version}
    return Step("compare_with_champion", make, inputs, settings)


def _answering(parts: Parts) -> dict[str, Artifact]:
    """The parts of a candidate that answer queries, and the data it is measured on."""
    return {"dataset": parts.dataset, "query_encoder": parts.query_encoder, "index": parts.index}


def _contest(config: RetrainConfig, parts: Parts, version: int) -> Contest:
    from components.data.dataset import load_dataset
    from components.evaluation.champion_comparison import Contest
    from components.evaluation.summarize import judged_split
    from components.evaluation.units import query_units
    from components.serving.loader import open_release, registry_folder

    opened = open_release(config.name, f"release/{version}")
    pins = opened.manifest.pins
    dataset = load_dataset(parts.dataset.path)
    source, replayed = replayed_queries(config.name, dataset)
    judged = judged_split(dataset, config.evaluation.split)
    return Contest(
        candidate=_contender(open_candidate(config, parts), parts.query_encoder.path, parts.index.path),
        champion=_contender(opened.retriever, registry_folder(pins.query_encoder), registry_folder(pins.index)),
        baseline_version=version,
        judged=judged,
        replayed=replayed,
        source=source,
        units=query_units(judged, dataset, config.evaluation.query_groups),
    )


def replayed_queries(name: str, dataset: Dataset) -> tuple[str, Sequence[str]]:
    """Where the queries without judgements come from, and the newest or first of them: the log of answers, else the data set."""
    from components.evaluation.comparison import LOGGED, UNLABELLED
    from components.serving.answers import logged_queries

    if logged := logged_queries(name, REPLAYED):
        return LOGGED, logged
    return UNLABELLED, [str(text) for text in dataset.unlabelled["text"].head(REPLAYED)]


def open_candidate(config: RetrainConfig, parts: Parts) -> Retriever:
    """Query encoder and index of the candidate, every file verified."""
    from components.distillation.student import load_student
    from components.serving.retriever import Retriever

    encoder = load_student(parts.query_encoder.path)
    return Retriever.open(encoder, parts.query_encoder.path, parts.index.path, config.index.probe_tolerance)


def _contender(retriever: Retriever, encoder_folder: Path, index_folder: Path) -> Contender:
    from components.evaluation.champion_comparison import Contender
    from components.evaluation.rankers import DenseRanker
    from components.index.rows import read_titles

    sizes: dict[str, Any] = {"index": bytes_of(index_folder), "encoder": bytes_of(encoder_folder), "documents": len(retriever.index)}
    return Contender(DenseRanker(retriever.encoder, retriever.index), read_titles(index_folder, retriever.index.rows), sizes)


def bytes_of(folder: Path) -> int:
    """Bytes of an artifact's files."""
    return sum(entry.bytes for entry in read_manifest(folder).files.values())


def dossier_of(
    parts: Parts,
    recorder: Recorder,
    manifest: ReleaseManifest,
    baseline: Baseline | None,
    outcome: Outcome,
    noise: TrainingNoise | None = None,
) -> Dossier:
    """All that report and description are made from."""
    from components.data.validation import load_report
    from components.evaluation.report import load_evaluation
    from components.evidence.dossier import Champion, Dossier

    champion = None
    if baseline and baseline.evaluation is not None:
        released = load_release(registry.artifact_folder(release_model(manifest.name), baseline.version))
        champion = Champion(baseline.version, released, baseline.evaluation, override_of(read_records(manifest.name), baseline.version))
    return Dossier(
        manifest=manifest,
        evaluation=load_evaluation(parts.evaluation.path),
        validation=load_report(parts.validation),
        champion=champion,
        compared=_compared(outcome),
        making=_making(parts, recorder),
        notes=parts.notes,
        noise=noise,
    )


def _compared(outcome: Outcome) -> Compared:
    from components.evaluation.comparison import load_comparison, load_tables
    from components.evidence.dossier import Compared

    if outcome.artifact is None:
        return Compared(missing=outcome.missing)
    return Compared(load_comparison(outcome.artifact.path), load_tables(outcome.artifact.path))


def _making(parts: Parts, recorder: Recorder) -> Making:
    from components.distillation.train import training_epochs
    from components.evidence.dossier import Making
    from components.towers.train import losses_of

    losses, epochs = losses_of(parts.query_tower.path), training_epochs(parts.query_encoder.path)
    timed = {node.name for node in recorder.lineage if node.digest in recorder.timings}
    documents = parts.index.counts.get("documents")
    return Making(
        tower_losses=tuple(losses) if losses else None,
        student_epochs=tuple(epochs) if epochs else None,
        costs=tuple(_cost(node, recorder) for node in recorder.lineage if node.digest in recorder.timings),
        adopted=tuple(dict.fromkeys(node.name for node in recorder.lineage if node.name not in timed)),
        sizes={
            "index": bytes_of(parts.index.path),
            "encoder": bytes_of(parts.query_encoder.path),
            **({"documents": documents} if documents else {}),
        },
    )


def cost_of(making: Making) -> dict[str, float]:
    """Seconds of all steps, whenever they were made, and bytes of encoder and index, as far as they are known."""
    seconds = [cost.seconds for cost in making.costs if cost.seconds is not None]
    sizes = {f"{part}_bytes": float(making.sizes[part]) for part in ("encoder", "index") if part in making.sizes}
    return {**({"seconds": sum(seconds)} if seconds else {}), **sizes}


def _cost(node: LineageNode, recorder: Recorder) -> StepCost:
    from components.evidence.dossier import StepCost

    timing = recorder.timings[node.digest]
    return StepCost(node.name, timing.seconds, timing.attempts) if timing else StepCost(node.name, None)
