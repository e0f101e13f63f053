"""A release as one package of sentence-transformers: both routes give the release's own vectors, and no other answer is given."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.distillation.config import DistillationConfig
from components.distillation.router import adapter_on_hub, export_router, require_new
from components.distillation.student import new_student
from components.distillation.student.storage import load_student, save_student
from components.errors import ConfigError, ModelError
from components.evidence.description import stated_licence
from components.release.manifest import BaseModelPin
from components.towers.base_models import build_decoder, build_tiny_encoder, resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import load_contract, save_contract
from components.towers.encoder import load_tower
from components.towers.train import train_towers
from components.towers.trained.published import read_published, with_own_settings
from components.towers.trained.stored import BASE
from tests.hub_world import keep_in_cache, use_cache
from tests.published_world import FORMS
from tests.training.tiny_world import documents, pairs, queries

TEXTS = [documents()[0], " ".join(documents()), "x", "Kidney  stone, é"]


def student_of(dimension: int, folder: Path, **changes: Any) -> Path:
    """A saved student whose vectors have `dimension` dimensions."""
    config = DistillationConfig(student="tiny-encoder", precision="float32", max_query_length=16, **changes)
    wanted = np.random.default_rng(0).standard_normal((len(queries()), dimension)).astype(np.float32)
    student = new_student(queries(), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), "space", config, None)
    contract = save_student(student, folder)
    save_contract(folder, contract, "space")
    return folder


def towers_in(folder: Path, **settings: Any) -> Path:
    """The document tower of a teacher that was made in `folder`."""
    given = {"precision": "float32", "max_query_length": 16, "max_document_length": 24, **settings}
    train_towers(pairs(), with_own_settings(TowerConfig(**given)), {}, folder)
    return folder / "document_tower"


def opened(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["embeddinggemma", "qwen3-embedding", "bge"])
def test_the_package_gives_the_vectors_of_student_and_published_tower(name: str, tmp_path: Path, home: Path) -> None:
    model = FORMS[name].write([*documents(), *queries()], tmp_path / "model")
    tower = towers_in(tmp_path / "towers", base_model=str(model), training="none")
    student = student_of(32, tmp_path / "student", head="two_layer", head_width=40)
    found = export_router({"query": student, "document": tower}, tmp_path / "package")
    assert set(found) == {"query", "document"} and max(found.values()) < 1e-6
    package = opened(tmp_path / "package")
    assert np.abs(package.encode_query(TEXTS) - load_student(student, "float32").encode(TEXTS)).max() < 1e-6
    assert np.abs(package.encode_document(TEXTS) - load_tower(tower, "float32").encode(TEXTS)).max() < 1e-6
    with pytest.raises(ValueError, match="Could not determine route"):
        package.encode(TEXTS)


@pytest.mark.parametrize("settings", [{}, {"matryoshka": (64,), "dimension": 64}])
def test_a_trained_tower_travels_with_its_adapter_and_end_token(settings: dict[str, Any], tmp_path: Path, home: Path) -> None:
    trained = {"steps": 2, "batch_size": 4, "chunk_size": 4, "lora_rank": 2, "max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    tower = towers_in(tmp_path / "towers", base_model="tiny-decoder", learning_rate=0.05, **trained, **settings)
    dimension = load_tower(tower).contract.dimension
    found = export_router({"query": student_of(dimension, tmp_path / "student", form="static"), "document": tower}, tmp_path / "package")
    assert max(found.values()) < 1e-6
    vectors = opened(tmp_path / "package").encode_document(TEXTS)
    assert np.abs(vectors - load_tower(tower, "float32").encode(TEXTS)).max() < 1e-6


@pytest.mark.parametrize("form", ["transformer", "static"])
def test_a_student_alone_answers_queries_and_refuses_documents_in_words(form: str, tmp_path: Path, home: Path) -> None:
    student = student_of(16, tmp_path / "student", form=form)
    export_router({"query": student}, tmp_path / "package")
    own = load_student(student, "float32").encode(TEXTS)
    for folder in ("student", "package"):  # the registered folder, and what is exported of it
        model = opened(tmp_path / folder)
        assert np.abs(model.encode_query(TEXTS) - own).max() < 1e-6
        assert np.abs(model.encode(TEXTS) - own).max() < 1e-6
        assert model.get_embedding_dimension() == 16
        with pytest.raises(ValueError, match=r"No route found for task type 'document'\. Available routes: task='query'"):
            model.encode_document(TEXTS)


def test_the_modules_of_a_student_are_written_by_the_library(tmp_path: Path, home: Path) -> None:
    student = student_of(16, tmp_path / "student", head="two_layer", head_width=24)
    listed = json.loads((student / "modules.json").read_text())
    opened(student).save(str(tmp_path / "again"), create_model_card=False)
    assert [row["type"].rpartition(".")[2] for row in listed] == ["Transformer", "Pooling", "Dense", "Dense", "Router"]
    assert listed == json.loads((tmp_path / "again" / "modules.json").read_text())


def test_a_student_is_a_teacher_like_any_published_model(tmp_path: Path, home: Path) -> None:
    student = student_of(16, tmp_path / "student", pooling="mean")
    found = read_published(resolve_base(str(student)))
    assert found is not None and (found.pooling, len(found.head)) == ("mean", 1)


def test_the_evaluator_of_sentence_transformers_finds_what_the_encoders_find(tmp_path: Path, home: Path) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    model = FORMS["bge"].write([*documents(), *queries()], tmp_path / "model")
    tower = towers_in(tmp_path / "towers", base_model=str(model), training="none")
    student = student_of(32, tmp_path / "student")
    export_router({"query": student, "document": tower}, tmp_path / "package")
    asked = dict(enumerate(queries()[:6]))
    corpus = {f"d{place}": text for place, text in enumerate(documents())}
    scores = load_student(student, "float32").encode(list(asked.values())) @ load_tower(tower, "float32").encode(documents()).T
    # The best document of every second query, else the worst: the encoders are random, and what lies between differs by rounding.
    relevant = {str(place): {f"d{row.argmin() if place % 2 else row.argmax()}"} for place, row in enumerate(scores)}
    evaluator = InformationRetrievalEvaluator(
        {str(place): text for place, text in asked.items()}, corpus, relevant, show_progress_bar=False
    )
    measured = evaluator(opened(tmp_path / "package"))
    assert measured["cosine_recall@10"] == 0.5
    assert 0 < measured["cosine_ndcg@10"] <= 0.5
    with pytest.raises(ValueError, match="No route found for task type 'document'"):
        evaluator(opened(student))


def on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: bool = False, **settings: Any) -> Path:
    """A document tower that is an adapter on a model of a hub, an encoder or a decoder, which lies in the cache."""
    base = tmp_path / "base"
    base.mkdir()
    texts = [*documents(), *queries()]
    if encoder:
        build_tiny_encoder(texts, base)
    else:
        build_decoder(texts, base, 64, 2)
    (base / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    keep_in_cache(tmp_path / "cache", "acme/llm", base)
    use_cache(monkeypatch, tmp_path / "cache")
    trained = {"steps": 2, "batch_size": 4, "chunk_size": 4, "lora_rank": 2, "max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    return towers_in(tmp_path / "towers", base_model="acme/llm", learning_rate=0.05, **trained, **settings)


@pytest.fixture
def adapted(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A document tower that is an adapter on a decoder of a hub."""
    return on_a_hub(tmp_path, monkeypatch)


@pytest.mark.parametrize("encoder", [False, True])
def test_an_adapter_lies_apart_only_where_its_base_looks_both_ways_by_itself(
    encoder: bool, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a decoder that was made to look both ways peft would put it on one that looks back alone: other vectors, without a word."""
    import torch
    from peft import AutoPeftModel

    tower = on_a_hub(tmp_path, monkeypatch, encoder, attention="bidirectional", pooling="mean")
    export_router({"document": tower}, tmp_path / "package")
    own = load_tower(tower, "float32")
    assert np.abs(opened(tmp_path / "package").encode_document(TEXTS) - own.encode(TEXTS)).max() < 1e-6
    apart = tmp_path / "package" / "adapter"
    assert apart.exists() == adapter_on_hub(tower) == encoder
    if apart.exists():
        with torch.inference_mode():
            states = AutoPeftModel.from_pretrained(str(apart)).eval()(input_ids=torch.tensor(own.tokens(TEXTS[:1]))).last_hidden_state[0]
        assert np.abs(torch.nn.functional.normalize(states.mean(0), dim=0).numpy() - own.encode(TEXTS[:1])[0]).max() < 1e-6


def test_a_tower_on_a_model_of_a_hub_opens_as_a_sentence_transformer_and_by_peft(adapted: Path, tmp_path: Path) -> None:
    import torch
    from peft import AutoPeftModel
    from transformers import AutoTokenizer

    export_router({"document": adapted}, tmp_path / "package")
    own, package = load_tower(adapted, "float32"), opened(tmp_path / "package")
    assert np.abs(package.encode_document(TEXTS) - own.encode(TEXTS)).max() < 1e-6
    with pytest.raises(ValueError, match="No route found for task type 'query'"):
        package.encode_query(TEXTS)
    for place in (tmp_path / "package" / "adapter", adapted / "adapter"):
        model = AutoPeftModel.from_pretrained(str(place)).eval()
        rows = own.tokens(TEXTS[:1])
        with torch.inference_mode():
            states = model(input_ids=torch.tensor(rows)).last_hidden_state[0, -1]
        assert np.abs((states / states.norm()).numpy() - own.encode(TEXTS[:1])[0]).max() < 1e-6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "package" / "adapter")
    assert tokenizer(own.contract.prompt + TEXTS[0])["input_ids"] == own.tokens(TEXTS[:1])[0]
    revision = load_contract(adapted)[0].base_revision
    assert stated_licence(BaseModelPin(name="acme/llm", digest="x", revision=revision)) == "mit"


def test_a_base_that_only_this_machine_has_leaves_no_adapter(tmp_path: Path, home: Path) -> None:
    trained = {"steps": 1, "batch_size": 4, "chunk_size": 4, "lora_rank": 2, "max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    tower = towers_in(tmp_path / "towers", base_model="tiny-decoder", **trained)
    export_router({"document": tower}, tmp_path / "package")
    assert opened(tmp_path / "package").encode_document(TEXTS).shape[0] == 4
    assert not (tmp_path / "package" / "adapter").exists()


def test_a_teacher_without_weights_is_no_package(tmp_path: Path, home: Path) -> None:
    contract = load_student(student_of(16, tmp_path / "student")).contract.model_copy(
        update={"role": "document", "base_model": BASE, "form": "vectors"}
    )
    save_contract(tmp_path / "tower", contract, "space")
    with pytest.raises(ModelError, match="no weights here"):
        export_router({"document": tmp_path / "tower"}, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_model_that_brings_its_own_code_is_refused_in_words(tmp_path: Path, home: Path) -> None:
    contract = load_student(student_of(16, tmp_path / "student")).contract.model_copy(update={"role": "document", "base_code": "0" * 64})
    save_contract(tmp_path / "tower", contract, "space")
    with pytest.raises(ModelError, match="runs Python code of its makers, which a package cannot carry"):
        export_router({"query": tmp_path / "student", "document": tmp_path / "tower"}, tmp_path / "package")
    assert not (tmp_path / "package").exists()


@pytest.mark.parametrize("card", ["", "---\n[\n---\n", "no front matter", "---\nlicense: [a]\n---\n", "---\n- a\n---\n", "---\n"])
def test_a_card_that_names_no_licence_is_none(card: str, tmp_path: Path) -> None:
    base = BaseModelPin(name=str(tmp_path), digest="x")
    assert stated_licence(base) is None
    (tmp_path / "README.md").write_text(card)
    assert stated_licence(base) is None


def test_the_licences_of_the_packaged_models_are_known() -> None:
    said = {name: stated_licence(BaseModelPin(name=name, digest="x")) for name in ("gemma3-270m-warm", "gemma3-270m@6", "tiny-decoder-0")}
    assert said["tiny-decoder-0"] is None and said["gemma3-270m-warm"] == said["gemma3-270m@6"]
    assert "https://ai.google.dev/gemma/terms" in str(said["gemma3-270m-warm"])
    assert stated_licence(BaseModelPin(name="all-minilm-l6-v2", digest="x")) == "apache-2.0"


def test_a_package_that_answers_otherwise_is_not_left_behind(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FORMS["bge"].write([*documents(), *queries()], tmp_path / "model")
    tower = towers_in(tmp_path / "towers", base_model=str(model), training="none")
    monkeypatch.setattr("components.distillation.router.TOLERANCE", -1.0)
    with pytest.raises(ModelError, match=r"would give other vectors for a query than the release .* none was left"):
        export_router({"query": student_of(32, tmp_path / "student"), "document": tower}, tmp_path / "package")
    assert not (tmp_path / "package").exists()


def test_a_decoder_that_attends_in_both_directions_is_written_alike_or_not_at_all(tmp_path: Path, home: Path) -> None:
    trained = {"steps": 1, "batch_size": 4, "chunk_size": 4, "lora_rank": 2, "max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    tower = towers_in(tmp_path / "towers", base_model="tiny-decoder", attention="bidirectional", pooling="mean", **trained)
    student = student_of(load_tower(tower).contract.dimension, tmp_path / "student")
    with suppress(ModelError):
        export_router({"query": student, "document": tower}, tmp_path / "package")
    if (tmp_path / "package").exists():
        assert np.abs(opened(tmp_path / "package").encode_document(TEXTS) - load_tower(tower, "float32").encode(TEXTS)).max() < 1e-6


def test_without_a_document_tower_queries_alone_are_encoded(tmp_path: Path, home: Path) -> None:
    student = student_of(16, tmp_path / "student")
    contract = load_student(student).contract.model_copy(update={"role": "document", "base_model": BASE, "form": "vectors"})
    save_contract(tmp_path / "tower", contract, "space")
    assert set(export_router({"query": student, "document": tmp_path / "tower"}, tmp_path / "package")) == {"query"}
    package = opened(tmp_path / "package")
    assert package.encode_query(TEXTS).shape == (4, 16)
    with pytest.raises(ValueError, match="No route found for task type 'document'"):
        package.encode_document(TEXTS)


def test_a_folder_that_is_used_is_refused(tmp_path: Path) -> None:
    require_new(tmp_path / "new")
    (tmp_path / "old").mkdir()
    require_new(tmp_path / "old")
    (tmp_path / "old" / "file").touch()
    for folder in ("old", "old/file"):
        with pytest.raises(ConfigError, match="there already and not empty"):
            require_new(tmp_path / folder)
