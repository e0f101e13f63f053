"""Stage 2: align a student to the teacher's query vectors, then refine it against the frozen document vectors.

Alignment first: contrastive training alone, from scratch, collapses. Every epoch is scored on the dev judgements over the real
index and the best one is kept; student-teacher cosine barely predicts retrieval. A killed run continues from its last epoch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import EncoderArtifact, seal, write_json
from components.distillation.config import DistillationConfig
from components.distillation.losses import alignment_loss, refinement_loss
from components.distillation.selection import DevSet, dev_metrics
from components.distillation.student import load_student, new_student, save_student
from components.errors import ModelError
from components.towers.checks import measure_spread, refuse_collapse
from components.towers.contract import save_contract
from components.towers.pooling import normalize
from components.towers.precision import autocast, pick_dtype
from components.towers.probes import record_probes
from components.towers.schedule import warmup_cosine

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.pt"
LOG = "training_log.json"
WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class DistillationData:
    """Texts with teacher vectors (n, d), judged pairs (text number, document number), and document vectors (m, d); unit float32."""

    texts: Sequence[str]
    teacher: NDArray[np.float32]
    pairs: Sequence[tuple[int, int]]
    documents: NDArray[np.float32]
    space_id: str
    dev: DevSet


@dataclass(frozen=True)
class Epoch:
    """One pass: its phase, its number within the phase, and the rows it goes through (texts or pairs)."""

    phase: str
    number: int
    rows: int


def train_student(data: DistillationData, config: DistillationConfig, parents: Mapping[str, str], folder: Path) -> EncoderArtifact:
    """Train, keep the best epoch, save it as a SentenceTransformer with contract and probes.

    Raises ModelError for an unusable student and CollapseError when its vectors crowd together.
    """
    run = _Distillation(data, config, folder)
    run.to_end()
    run.restore_best()
    vectors = run.student.encode(data.dev.queries)
    refuse_collapse("student", measure_spread(vectors), max_mean_cosine=0.95, min_effective_rank=min(4.0, len(vectors) / 2))
    contract = save_student(run.student, folder)
    save_contract(folder, contract, data.space_id)
    record_probes(load_student(folder), folder)
    write_json(folder / LOG, run.history)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    best = run.history[run.best_epoch]
    attributes = {
        "space_id": data.space_id,
        "role": "query",
        "dimension": contract.dimension,
        "base_model": contract.base_model,
        "chosen": f"{best['phase']} {best['epoch']}",
        "dev_recall_at_50": round(best["recall@50"], 4),
        "dev_ndcg_at_10": round(best["ndcg@10"], 4),
    }
    made = seal(folder, "encoder", counts={"queries": len(data.texts)}, parents=parents, attributes=attributes)
    return EncoderArtifact.model_validate(made.model_dump())


class _Distillation:
    """The state of a distillation and its loop."""

    def __init__(self, data: DistillationData, config: DistillationConfig, folder: Path) -> None:
        _require_one_width(data)
        self.data, self.config, self.folder = data, config, folder
        self.student = new_student(data.texts, data.teacher, data.space_id, config, None)
        self.dtype = pick_dtype(config.precision)
        self.rows = self.student.tokens(data.texts)
        self.teacher = self._tensor(data.teacher)
        self.documents = self._tensor(data.documents)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Tensor] = {}
        self.epochs = _plan(data, config)
        self.optimizer = self._new_optimizer()
        self._resume()

    @property
    def best_epoch(self) -> int:
        """Number in `history` of the best epoch, the earliest of equals."""
        return max(range(len(self.history)), key=lambda i: (self.history[i]["score"], -i))

    def to_end(self) -> None:
        """Run the epochs that are left and score each on dev."""
        for number in range(len(self.history), len(self.epochs)):
            epoch = self.epochs[number]
            if epoch.number == 0:
                self.optimizer = self._new_optimizer()
                if number:
                    self.student.load_state(self.best)
            loss = self._epoch(epoch)
            metrics = dev_metrics(self.student.encode(self.data.dev.queries), self.data.dev)
            self.history.append({"phase": epoch.phase, "epoch": epoch.number + 1, "loss": loss, **metrics})
            if self.best_epoch == number:
                self.best = self.student.state()
            self._save()

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the student."""
        self.student.load_state(self.best)
        self.student.model.eval()

    def _epoch(self, epoch: Epoch) -> float:
        import torch
        from tqdm import tqdm

        losses, size = [], self.config.batch_size
        rate = self.config.learning_rate if epoch.phase == "align" else self.config.refine_learning_rate
        total = sum(e.rows for e in self.epochs if e.phase == epoch.phase)
        label = f"{epoch.phase} student, epoch {epoch.number + 1}"
        with tqdm(total=epoch.rows, desc=label, unit="query", mininterval=1) as bar:
            for start, batch in self._batches(epoch, size):
                for group in self.optimizer.param_groups:
                    group["lr"] = rate * warmup_cosine(epoch.number * epoch.rows + start, total, WARMUP_SHARE)
                loss = self._align(batch) if epoch.phase == "align" else self._refine(batch)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self._parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                losses.append(float(loss.detach()))
                bar.update(len(batch))
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
        return float(np.mean(losses))

    def _batches(self, epoch: Epoch, size: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        phase = 0 if epoch.phase == "align" else 1
        order = np.random.default_rng([self.config.seed, phase, epoch.number]).permutation(epoch.rows)
        yield from ((start, order[start : start + size]) for start in range(0, epoch.rows, size))

    def _project(self, texts: Sequence[int]) -> Tensor:
        # eval mode: dropout would only add noise to a target that is exactly known.
        self.student.model.eval()
        with autocast(self.student.device, self.dtype):
            return self.student.project([self.rows[i] for i in texts]).float()

    def _align(self, batch: NDArray[np.int64]) -> Tensor:
        config = self.config
        return alignment_loss(self._project(batch.tolist()), self.teacher[batch], config.mse_weight, config.cosine_weight)

    def _refine(self, batch: NDArray[np.int64]) -> Tensor:
        import torch

        texts, documents = zip(*(self.data.pairs[i] for i in batch), strict=True)
        raw = self._project(texts)
        targets = torch.tensor(documents, device=raw.device)
        blocked = self._blocked(texts, documents)
        loss = refinement_loss(normalize(raw), self.documents, targets, self.config.refine_temperature, blocked)
        return loss + alignment_loss(raw, self.teacher[list(texts)], 0.0, self.config.refine_cosine_weight)

    def _blocked(self, texts: Sequence[int], documents: Sequence[int]) -> Tensor:
        import torch

        mask = torch.zeros((len(texts), len(self.documents)), dtype=torch.bool, device=self.documents.device)
        for row, (text, document) in enumerate(zip(texts, documents, strict=True)):
            mask[row, [d for d in self._relevant[text] if d != document]] = True
        return mask

    @cached_property
    def _relevant(self) -> dict[int, list[int]]:
        relevant: dict[int, list[int]] = {}
        for text, document in self.data.pairs:
            relevant.setdefault(text, []).append(document)
        return relevant

    def _tensor(self, vectors: NDArray[np.float32]) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self.student.device)

    def _parameters(self) -> list[Any]:
        return self.student.parameters(self.config.train_embeddings)

    def _new_optimizer(self) -> Any:
        import torch

        return torch.optim.AdamW(self._parameters(), lr=self.config.learning_rate, weight_decay=0.01, fused=True)

    def _save(self) -> None:
        import torch

        beside = self.folder / f".{CHECKPOINT}.tmp"
        state = {"weights": self.student.state(), "best": self.best, "optimizer": self.optimizer.state_dict(), "history": self.history}
        torch.save(state, beside)
        os.replace(beside, self.folder / CHECKPOINT)

    def _resume(self) -> None:
        import torch

        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.student.device, weights_only=True)
        self.student.load_state(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.history = state["best"], state["history"]


def _plan(data: DistillationData, config: DistillationConfig) -> list[Epoch]:
    align = [Epoch("align", i, len(data.texts)) for i in range(config.epochs)]
    return align + [Epoch("refine", i, len(data.pairs)) for i in range(config.refine_epochs)]


def _require_one_width(data: DistillationData) -> None:
    teacher, documents = data.teacher.shape[1], data.documents.shape[1]
    if teacher != documents:
        raise ModelError(f"The teacher's vectors have {teacher} dimensions, the documents' {documents}. Retrain the towers.")
