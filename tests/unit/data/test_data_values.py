"""What is read is what is meant: JSON that programs read in different ways, metadata, kinds of Parquet columns, invisible texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data.config import DataConfig
from components.data.dataset import load_dataset
from components.data.snapshot import snapshot
from components.data.sources import read_source
from components.errors import DataError
from components.text import is_blank
from tests.data_world import documents, queries, write_folder, write_lines, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def with_line(folder: Path, name: str, line: str) -> str:
    """Add a line to a file and return the message that refuses it."""
    with (folder / name).open("a", encoding="utf-8") as handle:
        handle.write(line + "\n")
    with pytest.raises(DataError) as caught:
        read_source(DataConfig(source=str(folder)))
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "a", "text": "x", "_id": "b"}', "the key '_id' stands twice in one object. Programs would read this line in different"),
        ('{"_id": "a", "text": "x", "metadata": {"n": 1, "n": 2}}', "the key 'n' stands twice in one object"),
        ('{"_id": "a", "text": "x", "metadata": {"n": NaN}}', "NaN is not a JSON value; write null"),
        ('{"_id": "a", "text": "x", "metadata": {"n": -Infinity}}', "-Infinity is not a JSON value; write null"),
        ('{"_id": "a", "text": "x", "title": NaN}', "NaN is not a JSON value; write null"),
        ('{"_id": "a", "text": "x", "metadata": {"n": 1e999}}', "the field metadata is no JSON object (Out of range float values"),
        ('{"_id": "a", "text": "x", "metadata": "web"}', 'the field metadata must be an object, such as {"source": "web"}; found \'web\''),
        ('{"_id": "a", "text": "x", "metadata": ""}', "the field metadata must be an object"),
        ('{"_id": "a", "text": "x", "metadata": [1]}', "the field metadata must be an object"),
        ('{"_id": "a", "text": "x", "metadata": 0}', "the field metadata must be an object"),
        ('{"_id": "a", "text": "x", "metadata": {"a": "\\ud800"}}', "the field metadata holds half a surrogate pair"),
        ('{"_id": "a", "text": "x", "metadata": {"\\ud800": 1}}', "the field metadata holds half a surrogate pair"),
        ('{"_id": "a\\u0000", "text": "x"}', "the id 'a\\x00' holds the character NUL"),
        ('{"_id": 1.0, "text": "x"}', "the field _id must be there and be text; found 1.0"),
        ('{"_id": "a", "text": ' + "9" * 5000 + "}", "not a line of JSON"),
    ],
)
def test_a_line_that_could_be_read_in_two_ways_is_refused(folder: Path, line: str, message: str) -> None:
    found = with_line(folder, "corpus.jsonl", line)
    assert message in found
    assert "corpus.jsonl:261: " in found


def test_a_key_twice_in_a_query_and_in_a_judgement_is_refused(folder: Path) -> None:
    assert "queries.jsonl:261: the key 'text'" in with_line(folder, "queries.jsonl", '{"_id": "a", "text": "x", "text": "y"}')
    write_rows(folder / "queries.jsonl", queries())
    line = '{"query-id": "q1", "corpus-id": "d1", "score": 1, "score": 0}'
    assert "test_far.jsonl:1: the key 'score'" in with_line(folder, "qrels/test_far.jsonl", line)


def test_metadata_that_is_null_or_missing_is_an_empty_object_and_keeps_its_values(folder: Path) -> None:
    rows = documents()
    rows[0]["metadata"], rows[1]["metadata"] = None, {"z": [1, None], "a": {"é": True}}
    del rows[2]["metadata"]
    write_rows(folder / "corpus.jsonl", rows)
    found = read_source(DataConfig(source=str(folder))).documents["metadata"]
    assert found.iloc[:4].tolist() == ["{}", '{"a": {"é": true}, "z": [1, null]}', "{}", '{"n": 3}']


def test_other_names_of_the_id_are_known_and_the_usual_one_comes_first(folder: Path) -> None:
    rows = [{"id": row["_id"], "title": row["title"], "text": row["text"], "url": "x"} for row in documents()]
    rows[0] = {"id": 99, "doc_id": "d0", **{key: value for key, value in rows[0].items() if key != "id"}}
    write_rows(folder / "corpus.jsonl", rows)
    assert read_source(DataConfig(source=str(folder))).documents["doc_id"].tolist() == [f"d{n}" for n in range(260)]


def parquet_corpus(folder: Path, columns: dict[str, Any]) -> pd.DataFrame:
    (folder / "corpus.jsonl").unlink(missing_ok=True)
    pq.write_table(pa.table(columns), folder / "corpus.parquet")
    return read_source(DataConfig(source=str(folder))).documents


TEXTS = ["one", "zwei", "drei ü"]


@pytest.mark.parametrize(
    ("ids", "texts"),
    [
        (pa.array([b"a", b"b", b"c"]), pa.array([text.encode() for text in TEXTS])),
        (pa.array([b"a", b"b", b"c"], pa.large_binary()), pa.array(TEXTS, pa.large_string())),
        (pa.array(["a", "b", "c"]).dictionary_encode(), pa.array([t.encode() for t in TEXTS]).dictionary_encode()),
        (pa.array(["a", "b", "c"], pa.string_view()), pa.array(TEXTS, pa.string_view())),
    ],
)
def test_text_is_read_from_every_kind_of_column_that_holds_it(folder: Path, ids: pa.Array, texts: pa.Array) -> None:
    found = parquet_corpus(folder, {"_id": ids, "text": texts, "__index_level_0__": pa.array([7, 8, 9])})
    assert found["doc_id"].tolist() == ["a", "b", "c"]
    assert found["text"].tolist() == TEXTS


def test_whole_numbers_of_any_kind_are_ids(folder: Path) -> None:
    for kind in (pa.int16(), pa.uint64(), pa.decimal128(10, 0)):
        found = parquet_corpus(folder, {"_id": pa.array([1, 20, 300], kind), "text": pa.array(TEXTS)})
        assert found["doc_id"].tolist() == ["1", "20", "300"]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_words_that_spreadsheets_take_for_nothing_and_leading_zeros_are_ids(folder: Path, ending: str) -> None:
    rows = [("NA", "NULL"), ("nan", "None"), ("007", "1e5"), ("TRUE", "x" * 300_000), ("1.0", "-"), ("=1", "a;b")]
    (folder / "corpus.jsonl").unlink()
    text = ending.join(["_id,text", *(f"{doc_id},{text}" for doc_id, text in rows)])
    (folder / "corpus.csv").write_bytes(text.encode())
    found = read_source(DataConfig(source=str(folder))).documents
    assert list(found[["doc_id", "text"]].itertuples(index=False, name=None)) == rows


def test_ids_that_look_alike_are_kept_apart(folder: Path) -> None:
    ids = ["A", "a", "\u00e9", "e\u0301", "\ufb01", "fi", "\u0130", "i", "\u212a", "K"]
    write_rows(folder / "corpus.jsonl", [{"_id": doc_id, "text": f"text {number}"} for number, doc_id in enumerate(ids)])
    assert read_source(DataConfig(source=str(folder))).documents["doc_id"].tolist() == ids


def test_metadata_of_parquet_may_be_a_structure_a_map_or_json(folder: Path) -> None:
    columns = {
        "structure": pa.array([{"a": 1}, None, {"a": None}]),
        "map": pa.array([[("a", 1)], None, [("a", None)]], pa.map_(pa.string(), pa.int64())),
        "text": pa.array(['{"a":1}', "", '{"a": null}']),
        "bytes": pa.array([b'{"a":1}', None, b'{"a": null}']),
    }
    for column in columns.values():
        found = parquet_corpus(folder, {"_id": pa.array(["a", "b", "c"]), "text": pa.array(TEXTS), "metadata": column})
        assert found["metadata"].tolist() == ['{"a": 1}', "{}", '{"a": null}']


TO_NUMBER = pa.map_(pa.string(), pa.int64())


def test_maps_within_metadata_are_objects_too_and_bytes_in_the_place_of_their_keys_are_text(folder: Path) -> None:
    columns = (
        structures(pa.array([[("a", 1)], [], None], TO_NUMBER)),
        structures(pa.array([[(b"a", 1)], [], None], pa.map_(pa.binary(), pa.int64()))),
    )
    for column in columns:
        found = parquet_corpus(folder, {"_id": pa.array(["a", "b", "c"]), "text": pa.array(TEXTS), "metadata": column})
        assert found["metadata"].tolist() == ['{"field": {"a": 1}}', '{"field": {}}', '{"field": null}']
    listed = pa.array([[[("a", 1)], []], None], pa.list_(TO_NUMBER))
    found = parquet_corpus(folder, {"_id": pa.array(["a", "b"]), "text": pa.array(TEXTS[:2]), "metadata": structures(listed)})
    assert found["metadata"].tolist() == ['{"field": [{"a": 1}, {}]}', '{"field": null}']


TWICE = pa.array([[("a", 1)], [("b", 1), ("b", 2)]], TO_NUMBER)


def structures(column: pa.Array) -> pa.Array:
    """A column of structures with one field."""
    return pa.StructArray.from_arrays([column], names=["field"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"_id": pa.array(["a"]), "text": pa.array([b"\xff\xfe"])}, "corpus.parquet, text, row 1: not UTF-8"),
        (
            {"_id": pa.array(["a", "b"]), "text": pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"]).buffers())},
            "corpus.parquet, text, row 2: not UTF-8. Convert the column to UTF-8",
        ),
        ({"_id": pa.array([1.5]), "text": pa.array(["x"])}, "corpus.parquet, doc_id: expected a column of text; found double. Cast it"),
        ({"_id": pa.array(["a"]), "text": pa.array([["x"]])}, "corpus.parquet, text: expected a column of text; found list"),
        (
            {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": pa.array(["web"])},
            "metadata, row 1: the column metadata must hold",
        ),
        (
            {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": pa.array([{"n": float("nan")}])},
            "corpus.parquet, metadata, row 1: the field metadata is no JSON object",
        ),
        (
            {"_id": pa.array(["a", "b"]), "text": pa.array(["x", "y"]), "metadata": structures(pa.array([1, 10**7], pa.date32()))},
            "corpus.parquet, metadata, row 2: cannot be read",
        ),
        (
            {
                "_id": pa.array(["a", "b"]),
                "text": pa.array(["x", "y"]),
                "metadata": structures(pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff"]).buffers())),
            },
            "corpus.parquet, metadata, row 2: not UTF-8",
        ),
        (
            {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": structures(pa.array([b"\xff"]))},
            "corpus.parquet, metadata, row 1: the field metadata is no JSON object ('utf-8' codec",
        ),
        ({"_id": pa.array(["a", "b"]), "text": pa.array(["x", "y"]), "metadata": TWICE}, "metadata, row 2: the key 'b' stands twice"),
        (
            {"_id": pa.array(["a", "b"]), "text": pa.array(["x", "y"]), "metadata": structures(TWICE)},
            "corpus.parquet, metadata, row 2: the key 'b' stands twice in one object. One of the two would be lost",
        ),
        (
            {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": pa.array([[(b"\xff", 1)]], pa.map_(pa.binary(), pa.int64()))},
            "corpus.parquet, metadata, row 1: a key is not UTF-8",
        ),
        (
            {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": pa.array([[([], 1)]], pa.map_(pa.list_(pa.int64()), pa.int64()))},
            "corpus.parquet, metadata, row 1: a key of a map is no text",
        ),
        (
            {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": structures(pa.array([1], pa.timestamp("us", "Mars/Olympus")))},
            "corpus.parquet, metadata, row 1: cannot be read ('Mars/Olympus')",
        ),
        ({"_id": pa.array(["a", "b\0"]), "text": pa.array(["x", "y"])}, "corpus.parquet, row 2: the id 'b\\x00' holds the character NUL"),
    ],
)
def test_a_column_that_is_no_text_is_named(folder: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parquet_corpus(folder, columns)
    assert message in str(caught.value)


def test_bytes_within_metadata_are_text(folder: Path) -> None:
    found = parquet_corpus(folder, {"_id": pa.array(["a"]), "text": pa.array(["x"]), "metadata": structures(pa.array(["ü".encode()]))})
    assert found["metadata"].tolist() == ['{"field": "ü"}']


def test_a_long_grade_is_not_shown_whole(folder: Path) -> None:
    write_lines(folder / "qrels" / "test.tsv", ["q1\td1\t" + "9" * 5000])
    with pytest.raises(DataError) as caught:
        read_source(DataConfig(source=str(folder)))
    assert "the score must be a whole number" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("score", [[1], {"a": 1}, True, 0.5, float("nan"), None, "1_0"])
def test_a_grade_in_parquet_that_is_no_whole_number_is_refused(folder: Path, score: object) -> None:
    (folder / "qrels" / "test.tsv").unlink()
    pq.write_table(pa.table({"query-id": ["q1"], "corpus-id": ["d1"], "score": [score]}), folder / "qrels" / "test.parquet")
    with pytest.raises(DataError, match=r"test\.parquet, (row 1: the score must be|score: expected a column of whole numbers)"):
        read_source(DataConfig(source=str(folder)))


def test_two_columns_of_one_name_are_refused(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array(["y"])], names=["_id", "text", "text"])
    pq.write_table(table, folder / "corpus.parquet")
    with pytest.raises(DataError, match="two columns are named 'text'"):
        read_source(DataConfig(source=str(folder)))


def test_a_title_that_is_null_is_empty_in_every_format(folder: Path) -> None:
    rows = [{**row, "title": None if row["_id"] == "d3" else row["title"]} for row in documents()]
    write_rows(folder / "corpus.jsonl", rows)
    as_json = read_source(DataConfig(source=str(folder))).documents
    (folder / "corpus.jsonl").unlink()
    pd.DataFrame(rows).to_parquet(folder / "corpus.parquet")
    pd.testing.assert_frame_equal(read_source(DataConfig(source=str(folder))).documents, as_json)
    assert as_json.iloc[3]["title"] == ""


@pytest.mark.parametrize("text", ["", " \n", "\u200b\u00ad", "\ufeff", "\u3164", "\u2800\u00a0", "\x00\x1f", "\ufe0f", "\U000e0041"])
def test_what_nobody_sees_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "\u200ba", "。", "-", "के", "\u0301", "🙂", "0"])
def test_what_somebody_sees_is_not_blank(text: str) -> None:
    assert not is_blank(text)


def test_data_that_changes_while_it_is_read_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = DataConfig(source=str(folder)), tmp_path / "out"
    out.mkdir()

    def read_while_written(given: DataConfig) -> Any:
        tables = read_source(given)
        write_rows(folder / "corpus.jsonl", documents()[:7])
        return tables

    monkeypatch.setattr("components.data.snapshot.read_source", read_while_written)
    with pytest.raises(DataError, match="changed while it was read"):
        snapshot(config, out)
    assert not (out / "manifest.json").exists()
    with pytest.raises(DataError, match="changed while it was read"):
        snapshot(config, out, expected="0" * 64)


def test_ids_stand_in_the_snapshot_as_they_are_in_the_files(folder: Path, tmp_path: Path) -> None:
    write_rows(folder / "corpus.jsonl", [*documents(), {"_id": " d ", "text": "x", "metadata": {}}])
    out = tmp_path / "out"
    out.mkdir()
    dataset = load_dataset(snapshot(DataConfig(source=str(folder)), out))
    assert dataset.documents["doc_id"].tolist()[-1] == " d "
    assert json.loads(dataset.documents["metadata"].iloc[-1]) == {}
