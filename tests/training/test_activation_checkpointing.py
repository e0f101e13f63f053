"""Layers that are worked out again in the backward pass: the same gradients from far less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from components.errors import ModelError
from components.towers import two_towers as backbone
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.loop import Training
from components.towers.transformer import recompute_layers
from components.towers.two_towers import TwoTowers
from tests.families import ENCODER, Family, bert
from tests.training.tiny_world import documents, pairs, queries
from tests.training.two_processes import CONFIG, loss_and_gradient, negatives


def configured(**changes: Any) -> TowerConfig:
    return CONFIG.model_copy(update=changes)


@pytest.mark.parametrize("chunk", [2, 64])  # with gradient caching, and with both roles' graphs alive in one backward pass
@pytest.mark.parametrize(("training", "attention"), [("lora", "causal"), ("lora", "bidirectional"), ("full", "causal")])
def test_gradients_are_equal(home: Path, tmp_path: Path, training: str, attention: str, chunk: int) -> None:
    config = configured(training=training, attention=attention, chunk_size=chunk)
    plain = loss_and_gradient(config.model_copy(update={"activation_checkpointing": False}), negatives(2), tmp_path)
    again = loss_and_gradient(config.model_copy(update={"activation_checkpointing": True}), negatives(2), tmp_path)
    assert again[0] == plain[0]
    assert len(again[1]) == len(plain[1]) > 4
    for ours, theirs in zip(again[1], plain[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def kept_bytes(towers: TwoTowers) -> int:
    """Bytes of all tensors that a pass over 32 documents keeps for the backward pass, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in towers.model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vectors = towers.embed(towers.tokens(documents()[:32], "document"), "document")
    assert vectors.requires_grad
    return sum(tensor.untyped_storage().nbytes() for pointer, tensor in kept.items() if pointer not in weights)


def test_a_pass_keeps_less_than_a_third(home: Path) -> None:
    base = resolve_base("decoder-64x6", [*documents(), *queries()])
    plain, again = (TwoTowers(base, configured(base_model=base.name, activation_checkpointing=on)) for on in (False, True))
    assert not plain.recomputes and again.recomputes
    assert kept_bytes(again) < kept_bytes(plain) / 3


def test_without_a_setting_the_free_memory_decides(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    for free, expected in ((10**12, False), (10**5, True)):
        monkeypatch.setattr(backbone, "free_bytes", lambda device, free=free: free)
        assert TwoTowers(base, configured()).recomputes is expected


def test_a_model_whose_layers_are_not_found_is_trained_in_full_without(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was refused for want of memory, with the advice to set training to full."""
    Family("albert", bert, "", {"embedding_size": 16}, ENCODER).write([*documents(), *queries()], tmp_path / "model")
    monkeypatch.setattr(backbone, "free_bytes", lambda device: 10**5)
    base = resolve_base(str(tmp_path / "model"))
    config = configured(base_model=base.name, training="full", attention="bidirectional", query_prediction_weight=0.3)
    towers = TwoTowers(base, config)
    assert not towers.recomputes
    with pytest.raises(ModelError, match=r"its vectors have .* numbers and these 16"):  # its token embeddings are narrower, too
        Training(towers, pairs(), config, tmp_path)


def test_encoding_is_left_as_it_is(home: Path) -> None:
    base = resolve_base("tiny-decoder", [*documents(), *queries()])
    plain, again = (TwoTowers(base, configured(activation_checkpointing=on)) for on in (False, True))
    rows = plain.tokens(documents(), "document")
    assert (plain.encode(rows, "document") == again.encode(rows, "document")).all()


def test_a_model_whose_layers_are_unknown_is_refused() -> None:
    with pytest.raises(Exception, match="keeps its layers under a name other than"):
        recompute_layers(torch.nn.Linear(2, 2), "odd")
