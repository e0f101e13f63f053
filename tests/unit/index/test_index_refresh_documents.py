"""Documents chosen for a refresh are read by row, and vectors of single documents come out of an index."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from components.data import dataset as dataset_module
from components.data.dataset import write_table
from components.errors import ArtifactError
from components.index.config import IndexConfig
from components.index.corpus import ChosenDocuments
from components.index.search import index_in_memory, load_index, rows_of, vectors_of
from tests.encoders import dataset_of
from tests.unit.index_world import built, clustered, ids_of, shards_of, without


def chosen(folder: Path, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> ChosenDocuments:
    monkeypatch.setattr(dataset_module, "ROW_GROUP", 4)
    documents = dataset_of({f"d{n}": f"text {n}" for n in range(10)}, {}, []).documents
    write_table(documents, folder / "documents.parquet")
    return ChosenDocuments(folder / "documents.parquet", np.array(rows, np.int64), 3)


def test_rows_come_in_order_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = pickle.loads(pickle.dumps(chosen(tmp_path, [0, 3, 4, 9], monkeypatch)))
    assert documents.count == 4
    assert [documents.keys(number).doc_ids for number in (0, 1)] == [["d0", "d3", "d4"], ["d9"]]
    assert [documents.texts(number) for number in (0, 1)] == [["text 0", "text 3", "text 4"], ["text 9"]]
    assert all(len(digest) == 64 for digest in documents.keys(0).content_hashes)


def test_a_table_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "documents.parquet").write_bytes(b"PAR1 truncated")
    with pytest.raises(ArtifactError, match=r"documents\.parquet cannot be read"):
        ChosenDocuments(tmp_path / "documents.parquet", np.array([0], np.int64), 3).texts(0)


def test_vectors_of_documents_in_their_own_order(tmp_path: Path) -> None:
    vectors = clustered(40)
    index = built(tmp_path / "index", shards_of(tmp_path / "vectors", vectors, [15]), IndexConfig())
    gone = without(index, [5])
    opened = load_index(gone.path, gone.space_id)
    wanted = [30, 2, 17]
    found = vectors_of(opened, [ids_of(40)[row] for row in wanted])
    np.testing.assert_allclose(found, vectors[wanted], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    with pytest.raises(ArtifactError, match="The index holds no document"):
        rows_of(opened, [ids_of(40)[5]])


def test_an_index_in_faiss_alone_gives_its_vectors_and_one_without_any_is_refused(tmp_path: Path) -> None:
    vectors = clustered(20)
    np.testing.assert_array_equal(vectors_of(index_in_memory(vectors, ids_of(20), "space"), [ids_of(20)[3]]), vectors[3:4])
    config = IndexConfig(index_key="IVF2,Flat", refine="none", recall_at=5)
    index = built(tmp_path / "index", shards_of(tmp_path / "vectors", clustered(100), []), config)
    with pytest.raises(ArtifactError, match=r"keeps no vectors \(index.refine is none\)"):
        vectors_of(load_index(index.path, index.space_id), [ids_of(100)[0]])
