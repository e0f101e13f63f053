from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data import sources
from components.data.config import DataConfig
from components.data.dataset import RawTables, judgement_table, query_table
from components.data.sources import hold_out_dev, keep_documents, read_source
from tests.data_world import queries, write_folder, write_lines, write_rows


def tables(judgements: list[tuple[str, str, int]], documents: int) -> RawTables:
    names = sorted({query for query, _, _ in judgements})
    ids = [f"d{n}" for n in range(documents)]
    frame = pd.DataFrame({"doc_id": ids, "title": ids, "text": ids, "metadata": "{}"})
    return RawTables(frame, query_table(list(names), list(names)), judgement_table(judgements, "train"), query_table([], []))


def test_dev_is_held_out_of_train_when_the_data_has_none(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "qrels" / "dev.tsv").unlink()
    config = DataConfig(source=str(folder), dev_share=0.25)
    first, second = read_source(config), read_source(config)
    assert first.judgements.groupby("split").size().to_dict() == {"dev": 30, "test": 120, "train": 90}
    assert first.notes["dev_held_out_of_train"] == 30
    pd.testing.assert_frame_equal(first.judgements, second.judgements)
    other = read_source(config.model_copy(update={"seed": 14}))
    assert not other.judgements["split"].equals(first.judgements["split"])


def test_data_with_dev_judgements_is_left_alone(tmp_path: Path) -> None:
    found = read_source(DataConfig(source=str(write_folder(tmp_path / "data"))))
    assert "dev_held_out_of_train" not in found.notes
    assert (found.judgements["split"] == "dev").sum() == 20


def test_queries_of_one_wording_are_held_out_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "qrels" / "dev.tsv").unlink()
    rows = queries()
    for n in range(120):
        rows[n]["text"] = f"Number {n // 3}" + "?" * (n % 3)
    write_rows(folder / "queries.jsonl", rows)
    judgements = read_source(DataConfig(source=str(folder), dev_share=0.2)).judgements
    held_out = {int(query[1:]) // 3 for query in judgements.loc[judgements["split"] == "dev", "query_id"]}
    trained = {int(query[1:]) // 3 for query in judgements.loc[judgements["split"] == "train", "query_id"]}
    assert len(held_out) == 8
    assert not held_out & trained


def test_queries_of_emoji_alone_are_held_out_one_by_one(tmp_path: Path) -> None:
    """They were one wording: all of them went to dev, or none, and data of such queries alone had no dev at all."""
    folder, rows = write_folder(tmp_path / "data"), queries()
    (folder / "qrels" / "dev.tsv").unlink()
    for number in range(120):
        rows[number]["text"] = f"🍕{chr(0x1F330 + number // 2)}"
    write_rows(folder / "queries.jsonl", rows)
    judgements = read_source(DataConfig(source=str(folder), dev_share=0.2)).judgements
    held_out = {int(query[1:]) // 2 for query in judgements.loc[judgements["split"] == "dev", "query_id"]}
    trained = {int(query[1:]) // 2 for query in judgements.loc[judgements["split"] == "train", "query_id"]}
    assert len(held_out) == 12 and not held_out & trained


def test_one_train_query_is_not_taken_away() -> None:
    found = hold_out_dev(tables([("q", "d0", 1)], 3), 0.4, 13)
    assert found.judgements["split"].tolist() == ["train"]


def test_a_subset_keeps_judged_documents_and_says_what_there_was(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    write_lines(folder / "qrels" / "train.tsv", [f"q{n}\td{n}\t1" for n in range(20)])
    write_lines(folder / "qrels" / "test.tsv", [f"q{n}\td{n}\t1" for n in range(140, 160)])
    found = read_source(DataConfig(source=str(folder), max_documents=100))
    assert len(found.documents) == 100
    assert len(found.judgements) == 60
    assert set(found.judgements["doc_id"]) <= set(found.documents["doc_id"])
    assert found.notes["source_documents"] == 260


def test_a_subset_does_not_hide_a_judgement_of_an_unknown_id(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    write_lines(folder / "qrels" / "train.tsv", ["q1\tno-document\t1", "no-query\td1\t1"])
    found = read_source(DataConfig(source=str(folder), max_documents=200))
    assert "no-document" in set(found.judgements["doc_id"])


judged = st.lists(
    st.tuples(st.sampled_from([f"q{n}" for n in range(8)]), st.sampled_from([f"d{n}" for n in range(12)]), st.integers(0, 2)),
    min_size=1,
    max_size=40,
    unique_by=lambda row: row[:2],
)


@settings(max_examples=60)
@given(judged, st.integers(1, 14), st.integers(0, 3))
def test_every_kept_query_keeps_all_its_relevant_documents(rows: list[tuple[str, str, int]], maximum: int, seed: int) -> None:
    found = keep_documents(tables(rows, 12), maximum, seed)
    kept, asked = set(found.documents["doc_id"]), set(found.queries["query_id"])
    assert len(kept) == min(maximum, 12)
    for query, document, score in rows:
        assert not (query in asked and score > 0) or document in kept
    assert set(found.judgements["query_id"]) <= asked
    assert set(found.judgements["doc_id"]) <= kept


@settings(max_examples=30)
@given(judged, st.integers(1, 11), st.randoms(use_true_random=False))
def test_the_subset_does_not_depend_on_the_order_of_the_rows(rows: list[tuple[str, str, int]], maximum: int, random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    first, second = (keep_documents(tables(order, 12), maximum, 13) for order in (rows, shuffled))
    assert set(first.documents["doc_id"]) == set(second.documents["doc_id"])


class CountingSet(set[str]):
    """A set that counts the members which its operations go through."""

    work = 0

    def __or__(self, other: Any) -> Any:
        CountingSet.work += len(self) + len(other)
        return CountingSet(super().__or__(other))

    def __ior__(self, other: Any) -> Any:
        CountingSet.work += len(other)
        return super().__ior__(other)

    def __sub__(self, other: Any) -> Any:
        CountingSet.work += len(self)
        return CountingSet(super().__sub__(other))


def test_choosing_documents_goes_through_each_query_once_and_not_through_all_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "set", CountingSet, raising=False)
    work = []
    for asked in (500, 1000):
        read = tables([(f"q{n}", f"d{n * 3 + place}", 1) for n in range(asked) for place in range(3)], 3 * asked)
        CountingSet.work = 0
        assert len(keep_documents(read, 2 * asked, 13).documents) == 2 * asked
        work.append(CountingSet.work)
    assert work[1] == pytest.approx(2 * work[0], rel=0.05)
