"""Stage 2: align a student to the teacher's query vectors, prune and align it again, refine it against the frozen document vectors.

Alignment first: contrastive training alone, from scratch, collapses. Every epoch is scored on the dev judgements over the real
index and the best one is kept; student-teacher cosine barely predicts retrieval. A killed run continues from its last epoch.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import EncoderArtifact, Scalar, read_json, seal, write_json
from components.distillation.config import HELD_OUT_TITLES, DistillationConfig
from components.distillation.health import log_entry, retention_of, spread_of
from components.distillation.material import DistillationData
from components.distillation.objectives import alignment_loss, refinement_loss, similarity_loss
from components.distillation.optimizer import StudentOptimizer
from components.distillation.plan import Epoch, learning_rate, make_plan, order_of, texts_per_source
from components.distillation.pruning import prune
from components.distillation.refine import Refinement
from components.distillation.selection import dev_metrics
from components.distillation.student import load_student, new_student, save_student
from components.errors import CollapseError, ModelError
from components.progress import measured, progress_bar
from components.towers.checks import Spread, refuse_collapse
from components.towers.contract import save_contract
from components.towers.device import autocast, pick_dtype
from components.towers.pooling import normalize
from components.towers.probes import record_probes

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.pt"
LOG = "training_log.json"


def train_student(data: DistillationData, config: DistillationConfig, parents: Mapping[str, str], folder: Path) -> EncoderArtifact:
    """Train, keep the best epoch, save it as a SentenceTransformer with contract and probes.

    Raises ModelError for an unusable student, DataError for a share of a source without texts, and CollapseError when the student's
    vectors crowd together.
    """
    run = Distillation(data, config, folder)
    run.to_end()
    run.restore_best()
    vectors = run.student.encode(data.dev.queries)
    # A few queries cannot span more directions than there are queries.
    refuse_collapse("student", spread_of(vectors), config.max_mean_cosine, min(config.min_effective_rank, len(vectors) / 2))
    contract = save_student(run.student, folder)
    save_contract(folder, contract, data.space_id)
    record_probes(load_student(folder), folder)
    write_json(folder / LOG, run.history)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    attributes = {
        "space_id": data.space_id,
        "role": "query",
        "dimension": contract.dimension,
        "base_model": contract.base_model,
        "layers": run.student.layer_count,
        **_chosen(run.history[run.best_epoch]),
        **_shares(data.sources, config),
    }
    counts = {"queries": len(data.texts), **{f"source_{name}": size for name, size in Counter(data.sources).items()}}
    counts |= {HELD_OUT_TITLES: data.held_out_titles} if config.refine_epochs else {}
    made = seal(folder, "encoder", counts=counts, parents=parents, attributes=attributes)
    return EncoderArtifact.model_validate(made.model_dump())


def _chosen(best: Mapping[str, Any]) -> dict[str, Scalar]:
    """The epoch that was kept, and what it reached on dev."""
    kept = {name: round(best[name], 4) for name in ("mean_cosine", "effective_rank")}
    retention = {f"dev_{name.replace('@', '_at_')}": round(best[name], 4) for name in best if name.startswith("retention_")}
    return {
        "chosen": f"{best['phase']} {best['epoch']}",
        "dev_recall_at_50": round(best["recall@50"], 4),
        "dev_ndcg_at_10": round(best["ndcg@10"], 4),
        **retention,
        **kept,
    }


def _shares(sources: Sequence[str], config: DistillationConfig) -> dict[str, Scalar]:
    """The part of each source in an alignment epoch."""
    counts = texts_per_source(Counter(sources), config.source_shares)
    return {f"share_{name}": round(count / sum(counts.values()), 4) for name, count in counts.items()}


class Distillation:
    """The state of a distillation and its loop."""

    def __init__(self, data: DistillationData, config: DistillationConfig, folder: Path) -> None:
        _require_one_width(data)
        texts_per_source(Counter(data.sources), config.source_shares)
        self.data, self.config, self.folder = data, config, folder
        self.student = new_student(data.texts, data.teacher, data.space_id, config, data.teacher_folder)
        self.dtype = pick_dtype(config.precision)
        self.rows = self.student.tokens(data.texts)
        self.teacher = self._tensor(data.teacher)
        self.documents = self._tensor(data.documents)
        self.refinement = Refinement(self.documents, self.teacher, data.pairs, config.refine_positive_share, data.own)
        self.history: list[dict[str, Any]] = []
        self._steps = 0  # of this process, for whoever watches
        self.best: dict[str, Tensor] = {}
        self.epochs = make_plan(len(data.texts), len(data.pairs), config)
        self._resume()

    @property
    def best_epoch(self) -> int:
        """Number in `history` of the best epoch of the student's present size, the earliest of equals."""
        same = [i for i, entry in enumerate(self.history) if entry["layers"] == self.student.layer_count]
        return max(same, key=lambda i: (self.history[i]["score"], -i))

    def to_end(self) -> None:
        """Run the epochs that are left and score each on dev."""
        for number in range(len(self.history), len(self.epochs)):
            epoch = self.epochs[number]
            if epoch.number == 0:
                self.enter(epoch)
            loss = self._epoch(epoch)
            self.history.append(self._score(epoch, loss))
            self._tell_epoch()
            if self.best_epoch == number:
                self.best = self.student.state()
            self._save()

    def restore_best(self) -> None:
        """Put the best epoch's weights back into the student."""
        self.student.load_state(self.best)

    def enter(self, epoch: Epoch) -> None:
        """Begin a phase from the best weights so far, with fewer layers if it says so, and a new optimizer."""
        if self.best:
            self.restore_best()
        if epoch.phase.prune_to is not None:
            prune(self.student, epoch.phase.prune_to)
        self.optimizer = self._new_optimizer()

    def _epoch(self, epoch: Epoch) -> float:
        if epoch.phase.kind == "refine" and self.config.refine_negatives == "mined":
            self._mine()
        elif epoch.phase.kind == "refine" and self.config.refine_negatives == "spread":
            self.refinement.spread(self.config.refine_depth, (self.config.seed, epoch.place, epoch.number))
        losses, size = [], self.config.batch_size
        order = order_of(epoch, self.data.sources, self.config)
        label = f"{epoch.phase.name}: student, epoch {epoch.number + 1}"
        with progress_bar(len(order), label, "query") as bar:
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                losses.append(self.learn(batch, epoch, start))
                bar.update(len(batch))
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}", refresh=False)
                self._tell_step(losses[-1], learning_rate(epoch, start, self.config), bar.format_dict["rate"] or 0.0)
        return _finite(float(np.mean(losses)), label)

    def learn(self, batch: NDArray[np.int64], epoch: Epoch, start: int) -> float:
        """One step on the texts (alignment) or pairs (refinement) numbered in `batch`, which begins at `start` of the epoch; its loss."""
        loss = self._align(batch, (epoch.place, epoch.number, start)) if epoch.phase.kind == "align" else self._refine(batch)
        loss.backward()
        self._norm = self.optimizer.step(learning_rate(epoch, start, self.config))
        return float(loss.detach())

    def _tell_step(self, loss: float, rate: float, speed: float) -> None:
        self._steps += 1
        values = {"batch_loss": loss, "learning_rate": rate, "gradient_norm": self._norm, "queries_per_second": speed}
        measured(self._steps, {f"training/student_{name}": value for name, value in values.items()})

    def _tell_epoch(self) -> None:
        entry = self.history[-1]
        phase = [earlier for earlier in self.history if earlier["phase"] == entry["phase"]]
        measured(len(phase), {f"training/student_loss_{entry['phase']}": entry["loss"]})
        measured(len(self.history), {f"training/student_dev_{name}": entry[name] for name in ("ndcg@10", "recall@50", "mean_cosine")})

    def _score(self, epoch: Epoch, loss: float) -> dict[str, Any]:
        """The log entry of a finished epoch."""
        vectors = self.student.encode(self.data.dev.queries)
        metrics = dev_metrics(vectors, self.data.dev)
        retention = retention_of(metrics, self._teacher_on_dev[0]) if self._teacher_on_dev else {}
        health = log_entry(spread_of(vectors), self._teacher_on_dev[1] if self._teacher_on_dev else None, retention)
        for sign in health["collapse_signs"]:
            print(f"[student] {epoch.phase.name}, epoch {epoch.number + 1}: a sign of collapse: {sign}", flush=True)
        place = {"phase": epoch.phase.name, "epoch": epoch.number + 1, "layers": self.student.layer_count}
        return {**place, "loss": loss, **metrics, **health}

    @cached_property
    def _teacher_on_dev(self) -> tuple[Mapping[str, float], Spread] | None:
        vectors = self.data.dev.teacher
        return None if vectors is None else (dev_metrics(vectors, self.data.dev), spread_of(vectors))

    def _mine(self) -> None:
        texts = [self.data.texts[i] for i in self.refinement.texts]
        queries = self._tensor(self.student.encode(texts, progress="mine negatives with the student"))
        self.refinement.mine(queries, self.config.refine_depth)

    def _project(self, texts: Sequence[int]) -> Tensor:
        with autocast(self.student.device, self.dtype):
            return self.student.project([self.rows[i] for i in texts]).float()

    def _align(self, batch: NDArray[np.int64], place: tuple[int, ...]) -> Tensor:
        config, raw, teacher = self.config, self._project(batch.tolist()), self.teacher[batch]
        loss = alignment_loss(raw, teacher, config.mse_weight, config.cosine_weight)
        if not config.similarity_weight:
            return loss
        count = min(config.similarity_documents, len(self.documents))
        drawn = np.random.default_rng([config.seed, *place]).choice(len(self.documents), count, replace=False)
        matched = similarity_loss(normalize(raw), teacher, self.documents[drawn], config.similarity_temperature)
        return loss + config.similarity_weight * matched

    def _refine(self, batch: NDArray[np.int64]) -> Tensor:
        texts = self.refinement.text_numbers(batch)
        raw, among = self._project(texts), self.refinement.candidates(batch)
        loss = refinement_loss(normalize(raw), among.documents, among.targets, self.config.refine_temperature, among.blocked)
        return loss + alignment_loss(raw, self.teacher[texts], 0.0, self.config.refine_cosine_weight)

    def _tensor(self, vectors: NDArray[np.float32]) -> Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(vectors)).to(self.student.device)

    def _new_optimizer(self) -> StudentOptimizer:
        trained, table = self.student.parameters(self.config.train_embeddings, self.config.trained_layers), self.student.token_table
        table.sparse = table.weight.requires_grad
        return StudentOptimizer([p for p in trained if p is not table.weight], [table.weight] if table.sparse else [])

    def _save(self) -> None:
        import torch

        beside = self.folder / f".{CHECKPOINT}.tmp"
        state = {
            "layers": self.student.layer_count,
            "weights": self.student.state(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        torch.save(state, beside)
        os.replace(beside, self.folder / CHECKPOINT)

    def _resume(self) -> None:
        import torch

        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.student.device, weights_only=True)
        if state["layers"] != self.student.layer_count:
            prune(self.student, state["layers"])
        self.student.load_state(state["weights"])
        self.optimizer = self._new_optimizer()
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.history = state["best"], state["history"]


def _finite(loss: float, label: str) -> float:
    if not np.isfinite(loss):
        raise CollapseError(f"{label}: the mean loss is {loss}, not a finite number. Lower the learning rate, or set precision to float32.")
    return loss


def _require_one_width(data: DistillationData) -> None:
    teacher, documents = data.teacher.shape[1], data.documents.shape[1]
    if teacher != documents:
        raise ModelError(f"The teacher's vectors have {teacher} dimensions, the documents' {documents}. Retrain the towers.")


def training_epochs(folder: Path) -> list[dict[str, Any]] | None:
    """The log of a finished student, one entry an epoch: phase, epoch, loss and what it reached on dev; None when it has no log."""
    return list(read_json(folder / LOG)) if (folder / LOG).is_file() else None
