"""What the full release refuses before it trains anything, and what the candidate's page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.artifacts import DatasetArtifact
from components.data.config import DataConfig
from components.data.dataset import snapshot
from components.errors import ConfigError, DataError, ModelError
from components.promotion.gates import GateDecision
from components.tracking.registry import RegisteredVersion
from flows.config import RetrainConfig, load_config
from flows.registration import describe
from flows.retrain import require_usable
from tests.data_world import write_folder


@pytest.fixture
def dataset(tmp_path: Path) -> DatasetArtifact:
    (tmp_path / "snapshot").mkdir()
    return snapshot(DataConfig(source=str(write_folder(tmp_path / "data"))), tmp_path / "snapshot")


def config(**changes: Any) -> RetrainConfig:
    return load_config("smoke", None, {key.replace("__", "."): value for key, value in changes.items()})


def test_usable_data_and_settings_pass(dataset: DatasetArtifact) -> None:
    require_usable(config(evaluation__extra_splits=["dev"]), dataset)


def test_an_extra_split_without_judgements_is_refused(dataset: DatasetArtifact) -> None:
    with pytest.raises(DataError, match="no judgements for the split 'other'; it has: dev, test, train"):
        require_usable(config(evaluation__extra_splits=["other"]), dataset)


def test_a_share_of_queries_that_are_not_there_is_refused(dataset: DatasetArtifact) -> None:
    with pytest.raises(DataError, match="'unlabelled' a share"):
        require_usable(config(distillation__source_shares={"train": 0.5, "unlabelled": 0.5}), dataset)


def test_layers_that_do_not_exist_are_refused(dataset: DatasetArtifact) -> None:
    with pytest.raises(ModelError, match="layers"):
        require_usable(config(distillation__layers=[0, 7]), dataset)


@pytest.mark.parametrize(("key", "words"), [("HNWS32", "FAISS does not know the key"), ("IVF4096,Flat", "4,096 lists, but only")])
def test_an_index_that_cannot_be_made_is_refused(dataset: DatasetArtifact, key: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_usable(config(index__index_key=key), dataset)


def test_the_candidates_page_shows_the_shift_as_it_is() -> None:
    decision = GateDecision(verdict="pass", first_release=False, gates=())
    registered = RegisteredVersion.model_construct(name="demo-candidate", version=1)
    page = describe(decision, registered, "Extra judgements: other, 4 judged queries\nrecall@50  .9")
    assert "```\nExtra judgements: other, 4 judged queries\nrecall@50  .9\n```" in page
    assert "```" not in describe(decision, registered)
