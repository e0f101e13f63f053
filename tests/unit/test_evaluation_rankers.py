from __future__ import annotations

import math
from pathlib import Path

import ir_measures
import pytest

from components.errors import DataError, SpaceMismatch
from components.evaluation.baselines import Bm25Ranker, bm25_ranker
from components.evaluation.rankers import DenseRanker, symmetric_ranker
from components.evaluation.trec import write_trec_run
from tests.encoders import WordEncoder, dataset_of

DOCUMENTS = {"d2": "apple bread", "d1": "apple bread", "d3": "cheese of the farm", "d4": "figs and figs and honey"}


def test_bm25_finds_shared_words_only_with_ties_in_the_order_of_ids() -> None:
    ranker = bm25_ranker(dataset_of(DOCUMENTS, {}, []), progress=False)
    apple, cheese, nothing, empty, stop = ranker.rank(["Apple", "cheese figs", "zebra", "", "of the"], 10)
    assert [doc_id for doc_id, _ in apple] == ["d1", "d2"]
    assert apple[0][1] == apple[1][1] > 0
    assert {doc_id for doc_id, _ in cheese} == {"d3", "d4"}
    assert nothing == empty == stop == []
    assert ranker.rank(["apple"], 1) == [apple[:1]]


def test_bm25_scores_by_hand() -> None:
    lengths = {"a": 1, "b": 5, "c": 1, "d": 1}
    ranker = Bm25Ranker(list(lengths), ["apple", "apple bread cheese dates eggs", "bread", "bread"], progress=False)

    def part(doc_id: str, documents_with_word: int) -> float:
        rarity = math.log(1 + (4 - documents_with_word + 0.5) / (documents_with_word + 0.5))
        return rarity / (1 + 1.5 * (0.25 + 0.75 * lengths[doc_id] / 2))

    expected = {"a": part("a", 2), "b": part("b", 2) + part("b", 3), "c": part("c", 3), "d": part("d", 3)}
    found = ranker.rank(["apple bread"], 10)[0]
    assert dict(found) == pytest.approx(expected, rel=1e-5)
    assert [doc_id for doc_id, _ in found] == sorted(expected, key=lambda doc_id: (-expected[doc_id], doc_id))


@pytest.mark.parametrize("texts", [["", ""], ["of", "the"]])
def test_bm25_over_documents_without_words(texts: list[str]) -> None:
    assert Bm25Ranker(["a", "b"], texts, progress=False).rank(["apple"], 5) == [[]]


def test_a_symmetric_ranker_encodes_documents_itself() -> None:
    encoder = WordEncoder()
    ranker = symmetric_ranker(encoder, dataset_of(DOCUMENTS, {}, []))
    found = ranker.rank(["apple", "honey"], 2)
    assert [doc_id for doc_id, _ in found[0]] == ["d1", "d2"]
    assert found[1][0][0] == "d4"
    assert len(encoder.calls[0]) == 4


def test_an_encoder_and_an_index_of_two_spaces_are_not_measured() -> None:
    index = symmetric_ranker(WordEncoder(), dataset_of(DOCUMENTS, {}, [])).index
    with pytest.raises(SpaceMismatch, match="vector space"):
        DenseRanker(WordEncoder(name="other"), index)


def test_a_run_file_keeps_our_order_for_tools_that_sort_by_score(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.trec"
    write_trec_run(path, {"q1": [("a", 0.5), ("b", 0.5), ("c", 0.5)], "q2": [], "q3": [("x", 12.25)]}, "bm25")
    lines = path.read_text().splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["q1", "Q0", "a", "1"],
        ["q1", "Q0", "b", "2"],
        ["q1", "Q0", "c", "3"],
        ["q3", "Q0", "x", "1"],
    ]
    assert lines[3] == "q3 Q0 x 1 12.25 bm25"
    # trec_eval breaks a tie towards the last id, so with equal scores "a" would come third.
    run, qrels = ir_measures.read_trec_run(str(path)), {"q1": {"a": 1}}
    assert ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10] == 1.0


def test_an_id_with_white_space_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run.trec"
    write_trec_run(path, {"q": [("a", 1.0)]}, "t")
    before = path.read_bytes()
    with pytest.raises(DataError, match="'a b'"):
        write_trec_run(path, {"q": [("x", 2.0), ("a b", 1.0)]}, "t")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_file_names_a_document_once_at_its_first_place(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "run.trec", {"q": [("a", 3.0), ("b", 2.0), ("a", 1.0), ("c", 0.5)]}, "t")
    written = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert [(row[2], row[3]) for row in written] == [("a", "1"), ("b", "2"), ("c", "3")]
