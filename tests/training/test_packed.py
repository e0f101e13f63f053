"""The encoder without padding against the library's own forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.distillation.student.forms import can_pack, packed_vectors
from components.distillation.student.initial import load_small_encoder
from components.towers.base_models import resolve_base
from components.towers.tokens import pad_batch
from components.towers.transformer import pool
from tests.training.tiny_world import documents, queries

ROWS = [[1, 9, 2], [1, 9, 14, 30, 7, 2], [1, 5, 2], [1, 2]]


@pytest.fixture
def encoder(home: Path) -> Any:
    return load_small_encoder(resolve_base("tiny-encoder", [*documents(), *queries()]))[0].eval()


def padded(model: Any, pooling: str) -> torch.Tensor:
    batch = pad_batch(ROWS, 0)
    return pool(model(**batch).last_hidden_state, batch["attention_mask"], pooling)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_vectors_are_those_of_the_library(encoder: Any, pooling: str) -> None:
    assert can_pack(encoder, torch.device("cpu"))
    assert not can_pack(encoder, torch.device("cuda"))  # every group of texts would start its own kernels
    with torch.inference_mode():
        torch.testing.assert_close(packed_vectors(encoder, ROWS, pooling, torch.device("cpu")), padded(encoder, pooling))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_gradients_are_those_of_the_library(encoder: Any, pooling: str) -> None:
    weights = torch.randn(len(ROWS), encoder.config.hidden_size, generator=torch.Generator().manual_seed(1))
    found = []
    for vectors in (packed_vectors(encoder, ROWS, pooling, torch.device("cpu")), padded(encoder, pooling)):
        encoder.zero_grad()
        (vectors * weights).sum().backward()
        found.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_text_does_not_see_its_neighbours(encoder: Any) -> None:
    together = packed_vectors(encoder, ROWS, "mean", torch.device("cpu"))
    alone = torch.cat([packed_vectors(encoder, [row], "mean", torch.device("cpu")) for row in ROWS])
    torch.testing.assert_close(together, alone)
