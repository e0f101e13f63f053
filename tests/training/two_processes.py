"""What one of two processes measures for `test_distributed`: run as a module with the variables of torchrun; results are saved."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from components.errors import ScalingNoteError
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import save_contract, space_id_of
from components.towers.loop import CHECKPOINT, Training, optimizer_state
from components.towers.losses import build
from components.towers.negatives import nearest_together
from components.towers.pairs import Pairs
from components.towers.processes import (
    current_world,
    gather_with_gradient,
    join_world,
    leave_world,
    obey_launcher,
    sum_gradients,
    wait_for_all,
)
from components.towers.train import take_part
from components.towers.two_towers import TwoTowers
from tests.training.tiny_world import documents, pairs, queries

BATCH = (3, 17, 40, 8, 21, 60, 33, 5)
CONFIG = TowerConfig(
    base_model="tiny-decoder",
    pooling="mean",
    batch_size=8,
    chunk_size=3,
    lora_rank=4,
    precision="float32",
    matryoshka=(16,),
    query_prediction_weight=0.5,
    max_mean_cosine=1.0,
)
FULL = CONFIG.model_copy(update={"training": "full"})


def negatives(count: int) -> NDArray[np.int64]:
    """`count` wrong documents for each of the 64 pairs, the last of pair 17 missing."""
    mined = (np.arange(64)[:, None] + 9 * np.arange(1, count + 1)) % 64
    mined[17, -1] = -1
    return mined


def loss_and_gradient(config: TowerConfig, mined: NDArray[np.int64], folder: Path) -> tuple[float, list[torch.Tensor]]:
    """Loss of BATCH and the gradient of every trained parameter, the whole of it."""
    towers = TwoTowers(resolve_base("tiny-decoder", [*documents(), *queries()]), config)
    if config.training == "lora":
        with torch.no_grad():
            for i, parameter in enumerate(towers.parameters()):  # a fresh adapter is zero on one side
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    run = Training(towers, pairs(), config, folder)
    loss = run.backward(BATCH, mined)
    learned = [p for group in run.optimizer.param_groups for p in group["params"]]
    return loss, [_whole(p.grad) for p in learned if p.grad is not None]


def _whole(gradient: Any) -> torch.Tensor:
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).clone()


def gathered() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of both processes, and the gradient of the own rows when process r weighs every row by r + 1."""
    rank = current_world().rank
    rows = torch.full((2, 3), float(rank), requires_grad=True)
    together = gather_with_gradient(rows)
    (together * (rank + 1) * torch.arange(1.0, 5.0)[:, None]).sum().backward()
    assert rows.grad is not None
    return together.detach(), rows.grad


def sharded_checkpoint(folder: Path) -> dict[str, Any]:
    """Weights and optimizer of sharded models after a step, and again after a checkpoint was read; the document tower is saved."""
    config = FULL.model_copy(update={"sharding": "fsdp"})
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    run = Training(TwoTowers(base, config), pairs(), config, folder)
    run._step(0)
    run._save()
    wait_for_all()
    again = Training(TwoTowers(base, config), pairs(), config, folder)
    wait_for_all()
    (folder / CHECKPOINT).unlink(missing_ok=True)
    contract = again.towers.save("document", folder / "sharded")
    if contract is not None:
        save_contract(folder / "sharded", contract, space_id_of(contract))
    states = [(r.towers.state(), optimizer_state(r.optimizer)["state"]) for r in (run, again)]
    return {"states": states, "vectors": run.towers.encode(run.document_tokens, "document")}


def merged(folder: Path) -> list[torch.Tensor]:
    """The trained weights of this process after a training whose end is the mean of two checkpoints, and that was killed between them."""
    config = CONFIG.model_copy(update={"merge_last": 2, "steps": 2, "checkpoint_every": 1})
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    run = Training(TwoTowers(base, config), pairs(), config, folder)
    run.losses.append(run._step(0))
    run._add_to_mean()
    run._save()
    wait_for_all()
    again = Training(TwoTowers(base, config), pairs(), config, folder)
    wait_for_all()
    (folder / CHECKPOINT).unlink(missing_ok=True)
    again.to_end()
    wait_for_all()
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return [parameter.detach().clone() for parameter in again.towers.parameters()]


def weights_read() -> int:
    """How often this process reads weights from the disk for sharded models."""
    from transformers import AutoModel

    read, calls = AutoModel.from_pretrained, []
    with patch.object(AutoModel, "from_pretrained", lambda *given, **named: calls.append(given) or read(*given, **named)):
        TwoTowers(resolve_base("tiny-decoder", [*documents(), *queries()]), FULL.model_copy(update={"sharding": "fsdp"}))
    return len(calls)


def refusal(given: Pairs, config: TowerConfig, folder: Path) -> str:
    """The message with which a training is refused."""
    try:
        take_part(given, config, {}, folder)
    except ScalingNoteError as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def vectors() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Seven queries and thirty documents, unit rows; no two scores are equal."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((37, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:7], rows[7:]


def wordless(rank: int) -> list[torch.Tensor]:
    """Gradients of query prediction, summed, where the second process has no word to foretell."""
    prediction = build(torch.eye(4), [[0, 1], [1, 2], [3]], [])
    rows = [[[0, 2]], [[99]]][rank]
    prediction.loss(torch.full((1, 4), 0.5), rows).backward()
    sum_gradients(prediction.parameters())
    return [p.grad for p in prediction.parameters() if p.grad is not None]


def main(arguments: Sequence[str]) -> None:
    """Measure everything and save it into the folder given."""
    folder = Path(arguments[0])
    obey_launcher()
    rank = join_world().rank
    found: dict[str, Any] = {"gathered": gathered()}
    for count in (2, 3):
        found[f"lora_{count}"] = loss_and_gradient(CONFIG, negatives(count), folder)
    sharded = FULL.model_copy(update={"sharding": "fsdp"})
    found["fsdp"] = loss_and_gradient(sharded, negatives(2), folder)
    found["fsdp_recomputed"] = loss_and_gradient(sharded.model_copy(update={"activation_checkpointing": True}), negatives(2), folder)
    found["weights_read"] = weights_read()
    found["nearest"] = nearest_together(*vectors(), 5)
    found["wordless"] = wordless(rank)
    own = pairs()
    other = Pairs([*own.queries[:-1], f"another query {rank}"], own.documents, own.pairs, own.relevant)
    found["checkpoint"] = sharded_checkpoint(folder)
    found["merged"] = merged(folder)
    found["different_data"] = refusal(other, CONFIG, folder)
    found["odd_batch"] = refusal(own, CONFIG.model_copy(update={"batch_size": 7}), folder)
    torch.save(found, folder / f"found_{rank}.pt")
    leave_world()


if __name__ == "__main__":
    main(sys.argv[1:])
