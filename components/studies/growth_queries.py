"""Query vectors for the study of growth, encoded once for all sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact
from components.data.dataset import load_dataset
from components.distillation.sources import dev_queries
from components.evaluation.summarize import judged_split
from components.evaluation.units import query_units
from components.studies.growth_cell import QUERIES_FILE, TUNING_FILE, UNITS_FILE
from components.towers.encoder import load_tower


def write_growth_queries(
    dataset: Artifact, tower: Artifact, split: str, rule: tuple[int, int, int], folder: Path, groups: str
) -> dict[str, Any]:
    """Write queries.npy, vectors of judged queries of `split`, units.npy, their units, and tuning.npy, vectors of dev queries.

    Vectors are float32 (n, d), units int64 (n,). `rule`: at most so many queries, at most so many for the tuning, and the seed that draws
    them. `groups` is evaluation.query_groups. Returns how many there are.
    """
    count, tuning, seed = rule
    data, encoder = load_dataset(dataset.path), load_tower(tower.path)
    judged = judged_split(data, split)
    chosen = _drawn(len(judged.texts), count, seed)
    asked = [judged.texts[place] for place in chosen]
    np.save(folder / UNITS_FILE, query_units(judged, data, groups).numbers[chosen])
    # A query that is measured must not have tuned the index.
    others = sorted(set(dev_queries(data)) - set(asked))
    tuned = [others[place] for place in _drawn(len(others), tuning, seed)]
    for name, texts in ((QUERIES_FILE, asked), (TUNING_FILE, tuned)):
        vectors = encoder.encode(texts) if texts else np.empty((0, encoder.contract.dimension), np.float32)
        np.save(folder / name, vectors)
    return {"queries": len(asked), "tuning_queries": len(tuned)}


def _drawn(there: int, count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(there)[:count]
