from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from components.artifacts import IndexArtifact
from components.errors import ArtifactError
from components.index.config import IndexConfig
from components.index.drift import GuardReport, read_guard
from components.index.refresh import Changes, refresh_index
from tests.unit.index_world import DIMENSION, built, clustered, shards_of

LISTS = IndexConfig(index_key="IVF8,Flat", recall_at=10, compact_share=1.0)
NONE = np.empty(0, np.int64)


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def start(tmp_path: Path, config: IndexConfig = LISTS, rows: int = 600) -> IndexArtifact:
    return built(tmp_path / "index", shards_of(tmp_path / "vectors", clustered(rows), []), config)


def added(index: IndexArtifact, vectors: NDArray[np.float32], config: IndexConfig = LISTS) -> IndexArtifact:
    """The index with these vectors as new documents."""
    number = len(list(index.path.parent.iterdir()))
    delta = shards_of(index.path.parent / f"delta-{number}", vectors, [], [f"new-{number}-{row}" for row in range(len(vectors))])
    folder = index.path.parent / f"refreshed-{number}"
    folder.mkdir()
    return refresh_index(index, delta, Changes(np.arange(len(vectors)), NONE, NONE, NONE, index.counts["documents"]), config, folder)


def removed(index: IndexArtifact, rows: list[int], config: IndexConfig = LISTS) -> IndexArtifact:
    folder = index.path.parent / "removed"
    folder.mkdir()
    return refresh_index(index, None, Changes(NONE, NONE, np.array(rows), NONE, 0), config, folder)


def report(index: IndexArtifact) -> GuardReport:
    found = read_guard(index.path)
    assert found.status == index.attributes["guard"]
    return found


def test_documents_like_the_old_ones_are_fine(tmp_path: Path) -> None:
    found = report(added(start(tmp_path), clustered(60, seed=1)))
    assert (found.status, found.reasons, found.documents, found.tuned_documents) == ("ok", (), 660, 600)
    assert found.distance_growth == pytest.approx(1.0, abs=0.1)
    assert found.imbalance_growth == pytest.approx(1.0, abs=0.1)
    assert found.recall_old is not None and found.recall_new is not None and found.recall_old - found.recall_new < 0.05


def test_documents_of_another_kind_lie_far_from_every_centroid(tmp_path: Path) -> None:
    strange = unit(np.random.default_rng(3).normal(size=(60, DIMENSION)))
    found = report(added(start(tmp_path), strange))
    assert found.status == "retrain_due"
    assert found.distance_growth is not None and found.distance_growth > 1.2
    assert any(f"New vectors lie {found.distance_growth:.2f} times as far" in reason for reason in found.reasons)


def test_documents_that_all_fall_into_one_list_make_the_lists_uneven(tmp_path: Path) -> None:
    one = unit(clustered(1) + 0.01 * np.random.default_rng(4).normal(size=(1200, DIMENSION)))
    found = report(added(start(tmp_path), one))
    assert found.imbalance_growth is not None and found.imbalance_growth > 2
    assert any("times as uneven" in reason for reason in found.reasons)


def test_new_documents_between_the_lists_are_found_less_often(tmp_path: Path) -> None:
    config = LISTS.model_copy(update={"nprobe": 1})
    centre = unit(clustered(600).mean(axis=0, keepdims=True) + 0.05 * np.random.default_rng(5).normal(size=(100, DIMENSION)))
    found = report(added(start(tmp_path, config), centre, config))
    assert found.recall_old is not None and found.recall_new is not None
    assert found.recall_old - found.recall_new > 0.05
    assert any(f"finds {found.recall_new:.3f} of the new documents" in reason for reason in found.reasons)


def test_drift_over_many_refreshes_is_measured_against_the_training(tmp_path: Path) -> None:
    strange = unit(np.random.default_rng(3).normal(size=(60, DIMENSION)))
    drifted = added(start(tmp_path), strange)
    again = added(drifted, clustered(5, seed=1))
    assert again.attributes["rows_at_training"] == 600
    assert report(again).status == "retrain_due"


def test_leaving_the_range_that_the_search_was_tuned_for_is_said(tmp_path: Path) -> None:
    index = start(tmp_path, rows=320)
    assert report(removed(index, list(range(241)))).reasons == ("The index was tuned for 320 documents and now holds 79.",)
    grown = report(added(index, clustered(961, seed=1)))
    assert "The index was tuned for 320 documents and now holds 1,281." in grown.reasons


def test_an_exact_index_that_has_grown_too_large_for_auto_is_due(tmp_path: Path) -> None:
    config = IndexConfig(exact_below=330)
    index = start(tmp_path, config, rows=320)
    small = report(added(index, clustered(9, seed=1), config))
    assert (small.status, small.imbalance_growth, small.recall_new) == ("ok", None, None)
    large = report(added(index, clustered(10, seed=1), config))
    assert large.status == "retrain_due" and large.reasons[0].startswith(
        "330 documents are searched exactly; index_key auto would now take"
    )
    asked = config.model_copy(update={"index_key": "Flat"})
    (tmp_path / "flat").mkdir()
    assert report(added(start(tmp_path / "flat", asked, rows=320), clustered(10, seed=1), asked)).status == "ok"


def test_without_stored_vectors_deletions_stay_and_are_said(tmp_path: Path) -> None:
    config = LISTS.model_copy(update={"refine": "none", "compact_share": 0.1})
    refreshed = removed(start(tmp_path, config), list(range(60)), config)
    assert refreshed.counts["deleted"] == 60
    assert report(refreshed).reasons == ("60 of 600 rows are deleted, and without stored vectors the index cannot be written anew.",)


def test_plain_codes_without_stored_vectors_cannot_leave_out_documents(tmp_path: Path) -> None:
    config = IndexConfig(index_key="PQ8x4", refine="none")
    with pytest.raises(ArtifactError, match="can neither leave out documents nor be written anew"):
        removed(start(tmp_path, config), [0], config)


def test_stored_int8_survives_being_written_anew(tmp_path: Path) -> None:
    config = LISTS.model_copy(update={"refine": "int8", "compact_share": 0.1})
    index = start(tmp_path, config)
    compact = removed(index, list(range(0, 600, 5)), config)
    assert (compact.counts["rows"], compact.counts["deleted"]) == (480, 0)
    before, after = (np.load(folder / "part-00000.vectors.npy") for folder in (index.path, compact.path))
    assert np.array_equal(before[[row for row in range(600) if row % 5]], after)
