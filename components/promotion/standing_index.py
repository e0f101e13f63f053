"""The index of the champion: how many documents it holds, and how many it had when its parameters were tuned."""

from __future__ import annotations

from typing import Any

from components.errors import PromotionError
from components.promotion.references import resolve
from components.promotion.release import load_release
from components.promotion.standing import CHAMPION
from components.tracking import registry


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
