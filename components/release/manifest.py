"""The release manifest: one JSON file that pins encoders and index by version and digest, with the evidence beside it.

A candidate artifact holds `release.json`, the folders `evaluation/`, `validation/` and, where there was a champion, `comparison/` (whole
artifacts, with their own manifests), `facts.json`, the reviewer's `report.html` and a manifest over everything, so its one digest covers
the pins and all that a reviewer saw.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.artifacts import Artifact, Release, Scalar, read_versioned, seal, write_json
from components.errors import ArtifactError
from components.gates.decide import GateDecision

if TYPE_CHECKING:
    from components.evaluation.report import Summary

RELEASE_FILE = "release.json"
EVALUATION_FOLDER = "evaluation"
VALIDATION_FOLDER = "validation"
COMPARISON_FOLDER = "comparison"
REPORT_PAGE = "report.html"
REPORTED_SINCE = 3  # candidates of older schema versions have no report
FLOWS_SINCE = 4  # refreshes of older ones do not say which flow made the parts that they kept
SCHEMA_VERSION = 5
ReleaseType = Literal["full", "index-refresh", "query-refresh"]
PinRole = Literal["query_tower", "document_tower", "query_encoder", "index"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pin(_Part):
    """A registered version, with the digest of the artifact it had when it was pinned."""

    model: str
    version: int = Field(ge=1)
    digest: str = Field(min_length=1)


class Pins(_Part):
    """What a release consists of; all four belong to one vector space."""

    query_tower: Pin
    document_tower: Pin
    query_encoder: Pin
    index: Pin

    def items(self) -> list[tuple[str, Pin]]:
        """The pins with their roles, in a fixed order."""
        return [(role, getattr(self, role)) for role in type(self).model_fields]


class DatasetPin(_Part):
    """The data a release was built from; `contracts` maps a contract's name to its version."""

    name: str
    digest: str
    source_digest: str
    contracts: dict[str, str] = Field(default_factory=dict)


class EvaluationPin(_Part):
    """The evaluation a release was decided on: its digest, and `metrics` (system -> metric -> mean over `queries` queries).

    A mean that is not a number is kept as None: the gates say that it cannot be decided on, and the candidate can still be read.
    """

    model_config = ConfigDict(allow_inf_nan=False)
    digest: str
    split: str
    queries: int
    judgements_digest: str
    metrics: dict[str, dict[str, float | None]]


class SmokeQuery(_Part):
    """A query and the ids the release gave for it, best first; serving must give them again."""

    query: str
    doc_ids: tuple[str, ...]


class BaseModelPin(_Part):
    """The published model that an encoder started from: the digest of its weights, and its commit if it came from a model hub."""

    name: str
    digest: str
    revision: str | None = None


class LineageNode(_Part):
    """One artifact of the chain from data to release; `parents` maps a role to the digest of another node.

    `run_id` is its step's run in MLflow, `task_run_id` that in Prefect, `recorded_at` the time (UTC) at which the step was recorded. Nodes
    of manifests before schema version 3 have neither of the last two. `flow_run_id` names the earlier flow that made it (see
    `ManifestDraft.earlier_flows`), None stands for the release's own. `reused`: the step was found finished, so an earlier run with the
    same inputs, configuration, code that it reaches and libraries had made it.
    """

    digest: str
    kind: str
    name: str
    parents: dict[str, str] = Field(default_factory=dict)
    counts: dict[str, int] = Field(default_factory=dict)
    attributes: dict[str, Scalar] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    run_id: str | None = None
    task_run_id: str | None = None
    recorded_at: str | None = None
    flow_run_id: str | None = None
    reused: bool = False


class ManifestDraft(_Part):
    """What a release is made of and came from, which is known before the gates decide. `config` is the whole configuration.

    `release_type` says what is new; manifests of schema version 1 do not name it, and are full ones.
    `base_models` maps the role of an encoder to what it started from; manifests before schema version 3 do not name them.
    `earlier_flows` maps the run (in MLflow) of a flow that made parts of an earlier release to the code and machine it ran on; a refresh of
    before schema version 4 does not name them.
    """

    name: str
    release_type: ReleaseType = "full"
    space_id: str
    pins: Pins
    dataset: DatasetPin
    evaluation: EvaluationPin
    provenance: dict[str, Any]
    config: dict[str, Any]
    lineage: tuple[LineageNode, ...]
    flow_run_id: str | None = None
    base_models: dict[str, BaseModelPin] = Field(default_factory=dict)
    earlier_flows: dict[str, dict[str, Any]] = Field(default_factory=dict)


class ReleaseManifest(ManifestDraft):
    """The draft with what the gates decided; the `policy` in its `config` is theirs.

    `baseline_version` is the version of the release model that was champion when they did, None for a first release.
    """

    schema_version: int = SCHEMA_VERSION
    decision: GateDecision
    baseline_version: int | None = None
    smoke: tuple[SmokeQuery, ...] = ()


def evaluation_pin(summary: Summary, digest: str) -> EvaluationPin:
    """The headline of an evaluation: every system's mean metrics with the number of queries they stand on."""
    return EvaluationPin(
        digest=digest,
        split=summary.split,
        queries=summary.queries,
        judgements_digest=summary.judgements_digest,
        metrics={name: _metrics(system) for name, system in summary.systems.items()},
    )


def write_candidate(
    manifest: ReleaseManifest, evaluation_folder: Path, validation_folder: Path, folder: Path, comparison: Artifact | None = None
) -> Release:
    """Write `release.json` and copies of the reports into `folder`, and seal it with all that lies there as a release artifact."""
    copied = {EVALUATION_FOLDER: evaluation_folder, VALIDATION_FOLDER: validation_folder}
    copied |= {COMPARISON_FOLDER: comparison.path} if comparison else {}
    for name, source in copied.items():
        shutil.rmtree(folder / name, ignore_errors=True)  # a killed attempt may have left other files there
        shutil.copytree(source, folder / name)
    write_json(folder / RELEASE_FILE, manifest.model_dump(mode="json"))
    parents = {role: pin.digest for role, pin in manifest.pins.items()}
    measured = {"evaluation": manifest.evaluation.digest, **({"comparison": comparison.digest} if comparison else {})}
    artifact = seal(
        folder,
        "release",
        counts={"queries": manifest.evaluation.queries, "lineage": len(manifest.lineage)},
        parents={**parents, "dataset": manifest.dataset.digest, **measured},
        attributes={
            "name": manifest.name,
            "space_id": manifest.space_id,
            "release_type": manifest.release_type,
            "verdict": manifest.decision.verdict,
            "first_release": manifest.decision.first_release,
        },
    )
    assert isinstance(artifact, Release)
    return artifact


def require_report(folder: Path, manifest: ReleaseManifest) -> None:
    """Raise ArtifactError for a candidate without the reviewer's report, unless it is from before there were any."""
    if manifest.schema_version >= REPORTED_SINCE and not (folder / REPORT_PAGE).is_file():
        raise ArtifactError(f"{folder} holds no {REPORT_PAGE}, so nobody can have judged it by its evidence. Build the candidate again.")


def load_release(folder: Path) -> ReleaseManifest:
    """Read `release.json`; raises ArtifactError when it is missing, broken or of a newer schema. Does not hash files."""
    path = folder / RELEASE_FILE
    raw = read_versioned(path, SCHEMA_VERSION)
    try:
        return ReleaseManifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(f"{path} is not a release manifest: {field}: {first['msg']}.") from None


def load_release_of(name: str, folder: Path) -> ReleaseManifest:
    """`load_release` of a release of the retriever `name`; raises ArtifactError besides where the manifest names another one.

    Answers are logged under the name in the manifest, and a release of another retriever was decided by its gates and records.
    """
    manifest = load_release(folder)
    if manifest.name != name:
        other = " ".join(manifest.name.split())[:60]
        raise ArtifactError(f"The manifest belongs to the retriever '{other}', not to '{name}'. Approve a candidate of '{name}'.")
    return manifest


def _metrics(system: Any) -> dict[str, float | None]:
    metrics = system["metrics"] if isinstance(system, dict) else system.metrics
    return {name: float(value) if value is not None and math.isfinite(value) else None for name, value in metrics.items()}
