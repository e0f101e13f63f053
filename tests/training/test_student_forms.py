"""The student's forms on tiny models: what each starts as, what it keeps, and that it is read back as it was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.distillation.config import DistillationConfig
from components.distillation.student import StudentEncoder, load_encoder, load_student, new_student, save_student, untrained_student
from components.distillation.student.forms import StaticForm
from components.distillation.student.initial import Source, bare_student
from components.errors import ModelError
from components.towers import base_models as tiny
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import save_contract
from components.towers.encoder import TowerEncoder, load_tower
from components.towers.tokens import token_ids
from components.towers.two_towers import TwoTowers
from tests.training.tiny_world import documents, queries

WIDTH = 24
LONG = "a very long query about the kidney, the heart, the lung, the bone and the skin of a man who sleeps all day"


def teacher_vectors(width: int = WIDTH) -> np.ndarray:
    """Random unit vectors, one a query."""
    rows = np.random.default_rng(0).normal(size=(len(queries()), width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def config(**fields: Any) -> DistillationConfig:
    return DistillationConfig(**{"student": "tiny-encoder", "max_query_length": 16, "precision": "float32", **fields})


def student_of(fields: dict[str, Any], tower: Path | None = None) -> StudentEncoder:
    return new_student(queries(), teacher_vectors(), "space", config(**fields), tower)


@pytest.fixture
def tower(home: Path, tmp_path: Path) -> Path:
    """An untrained query tower on a decoder whose tokenizer, like Gemma's, adds a start token and no end token."""
    base, folder = tmp_path / "decoder", tmp_path / "tower"
    base.mkdir()
    folder.mkdir()
    tiny.build_decoder([*queries(), *documents()], base, tiny.WIDTH, tiny.LAYERS)
    _without_end_token(base)
    _untrained_tower(base, folder)
    return folder


def _untrained_tower(base: Path, folder: Path, **fields: Any) -> None:
    chosen = TowerConfig(**{"base_model": str(base), "query_prompt": "find: ", "precision": "float32", **fields})
    towers = TwoTowers(resolve_base(str(base)), chosen)
    for name, parameter in towers.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    contract = towers.save("query", folder)
    assert contract is not None
    save_contract(folder, contract, "space")


def _without_end_token(folder: Path) -> None:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    tokenizer.save_pretrained(folder)


FORMS: dict[str, dict[str, Any]] = {
    "encoder": {"query_prompt": "find: "},
    "encoder, two layers": {"head": "two_layer", "head_width": 64},
    "one layer": {"layers": 1},
    "static": {"form": "static", "query_prompt": "find: "},
    "static, two layers": {"form": "static", "head": "two_layer", "head_width": 64},
    "teacher": {"student": "teacher", "layers": (1,)},
    "static teacher": {"student": "teacher", "form": "static"},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_read_back_by_both_loaders(name: str, tower: Path, tmp_path: Path) -> None:
    assert_read_back(student_of(FORMS[name], tower), tmp_path / "student")
    assert isinstance(load_encoder(tmp_path / "student"), StudentEncoder) and isinstance(load_encoder(tower), TowerEncoder)


@pytest.mark.parametrize(
    "fields",
    [{"attention": "bidirectional", "pooling": "mean"}, {"training": "full"}, {"matryoshka": (32,), "dimension": 32}],
    ids=["both ways", "full", "matryoshka"],
)
def test_a_student_of_any_tower_is_read_back_by_both_loaders(fields: dict[str, Any], tower: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    _untrained_tower(tmp_path / "decoder", folder, **fields)
    student = student_of({"student": "teacher", "layers": 1}, folder)
    assert (student.contract.attention, student.contract.pooling) == (fields.get("attention", "causal"), fields.get("pooling", "last"))
    assert_read_back(student, tmp_path / "student")


def assert_read_back(student: StudentEncoder, folder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    for parameter in student.parameters(True):  # a start at which every bias and layer has a say
        parameter.data.add_(0.01)
    texts = [*queries(), LONG, ""]
    vectors = student.encode(texts)
    save_contract(folder, save_student(student, folder), "space")
    ours = load_student(folder, "float32")
    np.testing.assert_allclose(ours.encode(texts), vectors, atol=1e-5)
    theirs = SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(theirs.encode(texts), vectors, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_query(texts, batch_size=3), vectors, atol=1e-5)
    np.testing.assert_allclose(theirs.encode(LONG), vectors[-2], atol=1e-5)  # alone, so without padding and its mask
    assert (ours.layer_count, ours.contract.form, ours.space_id) == (student.layer_count, student.contract.form, "space")


def test_the_tower_itself_is_a_student_that_gives_the_towers_vectors(tower: Path) -> None:
    bare = bare_student(Source(config(student="teacher", max_query_length=64), queries(), tower))
    teacher = load_tower(tower, "float32")
    assert (bare.contract.prompt, bare.contract.pooling, bare.contract.append_eos, bare.layer_count) == ("find: ", "last", True, 2)
    np.testing.assert_allclose(bare.encode(queries()), teacher.encode(queries()), atol=1e-5)
    given = teacher.encode(queries())
    student = new_student(queries(), given, "space", config(student="teacher", max_query_length=64), tower)
    assert (student.encode(queries()) * given).sum(1).min() > 0.99  # the fitted head finds its way back


def test_a_teacher_student_needs_a_tower(home: Path) -> None:
    with pytest.raises(ModelError, match="no query tower was given"):
        student_of({"student": "teacher"})


def test_a_static_student_is_the_mean_of_its_token_vectors(home: Path) -> None:
    bare = bare_student(Source(config(form="static"), queries(), None))
    table = bare.model["embedding"].weight.detach().numpy()
    (row,) = StaticForm().tokens(bare.tokenizer, ["kidney pain"], bare.contract)
    assert bare.tokenizer.convert_ids_to_tokens(row) == ["kidney", "pain"]
    np.testing.assert_allclose(bare.features(["kidney pain", ""]), [table[row].mean(0), np.zeros(64)], atol=1e-6)


def test_static_vectors_start_as_the_encoders_of_single_tokens(home: Path) -> None:
    whole = bare_student(Source(config(), queries(), None))
    table = bare_student(Source(config(form="static"), queries(), None)).model["embedding"].weight.detach().numpy()
    rows = whole.tokenizer.convert_tokens_to_ids(["kidney", "pain", "e"])
    np.testing.assert_allclose(table[rows], whole.features(["kidney", "pain", "e"]), atol=1e-6)


def test_tokens_beyond_the_limit_take_the_encoders_linear_part(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bare_student(Source(config(), queries(), None))
    direct = bare_student(Source(config(form="static"), queries(), None)).model["embedding"].weight.detach()
    monkeypatch.setattr("components.distillation.student.initial.DIRECT_TOKENS", 50)
    table = bare_student(Source(config(form="static"), queries(), None)).model["embedding"].weight.detach()
    same = (table - direct).abs().amax(1) < 1e-6
    assert len(table) == len(whole.tokenizer) > 50 == int(same.sum())
    seen = {token for row in StaticForm().tokens(whole.tokenizer, queries(), whole.contract) for token in row}
    assert all(same[token] for token in seen)
    assert table.isfinite().all()


def test_only_what_is_trained_is_kept_in_the_state(home: Path) -> None:
    student = student_of({})
    frozen = student.parameters(False)
    assert len(student.parameters(True)) == len(frozen) + 1
    student.parameters(False)
    state = student.state()
    assert len(state) == len(frozen) and not any("word_embeddings" in name for name in state)
    before = student.encode(queries())
    for parameter in frozen:
        parameter.data.add_(0.1)
    assert np.abs(student.encode(queries()) - before).max() > 1e-2
    student.load_state(state)
    np.testing.assert_array_equal(student.encode(queries()), before)
    assert any("embedding.weight" in name for name in student_of({"form": "static"}).state())


def test_the_untrained_student_has_no_head(home: Path, tower: Path) -> None:
    for fields, layers in (({}, 2), ({"layers": 1}, 1), ({"form": "static"}, 0), ({"student": "teacher", "layers": 1}, 1)):
        student = untrained_student(config(**fields), queries(), tower, 32)
        assert student.encode(["kidney stone"]).shape == (1, 64)
        assert (student.layer_count, student.contract.max_length, student.space_id[:10]) == (layers, 32, "untrained:")


def test_tokens_are_those_of_the_contract(tower: Path) -> None:
    student = student_of({"student": "teacher"}, tower)
    (row,) = student.tokens(["kidney disorders"])
    assert student.tokenizer.convert_ids_to_tokens(row)[-3:] == ["kidney", "disorders", "[SEP]"]
    assert student.tokens([LONG]) == token_ids(student.tokenizer, [LONG], student.contract)
    assert len(student.tokens([LONG])[0]) == 16
