"""Stage 1: train both towers contrastively. Killed and started again, it continues from its last checkpoint.

The order of the data follows from the seed and the step alone, there is no dropout, and a checkpoint holds adapters and optimizer,
so a continued run repeats the straight run's arithmetic (tested: equal vectors to 1e-5 in float32).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from components.artifacts import Artifact, Scalar, read_json, seal, write_json
from components.errors import ModelError
from components.towers import gradient_cache
from components.towers.backbone import ROLES, TwoTowers
from components.towers.base_models import resolve_base
from components.towers.checks import Spread, measure_spread, refuse_collapse
from components.towers.config import TowerConfig
from components.towers.contract import save_contract, space_id_of
from components.towers.encoder import load_tower
from components.towers.losses import info_nce
from components.towers.pairs import Pairs
from components.towers.probes import record_probes
from components.towers.schedule import warmup_cosine

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.pt"
LOG = "training_log.json"


def train_towers(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path) -> Artifact:
    """Train and write `folder`/query_tower and `folder`/document_tower, each an encoder artifact of its own.

    Raises ModelError for an unusable base model and CollapseError when the embeddings have collapsed.
    """
    if len(pairs.pairs) < config.batch_size:
        raise ModelError(f"towers.batch_size is {config.batch_size}, but there are only {len(pairs.pairs)} training pairs. Lower it.")
    towers = TwoTowers(resolve_base(config.base_model, [*pairs.documents, *pairs.queries]), config)
    run = _Training(towers, pairs, config, folder)
    run.to_end()
    spread = _check_collapse(towers, pairs, config)
    _write_towers(towers, parents, folder)
    write_json(folder / LOG, {"loss": run.losses, "spread": {k: vars(v) for k, v in spread.items()}})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    attributes = {"final_loss": round(float(np.mean(run.losses[-10:])), 4), "steps": config.steps}
    return seal(folder, "towers", counts={"pairs": len(pairs.pairs)}, parents=parents, attributes=attributes)


class _Training:
    """The state of a training run and its loop."""

    def __init__(self, towers: TwoTowers, pairs: Pairs, config: TowerConfig, folder: Path) -> None:
        import torch

        self.towers, self.pairs, self.config, self.folder = towers, pairs, config, folder
        self.optimizer = torch.optim.AdamW(towers.parameters(), lr=config.learning_rate, weight_decay=0.0)
        self.query_tokens = towers.tokens(pairs.queries, "query")
        self.document_tokens = towers.tokens(pairs.documents, "document")
        self.losses: list[float] = []
        self._resume()

    def to_end(self) -> None:
        """Run the steps that are left, with a progress bar of loss and pairs per second."""
        from tqdm import tqdm

        done = len(self.losses)
        with tqdm(total=self.config.steps, initial=done, desc="train towers", unit="step", mininterval=1) as bar:
            for step in range(done, self.config.steps):
                self.losses.append(self._step(step))
                bar.update()
                rate = (bar.format_dict["rate"] or 0) * self.config.batch_size
                bar.set_postfix(loss=f"{np.mean(self.losses[-10:]):.3f}", pairs_per_s=f"{rate:.1f}", refresh=False)
                if (step + 1) % self.config.checkpoint_every == 0:
                    self._save()

    def _step(self, step: int) -> float:
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup_cosine(step, self.config.steps, self.config.warmup_share)
        batch = batch_of_step(len(self.pairs.pairs), self.config.batch_size, step, self.config.seed)
        picked = [self.pairs.pairs[i] for i in batch]
        queries = self._chunks([self.query_tokens[q] for q, _ in picked])
        documents = self._chunks([self.document_tokens[d] for _, d in picked])
        also = torch.tensor([[d in self.pairs.relevant[q] for _, d in picked] for q, _ in picked], device=self.towers.device)

        def loss(q: Tensor, d: Tensor) -> Tensor:
            return info_nce(q, d, self.config.temperature, blocked=also)

        value = gradient_cache.backward(self.towers.embed, queries, documents, loss)  # type: ignore[arg-type]
        torch.nn.utils.clip_grad_norm_(self.towers.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _chunks(self, rows: list[list[int]]) -> list[list[list[int]]]:
        return [rows[i : i + self.config.chunk_size] for i in range(0, len(rows), self.config.chunk_size)]

    def _save(self) -> None:
        import torch

        beside = self.folder / f".{CHECKPOINT}.tmp"
        state = {"adapters": self.towers.state(), "optimizer": self.optimizer.state_dict(), "losses": self.losses}
        torch.save(state, beside)
        os.replace(beside, self.folder / CHECKPOINT)

    def _resume(self) -> None:
        import torch

        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state: dict[str, Any] = torch.load(path, map_location=self.towers.device, weights_only=True)
        self.towers.load_state(state["adapters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"]


def batch_of_step(count: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Pair numbers of one step: consecutive slices of a permutation per epoch, a function of seed and step alone."""
    per_epoch = count // batch_size
    epoch, slot = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(i) for i in order[slot * batch_size : (slot + 1) * batch_size]]


def _check_collapse(towers: TwoTowers, pairs: Pairs, config: TowerConfig) -> dict[str, Spread]:
    import torch

    rng = np.random.default_rng(config.seed)
    spreads: dict[str, Spread] = {}
    for role, texts in zip(ROLES, (pairs.queries, pairs.documents), strict=True):
        sample = rng.permutation(len(texts))[:256]
        with torch.no_grad():
            rows = towers.tokens([texts[i] for i in sample], role)
            vectors = torch.cat([towers.embed(rows[i : i + 32], role) for i in range(0, len(rows), 32)]).cpu().numpy()
        spreads[role] = measure_spread(vectors)
        refuse_collapse(f"{role} tower", spreads[role], config.max_mean_cosine, config.min_effective_rank)
    return spreads


def _write_towers(towers: TwoTowers, parents: Mapping[str, str], folder: Path) -> None:
    """Save both adapters with contract, space and probes; the probes are encoded as a user will, from the saved folder."""
    contracts = {}
    for role in ROLES:
        target = folder / f"{role}_tower"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        contracts[role] = towers.save(role, target)
    space_id = space_id_of(contracts["document"])
    for role in ROLES:
        target = folder / f"{role}_tower"
        save_contract(target, contracts[role], space_id)
        encoder = load_tower(target)
        record_probes(encoder, target)
        attributes: dict[str, Scalar] = {
            "space_id": space_id,
            "role": role,
            "dimension": contracts[role].dimension,
            "base_model": contracts[role].base_model,
        }
        seal(target, "encoder", counts={"probes": 64}, parents=parents, attributes=attributes)


def training_losses(folder: Path) -> list[float]:
    """Loss of every step of a finished training."""
    return [float(x) for x in read_json(folder / LOG)["loss"]]
