"""The course of a distillation: phases, pruning step by step, texts or pairs of each epoch, optimizer, learning rate, choice of an epoch.

A gap between teacher and student that is too large shows in three figures: the mean cosine of two random queries (anisotropy), the
effective rank of the query vectors, and the share of the teacher's dev metrics that the student keeps. They go into the training log with
every epoch; only the first two have a bound that refuses a student, since low retention is for the release's gates to judge.

A batch of 32 queries touches a few hundred of 30,000 token vectors; a dense optimizer reads and writes all of them, their gradients and
both moments at every step, which took more time than a student of one or two layers itself.

Everything here depends on configuration, seed and place alone, so a run that continues after a kill takes the same course.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.errors import DataError, ModelError
from components.towers.contract import Spread, measure_spread
from components.towers.schedule import cyclic, one_cycle, warmup_cosine
from components.towers.transformer import first_and_last, keep_layers

if TYPE_CHECKING:
    from torch.nn import Parameter

    from components.distillation.student.encoder import StudentEncoder


LOW_RETENTION = 0.5  # share of the teacher's dev metric
LOW_RANK = 0.5  # share of the teacher's effective rank
MAX_ROWS = 2048  # the spread of more rows takes long and says no more


def spread_of(vectors: NDArray[np.float32]) -> Spread:
    """The spread of unit rows (n, d), over evenly spaced ones when there are many; one row alone tells nothing: 0 and 1."""
    if len(vectors) < 2:
        return Spread(mean_cosine=0.0, effective_rank=1.0)
    return measure_spread(vectors[:: -(-len(vectors) // MAX_ROWS)])


def retention_of(student: Mapping[str, float], teacher: Mapping[str, float]) -> dict[str, float]:
    """The student's share of the teacher's recall@50 and nDCG@10; a metric in which the teacher has 0 is absent."""
    return {f"retention_{name}": student[name] / teacher[name] for name in ("recall@50", "ndcg@10") if teacher[name] > 0}


def collapse_signs(student: Spread, teacher: Spread | None, retention: Mapping[str, float]) -> list[str]:
    """What looks like a collapse, in words; empty when nothing does."""
    signs = [f"{name} is {share:.0%}, below {LOW_RETENTION:.0%}" for name, share in retention.items() if share < LOW_RETENTION]
    if teacher is not None and student.effective_rank < LOW_RANK * teacher.effective_rank:
        signs.append(f"the effective rank is {student.effective_rank:.1f}, less than half of the teacher's {teacher.effective_rank:.1f}")
    return signs


def log_entry(student: Spread, teacher: Spread | None, retention: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one epoch for the training log."""
    return {
        "mean_cosine": student.mean_cosine,
        "effective_rank": student.effective_rank,
        **retention,
        "collapse_signs": collapse_signs(student, teacher, retention),
    }


# --- Choice among checkpoints by what a student is for: retrieval of dev judgements over the real index.


Search = Callable[[NDArray[np.float32], int], Sequence[Sequence[str]]]
DEPTH = 50


@dataclass(frozen=True)
class DevSet:
    """Dev queries, their relevant document ids, and the search over the real index (vectors, k) -> ids per query.

    `teacher` holds the teacher's vectors of the queries, unit float32 (n, d), where they are known. `own` maps the place of a query that is
    a document itself to that document, which is left out of what it finds.
    """

    queries: Sequence[str]
    relevant: Sequence[frozenset[str]]
    search: Search
    teacher: NDArray[np.float32] | None = None
    own: Mapping[int, str] = field(default_factory=dict)


def dev_metrics(vectors: NDArray[np.float32], dev: DevSet) -> Mapping[str, float]:
    """recall@50 and nDCG@10 (binary gains) of query vectors (n, d), means over all dev queries; `score` is the sum of both.

    The sum, since recall alone is blind to the top ranks, where distillation loses first.
    """
    found = list(dev.search(vectors, DEPTH + bool(dev.own)))
    for place, own in dev.own.items():
        found[place] = [doc_id for doc_id in found[place] if doc_id != own]
    found = [ids[:DEPTH] for ids in found]
    recall = float(np.mean([len(r & set(ids)) / len(r) for r, ids in zip(dev.relevant, found, strict=True)]))
    ndcg = float(np.mean([_ndcg(r, ids[:10]) for r, ids in zip(dev.relevant, found, strict=True)]))
    return {"recall@50": recall, "ndcg@10": ndcg, "score": recall + ndcg}


def _ndcg(relevant: frozenset[str], ids: Sequence[str]) -> float:
    discounts = 1 / np.log2(np.arange(2, 12))
    gained = sum(discounts[i] for i, doc_id in enumerate(ids) if doc_id in relevant)
    return float(gained / discounts[: min(len(relevant), 10)].sum())


# --- The course of a distillation: phases, pruning step by step, texts or pairs of each epoch, optimizer and learning rate.


def prune(student: StudentEncoder, count: int) -> None:
    """Keep `count` layers of those the student has, in place: the first half, rounded up, and the last half.

    The parameters that are left are the same tensors as before, but an optimiser has to be made anew. Raises ModelError when the
    student has not more than `count` layers, or none at all.
    """
    total = student.layer_count
    if not 1 <= count < total:
        raise ModelError(f"distillation.prune_to asks for {count} layers, but the student has {total}; ask for 1 to {total - 1}.")
    keep_layers(student.model, first_and_last(count, total), student.contract.base_model)


# --- The optimizer of a student: AdamW, and for a trained table of token vectors Adam on the rows that a batch has touched.


MAX_NORM = 1.0
WEIGHT_DECAY = 0.01


class StudentOptimizer:
    """Steps over dense parameters and sparse tables with one learning rate; only the dense gradients are clipped and decayed."""

    def __init__(self, dense: Sequence[Parameter], tables: Sequence[Parameter]) -> None:
        import torch

        self._dense = list(dense)
        self._parts: list[Any] = [torch.optim.AdamW(self._dense, weight_decay=WEIGHT_DECAY, fused=True)] if dense else []
        self._parts += [torch.optim.SparseAdam(list(tables))] if tables else []

    def step(self, learning_rate: float) -> float:
        """Clip, take one step at `learning_rate`, and drop the gradients; returns the norm of the dense ones before they were cut."""
        import torch

        norm = torch.nn.utils.clip_grad_norm_(self._dense, MAX_NORM)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
            part.zero_grad(set_to_none=True)
        return float(norm)

    def state_dict(self) -> list[dict[str, Any]]:
        """The state of both parts."""
        return [part.state_dict() for part in self._parts]

    def load_state_dict(self, states: Sequence[dict[str, Any]]) -> None:
        """Put back what `state_dict` gave."""
        for part, state in zip(self._parts, states, strict=True):
            part.load_state_dict(state)


# --- The course of a distillation: its phases, the texts or pairs that each epoch goes through, and the learning rate.


WARMUP_SHARE = 0.1


@dataclass(frozen=True)
class Phase:
    """Epochs with one course of the learning rate. `prune_to`: layers the student is cut to first, None to leave it as it is."""

    name: str
    kind: Literal["align", "refine"]
    epochs: int
    rows: int
    prune_to: int | None = None


@dataclass(frozen=True)
class Epoch:
    """One pass: its phase, the phase's place in the plan, and its own number within the phase, both from 0."""

    phase: Phase
    place: int
    number: int


def make_plan(texts: int, pairs: int, config: DistillationConfig) -> list[Epoch]:
    """All epochs in order: the alignment, each pruning with its own alignment, then the refinement."""
    phases = [Phase("align", "align", config.epochs, texts)]
    phases += [Phase(f"align at {count} layers", "align", config.prune_epochs, texts, count) for count in config.prune_to]
    phases += [Phase("refine", "refine", config.refine_epochs, pairs)] if pairs else []
    return [Epoch(phase, place, number) for place, phase in enumerate(phases) for number in range(phase.epochs)]


def learning_rate(epoch: Epoch, row: int, config: DistillationConfig) -> float:
    """The rate of the batch that starts at `row` of the epoch; each phase has a whole course of its own."""
    done, total = epoch.number * epoch.phase.rows + row, epoch.phase.epochs * epoch.phase.rows
    if epoch.phase.kind == "refine":
        return config.refine_learning_rate * warmup_cosine(done, total, WARMUP_SHARE)
    if config.schedule == "one_cycle":
        return config.learning_rate * one_cycle(done, total)
    if config.schedule == "cyclic":
        return config.learning_rate * cyclic(done, total, config.cycles)
    return config.learning_rate * warmup_cosine(done, total, WARMUP_SHARE)


def order_of(epoch: Epoch, sources: Sequence[str], config: DistillationConfig) -> NDArray[np.int64]:
    """Numbers of the texts (alignment) or pairs (refinement) in the order of this epoch.

    With `source_shares` an epoch is as long as there are texts, and each source fills its share of it: a source that is larger than
    its share gives other texts in every epoch, a smaller one gives each text several times.
    """
    rng = np.random.default_rng([config.seed, epoch.place, epoch.number])
    if epoch.phase.kind == "refine" or not config.source_shares:
        return rng.permutation(epoch.phase.rows)
    names = np.array(sources)
    sizes = {str(name): int(size) for name, size in zip(*np.unique(names, return_counts=True), strict=True)}
    counts = texts_per_source(sizes, config.source_shares)
    return rng.permutation(np.concatenate([_draw(np.flatnonzero(names == name), count, rng) for name, count in counts.items() if count]))


def texts_per_source(sizes: Mapping[str, int], shares: Mapping[Any, float]) -> dict[str, int]:
    """How many texts of each source an alignment epoch holds: as many as there are in all, split by the shares (largest remainder).

    Without shares each source counts as it is. Raises DataError for a share of a source that has no texts.
    """
    if not shares:
        return dict(sizes)
    if missing := [name for name, share in shares.items() if share > 0 and not sizes.get(name)]:
        raise DataError(
            f"distillation.source_shares gives '{missing[0]}' a share of {shares[missing[0]]}, but there are no such queries "
            f"({', '.join(f'{name}: {size:,}' for name, size in sizes.items())}). Set its share to 0 or provide the queries."
        )
    whole, total = sum(sizes.values()), sum(shares.values())
    exact = {name: whole * share / total for name, share in shares.items() if share > 0}
    counts = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: counts[name] - exact[name])[: whole - sum(counts.values())]:
        counts[name] += 1
    return counts


def _draw(rows: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` of `rows` in random order, each as often as any other, give or take one."""
    rounds = -(-count // len(rows))
    return np.concatenate([rng.permutation(rows) for _ in range(rounds)])[:count]
