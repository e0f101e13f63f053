"""Baseline: one small encoder for queries and documents, fine-tuned contrastively on the teacher's training pairs.

The symmetric pair of TwinBERT (Lu et al., CIKM 2020) with shared weights and the cosine in the place of its crossing layer, which a
vector index cannot hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import Artifact, EncoderArtifact, Scalar, seal
from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.heads import linear_head
from components.distillation.student.initial import role_prompts, with_prompt
from components.distillation.student.storage import load_student, save_student
from components.distillation.student.transformer import Source, at_most_positions, bare_student
from components.studies.contrastive import train_pair, without_auxiliary
from components.towers.config import TowerConfig
from components.towers.contract import Role, save_contract, space_id_of
from components.towers.device import autocast, pick_dtype
from components.towers.pairs import Pairs
from components.towers.pooling import normalize
from components.towers.probes import record_probes

if TYPE_CHECKING:
    from torch import Tensor


QUERY_PROMPT = "query_prompt"


class SmallEncoder:
    """A small encoder in contrastive training. Both baselines have one."""

    def __init__(self, student: StudentEncoder, config: DistillationConfig, learning_rate: float) -> None:
        self.student, self._rate = student, learning_rate
        self.device, self._dtype = student.device, pick_dtype(config.precision)
        self._trained = student.parameters(config.train_embeddings)

    def embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        with autocast(self.device, self._dtype):
            return normalize(self.student.project(rows).float())

    def encode(self, rows: Sequence[Sequence[int]], progress: str | None = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(rows), dimension) without a graph, in the order of `rows`."""
        vectors = self.student.encode_rows(rows, progress=progress)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def groups(self) -> list[dict[str, Any]]:
        """Its trainable parameters as a group of the optimizer."""
        return [{"params": self._trained, "lr": self._rate, "weight_decay": 0.01}]


class SymmetricPair:
    """The small encoder in both roles (see components.studies.contrastive.TrainablePair), which differ by their prompts alone."""

    def __init__(self, encoder: SmallEncoder, query_prompt: str) -> None:
        self.encoder, self.device, self.even = encoder, encoder.device, False
        self._queries = with_prompt(encoder.student, query_prompt)

    def kept_bytes(self, config: TowerConfig) -> int:
        """See components.studies.contrastive.TrainablePair."""
        return 0

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids behind the role's prompt."""
        return (self._queries if role == "query" else self.encoder.student).tokens(texts)

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph; the roles do not differ."""
        return self.encoder.embed(rows)

    def encode(self, rows: Sequence[Sequence[int]], role: Role, progress: str | None = None) -> NDArray[np.float32]:
        """The same without a graph, for any number of rows."""
        return self.encoder.encode(rows, progress)

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer."""
        return self.encoder.groups()

    def state(self) -> dict[str, Tensor]:
        """Copies of all trained weights."""
        return self.encoder.student.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put back weights given by `state()`."""
        self.encoder.student.load_state(state)


def train_symmetric(
    pairs: Pairs, configs: tuple[TowerConfig, DistillationConfig], learning_rate: float, parents: Mapping[str, str], folder: Path
) -> EncoderArtifact:
    """Train the encoder that `configs[1]` names as `configs[0]` trains its towers, and save it as a document encoder of its own space.

    Queries and documents have their prompts as published (see `role_prompts`); `symmetric_roles` opens what was saved. Raises ModelError
    for an unusable encoder or too few pairs.
    """
    towers, small = configs
    prompts = role_prompts(small, [*pairs.documents, *pairs.queries])
    student = _with_identity(pairs, towers, small, prompts["document"])
    pair = SymmetricPair(SmallEncoder(student, small, learning_rate), prompts["query"])
    losses = train_pair(pair, pairs, without_auxiliary(towers), folder, "train symmetric pair")
    contract = save_student(student, folder)
    space_id = space_id_of(contract)
    save_contract(folder, contract, space_id)
    record_probes(load_student(folder), folder)
    attributes: dict[str, Scalar] = {
        "space_id": space_id,
        "role": "document",
        "dimension": contract.dimension,
        "base_model": contract.base_model,
        "final_loss": round(float(np.mean(losses[-10:])), 4),
        QUERY_PROMPT: prompts["query"],
    }
    counts = {"pairs": len(pairs.pairs), "pairs_seen": towers.steps * towers.batch_size}
    return EncoderArtifact.model_validate(seal(folder, "encoder", counts=counts, parents=parents, attributes=attributes).model_dump())


def symmetric_roles(trained: Artifact) -> tuple[StudentEncoder, StudentEncoder]:
    """The encoder that `train_symmetric` made, for queries and for documents."""
    document = load_student(trained.path)
    return with_prompt(document, str(trained.attributes[QUERY_PROMPT])), document


def _with_identity(pairs: Pairs, towers: TowerConfig, small: DistillationConfig, prompt: str) -> StudentEncoder:
    """The encoder with a square head that changes nothing at the start, so that it is saved and loaded like any student."""
    import torch

    source = Source(small.model_copy(update={"query_prompt": prompt}), [*pairs.documents, *pairs.queries], None)
    bare = bare_student(source)
    update = {"role": "document", "max_length": at_most_positions(bare, towers.max_document_length)}
    head = linear_head(torch.eye(bare.contract.dimension))
    return StudentEncoder(bare.model, bare.tokenizer, head, bare.contract.model_copy(update=update), "in training")
