"""Slices of the queries: which query falls where, for every kind of definition."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from components.data.dataset import Dataset
from components.evaluation.config import STANDARD_SLICES, EvaluationConfig, SliceConfig
from components.evaluation.evaluate import evaluate
from components.evaluation.rankers import symmetric_ranker
from components.evaluation.report import load_evaluation
from components.evaluation.slices import assign_slices, script_of, words_of
from components.evaluation.summarize import judged_split
from tests.encoders import WORDS, WordEncoder, dataset_of

DOCUMENTS = {"d1": "apple pie", "d2": "heart attack"}
TRAIN = {"t1": "heart pain", "t2": "heart attack", "t3": "apple"}


def data(queries: dict[str, str], train: dict[str, str] = TRAIN, sources: tuple[str, ...] = ()) -> Dataset:
    """Two documents with a chapter each, these test queries, whose answer is d1, and these train queries."""
    texts = {**queries, **train}
    judgements = [(query, "d1", 1, "test") for query in queries] + [(query, "d2", 1, "train") for query in train]
    documents = pd.DataFrame(
        {"doc_id": list(DOCUMENTS), "title": list(DOCUMENTS.values()), "text": "", "metadata": ['{"chapter": "9"}', "broken"]}
    )
    return Dataset(
        documents=documents,
        queries=pd.DataFrame({"query_id": list(texts), "text": list(texts.values())}),
        all_judgements=pd.DataFrame(judgements, columns=["query_id", "doc_id", "score", "split"]),
        unlabelled=pd.DataFrame({"query_id": [], "text": []}),
        sources=sources,
    )


def labels(dataset: Dataset, *definitions: SliceConfig) -> dict[str, str]:
    rows = assign_slices(judged_split(dataset, "test"), dataset, definitions)
    return dict(zip(rows["query_id"], rows["slice"], strict=True))


def test_length_is_counted_in_words_and_cut_at_the_edges() -> None:
    found = labels(
        data({"q1": "heart", "q2": "heart-attack!", "q3": "an acute heart attack", "q4": "one two three four five six"}),
        SliceConfig(name="length", kind="query_length", edges=(2, 5)),
    )
    assert found == {"q1": "under 2", "q2": "2 to under 5", "q3": "2 to under 5", "q4": "5 and above"}


def test_edges_that_lie_close_give_slices_of_different_names() -> None:
    queries = {"q1": "a", "q2": "a b", "q3": "a b c"}
    found = labels(data(queries), SliceConfig(name="length", kind="query_length", edges=(0.5, 1.5000001, 1.5000002)))
    assert set(found.values()) == {"0.5 to under 1.5000001", "1.5000002 and above"}


def test_edges_that_lie_apart_keep_the_short_names_that_policies_name() -> None:
    queries = {"q1": "a", "q2": "a b", "q3": "a b c"}
    found = labels(data(queries), SliceConfig(name="length", kind="query_length", edges=(1.5000001, 2.5000001)))
    assert set(found.values()) == {"under 1.5", "1.5 to under 2.5", "2.5 and above"}


def test_without_edges_the_parts_are_of_equal_size() -> None:
    queries = {f"q{n}": " ".join(["word"] * (n + 1)) for n in range(6)}
    found = pd.Series(labels(data(queries), SliceConfig(name="length", kind="query_length", parts=3)))
    assert found.value_counts().to_dict() == {"under 3": 2, "3 to under 5": 2, "5 and above": 2}
    same = labels(data({"q1": "a", "q2": "b"}), SliceConfig(name="length", kind="query_length"))
    assert set(same.values()) == {"all"}


def test_rare_words_make_a_tail_query() -> None:
    found = labels(data({"q1": "heart", "q2": "apple", "q3": "kiwi", "q4": ""}), SliceConfig(name="rare", kind="head_tail", edges=(1, 2)))
    assert found == {"q1": "2 and above", "q2": "1 to under 2", "q3": "under 1", "q4": "under 1"}


def test_share_of_words_that_training_never_saw() -> None:
    found = labels(
        data({"q1": "Heart ATTACK", "q2": "heart kiwi", "q3": "kiwi"}), SliceConfig(name="new", kind="unseen_words", edges=(0.01, 0.75))
    )
    assert found == {"q1": "under 0.01", "q2": "0.01 to under 0.75", "q3": "0.75 and above"}


def test_without_train_queries_words_are_neither_rare_nor_unseen() -> None:
    definitions = [SliceConfig(name="rare", kind="head_tail"), SliceConfig(name="new", kind="unseen_words")]
    assert labels(data({"q1": "heart"}, train={}), *definitions) == {}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Herzinfarkt", "latin"),
        ("\uff28\uff25\uff21\uff32\uff34", "latin"),  # letters of full width
        ("инфаркт", "cyrillic"),
        ("心臓発作", "cjk"),
        ("心臓の発作", "japanese"),
        ("심장마비", "hangul"),
        ("نوبة قلبية", "arabic"),
        ("I21.9?", "latin"),
        ("21.9", "no letters"),
        ("", "no letters"),
    ],
)
def test_language_is_told_by_the_script(text: str, script: str) -> None:
    assert script_of(text) == script


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert words_of("心臓 heart-attack の") == ["心", "臓", "heart", "attack", "の"]


def test_domain_is_the_mixed_data_set_or_a_field_of_the_answer() -> None:
    mixed = data({"q1": "heart", "other/q1": "apple"}, sources=("own", "other"))
    assert labels(mixed, SliceConfig(name="domain", kind="domain")) == {"q1": "own", "other/q1": "other"}
    assert labels(data({"q1": "heart"}), SliceConfig(name="domain", kind="domain")) == {}
    chapter = SliceConfig(name="chapter", kind="domain", field="chapter")
    assert labels(data({"q1": "heart"}), chapter) == {"q1": "9"}
    assert labels(data({"q1": "heart"}), chapter.model_copy(update={"field": "none"})) == {"q1": "(none)"}
    broken = data({"q1": "heart"})
    broken.all_judgements.loc[0, "doc_id"] = "d2"
    assert labels(broken, chapter) == {"q1": "(none)"}


def test_pattern_parts_the_queries_in_two() -> None:
    found = labels(data({"q1": "I21", "q2": "heart"}), SliceConfig(name="codes", kind="pattern", pattern=r"^[a-z]\d+"))
    assert found == {"q1": "matches", "q2": "does not match"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "query_length", "edges": [3, 2]}, "must rise"),
        ({"kind": "query_length", "edges": [3, 3]}, "must rise"),
        ({"kind": "language", "edges": [3]}, "have no edges"),
        ({"kind": "pattern"}, "need a pattern"),
        ({"kind": "language", "pattern": "a"}, "take no pattern"),
        ({"kind": "pattern", "pattern": "("}, "no regular expression"),
        ({"kind": "language", "field": "chapter"}, "only domain"),
    ],
)
def test_definitions_that_make_no_sense_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SliceConfig.model_validate({"name": "a", **fields})


def test_slices_travel_with_the_report(tmp_path: Path) -> None:
    documents = {f"d{i}": word for i, word in enumerate(WORDS)}
    queries = {f"q{i}": word for i, word in enumerate(WORDS)}
    dataset = dataset_of(documents, queries, [(query, f"d{query[1:]}", 1) for query in queries])
    config = EvaluationConfig(bootstrap_samples=200)
    assert config.slices == STANDARD_SLICES
    evaluate({"student": symmetric_ranker(WordEncoder(), dataset)}, dataset, config, tmp_path, {})
    slices = load_evaluation(tmp_path).slices
    assert slices is not None
    assert set(slices["dimension"]) == {"query_length", "language"}  # nothing to train on and nothing mixed
    assert sorted(slices.loc[slices["dimension"] == "language", "query_id"]) == sorted(queries)
    (tmp_path / "slices.parquet").unlink()
    assert load_evaluation(tmp_path).slices is None
