from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from components.data import jsonl
from components.data.config import DataConfig
from components.data.dataset import load_dataset
from components.data.snapshot import snapshot
from components.data.sources import read_source, source_digest
from components.errors import DataError
from tests.data_world import documents, qrels, queries, write_folder, write_lines, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def read(folder: Path) -> pd.DataFrame:
    return read_source(DataConfig(source=str(folder))).judgements


def refused(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_source(DataConfig(source=str(folder)))
    return str(caught.value)


def test_reads_every_table_of_a_beir_folder(folder: Path) -> None:
    tables = read_source(DataConfig(source=str(folder)))
    assert tables.documents.iloc[7].to_dict() == {
        "doc_id": "d7",
        "title": "Entry 7",
        "text": "What entry 7 is about",
        "metadata": '{"n": 7}',
    }
    assert tables.queries.iloc[3].to_dict() == {"query_id": "q3", "text": "where is number 3?"}
    assert tables.judgements.groupby("split").size().to_dict() == {"dev": 20, "test": 120, "train": 120}
    assert tables.judgements["score"].dtype == "int64"
    assert tables.unlabelled.empty
    assert tables.notes["source_documents"] == 260


def test_gzip_parquet_and_missing_header_give_the_same_tables(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "qrels").mkdir(parents=True)
    with gzip.open(other / "corpus.jsonl.gz", "wt") as handle:
        handle.write((folder / "corpus.jsonl").read_text())
    pd.DataFrame(queries()).to_parquet(other / "queries.parquet")
    rows = [line.split("\t") for line in qrels("train")]
    frame = pd.DataFrame(rows, columns=["query-id", "corpus-id", "score"]).astype({"score": "int64"})
    frame.to_parquet(other / "qrels" / "train.parquet")
    write_lines(other / "qrels" / "dev.tsv", qrels("dev"))
    with gzip.open(other / "qrels" / "test.tsv.gz", "wt") as handle:
        handle.write("\r\n".join(qrels("test")))
    expected, found = read_source(DataConfig(source=str(folder))), read_source(DataConfig(source=str(other)))
    pd.testing.assert_frame_equal(found.documents, expected.documents)
    pd.testing.assert_frame_equal(found.queries, expected.queries)
    columns = ["split", "query_id", "doc_id", "score"]
    pd.testing.assert_frame_equal(
        found.judgements[columns].sort_values(columns, ignore_index=True),
        expected.judgements[columns].sort_values(columns, ignore_index=True),
    )


def test_documents_in_parquet_keep_structured_metadata_and_whole_number_ids(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    rows = [{"doc_id": n, "text": f"text {n}", "metadata": {"kind": "a"}} for n in range(3)]
    pd.DataFrame(rows).to_parquet(folder / "documents.parquet")
    found = read_source(DataConfig(source=str(folder))).documents
    assert found.iloc[2].to_dict() == {"doc_id": "2", "title": "", "text": "text 2", "metadata": '{"kind": "a"}'}


def test_further_splits_and_unlabelled_queries_are_kept(folder: Path) -> None:
    write_lines(folder / "qrels" / "test_other.tsv", ["q1\td1\t2", "q1\td2\t0"])
    write_rows(folder / "queries_unlabelled.jsonl", [{"_id": "u", "text": "a"}, {"text": "b"}])
    tables = read_source(DataConfig(source=str(folder)))
    assert tables.judgements.query("split == 'test_other'")["score"].tolist() == [2, 0]
    assert tables.unlabelled["query_id"].tolist() == ["u", "unlabelled-2"]


TRANSLATIONS = [
    {"_id": "de", "text": "wo ist 1?", "original": "where is number 1?"},
    {"text": "où est 2?", "original": "where is number 2?"},
]


@pytest.mark.parametrize("ending", ["jsonl", "tsv", "parquet"])
def test_translated_queries_are_read_with_their_originals(folder: Path, ending: str) -> None:
    path = folder / f"queries_translated.{ending}"
    if ending == "jsonl":
        write_rows(path, TRANSLATIONS)
    elif ending == "tsv":
        write_lines(path, ["translation_of\ttext", *(f"{row['original']}\t{row['text']}" for row in TRANSLATIONS)])
    else:
        pd.DataFrame(TRANSLATIONS)[["text", "original"]].to_parquet(path)
    before = source_digest(DataConfig(source=str(folder)))
    found = read_source(DataConfig(source=str(folder))).translated
    assert found[["text", "original"]].to_dict("records") == [{"text": r["text"], "original": r["original"]} for r in TRANSLATIONS]
    ids = {"jsonl": ["de", "translated-2"], "tsv": ["translated-2", "translated-3"], "parquet": ["translated-1", "translated-2"]}
    assert found["query_id"].tolist() == ids[ending]
    path.unlink()
    assert source_digest(DataConfig(source=str(folder))) != before
    assert read_source(DataConfig(source=str(folder))).translated.empty


@pytest.mark.parametrize("row", [{"text": "wo ist 1?"}, {"text": "wo ist 1?", "original": 7}, {"original": "where is number 1?"}])
def test_a_translation_without_its_original_is_refused_by_line(folder: Path, row: dict[str, object]) -> None:
    write_rows(folder / "queries_translated.jsonl", [TRANSLATIONS[0], row])
    with pytest.raises(DataError, match=r"queries_translated\.jsonl:2: the field (original|text) must be there and be text"):
        read_source(DataConfig(source=str(folder)))


def test_a_table_of_translations_without_originals_is_refused(folder: Path) -> None:
    pd.DataFrame({"text": ["wo ist 1?"]}).to_parquet(folder / "queries_translated.parquet")
    with pytest.raises(DataError, match="expected a column original; found text"):
        read_source(DataConfig(source=str(folder)))


def test_data_without_translations_has_the_digest_that_it_had(folder: Path, tmp_path: Path) -> None:
    plain = snapshot(DataConfig(source=str(folder)), made(tmp_path / "plain"))
    assert not (plain.path / "translated.parquet").exists() and "translated" not in plain.counts
    assert load_dataset(plain).translated.empty
    write_rows(folder / "queries_translated.jsonl", TRANSLATIONS)
    other = snapshot(DataConfig(source=str(folder)), made(tmp_path / "other"))
    assert other.digest != plain.digest and other.counts == {**plain.counts, "translated": 2}
    assert load_dataset(other).translated["original"].tolist() == ["where is number 1?", "where is number 2?"]


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_byte_order_mark_and_blank_lines_are_no_data(folder: Path) -> None:
    text = (folder / "corpus.jsonl").read_text()
    (folder / "corpus.jsonl").write_text("\ufeff" + text.replace("\n", "\n\n", 1), encoding="utf-8")
    assert len(read_source(DataConfig(source=str(folder))).documents) == 260


def test_files_that_were_put_together_are_read_like_one(folder: Path) -> None:
    expected = read_source(DataConfig(source=str(folder)))
    for path in (folder / "corpus.jsonl", folder / "qrels" / "train.tsv"):
        lines = path.read_text().splitlines()
        pieces = [("\ufeff" + "".join(f"{line}\r\n" for line in some)).encode() for some in (lines[:50], lines[50:])]
        path.with_name(path.name + ".gz").write_bytes(b"".join(map(gzip.compress, pieces)))
        path.unlink()
    found = read_source(DataConfig(source=str(folder)))
    pd.testing.assert_frame_equal(found.documents, expected.documents)
    pd.testing.assert_frame_equal(found.judgements, expected.judgements)


def test_a_text_with_a_line_separator_stays_one_record(folder: Path) -> None:
    rows = documents()
    rows[0]["text"] = "one\u2028two\x85three"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_lines(folder / "corpus.jsonl", lines)
    assert read_source(DataConfig(source=str(folder))).documents.iloc[0]["text"] == "one\u2028two\x85three"


def test_missing_folder_and_file_instead_of_folder(folder: Path) -> None:
    assert "does not exist" in refused(folder / "nothing")
    assert "is a file; expected a folder" in refused(folder / "corpus.jsonl")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_missing_table(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refused(folder)


def test_missing_judgements(folder: Path) -> None:
    for path in (folder / "qrels").iterdir():
        path.unlink()
    assert "holds no judgements" in refused(folder)


def test_a_table_that_is_there_twice(folder: Path) -> None:
    (folder / "corpus.jsonl.gz").write_bytes(b"")
    assert "the same table twice: corpus.jsonl and corpus.jsonl.gz" in refused(folder)
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "qrels" / "train.tsv.gz").write_bytes(b"")
    assert "the split 'train' twice" in refused(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "x", "text": ', "corpus.jsonl:261: not a line of JSON"),
        ('["x"]', "corpus.jsonl:261: expected a JSON object"),
        ('{"title": "t", "text": "x"}', "corpus.jsonl:261: the field _id must be there"),
        ('{"_id": "x", "body": "x"}', "the field text must be there and be text; the fields are: _id, body"),
        ('{"_id": "x", "text": 5}', "the field text must be there and be text; found 5"),
        ('{"_id": true, "text": "x"}', "the field _id must be there and be text; found True"),
        ('{"_id": "x", "text": "\\ud800"}', "the field text holds half a surrogate pair"),
        ('{"_id": "x", "\\ud800\\n": "x"}', r"the fields are: _id, \ud800\n."),
        ('{"_id": "x", "text": "x", "\\ud800": 1, "\\ud800": 2}', r"the key '\ud800' stands twice"),
    ],
)
def test_a_broken_line_is_named_by_file_and_number(folder: Path, line: str, message: str) -> None:
    with (folder / "corpus.jsonl").open("a") as handle:
        handle.write(line + "\n")
    assert message in refused(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q1 d1 1", "train.tsv:122: expected three columns separated by tabs"),
        ("q1\t0\td1\t1", "found 4"),
        ("q1\td1\thigh", "train.tsv:122: the score must be a whole number"),
        ("q1\td1\t0.5", "found '0.5'"),
        ("q1\td1\t1e300", "the score must be a whole number"),
        ("q1\td1\tnan", "the score must be a whole number"),
    ],
)
def test_a_broken_judgement_is_named_by_file_and_number(folder: Path, line: str, message: str) -> None:
    with (folder / "qrels" / "train.tsv").open("a") as handle:
        handle.write(line + "\n")
    assert message in refused(folder)


def test_a_first_line_that_is_no_header_is_not_swallowed(folder: Path) -> None:
    write_lines(folder / "qrels" / "train.tsv", ["q0\td0\tyes", *qrels("train")])
    assert "train.tsv:1: the score must be a whole number" in refused(folder)


def test_files_that_cannot_be_read(folder: Path) -> None:
    whole = gzip.compress((folder / "corpus.jsonl").read_bytes())
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.jsonl.gz").write_bytes(whole[:-40])
    assert "cannot be read" in refused(folder)
    (folder / "corpus.jsonl.gz").write_bytes(b"no gzip")
    assert "cannot be read" in refused(folder)
    (folder / "corpus.jsonl.gz").unlink()
    (folder / "corpus.jsonl").write_bytes(b'{"_id": "x", "text": "\xff"}\n')
    assert "not UTF-8" in refused(folder)
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.parquet").write_bytes(b"no parquet")
    assert "cannot be read as Parquet" in refused(folder)
    pd.DataFrame({"doc_id": ["a"], "body": ["b"]}).to_parquet(folder / "corpus.parquet")
    assert "expected a column text; found doc_id, body" in refused(folder)


def test_the_digest_follows_the_content_alone(folder: Path, tmp_path: Path) -> None:
    first = source_digest(DataConfig(source=str(folder)))
    assert source_digest(DataConfig(source=str(write_folder(tmp_path / "copy")))) == first
    (folder / "notes.txt").write_text("not a table")
    assert source_digest(DataConfig(source=str(folder))) == first
    with (folder / "corpus.jsonl").open("a") as handle:
        handle.write("\n")
    assert source_digest(DataConfig(source=str(folder))) != first


ODD_LINES = [
    '{"_id": "a", "title": null, "text": "one"}',
    "  ",
    '{"_id": 5, "title": "t", "text": null}',
    ' {"_id": "b", "title": "t", "text": "white space around"} ',
    '{"_id": "c", "text": "no title"}',
    '\ufeff{"_id": "d", "title": "t", "text": "of another file", "metadata": null}',
    '{"_id": "e", "title": "t", "text": "caf\\u00e9 \\ud83d\\ude00", "metadata": {"b": 1, "a": [null]}}',
    '{"docid": "f", "_id": "g", "title": "", "text": "", "metadata": {}}\r',
    *(f'{{"_id": "h{number}", "title": "t", "text": "all alike"}}' for number in range(9)),
]
BROKEN_LINES = {
    "a field of a line before one that is no JSON": ('{"_id": "x", "text": 5}', "{"),
    "metadata of a line before an id": ('{"_id": "x", "text": "", "metadata": []}', '{"_id": true, "text": "", "metadata": {}}'),
    "metadata that is no number in any program": ('{"_id": "x", "text": "", "metadata": {"a": 1e999}}',),
    "half a surrogate pair": ('{"_id": "x", "text": "\\udc00"}',),
    "an id with NUL": ('{"_id": "x\\u0000", "text": ""}',),
    "a key twice": ('{"_id": "x", "text": "", "text": ""}',),
    "two objects in a line": ('{"_id": "x", "text": ""} {"_id": "y", "text": ""}',),
    "an object in two lines": ('{"_id": "x",', '"text": ""}'),
    "no text": ('{"_id": "x", "title": ""}',),
    "no object": ("[]",),
}


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "_records", lambda lines: None)
    monkeypatch.setattr(jsonl, "_AT_ONCE", 1)


@pytest.mark.parametrize("at_once", [1, 2, 3, 512])
def test_lines_that_are_read_together_give_the_table_of_lines_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    write_lines(tmp_path / "corpus.jsonl", ODD_LINES)
    monkeypatch.setattr(jsonl, "_AT_ONCE", at_once)
    found = jsonl.read_documents(tmp_path / "corpus.jsonl")
    assert found.tail(10)["doc_id"].tolist() == ["f", *(f"h{number}" for number in range(9))]
    assert found["metadata"].tolist()[4:7] == ["{}", '{"a": [null], "b": 1}', "{}"]
    one_by_one(monkeypatch)
    pd.testing.assert_frame_equal(found, jsonl.read_documents(tmp_path / "corpus.jsonl"))


@pytest.mark.parametrize("lines", BROKEN_LINES.values(), ids=BROKEN_LINES.keys())
def test_a_block_of_lines_is_refused_for_the_first_fault_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: tuple[str, ...]
) -> None:
    write_lines(tmp_path / "corpus.jsonl", [*ODD_LINES, *lines])
    with pytest.raises(DataError) as caught:
        jsonl.read_documents(tmp_path / "corpus.jsonl")
    assert f"corpus.jsonl:{len(ODD_LINES) + 1}: " in str(caught.value)
    one_by_one(monkeypatch)
    with pytest.raises(DataError) as alone:
        jsonl.read_documents(tmp_path / "corpus.jsonl")
    assert str(caught.value) == str(alone.value)


def test_a_fault_in_a_line_is_told_before_that_the_file_breaks_off_behind_it(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": 1.5, "text": ""}\n' * 3 + b" " * 2**20 + b"\xff\n")
    with pytest.raises(DataError, match=r"corpus.jsonl:1: the field _id must be there and be text; found 1.5"):
        jsonl.read_documents(tmp_path / "corpus.jsonl")


def test_names_of_which_either_could_be_meant_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    write_rows(folder / "corpus.jsonl", [{"id": number, **row} for number, row in enumerate(documents())])
    with pytest.raises(DataError, match=r"corpus.jsonl:1: 'id' and '_id' are one name here"):
        read_source(DataConfig(source=str(folder)))
    (folder / "corpus.jsonl").unlink()
    frame = pd.DataFrame({"ID": range(3), "_id": list("abc"), "text": list("xyz")})
    frame.to_csv(folder / "corpus.csv", index=False)
    with pytest.raises(DataError, match=r"corpus.csv:1: 'ID' and '_id' are one name here"):
        read_source(DataConfig(source=str(folder)))
    (folder / "corpus.csv").unlink()
    frame.to_parquet(folder / "corpus.parquet")
    with pytest.raises(DataError, match=r"corpus.parquet: 'ID' and '_id' are one name here"):
        read_source(DataConfig(source=str(folder)))


def test_a_quote_that_would_swallow_rows_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "corpus.jsonl").unlink()
    write_lines(folder / "corpus.tsv", ["_id\ttitle\ttext", 'a\t\t"To be', "b\t\tmore", 'c\t\tor not to be"'])
    with pytest.raises(DataError, match=r"corpus.tsv:\d+: the quote of 'To be' ends here, and whole rows stand within it"):
        read_source(DataConfig(source=str(folder)))
    write_lines(folder / "corpus.tsv", ["_id\ttitle\ttext", 'a\t\t"two', 'lines"'])
    assert read_source(DataConfig(source=str(folder))).documents["text"].tolist() == ["two\nlines"]
