"""The untrained encoder's documents are encoded once: kept by all that their vectors follow from, and made anew when they are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.artifacts import is_complete
from components.data.dataset import Dataset
from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.initial import published_prompts
from components.evaluation.report import UntrainedSetup
from components.evaluation.systems import CUT, untrained_ranker, untrained_systems
from components.evaluation.table import UNTRAINED
from components.towers.base_models import BaseModel
from tests.encoders import dataset_of
from tests.training.tiny_world import documents, queries

SMALL = DistillationConfig(student="tiny-encoder", precision="float32")


def data(extra: str = "") -> Dataset:
    texts = {f"d{i}": text for i, text in enumerate([*documents(), *([extra] if extra else [])])}
    return dataset_of(texts, {f"q{i}": text for i, text in enumerate(queries())}, [("q0", "d0", 1)])


@pytest.fixture
def encoded(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many texts each call has encoded since."""
    calls: list[int] = []
    original = StudentEncoder.encode

    def encode(self: StudentEncoder, texts, batch_size=None, progress=None):  # type: ignore[no-untyped-def]
        calls.append(len(texts))
        return original(self, texts, batch_size, progress)

    monkeypatch.setattr(StudentEncoder, "encode", encode)
    return calls


def test_documents_are_encoded_once_and_ranked_alike(encoded: list[int]) -> None:
    first = untrained_ranker(data(), SMALL, None, kept=True).rank(queries()[:5], 10)
    again = untrained_ranker(data(), SMALL, None, kept=True).rank(queries()[:5], 10)
    fresh = untrained_ranker(data(), SMALL, None).rank(queries()[:5], 10)
    assert first == again == fresh
    assert encoded == [64, 5, 5, 64, 5]


def test_other_documents_and_other_layers_are_encoded_for_themselves(encoded: list[int]) -> None:
    cut = SMALL.model_copy(update={"layers": 1})
    for dataset, config, name in ((data(), SMALL, UNTRAINED), (data("one more"), SMALL, UNTRAINED), (data(), cut, CUT)):
        untrained_ranker(dataset, config, None, name, kept=True)
    assert encoded == [64, 65, 64]


def test_a_student_of_any_form_is_held_against_the_encoder_as_published(encoded: list[int]) -> None:
    forms = [SMALL.model_copy(update=fields) for fields in ({}, {"layers": 1}, {"prune_to": (1,)}, {"form": "static"}, {"pooling": "cls"})]
    found = [untrained_ranker(data(), config, None, kept=True).setup for config in forms]
    assert all(setup == found[0] for setup in found) and found[0] is not None
    assert (found[0].published, found[0].layers, found[0].pooling) == (True, 2, "mean")
    assert encoded == [64]  # one encoder, so its documents are encoded once for all students
    assert [list(untrained_systems(config)) for config in forms] == [[UNTRAINED], *[[UNTRAINED, CUT]] * 4]


@pytest.mark.parametrize(
    ("fields", "layers", "pooling"),
    [({"layers": 1}, 1, "mean"), ({"prune_to": (1,)}, 1, "mean"), ({"form": "static"}, 0, "mean"), ({"pooling": "cls"}, 2, "cls")],
)
def test_the_cut_encoder_has_the_form_that_the_student_ends_with(home: Path, fields: dict[str, Any], layers: int, pooling: str) -> None:
    setup = untrained_ranker(data(), SMALL.model_copy(update=fields), None, CUT).setup
    assert setup is not None and (setup.published, setup.layers, setup.pooling) == (False, layers, pooling)


@pytest.fixture
def published(home: Path, tmp_path: Path) -> Path:
    """A tiny encoder in a folder with the settings that sentence-transformers saves beside a model."""
    from components.towers.base_models import resolve_base

    folder = tmp_path / "acme-embed"
    shutil.copytree(resolve_base("tiny-encoder", [*documents(), *queries()]).location, folder)
    (folder / "1_Pooling").mkdir()
    settings = {
        "1_Pooling/config.json": {"pooling_mode_cls_token": True},
        "sentence_bert_config.json": {"max_seq_length": 7},
        "config_sentence_transformers.json": {"prompts": {"query": "ask: ", "passage": "tell: "}},
    }
    for name, content in settings.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_published_encoder_has_its_own_pooling_length_and_prompts_by_role(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    original = StudentEncoder.tokens
    monkeypatch.setattr(
        StudentEncoder, "tokens", lambda self, texts: asked.append((self.contract.prompt, texts[0])) or original(self, texts)
    )
    # What the student is asked for is no matter of its encoder as published.
    config = SMALL.model_copy(update={"student": str(published), "pooling": "mean", "query_prompt": "mine: ", "max_query_length": 32})
    ranker = untrained_ranker(data(), config, None)
    ranker.rank(queries()[:1], 3)
    assert asked == [("tell: ", documents()[0]), ("ask: ", queries()[0])]
    assert ranker.setup == UntrainedSetup(
        encoder=str(published), published=True, layers=2, pooling="cls", query_prompt="ask: ", document_prompt="tell: ", max_length=7
    )
    assert "as published: 2 layers, pooling cls, prompts 'ask: ' and 'tell: ', at most 7 tokens" in ranker.setup.words


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("intfloat/e5-small-v2", ("query: ", "passage: ")),
        ("intfloat/multilingual-e5-base", ("query: ", "passage: ")),
        ("intfloat/multilingual-e5-large-instruct", None),
        ("BAAI/bge-base-en-v1.5", ("Represent this sentence for searching relevant passages: ", "")),
        ("BAAI/bge-m3", None),
        ("nomic-ai/nomic-embed-text-v1.5", ("search_query: ", "search_document: ")),
        ("sentence-transformers/all-MiniLM-L6-v2", None),
    ],
)
def test_families_that_were_published_without_settings_have_the_prompts_of_their_cards(
    tmp_path: Path, name: str, prompts: tuple[str, str] | None
) -> None:
    found = published_prompts(BaseModel(name, str(tmp_path), "0" * 64))
    assert found == (None if prompts is None else {"query": prompts[0], "document": prompts[1]})
    # Newer versions save empty prompts where there are none, whatever the model needs.
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "", "document": ""}}))
    assert published_prompts(BaseModel(name, str(tmp_path), "0" * 64)) == found


def test_without_known_prompts_documents_are_not_given_the_query_prompt(home: Path) -> None:
    setup = untrained_ranker(data(), SMALL.model_copy(update={"query_prompt": "mine: "}), None).setup
    assert setup is not None and (setup.query_prompt, setup.document_prompt) == ("mine: ", "")


@pytest.mark.parametrize("damage", ["cut short", "removed", "without manifest"])
def test_damaged_vectors_are_made_anew(encoded: list[int], home: Path, damage: str) -> None:
    untrained_ranker(data(), SMALL, None, kept=True)
    (folder,) = (home / "work" / "untrained_vectors").iterdir()
    whole = np.load(folder / "vectors.npy")
    if damage == "without manifest":
        (folder / "manifest.json").unlink()
    elif damage == "removed":
        (folder / "vectors.npy").unlink()
    else:
        (folder / "vectors.npy").write_bytes(b"\x93NUMPY")
    untrained_ranker(data(), SMALL, None, kept=True)
    assert encoded == [64, 64]
    assert is_complete(folder)
    np.testing.assert_array_equal(np.load(folder / "vectors.npy"), whole)
