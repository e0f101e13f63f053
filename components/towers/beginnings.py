"""Texts that begin alike, encoded together: each common beginning goes through the model once.

In a causal model a token's state depends on what stands before it alone, so texts with the same first tokens (a prompt, a catalogue's
entries, titles of one family) share those states exactly. The tokens of a bundle of texts form a tree; attention lets each see its
ancestors, at the position that it has in its own text. The same idea serves candidate drafts in tree attention (Miao et al., SpecInfer,
2024) and prompts in vLLM's prefix cache. Queries of a few words behind an instruction of twenty tokens cost a third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.towers.pooling import pool
from components.towers.tokens import pad_batch

if TYPE_CHECKING:
    from torch import Tensor

NODES = 128  # of a bundle; attention is quadratic in them, and a larger one saves no more
LONGEST = 512  # tokens of a text; the mask of a tree is quadratic in its longest
WORTH = 0.9  # share of the tokens that have to be left, else the plain way is as fast
# Rows that begin alike, so that the last of them stands far from its place in the tree, and what their states may differ by: rounding,
# not what a wrong neighbour or place would change.
_ROWS = tuple([5, 6, *range(first, first + 5)] for first in range(7, 15))
_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 0.15  # the latter in half precision, where Gemma's states differ by .04 by rounding, .45 by a place


@dataclass
class Bundle:
    """A tree of tokens: id, depth and parent (-1 for none) of each node, and number and last node of each text in it."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def seen(self) -> NDArray[np.bool_]:
        """Which nodes each node sees: itself and its ancestors, bool (nodes, nodes)."""
        seen = np.eye(len(self.ids), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def bundles_of(rows: Sequence[Sequence[int]], nodes: int = NODES) -> list[Bundle]:
    """All rows as trees of at most `nodes` tokens. A longer row is a tree of its own; no tree is empty."""
    bundles: list[Bundle] = []
    path: list[int] = []
    for number, common in common_lengths(rows):
        row = rows[number]
        if not bundles or len(bundles[-1].ids) + len(row) - common > nodes:
            bundles.append(Bundle())
            common = 0
        bundle = bundles[-1]
        del path[common:]
        for depth in range(common, len(row)):
            bundle.parents.append(path[-1] if path else -1)
            bundle.depths.append(depth)
            path.append(len(bundle.ids))
            bundle.ids.append(row[depth])
        bundle.texts.append(number)
        bundle.ends.append(path[-1])
    return bundles


def common_lengths(rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Row numbers, sorted by the rows' tokens; with each, how many leading tokens it shares with the row before it."""
    last: Sequence[int] = ()
    for number in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        yield number, _common(last, rows[number])
        last = rows[number]


def worth_sharing(rows: Sequence[Sequence[int]], bundles: Sequence[Bundle]) -> bool:
    """Whether enough tokens are saved."""
    return sum(len(bundle.ids) for bundle in bundles) <= WORTH * sum(map(len, rows))


def longest_shared(model: Any) -> int:
    """The longest text in tokens that may stand in a tree: a mask of our own would let layers see further back than their window."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return min(LONGEST, window) if isinstance(window, int) else LONGEST


def can_share(model: Any) -> bool:
    """Whether `model` gives the same states for a tree of tokens as for each text alone.

    Measured, as architectures differ in the masks and positions that they heed; one that fails in any way is encoded the plain way.
    """
    if "position_ids" not in signature(model.forward).parameters:
        return False
    import torch

    tolerance = _TOLERANCE if model.dtype in (torch.float32, torch.float64) else _COARSE_TOLERANCE
    try:
        with torch.inference_mode():
            batch = {name: tensor.to(model.device) for name, tensor in pad_batch(_ROWS, 0).items()}
            alone = pool(model(**batch).last_hidden_state, batch["attention_mask"], "last")
            bundles = bundles_of(_ROWS)
            shared = pooled_bundles(model, bundles, "last", 0)[np.argsort(numbers_of(bundles))]
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return bool(((alone - shared).norm(dim=1) / alone.norm(dim=1)).mean() <= tolerance)


def numbers_of(bundles: Sequence[Bundle]) -> list[int]:
    """The numbers of the texts in these bundles, in the order in which `pooled_bundles` gives their states."""
    return [number for bundle in bundles for number in bundle.texts]


def pooled_bundles(model: Any, bundles: Sequence[Bundle], pooling: str, pad_id: int) -> Tensor:
    """Pooled states (texts, width) float32 of a batch of bundles, one bundle after the other."""
    import torch

    device, nodes = model.device, max(len(bundle.ids) for bundle in bundles)
    batch = pad_batch([bundle.ids for bundle in bundles], pad_id)
    depths = pad_batch([bundle.depths for bundle in bundles], 0)["input_ids"]
    seen = np.broadcast_to(np.eye(nodes, dtype=bool), (len(bundles), nodes, nodes)).copy()  # padding sees itself: no row without any
    for own, bundle in zip(seen, bundles, strict=True):
        own[: len(bundle.ids), : len(bundle.ids)] = bundle.seen()
    mask = torch.zeros(len(bundles), 1, nodes, nodes, dtype=model.dtype)
    mask.masked_fill_(~torch.from_numpy(seen)[:, None], torch.finfo(model.dtype).min)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": depths}
    states = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).last_hidden_state
    weights = (_weights(bundle, own, pooling) for bundle, own in zip(bundles, seen, strict=True))
    return torch.cat([torch.from_numpy(own).to(device) @ tokens.float() for own, tokens in zip(weights, states, strict=True)])


def _weights(bundle: Bundle, seen: NDArray[np.bool_], pooling: str) -> NDArray[np.float32]:
    """What each node counts in each text's vector, float32 (texts, nodes)."""
    ends = np.asarray(bundle.ends)
    if pooling == "mean":
        return (seen[ends] / (np.asarray(bundle.depths)[ends] + 1)[:, None]).astype(np.float32)
    weights = np.zeros((len(ends), seen.shape[1]), np.float32)
    # The first of a text's nodes is its only ancestor without a parent, and stands before all others in the tree.
    weights[np.arange(len(ends)), seen[ends].argmax(1) if pooling == "cls" else ends] = 1.0
    return weights


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal first tokens."""
    for place, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return place
    return min(len(one), len(other))
