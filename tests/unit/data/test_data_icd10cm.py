from __future__ import annotations

from pathlib import Path

import pytest

from components.data import icd10cm
from components.data.config import DataConfig
from components.data.dataset import RawTables, document_text, normalise_text
from components.data.sources import read_source
from components.errors import DataError

SMALL = """<ICD10CM.tabular><chapter><name>9</name><desc>Diseases of the heart (I00-I99)</desc>
<section id="I20-I25"><desc>Ischemic diseases (I20-I25)</desc>
<diag><name>I21</name><desc>Infarction</desc><inclusionTerm><note>heart  attack</note><note>Infarction!</note></inclusionTerm>
<diag><name>I21.9</name><desc>Infarction, unspecified</desc><inclusionTerm><note>Heart attack</note><note>coronary</note></inclusionTerm>
</diag>
</diag></section></chapter></ICD10CM.tabular>"""


@pytest.fixture(scope="module")
def demo() -> RawTables:
    return icd10cm.build("demo")


def test_a_small_list_read_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "list.xml"
    path.write_text(SMALL)
    first, second = icd10cm.read_entries(path)
    assert (first.code, first.title, first.chapter, first.section) == ("I21", "Infarction", "9", "I20-I25")
    assert second.above == ("Infarction", "Ischemic diseases", "Diseases of the heart")
    found = icd10cm.build_queries([first, second])
    # One query for "heart attack" with both codes; "Infarction!" repeats its own title and asks for nothing.
    assert [(query.text, query.codes) for query in found] == [("heart attack", ("I21", "I21.9")), ("coronary", ("I21.9",))]


def test_a_wording_under_codes_of_two_splits_is_left_out() -> None:
    codes = {icd10cm.split_of(f"A{n:02}"): f"A{n:02}" for n in range(100)}
    train, test = (icd10cm.Entry(codes[split], "a title", (), "1", "", ("Same wording", split)) for split in ("train", "test"))
    assert [query.text for query in icd10cm.build_queries([train, test])] == ["train", "test"]


def test_the_counts_of_the_demo(demo: RawTables) -> None:
    judged = demo.judgements.groupby("split")["query_id"].nunique().to_dict()
    assert len(demo.documents) == 9525
    assert judged == {"train": 4423, "dev": 392, "test": 641}
    assert demo.documents["doc_id"].is_unique
    assert set(demo.judgements["doc_id"]) <= set(demo.documents["doc_id"])


def test_the_quick_scope_has_half_the_entries_all_their_wordings_and_the_near_misses_of_dev_and_test() -> None:
    quick = icd10cm.build("quick")
    judged = quick.judgements.groupby("split")["query_id"].nunique().to_dict()
    assert (len(quick.documents), judged) == (4577, {"train": 4830, "dev": 397, "test": 683})
    assert quick.judgements["query_id"].nunique() == len(quick.queries) == 5910
    asked = set(quick.judgements.loc[quick.judgements["split"] != "train", "doc_id"].str.split(".").str[0])
    entries = icd10cm.read_entries(icd10cm.tabular_list())
    there = {entry.code for entry in entries if entry.chapter in icd10cm.DEMO_CHAPTERS and entry.code.split(".")[0] in asked}
    assert there <= set(quick.documents["doc_id"])


@pytest.mark.parametrize("scope", ["demo", "quick"])
def test_the_example_queries_of_the_demo_are_never_learned_from(scope: str) -> None:
    from flows.cli.build import EXAMPLES

    tables = icd10cm.build(scope)
    learned = {*tables.queries["text"].map(normalise_text), *tables.documents["title"].map(normalise_text)}
    assert not learned & {normalise_text(example) for example in EXAMPLES}


def test_no_category_of_the_test_is_seen_in_training(demo: RawTables) -> None:
    categories = demo.judgements.assign(category=demo.judgements["doc_id"].str.split(".").str[0])
    assert (categories.groupby("category")["split"].nunique() == 1).all()


def test_no_wording_is_there_twice(demo: RawTables) -> None:
    assert not demo.queries["text"].map(normalise_text).duplicated().any()


def test_queries_a_person_would_try_have_their_entry(demo: RawTables) -> None:
    titles = dict(zip(demo.documents["doc_id"], demo.documents["title"], strict=True))
    texts = dict(zip(demo.documents["doc_id"], demo.documents["text"], strict=True))
    assert titles["N20.0"] == "Calculus of kidney"
    assert document_text(titles["I21.9"], texts["I21.9"]).splitlines() == [
        "Acute myocardial infarction, unspecified",
        "Acute myocardial infarction | Ischemic heart diseases | Diseases of the circulatory system",
    ]


def test_the_whole_list() -> None:
    tables = read_source(DataConfig(scope="full"))
    assert len(tables.documents) == 46_881
    assert tables.judgements.groupby("split")["query_id"].nunique().to_dict() == {"train": 10_130, "dev": 958, "test": 1_437}


def test_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(icd10cm, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install simple-icd-10-cm"):
        icd10cm.build("demo")
