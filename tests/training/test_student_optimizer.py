"""The student's optimizer: dense parameters as AdamW moves them, of a table only the rows that were touched."""

from __future__ import annotations

import torch
from torch import nn

from components.distillation.plan import MAX_NORM, WEIGHT_DECAY, StudentOptimizer

TOUCHED = [3, 1, 3]


def table() -> nn.Embedding:
    return nn.Embedding.from_pretrained(torch.arange(10.0).reshape(5, 2), freeze=False, sparse=True)


def test_only_touched_rows_of_a_table_move() -> None:
    rows = table()
    optimizer = StudentOptimizer([], [rows.weight])
    rows(torch.tensor(TOUCHED)).sum().backward()
    optimizer.step(0.5)
    # Adam's first step has the size of the learning rate, whatever the gradient.
    expected = torch.arange(10.0).reshape(5, 2) - torch.tensor([[0.0], [0.5], [0.0], [0.5], [0.0]])
    torch.testing.assert_close(rows.weight.detach(), expected)
    assert rows.weight.grad is None


def test_dense_parameters_move_as_with_clipped_adamw() -> None:
    ours, peer = (nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizer, adamw = StudentOptimizer([ours], []), torch.optim.AdamW([peer], lr=0.1, weight_decay=WEIGHT_DECAY)
    for scale in (100.0, 0.01):
        for parameter in (ours, peer):
            (scale * parameter.pow(2).sum()).backward()
        torch.nn.utils.clip_grad_norm_([peer], MAX_NORM)
        optimizer.step(0.1)
        adamw.step()
        adamw.zero_grad()
    torch.testing.assert_close(ours, peer)


def test_a_restored_state_takes_the_same_step() -> None:
    found = []
    for restored in (False, True):
        rows = table()
        optimizer = StudentOptimizer([], [rows.weight])
        for step in range(3):
            if restored and step == 2:
                state, optimizer = optimizer.state_dict(), StudentOptimizer([], [rows.weight])
                optimizer.load_state_dict(state)
            (rows(torch.tensor(TOUCHED)) * (step + 1)).sum().backward()
            optimizer.step(0.1)
        found.append(rows.weight.detach())
    torch.testing.assert_close(found[0], found[1])
