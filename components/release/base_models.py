"""The published models that the encoders of a release started from, read from the contracts that travel with the encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from components.release.manifest import BaseModelPin, ReleaseManifest
from components.towers.contract import load_contract
from components.tracking import registry

ENCODERS = ("query_tower", "document_tower", "query_encoder")


def base_models_of(folders: Mapping[str, Path]) -> dict[str, BaseModelPin]:
    """Role -> base model, for the encoders among `folders` (role -> folder); raises ArtifactError for an unreadable contract."""
    contracts = {role: load_contract(folder)[0] for role, folder in folders.items() if role in ENCODERS}
    return {role: BaseModelPin(name=c.base_model, digest=c.base_digest, revision=c.base_revision) for role, c in contracts.items()}


def base_models_named_by(manifest: ReleaseManifest) -> dict[str, BaseModelPin]:
    """The base models that the manifest names. An older manifest names none; then those that the pinned encoders name."""
    if manifest.base_models:
        return manifest.base_models
    pins = {role: pin for role, pin in manifest.pins.items() if role in ENCODERS}
    return base_models_of({role: registry.artifact_folder(pin.model, pin.version) for role, pin in pins.items()})
