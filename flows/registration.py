"""From finished parts to a candidate: decide, register every part, write the manifest that pins them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact
from components.evaluation.report import load_evaluation
from components.evaluation.table import render_shift
from components.promotion.base_models import ENCODERS, base_models_of
from components.promotion.baseline import Baseline, comparison_for
from components.promotion.facts import Facts, gather_facts, write_facts
from components.promotion.gates import Evidence, GateDecision, decide
from components.promotion.lineage_gaps import Origins
from components.promotion.release import (
    DatasetPin,
    Pin,
    Pins,
    ReleaseManifest,
    ReleaseType,
    evaluation_pin,
    write_candidate,
)
from components.promotion.standing import release_model
from components.tracking.registry import RegisteredVersion, ensure_model, find_version, set_description
from flows.config import RetrainConfig
from flows.recorder import Recorder
from flows.steps import Step


@dataclass(frozen=True)
class Parts:
    """All that a release is made of. `notes` are lines about a refresh for the reviewer, as plain text."""

    dataset: DatasetArtifact
    validation: Artifact
    query_tower: EncoderArtifact
    document_tower: EncoderArtifact
    query_encoder: EncoderArtifact
    index: IndexArtifact
    evaluation: Artifact
    release_type: ReleaseType = "full"
    notes: tuple[str, ...] = ()

    @property
    def encoders(self) -> dict[str, Path]:
        """Role -> folder of the encoders."""
        return {role: getattr(self, role).path for role in ENCODERS}

    @property
    def pinned(self) -> dict[str, Artifact]:
        """Role -> artifact of all that a release pins."""
        return {role: getattr(self, role) for role in Pins.model_fields}


_Decided = tuple[GateDecision, Baseline | None, Facts]


def register_candidate(config: RetrainConfig, recorder: Recorder, parts: Parts) -> dict[str, Any]:
    """Decide, register, and return what comes next. With nothing changed it finds the candidate there is."""
    versions = _register_parts(recorder, parts)
    baseline = comparison_for(config.name, {role: version.digest for role, version in versions.items()})
    evaluation = load_evaluation(parts.evaluation.path)
    facts = gather_facts(parts.validation, _origins(config, recorder, parts), parts.pinned)
    decision = decide(Evidence(evaluation, baseline.evaluation if baseline else None, facts=facts), config.policy)
    step = _candidate_step(config, recorder, parts, versions, (decision, baseline, facts))
    candidate = recorder.run(step)
    # The empty release model has to be there before a reviewer opens the first candidate: the dialog offers existing models only.
    ensure_model(release_model(config.name))
    registered = recorder.register("candidate", candidate, versions, parts.dataset.digest)
    notes = "\n".join([*parts.notes, render_shift(evaluation.summary)]).strip()
    set_description(registered.name, registered.version, describe(decision, registered, notes))
    return {
        "name": config.name,
        "release_type": parts.release_type,
        "candidate": f"candidate/{registered.version}",
        "version": registered.version,
        "digest": candidate.digest,
        "folder": str(candidate.path),
        "verdict": decision.verdict,
        "first_release": decision.first_release,
        "gates": [gate.model_dump() for gate in decision.gates],
        "cached": recorder.all_cached,
        "mlflow_run_id": recorder.run_id,
    }


def _register_parts(recorder: Recorder, parts: Parts) -> dict[str, RegisteredVersion]:
    data = parts.dataset.digest
    document = recorder.register("document-tower", parts.document_tower, {}, data)
    query = recorder.register("query-tower", parts.query_tower, {"document_tower": document}, data)
    index = recorder.register("index", parts.index, {"document_tower": document, **_former_index(recorder, parts.index)}, data)
    student = recorder.register("query-encoder", parts.query_encoder, {"query_tower": query, "index": index}, data)
    return {"query_tower": query, "document_tower": document, "query_encoder": student, "index": index}


def _former_index(recorder: Recorder, index: IndexArtifact) -> dict[str, RegisteredVersion]:
    """The registered index that a refreshed one was made from."""
    former = find_version(f"{recorder.name}-index", index.parents["index"]) if "index" in index.parents else None
    return {"index": former} if former else {}


def _candidate_step(
    config: RetrainConfig,
    recorder: Recorder,
    parts: Parts,
    versions: dict[str, RegisteredVersion],
    decided: _Decided,
) -> Step:
    decision, baseline, facts = decided
    settings = {
        "release_type": parts.release_type,
        "config": config.model_dump(mode="json"),
        "pins": {role: version.model_dump() for role, version in versions.items()},
        "decision": decision.model_dump(mode="json"),
        "baseline": baseline.version if baseline else None,
    }

    def make(folder: Path) -> Artifact:
        manifest = _manifest(config, recorder, parts, versions, decided)
        write_facts(folder, facts)
        return write_candidate(manifest, parts.evaluation.path, parts.validation.path, folder)

    inputs = {"evaluation": parts.evaluation, "validation": parts.validation, "query_encoder": parts.query_encoder, "index": parts.index}
    return Step("write_candidate", ("promotion", "serving"), make, inputs, settings)


def _manifest(
    config: RetrainConfig,
    recorder: Recorder,
    parts: Parts,
    versions: dict[str, RegisteredVersion],
    decided: _Decided,
) -> ReleaseManifest:
    from components.data.dataset import load_dataset
    from components.distillation.student import load_student
    from components.serving.retriever import Retriever
    from components.serving.smoke import record_smoke

    decision, baseline, _ = decided
    encoder = load_student(parts.query_encoder.path)
    retriever = Retriever.open(encoder, parts.query_encoder.path, parts.index.path, config.index.probe_tolerance)
    queries = load_dataset(parts.dataset.path).judged_queries(config.evaluation.split)["text"].tolist()
    return ReleaseManifest(
        name=config.name,
        release_type=parts.release_type,
        space_id=parts.index.space_id,
        pins=Pins(**{role: Pin(model=v.name, version=v.version, digest=v.digest) for role, v in versions.items()}),
        dataset=_dataset_pin(parts),
        evaluation=evaluation_pin(load_evaluation(parts.evaluation.path).summary, parts.evaluation.digest),
        decision=decision,
        baseline_version=baseline.version if baseline else None,
        smoke=record_smoke(retriever, queries),
        provenance=recorder.origin,
        config=config.model_dump(mode="json"),
        lineage=tuple(recorder.lineage),
        flow_run_id=recorder.run_id,
        base_models=base_models_of(parts.encoders),
    )


def _origins(config: RetrainConfig, recorder: Recorder, parts: Parts) -> Origins:
    """Where all of the release came from, as its manifest will say."""
    return Origins(
        lineage=tuple(recorder.lineage),
        pins={role: artifact.digest for role, artifact in parts.pinned.items()},
        dataset=_dataset_pin(parts),
        evaluation=parts.evaluation.digest,
        provenance=recorder.origin,
        config=config.model_dump(mode="json"),
        flow_run_id=recorder.run_id,
        base_models=base_models_of(parts.encoders),
    )


def _dataset_pin(parts: Parts) -> DatasetPin:
    from components.data.validation import load_report

    contracts = {contract.name: contract.version for contract in load_report(parts.validation).contracts}
    attributes = parts.dataset.attributes
    return DatasetPin(
        name=str(attributes["name"]), digest=parts.dataset.digest, source_digest=str(attributes["source_digest"]), contracts=contracts
    )


def describe(decision: GateDecision, registered: RegisteredVersion, shift: str = "") -> str:
    """Markdown for the candidate's page: verdict, gates with their reasons, what the reviewer does next.

    `shift` is plain text about what was refreshed, retention off the training distribution and the spread of the query vectors.
    """
    rows = [f"| {gate.name} | {gate.status} | {gate.reason} |" for gate in decision.gates]
    first = " This is a first release: there is no champion to compare with, a person has to decide." if decision.first_release else ""
    release = registered.name.removesuffix("-candidate") + "-release"
    lines = [
        f"**Verdict: {decision.verdict}.**{first}",
        "",
        "| gate | status | reason |",
        "|---|---|---|",
        *rows,
        *(["", "```", shift, "```"] if shift else []),
        "",
        f"To approve: *Promote model* into `{release}`. The evidence lies in the artifacts of this version.",
    ]
    return "\n".join(lines)
