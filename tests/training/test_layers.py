"""Sizes of one family: decoders of a given shape, and decoders with layers left out."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from components.errors import ModelError
from components.towers import transformer
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.encoder import load_tower
from components.towers.model_size import non_embedding_parameters
from components.towers.train import train_towers
from components.towers.transformer import first_and_last, keep_layers, require_format, require_states
from components.towers.two_towers import load_decoder
from tests.training.tiny_world import documents, pairs, queries

TEXTS = documents() + queries()


def test_first_and_last_layers_are_kept() -> None:
    assert first_and_last(6, 18) == (0, 1, 2, 15, 16, 17)
    assert first_and_last(3, 18) == (0, 1, 17)
    assert first_and_last(1, 18) == (0,)


def test_parameters_of_a_decoder_are_those_worked_out_by_hand(home: Path) -> None:
    # Width 32: two query heads and one key head of 16. q 32*32, k and v 32*16, o 32*32, two norms of 16, three maps of 32*64, two of 32.
    layer = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 2 * 16 + 3 * 32 * 64 + 2 * 32
    assert non_embedding_parameters(resolve_base("decoder-32x3", TEXTS)) == 3 * layer + 32  # and the last norm
    assert non_embedding_parameters(resolve_base("decoder-32x3@2", TEXTS)) == 2 * layer + 32


def test_a_cut_decoder_has_the_layers_of_the_whole_one_and_a_digest_of_its_own(home: Path) -> None:
    whole, cut = resolve_base("decoder-32x4", TEXTS), resolve_base("decoder-32x4@3", TEXTS)
    assert cut.name == f"{whole.name}@3" and cut.layers == (0, 1, 3)
    assert cut.digest not in (whole.digest, resolve_base("decoder-32x4@2", TEXTS).digest)
    assert resolve_base(cut.name) == cut  # as a saved tower asks for it
    big, small = load_decoder(whole, "float32")[0], load_decoder(cut, "float32")[0]
    for mine, theirs in zip(small.layers, (big.layers[0], big.layers[1], big.layers[3]), strict=True):
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())
    assert [layer.self_attn.layer_idx for layer in small.layers] == [0, 1, 2]
    assert small(torch.tensor([[1, 5, 2]])).last_hidden_state.shape == (1, 3, 32)


def test_the_first_layers_of_a_decoder_have_a_name_and_a_digest_of_their_own(home: Path) -> None:
    whole, first, both = (resolve_base(f"decoder-32x4{cut}", TEXTS) for cut in ("", "@first3", "@3"))
    assert first.name == f"{whole.name}@first3" and first.layers == (0, 1, 2)
    assert len({whole.digest, first.digest, both.digest, resolve_base("decoder-32x4@first2", TEXTS).digest}) == 4
    assert resolve_base(first.name) == first
    big, small = load_decoder(whole, "float32")[0], load_decoder(first, "float32")[0]
    states = big(torch.tensor([[1, 5, 2]]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(small(torch.tensor([[1, 5, 2]])).last_hidden_state, big.norm(states[3]))


def test_the_kinds_of_attention_stay_with_their_layers() -> None:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = Gemma3TextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, layer_types=kinds,
    )  # fmt: skip
    model = Gemma3TextModel(config)
    keep_layers(model, (0, 2), "tiny-gemma")
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, 32)


def test_a_saved_tower_opens_on_a_cut_that_is_refused_today(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that began to be refused after a release closed the towers that the release had."""
    config = TowerConfig(base_model="decoder-32x3@2", pooling="mean", steps=1, batch_size=4, lora_rank=2, precision="float32")
    train_towers(pairs(), config.model_copy(update={"max_mean_cosine": 1.0, "min_effective_rank": 1.0}), {}, tmp_path)

    def refused(*given: object) -> None:
        raise ModelError("Take it whole.")

    monkeypatch.setattr(transformer, "_require_same", refused)
    assert load_tower(tmp_path / "query_tower", "float32").encode(["kidney"]).shape == (1, 32)
    with pytest.raises(ModelError, match="Take it whole"):
        load_decoder(resolve_base("decoder-32x3@2", TEXTS), "float32")


def test_a_setting_of_a_layer_that_is_no_number_is_equal_to_itself() -> None:
    from transformers import BertConfig, BertModel

    class Odd(BertModel):
        def __init__(self, config: BertConfig) -> None:
            super().__init__(config)
            for layer in self.encoder.layer:
                layer.scale = float("nan")

    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    model = Odd(BertConfig(**small))
    keep_layers(model, (0, 2), "odd")
    assert model.config.num_hidden_layers == 2


class Said:
    """A model whose states are ones: `level` more beside a text of equal length, `padded` more beside a longer one."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, level: float, padded: float) -> None:
        self.level, self.padded = level, padded

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **other: object) -> SimpleNamespace:
        more = (self.level if attention_mask.all() else self.padded) if len(input_ids) > 1 else 0.0
        return SimpleNamespace(last_hidden_state=torch.full((*input_ids.shape, 4), 1 + more))


@pytest.mark.parametrize(
    ("level", "padded", "refused"),
    [(0, 1e-3, True), (4e-4, 1e-3, False), (4e-4, 4e-3, True), (0, float("nan"), True), (float("nan"), 1e-3, True)],
)
def test_what_a_padded_batch_does_is_held_against_what_an_unpadded_one_does(level: float, padded: float, refused: bool) -> None:
    with pytest.raises(ModelError, match="reads the padding") if refused else nullcontext():
        require_states(Said(level, padded), "said", 4)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_format_is_tried_on_the_processor_only_for_a_training_there(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**batch: object) -> None:
        raise ValueError("no kernel")

    failing.device = torch.device("cpu")  # type: ignore[attr-defined]
    monkeypatch.setattr(transformer, "pick_device", lambda: torch.device(device))
    with pytest.raises(ModelError, match="cannot be trained in bfloat16") if device == "cpu" else nullcontext():
        require_format(failing, "said", torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("decoder-32x2@2", "ask for 1 to 1"),
        ("decoder-32x2@0", "ask for 1 to 1"),
        ("decoder-32x2@first2", "'decoder-32x2-.*@first2' asks for 2 layers.*ask for 1 to 1"),
        ("decoder-33x2", "multiple of 32"),
        ("decoder-32x0", "1 to 128 layers"),
    ],
)
def test_shapes_that_cannot_be_are_refused(home: Path, name: str, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        resolve_base(name, TEXTS)


def test_a_tower_on_a_cut_decoder_is_trained_saved_and_loaded(home: Path, tmp_path: Path) -> None:
    config = TowerConfig(base_model="decoder-64x3@2", pooling="mean", steps=2, batch_size=16, lora_rank=4, precision="float32")
    train_towers(pairs(), config.model_copy(update={"max_mean_cosine": 1.0, "min_effective_rank": 1.0}), {}, tmp_path)
    tower = load_tower(tmp_path / "query_tower", precision="float32")
    assert tower.contract.base_model.endswith("@2")
    np.testing.assert_allclose(np.linalg.norm(tower.encode(queries()), axis=1), 1, atol=1e-5)
