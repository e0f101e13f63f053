from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from components.artifacts import IndexArtifact
from components.errors import ArtifactError, DataError, ProbeMismatch, SpaceMismatch
from components.index.build import build_index
from components.index.config import EncodingConfig, IndexConfig
from components.index.encode import encode_corpus
from components.serving.retriever import Hit, Retriever
from components.towers.contract import PROBE_FILE, record_probes
from tests.encoders import WordEncoder, dataset_of

TOLERANCE = 0.01


@pytest.fixture
def index(tmp_path: Path) -> IndexArtifact:
    for name in ("vectors", "index", "encoder"):
        (tmp_path / name).mkdir()
    record_probes(WordEncoder(), tmp_path / "encoder")
    dataset = dataset_of({"d1": "apple", "d2": "bread", "d3": "apple bread"}, {}, [])
    vectors = encode_corpus(WordEncoder("document"), dataset, {}, EncodingConfig(), tmp_path / "vectors")
    return build_index(vectors, IndexConfig(), tmp_path / "index")


def test_finds_documents_best_first(index: IndexArtifact) -> None:
    retriever = Retriever.open(WordEncoder(), index.path.parent / "encoder", index.path, TOLERANCE, index.digest)
    found = retriever.search(["apple", "bread"], 2)
    assert found[0][0] == Hit("d1", 1.0)
    assert [[hit.doc_id for hit in hits] for hits in found] == [["d1", "d3"], ["d2", "d3"]]
    assert found[0][1].score == pytest.approx(np.sqrt(0.5), abs=1e-6)
    assert retriever.search([]) == []
    assert retriever.search(np.array(["apple", "bread"]), 2) == found  # type: ignore[arg-type]


def test_one_text_in_the_place_of_several_is_refused_and_its_letters_are_not_searched(index: IndexArtifact) -> None:
    retriever = Retriever.open(WordEncoder(), index.path.parent / "encoder", index.path, TOLERANCE, index.digest)
    with pytest.raises(TypeError, match=r"not one text. Give \['apple'\]"):
        retriever.search("apple")
    # Of these the names would be searched, without a word.
    for named in ({"query": "apple"}, pd.DataFrame({"query": ["apple"]}), np.array([["apple"]])):
        with pytest.raises(TypeError, match=r"a list of texts, not a (dict|DataFrame|ndarray)\. Give the texts alone"):
            retriever.search(named)  # type: ignore[arg-type]
    assert retriever.search(pd.Series(["apple"])) == retriever.search(["apple"])  # type: ignore[arg-type]


def test_what_is_no_text_or_no_number_is_said_by_name_and_numbers_of_numpy_are_taken(index: IndexArtifact) -> None:
    retriever = Retriever.open(WordEncoder(), index.path.parent / "encoder", index.path, TOLERANCE, index.digest)
    assert retriever.search(["apple"], np.int64(1)) == retriever.search(["apple"], 1)  # type: ignore[arg-type]
    for wrong in (None, 3, b"apple", ["apple"]):
        with pytest.raises(TypeError, match=r"queries\[1\] is .*, which is no text"):
            retriever.search(["apple", wrong])  # type: ignore[list-item]
    with pytest.raises(DataError, match=r"queries\[1\] holds half a surrogate pair"):
        retriever.search(["apple", "\ud83d"])
    with pytest.raises(TypeError):
        retriever.search(["apple"], 2.5)  # type: ignore[arg-type]


def test_refuses_an_encoder_of_another_space(index: IndexArtifact) -> None:
    with pytest.raises(SpaceMismatch):
        Retriever.open(WordEncoder(name="other"), index.path.parent / "encoder", index.path, TOLERANCE)


def test_refuses_an_encoder_that_has_changed(index: IndexArtifact) -> None:
    folder = index.path.parent / "encoder"
    probes = np.load(folder / PROBE_FILE)
    np.save(folder / PROBE_FILE, np.roll(probes, 1, axis=1))
    with pytest.raises(ProbeMismatch):
        Retriever.open(WordEncoder(), folder, index.path, TOLERANCE)


def test_refuses_a_document_encoder_and_a_replaced_index(index: IndexArtifact) -> None:
    folder = index.path.parent / "encoder"
    with pytest.raises(ArtifactError, match="document encoder"):
        Retriever.open(WordEncoder("document"), folder, index.path, TOLERANCE)
    with pytest.raises(ArtifactError, match="expected the artifact"):
        Retriever.open(WordEncoder(), folder, index.path, TOLERANCE, "0" * 64)
