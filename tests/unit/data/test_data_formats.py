"""The formats in which people have their data: every one gives the same tables."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.data.config import DataConfig
from components.data.dataset import RawTables
from components.data.delimited import read_documents, read_qrels
from components.data.layout import locate
from components.data.sources import read_source
from components.errors import DataError
from tests.data_world import SPLITS, Row, documents, qrels, queries, write_folder, write_lines, write_rows
from tests.third_party import there

COLUMNS = ["split", "query_id", "doc_id", "score"]


def read(folder: Path) -> RawTables:
    return read_source(DataConfig(source=str(folder)))


def rows_of(split: str) -> list[list[str]]:
    return [line.split("\t") for line in qrels(split)]


def frame_of(split: str, score: type = int) -> pd.DataFrame:
    frame = pd.DataFrame(rows_of(split), columns=["query-id", "corpus-id", "score"])
    return frame.assign(score=frame["score"].astype(score))


def csv_text(header: list[str], rows: list[list[str]], separator: str = ",") -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=separator).writerows([header, *rows])
    return out.getvalue()


def text_tables(folder: Path, separator: str, ending: str) -> None:
    """Corpus and queries as tables with a header."""
    found = [[json.dumps(row["metadata"]), row["text"], row["_id"], row["title"]] for row in documents()]
    (folder / f"corpus{ending}").write_text(csv_text(["metadata", "text", "_id", "title"], found, separator))
    (folder / f"queries{ending}").write_text(csv_text(["id", "text"], [[row["_id"], row["text"]] for row in queries()], separator))


def json_tables(folder: Path) -> None:
    write_rows(folder / "corpus.jsonl", documents())
    write_rows(folder / "queries.jsonl", queries())


def write_split(folder: Path, name: Callable[[str], str], lines: Callable[[str], list[str]]) -> None:
    json_tables(folder)
    for split in SPLITS:
        write_lines(folder / "qrels" / name(split), lines(split))


def trec(mark: str, header: str = "") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        lines = {split: [mark.join([q, "0", d, s]) for q, d, s in rows_of(split)] for split in SPLITS}
        write_split(folder, lambda split: f"{split}.txt", lambda split: [*([header] if header else []), *lines[split]])

    return write


def mteb(folder: Path) -> None:
    """Judgements as JSON Lines, as the hub has MTEB's sets."""
    json_tables(folder)
    for split in SPLITS:
        rows: list[Row] = [{"query-id": q, "corpus-id": d, "score": float(s)} for q, d, s in rows_of(split)]
        write_rows(folder / "qrels" / f"{split}.jsonl", rows)


def parquet(folder: Path, places: tuple[str, str, Callable[[str], str]], score: type = int) -> None:
    """Everything in Parquet: `places` are the files of corpus, queries and a split's judgements."""
    corpus, query_file, judged = places
    frames = [(corpus, pd.DataFrame(documents())), (query_file, pd.DataFrame(queries()))]
    for name, frame in [*frames, *((judged(split), frame_of(split, score)) for split in SPLITS)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(folder / name)


def hub(folder: Path) -> None:
    places = (
        "corpus/corpus-00000-of-00001.parquet",
        "queries/queries-00000-of-00001.parquet",
        lambda s: f"data/{s}-00000-of-00001.parquet",
    )
    parquet(folder, places, float)
    (folder / "README.md").write_text("# a card")


def converted(folder: Path) -> None:
    parquet(folder, ("corpus/corpus/0000.parquet", "queries/queries/0000.parquet", lambda split: f"default/{split}/0000.parquet"))


def spark(folder: Path) -> None:
    parquet(
        folder, ("corpus.parquet/part-0.snappy.parquet", "queries.parquet/part-0.parquet", lambda s: f"qrels/{s}.parquet/part-0.parquet")
    )
    for name in ("corpus.parquet", "qrels/test.parquet"):
        (folder / name / "_SUCCESS").write_text("")


def saved(folder: Path) -> None:
    """Everything as `save_to_disk` of the package datasets leaves it: a table, or a dictionary of splits."""
    frames = {"corpus/train": pd.DataFrame(documents()), "queries": pd.DataFrame(queries())}
    for name, frame in {**frames, **{f"qrels/{split}": frame_of(split) for split in SPLITS}}.items():
        (folder / name).mkdir(parents=True)
        table = pa.Table.from_pandas(frame)
        with pa.ipc.new_stream(folder / name / "data-00000-of-00001.arrow", table.schema) as out:
            out.write_table(table, max_chunksize=50)
        for mark in ("dataset_info.json", "state.json"):
            (folder / name / mark).write_text("{}")
    for name in ("corpus", "qrels"):
        (folder / name / "dataset_dict.json").write_text('{"splits": []}')


def feather(folder: Path) -> None:
    """Everything in the other form of Arrow's files."""
    for name, frame in (("corpus", documents()), ("queries", queries()), *((f"qrels/{split}", frame_of(split)) for split in SPLITS)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(frame).to_feather(folder / f"{name}.arrow")


def tables_with(separator: str, ending: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        text_tables(folder, separator, ending)
        for split in SPLITS:
            rows = [[s, d, q] for q, d, s in rows_of(split)]
            write_lines(folder / "qrels" / f"{split}{ending}", csv_text(["score", "corpus-id", "query-id"], rows, separator).splitlines())

    return write


FORMATS: dict[str, Callable[[Path], None]] = {
    "TREC with blanks": trec(" "),
    "TREC with many blanks": trec("   "),
    "TREC with tabs": trec("\t"),
    "TREC with a header": trec("\t", "query-id\titer\tcorpus-id\tscore"),
    "TREC with a header of blanks": trec(" ", "topic iteration docno rel"),
    "three columns with blanks": lambda folder: write_split(
        folder, lambda split: f"{split}.txt", lambda split: [" ".join(row) for row in rows_of(split)]
    ),
    "header in another order": lambda folder: write_split(
        folder, lambda s: f"{s}.tsv", lambda s: ["query-id\tscore\tcorpus-id", *(f"{q}\t{n}\t{d}" for q, d, n in rows_of(s))]
    ),
    "header with further columns": lambda folder: write_split(
        folder,
        lambda s: f"{s}.tsv",
        lambda s: ["\tdoc_id\tquery_id\tnote\trelevance", *(f"7\t{d}\t{q}\tx\t{n}.0" for q, d, n in rows_of(s))],
    ),
    "quoted, as R writes": lambda folder: write_split(
        folder, lambda s: f"{s}.tsv", lambda s: ['"query-id"\t"corpus-id"\t"score"', *(f'"{q}"\t"{d}"\t"{n}"' for q, d, n in rows_of(s))]
    ),
    "empty last columns": lambda folder: write_split(folder, lambda s: f"{s}.tsv", lambda s: [f"{line}\t\t" for line in qrels(s)]),
    "line ends and mark of Windows": lambda folder: write_split(
        folder, lambda s: f"{s}.tsv", lambda s: ["\ufeffquery-id\tcorpus-id\tscore\r", *(f"{line}\r" for line in qrels(s))]
    ),
    "grades as 1.0, +1 and 1e0": lambda folder: write_split(
        folder,
        lambda s: f"{s}.tsv",
        lambda s: [f"{q}\t{d}\t{grade}" for (q, d, _), grade in zip(rows_of(s), ["1.0", "+1", "1e0", " 1 "] * 40, strict=False)],
    ),
    "validation for dev": lambda folder: write_split(folder, lambda s: f"{'validation' if s == 'dev' else s}.tsv", qrels),
    "judgements in JSON Lines": mteb,
    "hub, in Parquet": hub,
    "hub, converted to Parquet": converted,
    "folders of Spark": spark,
    "saved by the package datasets": saved,
    "Feather": feather,
    "comma-separated": tables_with(",", ".csv"),
    "semicolon-separated": tables_with(";", ".csv"),
    "tab-separated": tables_with("\t", ".tsv"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_tables(tmp_path: Path, name: str) -> None:
    expected = read(write_folder(tmp_path / "expected"))
    folder = tmp_path / "data"
    FORMATS[name](folder)
    found = read(folder)
    pd.testing.assert_frame_equal(found.documents, expected.documents)
    pd.testing.assert_frame_equal(found.queries, expected.queries)
    both = [tables.judgements[COLUMNS].sort_values(COLUMNS, ignore_index=True) for tables in (found, expected)]
    pd.testing.assert_frame_equal(*both)
    assert "dev_held_out_of_train" not in found.notes


@pytest.mark.skipif(not there("datasets"), reason="the package datasets is not installed")
def test_what_the_package_datasets_saves_is_read(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    Dataset.from_list(documents()).save_to_disk(tmp_path / "data" / "corpus", num_shards=2)
    DatasetDict({"all": Dataset.from_list(queries())}).save_to_disk(tmp_path / "data" / "queries")
    DatasetDict({split: Dataset.from_pandas(frame_of(split)) for split in SPLITS}).save_to_disk(tmp_path / "data" / "qrels")
    found, expected = read(tmp_path / "data"), read(write_folder(tmp_path / "expected"))
    pd.testing.assert_frame_equal(found.documents, expected.documents)
    assert found.judgements.groupby("split").size().to_dict() == {"dev": 20, "test": 120, "train": 120}
    assert locate(tmp_path / "data").unread == {}


@pytest.mark.parametrize("content", [b"", b"_id,text", b"ARROW1", b"\xff\xff\xff\xff\x10\x00"])
def test_an_arrow_file_that_is_none_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.arrow").write_bytes(content)
    with pytest.raises(DataError, match=r"corpus\.arrow cannot be read as Arrow .*Write the file again\."):
        read(folder)


@pytest.mark.parametrize("before", [b"d0", b"\xff"])  # a fault that is told by its row does not hide that of a later batch
def test_an_arrow_file_that_was_damaged_is_one_sentence(tmp_path: Path, before: bytes) -> None:
    """Arrow maps it as it is: texts of less than no length ended in a SystemError, others were memory of something else."""
    folder, rows = write_folder(tmp_path / "data"), documents()
    (folder / "corpus.jsonl").unlink()
    ids = pa.array([row["_id"] for row in rows])
    ends = np.frombuffer(ids.buffers()[1], np.int32).copy()
    ends[8] = 2**30
    broken = pa.Array.from_buffers(pa.string(), len(ids), [None, pa.py_buffer(ends), ids.buffers()[2]])
    table = pa.table({"_id": broken, "text": [row["text"] for row in rows]})
    first = pa.Array.from_buffers(pa.string(), 1, pa.array([before]).buffers())
    with pa.ipc.new_stream(folder / "corpus.arrow", table.schema) as out:
        out.write_table(pa.table({"_id": first, "text": ["x"]}))
        out.write_table(table)
    with pytest.raises(DataError, match=r"corpus\.arrow cannot be read as Arrow .*Write the file again\."):
        read(folder)


def test_judgements_in_gzip_of_every_text_format(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    for path in (folder / "qrels").iterdir():
        path.unlink()
    texts = {
        "train.txt.gz": "\n".join(" ".join([q, "0", d, s]) for q, d, s in rows_of("train")),
        "dev.csv.gz": csv_text(["qid", "docid", "label"], rows_of("dev")),
        "test.jsonl.gz": "\n".join(json.dumps({"query_id": q, "doc_id": d, "relevance": int(s)}) for q, d, s in rows_of("test")),
    }
    for name, text in texts.items():
        (folder / "qrels" / name).write_bytes(gzip.compress(text.encode()))
    assert read(folder).judgements.groupby("split").size().to_dict() == {"dev": 20, "test": 120, "train": 120}


def test_a_quoted_cell_may_hold_the_separator_and_a_line_break(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "corpus.jsonl").unlink()
    rows = [[row["_id"], row["title"], row["text"]] for row in documents()]
    rows[0] = ["d0", "one, two", 'first "line"\nsecond,' + " long" * 40_000]
    (folder / "corpus.csv").write_text(csv_text(["_id", "title", "text"], rows))
    found = read(folder).documents
    assert found.iloc[0].to_dict() == {"doc_id": "d0", "title": "one, two", "text": rows[0][2], "metadata": "{}"}
    assert len(found) == 260


def test_a_comma_within_a_columns_name_does_not_part_a_file_of_semicolons(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "corpus.jsonl").unlink()
    rows = [[row["_id"], row["title"], row["text"], "x"] for row in documents()]
    (folder / "corpus.csv").write_text(csv_text(["_id", "title", "text", "note, long"], rows, ";"))
    assert len(read(folder).documents) == 260
    (folder / "corpus.csv").write_text("_id,text\r0,a\r1,b\r")  # the line ends of old Macs
    assert read_documents(folder / "corpus.csv")["text"].tolist() == ["a", "b"]


def qrels_of(path: Path, *lines: str) -> list[tuple[str, str, int]]:
    write_lines(path, list(lines))
    found = read_qrels(path, "train")
    return list(found[["query_id", "doc_id", "score"]].itertuples(index=False, name=None))


IDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), max_size=6)


@settings(max_examples=100)
@given(st.lists(st.tuples(IDS, IDS, st.integers(-5, 5)), min_size=1, max_size=5), st.sampled_from(["tsv", "csv"]), st.booleans())
def test_what_a_writer_of_such_files_wrote_is_read_back(rows: list[tuple[str, str, int]], ending: str, header: bool) -> None:
    out = io.StringIO()
    named = [("query-id", "corpus-id", "score")] if header or ending == "csv" else []
    csv.writer(out, delimiter="," if ending == "csv" else "\t", lineterminator="\n").writerows([*named, *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"train.{ending}"
        path.write_text(out.getvalue(), encoding="utf-8")
        found = read_qrels(path, "train")
    assert list(found[["query_id", "doc_id", "score"]].itertuples(index=False, name=None)) == rows


@pytest.mark.parametrize("word", ["query", "qid", "query-id", "topic"])
def test_a_first_query_that_is_called_like_a_column_is_kept(tmp_path: Path, word: str) -> None:
    path = tmp_path / "train.tsv"
    assert qrels_of(path, f"{word}\td1\t1", "q2\td2\t0") == [(word, "d1", 1), ("q2", "d2", 0)]
    assert qrels_of(path, f"{word} 0 doc 2", "q2 0 d2 0") == [(word, "doc", 2), ("q2", "d2", 0)]


def test_a_header_alone_holds_no_judgement(tmp_path: Path) -> None:
    assert qrels_of(tmp_path / "train.tsv", "query-id\tcorpus-id\tscore") == []
    assert qrels_of(tmp_path / "empty.tsv") == []


def test_ids_keep_the_white_space_at_their_ends_and_a_tab_in_quotes(tmp_path: Path) -> None:
    assert qrels_of(tmp_path / "a.tsv", "q1 \t d1\t1") == [("q1 ", " d1", 1)]
    assert qrels_of(tmp_path / "b.tsv", '"q\t1"\t"d""1"\t1', 'q2\t5"disk\t1') == [("q\t1", 'd"1', 1), ("q2", '5"disk', 1)]


def test_blanks_and_tabs_may_change_from_line_to_line_as_trec_eval_reads_them(tmp_path: Path) -> None:
    assert qrels_of(tmp_path / "a.qrels", "301\t0\tFBIS3\t1", "301 0 FT9 0", "302 0\tFT8 2") == [
        ("301", "FBIS3", 1),
        ("301", "FT9", 0),
        ("302", "FT8", 2),
    ]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["q1 Q0 d1 1 12.5 bm25"], ["train.tsv:1: this is a run file", "expected judgements"]),
        (["query-id\tcorpus-id\tgain"], ["train.tsv:1: the header names no column for score", "gain"]),
        (["query-id\tscore\tscore\tcorpus-id"], ["the header names the column 'score' twice"]),
        (["q1\td1"], ["train.tsv:1: expected three columns", "found 2"]),
        (["q1\td1\t1\tx\ty"], ["train.tsv:1: expected three columns", "found 5"]),
        (["q1\td1\t1", "q2\t0\td2\t1"], ["train.tsv:2: expected three columns separated by tabs, as in the first line", "found 4"]),
        (["q1 0 d1 1", "q2 d2 1"], ["train.tsv:2: expected four columns separated by blanks", "found 3"]),
        (["q1\td1\tx1\t1"], ["train.tsv:1: expected the columns query-id, corpus-id and score, or as TREC has them", "Add a header line"]),
        (["q1\td1\t"], ["train.tsv:1: the score must be a whole number"]),
        (['q1\t"d1\t1'], ["train.tsv:1: the quotes of", "do not match"]),
        (["q1\td\0\t1"], ["train.tsv:1: holds the character NUL", "UTF-16"]),
        (["q1\td1\t0.5"], ["train.tsv:1: the score must be a whole number", "found '0.5'", "Map fractional grades to whole ones first"]),
        *(
            ([f"q1\td1\t{grade}"], ["train.tsv:1: the score must be a whole number such as 0, 1 or 2, in plain digits", f"found '{grade}'"])
            for grade in ("1_0", "\u0661", "\uff11", "inf", "nan", "0x1", "1e400", "true", "1,0")
        ),
    ],
)
def test_judgements_that_cannot_be_understood_are_refused_by_their_line(tmp_path: Path, lines: list[str], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        qrels_of(tmp_path / "train.tsv", *lines)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query-id": "q1", "corpus-id": "d1", "score": 0.5}, "found '0.5'. Map fractional grades"),
        ({"query-id": "q1", "corpus-id": "d1", "score": True}, "found 'True'"),
        ({"query-id": "q1", "corpus-id": "d1"}, "found 'None'"),
        ({"query-id": "q1", "corpus-id": "d1", "score": "\ud800"}, r"found '\ud800'"),
        ({"query-id": "q1", "score": 1}, "the field corpus-id must be there"),
        ({"corpus-id": "d1", "score": 1}, "the field query-id must be there"),
        ({"query-id": ["q1"], "corpus-id": "d1", "score": 1}, "the field query-id must be there and be text; found ['q1']"),
    ],
)
def test_a_broken_judgement_in_json_lines_is_named(tmp_path: Path, row: Row, message: str) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "qrels" / "test.tsv").unlink()
    write_rows(folder / "qrels" / "test.jsonl", [row])
    with pytest.raises(DataError) as caught:
        read(folder)
    assert f"test.jsonl:1: {'the score' if 'found' in message and '[' not in message else ''}" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "corpus.csv:1: expected a header with the names of the columns, such as _id and text; found ''"),
        ("d1,a title,a text\n", "corpus.csv:1: expected a header"),
        ("_id,text,text\nd1,a,b\n", "corpus.csv:1: the header names the column 'text' twice"),
        ("_id,text\nd1,a\nd2,b,c\n", "corpus.csv:3: expected 2 columns as in the header; found 3"),
        ("title,text\na,b\n", "corpus.csv:2: the field _id must be there"),
        ('_id,text\nd1,"never closed\n', "corpus.csv:2: unexpected end of data"),
        ("_id,text,metadata\nd1,a,web\n", "corpus.csv:2: the column metadata must hold JSON objects; found 'web'"),
        ("_id,text,metadata\nd1,a,[1]\n", "corpus.csv:2: the field metadata must be an object"),
    ],
)
def test_a_table_that_cannot_be_understood_is_refused_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "corpus.jsonl").unlink()
    (folder / "corpus.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        read(folder)
    assert message in str(caught.value)
