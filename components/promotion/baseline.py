"""The champion's own evaluation, which a candidate is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from components.artifacts import verify
from components.errors import ArtifactError
from components.promotion.release import EVALUATION_FOLDER, load_release
from components.promotion.standing import Record, expected_aliases, release_model
from components.tracking import records as record_store
from components.tracking import registry

if TYPE_CHECKING:
    from components.evaluation.report import Evaluation


class Baseline(NamedTuple):
    """The version of the release model that is champion, and the evaluation it was released with."""

    version: int
    evaluation: Evaluation


def load_baseline(name: str) -> Baseline | None:
    """The champion by the promotion records, None before the first promotion; raises ArtifactError when it was changed."""
    version = expected_aliases(record_store.read_records(name)).champion
    return None if version is None else Baseline(version, baseline_evaluation(name, version))


def comparison_for(name: str, pins: Mapping[str, str]) -> Baseline | None:
    """What a release with the artifacts `pins` (role -> digest) is held against: the champion.

    A release that is the champion itself is held against what the champion was compared with, so that building it again decides
    and registers nothing new.
    """
    champion = load_baseline(name)
    if champion is None:
        return None
    manifest = load_release(registry.artifact_folder(release_model(name), champion.version))
    if {role: pin.digest for role, pin in manifest.pins.items()} != dict(pins):
        return champion
    before = manifest.baseline_version
    return None if before is None else Baseline(before, baseline_evaluation(name, before))


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
