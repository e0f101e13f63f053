"""Baseline: one small encoder for queries and documents, fine-tuned contrastively on the teacher's training pairs.

The symmetric pair of TwinBERT (Lu et al., CIKM 2020) with shared weights and the cosine in the place of its crossing layer, which a
vector index cannot hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.artifacts import EncoderArtifact, seal
from components.distillation.config import DistillationConfig
from components.distillation.contrastive import ContrastiveTraining
from components.distillation.student import StudentEncoder, load_small_encoder, load_student, save_student, student_contract
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import Role, save_contract, space_id_of
from components.towers.pairs import Pairs
from components.towers.pooling import normalize
from components.towers.precision import autocast, pick_device, pick_dtype
from components.towers.probes import record_probes

if TYPE_CHECKING:
    from torch import Tensor


class SmallEncoder:
    """A small encoder in training: embeds with its head, hands out its weights. Both baselines have one."""

    def __init__(self, student: StudentEncoder, config: DistillationConfig, learning_rate: float) -> None:
        self.student, self.config, self.learning_rate = student, config, learning_rate
        self.device, self._dtype = student.device, pick_dtype(config.precision)

    def embed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
        with autocast(self.device, self._dtype):
            return normalize(self.student.project(rows).float())

    def groups(self) -> list[dict[str, Any]]:
        """Its trainable parameters as a group of the optimizer."""
        return [{"params": self._parameters(), "lr": self.learning_rate, "weight_decay": 0.01}]

    def state(self) -> dict[str, Tensor]:
        """Copies of its weights."""
        return {f"{part}/{k}": v.detach().clone() for part, module in self._modules().items() for k, v in module.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back weights given by `state()`; other entries are left alone."""
        for part, module in self._modules().items():
            prefix = f"{part}/"
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def _modules(self) -> dict[str, Any]:
        return {"model": self.student.model, "projection": self.student.projection}

    def _parameters(self) -> list[Any]:
        named = [pair for module in self._modules().values() for pair in module.named_parameters()]
        return [p for name, p in named if self.config.train_embeddings or "word_embeddings" not in name]


class SymmetricPair(SmallEncoder):
    """The small encoder in both roles (see components.distillation.contrastive.TrainablePair)."""

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids; the roles do not differ."""
        return self.student.tokens(texts)

    def embed(self, rows: Sequence[Sequence[int]], role: Role = "document") -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph; the roles do not differ."""
        return super().embed(rows)


def train_symmetric(
    pairs: Pairs, configs: tuple[TowerConfig, DistillationConfig], learning_rate: float, parents: Mapping[str, str], folder: Path
) -> EncoderArtifact:
    """Train the encoder that `configs[1]` names as `configs[0]` trains its towers, and save it as a document encoder of its own space.

    Raises ModelError for an unusable encoder or too few pairs.
    """
    towers, small = configs
    pair = SymmetricPair(_with_identity(pairs, towers, small), small, learning_rate)
    losses = ContrastiveTraining(pair, pairs, towers, folder).to_end("train symmetric pair")
    contract = save_student(pair.student, folder)
    space_id = space_id_of(contract)
    save_contract(folder, contract, space_id)
    record_probes(load_student(folder), folder)
    attributes = {
        "space_id": space_id,
        "role": "document",
        "dimension": contract.dimension,
        "base_model": contract.base_model,
        "final_loss": round(float(np.mean(losses[-10:])), 4),
    }
    counts = {"pairs": len(pairs.pairs), "pairs_seen": towers.steps * towers.batch_size}
    return EncoderArtifact.model_validate(seal(folder, "encoder", counts=counts, parents=parents, attributes=attributes).model_dump())


def _with_identity(pairs: Pairs, towers: TowerConfig, small: DistillationConfig) -> StudentEncoder:
    """The encoder with a square head that changes nothing at the start, so that it is saved and loaded like any student."""
    import torch
    from torch import nn

    torch.manual_seed(small.seed)
    base = resolve_base(small.student, [*pairs.documents, *pairs.queries])
    model, tokenizer = load_small_encoder(base, small.layers, "eager" if pick_device().type == "cpu" else "sdpa")
    width = model.config.hidden_size
    length = min(towers.max_document_length, getattr(model.config, "max_position_embeddings", towers.max_document_length))
    contract = student_contract(base, tokenizer, width, length, "").model_copy(update={"role": "document"})
    head = nn.Linear(width, width, bias=False)
    head.weight.data = torch.eye(width)
    return StudentEncoder(model.eval(), tokenizer, head, contract, "in training")
