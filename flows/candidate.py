"""From finished parts to a candidate: decide, register every part, write the manifest that pins them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.artifacts import Artifact, EncoderArtifact, IndexArtifact
from components.data.seen_queries import Seen, load_seen, seen_queries, write_seen
from components.evaluation.comparison import load_comparison, load_values
from components.evaluation.report import load_evaluation
from components.evidence.description import describe
from components.evidence.metrics import candidate_metrics, model_metrics
from components.evidence.report import write_report_page
from components.evidence.tables import evidence_tables
from components.gates.decide import Evidence, GateDecision, decide
from components.gates.facts import Facts, write_facts
from components.release.base_models import base_models_of
from components.release.baseline import Baseline, comparison_for
from components.release.champion import release_model
from components.release.completeness import Origins
from components.release.fact_finding import gather_facts
from components.release.manifest import DatasetPin, Pin, Pins, ReleaseManifest, evaluation_pin, load_release, write_candidate
from components.release.training_noise import find_noise, load_noise, write_noise
from components.signing.statements import sign_release
from components.tracking.links import evidence_links, run_link, version_link
from components.tracking.registry import (
    RegisteredVersion,
    ensure_model,
    find_version,
    log_version_metrics,
    mark_challenger,
    set_description,
)
from flows.champion_comparison import Outcome, compare_with_champion, cost_of, dossier_of, open_candidate
from flows.config import RetrainConfig
from flows.parts import Parts
from flows.recorder import Recorder
from flows.reporting import emit, mlflow_address, show_candidate, verdict_line
from flows.runner import Step


@dataclass(frozen=True)
class _Decided:
    """What was decided, and from what."""

    decision: GateDecision
    baseline: Baseline | None
    outcome: Outcome
    facts: Facts


def register_candidate(config: RetrainConfig, recorder: Recorder, parts: Parts) -> dict[str, Any]:
    """Decide, register, and return what comes next. With nothing changed it finds the candidate there is."""
    versions = _register_parts(recorder, parts)
    pins = {role: version.digest for role, version in versions.items()}
    baseline = comparison_for(config.name, pins, parts.evaluation.digest, config.policy)
    decided = _decide(config, recorder, parts, baseline)
    candidate = recorder.run(_candidate_step(config, recorder, parts, versions, decided))
    sign_release(candidate.path)  # also one that was found finished: it may have been made without a key, or killed before this line
    # The empty release model has to be there before a reviewer opens the first candidate: the dialog offers existing models only.
    ensure_model(release_model(config.name))
    registered = recorder.register("candidate", candidate, versions, parts.dataset.digest)
    dossier = dossier_of(parts, recorder, load_release(candidate.path), baseline, decided.outcome, load_noise(candidate.path))
    text = describe(dossier, evidence_links(registered.name, registered.version))
    set_description(registered.name, registered.version, text)
    recorder.show(candidate, candidate_metrics(dossier), text, evidence_tables(dossier))
    measured = model_metrics(dossier)
    for role, version in {**versions, "candidate": registered}.items():
        log_version_metrics(version, measured[role], parts.dataset)
    decision = decided.decision
    if decision.verdict == "pass":
        mark_challenger(registered)
    result = {
        "name": config.name,
        "release_type": parts.release_type,
        "candidate": f"candidate/{registered.version}",
        "version": registered.version,
        "digest": candidate.digest,
        "folder": str(candidate.path),
        "verdict": decision.verdict,
        "first_release": decision.first_release,
        "gates": [gate.model_dump() for gate in decision.gates],
        "split": config.evaluation.split,
        "cost": cost_of(dossier.making),
        "cached": recorder.all_cached,
        "mlflow_run_id": recorder.run_id,
    }
    show_candidate(result, text, run_link(recorder.run_id))
    if not recorder.all_cached:
        page = f"{mlflow_address()}/{version_link(registered.name, registered.version)}"
        message = f"{verdict_line(result)}. It waits for a reviewer: {page}"
        emit("candidate.registered", config.name, message, candidate=registered.version, verdict=decision.verdict)
    return result


def _decide(config: RetrainConfig, recorder: Recorder, parts: Parts, baseline: Baseline | None) -> _Decided:
    outcome = compare_with_champion(config, recorder, parts, baseline)
    uncompared = outcome.missing if baseline else ""
    facts = gather_facts(parts.validation, _origins(config, recorder, parts), parts.pinned, config.policy, uncompared, parts.removed)
    evidence = Evidence(load_evaluation(parts.evaluation.path), facts=facts)
    if baseline is not None:
        evidence = replace(evidence, baseline=baseline.evaluation, champion=baseline.version, lost=baseline.lost)
    if outcome.artifact is not None:
        compared = outcome.artifact.path
        evidence = replace(evidence, comparison=load_comparison(compared), values=load_values(compared))
    return _Decided(decide(evidence, config.policy), baseline, outcome, facts)


def _register_parts(recorder: Recorder, parts: Parts) -> dict[str, RegisteredVersion]:
    data = parts.dataset.digest
    versions = register_documents(recorder, (parts.query_tower, parts.document_tower, parts.index), data)
    inputs = {role: versions[role] for role in ("query_tower", "index")}
    student = recorder.register("query-encoder", parts.query_encoder, inputs, data)
    return {**versions, "query_encoder": student}


def register_documents(
    recorder: Recorder, parts: tuple[EncoderArtifact, EncoderArtifact, IndexArtifact], data: str
) -> dict[str, RegisteredVersion]:
    """Register query tower, document tower and index, made from the data set of digest `data`: a release without its query encoder."""
    query_tower, document_tower, built = parts
    document = recorder.register("document-tower", document_tower, {}, data)
    query = recorder.register("query-tower", query_tower, {"document_tower": document}, data)
    index = recorder.register("index", built, {"document_tower": document, **_former_index(recorder, built)}, data)
    return {"query_tower": query, "document_tower": document, "index": index}


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
    comparison = decided.outcome.artifact
    settings = {
        "release_type": parts.release_type,
        "config": config.model_dump(mode="json"),
        "pins": {role: version.model_dump() for role, version in versions.items()},
        "decision": decided.decision.model_dump(mode="json"),
        "baseline": decided.baseline.version if decided.baseline else None,
        "uncompared": decided.outcome.missing,
    }

    def make(folder: Path) -> Artifact:
        manifest = _manifest(config, recorder, parts, versions, decided)
        noise = find_noise(manifest)
        write_facts(folder, decided.facts)
        write_noise(folder, noise)
        if (seen := _seen(parts)) is not None:
            write_seen(folder, seen)
        write_report_page(dossier_of(parts, recorder, manifest, decided.baseline, decided.outcome, noise), folder)
        return write_candidate(manifest, parts.evaluation.path, parts.validation.path, folder, comparison)

    inputs = {"evaluation": parts.evaluation, "validation": parts.validation, "query_encoder": parts.query_encoder, "index": parts.index}
    inputs |= {"comparison": comparison} if comparison else {}
    return Step("write_candidate", make, inputs, settings)


def _seen(parts: Parts) -> Seen | None:
    """The train queries of all models in the release: an index refresh keeps all of them, a query refresh the towers.

    None where the release that it started from does not say what its models were trained on.
    """
    from components.data.dataset import load_dataset

    earlier = load_seen(parts.kept) if parts.kept else None
    if parts.kept and (earlier is None or parts.release_type == "index-refresh"):
        return earlier
    return seen_queries(load_dataset(parts.dataset.path), earlier)


def _manifest(
    config: RetrainConfig,
    recorder: Recorder,
    parts: Parts,
    versions: dict[str, RegisteredVersion],
    decided: _Decided,
) -> ReleaseManifest:
    from components.data.dataset import load_dataset
    from components.serving.smoke import record_smoke

    retriever = open_candidate(config, parts)
    dataset, split = load_dataset(parts.dataset.path), config.evaluation.split
    queries, left_out = dataset.judged_queries(split), dataset.own_documents(split).left_out
    own = [query if query in left_out else None for query in queries["query_id"]]
    return ReleaseManifest(
        name=config.name,
        release_type=parts.release_type,
        space_id=parts.index.space_id,
        pins=Pins(**{role: Pin(model=v.name, version=v.version, digest=v.digest) for role, v in versions.items()}),
        dataset=_dataset_pin(parts),
        evaluation=evaluation_pin(load_evaluation(parts.evaluation.path).summary, parts.evaluation.digest),
        decision=decided.decision,
        baseline_version=decided.baseline.version if decided.baseline else None,
        smoke=record_smoke(retriever, queries["text"].tolist(), own),
        provenance=recorder.origin,
        config=config.model_dump(mode="json"),
        lineage=tuple(recorder.lineage),
        flow_run_id=recorder.run_id,
        base_models=base_models_of(parts.encoders),
        earlier_flows=recorder.flows_of_lineage,
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
        earlier_flows=recorder.flows_of_lineage,
    )


def _dataset_pin(parts: Parts) -> DatasetPin:
    from components.data.validation import load_report

    contracts = {contract.name: contract.version for contract in load_report(parts.validation).contracts}
    attributes = parts.dataset.attributes
    return DatasetPin(
        name=str(attributes["name"]), digest=parts.dataset.digest, source_digest=str(attributes["source_digest"]), contracts=contracts
    )
