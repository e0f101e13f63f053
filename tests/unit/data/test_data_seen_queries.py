"""Queries that a release was trained on, and new test queries of a refresh that are among them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.data.dataset import Dataset
from components.data.left_out import SEEN_FILE, load_seen, require_unseen, seen_queries, shared_queries, write_seen
from components.errors import ArtifactError, DataError
from flows.candidate import CandidateParts, with_queries_in_common
from flows.config import load_config


def data(**splits: list[str]) -> Dataset:
    """One document; each split's queries have these texts."""
    rows = [(f"{split}{n}", text, split) for split, texts in splits.items() for n, text in enumerate(texts)]
    return Dataset(
        documents=pd.DataFrame([("d", "T", "text", "{}", "h")], columns=["doc_id", "title", "text", "metadata", "content_hash"]),
        queries=pd.DataFrame([row[:2] for row in rows], columns=["query_id", "text"]),
        all_judgements=pd.DataFrame([(i, "d", 1, s) for i, _, s in rows], columns=["query_id", "doc_id", "score", "split"]),
        unlabelled=pd.DataFrame({"query_id": [], "text": []}),
    )


BEFORE = data(train=["heart attack", "kidney stone", "?!"], test=["fever"])


def test_a_test_query_that_was_a_train_query_of_the_towers_is_refused_by_name() -> None:
    moved = data(train=["kidney stone"], test=["fever", "Heart  attack!"])
    with pytest.raises(DataError, match=r"1 of 2 judged queries of the split 'test' were train queries of release/1.*'test1'"):
        require_unseen(moved, ["test"], seen_queries(BEFORE), "release/1")


def test_new_queries_and_those_that_stayed_are_fine() -> None:
    require_unseen(data(train=["cough"], test=["fever", "sore throat", "..."], dev=["pain"]), ["test", "dev"], seen_queries(BEFORE), "r")


def test_a_query_that_the_data_itself_trains_on_is_left_to_the_contracts() -> None:
    require_unseen(data(train=["heart attack"], test=["heart attack"]), ["test"], seen_queries(BEFORE), "r")


def test_every_split_that_is_measured_is_looked_at() -> None:
    with pytest.raises(DataError, match="'shifted'"):
        require_unseen(data(train=["x"], test=["y"], shifted=["KIDNEY STONE"]), ["test", "shifted"], seen_queries(BEFORE), "r")


def test_a_query_refresh_adds_to_what_the_towers_have_seen(tmp_path: Path) -> None:
    both = seen_queries(data(train=["cough", "heart attack"]), seen_queries(BEFORE))
    write_seen(tmp_path, both)
    found = load_seen(tmp_path)
    assert found is not None and len(found) == 4 and (np.diff(found.astype(object)) > 0).all()
    for text in ("cough", "heart attack", "kidney stone"):
        with pytest.raises(DataError):
            require_unseen(data(train=["x"], test=[text]), ["test"], found, "r")


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_broken_list_is_named_and_none_is_no_error(tmp_path: Path, content: bytes | None) -> None:
    assert load_seen(tmp_path) is None
    if content is None:
        np.save(tmp_path / SEEN_FILE, np.zeros(3))
    else:
        (tmp_path / SEEN_FILE).write_bytes(content)
    with pytest.raises(ArtifactError, match=SEEN_FILE):
        load_seen(tmp_path)


def test_without_a_train_query_the_list_is_empty(tmp_path: Path) -> None:
    none = data(train=[""], test=["fever"])
    write_seen(tmp_path, seen_queries(none)[:0])
    found = load_seen(tmp_path)
    assert found is not None and len(found) == 0
    require_unseen(BEFORE, ["test"], found, "r")


def test_a_further_split_of_dev_or_test_queries_under_another_name_is_no_other_queries() -> None:
    given = data(train=["x"], dev=["Heart attack"], test=["fever", "cough"], others=["sore throat", "heart  ATTACK?"], mine=["pain"])
    assert shared_queries(given, ["mine"], ["dev", "test"], refused=True) == []
    assert shared_queries(given, ["others"], ["test", "absent"], refused=True) == []
    with pytest.raises(DataError, match="1 of 2 judged queries of the split 'others' are queries of 'dev' but for case and punctuation"):
        shared_queries(given, ["mine", "others"], ["dev", "test"], refused=True)
    (said,) = shared_queries(given, ["mine", "others"], ["dev", "test"], refused=False)
    assert "1 of 2 judged queries of the split 'others'" in said


def test_one_shared_query_in_a_hundred_is_told_and_does_not_stop_a_training() -> None:
    given = data(train=["x"], dev=["heart attack"], test=["fever"], others=["fever", *(f"pain {n}" for n in range(99))])
    (said,) = shared_queries(given, ["others"], ["dev", "test"], refused=True)
    assert said.startswith("1 of 100 judged queries of the split 'others' are queries of 'test'")
    assert shared_queries(given, ["others"], ["dev"], refused=True) == []


def test_queries_that_splits_share_stand_in_what_a_reviewer_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh that was warned of them at night goes on, and nobody sees its terminal."""
    given = data(train=["x"], dev=["heart attack"], test=["fever"], others=["fever", "cough"])
    monkeypatch.setattr("components.data.dataset.load_dataset", lambda _: given)
    parts: Any = CandidateParts(*[SimpleNamespace(path=Path("x"))] * 7, notes=("Index refresh.",))  # type: ignore[arg-type]
    asked = {"evaluation.extra_splits": ["others"], "policy.min_off_distribution_retention": 0.9}
    first, said = with_queries_in_common(load_config("demo", overrides=asked), parts).notes
    assert first == "Index refresh." and said.startswith("1 of 2 judged queries of the split 'others' are queries of 'test'")
    assert with_queries_in_common(load_config("demo"), parts) is parts
