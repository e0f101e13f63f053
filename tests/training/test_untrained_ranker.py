"""The untrained encoder's documents are encoded once: kept by all that their vectors follow from, and made anew when they are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.artifacts import is_complete
from components.data.dataset import Dataset
from components.distillation.config import DistillationConfig
from components.distillation.student_encoder import StudentEncoder
from components.evaluation.systems import untrained_ranker
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
    for dataset, config in ((data(), SMALL), (data("one more"), SMALL), (data(), SMALL.model_copy(update={"layers": 1}))):
        untrained_ranker(dataset, config, None, kept=True)
    assert encoded == [64, 65, 64]


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
