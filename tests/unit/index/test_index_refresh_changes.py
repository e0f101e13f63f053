from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import DataError
from components.index.refresh import Changes, find_changes


def table(rows: dict[str, str] | list[tuple[str, str]]) -> pa.Table:
    pairs = list(rows.items()) if isinstance(rows, dict) else rows
    return pa.table({"doc_id": pa.array([i for i, _ in pairs], pa.string()), "content_hash": pa.array([h for _, h in pairs], pa.string())})


def found(index: list[tuple[str, str]], deleted: list[int], documents: dict[str, str]) -> Changes:
    return find_changes(table(index), np.array(deleted, np.int64), table(documents))


def test_added_changed_removed_and_unchanged_by_hand() -> None:
    changes = found([("a", "1"), ("b", "1"), ("c", "1"), ("d", "1")], [], {"d": "1", "e": "1", "b": "2", "a": "1"})
    assert (changes.added.tolist(), changes.changed.tolist()) == ([1], [2])  # rows of the documents: e and b
    assert (changes.removed.tolist(), changes.replaced.tolist()) == ([2], [1])  # rows of the index: c and the old b
    assert (changes.encoded.tolist(), changes.deleted.tolist()) == ([1, 2], [1, 2])
    assert changes.counts == {"added": 1, "changed": 1, "removed": 1, "unchanged": 2}
    assert changes


def test_the_same_documents_in_another_order_are_no_change() -> None:
    changes = found([("a", "1"), ("b", "2")], [], {"b": "2", "a": "1"})
    assert not changes
    assert changes.counts == {"added": 0, "changed": 0, "removed": 0, "unchanged": 2}


def test_rows_that_were_deleted_before_do_not_count() -> None:
    index = [("a", "1"), ("b", "1"), ("a", "2")]  # a was changed once: its first row is deleted
    assert not found(index, [0], {"a": "2", "b": "1"})
    back = found(index, [0], {"a": "1", "b": "1"})
    assert (back.changed.tolist(), back.replaced.tolist()) == ([0], [2])
    again = found(index, [0, 1], {"a": "2", "b": "1"})
    assert (again.added.tolist(), again.deleted.tolist()) == ([1], [])


def test_all_documents_may_go_or_come() -> None:
    assert found([("a", "1")], [], {}).removed.tolist() == [0]
    assert found([], [], {"a": "1", "b": "1"}).added.tolist() == [0, 1]
    assert not found([], [], {})


@pytest.mark.parametrize("other", ["1", "2"])
def test_two_documents_of_one_id_are_refused_as_the_index_could_hold_but_one(other: str) -> None:
    twice = table([("a", "1"), ("b", "1"), ("a", other)])
    with pytest.raises(DataError, match="1 documents have the id of another document"):
        find_changes(table({"a": "1", "b": "1"}), np.array([], np.int64), twice)


CORPUS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("123"))


@given(before=CORPUS, dead=CORPUS, after=CORPUS)
def test_the_rows_that_stay_and_those_encoded_make_up_the_documents(
    before: dict[str, str], dead: dict[str, str], after: dict[str, str]
) -> None:
    index = [*dead.items(), *before.items()]
    deleted = np.arange(len(dead), dtype=np.int64)
    changes = find_changes(table(index), deleted, table(after))
    gone = {*deleted.tolist(), *changes.deleted.tolist()}
    stay = [pair for row, pair in enumerate(index) if row not in gone]
    encoded = [pair for row, pair in enumerate(after.items()) if row in set(changes.encoded.tolist())]
    assert sorted(stay + encoded) == sorted(after.items())
    assert changes.unchanged == len(stay)
    assert bool(changes) == (before != after)
