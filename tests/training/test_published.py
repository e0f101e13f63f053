"""Embedding models that are taken as they are: what sentence-transformers computes, their towers compute too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.distillation.student.initial import published_length
from components.errors import ArtifactError, CollapseError, ConfigError, ModelError
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import load_contract, measure_spread, refuse_collapse
from components.towers.encoder import TowerEncoder, load_tower
from components.towers.pairs import Pairs
from components.towers.train import train_towers
from components.towers.trained.published import head_width, read_published, with_own_settings
from components.towers.two_towers import TwoTowers
from tests.published_world import FORMS, INSTRUCTION
from tests.training.tiny_world import documents, queries

TEXTS = [documents()[0], " ".join(documents()), "x", "Kidney  stone, é"]
PAIRS = Pairs(queries(), documents(), [(0, 0), (1, 1)], {0: frozenset({0}), 1: frozenset({1})})


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each form's model."""
    root = tmp_path_factory.mktemp("forms")
    return {name: form.write([*documents(), *queries()], root / name) for name, form in FORMS.items()}


def as_it_is(model: Path, **changes: Any) -> TowerConfig:
    return with_own_settings(TowerConfig(base_model=str(model), training="none", precision="float32", **changes))


def towers_of(config: TowerConfig, folder: Path) -> tuple[TowerEncoder, TowerEncoder]:
    train_towers(PAIRS, config, {"dataset": "d"}, folder)
    query, document = (load_tower(folder / f"{role}_tower", "float32") for role in ("query", "document"))
    return query, document


@pytest.mark.parametrize("name", FORMS)
def test_a_tower_gives_the_vectors_of_sentence_transformers(name: str, forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(forms[name]), device="cpu")
    query, document = towers_of(as_it_is(forms[name]), tmp_path)
    for tower, encode in ((query, reference.encode_query), (document, reference.encode_document)):
        wanted = np.stack([encode(text, normalize_embeddings=True) for text in TEXTS])
        assert np.abs(tower.encode(TEXTS) - wanted).max() < 1e-4
        assert np.abs(np.stack([tower.encode([text])[0] for text in TEXTS]) - wanted).max() < 1e-4
    assert query.space_id == document.space_id


@pytest.mark.parametrize("place", ["tokenizer_args", "processor_kwargs"])
def test_the_length_that_a_tokenizer_is_told_is_the_longest_and_where_it_pads_is_no_matter(
    place: str, forms: dict[str, Path], tmp_path: Path, home: Path
) -> None:
    model = shutil.copytree(forms["bge"], tmp_path / "model")
    harmless = {"use_safetensors": True, "low_cpu_mem_usage": True, "revision": "main", "cache_dir": None}
    told = {place: {"padding_side": "left", "model_max_length": 20, "local_files_only": True}}
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 30, "model_args": harmless, **told}))
    config = as_it_is(model)
    assert (config.max_query_length, config.max_document_length, published_length(str(model))) == (20, 20, 20)


def test_the_lengths_of_a_model_for_long_texts_are_read_again_from_a_record(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    model = shutil.copytree(forms["qwen3-embedding"], tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**settings, "max_position_embeddings": 131_072}))
    (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 65_536}))
    config = as_it_is(model)
    assert (config.max_query_length, config.max_document_length) == (65_536, 65_536)
    assert TowerConfig.model_validate(config.model_dump(mode="json")) == config


def test_the_contract_shows_what_the_model_brings(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    towers_of(as_it_is(forms["embeddinggemma"]), tmp_path)
    contract, _ = load_contract(tmp_path / "query_tower")
    assert (contract.pooling, contract.prompt, contract.max_length) == ("mean", "task: search result | query: ", 48)
    assert (contract.head, contract.dimension, contract.attention) == (("32 -> 96", "96 -> 32"), 32, "bidirectional")
    assert load_contract(tmp_path / "document_tower")[0].prompt == "title: none | text: "
    towers_of(as_it_is(forms["qwen3-embedding"]), tmp_path)
    contract, _ = load_contract(tmp_path / "query_tower")
    assert (contract.pooling, contract.prompt, contract.append_eos, contract.attention) == ("last", INSTRUCTION, False, "causal")
    assert contract.head == () and contract.adapter_digest is None


def test_a_setting_that_somebody_gave_wins_over_the_models_own(forms: dict[str, Path], home: Path) -> None:
    config = as_it_is(forms["e5"], query_prompt="q ", max_document_length=16, dimension=8)
    assert (config.query_prompt, config.document_prompt, config.max_document_length, config.max_query_length) == ("q ", "passage: ", 16, 48)
    assert (config.dimension, config.pooling) == (8, "mean")
    assert with_own_settings(config) == config


def test_settings_of_a_training_that_is_none_are_told_to_do_nothing(
    forms: dict[str, Path], tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes, said in (("asked", {"steps": 500, "hard_negatives": 2}, True), ("plain", {"steps": 150}, False)):
        towers_of(as_it_is(forms["bge"], **changes), tmp_path / name)
        told = "these do nothing: towers.steps 500, towers.hard_negatives 2." in capsys.readouterr().out
        assert told is said


def test_a_prefix_of_the_vectors_is_cut_as_sentence_transformers_cuts_it(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    wanted = SentenceTransformer(str(forms["embeddinggemma"]), device="cpu", truncate_dim=16).encode_query(TEXTS, normalize_embeddings=True)
    query, _ = towers_of(as_it_is(forms["embeddinggemma"], dimension=16), tmp_path)
    assert np.abs(query.encode(TEXTS) - wanted).max() < 1e-4
    with pytest.raises(ModelError, match=r"towers.dimension is 33, but the vectors of '.*' have 32"):
        train_towers(PAIRS, as_it_is(forms["embeddinggemma"], dimension=33), {}, tmp_path)


def test_a_changed_head_is_noticed_when_the_tower_is_loaded(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = Path(shutil.copytree(forms["embeddinggemma"], tmp_path / "model"))
    towers_of(as_it_is(model), tmp_path / "towers")
    weights = next(model.glob("*_Dense/model.safetensors"))
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(ArtifactError, match="Restore the base model, or retrain"):
        load_tower(tmp_path / "towers" / "query_tower")


def test_weights_that_are_not_finite_are_refused_before_anything_is_built_on_them(
    forms: dict[str, Path], tmp_path: Path, home: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    from components.distillation.config import DistillationConfig
    from components.distillation.student.initial import Source, bare_student

    model = shutil.copytree(forms["bge"], tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"gives values that are not finite for a short text.*Fetch the weights again"):
        towers_of(as_it_is(model), tmp_path / "towers")
    with pytest.raises(ModelError, match="not finite for a short text"):
        bare_student(Source(DistillationConfig(student=str(model), precision="float32"), documents(), None))
    student = bare_student(Source(DistillationConfig(student=str(forms["bge"]), precision="float32"), documents(), None))
    student.model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match=f"not finite for {len(TEXTS)} of {len(TEXTS)} texts"):
        student.encode(TEXTS)
    spread = measure_spread(np.full((4, 8), np.nan, np.float32))
    with pytest.raises(CollapseError, match="nan"):
        refuse_collapse("query tower", spread, 0.9, 4.0)


def test_the_width_of_the_vectors_is_that_behind_the_head(forms: dict[str, Path], home: Path) -> None:
    wider = FORMS["embeddinggemma"].__class__(FORMS["bge"].family, "cls", dense=(64,))
    model = wider.write([*documents(), *queries()], forms["bge"].with_name("wider"))
    assert head_width(TowerConfig(base_model=str(model), training="none")) == 64
    assert head_width(TowerConfig(base_model=str(model))) is None
    assert head_width(TowerConfig(base_model=str(forms["bge"]), training="none")) is None


def test_a_model_that_is_no_sentence_transformer_is_pooled_as_the_settings_say(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    bare = forms["bge"].with_name("bge-transformer")
    config = as_it_is(bare, pooling="mean", query_prompt="q: ", max_query_length=16)
    assert read_published(resolve_base(str(bare))) is None and config.document_prompt == "document: "
    query, _ = towers_of(config, tmp_path)
    assert (query.contract.pooling, query.contract.prompt, query.contract.max_length) == ("mean", "q: ", 16)


def _changed(model: Path, target: Path, file: str, change: Any) -> Path:
    shutil.copytree(model, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(change(content)))
    return target


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("modules.json", lambda m: m[1:], "begins with the module Pooling"),
        ("modules.json", lambda m: [], "begins with no module"),
        ("modules.json", lambda m: [m[0], {**m[1], "type": "x.WordWeights"}, m[2]], "made of Transformer, WordWeights, Normalize"),
        ("modules.json", lambda m: [{**m[0], "type": "x.CLIPModel"}, *m[1:]], "begins with the module CLIPModel"),
        ("1_Pooling/config.json", lambda c: {**c, "pooling_mode": "weightedmean"}, "pools by weightedmean"),
        ("1_Pooling/config.json", lambda c: {**c, "pooling_mode": ["mean", "cls"]}, "pools by mean and cls"),
        ("1_Pooling/config.json", lambda c: {**c, "include_prompt": False}, "leaves the tokens of its prompt out"),
        ("config.json", lambda c: {**c, "architectures": ["BertForSequenceClassification"]}, "a cross-encoder or classifier"),
        ("config.json", lambda c: {"model_type": "vit", "architectures": ["ViTModel"]}, "does not read text alone"),
    ],
)
def test_what_a_tower_cannot_follow_is_refused_by_name(
    file: str, change: Any, words: str, forms: dict[str, Path], tmp_path: Path, home: Path
) -> None:
    model = _changed(forms["bge"], tmp_path / "model", file, change)
    with pytest.raises(ModelError, match=words):
        train_towers(PAIRS, as_it_is(model), {}, tmp_path / "towers")


def test_prompts_of_other_names_are_passed_over_as_the_library_does(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    other = {"prompts": {"passage": "passage: ", "web": "web: "}, "default_prompt_name": "web"}
    model = _changed(forms["e5"], tmp_path / "model", "config_sentence_transformers.json", lambda _: other)
    reference = SentenceTransformer(str(model), device="cpu")
    query, document = towers_of(as_it_is(model), tmp_path / "towers")
    assert np.abs(query.encode(TEXTS) - reference.encode_query(TEXTS, normalize_embeddings=True)).max() < 1e-4
    assert np.abs(document.encode(TEXTS) - reference.encode_document(TEXTS, normalize_embeddings=True)).max() < 1e-4


@pytest.mark.parametrize(("yes", "no"), [(True, False), (1, 0), ("true", None)])
def test_older_configurations_of_the_pooling_are_read(yes: object, no: object, forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    old = {"word_embedding_dimension": 32, "pooling_mode_cls_token": yes, "pooling_mode_mean_tokens": no}
    model = _changed(forms["gte"], tmp_path / "model", "1_Pooling/config.json", lambda _: old)
    assert as_it_is(model).pooling == "cls"


def test_a_dense_module_with_a_tanh_bends_as_the_library_bends(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    bend = {"activation_function": "torch.nn.modules.activation.Tanh"}
    model = _changed(forms["embeddinggemma"], tmp_path / "model", "2_Dense/config.json", lambda c: {**c, **bend})
    wanted = SentenceTransformer(str(model), device="cpu").encode_document(TEXTS, normalize_embeddings=True)
    _, document = towers_of(as_it_is(model), tmp_path / "towers")
    assert document.contract.head == ("32 -> 96 Tanh", "96 -> 32")
    assert np.abs(document.encode(TEXTS) - wanted).max() < 1e-4


def test_what_trains_towers_refuses_a_configuration_that_trains_none(forms: dict[str, Path], home: Path) -> None:
    with pytest.raises(ConfigError, match=r"towers.training is none. Set it to lora or full"):
        TwoTowers(resolve_base(str(forms["bge"])), as_it_is(forms["bge"]))


@pytest.mark.parametrize("name", ["weights.gguf", "acme/model-Q4.gguf"])
def test_a_gguf_file_is_refused_by_name(name: str, home: Path) -> None:
    with pytest.raises(ModelError, match="is a GGUF file"):
        resolve_base(name)


def _edited(file: str, **changes: Any) -> Callable[[Path], None]:
    """Changes one of a model's own files of JSON; None takes a key out."""

    def edit(folder: Path) -> None:
        path = folder / file
        found = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}), encoding="utf-8")

    return edit


def _written(file: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return write


def _weights(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})

    return write


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _with_a_word(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["kidney stone"])
    tokenizer.save_pretrained(folder)


def _rebuilt(*between: str, activation: str = "Tanh") -> Callable[[Path], None]:
    """The model with other modules behind its pooling."""

    def build(folder: Path) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

        made = {"Dense": lambda: Dense(32, 32, activation_function=getattr(torch.nn, activation)()), "Normalize": Normalize}
        modules: list[Any] = [Transformer(str(folder)), Pooling(32), *(made[kind]() for kind in between)]
        SentenceTransformer(modules=modules).save(str(folder))

    return build


DENSE = "2_Dense/config.json"


def _narrowed(folder: Path) -> None:
    """A head that is whole in itself, of a model of another width."""
    from safetensors.torch import load_file, save_file

    weights = folder / "2_Dense" / "model.safetensors"
    save_file({name: value[:, :16].contiguous() if value.dim() > 1 else value for name, value in load_file(weights).items()}, weights)
    _edited(DENSE, in_features=16)(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rebuilt("Normalize", "Dense", "Normalize"), "is made of Transformer, Pooling, Normalize, Dense, Normalize; expected"),
        (_rebuilt("Dense", activation="PReLU"), "PReLU', which is no activation of torch without weights"),
        (_rebuilt("Dense", activation="GLU"), "GLU', which is no activation of torch without weights"),
        (_edited(DENSE, activation_function="torch.nn.modules.linear.Linear"), "Linear', which is no activation"),
        (_written("1_Pooling/config.json", b'{"pooling_mode": 3}'), "pools by 3; a tower or student pools by one of"),
        (_written("1_Pooling/config.json", b'{"pooling_mode": [["mean"]]}'), r"pools by \['mean'\]; a tower or student pools by one of"),
        (_written("1_Pooling/config.json", b'{"pooling_mode": []}'), "pools by nothing"),
        (_narrowed, "2_Dense maps 16 -> 96.*, but is given 32 dimensions"),
        (_edited(DENSE, in_features=None), "does not state in_features and out_features"),
        (_edited(DENSE, in_features=7), "2_Dense maps 7 -> 96.*, but is given 32 dimensions"),
        (_written("2_Dense/model.safetensors", b"12345678"), "the weights of 2_Dense do not make a map"),
        (_written("modules.json", b"{}"), "modules.json is missing or is no JSON that holds a list"),
        (_written("modules.json", b'["a"]'), "does not list modules"),
        (_written("modules.json", b"[]"), "begins with no module"),
        (_written("1_Pooling/config.json", b"[]"), "1_Pooling/config.json is missing or is no JSON that holds an object"),
        (_written("config_sentence_transformers.json", b"{"), "config_sentence_transformers.json is missing or is no JSON"),
        (_edited("config_sentence_transformers.json", prompts=["a"]), "prompts must be texts by name"),
        (_edited("config_sentence_transformers.json", prompts={"query": 3}), "prompts must be texts by name"),
        (_edited("config_sentence_transformers.json", truncate_dim="16"), "truncate_dim must be a whole number"),
        (_edited("config_sentence_transformers.json", truncate_dim=0), "truncate_dim must be a whole number"),
        (_edited("tokenizer_config.json", truncation_side="left"), "cuts long texts at their beginning"),
        (_edited("config.json", num_hidden_layers=3), "cannot be loaded: .*must be equal to the number of `layer_types`"),
        (_edited("config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3), r"files lack \d+ of the weights.*random"),
        (_edited("config.json", vocab_size=10), "its weights have other sizes than its config.json states"),
        (_edited("config.json", hidden_activation="zzz"), "names or lacks something that transformers asks for: 'zzz'"),
        (_edited("config.json", hidden_size="wide"), "cannot be loaded"),
        (_written("config.json", b"[]"), "cannot be loaded"),
        (_written("config.json", b"{"), "cannot be loaded: .*not a valid JSON"),
        (_weights(lambda found: {f"x.{name}": value for name, value in found.items()}), r"files lack \d+ of the weights"),
        (_weights(lambda found: dict(list(found.items())[1:])), "files lack 1 of the weights"),
        (_without_tokenizer, "has no tokenizer"),
        (_with_a_word, "1 words that the model has no embedding for .first: 'kidney stone'"),
        (_written("adapter_config.json", b"{}"), "is an adapter, not a model"),
    ],
)
def test_a_model_that_would_give_other_vectors_or_none_is_refused_in_a_sentence(
    change: Callable[[Path], None], words: str, forms: dict[str, Path], tmp_path: Path, home: Path
) -> None:
    shutil.copytree(forms["embeddinggemma"], tmp_path / "model")
    change(tmp_path / "model")
    with pytest.raises(ModelError, match=words):
        towers_of(as_it_is(tmp_path / "model"), tmp_path / "towers")


def test_a_model_that_normalises_twice_is_taken(forms: dict[str, Path], tmp_path: Path, home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    shutil.copytree(forms["bge"], tmp_path / "model")
    _rebuilt("Dense", "Normalize", "Normalize")(tmp_path / "model")
    query, _ = towers_of(as_it_is(tmp_path / "model"), tmp_path / "towers")
    reference = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    assert np.abs(query.encode(TEXTS) - reference.encode_query(TEXTS, normalize_embeddings=True)).max() < 1e-4
