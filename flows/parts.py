"""The finished parts of a release, before they are registered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.artifacts import Artifact, DatasetArtifact, EncoderArtifact, IndexArtifact
from components.release.base_models import ENCODERS
from components.release.manifest import Pins, ReleaseType


@dataclass(frozen=True)
class Parts:
    """All that a release is made of. `notes` are lines about a refresh for the reviewer, as plain text.

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
