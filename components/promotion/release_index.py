"""The index of a release: its verified files, and of the champion how many documents it holds against how many it was tuned for."""

from __future__ import annotations

from typing import Any

from components.artifacts import IndexArtifact, verify
from components.errors import PromotionError
from components.promotion.approval import find_version
from components.promotion.references import resolve
from components.promotion.release import load_release
from components.promotion.standing import CHAMPION
from components.tracking import labels, registry


def verified_index(name: str, ref: str) -> tuple[str, IndexArtifact]:
    """`model/version` that `ref` names, and its index with every file hashed.

    Raises PromotionError for an unknown `ref`, ArtifactError when a file of release or index is missing or changed.
    """
    model, version = resolve(name, ref)
    info = find_version(model, version)
    folder = verify(registry.artifact_folder(model, version), info.tags.get(labels.DIGEST) if info else None).path
    pin = load_release(folder).pins.index
    index = verify(registry.artifact_folder(pin.model, pin.version), pin.digest)
    return f"{model}/{version}", IndexArtifact(**index.model_dump())


def champion_index(name: str) -> dict[str, Any] | None:
    """`release`, `index_key`, `documents` and `tuned_documents` of the champion's index; None when nothing was promoted yet.

    `tuned_documents` is None for exact search, and for an index from before it was recorded. Reads the release's manifest alone;
    raises ArtifactError when that is gone or broken.
    """
    try:
        model, version = resolve(name, CHAMPION)
    except PromotionError:
        return None
    manifest = load_release(registry.artifact_folder(model, version))
    for node in manifest.lineage:
        if node.digest == manifest.pins.index.digest:
            known = {key: node.attributes.get(key) for key in ("index_key", "tuned_documents")}
            return {"release": version, "documents": node.counts.get("documents"), **known}
    return None
