"""From finished parts to a candidate: compare with the champion, decide, register every part, write manifest and report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact, open_artifact, parents_of, read_manifest
from components.data.left_out import Seen, load_seen, seen_queries, write_seen
from components.errors import ScalingNoteError, lack_behind
from components.evaluation.champion_comparison import load_comparison, load_values
from components.evaluation.report import load_evaluation, load_summary
from components.evidence.description import describe
from components.evidence.metrics import candidate_metrics, evidence_tables, model_metrics
from components.evidence.report import write_report_page
from components.gates.decide import GateDecision, GateInputs, decide
from components.gates.decision import Findings, GateResult, write_facts
from components.index.drift import GuardReport
from components.release.champion import ChampionEvaluation, candidate_model, champion_to_compare_with, override_of, release_model
from components.release.completeness import ENCODERS, base_models_of, collect_findings
from components.release.manifest import (
    DatasetPin,
    ManifestDraft,
    Pin,
    Pins,
    ReleaseManifest,
    ReleaseType,
    evaluation_pin,
    load_release,
    write_candidate,
)
from components.release.training_noise import find_noise, load_noise, write_noise
from components.signing.statements import sign_release
from components.tracking import registry
from components.tracking.promotion_records import read_records
from components.tracking.registry import (
    RegisteredVersion,
    ensure_model,
    find_version,
    log_version_metrics,
    mark_challenger,
    set_description,
)
from components.tracking.runs import evidence_links, version_link
from flows.config import RetrainConfig
from flows.recorder import Recorder
from flows.reporting import emit, mlflow_address, say, shown_if_possible
from flows.runner import Step

if TYPE_CHECKING:
    from components.data.dataset import Dataset
    from components.evaluation.champion_comparison import ComparisonPlan, Side
    from components.evidence.dossier import Compared, Dossier, Making, StepCost
    from components.release.manifest import LineageNode
    from components.release.training_noise import TrainingNoise
    from components.serving.retriever import Retriever


@dataclass(frozen=True)
class CandidateParts:
    """All that a release is made of. `notes` are lines about a refresh, or about its data, for the reviewer, as plain text.

    `kept` is the folder of the release that a refresh kept models of, `removed` how many documents of that release's index are gone, and
    how many it had.
    """

    dataset: DatasetArtifact
    validation: Artifact
    query_tower: EncoderArtifact
    document_tower: EncoderArtifact
    query_encoder: EncoderArtifact
    index: IndexArtifact
    evaluation: Artifact
    release_type: ReleaseType = "full"
    notes: tuple[str, ...] = ()
    kept: Path | None = None
    removed: tuple[int, int] | None = None

    @property
    def encoders(self) -> dict[str, Path]:
        """Role -> folder of the encoders."""
        return {role: getattr(self, role).path for role in ENCODERS}

    @property
    def pinned(self) -> dict[str, Artifact]:
        """Role -> artifact of all that a release pins."""
        return {role: getattr(self, role) for role in Pins.model_fields}


class CandidateResult(BaseModel):
    """What a flow returns of its candidate. `cost` as of `cost_of`.

    `version` and `candidate` are None where an index that did not change is no candidate's any more. The last five are a refresh's:
    the release it started from, the documents that it found changed (by kind) and encoded, what watches the index, and its seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    release_type: ReleaseType
    candidate: str | None
    version: int | None
    digest: str
    folder: str
    verdict: str
    first_release: bool
    gates: tuple[GateResult, ...]
    split: str | None = None
    cost: dict[str, float] = Field(default_factory=dict)
    cached: bool
    mlflow_run_id: str
    base: str = ""
    changes: dict[str, int] = Field(default_factory=dict)
    encoded: int = 0
    guard: GuardReport | None = None
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As plain values, without the fields that the flow does not set."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name in self.model_fields_set}


def verdict_line(result: CandidateResult) -> str:
    """`candidate/2: pass`, the gates that did not pass, and whether anything was made."""
    failed = [gate.name for gate in result.gates if gate.status != "pass"]
    listed = f" (not passed: {', '.join(failed)})" if failed and result.verdict != "pass" else ""
    return f"{result.candidate or 'no new candidate'}: {result.verdict}{listed}{', all from the cache' if result.cached else ''}"


def show_candidate(result: CandidateResult, text: str) -> None:
    """Gates and comparison on the page of the flow's run. `text`: the candidate's description, with MLflow's links."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact
    from prefect.context import FlowRunContext

    if FlowRunContext.get() is None:  # Prefect would start a server for it
        return
    name, candidate = result.name, result.candidate
    place = mlflow_address()
    gates = [{"gate": gate.name, "status": gate.status, "reason": gate.told} for gate in result.gates]
    with shown_if_possible():
        create_table_artifact(table=gates, key=f"{name}-gates", description=f"Gates of {candidate}: **{result.verdict}**")
        create_markdown_artifact(markdown=text.replace("](#/", f"]({place}/#/"), key=f"{name}-candidate", description=str(candidate))


def require_decidable(name: str) -> None:
    """Refuse before the work what registration would refuse after it, when hours of training are over.

    A model that is missing on a server with sign-in, policies of the installation that cannot be read, promotion records that are damaged
    or whose experiment was renamed. Raises TrackingError, ConfigError or ArtifactError.
    """
    from components.gates.policy import allowed_policies
    from components.tracking.promotion_records import read_records
    from components.tracking.registry import require_prepared

    require_prepared(name)
    allowed_policies()
    read_records(name)


# --- Evidence for the reviewer: the comparison of a candidate with the champion, and the report that is kept with the candidate.


REPLAYED = 1000  # queries of the log, the newest, that both releases answer
_UNCOMPARED = (
    "When the champion can be opened again, run the same command: finished steps come from the cache. Or a reviewer decides without it."
)
_MEASURED = ("split", "depth", "latency_queries", "throughput_batch", "speed_precision", "bootstrap_samples", "seed", "query_groups")


class ComparisonOutcome(NamedTuple):
    """The comparison with the champion, or in a sentence why there is none."""

    artifact: Artifact | None
    missing: str = ""


def compare_with_champion(
    config: RetrainConfig, recorder: Recorder, parts: CandidateParts, baseline: ChampionEvaluation | None
) -> ComparisonOutcome:
    """Ask candidate and champion the same queries in one run. A champion that cannot be opened is no reason to build no candidate."""
    if baseline is None:
        return ComparisonOutcome(None, "This is a first release: there is no champion to compare with.")
    if baseline.lost:
        return ComparisonOutcome(None, f"{baseline.lost} {_UNCOMPARED}")
    try:
        return ComparisonOutcome(recorder.run(_comparison_step(config, parts, baseline)))
    except ScalingNoteError as error:
        if lack_behind(error):  # of this machine, and no fault of the champion
            raise
        return ComparisonOutcome(None, f"The comparison with release/{baseline.version} failed: {error} {_UNCOMPARED}")


def _comparison_step(config: RetrainConfig, parts: CandidateParts, baseline: ChampionEvaluation) -> Step:
    """Queries that are logged later do not make a finished comparison anew: the same parts stay the same candidate."""
    champion = open_artifact(registry.artifact_folder(release_model(config.name), baseline.version))
    inputs: dict[str, Artifact] = {**_answering(parts), "champion": champion}
    settings = {**config.evaluation.model_dump(include=set(_MEASURED)), "baseline_version": baseline.version}
    return Step("compare_with_champion", partial(ask_both, config, parts, baseline.version), inputs, settings)


def ask_both(config: RetrainConfig, parts: CandidateParts, champion: int, folder: Path) -> Artifact:
    """The step compare_with_champion: a candidate of these parts and version `champion` of the release are asked the same queries.

    Raises what opening the two raises.
    """
    from components.evaluation.champion_comparison import compare_in_one_run

    return compare_in_one_run(_comparison_plan(config, parts, champion), config.evaluation, parents_of(_answering(parts)), folder)


def _answering(parts: CandidateParts) -> dict[str, Artifact]:
    """The parts of a candidate that answer queries, and the data it is measured on."""
    return {"dataset": parts.dataset, "query_encoder": parts.query_encoder, "index": parts.index}


def _comparison_plan(config: RetrainConfig, parts: CandidateParts, version: int) -> ComparisonPlan:
    from components.data.dataset import load_dataset
    from components.evaluation.champion_comparison import ComparisonPlan
    from components.evaluation.summarize import judged_split
    from components.evaluation.units import query_units
    from components.serving.loader import open_release, registry_folder

    opened = open_release(config.name, f"release/{version}")
    pins = opened.manifest.pins
    dataset = load_dataset(parts.dataset.path)
    source, replayed = replayed_queries(config.name, dataset)
    judged = judged_split(dataset, config.evaluation.split)
    return ComparisonPlan(
        candidate=_side(open_candidate(config, parts), parts.query_encoder.path, parts.index.path),
        champion=_side(opened.retriever, registry_folder(pins.query_encoder), registry_folder(pins.index)),
        baseline_version=version,
        judged=judged,
        replayed=replayed,
        source=source,
        units=query_units(judged, dataset, config.evaluation.query_groups),
    )


def replayed_queries(name: str, dataset: Dataset) -> tuple[str, Sequence[str]]:
    """Where the queries without judgements come from, and the newest or first of them: the log of answers, else the data set."""
    from components.evaluation.champion_comparison import LOGGED, UNLABELLED
    from components.serving.answer_log import logged_queries

    if logged := logged_queries(name, REPLAYED):
        return LOGGED, logged
    return UNLABELLED, [str(text) for text in dataset.unlabelled["text"].head(REPLAYED)]


def open_candidate(config: RetrainConfig, parts: CandidateParts) -> Retriever:
    """Query encoder and index of the candidate, every file verified."""
    from components.distillation.student import load_student
    from components.serving.retriever import Retriever

    encoder = load_student(parts.query_encoder.path)
    return Retriever.open(encoder, parts.query_encoder.path, parts.index.path, config.index.probe_tolerance)


def _side(retriever: Retriever, encoder_folder: Path, index_folder: Path) -> Side:
    from components.evaluation.champion_comparison import Side
    from components.evaluation.rankers import DenseRanker
    from components.index.rows import read_titles

    sizes: dict[str, Any] = {"index": bytes_of(index_folder), "encoder": bytes_of(encoder_folder), "documents": len(retriever.index)}
    return Side(DenseRanker(retriever.encoder, retriever.index), read_titles(index_folder, retriever.index.rows), sizes)


def bytes_of(folder: Path) -> int:
    """Bytes of an artifact's files."""
    return sum(entry.bytes for entry in read_manifest(folder).files.values())


def dossier_of(
    parts: CandidateParts,
    recorder: Recorder,
    manifest: ReleaseManifest,
    baseline: ChampionEvaluation | None,
    outcome: ComparisonOutcome,
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


def _compared(outcome: ComparisonOutcome) -> Compared:
    from components.evaluation.champion_comparison import load_comparison, load_tables
    from components.evidence.dossier import Compared

    if outcome.artifact is None:
        return Compared(missing=outcome.missing)
    return Compared(load_comparison(outcome.artifact.path), load_tables(outcome.artifact.path))


def _making(parts: CandidateParts, recorder: Recorder) -> Making:
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


# --- From finished parts to a candidate: decide, register every part, write the manifest that pins them.


@dataclass(frozen=True)
class Decided:
    """What was decided, and from what."""

    decision: GateDecision
    draft: ManifestDraft
    baseline: ChampionEvaluation | None
    outcome: ComparisonOutcome
    facts: Findings


def queries_in_common(config: RetrainConfig, dataset: Dataset, refused: bool) -> list[str]:
    """What `shared_queries` says of the further splits, where the policy asks for retention on other queries than the evaluation's."""
    from components.data.left_out import shared_queries
    from components.evaluation.table import DEV

    if config.policy.min_off_distribution_retention is None:
        return []
    return shared_queries(dataset, config.evaluation.extra_splits, (DEV, config.evaluation.split), refused)


def say_queries_in_common(config: RetrainConfig, dataset: Dataset, refused: bool) -> None:
    """Warn of them before anything is made; raises DataError as `shared_queries` does where they are `refused`."""
    for said in queries_in_common(config, dataset, refused):
        say(f"[snapshot_data] {said}", WARNING)


def with_queries_in_common(config: RetrainConfig, parts: CandidateParts) -> CandidateParts:
    """With what a terminal was warned of at the start, which no reviewer has seen."""
    from components.data.dataset import load_dataset

    if config.policy.min_off_distribution_retention is None:
        return parts
    shared = queries_in_common(config, load_dataset(parts.dataset.path), refused=False)
    return replace(parts, notes=(*parts.notes, *shared))


def register_candidate(config: RetrainConfig, recorder: Recorder, parts: CandidateParts) -> CandidateResult:
    """Decide, register, and return what comes next. With nothing changed it finds the candidate there is."""
    parts = with_queries_in_common(config, parts)
    versions = _register_parts(recorder, parts)
    pins = {role: version.digest for role, version in versions.items()}
    baseline = champion_to_compare_with(config.name, pins, parts.evaluation.digest, config.policy)
    decided = _decide(config, recorder, parts, versions, baseline)
    candidate = recorder.run(_candidate_step(config, recorder, parts, decided))
    sign_release(candidate.path)  # also one that was found finished: it may have been made without a key, or killed before this line
    # The empty release model has to be there before a reviewer opens the first candidate: the dialog offers existing models only.
    ensure_model(release_model(config.name))
    known = find_version(candidate_model(config.name), candidate.digest)
    registered = recorder.register("candidate", candidate, versions, parts.dataset.digest)
    dossier = dossier_of(parts, recorder, load_release(candidate.path), baseline, decided.outcome, load_noise(candidate.path))
    text = describe(dossier, evidence_links(registered.name, registered.version))
    set_description(registered.name, registered.version, text)
    recorder.log_candidate_page(candidate, candidate_metrics(dossier), text, evidence_tables(dossier))
    measured = model_metrics(dossier)
    for role, version in {**versions, "candidate": registered}.items():
        log_version_metrics(version, measured[role], parts.dataset)
    decision = decided.decision
    if decision.verdict == "pass":
        mark_challenger(registered)
    result = CandidateResult(
        name=config.name,
        release_type=parts.release_type,
        candidate=f"candidate/{registered.version}",
        version=registered.version,
        digest=candidate.digest,
        folder=str(candidate.path),
        verdict=decision.verdict,
        first_release=decision.first_release,
        gates=decision.gates,
        split=config.evaluation.split,
        cost=cost_of(dossier.making),
        cached=recorder.all_cached,
        mlflow_run_id=recorder.run_id,
    )
    show_candidate(result, text)
    if known is None:  # also where all was found finished, as after a server that went away in the midst of the registration
        page = f"{mlflow_address()}/{version_link(registered.name, registered.version)}"
        message = f"{verdict_line(result)}. It waits for a reviewer: {page}"
        emit("candidate.registered", config.name, message, candidate=registered.version, verdict=decision.verdict)
    return result


def _decide(
    config: RetrainConfig,
    recorder: Recorder,
    parts: CandidateParts,
    versions: dict[str, RegisteredVersion],
    baseline: ChampionEvaluation | None,
) -> Decided:
    outcome = compare_with_champion(config, recorder, parts, baseline)
    uncompared = outcome.missing if baseline else ""
    draft = _draft(config, recorder, parts, versions)
    facts = collect_findings(parts.validation, draft, parts.pinned, config.policy, uncompared, parts.removed)
    evidence = GateInputs(load_evaluation(parts.evaluation.path), facts=facts)
    if baseline is not None:
        evidence = replace(evidence, baseline=baseline.evaluation, champion=baseline.version, lost=baseline.lost)
    if outcome.artifact is not None:
        compared = outcome.artifact.path
        evidence = replace(evidence, comparison=load_comparison(compared), values=load_values(compared))
    return Decided(decide(evidence, config.policy), draft, baseline, outcome, facts)


def _register_parts(recorder: Recorder, parts: CandidateParts) -> dict[str, RegisteredVersion]:
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


def _candidate_step(config: RetrainConfig, recorder: Recorder, parts: CandidateParts, decided: Decided) -> Step:
    comparison = decided.outcome.artifact
    settings = {
        "release_type": parts.release_type,
        "config": decided.draft.config,
        "pins": decided.draft.pins.model_dump(),
        "decision": decided.decision.model_dump(mode="json"),
        "baseline": decided.baseline.version if decided.baseline else None,
        "uncompared": decided.outcome.missing,
    }
    inputs = {"evaluation": parts.evaluation, "validation": parts.validation, "query_encoder": parts.query_encoder, "index": parts.index}
    inputs |= {"comparison": comparison} if comparison else {}
    return Step("write_candidate", partial(write_decided, config, recorder, parts, decided), inputs, settings)


def write_decided(config: RetrainConfig, recorder: Recorder, parts: CandidateParts, decided: Decided, folder: Path) -> Artifact:
    """The step write_candidate: manifest, report, the facts that were decided from, and the train queries of all models.

    Raises what opening the candidate raises: a release that cannot answer is not written.
    """
    manifest = _manifest(config, parts, decided)
    noise = find_noise(manifest)
    write_facts(folder, decided.facts)
    write_noise(folder, noise)
    if (seen := _seen(parts)) is not None:
        write_seen(folder, seen)
    write_report_page(dossier_of(parts, recorder, manifest, decided.baseline, decided.outcome, noise), folder)
    return write_candidate(manifest, parts.evaluation.path, parts.validation.path, folder, decided.outcome.artifact)


def _seen(parts: CandidateParts) -> Seen | None:
    """The train queries of all models in the release: an index refresh keeps all of them, a query refresh the towers.

    None where the release that it started from does not say what its models were trained on.
    """
    from components.data.dataset import load_dataset

    earlier = load_seen(parts.kept) if parts.kept else None
    if parts.kept and (earlier is None or parts.release_type == "index-refresh"):
        return earlier
    return seen_queries(load_dataset(parts.dataset.path), earlier)


def _manifest(config: RetrainConfig, parts: CandidateParts, decided: Decided) -> ReleaseManifest:
    from components.data.dataset import load_dataset
    from components.serving.promotion_checks import record_smoke

    retriever = open_candidate(config, parts)
    dataset, split = load_dataset(parts.dataset.path), config.evaluation.split
    queries, left_out = dataset.judged_queries(split), dataset.own_documents(split).left_out
    own = [query if query in left_out else None for query in queries["query_id"]]
    return ReleaseManifest(
        **dict(decided.draft),
        decision=decided.decision,
        baseline_version=decided.baseline.version if decided.baseline else None,
        smoke=record_smoke(retriever, queries["text"].tolist(), own),
    )


def _draft(config: RetrainConfig, recorder: Recorder, parts: CandidateParts, versions: dict[str, RegisteredVersion]) -> ManifestDraft:
    """What the release is made of and where all of it came from."""
    return ManifestDraft(
        name=config.name,
        release_type=parts.release_type,
        space_id=parts.index.space_id,
        pins=Pins(**{role: Pin(model=v.name, version=v.version, digest=v.digest) for role, v in versions.items()}),
        dataset=_dataset_pin(parts),
        evaluation=evaluation_pin(load_summary(parts.evaluation.path), parts.evaluation.digest),
        provenance=recorder.origin,
        config=config.model_dump(mode="json"),
        lineage=tuple(recorder.lineage),
        flow_run_id=recorder.run_id,
        base_models=base_models_of(parts.encoders),
        earlier_flows=recorder.flows_of_lineage,
    )


def _dataset_pin(parts: CandidateParts) -> DatasetPin:
    from components.data.validation import load_report

    contracts = {contract.name: contract.version for contract in load_report(parts.validation).contracts}
    attributes = parts.dataset.attributes
    return DatasetPin(
        name=str(attributes["name"]), digest=parts.dataset.digest, source_digest=str(attributes["source_digest"]), contracts=contracts
    )
