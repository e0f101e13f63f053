"""Contrastive training of other encoders than the towers, for the baselines: the loop of stage 1 itself, so that all that is not the
encoders is equal: the batches, the known and mined negatives, the loss, the cached gradients, the schedule, the checkpoints.

The auxiliary losses of stage 1 (Matryoshka, query prediction) stay with the towers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.sources import query_sources
from components.towers.checkpoint import CHECKPOINT
from components.towers.config import TowerConfig
from components.towers.contract import Role
from components.towers.hard_negatives import check_mining
from components.towers.loop import Training
from components.towers.pairs import Pairs, document_kinds, training_pairs

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from components.data.dataset import Dataset
    from components.towers.two_towers import TwoTowers


class TrainablePair(Protocol):
    """Two encoders of one space, or one in both roles: what the loop asks of towers."""

    device: torch.device
    even: bool  # whether batches are padded to few shapes (see `components.towers.tokens.pad_batch`)

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        ...

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """The same without a graph, for any number of rows, in their order; `progress` labels a bar on stderr."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer, each group with its peak learning rate `lr` and its `weight_decay`."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained weights."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        ...

    def kept_bytes(self, config: TowerConfig) -> int:
        """Bytes that a pass over the largest chunk of `config` keeps for its backward pass; 0 where they are few."""
        ...


class PairTraining(Training):
    """Stage 1's loop with a pair of encoders in the place of the towers."""

    def __init__(self, pair: TrainablePair, pairs: Pairs, config: TowerConfig, folder: Path) -> None:
        """Raises ModelError when there are fewer pairs than a batch needs, ConfigError for a mining that cannot be."""
        self._pair = pair
        check_mining(config)
        super().__init__(cast("TwoTowers", pair), pairs, config, folder)

    def _groups(self) -> list[dict[str, Any]]:
        return self._pair.groups()


def for_passes(config: TowerConfig, pairs: int, passes: float) -> TowerConfig:
    """Stage 1's configuration with as many steps as take `passes` passes over the pairs, at least one."""
    return config.model_copy(update={"steps": max(1, math.ceil(pairs * passes / config.batch_size))})


def without_auxiliary(config: TowerConfig) -> TowerConfig:
    """Stage 1's configuration without what only towers have: one loss, all dimensions, one process."""
    return config.model_copy(
        update={"matryoshka": (), "dimension": None, "query_prediction_weight": 0.0, "processes": 1, "sharding": "none"}
    )


def pairs_with_titles(dataset: Dataset, config: DistillationConfig, batches_by: str = "") -> Pairs:
    """The pairs that a student is refined on, for the training of two encoders: train judgements, and titles where `refine_titles` is set.

    The titles are those of `query_sources`. `batches_by` as for `training_pairs`.
    """
    train = training_pairs(dataset, batches_by)
    if not config.refine_titles:
        return train
    titles = query_sources(dataset, config)["titles"]
    rows = {title: len(train.queries) + i for i, title in enumerate(titles)}
    found = [(rows[title], i) for i, title in enumerate(dataset.documents["title"]) if title in rows]
    relevant = {query: set(documents) for query, documents in train.relevant.items()}
    for query, document in found:
        relevant.setdefault(query, set()).add(document)
    ids = dataset.documents["doc_id"].tolist()
    return Pairs(
        queries=[*train.queries, *titles],
        documents=train.documents,
        pairs=[*train.pairs, *found],
        relevant={query: frozenset(documents) for query, documents in relevant.items()},
        origins=[*train.origins, *(dataset.origin_of(ids[document]) for _, document in found)],
        own=train.own,
        kinds=[*train.kinds, *document_kinds(dataset, [document for _, document in found], batches_by)] if batches_by else (),
    )


def train_pair(pair: TrainablePair, pairs: Pairs, config: TowerConfig, folder: Path, label: str) -> list[float]:
    """Train `pair` in place as stage 1 trains its towers; a killed training continues. Returns the loss of every step."""
    run = PairTraining(pair, pairs, config, folder)
    run.label = label
    run.to_end()
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return run.losses
