"""Query vectors for the study of growth, encoded once for all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.artifacts import Artifact
from components.data.dataset import load_dataset
from components.distillation.sources import dev_queries
from components.evaluation.growth_cell import QUERIES_FILE, TUNING_FILE
from components.evaluation.summarize import judged_split
from components.towers.encoder import load_tower


def write_growth_queries(dataset: Artifact, tower: Artifact, split: str, rule: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    """Write queries.npy, vectors of judged queries of `split`, and tuning.npy, those of dev queries: float32 (n, d).

    `rule`: at most so many queries, at most so many for the tuning, and the seed that draws them. Returns how many there are.
    """
    count, tuning, seed = rule
    data, encoder = load_dataset(dataset.path), load_tower(tower.path)
    asked = _sample(judged_split(data, split).texts, count, seed)
    # A query that is measured must not have tuned the index.
    tuned = _sample(sorted(set(dev_queries(data)) - set(asked)), tuning, seed)
    for name, texts in ((QUERIES_FILE, asked), (TUNING_FILE, tuned)):
        vectors = encoder.encode(texts) if texts else np.empty((0, encoder.contract.dimension), np.float32)
        np.save(folder / name, vectors)
    return {"queries": len(asked), "tuning_queries": len(tuned)}


def _sample(texts: Sequence[str], count: int, seed: int) -> list[str]:
    order = np.random.default_rng(seed).permutation(len(texts))[:count]
    return [texts[row] for row in order]
