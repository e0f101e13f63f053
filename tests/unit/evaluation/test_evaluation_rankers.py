from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import ir_measures
import pytest

from components.data.dataset import Dataset
from components.errors import ArtifactError, DataError, SpaceMismatch
from components.evaluation import bm25 as baselines
from components.evaluation.bm25 import GRID, Bm25Documents, Bm25Ranker, bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.metrics import read_trec_qrels, read_trec_run, write_trec_qrels, write_trec_run
from components.evaluation.rankers import DenseRanker, symmetric_ranker
from components.evaluation.report import Bm25Setup
from tests.encoders import WordEncoder, dataset_of

DOCUMENTS = {"d2": "apple bread", "d1": "apple bread", "d3": "cheese of the farm", "d4": "figs and figs and honey"}


def ranker_over(documents: dict[str, str], setup: Bm25Setup | None = None) -> Bm25Ranker:
    read = Bm25Documents.read(list(documents), list(documents.values()), setup.stemmer if setup else "none", progress=False)
    return Bm25Ranker(read, setup, progress=False)


def test_bm25_finds_shared_words_only_with_ties_in_the_order_of_ids() -> None:
    ranker = bm25_ranker(dataset_of(DOCUMENTS, {}, []), progress=False)
    apple, cheese, nothing, empty, unseen = ranker.rank(["Apple", "cheese figs", "zebra", "", "?!"], 10)
    assert [doc_id for doc_id, _ in apple] == ["d1", "d2"]
    assert apple[0][1] == apple[1][1] > 0
    assert {doc_id for doc_id, _ in cheese} == {"d3", "d4"}
    assert nothing == empty == unseen == []
    assert ranker.rank(["apple"], 1) == [apple[:1]]


def test_bm25_scores_by_hand() -> None:
    lengths = {"a": 1, "b": 5, "c": 1, "d": 1}
    texts = ["apple", "apple bread cheese dates eggs", "bread", "bread"]
    ranker = ranker_over(dict(zip(lengths, texts, strict=True)), Bm25Setup(k1=1.5, b=0.75))

    def part(doc_id: str, documents_with_word: int) -> float:
        rarity = math.log(1 + (4 - documents_with_word + 0.5) / (documents_with_word + 0.5))
        return rarity / (1 + 1.5 * (0.25 + 0.75 * lengths[doc_id] / 2))

    expected = {"a": part("a", 2), "b": part("b", 2) + part("b", 3), "c": part("c", 3), "d": part("d", 3)}
    found = ranker.rank(["apple bread"], 10)[0]
    assert dict(found) == pytest.approx(expected, rel=1e-5)
    assert [doc_id for doc_id, _ in found] == sorted(expected, key=lambda doc_id: (-expected[doc_id], doc_id))


def test_bm25_cuts_equal_scores_in_the_order_of_the_ids() -> None:
    ranker = ranker_over({f"d{i}": "apple" for i in (3, 1, 4, 0, 2)} | {"e": "apple apple", "f": "bread"})
    assert [doc_id for doc_id, _ in ranker.rank(["apple"], 3)[0]] == [doc_id for doc_id, _ in ranker.rank(["apple"], 9)[0]][:3]
    assert [doc_id for doc_id, _ in ranker.rank(["apple"], 9)[0] if doc_id != "e"] == ["d0", "d1", "d2", "d3", "d4"]


@pytest.mark.parametrize("texts", [["", ""], ["?", "..."]])
def test_bm25_over_documents_without_words(texts: list[str]) -> None:
    assert ranker_over({"a": texts[0], "b": texts[1]}).rank(["apple"], 5) == [[]]


def test_words_of_one_letter_and_frequent_words_are_kept() -> None:
    ranker = ranker_over({"a": "hepatitis A", "b": "hepatitis B", "r": "ls -r", "the": "The Who"})
    assert [found[0][0] for found in ranker.rank(["hepatitis b", "list -R", "the"], 1)] == ["b", "r", "the"]


@pytest.mark.parametrize(
    ("stemmer", "document", "query"),
    [("english", "fractured bones", "bone fractures"), ("german", "gebrochene Häuser", "Haus"), ("none", "東京都の病院", "病院")],
)
def test_stems_and_unspaced_scripts_meet_their_queries(stemmer: str, document: str, query: str) -> None:
    documents = {"a": "something else", "b": document}
    assert [doc_id for doc_id, _ in ranker_over(documents, Bm25Setup(stemmer=stemmer)).rank([query], 2)[0]] == ["b"]


LANGUAGES = {
    "english": "The patient was admitted to the hospital with a fracture of the hip, and the surgeon decided to operate by the next day.",
    "german": "Der Patient wurde mit einer Fraktur der Hüfte in das Krankenhaus gebracht, und die Chirurgin ist nicht zu sprechen.",
    "french": "Le malade est arrivé dans la nuit avec une fracture de la hanche et des douleurs qui ne sont pas passées sur le moment.",
    "spanish": "El paciente llegó con una fractura de la cadera y los médicos hablaron con su familia sobre las operaciones del día.",
    "portuguese": "O doente não veio com uma fratura do braço, mas os médicos dos serviços foram chamados pela enfermeira ao hospital.",
    "danish": "Patienten blev bragt til sygehuset efter et brud af hoften, uden at nogle af lægerne bliver klar over, hvad der skete.",
    "norwegian": "Pasienten ble brakt til sykehuset etter et brudd av hoften, uten at noen av legene blir klar over hva han sa om seg.",
    "russian": "Это было не так, как они говорили, потому что для него из больницы её также не привезли, или был другой врач.",
}  # fmt: skip


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_documents_tell_their_language(language: str) -> None:
    found = bm25_ranker(dataset_of({f"d{i}": LANGUAGES[language] for i in range(9)}, {}, []), progress=False).setup
    assert (found.stemmer, found.told) == (language, True)


@pytest.mark.parametrize(
    "texts",
    [
        [LANGUAGES["english"]],  # too few words
        [LANGUAGES["english"], LANGUAGES["german"]] * 9,
        ["東京都の病院で治療を受ける患者の記録" * 9] * 9,
        ["Apple Bread Cheese Dates"] * 90,
        [],
    ],
)
def test_a_language_that_is_not_clear_or_has_no_stemmer_is_said_and_not_stemmed(texts: list[str]) -> None:
    setup = bm25_ranker(dataset_of({f"d{i}": text for i, text in enumerate(texts)}, {}, []), progress=False).setup
    assert setup.stemmer == "none" and "no stemmer: the documents' language is not clear or has none" in setup.words


def test_a_stemmer_is_asked_for_by_name_or_code_or_refused() -> None:
    assert [EvaluationConfig(bm25_stemmer=name).bm25_stemmer for name in ("German", "de", "AUTO", "none")] == [
        "german",
        "german",
        "auto",
        "none",
    ]
    with pytest.raises(ValueError, match=r"no stemmer for 'japanese'; take auto, none, or one of arabic.*yiddish"):
        EvaluationConfig(bm25_stemmer="japanese")
    with pytest.raises(ValueError, match="at least 1 character"):
        EvaluationConfig(bm25_stemmer="")


def with_dev(documents: dict[str, str], answers: dict[str, str]) -> Dataset:
    dataset = dataset_of(documents, answers, [(query, query.removeprefix("q-"), 1) for query in answers])
    return replace(dataset, all_judgements=dataset.all_judgements.assign(split="dev"))


def test_k1_and_b_are_those_that_are_best_on_dev() -> None:
    # Long answers that repeat the word beside short documents that have it once: only a small b puts the answers first.
    long = {f"a{i}": f"w{i} " * 8 + " ".join(f"other{i}x{n}" for n in range(60)) for i in range(5)}
    short = {f"b{i}{n}": f"w{i} again" for i in range(5) for n in range(12)}
    ranker = bm25_ranker(with_dev(long | short, {f"q-a{i}": f"w{i}" for i in range(5)}), progress=False)
    assert ranker.setup.b == min(b for _, b in GRID) and ranker.setup.dev_queries == 5
    assert "chosen on 5 dev queries" in ranker.setup.words
    usual = ranker_over(long | short)

    def place(one: Bm25Ranker) -> int:
        return [doc_id for doc_id, _ in one.rank(["w0"], 50)[0]].index("a0")

    assert place(ranker) < place(usual)


@pytest.mark.parametrize("entries", [7, 2**22])
def test_another_k1_and_b_give_the_scores_of_an_index_that_was_made_with_them(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "_ENTRIES", entries)
    rng = random.Random(0)
    documents = {f"d{i:03}": " ".join(rng.choices("abcdefghij", weights=range(1, 11), k=rng.randrange(0, 120))) for i in range(200)}
    documents |= {"loud": "k " * 3000, "k": "k"}
    one = ranker_over(documents)
    for k1, b in GRID:
        found, made = one.at(k1, b, 0), ranker_over(documents, Bm25Setup(k1=k1, b=b))
        assert (found.setup.k1, found.setup.b) == (k1, b)
        for ours, theirs in zip(found.rank(["a j j", "k", "e"], 300), made.rank(["a j j", "k", "e"], 300), strict=True):
            assert dict(ours) == pytest.approx(dict(theirs), rel=1e-5)
    assert one.setup == Bm25Setup()


def test_of_equally_good_k1_and_b_lucenes_are_taken() -> None:
    setup = bm25_ranker(with_dev({"a": "apple", "b": "bread"}, {"q-a": "apple", "q-b": "bread"}), progress=False).setup
    assert (setup.k1, setup.b, setup.dev_queries) == (1.2, 0.75, 2)


def test_a_large_corpus_is_sampled_for_the_choice_and_keeps_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "DEV_DOCUMENTS", 10)
    monkeypatch.setattr(baselines, "DEV_QUERIES", 3)
    documents = {f"d{i:02}": f"word{i} filler" for i in range(40)}
    sizes: list[int] = []
    index = baselines._index
    monkeypatch.setattr(baselines, "_index", lambda documents, setup: sizes.append(len(documents.rows)) or index(documents, setup))
    ranker = bm25_ranker(with_dev(documents, {f"q-d{i:02}": f"word{i}" for i in (1, 2, 3, 5, 7, 9)}), progress=False)
    assert sizes == [40, 10 + 3] and ranker.setup.dev_queries == 3
    assert ranker.rank(["word39"], 5)[0][0][0] == "d39"


def test_bm25_is_quiet_where_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []
    bar = baselines.progress_bar
    monkeypatch.setattr(baselines, "progress_bar", lambda *a, **k: shown.append(k["shown"]) or bar(*a, **k))
    loud = bm25_ranker(dataset_of(DOCUMENTS, {}, []))
    shown.clear()
    assert loud.quiet().rank(["apple"], 2) == loud.rank(["apple"], 2) and shown == [False, True]


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


def test_judgements_are_written_as_trec_eval_reads_them(tmp_path: Path) -> None:
    import ir_measures
    import pandas as pd

    judged = pd.DataFrame({"query_id": ["q1", "q1", "q2"], "doc_id": ["a", "b", "é"], "score": [2, -1, 1]})
    write_trec_qrels(tmp_path / "qrels.trec", judged)
    read = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec")))
    assert [(row.query_id, row.doc_id, row.relevance) for row in read] == [("q1", "a", 2), ("q1", "b", 0), ("q2", "é", 1)]
    with pytest.raises(DataError, match="'a b' cannot stand in a TREC file"):
        write_trec_qrels(tmp_path / "other.trec", judged.assign(doc_id="a b"))
    assert not (tmp_path / "other.trec").exists()


@pytest.mark.parametrize("content", [b"q1 0 a\n", b"q1 0 a x y z\n", b"\xff\n"])
def test_a_broken_trec_file_is_named_with_what_to_do(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.trec").write_bytes(content)
    for read in (read_trec_run, read_trec_qrels):
        with pytest.raises(ArtifactError, match=r"broken\.trec cannot be read as .* Restore the release, or retrain"):
            read(tmp_path / "broken.trec")
