"""Facts of a data set that does not exist, with lengths that are easily counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from components.planning.facts import Facts, Shape, Texts

DECODER = Shape(layers=2, width=64, inner=128, heads=4, key_heads=2, head_width=16, vocabulary=100, gated=True)
ENCODER = Shape(layers=2, width=64, inner=128, heads=4, key_heads=4, head_width=16, vocabulary=100, gated=False)


def texts(count: int, tokens: int = 10) -> Texts:
    """Texts of equal length."""
    lengths = np.full(min(count, 50), tokens)
    return Texts(count, count * 4 * tokens, lengths, lengths)


def facts(**changes: Any) -> Facts:
    """100 documents of 20 tokens, 64 train queries and 100 titles of 10, 50 test and 10 dev queries."""
    known: dict[str, Any] = {
        "documents": texts(100, 20),
        "sources": {"train": texts(64), "titles": texts(100)},
        "dev": texts(10),
        "judged": {"test": texts(50)},
        "judged_counts": {"train": 64, "dev": 10, "test": 50},
        "pairs": np.full((64, 2), (10, 20)),
        "pair_count": 64,
        "refine_pairs": 164,
        "scripts": {"latin": 1.0},
        "teacher": DECODER,
        "student": ENCODER,
    }
    return Facts(**{**known, **changes})
