"""Which files of a data folder are read, and that none is passed over in silence."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from pathlib import Path

import pandas as pd
import pytest

from components.data.config import DataConfig
from components.data.layout import locate, split_of
from components.data.sources import read_source, remarks_on, source_digest
from components.errors import DataError
from tests.data_world import documents, qrels, queries, write_folder, write_lines, write_rows

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


def refused(folder: Path) -> str:
    """The message of the first look, which is taken before anything is trained."""
    with pytest.raises(DataError) as caught:
        source_digest(DataConfig(source=str(folder)))
    return str(caught.value)


def remarks(folder: Path) -> str:
    return "\n".join(remarks_on(DataConfig(source=str(folder))))


def test_a_folder_that_is_read_whole_needs_no_remark(folder: Path) -> None:
    (folder / ".gitattributes").write_text("")
    assert remarks(folder) == ""


@pytest.mark.parametrize("name", ["validation.tsv", "Validation.TSV", "valid.tsv", "val.tsv", "validation-00000-of-00001.tsv", "DEV.TSV"])
def test_validation_is_taken_for_dev_and_that_is_said(folder: Path, name: str) -> None:
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / name)
    tables = read_source(DataConfig(source=str(folder)))
    assert tables.judgements.query("split == 'dev'")["query_id"].tolist() == [f"q{n}" for n in range(120, 140)]
    assert "dev_held_out_of_train" not in tables.notes
    assert tables.notes.get("remarks") == (None if name == "DEV.TSV" else f"qrels/{name} is read as the split dev.")
    assert remarks(folder) == ("" if name == "DEV.TSV" else f"data: qrels/{name} is read as the split dev.")


@pytest.mark.parametrize("name", ["qrels.{}.tsv", "{}.qrels", "qrels_{}.tsv", "{}-qrel.tsv"])
def test_the_word_qrels_in_a_files_name_makes_no_further_split(folder: Path, name: str) -> None:
    """As TREC and MS MARCO name them: dev would be held out of train, and the file's own queries a split that nobody asked for."""
    for split in ("train", "dev", "test"):
        (folder / "qrels" / f"{split}.tsv").rename(folder / "qrels" / name.format(split))
    tables = read_source(DataConfig(source=str(folder)))
    assert set(tables.judgements["split"]) == {"train", "dev", "test"} and "dev_held_out_of_train" not in tables.notes
    told = "qrels/qrels.test.tsv is read as the split test."
    assert (told in remarks(folder)) == name.startswith("qrels.")
    assert split_of("qrels.far") == "qrels.far"


def test_dev_and_validation_together_are_refused(folder: Path) -> None:
    write_lines(folder / "qrels" / "validation.tsv", qrels("dev"))
    assert "holds the split 'dev' twice: dev.tsv and validation.tsv" in refused(folder)


def test_a_split_keeps_a_name_of_its_own() -> None:
    assert [split_of(stem) for stem in ("test_far", "dev1", "Test", "en-00003-of-00004")] == ["test_far", "dev1", "test", "en"]


def test_every_file_that_is_not_read_is_named_with_the_reason(folder: Path) -> None:
    for name in ("notes.txt", "corpus.json", "train.tsv", "qrels/dev2.tsv.bz2", "qrels/README"):
        (folder / name).write_text("x")
    (folder / "old").mkdir()
    (folder / "data").mkdir()
    (folder / "qrels" / "archive").mkdir()
    (folder / "gone.txt").symlink_to("/nowhere/at/all")
    unread = locate(folder).unread
    assert unread["notes.txt"] == unread["train.tsv"] == "a file of this name is no table; judgements belong into qrels"
    assert unread["corpus.json"].startswith("it ends in none of .jsonl, .jsonl.gz, .csv")
    assert unread["qrels/dev2.tsv.bz2"] == unread["qrels/README"] == unread["qrels/archive"]
    assert unread["qrels/archive"].startswith("a split is a file that ends in .jsonl")
    assert unread["old"] == "a folder of this name holds no table"
    assert unread["data"] == "the judgements are read from qrels"
    assert unread["gone.txt"] == "a link to a file that is not there"
    assert "data: qrels/dev2.tsv.bz2 is not read: a split is a file that ends in" in remarks(folder)


def test_a_table_whose_name_makes_it_a_mark_is_named(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / "_dev.tsv")
    (folder / "_corpus.jsonl").write_text("")
    (folder / "_SUCCESS").write_text("")
    reason = "a name that begins with _ is taken for the mark of a writer, such as _SUCCESS"
    assert locate(folder).unread == {"_corpus.jsonl": reason, "qrels/_dev.tsv": reason}


@pytest.mark.parametrize("name", ["default", "train"])
def test_a_folder_of_splits_is_no_split_of_its_own(folder: Path, name: str) -> None:
    """It was read as one further split, and dev was held out of train in the place of its file."""
    (folder / "qrels" / name).mkdir()
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / name / "validation.tsv")
    (folder / "qrels" / "train.tsv").rename(folder / "train.old")
    assert f"qrels/{name} holds files that are named as the split dev, and would be read as shards of the split '{name}'" in refused(folder)
    (folder / "qrels" / name).rename(folder / "qrels" / "dev")
    (folder / "train.old").rename(folder / "qrels" / "train.tsv")
    assert set(locate(folder).qrels) == {"train", "dev", "test"}


def test_a_file_that_is_not_read_makes_nothing_anew(folder: Path) -> None:
    before = source_digest(DataConfig(source=str(folder)))
    (folder / "qrels" / "README").write_text("x")
    assert source_digest(DataConfig(source=str(folder))) == before


@pytest.mark.parametrize(
    "name",
    ["qrels/dev.tsv", "queries_unlabelled.jsonl", "queries_translated.jsonl", "corpus.jsonl", "queries.jsonl", "qrels/test_far.parquet"],
)
def test_a_link_that_leads_nowhere_is_refused_by_name(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/gone/file")
    assert f"{folder / name} is a link to /gone/file, which is not there" in refused(folder)


@pytest.mark.parametrize("name", ["qrels", "corpus"])
def test_a_folder_link_that_leads_nowhere_is_refused_by_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_rows(folder / "queries.jsonl", queries())
    if name == "qrels":
        write_rows(folder / "corpus.jsonl", documents())
    (folder / name).symlink_to("/gone/folder")
    assert f"{folder / name} is a link to /gone/folder, which is not there" in refused(folder)


def test_links_that_lead_somewhere_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "corpus.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (folder / "corpus.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    assert len(read_source(DataConfig(source=str(folder))).documents) == 260


@pytest.mark.parametrize("name", ["corpus.jsonl", "qrels/dev.tsv", "corpus.parquet"])
@pytest.mark.parametrize("text", [POINTER, "/annex/objects/MD5-s12345--4d7a\n"])
def test_a_pointer_of_version_control_is_no_data(folder: Path, name: str, text: str) -> None:
    if name == "corpus.parquet":
        (folder / "corpus.jsonl").unlink()
    (folder / name).write_text(text)
    assert f"{folder / name} is a pointer of Git LFS or git-annex, not the file itself. Fetch it: git lfs pull" in refused(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"q0\td0\t1\n", mtime=0), "dev.tsv is compressed with gzip, which its name does not say. Let its name end in .gz."),
        (bz2.compress(b"q0\td0\t1\n"), "dev.tsv is compressed with bzip2, which its name does not say"),
        (lzma.compress(b"q0\td0\t1\n"), "dev.tsv is compressed with xz, which its name does not say"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "dev.tsv is compressed with Zstandard, which its name does not say. Unpack it: zstd -d."),
        (b"PK\x03\x04\x14\x00", "dev.tsv is a zip archive or a spreadsheet"),
        (b"PAR1\x15\x04\x15", "dev.tsv is Parquet, which its name does not say"),
    ],
)
def test_a_file_that_is_packed_otherwise_than_its_name_says_is_told_so(folder: Path, content: bytes, said: str) -> None:
    (folder / "qrels" / "dev.tsv").write_bytes(content)
    assert said in refused(folder)


def test_text_that_begins_like_a_packed_file_is_read(folder: Path) -> None:
    for word in ("BZh9", "PAR1", "PK"):
        (folder / "qrels" / "dev.tsv").write_text(f"{word}\tt1\t1\n")
        assert word in set(read_source(DataConfig(source=str(folder))).judgements["query_id"])


def test_a_name_that_ends_in_gz_over_plain_text_is_told_so(folder: Path) -> None:
    (folder / "corpus.jsonl").rename(folder / "corpus.jsonl.gz")
    assert "corpus.jsonl.gz cannot be read: it is not compressed with gzip. Let its name end without .gz" in refused(folder)


@pytest.mark.parametrize("name", ["corpus.jsonl.zst", "Corpus.json", "documents.xlsx"])
def test_a_corpus_of_another_kind_is_named_where_none_can_be_read(folder: Path, name: str) -> None:
    (folder / "corpus.jsonl").rename(folder / name)
    assert f"{name} is there, but its name ends in none of these" in refused(folder)


def test_what_is_neither_file_nor_folder_is_refused(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").unlink()
    os.mkfifo(folder / "qrels" / "dev.tsv")
    assert "dev.tsv is neither a file nor a folder" in refused(folder)


def test_a_split_without_a_judgement_is_refused(folder: Path) -> None:
    for text in ("", "query-id\tcorpus-id\tscore\n"):
        (folder / "qrels" / "dev.tsv").write_text(text)
        with pytest.raises(DataError, match=r"dev\.tsv holds no judgements"):
            read_source(DataConfig(source=str(folder)))


def test_names_that_are_no_utf_8_are_written_out_and_refused_where_a_table_is_read(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/t\xff.bin")).write_text("x")
    assert "data: t\\xff.bin is not read" in remarks(folder)
    Path(os.fsdecode(os.fsencode(folder) + b"/qrels/t\xff.tsv")).write_text("q1\td1\t1\n")
    assert "qrels/t\\xff.tsv: the name has to be text in UTF-8" in refused(folder)


def test_a_line_break_in_the_name_of_a_folder_is_what_the_refusal_speaks_of(folder: Path) -> None:
    place = folder.rename(folder.parent / "two\nlines")
    said = refused(place)
    assert "two\\nlines" in said and "without line breaks" in said and "file or folder" in said and "\n" not in said


def test_an_empty_folder_in_the_place_of_a_split_is_refused(folder: Path) -> None:
    (folder / "qrels" / "dev.tsv").unlink()
    (folder / "qrels" / "dev.tsv").mkdir()
    assert "dev.tsv holds no files" in refused(folder)


def test_a_shard_that_the_names_promise_has_to_be_there(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    for number in (0, 2):
        write_rows(folder / "corpus" / f"corpus-{number:05}-of-00003.jsonl", documents()[number * 100 : number * 100 + 60])
    assert "corpus lacks 1 of 3 shards, first corpus-00001-of-00003" in refused(folder)
    write_rows(folder / "corpus" / "corpus-00001-of-00003.jsonl", documents()[60:100])
    assert len(read_source(DataConfig(source=str(folder))).documents) == 160


def test_the_shards_of_a_split_are_one_table(folder: Path) -> None:
    (folder / "qrels" / "train.tsv").unlink()
    for number, lines in enumerate((qrels("train")[:50], qrels("train")[50:])):
        write_lines(folder / "qrels" / f"train-{number:05}-of-00002.tsv", lines)
    assert len(read_source(DataConfig(source=str(folder))).judgements.query("split == 'train'")) == 120
    (folder / "qrels" / "train-00001-of-00002.tsv").unlink()
    assert "qrels lacks 1 of 2 shards, first train-00001-of-00002" in refused(folder)


def test_an_id_in_two_files_of_queries_is_refused_with_both(folder: Path) -> None:
    (folder / "queries.jsonl").unlink()
    write_rows(folder / "queries" / "a.jsonl", queries()[:200])
    pd.DataFrame(queries()[199:]).to_parquet(folder / "queries" / "b.parquet")
    with pytest.raises(DataError, match=r"query id 'q199' stands in two files: .*a\.jsonl and .*b\.parquet"):
        read_source(DataConfig(source=str(folder)))


def test_unlabelled_queries_without_ids_of_two_files_get_names_of_their_own(folder: Path) -> None:
    for name in ("a", "b"):
        write_rows(folder / "queries_unlabelled" / f"{name}.jsonl", [{"text": f"one of {name}"}])
    assert read_source(DataConfig(source=str(folder))).unlabelled["query_id"].tolist() == ["unlabelled-1-1", "unlabelled-2-1"]


def test_a_user_that_there_is_not_is_a_folder_that_does_not_exist() -> None:
    with pytest.raises(DataError, match="~nosuchuser/x does not exist"):
        source_digest(DataConfig(source="~nosuchuser/x"))


def test_the_built_in_set_has_no_files_to_remark_on() -> None:
    assert remarks_on(DataConfig()) == []


def test_shards_that_lie_in_no_folder_of_their_own_are_read(folder: Path) -> None:
    (folder / "corpus.jsonl").unlink()
    write_rows(folder / "corpus-00000-of-00002.jsonl", documents()[:5])
    with pytest.raises(DataError, match="lacks 1 of 2 shards, first corpus-00001-of-00002"):
        locate(folder)
    write_rows(folder / "corpus-00001-of-00002.jsonl", documents()[5:])
    assert read_source(DataConfig(source=str(folder))).documents["doc_id"].tolist() == [row["_id"] for row in documents()]
    assert locate(folder).unread == {}


def test_two_writings_of_one_table_in_shards_are_not_put_together(folder: Path) -> None:
    """Each of them is whole, so that no shard is missing: an old corpus would be searched beside the new one."""
    (folder / "corpus.jsonl").rename(folder / "corpus-00000-of-00001.jsonl")
    write_rows(folder / "documents-00000-of-00001.jsonl", [{"_id": "old", "text": "of last year"}])
    assert "the same table twice: corpus-00000-of-00001.jsonl and documents-00000-of-00001.jsonl" in refused(folder)
    (folder / "documents-00000-of-00001.jsonl").unlink()
    assert len(read_source(DataConfig(source=str(folder))).documents) == 260
    for number in range(2):
        write_rows(folder / f"corpus-{number:05}-of-00002.jsonl", [{"_id": f"old{number}", "text": "of last year"}])
    assert "holds the shards of two writings: corpus-00000-of-00001 and corpus-00000-of-00002" in refused(folder)


@pytest.mark.parametrize("old", ["qrels/test-00000-of-00002.tsv", "qrels/test/part-00000-of-00002.tsv"])
def test_two_writings_of_one_split_are_not_put_together(folder: Path, old: str) -> None:
    for number in range(2):
        write_lines(folder / old.replace("00000", f"0000{number}", 1), [f"q{140 + number}\td{number}\t1"])
    (folder / "qrels" / "test.tsv").rename(folder / old.replace("00000-of-00002", "00000-of-00001"))
    assert "holds the shards of two writings: " in refused(folder)


def test_a_shard_whose_name_makes_it_a_mark_is_named(folder: Path) -> None:
    (folder / "corpus").mkdir()
    (folder / "corpus.jsonl").rename(folder / "corpus" / "part-0.jsonl")
    write_rows(folder / "corpus" / "_part-1.jsonl", [{"_id": "lost", "text": "x"}])
    (folder / "corpus" / "_SUCCESS").write_text("")
    assert list(locate(folder).unread) == ["corpus/_part-1.jsonl"]
    assert "data: corpus/_part-1.jsonl is not read: a name that begins with _" in remarks(folder)


@pytest.mark.parametrize(("name", "log"), [("corpus", "_delta_log"), ("corpus.parquet", ".hoodie"), ("qrels/test", "_delta_log")])
def test_a_table_whose_log_says_which_of_its_files_count_is_refused(folder: Path, name: str, log: str) -> None:
    """Rows that were removed long ago lie in its folder still, and came back."""
    kind = "tsv" if "qrels" in name else "jsonl"
    (folder / name / log).mkdir(parents=True)
    place = folder / (f"{name}.tsv" if kind == "tsv" else "corpus.jsonl")
    place.rename(folder / name / f"part-0.{kind}")
    assert f"whose log {log} says which of its files count" in refused(folder)
    (folder / name / log).rmdir()
    assert len(read_source(DataConfig(source=str(folder))).documents) == 260


@pytest.mark.parametrize("name", ["qrels.dev.small.tsv", "dev-mini.tsv", "Validation_set.tsv"])
def test_a_split_that_is_nearly_called_dev_is_told_of(folder: Path, name: str) -> None:
    """MS MARCO's dev is called so: it was a further split, and dev was held out of train without a word."""
    (folder / "qrels" / name).write_text((folder / "qrels" / "dev.tsv").read_text())
    assert "further one" not in remarks(folder)
    (folder / "qrels" / "dev.tsv").unlink()
    assert f"data: the split '{Path(name).stem}' is a further one, and dev is held out of train." in remarks(folder)
    (folder / "qrels" / "train.tsv").unlink()  # then nothing is held out
    assert "held out of train" not in remarks(folder)
