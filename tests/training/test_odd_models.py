"""Models that people name and that are odd in some way: each gives the vectors that it should, or is refused in a sentence."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.distillation import generation
from components.distillation.config import DistillationConfig
from components.distillation.student import check_before_towers, forms, initial
from components.distillation.student.initial import Source, bare_student, load_small_encoder, untrained_roles, untrained_student
from components.distillation.student.storage import load_student, save_student, save_tokenizer
from components.errors import ModelError
from components.planning.facts import shape_of_base
from components.towers import transformer
from components.towers.base_models import resolve_base, tokenizer_of, why_unloadable
from components.towers.config import TowerConfig
from components.towers.contract import save_contract, space_id_of
from components.towers.encoder import TowerEncoder, load_tower
from components.towers.hub import has_tokenizer
from components.towers.tokens import needs_end_token, require_words, token_ids
from components.towers.train import train_towers
from components.towers.trained.published import read_published, with_own_settings
from components.towers.transformer import position_limit, require_plain_weights
from components.towers.two_towers import TwoTowers, load_decoder, published_contracts
from tests.encoders import contract_of
from tests.families import ENCODER, SMALL, STUDENTS, TEACHERS, Family, bert, qwen, roberta
from tests.published_world import FORMS, Form
from tests.training.tiny_world import documents, pairs, queries

TEXTS = [*documents(), *queries()]
SHOWN = ["kidney stone", "a", f"heart attack, old, and {documents()[0]}"]
FOUR = {**SMALL, "num_hidden_layers": 4}
DEEP_ENCODER = {**ENCODER, "num_hidden_layers": 4}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "head_dim": 8}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "num_key_value_heads": 4}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 1}
REFORMER = {
    "hidden_size": 32, "num_attention_heads": 4, "attention_head_size": 8, "feed_forward_size": 64, "axial_pos_embds_dim": [16, 16],
    "axial_pos_shape": [8, 8], "max_position_embeddings": 64, "attn_layers": ["local", "lsh"], "is_decoder": False,
}  # fmt: skip

HYBRIDS = {  # kinds of layers that differ, and how a configuration says which is which
    "lfm2": Family("lfm2", qwen, "", {"layer_types": ["conv", "conv", "full_attention", "conv"]}, FOUR),
    "granite": Family("granitemoehybrid", qwen, "", {"layer_types": ["mamba", "mamba", "attention", "mamba"], **MAMBA}, FOUR),
    "jamba": Family(
        "jamba", qwen, "", {"attn_layer_period": 4, "attn_layer_offset": 1, "expert_layer_period": 4, "expert_layer_offset": 3,
        "num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}, FOUR,
    ),
    "bamba": Family("bamba", qwen, "", {"attn_layer_indices": [1, 3], **MAMBA}, FOUR),
    "nemotron": Family(
        "nemotron_h", qwen, "", {"hybrid_override_pattern": "M*ME", "mamba_num_heads": 4, "mamba_head_dim": 8, "ssm_state_size": 8,
        "n_groups": 1, "n_routed_experts": 2, **EXPERTS, "moe_shared_expert_intermediate_size": 16, "head_dim": 8}, FOUR,
    ),
    "qwen3.5": Family("qwen3_5_text", qwen, "", LINEAR, FOUR),
    "deepseek": Family(
        "deepseek_v3", qwen, "", {**LATENT, **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 2}, FOUR,
    ),
    "longformer": Family("longformer", roberta, "", {"attention_window": [8] * 4, "max_position_embeddings": 66}, DEEP_ENCODER),
}  # fmt: skip


def written(family: Family, folder: Path) -> str:
    """The folder of a family's model."""
    folder.mkdir(parents=True)
    family.write(TEXTS, folder)
    return str(folder)


def edited(folder: str | Path, file: str = "config.json", **changes: Any) -> str:
    """Other values in one of a model's own files of JSON, which is made where there is none."""
    path = Path(folder) / file
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")
    return str(folder)


def asked(name: str, **changes: Any) -> DistillationConfig:
    return DistillationConfig.model_validate({"student": name, "precision": "float32", "max_query_length": 24, **changes})


def student_of(name: str, **changes: Any) -> Any:
    return bare_student(Source(asked(name, **changes), TEXTS, None))


def reloaded(student: Any, folder: Path) -> Any:
    save_contract(folder, save_student(student, folder), "space")
    return load_student(folder, "float32")


def towers_on(name: str, **changes: Any) -> TwoTowers:
    given = {"base_model": name, "lora_rank": 2, "max_query_length": 16, "max_document_length": 24, "precision": "float32", **changes}
    return TwoTowers(resolve_base(name), TowerConfig(**given))


def as_it_is(name: str, folder: Path, **changes: Any) -> tuple[TowerEncoder, TowerEncoder]:
    """Both towers of a model that is taken as it is."""
    config = with_own_settings(TowerConfig(base_model=name, training="none", precision="float32", **changes))
    train_towers(pairs(), config, {"dataset": "d"}, folder)
    query, document = (load_tower(folder / f"{role}_tower", "float32") for role in ("query", "document"))
    return query, document


# --- What reads its padding, cannot run on texts, or is no model of token states


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Family("fnet", bert, "", base=ENCODER), "reads the padding of a batch"),
        (Family("convbert", bert, "", {"embedding_size": 32, "head_ratio": 2}, ENCODER), "reads the padding of a batch"),
        (Family("yoso", bert, "", base=ENCODER), "reads the padding of a batch"),
        (
            Family("nystromformer", bert, "", {"num_landmarks": 4, "segment_means_seq_len": 16}, ENCODER),
            r"cannot be run .*invalid for input",
        ),
        (Family("reformer", bert, "", base=REFORMER), "A state of '.*' has 64 numbers, and its configuration says 32"),
        (Family("canine", bert, "", {"num_hash_functions": 2, "num_hash_buckets": 64}, ENCODER), "has no table of token embeddings"),
    ],
    ids=lambda value: value.kind if isinstance(value, Family) else "",
)
def test_a_model_whose_vectors_would_hang_on_the_batch_is_refused_as_student_and_as_teacher(
    family: Family, words: str, tmp_path: Path, home: Path
) -> None:
    name = written(family, tmp_path / "model")
    as_teacher = TowerConfig(base_model=name, training="none", pooling="mean", max_query_length=16, max_document_length=16)
    for use in (
        lambda: student_of(name),
        lambda: check_before_towers(asked(name), TowerConfig(base_model="tiny-decoder")),
        lambda: published_contracts(resolve_base(name), as_teacher),
        lambda: towers_on(name, pooling="mean", attention="bidirectional", training="full"),
    ):
        with pytest.raises(ModelError, match=words if use.__code__.co_names[0] != "towers_on" else "Use another model|Name a model|Set"):
            use()


@pytest.mark.parametrize("how", [{"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}, {"load_in_4bit": True}])
def test_quantized_weights_are_refused_by_their_method(how: dict[str, Any], tmp_path: Path, home: Path) -> None:
    name = edited(written(TEACHERS["qwen3"], tmp_path / "model"), quantization_config=how)
    for use in (lambda: student_of(name), lambda: towers_on(name)):
        with pytest.raises(ModelError, match=f"are quantized .{how.get('quant_method', 'somehow')}.*the model that it was made from"):
            use()


def test_quantized_weights_are_refused_where_the_text_part_alone_is_said_to_have_them(tmp_path: Path, home: Path) -> None:
    name = of_texts_and_images(tmp_path / "model")
    said = json.loads((tmp_path / "model/config.json").read_text(encoding="utf-8"))["text_config"]
    edited(name, text_config={**said, "quantization_config": {"quant_method": "compressed-tensors"}})
    for use in (lambda: student_of(name), lambda: towers_on(name)):
        with pytest.raises(ModelError, match=r"are quantized .compressed-tensors.*the model that it was made from"):
            use()
    require_plain_weights(["layers.0.up_proj.weight_scale"], name, name)  # of a tower from before: its own configuration says it


@pytest.mark.parametrize(
    "changes", [{"return_dict": False}, {"output_hidden_states": True}, {"use_cache": True}, {"output_attentions": True}], ids=str
)
@pytest.mark.parametrize("family", [TEACHERS["qwen3"], STUDENTS["bert"]], ids=lambda family: family.kind)
def test_what_a_saved_configuration_wants_besides_changes_no_vector(
    family: Family, changes: dict[str, Any], tmp_path: Path, home: Path
) -> None:
    plain = written(family, tmp_path / "plain")
    odd = edited(shutil.copytree(plain, tmp_path / "odd"), **changes)
    np.testing.assert_allclose(student_of(odd).encode(SHOWN), student_of(plain).encode(SHOWN), atol=1e-6)
    pooling = {"pooling": "mean", "attention": "causal" if family.kind == "qwen3" else "bidirectional"}
    one, other = (towers_on(name, **pooling) for name in (odd, plain))
    rows = one.tokens(SHOWN, "document")
    np.testing.assert_allclose(one.encode(rows, "document"), other.encode(rows, "document"), atol=1e-6)


def test_a_decoder_as_student_keeps_no_keys_and_values_for_a_next_word(tmp_path: Path, home: Path) -> None:
    student = student_of(written(TEACHERS["qwen3"], tmp_path / "model"))
    assert student.model.config.use_cache is False
    folder = tmp_path / "student"
    assert reloaded(student, folder).model.config.use_cache is False
    edited(folder, use_cache=True)  # as students of before were saved
    assert load_student(folder, "float32").model.config.use_cache is False


def test_a_tokenizer_that_this_version_cannot_read_is_a_sentence(tmp_path: Path, home: Path) -> None:
    name = written(STUDENTS["bert"], tmp_path / "model")
    broken = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps({**broken, "model": {**broken["model"], "type": "Newest"}}))
    for use in (lambda: student_of(name), lambda: towers_on(name, pooling="mean", attention="bidirectional")):
        with pytest.raises(ModelError, match="cannot be loaded"):
            use()


def test_a_tokenizer_of_python_code_is_refused_before_the_towers(tmp_path: Path, home: Path) -> None:
    name = written(STUDENTS["bert"], tmp_path / "model")
    words = json.loads((tmp_path / "model" / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)))
    kind = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(kind))
    with pytest.raises(ModelError, match=r"splits texts by Python code .BertJapaneseTokenizer.*tokenizer.json"):
        check_before_towers(asked(name), TowerConfig(base_model="tiny-decoder"))


def test_rotary_positions_that_turn_otherwise_beside_a_long_text_end_where_they_do(tmp_path: Path, home: Path) -> None:
    long = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    changes = {"pad_token_id": 0, "original_max_position_embeddings": 16, "rope_parameters": {**long, "rope_theta": 10_000.0}}
    name = written(Family("phi3", TEACHERS["phi-3"].tokenizer, "</s>", changes), tmp_path / "model")
    assert position_limit(load_decoder(resolve_base(name), "float32")[0]) == 16


# --- Layers that differ, and cuts


@pytest.mark.parametrize("name", HYBRIDS)
@pytest.mark.parametrize("layers", [None, 2, (0, 1), (0, 1, 2)], ids=str)
def test_a_hybrid_that_is_cut_is_the_same_once_it_is_saved_or_is_refused(name: str, layers: Any, tmp_path: Path, home: Path) -> None:
    try:
        student = student_of(written(HYBRIDS[name], tmp_path / "model"), layers=layers)
    except ModelError as error:
        assert layers is not None and str(error).endswith((".", "with 0.")), "whole it is always taken"
        return
    together = student.encode(SHOWN)
    np.testing.assert_allclose(np.concatenate([student.encode([text]) for text in SHOWN]), together, atol=1e-5)
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), together, atol=1e-5)


@pytest.mark.parametrize("name", ["lfm2", "bamba", "nemotron", "qwen3.5", "deepseek", "longformer", "granite"])
def test_a_hybrid_can_be_cut_and_its_configuration_follows(name: str, tmp_path: Path, home: Path) -> None:
    student = student_of(written(HYBRIDS[name], tmp_path / "model"), layers=(0, 1))
    assert student.layer_count == student.model.config.num_hidden_layers == 2


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Family("diffllama", qwen, "", base=FOUR), r"treats a layer by its place among all of them .*lambda_init.*Take it whole"),
        (TEACHERS["gemma-4"], "upper layers that take keys and values of lower ones"),
        (Family("zamba2", qwen, "", {"layers_block_type": ["mamba", "hybrid"] * 2, "mamba_d_state": 8, "n_mamba_heads": 8,
         "mamba_headdim": 8, "mamba_ngroups": 1, "num_mem_blocks": 1}, FOUR), "Take it whole"),
        (Family("olmo_hybrid", qwen, "", base={**FOUR, "layer_types": ["linear_attention"] * 3 + ["full_attention"]}),
         r"cannot be cut to some of its layers .*attention layer"),
        (Family("albert", bert, "", {"embedding_size": 16}, DEEP_ENCODER), "not cut, trained in part"),
    ],
    ids=lambda value: value.kind if isinstance(value, Family) else "",
)  # fmt: skip
def test_a_cut_that_would_be_another_model_once_saved_is_refused_before_the_towers(
    family: Family, words: str, tmp_path: Path, home: Path
) -> None:
    name = written(family, tmp_path / "model")
    towers, layers = TowerConfig(base_model="tiny-decoder"), (0, 1) if family.kind == "olmo_hybrid" else 2
    check_before_towers(asked(name), towers)
    for changes in ({"layers": layers}, {"layers": layers, "prune_to": (1,)}):
        with pytest.raises(ModelError, match=words):
            check_before_towers(asked(name, **changes), towers)
    if family.kind == "diffllama":
        with pytest.raises(ModelError, match=words):
            check_before_towers(asked(name, prune_to=(3, 2)), towers)
    teacher = TowerConfig(base_model=name, max_document_length=24, training="full")  # not all of them take adapters
    with pytest.raises(ModelError, match=words):
        check_before_towers(asked("teacher", layers=layers), teacher)


def test_an_encoder_whose_list_of_layers_is_not_known_is_a_student_as_a_whole(tmp_path: Path, home: Path) -> None:
    student = student_of(written(Family("albert", bert, "", {"embedding_size": 16}, ENCODER), tmp_path / "model"))
    assert student.layer_count == 2
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), student.encode(SHOWN), atol=1e-5)
    with pytest.raises(ModelError, match="not cut, trained in part"):
        check_before_towers(asked(str(tmp_path / "model"), trained_layers=1), TowerConfig(base_model="tiny-decoder"))


@pytest.mark.parametrize(
    "family",
    [
        Family("phimoe", qwen, "", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        Family(
            "llama4_text", qwen, "", {"intermediate_size_mlp": 64, "num_local_experts": 2, "interleave_moe_layer_step": 2, "head_dim": 8}
        ),
    ],
    ids=lambda family: family.kind,
)
def test_a_router_that_is_a_linear_map_of_its_own_kind_stays_as_it_is(family: Family, tmp_path: Path, home: Path) -> None:
    towers = towers_on(written(family, tmp_path / "model"))
    towers.embed(towers.tokens(documents()[:4], "document"), "document").sum().backward()
    assert not [n for n in towers._weights.trained if "router" in n]


def test_more_layers_with_adapters_than_the_teacher_has_are_refused_before_anything_is_read(home: Path) -> None:
    with pytest.raises(ModelError, match=r"towers.lora_layers is 9, but 'tiny-decoder.*' has 2 layers"):
        check_before_towers(asked("tiny-encoder"), TowerConfig(base_model="tiny-decoder", lora_layers=9))


def test_layers_of_one_model_may_have_inner_widths_of_their_own(tmp_path: Path, home: Path) -> None:
    own = {
        "num_kv_shared_layers": 1, "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 600, "laurel_rank": 4, "head_dim": 8,
        "altup_num_inputs": 2, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0] * 3, "intermediate_size": [32, 64, 64], "num_hidden_layers": 3,
    }  # fmt: skip
    name = written(Family("gemma3n_text", qwen, "", own), tmp_path / "model")
    assert shape_of_base(resolve_base(name)).inner == 64
    towers_on(name)


@pytest.mark.parametrize(("lora_layers", "twice"), [(1, True), (2, False), (None, True)])
def test_a_plan_counts_a_second_pass_where_upper_layers_take_keys_of_lower_ones(
    lora_layers: int | None, twice: bool, tmp_path: Path, home: Path
) -> None:
    name = written(TEACHERS["gemma-4"], tmp_path / "model")
    shape, towers = shape_of_base(resolve_base(name)), towers_on(name, lora_layers=lora_layers)
    assert shape.joined == 2 and (shape.passed_twice(lora_layers) == 1) == twice
    if lora_layers is not None:
        assert towers._lower is not None and towers._lower._suffice != twice, "as the training itself finds"
    assert shape_of_base(resolve_base(written(TEACHERS["qwen3"], tmp_path / "plain"))).passed_twice(1) == 0.5


# --- Texts and images, heads, pooling and prompts as published


GEMMA3 = {
    "text_config": {**SMALL, "head_dim": 8, "sliding_window": 8, "vocab_size": 700, "model_type": "gemma3_text"},
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    },
    "mm_tokens_per_image": 4,
}  # fmt: skip


def of_texts_and_images(folder: Path) -> str:
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(3)
    AutoModel.from_config(AutoConfig.for_model("gemma3", **GEMMA3)).save_pretrained(folder)
    qwen(TEXTS).save_pretrained(folder)
    return str(folder)


def test_of_a_model_of_texts_and_images_the_student_is_the_part_that_reads_texts(tmp_path: Path, home: Path) -> None:
    student = student_of(of_texts_and_images(tmp_path / "model"))
    assert not [name for name, _ in student.model.named_parameters() if "vision" in name]
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), student.encode(SHOWN), atol=1e-5)


def test_the_student_of_a_teacher_of_texts_and_images_is_saved_too(tmp_path: Path, home: Path) -> None:
    towers = towers_on(of_texts_and_images(tmp_path / "model"))
    contract = towers.save("query", tmp_path / "tower")
    assert contract is not None
    save_contract(tmp_path / "tower", contract, space_id_of(contract.model_copy(update={"role": "document"})))
    student = bare_student(Source(asked("teacher"), TEXTS, tmp_path / "tower"))
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), student.encode(SHOWN), atol=1e-5)


def test_states_that_a_map_of_the_models_own_makes_wider_are_kept_whole(tmp_path: Path, home: Path) -> None:
    small = {**SMALL, "head_dim": 8, "sliding_window": 8, "hidden_size_per_layer_input": 4, "global_head_dim": 16, "embedding_dim": 48}
    kinds = {"layer_types": ["sliding_attention", "full_attention"]}
    name = written(Family("embedding_gemma2_text", qwen, "", kinds, small), tmp_path / "model")
    query, _ = as_it_is(name, tmp_path / "towers", pooling="mean", query_prompt="", document_prompt="")
    assert query.contract.dimension == query.encode(SHOWN).shape[1] == 48
    student = student_of(name)
    assert student.encode(SHOWN).shape[1] == 48
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), student.encode(SHOWN), atol=1e-5)


@pytest.mark.parametrize("name", ["bge", "gte", "harrier", "embeddinggemma", "qwen3-embedding"])
def test_the_encoder_as_published_gives_the_vectors_of_sentence_transformers(
    name: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sentence_transformers import SentenceTransformer

    monkeypatch.setenv("SCALINGNOTE_PRECISION", "float32")
    model = FORMS[name].write(TEXTS, tmp_path / name)
    reference = SentenceTransformer(str(model), device="cpu")
    query, document = untrained_roles(asked(str(model)), TEXTS, None, 120)
    for encoder, encode in ((query, reference.encode_query), (document, reference.encode_document)):
        wanted = encode(SHOWN, normalize_embeddings=True)
        assert np.abs(encoder.encode(SHOWN) - wanted).max() < 1e-4


def test_a_changed_head_is_another_encoder_to_what_is_kept_of_it(tmp_path: Path, home: Path) -> None:
    model = FORMS["embeddinggemma"].write(TEXTS, tmp_path / "model")
    config = initial.as_published(asked(str(model)))
    assert untrained_student(config, TEXTS, None, 32).contract.head == ("32 -> 96", "96 -> 32")
    cut = untrained_student(config.model_copy(update={"layers": 1}), TEXTS, None, 32)
    assert cut.contract.head == () and cut.head is None, "of a part of the layers nobody published a head"


@pytest.mark.parametrize("pooling", ["weightedmean", "max", ["mean", "cls"]], ids=str)
def test_a_student_whose_published_pooling_is_unknown_here_is_refused_before_the_towers(pooling: Any, tmp_path: Path, home: Path) -> None:
    model = edited(FORMS["gte"].write(TEXTS, tmp_path / "model"), "1_Pooling/config.json", pooling_mode=pooling)
    with pytest.raises(ModelError, match="a tower or student pools by one of"):
        check_before_towers(asked(model), TowerConfig(base_model="tiny-decoder"))


def test_a_mean_that_is_scaled_by_the_length_is_a_mean(tmp_path: Path, home: Path) -> None:
    model = edited(FORMS["gte"].write(TEXTS, tmp_path / "model"), "1_Pooling/config.json", pooling_mode="mean_sqrt_len_tokens")
    assert student_of(model).contract.pooling == "mean"


def test_the_pooling_is_read_where_the_model_keeps_it(tmp_path: Path, home: Path) -> None:
    model = FORMS["bge"].write(TEXTS, tmp_path / "model")
    (model / "1_Pooling").rename(model / "pooling")
    listed = json.loads((model / "modules.json").read_text())
    listed[1]["path"] = "pooling"
    (model / "modules.json").write_text(json.dumps(listed))
    assert student_of(str(model)).contract.pooling == "cls"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modality_config": {"text": {"method": "forward"}, "message": {"method": "forward"}}}, "a chat template around each text"),
        ({"modality_config": {"text": {"method": "get_text_features", "method_output_name": None}}}, "has modality_config"),
        ({"transformer_task": "fill-mask"}, "has transformer_task fill-mask"),
        ({"query_expansion": {"length": 32}}, "has query_expansion"),
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, r"processing_kwargs .add_special_tokens"),
        ({"config_kwargs": {"is_causal": False}}, r"config_kwargs .is_causal"),
        ({"tokenizer_args": {"padding_side": "left", "do_lower_case": True}}, r"tokenizer_kwargs .do_lower_case"),
        ({"model_args": {"padding_side": "left"}}, r"model_kwargs .padding_side"),
        ({"processing_kwargs": ["text"]}, "something that is no setting"),
    ],
    ids=str,
)
def test_settings_of_a_transformer_module_that_no_tower_follows_are_refused(
    settings: dict[str, Any], words: str, tmp_path: Path, home: Path
) -> None:
    model = edited(FORMS["bge"].write(TEXTS, tmp_path / "model"), "sentence_bert_config.json", **settings)
    with pytest.raises(ModelError, match=words):
        read_published(resolve_base(model))


def test_lengths_by_role_are_those_of_the_settings(tmp_path: Path, home: Path) -> None:
    model = edited(FORMS["bge"].write(TEXTS, tmp_path / "model"), "sentence_bert_config.json", query_length=12, document_length=30)
    config = with_own_settings(TowerConfig(base_model=model, training="none"))
    assert (config.max_query_length, config.max_document_length) == (12, 30)


def test_a_module_of_the_models_own_code_is_not_taken_for_the_librarys(tmp_path: Path, home: Path) -> None:
    model = FORMS["bge"].write(TEXTS, tmp_path / "model")
    listed = json.loads((model / "modules.json").read_text())
    listed[0]["type"] = "custom_st.Transformer"
    (model / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=r"a module of its own .custom_st.Transformer.*does not run here"):
        read_published(resolve_base(str(model)))


def test_a_teacher_of_a_family_without_prompts_in_its_files_has_those_of_its_card(tmp_path: Path, home: Path) -> None:
    model = Form(STUDENTS["bert"], "mean").write(TEXTS, tmp_path / "e5-small-v2")
    config = with_own_settings(TowerConfig(base_model=str(model), training="none"))
    assert (config.query_prompt, config.document_prompt) == ("query: ", "passage: ")
    named = Form(STUDENTS["bert"], "mean", prompts={"web": "web: "}).write(TEXTS, tmp_path / "named" / "e5-small-v2")
    config = with_own_settings(TowerConfig(base_model=str(named), training="none"))
    assert (config.query_prompt, config.document_prompt) == ("", ""), "its files name prompts, and none of these"


def test_an_embedding_model_whose_own_class_looks_both_ways_is_not_taken_for_a_decoder(tmp_path: Path, home: Path) -> None:
    model = FORMS["qwen3-embedding"].write(TEXTS, tmp_path / "model")
    config = with_own_settings(TowerConfig(base_model=str(model), training="none"))
    published_contracts(resolve_base(str(model)), config)
    edited(model, auto_map={"AutoModel": "modeling_qwen.Qwen3Model"})
    for use in (lambda: published_contracts(resolve_base(str(model)), config), lambda: student_of(str(model))):
        with pytest.raises(ModelError, match=r"a model class of its own .modeling_qwen.Qwen3Model.*towers.trust_remote_code"):
            use()
    encoder = edited(FORMS["bge"].write(TEXTS, tmp_path / "encoder"), auto_map={"AutoModel": "modeling_own.BertModel"})
    published_contracts(resolve_base(encoder), with_own_settings(TowerConfig(base_model=encoder, training="none")))


def test_a_teacher_that_does_not_say_how_it_reads_texts_is_told_of(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = written(STUDENTS["bert"], tmp_path / "model")
    as_it_is(name, tmp_path / "towers")
    assert "does not say how it was trained to read texts (no modules.json), so it reads them with towers.pooling 'last'" in (
        said := capsys.readouterr().out
    )
    assert "towers.query_prompt 'query: '" in said
    as_it_is(name, tmp_path / "set", pooling="mean", query_prompt="", document_prompt="")
    assert "does not say" not in capsys.readouterr().out


def test_a_teacher_whose_prompts_have_names_of_their_own_is_told_of(tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """E5-Mistral and BGE-Gemma: `encode_query` of sentence-transformers takes none of them, and queries without one find much less."""
    prompts = {"web_search_query": "Instruct: q\nQuery: ", "sts_query": "Instruct: s\nQuery: "}
    name = str(Form(STUDENTS["bert"], "mean", prompts=prompts).write(TEXTS, tmp_path / "model"))
    as_it_is(name, tmp_path / "towers")
    said = capsys.readouterr().out
    assert "has prompts for " in said and "web_search_query" in said and "and none for queries" in said
    as_it_is(name, tmp_path / "set", query_prompt="Instruct: q\nQuery: ")
    assert "has prompts for" not in capsys.readouterr().out


def test_a_decoder_that_was_made_to_look_both_ways_keeps_its_windows_when_it_is_trained(tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    form = Form(FORMS["embeddinggemma"].family, "mean", prompts={"query": "q: ", "document": "d: "})
    model = form.write(TEXTS, tmp_path / "model")
    towers = towers_on(
        str(model), attention="bidirectional", pooling="mean", query_prompt="q: ", document_prompt="d: ", max_document_length=48
    )
    texts = [" ".join(documents()[:20])]
    rows = [towers.tokenizer(f"d: {text}", truncation=True, max_length=48)["input_ids"] for text in texts]
    assert len(rows[0]) > 20, "longer than a window"
    wanted = SentenceTransformer(str(model), device="cpu").encode_document(texts, normalize_embeddings=True)
    assert np.abs(towers.encode(rows, "document") - wanted).max() < 1e-4


def test_a_chat_template_comes_before_no_text_of_a_saved_student(tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    name = written(TEACHERS["qwen3"], tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    student = student_of(name)
    expected = student.encode(SHOWN)
    reloaded(student, tmp_path / "student")
    given = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(SHOWN, normalize_embeddings=True)
    assert np.abs(given - expected).max() < 1e-4
    assert student.tokenizer.chat_template, "others use the same tokenizer"


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_student_cut_from_a_teacher_attends_as_it_did_once_it_is_saved(attention: str, tmp_path: Path, home: Path) -> None:
    towers = towers_on(written(TEACHERS["llama-3.2"], tmp_path / "model"), attention=attention)
    contract = towers.save("query", tmp_path / "tower")
    assert contract is not None
    save_contract(tmp_path / "tower", contract, space_id_of(contract.model_copy(update={"role": "document"})))
    student = bare_student(Source(asked("teacher"), TEXTS, tmp_path / "tower"))
    again = reloaded(student, tmp_path / "student")
    for texts in (SHOWN[:1], SHOWN):  # alone, and with padding
        np.testing.assert_allclose(again.encode(texts), student.encode(texts), atol=1e-5)


def test_a_student_is_cut_from_a_teacher_that_is_taken_as_it_is(tmp_path: Path, home: Path) -> None:
    model = FORMS["embeddinggemma"].write(TEXTS, tmp_path / "model")
    as_it_is(str(model), tmp_path / "towers")
    student = bare_student(Source(asked("teacher"), TEXTS, tmp_path / "towers" / "query_tower"))
    assert student.contract.head == () and student.contract.head_digest is None
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), student.encode(SHOWN), atol=1e-5)


@pytest.mark.parametrize("family", [STUDENTS["modernbert"], TEACHERS["qwen3"]], ids=lambda family: family.kind)
def test_an_encoder_in_short_numbers_keeps_the_frequencies_of_its_positions(
    family: Family, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALINGNOTE_PRECISION", "bfloat16")
    name = written(family, tmp_path / "model")
    model = untrained_student(initial.as_published(asked(name)), TEXTS, None, 32)
    whole = student_of(name).model
    kept = {n: buffer for n, buffer in model.model.named_buffers() if "inv_freq" in n}
    assert kept and model.model.dtype == torch.bfloat16
    for name, buffer in whole.named_buffers():
        assert name not in kept or torch.equal(kept[name], buffer)
    assert np.isfinite(model.encode(SHOWN)).all()


XMOD = Family("xmod", roberta, "", {"default_language": "en_XX", "max_position_embeddings": 66}, ENCODER)


@pytest.mark.parametrize("family", [Family("deberta", bert, "", base=ENCODER), XMOD], ids=lambda family: family.kind)
def test_a_model_that_cannot_be_trained_in_short_numbers_is_refused_before_it_is(
    family: Family, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "pick_device", lambda: torch.device("cpu"))
    name = written(family, tmp_path / "model")
    towers = TowerConfig(base_model="tiny-decoder")
    check_before_towers(asked(name), towers)
    with pytest.raises(ModelError, match=r"mixes number formats .*SCALINGNOTE_PRECISION=float32"):
        check_before_towers(asked(name, precision="bfloat16"), towers)
    full = {"pooling": "mean", "attention": "bidirectional", "training": "full", "precision": "bfloat16"}
    with pytest.raises(ModelError, match="mixes number formats"):
        towers_on(name, **full)


def test_sparse_attention_is_not_switched_off_by_the_first_short_text(tmp_path: Path, home: Path) -> None:
    name = written(
        Family("big_bird", bert, "", {"block_size": 4, "num_random_blocks": 1}, {**ENCODER, "max_position_embeddings": 128}), tmp_path / "m"
    )
    long = [" ".join(documents()[:10])]
    first = student_of(name, max_query_length=100)
    fresh = first.encode(long)
    first.encode(["kidney"])
    np.testing.assert_array_equal(first.encode(long), fresh)
    np.testing.assert_allclose(reloaded(first, tmp_path / "student").encode(long), fresh, atol=1e-5)


def test_on_a_gpu_an_encoder_gets_an_attention_that_it_has(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = written(Family("deberta-v2", bert, "", base=ENCODER), tmp_path / "model")
    monkeypatch.setattr(initial, "pick_device", lambda: torch.device("cuda"))
    assert load_small_encoder(resolve_base(name))[0].config._attn_implementation == "eager"


# --- What writes queries


@pytest.mark.parametrize(
    ("family", "cut", "words"),
    [
        (STUDENTS["bert"], "", "is an encoder, whose tokens see those after them|saved without"),
        (TEACHERS["qwen3"], "@1", "would write with a part of its layers"),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_cannot_write_queries_is_refused(family: Family, cut: str, words: str, tmp_path: Path, home: Path) -> None:
    with pytest.raises(ModelError, match=words):
        generation._load(resolve_base(written(family, tmp_path / "model") + cut), "float32")


def test_an_encoder_with_a_head_for_words_is_no_generator(tmp_path: Path, home: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel

    tokenizer = bert(TEXTS)
    BertLMHeadModel(BertConfig(**ENCODER, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder, whose tokens see those after them, and cannot write"):
        generation._load(resolve_base(str(tmp_path)), "float32")
    edited(tmp_path, hidden_size="wide")
    with pytest.raises(ModelError, match="cannot be loaded"):
        generation._load(resolve_base(str(tmp_path)), "float32")


@pytest.mark.parametrize("beside", ["weight_scale", "weight_scale_inv", "qweight"])
def test_quantized_weights_that_no_configuration_tells_of_are_refused_by_their_scales(beside: str, tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = written(TEACHERS["qwen3"], tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    first = next(key for key in weights if key.endswith("proj.weight"))
    scaled = {**weights, first.replace("weight", beside): torch.ones(1), first: weights[first].to(torch.float8_e4m3fn)}
    save_file(scaled, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    for use in (lambda: student_of(name), lambda: towers_on(name)):
        with pytest.raises(ModelError, match=f"are quantized .they come with .*{beside}"):
            use()


@pytest.mark.parametrize("kept", ["model.safetensors", "pytorch_model.bin"])
def test_weights_of_whole_numbers_are_refused_where_no_scales_stand_beside_them(kept: str, tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = written(TEACHERS["qwen3"], tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    places = {"layers.0.position_ids": torch.arange(8)[None]}
    whole = {k: (v / v.abs().max() * 127).round().to(torch.int8) if k.endswith("proj.weight") else v for k, v in weights.items()} | places
    (tmp_path / "model/model.safetensors").unlink()
    keep = torch.save if kept.endswith("bin") else save_file
    keep(whole, tmp_path / "model" / kept, **({} if kept.endswith("bin") else {"metadata": {"format": "pt"}}))
    for use in (lambda: student_of(name), lambda: towers_on(name)):
        with pytest.raises(ModelError, match=r"are quantized .layers\.0\.mlp\.down_proj\.weight holds whole numbers"):
            use()
    keep(weights | places, tmp_path / "model" / kept, **({} if kept.endswith("bin") else {"metadata": {"format": "pt"}}))
    assert student_of(name).encode(SHOWN).shape == (3, 32), "places in a text are whole numbers in every model"


def test_a_model_of_other_modules_than_a_transformer_is_told_as_what_it_is(tmp_path: Path, home: Path) -> None:
    listed = [{"idx": 0, "name": "0", "path": "0_StaticEmbedding", "type": "sentence_transformers.models.StaticEmbedding"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ModelError, match=r"begins with the module StaticEmbedding .*has no transformer in its own folder"):
        resolve_base(str(tmp_path))
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve_base(str(tmp_path))


def test_a_padding_token_that_was_added_without_an_embedding_is_told_before_a_batch_is_filled_up(tmp_path: Path, home: Path) -> None:
    """As fine-tuned models on Llama have it; on a GPU such a token ends the process."""
    name = written(TEACHERS["llama-3.2"], tmp_path / "model")
    tokenizer = copy.deepcopy(tokenizer_of(resolve_base(name)))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(name)
    for use in (lambda: student_of(name), lambda: towers_on(name)):
        with pytest.raises(ModelError, match=r"has 1 words that the model has no embedding for .first: '\[PAD\]'"):
            use()


def test_a_tokenizer_of_sentencepiece_alone_is_told_what_it_needs(tmp_path: Path, home: Path) -> None:
    """DeBERTa-v3 has no other file of words; without SentencePiece transformers asks for tiktoken, which does not help."""
    assert has_tokenizer(Path(edited(tmp_path, "spm.model")))
    assert "pip install sentencepiece" in why_unloadable(ValueError("`tiktoken` is required to read a `tiktoken` file. Install it"))


def test_a_generator_with_quantized_weights_that_nothing_tells_of_is_refused(tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = qwen(TEXTS)
    Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=8, vocab_size=len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert generation._load(resolve_base(str(tmp_path)), "float32")
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.0.mlp.up_proj.weight_scale": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"are quantized .they come with .*up_proj\.weight_scale"):
        generation._load(resolve_base(str(tmp_path)), "float32")


# --- Adapters on texts alone, prompts as long as a text, and what sentence-transformers reads of a student


def test_adapters_lie_on_the_part_that_reads_texts_and_a_saved_tower_is_read_back(tmp_path: Path, home: Path) -> None:
    towers = towers_on(of_texts_and_images(tmp_path / "model"))
    towers.embed(towers.tokens(documents()[:4], "document"), "document").sum().backward()
    assert not [name for name in towers._weights.trained if "vision" in name or "projector" in name]
    assert all(p.grad is not None for name, p in towers._weights.trained.items() if "document_tower" in name)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.normal_(0, 0.05)
    contract = towers.save("query", tmp_path / "tower")
    assert contract is not None
    save_contract(tmp_path / "tower", contract, "space")
    expected = towers.encode(towers.tokens(SHOWN, "query"), "query")
    np.testing.assert_allclose(load_tower(tmp_path / "tower", "float32").encode(SHOWN), expected, atol=1e-5)


def test_adapters_of_a_model_of_texts_alone_are_told_of_nothing_to_leave_out(tmp_path: Path, home: Path) -> None:
    towers = towers_on(written(TEACHERS["qwen3"], tmp_path / "model"))
    assert all(config.exclude_modules is None for config in towers.model.peft_config.values())


def test_a_model_of_texts_and_images_that_calls_its_texts_otherwise_is_a_student_too(tmp_path: Path, home: Path) -> None:
    from transformers import AutoConfig, AutoModel

    texts = {**SMALL, "vocab_size": 700, "model_type": "llama"}
    config = AutoConfig.for_model("smolvlm", text_config=texts, vision_config=GEMMA3["vision_config"])
    AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    qwen(TEXTS).save_pretrained(tmp_path / "model")
    student = student_of(str(tmp_path / "model"), layers=1)
    assert not [name for name, _ in student.model.named_parameters() if "vision" in name]
    np.testing.assert_allclose(reloaded(student, tmp_path / "student").encode(SHOWN), student.encode(SHOWN), atol=1e-5)
    assert towers_on(str(tmp_path / "model")).parameters()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (Family("mamba", qwen, "", {"state_size": 4}, {"hidden_size": 64, "num_hidden_layers": 2}), "adapters cannot be put on .mixer"),
        (
            Family("xlstm", qwen, "", {"num_heads": 4, "num_blocks": 2}, {"hidden_size": 64, "num_hidden_layers": 2}),
            "training full or none",
        ),
    ],
    ids=["mamba", "xlstm"],
)
def test_a_teacher_that_takes_no_adapters_is_refused_before_anything_else_is_made(
    family: Family, words: str, tmp_path: Path, home: Path
) -> None:
    towers = {"base_model": written(family, tmp_path / "model"), "max_document_length": 32}
    with pytest.raises(ModelError, match=words):
        check_before_towers(asked("tiny-encoder"), TowerConfig(**towers))
    check_before_towers(asked("tiny-encoder"), TowerConfig(**towers, training="full"))


LONG = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


def test_a_prompt_that_leaves_no_place_for_a_text_is_refused_before_the_training(tmp_path: Path, home: Path) -> None:
    name = written(TEACHERS["qwen3"], tmp_path / "model")
    said = r"towers.query_prompt takes \d+ tokens of .*max_query_length leaves 15"
    given = {"base_model": name, "query_prompt": LONG, "max_query_length": 16, "max_document_length": 24}
    for training in ("lora", "full", "none"):
        with pytest.raises(ModelError, match=said):
            check_before_towers(asked(name), TowerConfig(**given, training=training))
    for student in (name, "teacher"):
        with pytest.raises(ModelError, match=r"distillation.query_prompt takes \d+ tokens .*distillation.max_query_length"):
            check_before_towers(asked(student, query_prompt=LONG), TowerConfig(base_model=name, max_document_length=24))


@pytest.mark.parametrize("prompt", ["", "query:", "query: ", "Instruct: find\nQuery: "])
@pytest.mark.parametrize("family", [*TEACHERS, *STUDENTS])
def test_a_prompt_is_refused_only_where_no_two_texts_differ_behind_it(family: str, prompt: str) -> None:
    """Tokenizers that end texts themselves (RoBERTa) were refused the last length that has a place, and so were spaces at the end."""
    tokenizer = {**TEACHERS, **STUDENTS}[family].tokenizer(TEXTS)
    for append_eos in {False, needs_end_token(tokenizer)}:
        for length in range(4, 32):
            contract = contract_of("query").model_copy(update={"prompt": prompt, "max_length": length, "append_eos": append_eos})
            rows = token_ids(tokenizer, ["a", "b", *TEXTS], contract)
            try:
                require_words(tokenizer, "it", prompt, length, ("the prompt", "the length"), append_eos)
            except ModelError:
                assert all(row == rows[0] for row in rows), (length, append_eos)
            else:
                assert any(row != rows[0] for row in rows), (length, append_eos)


def test_a_student_that_was_padded_on_the_right_is_written_as_it_ever_was(tmp_path: Path, home: Path) -> None:
    """Else no build of a release from before comes out with its digest (replay --build)."""
    save_student(student_of(written(STUDENTS["bert"], tmp_path / "model")), tmp_path / "student")
    assert not {"padding_side", "truncation_side"} & json.loads((tmp_path / "student/tokenizer_config.json").read_text()).keys()


CLASSES = {  # tokenizers whose own class decides what stands around a text: kind of model, class, template, special tokens
    "gpt-neox": ("gpt_neox", "GPTNeoXTokenizer", "$A", {"eos_token": "</s>"}),
    "opt": ("opt", "GPT2Tokenizer", "</s> $A", {"bos_token": "</s>", "eos_token": "</s>"}),
    "llama": ("llama", "LlamaTokenizer", "<s> $A", {"bos_token": "<s>", "eos_token": "</s>", "legacy": True}),
}


def of_a_class(name: str, folder: Path) -> str:
    """A decoder whose tokenizer is of a class of its own, as on a hub, where that of `written` is of the general one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import AutoConfig, AutoModel

    kind, class_name, template, told = CLASSES[name]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    of_words = pre_tokenizers.Metaspace() if kind == "llama" else pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = of_words
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False))
    around = [token for token in template.split() if token != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=[(t, special.index(t)) for t in around])
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64}
    size |= {"ffn_dim": 64, "word_embed_proj_dim": 32} if kind == "opt" else {}
    torch.manual_seed(1)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=backend.get_vocab_size(), **size))
    model.save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return edited(folder, "tokenizer_config.json", tokenizer_class=class_name, unk_token="<unk>", pad_token="<pad>", **told)


@pytest.mark.parametrize("name", CLASSES)
def test_a_saved_student_ends_texts_whatever_the_class_of_its_tokenizer_makes_of_them(name: str, tmp_path: Path, home: Path) -> None:
    """Those of GPT-NeoX and OPT had no end token in sentence-transformers, so that another state stood for the text."""
    from sentence_transformers import SentenceTransformer

    towers = towers_on(of_a_class(name, tmp_path / "model"))
    made = towers.save("query", tmp_path / "tower")
    assert made is not None and made.append_eos
    save_contract(tmp_path / "tower", made, "space")
    student = bare_student(Source(asked("teacher"), TEXTS, tmp_path / "tower"))
    texts = [*SHOWN, " ".join(queries())]
    again = reloaded(student, tmp_path / "student")
    assert again.tokens(texts) == student.tokens(texts)
    given = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(given, student.encode(texts), atol=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_a_fully_trained_tower_has_the_tokenizer_of_its_base_once_it_is_saved(name: str, tmp_path: Path, home: Path) -> None:
    """Llama's forgot a switch, and the training ended in "the tokenizer has changed" when its last step was done."""
    towers = towers_on(of_a_class(name, tmp_path / "model"), training="full", document_prompt="</s>document: ")
    made = towers.save("document", tmp_path / "tower")
    assert made is not None
    save_contract(tmp_path / "tower", made, space_id_of(made))
    assert load_tower(tmp_path / "tower", "float32").tokens(SHOWN) == towers.tokens(SHOWN, "document")


@pytest.mark.parametrize(("kind", "class_name"), [("albert", "AlbertTokenizer"), ("camembert", "CamembertTokenizer")])
def test_a_static_student_is_read_back_where_the_class_of_its_tokenizer_looks_for_hidden_tokens(
    kind: str, class_name: str, tmp_path: Path, home: Path
) -> None:
    """ALBERT's could not be loaded when it was trained, and CamemBERT's took another token for what it does not know."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import AutoTokenizer

    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    special = list(names.values())
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(TEXTS, trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    edited(tmp_path, "tokenizer_config.json", tokenizer_class=class_name, cls_token="<s>", sep_token="</s>", **names)
    tokenizer = AutoTokenizer.from_pretrained(edited(tmp_path, model_type=kind))
    contract = contract_of("query").model_copy(update={"form": "static", "append_eos": False, "max_length": 24})
    texts = [*SHOWN, "\u2603 kidney", "</s> stone"]
    (tmp_path / "student").mkdir()
    save_tokenizer(tokenizer, contract, tmp_path / "student")
    of_form = forms.FORMS["static"].tokens
    assert of_form(AutoTokenizer.from_pretrained(tmp_path / "student"), texts, contract) == of_form(tokenizer, texts, contract)


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_a_student_is_padded_and_cut_by_sentence_transformers_as_it_is_here(side: str, tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    name = edited(written(STUDENTS["bert"], tmp_path / "model"), "tokenizer_config.json", **{side: "left"})
    student = student_of(name)
    save_student(student, tmp_path / "student")
    texts = [*SHOWN, " ".join(queries())]
    given = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(given, student.encode(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        (Family("mpt", qwen, "", base={"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}), 64),
        (Family("ibert", roberta, "", base={**ENCODER, "max_position_embeddings": 66, "type_vocab_size": 1}), 64),
    ],
    ids=["mpt", "ibert"],
)
def test_positions_end_where_a_model_of_another_kind_ends_them(family: Family, limit: int, tmp_path: Path, home: Path) -> None:
    model, _ = load_decoder(resolve_base(written(family, tmp_path / "model")), "float32")
    assert position_limit(model) == limit
    model(torch.full((1, limit), 7), attention_mask=torch.ones(1, limit, dtype=torch.long))


def test_a_prefix_longer_than_the_vectors_is_all_of_them_as_the_library_has_it(tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = Form(STUDENTS["bert"], "mean", settings={"truncate_dim": 64}).write(TEXTS, tmp_path / "model")
    query, _ = as_it_is(str(folder), tmp_path / "towers")
    given = SentenceTransformer(str(folder), device="cpu").encode(SHOWN, normalize_embeddings=True)
    np.testing.assert_allclose(query.encode(SHOWN), given, atol=1e-5)
    assert query.contract.dimension == 32


def test_a_tower_on_quantized_weights_from_before_they_were_refused_is_still_read(tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = written(TEACHERS["qwen3"], tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    for key, value in list(weights.items()):
        if "proj.weight" in key:
            scale = value.abs().max() / 448
            weights[key] = (value / scale).to(torch.float8_e4m3fn)
            weights[f"{key}_scale_inv"] = scale.reshape(1, 1)
    save_file(weights, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    edited(name, quantization_config={"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
    base = resolve_base(name)
    with pytest.raises(ModelError, match="are quantized"):
        load_decoder(base, "float32")
    for cut in (name, f"{name}@1"):
        for precision in ("float32", "bfloat16"):
            model, _ = load_decoder(resolve_base(cut), precision, finished=True)
            states = model(torch.tensor([[5, 6, 7]])).last_hidden_state
            assert states.isfinite().all() and states.dtype == getattr(torch, precision)
    assert initial.shape_of(name).width == 32, "of a teacher whose query tower is refreshed"


def test_kinds_of_tokens_that_a_tokenizer_tells_are_refused_of_a_teacher_and_left_out_of_a_student(tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from tokenizers.processors import TemplateProcessing

    def of_kinds(texts: Any) -> Any:
        tokenizer = bert(texts)
        special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
        template = TemplateProcessing(single="[CLS]:1 $A:0 [SEP]:0", special_tokens=special)
        tokenizer.backend_tokenizer.post_processor = template
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
        return tokenizer

    folder = str(Form(Family("bert", of_kinds, "", base=ENCODER), "mean").write(TEXTS, tmp_path / "model"))
    with pytest.raises(ModelError, match="token_type_ids"):
        read_published(resolve_base(folder))
    student = student_of(folder)
    save_student(student, tmp_path / "student")
    given = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(SHOWN, normalize_embeddings=True)
    np.testing.assert_allclose(given, student.encode(SHOWN), atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("sentence_bert_config.json", "[]", "no JSON that holds an object"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "model_max_length that is no number"),
        ("config.json", '{"model_type": "bert", "architectures": [null], "num_hidden_layers": 0}', "does not say how many layers"),
    ],
)
def test_what_a_models_own_files_say_wrong_is_a_sentence_before_the_towers(
    file: str, content: str, words: str, tmp_path: Path, home: Path
) -> None:
    name = written(STUDENTS["bert"], tmp_path / "model")
    (Path(name) / file).write_text(content)
    with pytest.raises(ModelError, match=words):
        check_before_towers(asked(name), TowerConfig(base_model="tiny-decoder"))


def test_a_window_that_goes_by_places_in_a_tree_of_texts_keeps_them_apart(tmp_path: Path, home: Path) -> None:
    small = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 48, "max_position_embeddings": 64}
    name = written(Family("gpt_neo", qwen, "", {"attention_types": [[["global", "local"], 1]]}, small), tmp_path / "model")
    query, _ = as_it_is(name, tmp_path / "towers", pooling="mean", query_prompt="a kidney stone and a heart failure of the ")
    texts = documents()
    np.testing.assert_allclose(query.encode(texts), np.concatenate([query.encode([text]) for text in texts]), atol=1e-5)
