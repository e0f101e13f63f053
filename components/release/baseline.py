"""The champion's own evaluation, which a candidate is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.artifacts import verify
from components.errors import ArtifactError, ModelError
from components.gates.config import PolicyConfig
from components.gates.policy import policy_digest
from components.release.champion import Record, expected_aliases, release_model
from components.release.manifest import EVALUATION_FOLDER, load_release
from components.tracking import promotion_records as record_store
from components.tracking import registry

if TYPE_CHECKING:
    from components.evaluation.report import Evaluation


class Baseline(NamedTuple):
    """The version of the release model that is champion, and the evaluation it was released with.

    Without an evaluation the champion was deleted or damaged, and `lost` says so: its gates stay undecided.
    """

    version: int
    evaluation: Evaluation | None
    lost: str = ""


def load_baseline(name: str) -> Baseline | None:
    """The champion by the promotion records, without its evaluation where it is lost; None before the first promotion."""
    version = expected_aliases(record_store.read_records(name)).champion
    return None if version is None else _baseline(name, version)


def _baseline(name: str, version: int) -> Baseline:
    try:
        return Baseline(version, baseline_evaluation(name, version))
    except (ArtifactError, ModelError) as error:
        return Baseline(version, None, f"release/{version} of '{name}' cannot be opened: {error}")


def lost(name: str, version: int) -> str:
    """Why the evaluation of a promoted release cannot be read: it was deleted, or a file of it is damaged; empty when it can."""
    return _baseline(name, version).lost


def comparison_for(name: str, pins: Mapping[str, str], evaluation: str, policy: PolicyConfig) -> Baseline | None:
    """What a release with the artifacts `pins` (role -> digest), its evaluation (digest) and policy is held against: the champion.

    A release that is the champion itself is held against what the champion was compared with, so that building it again decides
    and registers nothing new. A champion that is lost leaves its gates undecided, and builds a candidate all the same.
    """
    champion = load_baseline(name)
    if champion is None or champion.lost:
        return champion
    manifest = load_release(registry.artifact_folder(release_model(name), champion.version))
    same = {role: pin.digest for role, pin in manifest.pins.items()} == dict(pins)
    if not (same and manifest.evaluation.digest == evaluation and policy_digest(policy) == policy_digest(manifest.config["policy"])):
        return champion
    return None if manifest.baseline_version is None else _baseline(name, manifest.baseline_version)


def baseline_evaluation(name: str, version: int) -> Evaluation:
    """The evaluation of a promoted release, checked against the digest in its promotion record."""
    record = record_of(record_store.read_records(name), version)
    if record is None:
        raise ArtifactError(f"{release_model(name)}/{version} was never promoted, so it cannot be a baseline.")
    return verified_evaluation(registry.artifact_folder(release_model(name), version), str(record["manifest_digest"]))


def verified_evaluation(folder: Path, digest: str) -> Evaluation:
    """The evaluation in a release's folder; raises ArtifactError unless release and evaluation are whole and the release is `digest`."""
    from components.evaluation.report import load_evaluation

    verify(folder, digest)
    verify(folder / EVALUATION_FOLDER, load_release(folder).evaluation.digest)
    return load_evaluation(folder / EVALUATION_FOLDER)


def record_of(records: Sequence[Record], version: int) -> Record | None:
    """The newest record that moved the champion to `version`."""
    return next((record for record in reversed(records) if int(record["to_version"]) == version), None)
