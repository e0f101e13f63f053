"""Baseline: an LLM document tower and a small query encoder, trained end to end by one contrastive loss.

The asymmetric pair called ScalingDoc in the comparison of ScalingNote (arXiv 2411.15766), of which little more than this is known.
Chosen here: the document tower is an adapter on the LLM as in stage 1; the query encoder is the student with its head, fitted before
training to the untrained LLM's query vectors, so that end-to-end training does not start from two unrelated spaces.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, Scalar, seal
from components.distillation.config import DistillationConfig
from components.distillation.student.initial import new_student
from components.distillation.student.storage import load_student, save_student
from components.studies.contrastive import train_pair, without_auxiliary
from components.studies.symmetric import SmallEncoder
from components.towers.base_models import tower_base
from components.towers.config import TowerConfig
from components.towers.contract import EncodingContract, Role, TextEncoder, save_contract, space_id_of
from components.towers.encoder import load_tower
from components.towers.pairs import Pairs
from components.towers.probes import record_probes
from components.towers.two_towers import TwoTowers

if TYPE_CHECKING:
    from torch import Tensor

FIT_QUERIES = 4096  # train queries that the head is fitted on
DOCUMENT_TOWER, QUERY_ENCODER = "document_tower", "query_encoder"
TOWERS = "towers/"


class AsymmetricPair:
    """The document tower and the query encoder (see components.studies.contrastive.TrainablePair)."""

    def __init__(self, towers: TwoTowers, tower_rate: float, query: SmallEncoder) -> None:
        self.towers, self.tower_rate, self.query = towers, tower_rate, query
        self.device, self.even = towers.device, towers.even

    def kept_bytes(self, config: TowerConfig) -> int:
        """See components.studies.contrastive.TrainablePair."""
        return self.towers.kept_bytes(config)

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids under the contract of the role's own encoder."""
        return self.query.student.tokens(texts) if role == "query" else self.towers.tokens(texts, "document")

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        return self.query.embed(rows) if role == "query" else self.towers.embed(rows, "document")

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """The same without a graph, for any number of rows."""
        return self.query.encode(rows, progress) if role == "query" else self.towers.encode(rows, "document", progress)

    def groups(self) -> list[dict[str, Any]]:
        """Both encoders' parameters, each with its own learning rate; the tower's query adapter gets no gradient and stays."""
        return [{"params": self.towers.parameters(), "lr": self.tower_rate, "weight_decay": 0.0}, *self.query.groups()]

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained weights."""
        return {**{TOWERS + name: value for name, value in self.towers.state().items()}, **self.query.student.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        self.towers.load_state({name.removeprefix(TOWERS): value for name, value in state.items() if name.startswith(TOWERS)})
        self.query.student.load_state({name: value for name, value in state.items() if not name.startswith(TOWERS)})


def train_asymmetric(
    pairs: Pairs, configs: tuple[TowerConfig, DistillationConfig], learning_rate: float, parents: Mapping[str, str], folder: Path
) -> Artifact:
    """Train both encoders end to end and write `folder`/document_tower and `folder`/query_encoder, each an encoder artifact.

    `configs` are those of stage 1 and of the student; `learning_rate` is the query encoder's, the tower has stage 1's. Vectors keep
    the LLM's whole width. Raises ModelError for an unusable model or too few pairs.
    """
    config, small = without_auxiliary(configs[0]), configs[1]
    towers = TwoTowers(tower_base(config, [*pairs.documents, *pairs.queries]), config)
    texts = list(dict.fromkeys(pairs.queries))[:FIT_QUERIES]
    untrained = towers.encode(towers.tokens(texts, "query"), "query", "queries with the untrained LLM")
    student = new_student(texts, untrained, "in training", small, None)
    pair = AsymmetricPair(towers, config.learning_rate, SmallEncoder(student, small, learning_rate))
    losses = train_pair(pair, pairs, config, folder, "train end to end")
    _write(pair, parents, folder)
    counts = {"pairs": len(pairs.pairs), "pairs_seen": config.steps * config.batch_size}
    attributes = {"final_loss": round(float(np.mean(losses[-10:])), 4), "steps": config.steps}
    return seal(folder, "towers", counts=counts, parents=parents, attributes=attributes)


def _write(pair: AsymmetricPair, parents: Mapping[str, str], folder: Path) -> None:
    """Save both with contract, space and probes; the space is named by the document tower."""
    targets = {name: folder / name for name in (DOCUMENT_TOWER, QUERY_ENCODER)}
    for target in targets.values():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
    # None is for the other ones of several processes; this training has one.
    document = cast("EncodingContract", pair.towers.save("document", targets[DOCUMENT_TOWER]))
    query = save_student(pair.query.student, targets[QUERY_ENCODER])
    space_id = space_id_of(document)
    _finish(targets[DOCUMENT_TOWER], document, space_id, parents)
    _finish(targets[QUERY_ENCODER], query, space_id, parents)


def _finish(folder: Path, contract: EncodingContract, space_id: str, parents: Mapping[str, str]) -> None:
    save_contract(folder, contract, space_id)
    encoder: TextEncoder = load_tower(folder) if contract.role == "document" else load_student(folder)
    record_probes(encoder, folder)
    attributes: dict[str, Scalar] = {
        "space_id": space_id,
        "role": contract.role,
        "dimension": contract.dimension,
        "base_model": contract.base_model,
    }
    seal(folder, "encoder", counts={"probes": 64}, parents=parents, attributes=attributes)
