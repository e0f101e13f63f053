"""A share of the training pairs, and nothing else, is kept."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.artifacts import DatasetArtifact, verify
from components.data.config import DataConfig
from components.data.dataset import load_dataset
from components.data.snapshot import snapshot
from components.studies.scaling_cell import train_pair_count, write_train_share
from tests.data_world import write_folder


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetArtifact:
    folder = tmp_path / "dataset"
    folder.mkdir()
    return snapshot(DataConfig(source=str(write_folder(tmp_path / "source"))), folder)


def share_of(dataset: DatasetArtifact, share: float, folder: Path) -> DatasetArtifact:
    folder.mkdir()
    return write_train_share(dataset, share, 13, folder)


def test_the_share_is_kept_and_the_rest_is_the_same(dataset: DatasetArtifact, tmp_path: Path) -> None:
    half = share_of(dataset, 0.5, tmp_path / "half")
    ours, theirs = load_dataset(half), load_dataset(dataset)
    assert len(ours.judgements("train")) == 60 == half.counts["train_queries"] == train_pair_count(dataset, 0.5)
    for table in ("documents", "queries", "unlabelled"):
        pd.testing.assert_frame_equal(getattr(ours, table), getattr(theirs, table))
    for split in ("dev", "test"):
        pd.testing.assert_frame_equal(ours.judgements(split), theirs.judgements(split))
    assert half.parents == {"dataset": dataset.digest}
    verify(tmp_path / "half")


def test_a_smaller_share_is_part_of_a_larger_one(dataset: DatasetArtifact, tmp_path: Path) -> None:
    small, large = (set(load_dataset(share_of(dataset, s, tmp_path / str(s))).judgements("train")["query_id"]) for s in (0.25, 0.75))
    assert small < large and (len(small), len(large)) == (30, 90)
