"""What an index asks of its engine: five calls, by which it answers as with FAISS, and one module that imports FAISS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from components.code import ROOT
from components.errors import ArtifactError
from components.index.build import tune
from components.index.config import IndexConfig
from components.index.engine import Found, IndexEngine, Settings, flat_engine
from components.index.parts import StoredVectors
from components.index.rows import Rows
from components.index.search import VectorIndex, index_in_memory, vectors_of
from components.syntax import imports_in, parsed
from tests.unit.index_world import clustered

VECTORS, QUERIES = clustered(300), clustered(20, seed=7)
IDS = [f"d{i:03d}" for i in range(300)]
# vector_files reads a team's own FAISS file, in a room that stands below the index.
IMPORTING = {"components/index/engine.py", "components/towers/trained/vector_files.py"}


@dataclass(frozen=True)
class Halves:
    """An engine of another kind: two lists, the even and the odd rows, of which a search visits one or both."""

    vectors: NDArray[np.float32]

    def search(self, vectors: NDArray[np.float32], depth: int, settings: Settings) -> Found:
        scores = vectors @ self.vectors.T
        if settings.nprobe == 1:
            scores[:, 1::2] = -np.inf
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        found = np.take_along_axis(scores, rows, 1)
        return found.astype(np.float32), np.where(np.isfinite(found), rows, -1)

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.vectors[rows]

    def sizes(self) -> NDArray[np.int64]:
        return np.array([len(self.vectors[0::2]), len(self.vectors[1::2])], np.int64)

    def widest(self) -> Settings:
        return Settings(nprobe=2)

    def scanned(self, settings: Settings, wanted: int) -> float:
        return float((settings.nprobe or 1) * self.vectors.nbytes / 2)


def index_of(engine: IndexEngine, flat: bool) -> VectorIndex:
    stored = None if flat else StoredVectors([VECTORS.astype(np.float16)])
    return VectorIndex("space", VECTORS.shape[1], Rows.of(IDS), engine, stored, flat)


@pytest.mark.parametrize("queries", [QUERIES, QUERIES[:1]])
def test_an_exact_index_answers_by_any_engine_as_by_faiss(queries: NDArray[np.float32]) -> None:
    mine, faiss = index_of(Halves(VECTORS), flat=True), index_in_memory(VECTORS, IDS, "space")
    for one, other in zip(mine.search(queries, 30), faiss.search(queries, 30), strict=True):
        assert np.array_equal(np.array(one), np.array(other))
    assert np.array_equal(vectors_of(mine, IDS[5:9]), vectors_of(faiss, IDS[5:9]))


def test_an_approximate_index_is_widened_refined_and_tuned_by_the_same_calls() -> None:
    index = replace(index_of(Halves(VECTORS), flat=False), settings=Settings(1, None, 4))
    assert {doc_id for ids in index.search(QUERIES, 10)[1] for doc_id in ids} <= set(IDS[0::2])
    assert {len(ids) for ids in index.search(QUERIES, 200)[1]} == {200}  # more than a list holds: both are visited
    chosen = tune(index, QUERIES, IndexConfig(recall_at=10, target_recall=1.0))
    assert (chosen.nprobe, chosen.ef_search, chosen.recall) == (2, None, 1.0)
    assert tune(index, QUERIES, IndexConfig(recall_at=10, target_recall=0.1)).nprobe == 1


def test_an_exact_engine_of_faiss_has_no_lists_and_nothing_to_widen() -> None:
    engine = flat_engine([VECTORS], VECTORS.shape[1])
    assert (engine.sizes(), engine.widest(), engine.scanned(Settings(), 10)) == (None, Settings(), 0.0)


@pytest.mark.parametrize("deleted", [[], [0, 7, 299]])
def test_vectors_come_by_row_whatever_rows_are_gone(deleted: Sequence[int]) -> None:
    live = np.setdiff1d(np.arange(300), np.array(deleted, np.int64))
    engine = flat_engine([VECTORS[live]], VECTORS.shape[1], live if deleted else None)
    assert np.array_equal(engine.vectors_of(live), VECTORS[live])
    assert engine.vectors_of(np.array([[live[3], -1], [live[1], live[2]]])).shape == (2, 2, VECTORS.shape[1])


def test_an_approximate_index_without_vectors_says_that_it_cannot_search_exactly() -> None:
    index = replace(index_of(Halves(VECTORS), flat=False), stored=None)
    with pytest.raises(ArtifactError, match="keeps no vectors"):
        index.exact(QUERIES, 3)


def test_faiss_is_imported_behind_the_engine_alone() -> None:
    files = [path for room in ("components", "flows") for path in (ROOT / room).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files for one in imports_in(parsed(path), "x") if one.module == "faiss"}
    assert found == IMPORTING
