"""The index of a release: its verified files, and of the champion whether it still has the size that it was tuned for."""

from __future__ import annotations

from typing import Any

from components.artifacts import IndexArtifact, verify
from components.errors import PromotionError
from components.index.index_keys import is_exact
from components.release.champion import CHAMPION
from components.release.manifest import load_release
from components.release.open import load_manifest, recorded_digest
from components.release.references import resolve
from components.tracking import registry


def verified_index(name: str, ref: str) -> tuple[str, IndexArtifact]:
    """`model/version` that `ref` names, and its index with every file hashed; encoders are not fetched.

    Raises PromotionError for an unknown `ref`, ArtifactError when a file of release or index is missing or changed.
    """
    model, version = resolve(name, ref)
    folder = verify(registry.artifact_folder(model, version), recorded_digest(name, model, version)).path
    pin = load_release(folder).pins.index
    index = verify(registry.artifact_folder(pin.model, pin.version), pin.digest)
    return f"{model}/{version}", IndexArtifact(**index.model_dump())


def champion_index(name: str) -> dict[str, Any] | None:
    """`index_key`, `documents`, `tuned_documents` and `guard` of the champion's index; None when nothing was promoted yet.

    `tuned_documents` is None for exact search, which has nothing to tune, and for an index from before it was recorded; `guard` is what
    the last refresh found. Reads the release's manifest alone; raises ArtifactError when that is gone or broken.
    """
    try:
        manifest = load_manifest(name, CHAMPION)
    except PromotionError:
        return None
    for node in manifest.lineage:
        if node.digest == manifest.pins.index.digest:
            key = str(node.attributes.get("index_key"))
            tuned = None if is_exact(key) else node.attributes.get("tuned_documents")
            found = {"index_key": key, "documents": node.counts.get("documents"), "tuned_documents": tuned}
            return {**found, "guard": node.attributes.get("guard")}
    return None
