"""Contrastive training of any two encoders, for the baselines: what stage 1 does, with other encoders in the place of the towers.

Loss, batches, known and mined negatives, gradient caching and schedule are those of stage 1, so that a baseline sees the same pairs in
the same batches for as many steps. The auxiliary losses of stage 1 (Matryoshka, query prediction) stay with it. No dropout, as there.
Our own loop, since sentence-transformers' trainer draws its batches in an order of its own and the pairs seen would not be the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from components.towers import gradient_cache
from components.towers.batches import BatchPlan
from components.towers.config import TowerConfig
from components.towers.contract import Role
from components.towers.losses import info_nce
from components.towers.negatives import known_false_negatives, mine
from components.towers.pairs import Pairs
from components.towers.schedule import warmup_cosine

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHECKPOINT = "checkpoint.pt"
ENCODE_BATCH = 64


class TrainablePair(Protocol):
    """Two encoders of one space, or one in both roles."""

    device: torch.device

    def tokens(self, texts: Sequence[str], role: Role) -> list[list[int]]:
        """Token ids of each text."""
        ...

    def embed(self, rows: Sequence[Sequence[int]], role: Role) -> Tensor:
        """Unit float32 vectors (len(rows), dimension) with a graph."""
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


class ContrastiveTraining:
    """A training run and its loop; a killed one continues from its last checkpoint in `folder`."""

    def __init__(self, pair: TrainablePair, pairs: Pairs, config: TowerConfig, folder: Path) -> None:
        """Raises ModelError when there are fewer pairs than a batch needs."""
        import torch

        self.pair, self.pairs, self.config, self.folder = pair, pairs, config, folder
        self.rows = {"query": pair.tokens(pairs.queries, "query"), "document": pair.tokens(pairs.documents, "document")}
        lengths = {role: [len(row) for row in rows] for role, rows in self.rows.items()}
        self.plan = BatchPlan(pairs, config, lengths["query"], lengths["document"])
        self.optimizer = torch.optim.AdamW(pair.groups())
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.losses: list[float] = []
        self.mined = -1
        self.negatives: NDArray[np.int64] = np.empty((len(pairs.pairs), 0), np.int64)
        self._resume()

    def to_end(self, label: str) -> list[float]:
        """Run the steps that are left under a progress bar named `label`; returns the loss of every step."""
        from tqdm import tqdm

        done = len(self.losses)
        with tqdm(total=self.config.steps, initial=done, desc=label, unit="step", mininterval=1) as bar:
            for step in range(done, self.config.steps):
                self.losses.append(self._step(step))
                bar.update()
                bar.set_postfix(loss=f"{np.mean(self.losses[-10:]):.3f}", refresh=False)
                if (step + 1) % self.config.checkpoint_every == 0:
                    self._save()
        (self.folder / CHECKPOINT).unlink(missing_ok=True)
        return self.losses

    def _step(self, step: int) -> float:
        import torch

        self._mine(step)
        factor = warmup_cosine(step, self.config.steps, self.config.warmup_share)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        batch = self.plan.of_step(step)
        queries, positives = (list(numbers) for numbers in zip(*(self.pairs.pairs[i] for i in batch), strict=True))
        documents = [*positives, *(int(d) for d in self.negatives[batch].ravel() if d >= 0)]
        blocked = torch.from_numpy(known_false_negatives(self.pairs, queries, documents)).to(self.pair.device)

        def loss(q: Tensor, d: Tensor) -> Tensor:
            return info_nce(q, d, self.config.temperature, blocked=blocked, suspect_margin=self.config.suspect_margin)

        chunks = self._chunks("query", queries), self._chunks("document", documents)
        value = gradient_cache.backward(self.pair.embed, *chunks, loss)  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _chunks(self, role: Role, numbers: Sequence[int]) -> list[list[list[int]]]:
        rows, size = [self.rows[role][i] for i in numbers], self.config.chunk_size
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def _mine(self, step: int) -> None:
        """Mine hard negatives when their round has come; each round has its own from the encoders as they are then."""
        due = _round(step, self.config)
        if due > self.mined:
            vectors = {role: self._encode(role) for role in ("query", "document")}
            self.negatives = mine(vectors["query"], vectors["document"], self.pairs, self.config, due).negatives
            self.mined = due

    def _encode(self, role: Any) -> NDArray[np.float32]:
        import torch

        rows = self.rows[role]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        with torch.no_grad():
            parts = [self.pair.embed([rows[i] for i in order[s : s + ENCODE_BATCH]], role) for s in range(0, len(rows), ENCODE_BATCH)]
        found = torch.cat(parts).cpu().numpy()
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    def _save(self) -> None:
        import torch

        beside = self.folder / f".{CHECKPOINT}.tmp"
        state = {
            "weights": self.pair.state(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "mined": self.mined,
            "negatives": torch.from_numpy(self.negatives),
        }
        torch.save(state, beside)
        os.replace(beside, self.folder / CHECKPOINT)

    def _resume(self) -> None:
        import torch

        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.pair.device, weights_only=True)
        self.pair.load_state(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.mined = state["losses"], state["mined"]
        self.negatives = state["negatives"].cpu().numpy()


def _round(step: int, config: TowerConfig) -> int:
    """Number of the mining whose negatives the step uses, -1 before the first."""
    if not config.hard_negatives or step < config.mining_start:
        return -1
    return (step - config.mining_start) // config.mining_interval if config.mining_interval else 0
