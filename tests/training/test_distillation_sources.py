"""Query sources: samples, generated queries, shares in the lineage, and what is refused before training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from components.artifacts import verify
from components.data.dataset import Dataset, content_hash, query_table
from components.distillation import generation
from components.distillation.config import DistillationConfig
from components.distillation.generation import GENERATED, generate_queries, read_generated
from components.distillation.query_sources import (
    dev_queries,
    document_sentences,
    document_spans,
    learnable,
    mixed_noise,
    originals,
    query_sources,
)
from components.distillation.teacher_targets import TARGETS, read_held_out, read_sources, read_teacher_targets, write_teacher_targets
from components.distillation.train import (
    DocumentSide,
    check_sources,
    distillation_data,
    held_out_documents,
    noised_copies,
    refinement_pairs,
)
from components.errors import ArtifactError, DataError, ModelError
from components.towers.base_models import resolve_base
from components.towers.trained import stored
from tests.encoders import WordEncoder

TITLES = ("Apple", "Bread", "Cheese", "Dates", "Eggs", "Figs", "Grape", "Honey")


def data(splits: tuple[str, ...] = ("train", "dev")) -> Dataset:
    """Eight documents; query n asks for document n, the first five for training, the others dev."""
    texts = [f"All about {title.lower()} in the kitchen. It keeps for {n} days! See also: page {n}" for n, title in enumerate(TITLES)]
    rows = [(f"d{n}", title, text, "{}", content_hash(text)) for n, (title, text) in enumerate(zip(TITLES, texts, strict=True))]
    judged = [(f"q{n}", f"d{n}", 1, "train" if n < 5 else "dev") for n in range(8)]
    return Dataset(
        documents=pd.DataFrame(rows, columns=["doc_id", "title", "text", "metadata", "content_hash"]),
        queries=pd.DataFrame([(f"q{n}", f"where is {title.lower()}") for n, title in enumerate(TITLES)], columns=["query_id", "text"]),
        all_judgements=pd.DataFrame([j for j in judged if j[3] in splits], columns=["query_id", "doc_id", "score", "split"]),
        unlabelled=pd.DataFrame({"query_id": ["u0"], "text": ["honey and bread"]}),
    )


def test_sentences_are_cut_at_their_ends_and_sampled_with_the_seed() -> None:
    texts = ["One two three. Four five six!\nSeven eight nine ten", "Short. Eleven twelve thirteen", ""]
    assert set(document_sentences(texts, 10, 1)) == {"One two three.", "Four five six!", "Seven eight nine ten", "Eleven twelve thirteen"}
    first = document_sentences([f"Document number {n} says a. Document number {n} says b." for n in range(50)], 20, 1)
    assert len(first) == 20
    assert len({sentence.split()[2] for sentence in first}) == 20  # no document twice while others have none
    assert first == document_sentences([f"Document number {n} says a. Document number {n} says b." for n in range(50)], 20, 1)
    assert first != document_sentences([f"Document number {n} says a. Document number {n} says b." for n in range(50)], 20, 2)
    assert document_sentences(texts, 0, 1) == []


def test_sentences_and_spans_are_cut_where_a_script_writes_no_spaces() -> None:
    chinese = "人工智能是一门新的技术科学。你喜欢它吗？他说：「我马上就来了。」然后走了！短。"  # noqa: RUF001
    sentences = {"人工智能是一门新的技术科学。", "你喜欢它吗？", "他说：「我马上就来了。」", "然后走了！"}  # noqa: RUF001
    assert set(document_sentences([chinese], 10, 1)) == sentences
    assert set(document_sentences(["यह एक वाक्य है। यह दूसरा वाक्य है।"], 10, 1)) == {"यह एक वाक्य है।", "यह दूसरा वाक्य है।"}
    korean = ["가나 다라마 바사. 아자 차카 타파.", "가나다라마바사."]  # has spaces: the second is one word
    assert set(document_sentences(korean, 10, 1)) == {"가나 다라마 바사.", "아자 차카 타파."}
    mixed = "これは 日本語の文で、Python3を使います"
    spans = document_spans([chinese, mixed], 12, 1)
    assert len(spans) == 12 and all(3 <= len(span) <= 30 and (span in chinese or span in mixed) for span in spans)


def test_every_source_is_there_in_its_number() -> None:
    sources = query_sources(data(), DistillationConfig(titles=3, sentences=6), ["a generated query"])
    assert {name: len(texts) for name, texts in sources.items()} == {
        "train": 5,
        "unlabelled": 1,
        "titles": 3,
        "sentences": 6,
        "generated": 1,
    }


def test_spans_are_runs_of_words_that_stand_in_a_document() -> None:
    texts = [f"one two three four five six seven eight nine ten eleven twelve thirteen number {n}" for n in range(20)] + ["too short", ""]
    found = document_spans(texts, 15, 1)
    assert len(found) == len(set(found)) == 15
    assert all(3 <= len(span.split()) <= 12 and any(span in text for text in texts) for span in found)
    assert found == document_spans(texts, 15, 1) != document_spans(texts, 15, 2)
    assert document_spans(texts, 0, 1) == document_spans([], 5, 1) == document_spans(["too short"], 5, 1) == []
    assert document_spans(["one two three"], 5, 1) == ["one two three"]


def test_spans_are_a_source_where_they_are_asked_for() -> None:
    sources = query_sources(data(), DistillationConfig(titles=3, spans=6))
    assert len(sources["spans"]) == 6 and "spans" not in query_sources(data(), DistillationConfig())


def test_noised_copies_are_taught_the_vector_of_the_text_as_it_was(tmp_path: Path) -> None:
    config = DistillationConfig(titles=8, noised=6)
    sources = query_sources(data(), config)
    write_teacher_targets(WordEncoder(), sources, {}, tmp_path, dev_queries(data()))
    documents = DocumentSide(WordEncoder("document").encode(data().document_texts()), "space", lambda vectors, k: [])
    plain = distillation_data(data(), tmp_path, documents, config)
    found = distillation_data(data(), tmp_path, documents, config, None, mixed_noise)
    assert list(found.texts[: len(plain.texts)]) == list(plain.texts) and found.pairs == plain.pairs
    copies = found.texts[len(plain.texts) :]
    assert len(copies) == 6 and list(found.sources[len(plain.texts) :]) == ["noised"] * 6
    clean = {copy: original for original, copy in zip(plain.texts, mixed_noise(plain.texts, config.seed), strict=True)}
    for copy, vector in zip(copies, found.teacher[len(plain.texts) :], strict=True):
        assert copy not in plain.texts
        np.testing.assert_allclose(vector, plain.teacher[list(plain.texts).index(clean[copy])])
    assert distillation_data(data(), tmp_path, documents, config.model_copy(update={"noised": 0}), None, mixed_noise).texts == plain.texts


def translated(*rows: tuple[str | None, str | None]) -> Dataset:
    texts, originals = zip(*rows, strict=True)
    return replace(data(), translated=query_table([f"t{n}" for n in range(len(rows))], texts, originals))


def test_a_translation_is_taught_the_vector_of_its_original_and_led_to_its_documents(tmp_path: Path) -> None:
    whole = translated(("wo ist brot", "where is bread"), ("where is apple", "where is bread"), ("käse und datteln", "cheese and dates"))
    config = DistillationConfig(titles=0)
    sources = query_sources(whole, config)
    assert sources["translated"] == ["wo ist brot", "where is apple", "käse und datteln"]
    made = write_teacher_targets(WordEncoder(), sources, {}, tmp_path, dev_queries(whole), None, originals(whole))
    texts, vectors = read_teacher_targets(tmp_path)
    # A text that is a train query as well keeps its own meaning.
    wanted = {"wo ist brot": "where is bread", "where is apple": "where is apple", "käse und datteln": "cheese and dates"}
    for text, original in wanted.items():
        np.testing.assert_allclose(vectors[texts.index(text)], WordEncoder().encode([original])[0], atol=1e-3)
    assert made.counts["source_translated"] == 2 and made.counts["source_train"] == 5
    pairs = refinement_pairs(whole, texts, False)
    assert (texts.index("wo ist brot"), 1) in pairs and not any(texts[text] == "käse und datteln" for text, _ in pairs)
    assert len(pairs) == 5 + 1 + 1  # "where is apple" is a translation of the query for bread, and says so


def test_a_translation_that_says_what_a_held_out_query_says_is_left_out_and_counted() -> None:
    whole = translated(
        ("wo ist honig", "Where is HONEY?"),
        ("where is figs!", "where is bread"),
        ("wo ist brot", "where is bread"),
        (" ", "x"),
        ("y", None),
    )
    sources, left_out = learnable(whole, DistillationConfig(titles=0))
    assert sources["translated"] == ["wo ist brot"] and left_out["translated"] == 2


def test_a_text_of_emoji_alone_is_learned_unless_it_is_the_held_out_one() -> None:
    whole = translated(("🍯", "where is bread"), ("🍞", "where is bread"))
    honey = whole.queries["text"].mask(whole.queries["text"].str.lower() == "where is honey", "🍯 ")
    sources, left_out = learnable(replace(whole, queries=whole.queries.assign(text=honey)), DistillationConfig(titles=0))
    assert sources["translated"] == ["🍞"] and left_out["translated"] == 1


def test_a_share_of_translations_needs_some() -> None:
    config = DistillationConfig(titles=8, source_shares={"translated": 0.5, "train": 0.5})
    with pytest.raises(DataError, match="translated"):
        check_sources(data(), config)
    check_sources(translated(("wo ist brot", "where is bread")), config)


def test_an_unlabelled_query_with_a_translation_is_taught_what_it_means(tmp_path: Path) -> None:
    whole = translated(("honey and bread", "cheese and dates"))
    write_teacher_targets(WordEncoder(), query_sources(whole, DistillationConfig(titles=0)), {}, tmp_path, (), None, originals(whole))
    texts, vectors = read_teacher_targets(tmp_path)
    np.testing.assert_allclose(vectors[texts.index("honey and bread")], WordEncoder().encode(["cheese and dates"])[0], atol=1e-3)


def test_a_share_of_texts_that_all_stand_in_an_earlier_source_is_refused_before_training() -> None:
    config = DistillationConfig(titles=0, source_shares={"unlabelled": 0.5, "train": 0.5})
    check_sources(data(), config)
    asked = replace(data(), unlabelled=pd.DataFrame({"query_id": ["u0"], "text": ["where is apple"]}))
    with pytest.raises(DataError, match=r"'unlabelled' a share of 0\.5, but there are no such queries \(train: 5, unlabelled: 0"):
        check_sources(asked, config)
    check_sources(
        asked, DistillationConfig(noised=1, generated=1, generator="tiny-decoder", source_shares={"noised": 0.5, "generated": 0.5})
    )


def test_no_noised_copy_reads_as_a_held_out_query() -> None:
    held_out, config = "where is honey", DistillationConfig(noised=5)
    for copy in (held_out, held_out.upper() + "?", "", "where is bread"):
        given = ["where is bread", "where is apple"]
        assert noised_copies(data(), given, config, lambda texts, seed, copy=copy: [copy] * len(texts)) == {}


def test_targets_count_sources_and_keep_held_out_queries_apart(tmp_path: Path) -> None:
    sources = query_sources(data(), DistillationConfig(titles=8, sentences=0), ["where is apple", "more figs"])
    made = write_teacher_targets(WordEncoder(), sources, {}, tmp_path, dev_queries(data()))
    assert made.counts == {
        "queries": 15,
        "source_train": 5,
        "source_unlabelled": 1,
        "source_titles": 8,
        "source_sentences": 0,
        "source_generated": 1,
    }
    assert made.attributes["share_train"] == pytest.approx(5 / 15, abs=1e-4)
    texts, vectors = read_teacher_targets(tmp_path)
    assert dict(zip(texts, read_sources(tmp_path), strict=True))["more figs"] == "generated"
    assert "where is honey" not in texts and len(texts) == len(vectors) == 15
    held_out = read_held_out(tmp_path)
    assert sorted(held_out) == ["where is figs", "where is grape", "where is honey"]
    np.testing.assert_allclose(held_out["where is figs"], WordEncoder().encode(["where is figs"])[0], atol=1e-3)


def test_many_wide_vectors_are_written_and_read_in_groups_and_few_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources, folders = query_sources(data(), DistillationConfig(titles=8)), [tmp_path / "whole", tmp_path / "groups"]
    for folder, most in zip(folders, (stored.MOST_NUMBERS, 2 * WordEncoder().contract.dimension), strict=True):
        folder.mkdir()
        monkeypatch.setattr(stored, "MOST_NUMBERS", most)
        write_teacher_targets(WordEncoder(), sources, {}, folder, dev_queries(data()))
    assert [pq.ParquetFile(folder / TARGETS).num_row_groups for folder in folders] == [1, 9]
    (texts, vectors), (same_texts, same_vectors) = map(read_teacher_targets, folders)
    assert texts == same_texts
    np.testing.assert_array_equal(vectors, same_vectors)
    assert read_sources(folders[0]) == read_sources(folders[1])
    whole, groups = map(read_held_out, folders)
    assert list(whole) == list(groups) == dev_queries(data())
    np.testing.assert_array_equal(list(whole.values()), list(groups.values()))


def test_a_damaged_table_of_targets_is_named(tmp_path: Path) -> None:
    (tmp_path / TARGETS).write_bytes(b"PAR1 cut off")
    with pytest.raises(ArtifactError, match=r"teacher_targets\.parquet cannot be read"):
        read_teacher_targets(tmp_path)


def test_the_data_of_a_distillation_knows_sources_and_the_teacher_on_dev(tmp_path: Path) -> None:
    config = DistillationConfig(titles=8)
    write_teacher_targets(WordEncoder(), query_sources(data(), config), {}, tmp_path, dev_queries(data()))
    documents = DocumentSide(WordEncoder("document").encode(data().document_texts()), "space", lambda vectors, k: [])
    found = distillation_data(data(), tmp_path, documents, config, tmp_path)
    assert found.sources == ["train"] * 5 + ["unlabelled"] + ["titles"] * 8
    assert found.dev.queries == ["where is figs", "where is grape", "where is honey"]
    assert found.dev.teacher is not None and found.dev.teacher.shape == (3, found.teacher.shape[1])
    assert found.teacher_folder == tmp_path
    assert found.pairs[:5] == [(n, n) for n in range(5)]


def test_what_cannot_be_learned_from_is_said_before_training() -> None:
    check_sources(data(), DistillationConfig(source_shares={"train": 0.5, "unlabelled": 0.5}))
    with pytest.raises(DataError, match=r"'generated' a share of 0\.5, but there are no such queries"):
        check_sources(data(), DistillationConfig(source_shares={"train": 0.5, "generated": 0.5}))
    check_sources(data(), DistillationConfig(generated=5, generator="tiny-decoder", source_shares={"generated": 1.0}))
    with pytest.raises(DataError, match="no judgements for the split 'dev'"):
        check_sources(data(("train",)), DistillationConfig())


def generator_config(count: int) -> DistillationConfig:
    return DistillationConfig(generated=count, generator="tiny-decoder", precision="float32")


def test_a_decoder_writes_a_query_for_each_document_and_the_same_one_again(home: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    made = generate_queries(data(), generator_config(6), {"dataset": "d"}, tmp_path / "a")
    again = generate_queries(data(), generator_config(6), {"dataset": "d"}, tmp_path / "b")
    assert made.digest == again.digest
    assert verify(tmp_path / "a").kind == "queries"
    rows = generation._rows(tmp_path / "a" / GENERATED)
    assert len({row["doc_id"] for row in rows}) == 6
    assert 0 < made.counts["queries"] == len(read_generated(tmp_path / "a")) <= 6
    assert made.attributes["generator"] == "tiny-decoder"


def test_a_killed_generation_continues_after_its_last_whole_batch(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "BATCH", 2)
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
    straight = generate_queries(data(), generator_config(8), {}, tmp_path / "straight")
    lines = (tmp_path / "straight" / GENERATED).read_text().splitlines(keepends=True)
    # Killed in the middle of the sixth line: two whole batches and a half are there.
    (tmp_path / "killed" / GENERATED).write_text("".join(lines[:5]) + lines[5][:7])
    written: list[int] = []
    real = generation._Generator.continue_all
    monkeypatch.setattr(generation._Generator, "continue_all", lambda self, prompts: written.append(len(prompts)) or real(self, prompts))
    assert generate_queries(data(), generator_config(8), {}, tmp_path / "killed").digest == straight.digest
    assert written == [2, 2]


def test_leftovers_of_other_documents_are_not_taken(home: Path, tmp_path: Path) -> None:
    (tmp_path / GENERATED).write_text('{"doc_id": "another", "query": "stale"}\n')
    generate_queries(data(), generator_config(3), {}, tmp_path)
    assert "stale" not in read_generated(tmp_path)


def test_only_the_first_line_without_quotes_is_a_query() -> None:
    assert generation._first_line('\n "how  to keep bread" \n\nDocument: next') == "how to keep bread"
    assert generation._first_line("  \n ") == ""


def test_a_prompt_shows_train_queries_and_ends_where_the_query_begins() -> None:
    ids, prompts = generation._prompts(data(), generator_config(2))
    assert len(ids) == len(prompts) == 2
    title = TITLES[int(ids[0][1:])]
    assert prompts[0].count("Document:") == 4 and prompts[0].count("Search query: where is ") == 3
    assert prompts[0].endswith("Search query:") and prompts[0].split("Document: ")[-1].startswith(title)


def test_a_document_without_spaces_between_words_is_shortened_too() -> None:
    assert len(generation._shortened("文" * 5000)) == generation.DOCUMENT_CHARACTERS
    assert generation._shortened("one  two\nthree") == "one two three"


def test_a_prompt_beyond_the_positions_of_the_generator_is_refused_in_words(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'tiny-decoder.*' has positions for 512 tokens, but 3 examples and a document take"):
        generator = generation._Generator(resolve_base("tiny-decoder", TITLES), generator_config(1))
        generator.continue_all(["kidney " * 600])


def test_a_model_without_a_language_head_cannot_generate(home: Path, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3Model

    from components.towers.base_models import resolve_base

    tiny = Path(resolve_base("tiny-decoder", data().document_texts()).location)
    headless = tmp_path / "headless"
    config = Qwen3Config.from_pretrained(tiny, tie_word_embeddings=False)
    Qwen3Model(config).save_pretrained(headless)
    for file in tiny.glob("tokenizer*"):
        (headless / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match=r"saved without lm_head"):
        generate_queries(data(), DistillationConfig(generated=2, generator=str(headless)), {}, tmp_path)
    with pytest.raises(ModelError, match="missing"):
        generate_queries(data(), DistillationConfig(generated=2, generator="./missing"), {}, tmp_path)


def held_out_titles() -> Dataset:
    """The data with a test query that is a document's title, and with a dev query that a sentence is."""
    whole = data()
    asked = pd.DataFrame([("t0", "HONEY."), ("t1", "all about figs in the kitchen")], columns=["query_id", "text"])
    judged = pd.DataFrame([("t0", "d7", 1, "test"), ("t1", "d5", 1, "dev")], columns=["query_id", "doc_id", "score", "split"])
    return replace(
        whole,
        queries=pd.concat([whole.queries, asked], ignore_index=True),
        all_judgements=pd.concat([whole.all_judgements, judged], ignore_index=True),
    )


def test_titles_sentences_and_generated_queries_that_are_tested_are_left_out_and_counted(tmp_path: Path) -> None:
    config = DistillationConfig(titles=8, sentences=40)
    sources, left_out = learnable(held_out_titles(), config, ["honey", "where is GRAPE?", "more figs"])
    assert "Honey" not in sources["titles"] and len(sources["titles"]) == 7
    assert "All about figs in the kitchen." not in sources["sentences"]
    assert "All about eggs in the kitchen." in sources["sentences"]
    assert sources["generated"] == ["more figs"]
    assert left_out == {"unlabelled": 0, "titles": 1, "sentences": 1, "generated": 2}
    assert sources == query_sources(held_out_titles(), config, ["honey", "where is GRAPE?", "more figs"])
    made = write_teacher_targets(WordEncoder(), sources, {}, tmp_path, (), left_out)
    assert {name: count for name, count in made.counts.items() if "left_out" in name} == {
        "left_out_titles": 1,
        "left_out_sentences": 1,
        "left_out_generated": 2,
    }


def test_an_unlabelled_query_that_is_tested_is_no_text_to_align_on() -> None:
    whole = data()
    leaking = replace(whole, unlabelled=pd.DataFrame({"query_id": ["u0", "u1"], "text": ["Where is honey", "new"]}))
    assert query_sources(leaking, DistillationConfig(titles=8))["unlabelled"] == ["new"]


def test_train_queries_are_never_left_out() -> None:
    assert len(query_sources(data(), DistillationConfig(titles=0))["train"]) == 5


def test_titles_of_held_out_documents_can_be_kept_from_the_refinement_and_are_counted(tmp_path: Path) -> None:
    whole = data()
    assert held_out_documents(whole) == {"d5", "d6", "d7"}
    texts = query_sources(whole, DistillationConfig(titles=8))
    every = [text for source in texts.values() for text in source]
    both, without, none = (refinement_pairs(whole, every, titles) for titles in (True, "train_documents", False))
    assert {document for _, document in both} == set(range(8))
    assert {document for _, document in without} == set(range(5)) and len(without) == len(both) - 3
    assert none == [(n, n) for n in range(5)]
    write_teacher_targets(WordEncoder(), texts, {}, tmp_path, dev_queries(whole))
    documents = DocumentSide(WordEncoder("document").encode(whole.document_texts()), "space", lambda vectors, k: [])
    for titles, count in ((True, 3), ("train_documents", 0), (False, 0)):
        config = DistillationConfig.model_validate({"titles": 8, "refine_titles": titles})
        assert distillation_data(whole, tmp_path, documents, config).held_out_titles == count


def test_a_document_that_a_train_query_asks_for_too_is_not_held_out() -> None:
    whole = data()
    shared = pd.concat([whole.all_judgements, pd.DataFrame([("q0", "d5", 1, "train")], columns=whole.all_judgements.columns)])
    assert held_out_documents(replace(whole, all_judgements=shared)) == {"d6", "d7"}
