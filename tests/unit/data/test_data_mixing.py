from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from components.artifacts import verify
from components.data import icd10cm
from components.data.config import DataConfig
from components.data.contracts import contracts_folder
from components.data.dataset import RawTables, judgement_table, load_dataset, query_table
from components.data.snapshot import snapshot
from components.data.sources import mix, read_source, source_digest, source_name
from components.data.validation import load_report, require_valid, validate
from components.errors import DataError
from components.towers.pairs import training_pairs
from tests.data_world import SPLITS, qrels, queries, write_folder, write_lines, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A second folder of the same ids with other texts, one more split and unlabelled queries; it has no dev split."""
    path = write_folder(tmp_path / "other")
    write_rows(path / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"Another matter {n}"} for n in range(260)])
    write_rows(path / "queries.jsonl", [{"_id": f"q{n}", "text": f"what of matter {n}?"} for n in range(260)])
    write_rows(path / "queries_unlabelled.jsonl", [{"_id": "u", "text": "something"}])
    write_rows(path / "queries_translated.jsonl", [{"_id": "t", "text": "etwas", "original": "something"}])
    (path / "qrels" / "dev.tsv").unlink()
    write_lines(path / "qrels" / "test_far.tsv", qrels("dev"))
    return path


@pytest.fixture
def config(folder: Path, other: Path) -> DataConfig:
    return DataConfig(source=str(folder), mix=(str(other),))


def refused(config: DataConfig) -> str:
    with pytest.raises(DataError) as caught:
        source_digest(config)
    return str(caught.value)


def test_every_table_holds_both_and_the_second_has_its_name_in_front(config: DataConfig) -> None:
    tables = read_source(config)
    assert tables.sources == ("data", "other")
    assert tables.documents["doc_id"].tolist() == [f"d{n}" for n in range(260)] + [f"other/d{n}" for n in range(260)]
    assert tables.documents.iloc[263]["text"] == "Another matter 3"
    assert tables.queries.iloc[[0, 260]].to_dict("records") == [
        {"query_id": "q0", "text": "where is number 0?"},
        {"query_id": "other/q0", "text": "what of matter 0?"},
    ]
    assert tables.unlabelled["query_id"].tolist() == ["other/u"]
    assert tables.translated.to_dict("records") == [{"query_id": "other/t", "text": "etwas", "original": "something"}]
    assert set(tables.judgements["split"]) == {"train", "dev", "test", "test_far"}
    assert (tables.judgements["query_id"].str.startswith("other/") == tables.judgements["doc_id"].str.startswith("other/")).all()


def test_dev_queries_are_held_out_of_the_one_that_has_none(config: DataConfig) -> None:
    tables = read_source(config)
    dev = tables.judgements.query("split == 'dev'")["query_id"]
    own = [query for query in dev if not query.startswith("other/")]
    assert own == [f"q{n}" for n in SPLITS["dev"]]
    assert len(dev) - len(own) == tables.notes["dev_held_out_of_train"] == 12
    assert read_source(config.model_copy(update={"dev_share": 0.2})).notes["dev_held_out_of_train"] == 24


def test_a_held_out_query_is_not_trained_on_in_the_other_data_set(config: DataConfig, other: Path) -> None:
    write_rows(other / "queries.jsonl", queries())  # the same wordings in both
    tables = read_source(config)
    text = dict(zip(tables.queries["query_id"], tables.queries["text"], strict=True))
    trained, held_out = ({text[q] for q in tables.judgements.query(f"split == '{split}'")["query_id"]} for split in ("train", "dev"))
    assert not trained & held_out


def test_a_snapshot_names_its_sources_and_counts_each(config: DataConfig, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    artifact = snapshot(config, out)
    assert verify(out).digest == artifact.digest
    assert artifact.attributes["name"] == source_name(config) == "data+other"
    expected = {"documents": 520, "documents_of_data": 260, "documents_of_other": 260, "source_documents": 520, "unlabelled": 1}
    expected |= {"train_queries": 228, "train_queries_of_data": 120, "train_queries_of_other": 108}
    assert {name: artifact.counts[name] for name in expected} == expected
    dataset = load_dataset(out)
    assert dataset.sources == ("data", "other")
    assert [dataset.origin_of(query) for query in ("q1", "other/q1", "elsewhere/q1")] == ["data", "other", "data"]
    pairs = training_pairs(dataset)
    assert pairs.origins == ["data"] * 120 + ["other"] * 108
    assert all((pairs.documents[d].startswith("Another")) == (o == "other") for (_, d), o in zip(pairs.pairs, pairs.origins, strict=True))


def test_a_single_source_has_no_names_in_it(folder: Path, tmp_path: Path) -> None:
    (out := tmp_path / "out").mkdir()
    artifact = snapshot(DataConfig(source=str(folder)), out)
    assert "sources" not in artifact.attributes and not any("_of_data" in name for name in artifact.counts)
    assert load_dataset(artifact).sources == () and load_dataset(artifact).origin_of("other/q1") == ""


def test_contracts_are_checked_on_the_whole(config: DataConfig, other: Path, tmp_path: Path) -> None:
    with (other / "qrels" / "train.tsv").open("a") as handle:
        handle.write("q7\tnothing\t1\n")
    for name in ("out", "report"):
        (tmp_path / name).mkdir()
    validation = validate(snapshot(config, tmp_path / "out"), contracts_folder(""), tmp_path / "report")
    report = load_report(validation)
    assert (len(report.errors), len(report.warnings)) == (1, 0)
    with pytest.raises(DataError, match=r"'other/q7'.*there is no doc_id 'other/nothing'"):
        require_valid(validation)


def test_a_subset_is_taken_of_all(config: DataConfig) -> None:
    tables = read_source(config.model_copy(update={"max_documents": 100}))
    assert len(tables.documents) == 100
    origins = tables.documents["doc_id"].str.startswith("other/")
    assert 20 < origins.sum() < 80
    assert set(tables.judgements["doc_id"]) <= set(tables.documents["doc_id"])


def test_the_digest_covers_every_source_and_its_name(config: DataConfig, folder: Path, other: Path, tmp_path: Path) -> None:
    first = source_digest(config)
    assert first != source_digest(DataConfig(source=str(folder)))
    assert source_digest(DataConfig(source=str(other), mix=(str(folder),))) != first
    renamed = other.rename(tmp_path / "renamed")
    assert source_digest(DataConfig(source=str(folder), mix=(str(renamed),))) != first
    renamed.rename(other)
    assert source_digest(config) == first
    with (other / "queries.jsonl").open("a") as handle:
        handle.write("\n")
    assert source_digest(config) != first


def test_the_built_in_set_can_be_mixed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = RawTables(
        documents=pd.DataFrame({"doc_id": ["A00"], "title": [""], "text": ["Cholera"], "metadata": ["{}"]}).astype("str"),
        queries=query_table(["1", "2"], ["cholera", "the cholera"]),
        judgements=pd.concat([judgement_table([("1", "A00", 1)], "train"), judgement_table([("2", "A00", 1)], "dev")], ignore_index=True),
        unlabelled=query_table([], []),
        notes={"scope": "demo"},
    )
    monkeypatch.setattr(icd10cm, "build", lambda scope: small)
    monkeypatch.setattr(icd10cm, "source_digest", lambda: "digest")
    first = read_source(DataConfig(mix=(str(folder),)))
    assert (first.sources, len(first.documents), first.notes["scope"]) == (("icd10cm", "data"), 261, "demo")
    assert first.documents["doc_id"].tolist()[:2] == ["A00", "data/d0"]
    assert len(source_digest(DataConfig(mix=(str(folder),)))) == 64


def test_sources_that_cannot_be_mixed_are_refused_at_once(config: DataConfig, folder: Path, other: Path, tmp_path: Path) -> None:
    def mixed(*paths: Path) -> DataConfig:
        return DataConfig(source=str(folder), mix=tuple(map(str, paths)))

    missing = refused(mixed(tmp_path / "nothing"))
    assert "nothing does not exist" in missing
    assert "two of the data sets are named 'other'" in refused(mixed(other, write_folder(tmp_path / "deeper" / "other")))
    assert "two of the data sets are named 'data'" in refused(mixed(folder))
    assert "no name without white space" in refused(mixed(write_folder(tmp_path / "two words")))
    assert "no name without white space" in refused(mixed(Path("/")))
    assert "corpus.jsonl is missing" in refused(mixed(folder.parent))


def test_ids_that_look_mixed_in_are_refused(folder: Path, other: Path) -> None:
    with (folder / "queries.jsonl").open("a") as handle:
        handle.write('{"_id": "other/q1", "text": "x"}\n')
    with pytest.raises(DataError, match="'data' has the id 'other/q1', which looks as if it came from 'other'"):
        read_source(DataConfig(source=str(folder), mix=(str(other),)))


def test_missing_ids_stay_missing_for_the_contracts() -> None:
    part = RawTables(
        documents=pd.DataFrame({"doc_id": ["1", None], "title": "", "text": "t", "metadata": "{}"}).astype("str"),
        queries=query_table([None, "1"], ["a", "b"]),
        judgements=judgement_table([("1", "1", 1)], "train"),
        unlabelled=query_table([], []),
    )
    found = mix({"base": part, "more": part})
    assert found.queries["query_id"].isna().tolist() == [True, False, True, False]
    assert found.documents["doc_id"].dropna().tolist() == ["1", "more/1"]
    assert found.judgements["query_id"].tolist() == ["1", "more/1"]
