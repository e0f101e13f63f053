"""Layers taken from models of several architectures, pruning, and the two heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.distillation.config import DistillationConfig
from components.distillation.plan import prune
from components.distillation.student import check_before_towers, check_student, initial, new_student
from components.distillation.student.encoder import linear_head, ridge, two_layer_head
from components.distillation.student.initial import choose_layers
from components.errors import ModelError
from components.towers.config import TowerConfig
from components.towers.transformer import first_and_last, keep_layers, layer_count, layer_stack
from tests.training.test_student_forms import config, queries, student_of, teacher_vectors, tower  # noqa: F401

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 40, "pad_token_id": 0}
IDS = torch.arange(3, 12)[None]


def model_of(kind: str, layers: int) -> Any:
    """A random model of an architecture, `layers` deep."""
    import transformers

    torch.manual_seed(0)
    decoder = {**SMALL, "num_hidden_layers": layers, "num_key_value_heads": 1, "head_dim": 8}
    small: dict[str, dict[str, Any]] = {
        "Bert": {**SMALL, "num_hidden_layers": layers},
        "DistilBert": {"dim": 16, "hidden_dim": 32, "n_heads": 2, "vocab_size": 40, "n_layers": layers},
        "ModernBert": {**SMALL, "num_hidden_layers": layers, "global_attn_every_n_layers": 3, "local_attention": 4},
        "Gemma3Text": {**decoder, "sliding_window": 4, "layer_types": (["sliding_attention"] * 2 + ["full_attention"]) * (layers // 3)},
        "Qwen3": decoder,
        "OPT": {
            "hidden_size": 16,
            "word_embed_proj_dim": 16,
            "ffn_dim": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": layers,
            "vocab_size": 40,
        },
        "GPT2": {"n_embd": 16, "n_head": 2, "n_layer": layers, "vocab_size": 40},
    }
    made = getattr(transformers, f"{kind}Config")(**small[kind])
    return getattr(transformers, f"{kind}Model")(made).eval()


def states(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).last_hidden_state


@pytest.mark.parametrize("kind", ["Bert", "DistilBert", "ModernBert", "Gemma3Text", "Qwen3", "OPT", "GPT2"])
def test_a_cut_model_is_the_same_after_a_round_over_the_disk(kind: str, tmp_path: Path) -> None:
    whole, cut = model_of(kind, 6), model_of(kind, 6)
    keep_layers(cut, (0, 1, 5), kind)
    assert layer_count(cut, kind) == cut.config.num_hidden_layers == 3
    owner, name = layer_stack(whole, kind)
    for place, number in enumerate((0, 1, 5)):
        kept, wanted = getattr(layer_stack(cut, kind)[0], name)[place].state_dict(), getattr(owner, name)[number].state_dict()
        assert all(torch.equal(kept[key], wanted[key]) for key in wanted)
    cut.save_pretrained(tmp_path)
    read = type(cut).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(states(read), states(cut), atol=1e-5, rtol=1e-5)
    assert (states(cut) - states(whole)).abs().max() > 1e-3


def test_the_kinds_of_attention_follow_the_layers() -> None:
    model = model_of("Gemma3Text", 6)
    keep_layers(model, (0, 1, 5), "gemma")
    assert model.config.layer_types == ["sliding_attention", "sliding_attention", "full_attention"]
    assert [layer.self_attn.layer_idx for layer in model.layers] == [0, 1, 2]
    keep_layers(model, (1,), "gemma")
    assert (model.config.layer_types, model.layers[0].self_attn.is_sliding) == (["sliding_attention"], True)


def test_a_cut_that_the_configuration_cannot_express_is_refused() -> None:
    with pytest.raises(ModelError, match="let the layers begin with 0"):
        keep_layers(model_of("ModernBert", 6), (1, 5), "modern")


@pytest.mark.parametrize(("most", "free"), [(0, 2**40), (2**40, 4 * 2**10)])
def test_a_student_that_is_large_is_cut_without_its_numbers_before_the_towers(
    most: int, free: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read whole into memory, before anyone had asked whether there is room."""

    def loaded(*given: object) -> None:
        raise AssertionError("its weights were read")

    def refused(*given: object) -> None:
        raise ModelError("Take it whole.")

    monkeypatch.setattr(initial, "TRIED_BYTES", most)
    monkeypatch.setattr(initial, "free_memory", lambda: free)
    monkeypatch.setattr(initial, "load_small_encoder", loaded)
    initial._try.cache_clear()
    towers = TowerConfig(base_model="tiny-decoder")
    check_before_towers(DistillationConfig(student="tiny-encoder"), towers)
    with monkeypatch.context() as patched, pytest.raises(ModelError, match="Take it whole"):
        patched.setattr(initial, "keep_layers", refused)
        check_before_towers(DistillationConfig(student="tiny-encoder", layers=1), towers)
    monkeypatch.setattr(initial, "TRIED_BYTES", 2**40)
    monkeypatch.setattr(initial, "free_memory", lambda: 2**40)
    initial._try.cache_clear()
    with pytest.raises(AssertionError, match="were read"):
        check_before_towers(DistillationConfig(student="tiny-encoder"), towers)


def test_a_model_without_a_known_stack_is_refused() -> None:
    with pytest.raises(ModelError, match="keeps its layers under a name other than"):
        layer_stack(torch.nn.Linear(2, 2), "linear")


def test_the_first_half_and_the_last_half_are_kept() -> None:
    assert first_and_last(1, 6) == (0,)
    assert first_and_last(3, 6) == (0, 1, 5)
    assert first_and_last(4, 18) == (0, 1, 16, 17)
    assert choose_layers(None, 3, "m") == (0, 1, 2)
    assert choose_layers(3, 3, "m") == (0, 1, 2)
    assert choose_layers((4, 1), 6, "m") == (4, 1)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((0, 6), "has the layers 0 to 5"),
        ((-1,), "has the layers 0 to 5"),
        ((), "0 to 5"),
        ((2, 2), "once"),
        (7, "ask for 1 to 6"),
        (0, "1 to 6"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layers: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        choose_layers(layers, 6, "m")


def test_pruning_keeps_the_outer_layers_of_those_that_are_left(home: Path) -> None:
    model = model_of("Bert", 6)
    student = student_of({})
    student.model = model
    layers = list(model.encoder.layer)
    prune(student, 4)
    assert [layers.index(layer) for layer in model.encoder.layer] == [0, 1, 4, 5]
    prune(student, 3)
    assert [layers.index(layer) for layer in model.encoder.layer] == [0, 1, 5]
    assert student.layer_count == 3
    for count in (0, 3, 4):
        with pytest.raises(ModelError, match="ask for 1 to 2"):
            prune(student, count)


def test_a_pruned_student_is_aligned_and_saved_like_any_other(home: Path) -> None:
    student = student_of({})
    before = len(student.parameters(False))
    prune(student, 1)
    assert student.layer_count == 1 and len(student.parameters(False)) < before
    assert student.encode(["kidney"]).shape == (1, 24)
    with pytest.raises(ModelError, match="the student has 0"):
        prune(student_of({"form": "static"}), 1)


def test_the_ridge_map_is_that_worked_out_by_hand() -> None:
    found = ridge(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0, 0.0], [3.0, 2.0]]))
    np.testing.assert_allclose(found, [[4 / 2.002], [2 / 2.002]], rtol=1e-6)  # gram 2, ridge 0.001 * 2


def test_a_two_layer_head_starts_as_the_linear_one() -> None:
    torch.manual_seed(0)
    features, weight = torch.randn(50, 12) * 5, torch.randn(7, 12)
    linear, bent = linear_head(weight), two_layer_head(weight, features, 20)
    torch.testing.assert_close(bent(features), linear(features), atol=1e-4, rtol=1e-4)
    hidden = bent[0](features)[:, :7]
    torch.testing.assert_close(hidden.std(0), torch.ones(7), atol=1e-3, rtol=1e-3)
    assert bent[0].weight.shape == (20, 12) and bent[2].bias is None


def test_a_narrow_two_layer_head_starts_as_the_best_map_of_its_rank() -> None:
    features, weight = torch.randn(50, 3), torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    best = torch.diag(torch.tensor([3.0, 2.0, 0.0]))
    torch.testing.assert_close(two_layer_head(weight, features, 5)(features), features @ best.T, atol=1e-5, rtol=1e-5)


def test_both_heads_start_the_student_at_the_same_vectors(home: Path) -> None:
    linear, bent = student_of({}), student_of({"head": "two_layer", "head_width": 64})
    np.testing.assert_allclose(bent.encode(queries()), linear.encode(queries()), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "dimension", "message"),
    [
        ({"layers": (0, 2)}, 64, "has the layers 0 to 1"),
        ({"layers": 3}, 64, "ask for 1 to 2"),
        ({"prune_to": (2, 1)}, 64, "the student has 2 layers; prune to 1 to 1"),
        ({"prune_to": (1, 0)}, 64, "at least one layer"),
        ({}, 32, "must not be wider than its index"),
        ({"form": "static"}, 32, "must not be wider than its index"),
        ({"student": "teacher"}, 64, "no query tower was given"),
    ],
)
def test_impossible_students_are_refused_before_anything_is_trained(fields: dict[str, Any], dimension: int, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_student(config(**fields), dimension, None)


def test_possible_students_pass_the_check(tower: Path) -> None:  # noqa: F811
    for fields in ({}, {"layers": 1}, {"layers": (1, 0), "prune_to": (1,)}, {"form": "static"}):
        check_student(config(**fields), 64, None)
    check_student(config(student="teacher", layers=1), 32, tower)  # its vectors are cut to the index, as the documents' are
    with pytest.raises(ModelError, match="ask for 1 to 2"):
        check_student(config(student="teacher", layers=3), 32, tower)


def test_the_teachers_layers_are_known_before_it_is_trained(home: Path) -> None:
    towers = TowerConfig(base_model="tiny-decoder")
    check_before_towers(DistillationConfig(student="teacher", layers=2), towers)
    with pytest.raises(ModelError, match="ask for 1 to 2"):
        check_before_towers(DistillationConfig(student="teacher", layers=4), towers)
    with pytest.raises(ModelError, match="wider than its index"):
        check_before_towers(config(), towers.model_copy(update={"dimension": 32}))


def test_a_name_that_is_no_encoder_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    for call in (lambda: check_student(config(student=str(tmp_path)), 64, None), lambda: student_of({"student": str(tmp_path)})):
        with pytest.raises(ModelError):
            call()


def test_new_student_takes_the_space_it_is_given(home: Path) -> None:
    student = new_student(queries(), teacher_vectors(70), "space", config(), None)
    assert (student.space_id, student.contract.dimension, student.encode(["x"]).shape) == ("space", 70, (1, 70))
