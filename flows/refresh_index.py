"""Index refresh: the documents that changed since a release are encoded, all else of it stays; the result is a candidate like any other.

snapshot -> validate -> find changes -> encode them -> refresh index -> evaluate -> decide, register candidate
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from prefect import flow

from components.artifacts import Artifact, DatasetArtifact, IndexArtifact, VectorShards
from components.index.changes import Changes, changes_since, read_documents
from components.index.drift import GuardReport, read_guard
from components.index.opening import merge_fault_of
from components.release.champion import candidate_model
from components.release.open import PinnedRelease
from components.tracking.registry import find_version
from flows.candidate import register_candidate
from flows.config import RetrainConfig
from flows.parameters import NO_SETTINGS, NOTHING, Name, Preset, ReleaseRef, SettingsForm, require_steps, steps_form
from flows.parts import Parts
from flows.recorder import Recorder, recorded_flow
from flows.refresh import RefreshConfig, checked_data, describe_changes, open_base, requested_refresh, unknown_queries
from flows.reporting import emit, ended, run_name, say, shown_as_cancelled, verdict_line
from flows.runner import Step
from flows.steps import SHARD_FILES, encoding_key, evaluation_step, typed

CHANGEABLE = (
    "data.on_violation",
    "data.max_dropped_share",
    "encoding",
    "evaluation",
    "policy",
    "index.compact_share",
    "index.max_imbalance",
    "index.max_distance",
    "index.max_recall_loss",
)
Settings = Annotated[dict[str, Any], SettingsForm(CHANGEABLE)]
AGAIN = ("snapshot_data", "validate_data", "encode_changes", "refresh_index", "evaluate", "compare_with_champion", "write_candidate")
Again = Annotated[list[str], steps_form(AGAIN)]


@flow(name="refresh-index", flow_run_name=run_name, on_crashed=[shown_as_cancelled], persist_result=False, validate_parameters=True)
def refresh_index(
    name: Name = "retriever",
    release: ReleaseRef = "champion",
    data: str = "",
    preset: Preset | None = None,
    settings: Settings = NO_SETTINGS,
    request: RefreshConfig | None = None,
    again: Again = NOTHING,
) -> dict[str, Any]:
    """Bring a release's index up to date with the documents in `data` and register the candidate.

    Returns what `retrain` returns, with `changes` (added, changed, removed, unchanged), `encoded` (documents), `seconds` and `guard`.
    When no document changed nothing is encoded, and the candidate is the one that the release is, unless its index has to be written anew.

    Args:
        name: Name of the retriever
        release: Release to start from: champion, previous, candidate/N or release/N
        data: Data folder; empty: the one that the release was built from
        preset: Preset that what this refresh may change is taken from, gates apart; none: the release's own settings
        settings: Settings over the release's, as sections or by dotted names
        request: All of these in one, instead of the others
        again: Steps that are made anew although they are finished; what follows them is made anew where their result has changed
    """
    from components.settings import activate

    chosen = requested_refresh(request, name=name, release=release, data=data, preset=preset, settings=settings)
    require_steps("refresh-index", again, AGAIN)
    activate()
    started = time.monotonic()
    base, config = open_base(chosen, CHANGEABLE)
    with recorded_flow(config.name, "refresh-index", config.model_dump(mode="json"), again) as recorder:
        recorder.adopt(base.ancestry(), base.flows())
        dataset, validation = checked_data(config, recorder, base)
        changes = changes_since(base.index.path, read_documents(dataset.path))
        say(f"Since {base.title}: {describe_changes(changes)}{_many_gone(changes, config.policy.max_removed_share)}")
        if not changes and merge_fault_of(base.index) is None:
            result = _unchanged(recorder, base, changes) | {"seconds": time.monotonic() - started}
            return ended(result, f"No document changed since {base.title}.")
        delta, encoded = _encoded(config, recorder, base, dataset, changes)
        index = typed(recorder.run(refresh_step(config, dataset, base, delta, changes)), IndexArtifact)
        guard = read_guard(index.path)
        notes = [*_notes(base, changes, guard), *unknown_queries(base, dataset)]
        parts = _parts(config, recorder, base, (dataset, validation, index), notes, (len(changes.removed), served_before(changes)))
        result = register_candidate(config, recorder, parts)
    if guard.status != "ok":
        emit("drift", config.name, f"The index of '{config.name}' no longer fits its documents.", reasons=list(guard.reasons))
    outcome = {"changes": changes.counts, "encoded": encoded, "guard": guard.model_dump(mode="json")}
    result |= outcome | {"base": base.title, "seconds": time.monotonic() - started}
    return ended(result, f"{verdict_line(result)}; {describe_changes(changes)}")


def delta_step(config: RetrainConfig, dataset: DatasetArtifact, base: PinnedRelease, changes: Changes) -> Step:
    """Encode the added and changed documents with the release's own document tower."""
    encoding, document_tower = config.encoding, base.document_tower

    def make(folder: Path) -> Artifact:
        from components.index.delta import ChosenDocuments
        from components.index.encode import ShardJob, StoredTower, encode_shards
        from flows.encoding_runners import runner_of

        documents = ChosenDocuments(dataset.path / "documents.parquet", changes.encoded, encoding.shard_size)
        tower = StoredTower(document_tower.path, config.index.probe_tolerance)
        job = ShardJob(tower, documents, encoding.tokens_per_batch, folder)
        return encode_shards(job, {"dataset": dataset.digest, "document_tower": document_tower.digest}, runner_of(encoding))

    inputs = {"dataset": dataset, "document_tower": document_tower, "index": base.index}
    return Step("encode_changes", make, inputs, encoding_key(encoding), resumes=SHARD_FILES)


def refresh_step(
    config: RetrainConfig, dataset: DatasetArtifact, base: PinnedRelease, delta: VectorShards | None, changes: Changes
) -> Step:
    """Carry the release's index over, without what was removed and with what was encoded."""
    index = base.index

    def make(folder: Path) -> Artifact:
        from components.index.build import display_titles
        from components.index.refresh import refresh_index

        return refresh_index(index, delta, changes, config.index, folder, display_titles(dataset.path / "documents.parquet"))

    inputs: dict[str, Artifact] = {"dataset": dataset, "index": index, **({"vectors": delta} if delta else {})}
    return Step("refresh_index", make, inputs, config.index.model_dump())


def _encoded(
    config: RetrainConfig, recorder: Recorder, base: PinnedRelease, dataset: DatasetArtifact, changes: Changes
) -> tuple[VectorShards | None, int]:
    """The vectors of what was added and changed, None when there is nothing to encode, and how many documents were encoded just now."""
    if not len(changes.encoded):
        return None, 0
    before = recorder.made
    delta = typed(recorder.run(delta_step(config, dataset, base, changes)), VectorShards)
    return delta, len(changes.encoded) if recorder.made > before else 0


def _parts(
    config: RetrainConfig,
    recorder: Recorder,
    base: PinnedRelease,
    made: tuple[DatasetArtifact, Artifact, IndexArtifact],
    notes: list[str],
    removed: tuple[int, int],
) -> Parts:
    dataset, validation, index = made
    measured = {"dataset": dataset, "query_tower": base.query_tower, "query_encoder": base.query_encoder, "index": index}
    evaluation = recorder.run(evaluation_step(config, measured))
    towers = (base.query_tower, base.document_tower, base.query_encoder)
    return Parts(dataset, validation, *towers, index, evaluation, "index-refresh", tuple(notes), base.artifact.path, removed)


def _notes(base: PinnedRelease, changes: Changes, guard: GuardReport) -> list[str]:
    return [f"Index refresh of {base.title}: {describe_changes(changes)}", *(f"Index: {reason}" for reason in guard.reasons)]


def served_before(changes: Changes) -> int:
    """Documents that the index held before."""
    return changes.unchanged + len(changes.changed) + len(changes.removed)


def _many_gone(changes: Changes, allowed: float | None) -> str:
    """A warning before hours of work that the gates will not decide on."""
    share = len(changes.removed) / max(1, served_before(changes))
    if allowed is None or share <= allowed:
        return ""
    return f" That removes {share:.1%} of them; the policy decides on {allowed:.1%} at most. Is this the whole folder?"


def _unchanged(recorder: Recorder, base: PinnedRelease, changes: Changes) -> dict[str, Any]:
    """The result when the index holds the documents as they are: the candidate that the release was, and nothing new."""
    candidate = find_version(candidate_model(base.manifest.name), base.artifact.digest)
    return {
        "name": base.manifest.name,
        "release_type": base.manifest.release_type,
        "candidate": f"candidate/{candidate.version}" if candidate else None,
        "version": candidate.version if candidate else None,
        "digest": base.artifact.digest,
        "folder": str(base.artifact.path),
        "verdict": base.manifest.decision.verdict,
        "first_release": base.manifest.decision.first_release,
        "gates": [gate.model_dump() for gate in base.manifest.decision.gates],
        "cached": True,
        "mlflow_run_id": recorder.run_id,
        "base": base.title,
        "changes": changes.counts,
        "encoded": 0,
        "guard": None,
    }
