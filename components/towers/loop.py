"""The training loop of stage 1: batches, embeddings through cached gradients, the loss over all processes, steps and checkpoints.

accelerate's save_state keeps one file a process for adapters, optimizer and random state each; here a training killed on two processes
continues on one, or the other way round, since everything is stored whole.

The batch of a step follows from the seed and the step alone, mined negatives are kept by round, nothing is drawn during a step, and a
checkpoint holds weights, optimizer and random state: a continued run repeats the straight run's arithmetic. The optimizer and its
schedule are torch's. accelerate gives process group and device (see `distributed`); its Accelerator is not used, since its backward knows
one loss and one pass, and the cached gradient needs one pass a chunk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.errors import CollapseError, ModelError
from components.progress import measured, progress_bar
from components.towers.config import TowerConfig
from components.towers.device import freed_at_once, give_back_holes
from components.towers.losses import Judge, QueryPrediction, build, cached_backward, matryoshka_info_nce, matryoshka_listwise
from components.towers.negatives import HardNegatives, Mined, known_false_negatives, mine, nearest_together
from components.towers.pairs import BatchPlan, Pairs
from components.towers.processes import (
    World,
    collected,
    copy_from_main,
    current_world,
    from_main,
    gather_with_gradient,
    is_sharded,
    like,
    sum_gradients,
)
from components.towers.schedule import warmup_cosine
from components.towers.tokens import batches_by_tokens, even_length, longest_text
from components.towers.two_towers import TwoTowers

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer


CHECKPOINT = "checkpoint.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) and the random state into `folder`, atomically; all but the main process do nothing."""
    import torch

    if not current_world().main:
        return
    beside = folder / f".{CHECKPOINT}.tmp"
    torch.save({**state, "random": _random_state()}, beside)
    os.replace(beside, folder / CHECKPOINT)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state in `folder` with its tensors on the CPU, the random state put back; None when there is none."""
    import torch

    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    random = state.pop("random")
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return state


def _random_state() -> dict[str, Tensor]:
    import torch

    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state with whole tensors, for the main process; all have to call it, since shards are gathered."""
    state = optimizer.state_dict()
    moments = {number: collected(values) for number, values in state["state"].items()}
    return {"state": moments, "param_groups": state["param_groups"]}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put back what `optimizer_state` gave, cut as the parameters are where these are sharded."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, values in state["state"].items():
        parameter = parameters[number]
        # The step count is a scalar that stays on the CPU.
        state["state"][number] = {k: v if k == "step" else like(v, parameter) for k, v in values.items()}
    optimizer.load_state_dict(state)


# --- The training loop of stage 1: batches, embeddings through cached gradients, the loss over all processes, steps and checkpoints.


_HOLES_EVERY = 4  # steps, after which the heap gives back what it does not use


@dataclass(frozen=True)
class Share:
    """What one process embeds of a batch, and where its positives stand among the documents of all processes.

    `queries` and `documents` are numbers: one query for each pair, then as documents their positives and after these the mined
    negatives. `columns` are the documents of all processes in the order of the gather, -1 where a negative is missing; `targets`
    the column of each query's positive.
    """

    queries: list[int]
    documents: list[int]
    columns: list[int]
    targets: list[int]


def share_of(pairs: Pairs, batch: Sequence[int], negatives: NDArray[np.int64] | None, world: World) -> Share:
    """This process's share of the pairs numbered in `batch`, with their mined `negatives` (pairs, h)."""
    parts = [_documents(pairs, world.share(batch, rank), negatives) for rank in range(world.size)]
    own = world.share(batch)
    queries, positives = ([pairs.pairs[i][side] for i in own] for side in (0, 1))
    mined = parts[world.rank][len(own) :]
    # A missing negative is embedded as a positive and masked: every process has to gather equally many documents.
    filled = [positives[place % len(own)] if document < 0 else document for place, document in enumerate(mined)]
    start = world.rank * len(parts[0])
    columns = [document for part in parts for document in part]
    return Share(queries, positives + filled, columns, list(range(start, start + len(own))))


def _documents(pairs: Pairs, batch: Sequence[int], negatives: NDArray[np.int64] | None) -> list[int]:
    positives = [pairs.pairs[i][1] for i in batch]
    return positives if negatives is None else positives + negatives[list(batch)].ravel().tolist()


def in_chunks(
    rows: Sequence[list[int]], tokens: int, size: int | None = None, even: bool = False
) -> tuple[list[list[list[int]]], list[int]]:
    """Chunks of rows of similar length, longest first, and for each row its place in them.

    A chunk has at most `tokens` tokens, padding included, but always a row, and at most `size` rows. `even`: as `pad_batch` pads it.
    """
    batches = batches_by_tokens([even_length(len(row)) if even else len(row) for row in rows], tokens, size)
    places = np.argsort([i for batch in batches for i in batch]).tolist()
    return [[rows[i] for i in batch] for batch in batches], places


class Training:
    """The state of a training run and its loop."""

    label = "train towers"
    judge: Judge | None = None  # set by what trains towers; baselines learn from the judgements alone

    def __init__(self, towers: TwoTowers, pairs: Pairs, config: TowerConfig, folder: Path) -> None:
        import torch

        self.towers, self.pairs, self.config, self.folder = towers, pairs, config, folder
        self.world = current_world()
        self.query_tokens = towers.tokens(pairs.queries, "query")
        self.document_tokens = towers.tokens(pairs.documents, "document")
        self.plan = BatchPlan(pairs, config, [len(r) for r in self.query_tokens], [len(r) for r in self.document_tokens])
        if self.plan.kinds_are_too_small and self.world.main:
            print(
                f"[train_towers] No value of '{config.batches_by}' (towers.batches_by) has the {config.batch_size} pairs of a batch: "
                "batches are of any pairs. Lower towers.batch_size, or name a coarser field.",
                flush=True,
            )
        self.negatives = HardNegatives(config, folder, self._mine)
        self.prediction = self._query_prediction()
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.learning_rate, weight_decay=0.0)
        self._peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.losses: list[float] = []
        self._norms: list[Tensor] = []
        self._merged, self._totals = 0, dict[str, "Tensor"]()
        self._resume()

    def _groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains; a group without a learning rate has that of the configuration."""
        learned = [self.towers.parameters(), *([self.prediction.parameters()] if self.prediction else [])]
        return [{"params": parameters} for parameters in learned]

    def _query_prediction(self) -> QueryPrediction | None:
        if not self.config.query_prediction_weight:
            return None
        embeddings = self.towers.input_embeddings()
        if embeddings.shape[1] != self.towers.width:  # as ALBERT's and ELECTRA's smaller ones are narrower
            raise ModelError(
                f"towers.query_prediction_weight compares documents with the token embeddings of '{self.config.base_model}', but its "
                f"vectors have {self.towers.width} numbers and these {embeddings.shape[1]}. Set it to 0, or use another model."
            )
        return build(embeddings, self.query_tokens, self.towers.tokenizer.all_special_ids)

    def to_end(self) -> None:
        """Run the steps that are left, with a progress bar of loss and pairs per second."""
        done, steps = len(self.losses), self.config.steps
        with (
            freed_at_once(self.towers.kept_bytes(self.config)),
            progress_bar(steps, self.label, "step", initial=done, shown=self.world.main) as bar,
        ):
            for step in range(done, steps):
                self.losses.append(self._step(step))
                bar.update()
                rate = (bar.format_dict["rate"] or 0) * self.config.batch_size
                bar.set_postfix(loss=f"{np.mean(self.losses[-10:]):.3f}", pairs_per_s=f"{rate:.1f}", refresh=False)
                self._tell(step + 1, rate)
                if self._is_merged(step):
                    self._add_to_mean()
                if (step + 1) % self.config.checkpoint_every == 0:
                    self._save()
                if step % _HOLES_EVERY == 0:
                    give_back_holes()

        if self.config.merge_last > 1:
            if self.world.main:  # the others have no sums, and only what a checkpoint held of them where they continued one
                self.towers.load_state({name: total / self._merged for name, total in self._totals.items()})
            copy_from_main(p for group in self.optimizer.param_groups for p in group["params"])

    def _tell(self, step: int, rate: float) -> None:
        """What a person watches while it trains: loss, learning rate, norm of the first group's gradient before it is cut, pairs/s."""
        kind = f"training/{self.label.removeprefix('train ').replace(' ', '_')}"
        values = {"loss": self.losses[-1], "learning_rate": self.optimizer.param_groups[0]["lr"], "gradient_norm": float(self._norms[0])}
        measured(step, {f"{kind}_{name}": value for name, value in {**values, "pairs_per_second": rate}.items()})

    def _is_merged(self, step: int) -> bool:
        """Whether the weights after this step belong to the mean that the towers become (`merge_last`)."""
        before_end = self.config.steps - (step + 1)
        return before_end % self.config.checkpoint_every == 0 and before_end // self.config.checkpoint_every < self.config.merge_last

    def _add_to_mean(self) -> None:
        """Source: Wortsman et al., Model soups, ICML 2022; of checkpoints of one run, Sanyal et al., LAWA, 2023."""
        if self.config.merge_last == 1:
            return
        self._merged += 1
        for name, value in self.towers.state().items():
            self._totals[name] = self._totals[name] + value.float() if name in self._totals else value.float()

    def _step(self, step: int) -> float:
        import torch

        factor = warmup_cosine(step, self.config.steps, self.config.warmup_share)
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        value = self.backward(self.plan.of_step(step), self.negatives.of_step(step))
        # Each group for itself: the size of the auxiliary gradient must not scale that of the towers.
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], 1.0) for group in self.optimizer.param_groups]
        self._norms = [norm.full_tensor() if is_sharded(norm) else norm for norm in norms]
        self._require_finite(step, value)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _require_finite(self, step: int, loss: float) -> None:
        """Raise CollapseError where loss or gradient are no numbers: one such step makes all trained weights none, for good."""
        largest = max(map(float, self._norms), key=lambda norm: norm if np.isfinite(norm) else np.inf)
        if not (np.isfinite(loss) and np.isfinite(largest)):
            raise CollapseError(
                f"{self.label}, step {step + 1} of {self.config.steps}: the loss is {loss:.3g} and the norm of its gradient {largest:.3g}; "
                "both have to be finite numbers. Lower the learning rate, or set precision to float32."
            )

    def backward(self, batch: Sequence[int], negatives: NDArray[np.int64] | None) -> float:
        """Accumulate the gradient of the loss over the pairs numbered in `batch`, that of all processes; returns the loss."""
        share = share_of(self.pairs, batch, negatives, self.world)
        queries, query_places = self._chunks([self.query_tokens[i] for i in share.queries])
        documents, document_places = self._chunks([self.document_tokens[i] for i in share.documents])
        loss = self._loss(share, batch)

        def ordered(q: Tensor, d: Tensor) -> Tensor:
            return loss(q[query_places], d[document_places])

        with self.towers.passing_twice():
            value = cached_backward(self.towers.embed, queries, documents, ordered)  # type: ignore[arg-type]
        sum_gradients(p for group in self.optimizer.param_groups for p in group["params"])
        return _sum(value, self.towers.device)

    def _chunks(self, rows: Sequence[list[int]]) -> tuple[list[list[list[int]]], list[int]]:
        size, longest, even = self.config.chunk_size, longest_text(self.config), self.towers.even
        # The processes of a divided model compute each chunk together, so all need equally many; else the tokens bound the memory.
        if self.config.sharding == "fsdp":
            return in_chunks(rows, len(rows) * longest, size, even)
        return in_chunks(rows, size * longest, even=even)

    def _loss(self, share: Share, batch: Sequence[int]) -> Callable[[Tensor, Tensor], Tensor]:
        """The part of the batch's loss that falls to this process, as a function of its vectors; the parts add up to the whole."""
        import torch

        config, device = self.config, self.towers.device
        known = known_false_negatives(self.pairs, share.queries, share.columns, share.targets)
        contrast = partial(
            matryoshka_info_nce,
            temperature=config.temperature,
            targets=torch.tensor(share.targets, device=device),
            blocked=torch.from_numpy(known).to(device),
            suspect_margin=config.suspect_margin,
            dimensions=config.matryoshka,
        )

        def loss(queries: Tensor, documents: Tensor) -> Tensor:
            everything = gather_with_gradient(documents)
            value = contrast(queries, everything) / self.world.size
            if self.judge is not None:
                value = value + config.judge.weight * self._opinion(self.judge, queries, everything, share) / self.world.size
            return value if self.prediction is None else value + self._predicted(documents[: len(queries)], share.queries, batch)

        return loss

    def _opinion(self, judge: Judge, queries: Tensor, documents: Tensor, share: Share) -> Tensor:
        """How far the towers' order of the documents is from the judge's; a mean over the queries of this process."""
        import torch

        own = [self.pairs.own.get(query) for query in share.queries]
        chosen = judge.candidates(queries.detach() @ documents.detach().T, share.columns, share.targets, own)
        texts = [[self.pairs.documents[share.columns[column]] for column in row] for row in chosen.tolist()]
        judged = judge.distribution([self.pairs.queries[query] for query in share.queries], texts)
        places, shares = (torch.from_numpy(found).to(queries.device) for found in (chosen, judged))
        return matryoshka_listwise(queries, documents, self.config.temperature, places, shares, self.config.matryoshka)

    def _predicted(self, positives: Tensor, queries: Sequence[int], batch: Sequence[int]) -> Tensor:
        """The weighted loss of query prediction; a mean over the queries with words, of which each process has its own number."""
        assert self.prediction is not None
        rows = [self.query_tokens[i] for i in queries]
        everywhere = self.prediction.with_words([self.query_tokens[self.pairs.pairs[i][0]] for i in batch])
        part = self.prediction.with_words(rows) / max(1, everywhere)
        return self.config.query_prediction_weight * part * self.prediction.loss(positives, rows)

    def _mine(self, number: int) -> Mined:
        """Mine with the towers as they are: all encode and search, each its share; the main process judges and draws."""
        label = f"mine negatives, round {number}: "
        queries = self.towers.encode(self.query_tokens, "query", label + "queries")
        documents = self.towers.encode(self.document_tokens, "document", label + "documents")
        found = nearest_together(queries, documents, self.config.mining_depth)
        return from_main(lambda: mine(queries, documents, self.pairs, self.config, number, found))

    def _save(self) -> None:
        state: dict[str, Any] = {"towers": self.towers.state(), "optimizer": optimizer_state(self.optimizer), "losses": self.losses}
        if self.prediction is not None:
            state["query_prediction"] = self.prediction.state_dict()
        if self._merged:
            state["merged"] = {"count": self._merged, "totals": self._totals}
        save_checkpoint(self.folder, state)

    def _resume(self) -> None:
        state = load_checkpoint(self.folder)
        if state is None:
            return
        self.towers.load_state(state["towers"])
        load_optimizer(self.optimizer, state["optimizer"])
        if self.prediction is not None:
            self.prediction.load_state_dict(state["query_prediction"])
        self.losses = state["losses"]
        if "merged" in state:
            self._merged, self._totals = state["merged"]["count"], state["merged"]["totals"]


def _sum(value: float, device: Any) -> float:
    """The sum over the processes."""
    if current_world().size == 1:
        return value
    import torch

    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total)
