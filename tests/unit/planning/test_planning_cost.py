"""The cost model by numbers that are worked out by hand, and the shapes that it computes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from components.errors import ModelError
from components.index.engine import empty_index, train
from components.planning.cost import (
    PROBE_TOKENS,
    PROBES,
    UNITS,
    WORKER,
    card_needs,
    companion_parameters,
    mined_bytes,
    needs_of,
    padded,
    real,
    seconds_of,
    step_tokens,
    target_texts,
    trained_parameters,
    training_bytes,
    work_of,
    work_steps,
)
from components.planning.facts import bytes_per_row
from flows.config import Layer, RetrainConfig, layers_of, nested, settle
from tests.unit.index_world import clustered
from tests.unit.planning_world import DECODER, ENCODER, facts, texts


def config(**changes: Any) -> RetrainConfig:
    given = nested({key.replace("__", "."): value for key, value in changes.items()})
    return settle(RetrainConfig, [*layers_of("smoke"), Layer("a preset", given)])


def test_seconds_are_the_sum_of_count_times_rate() -> None:
    assert seconds_of({"teacher_token": 1000, "teacher_load": 2}, {"teacher_token": 0.002, "teacher_load": 3.0}) == 8.0


def test_a_unit_that_was_not_measured_is_no_cheap_one() -> None:
    with pytest.raises(KeyError):
        seconds_of({"teacher_token": 1}, {"teacher_load": 1.0})


def test_padding_counts_each_batch_by_its_longest_text() -> None:
    # At most 20 tokens a batch: 9 with 8 fill it with 2 x 9, then 3 and 2 make 2 x 3.
    assert padded(np.array([3, 9, 2, 8]), 4, 100, 20) == 18 + 6
    assert padded(np.array([3, 9, 2, 8]), 4, 5, 20) == 4 * 5  # cut at 5 all go into one batch
    assert padded(np.array([3, 9, 2, 8]), 40, 100, 20) == 240  # ten times as many of the same lengths
    assert padded(np.empty(0, np.int64), 0, 5, 20) == 0


def test_tokens_without_padding_are_those_of_the_texts() -> None:
    assert real(np.array([3, 9]), 10, 5) == 40


def test_a_step_with_one_chunk_goes_through_the_model_once() -> None:
    towers = config(towers__batch_size=8, towers__chunk_size=8, towers__max_query_length=10, towers__max_document_length=20).towers
    assert step_tokens(towers, facts()) == (8 * 10 + 8 * 20, 0)


def test_a_step_with_more_chunks_embeds_all_but_the_first_documents_twice() -> None:
    towers = config(towers__batch_size=8, towers__chunk_size=4, towers__max_query_length=10, towers__max_document_length=20).towers
    # 80 tokens a chunk: the 8 queries are one, the 8 documents two of 4.
    assert step_tokens(towers, facts()) == (240, 80 + 80)


def test_hard_negatives_are_documents_too() -> None:
    towers = config(
        towers__batch_size=8, towers__chunk_size=64, towers__hard_negatives=2, towers__max_document_length=20, towers__max_query_length=10
    ).towers
    assert step_tokens(towers, facts())[0] == 8 * 10 + 24 * 20


def test_fewer_pairs_than_a_batch_are_refused_in_words() -> None:
    with pytest.raises(ModelError, match="only 64 training pairs"):
        step_tokens(config(towers__batch_size=128).towers, facts())


def test_a_batch_may_be_larger_than_the_sample_of_the_pairs() -> None:
    towers = config(towers__batch_size=128, towers__chunk_size=128, towers__max_query_length=10, towers__max_document_length=20).towers
    assert step_tokens(towers, facts(pair_count=1000)) == (128 * 10 + 128 * 20, 0)


def test_training_counts_steps_tokens_and_checkpoints() -> None:
    settings = config(
        towers__steps=30, towers__batch_size=8, towers__chunk_size=8, towers__max_query_length=10, towers__max_document_length=20
    )
    work = work_of(settings, facts())["train_towers"]
    assert work["teacher_train_token"] == 30 * 240
    assert work["teacher_step"] == 30
    # Rank 4 on q, k, v, o (64 each way but for keys of 32), gate, up and down; two layers, two towers, 12 bytes, three checkpoints.
    adapter = 4 * 2 * (128 + 96 + 96 + 128 + 3 * 192)
    assert work["written_byte"] == 3 * 12 * 2 * adapter


def test_the_teacher_encodes_every_text_once_and_the_held_out_ones() -> None:
    work = work_of(config(), facts())["encode_teacher_queries"]
    # Texts of equal length need no padding: 64 train queries, 100 titles, 10 dev queries.
    assert work["teacher_token"] == pytest.approx(10 * (64 + 100 + 10))
    assert work_of(config(), facts())["encode_corpus"]["teacher_token"] == pytest.approx(100 * 20 + PROBES * PROBE_TOKENS)


def test_the_student_learns_in_batches_and_is_refined_against_all_documents() -> None:
    work = work_of(config(distillation__epochs=2, distillation__refine_epochs=1), facts())["distil_query_tower"]
    assert work["align_batch"] == 2 * -(-164 // 32)
    assert work["refine_batch"] == -(-164 // 32)
    assert work["refine_score"] == 164 * 100


def test_fewer_titles_and_sentences_than_there_are_can_be_asked_for() -> None:
    found = target_texts(config(distillation__titles=30), facts())
    assert [part.count for part in found] == [64, 30]
    # The titles that are left out are no pairs of the refinement either.
    assert work_of(config(distillation__titles=30), facts())["distil_query_tower"]["refine_batch"] == -(-94 // 32)


def test_the_evaluation_encodes_the_corpus_with_the_untrained_student_only_if_asked() -> None:
    with_it, without = (work_of(config(evaluation__untrained_student=asked), facts())["evaluate"] for asked in (True, False))
    assert with_it["student_token"] - without["student_token"] == 100 * 20 + 50 * 10
    tried = 16 * 10  # each k1 and b of BM25 on the dev queries
    fused = 14 * 10  # each way to fuse it with the student
    assert with_it["metric_query"] == 250 + tried + fused and without["metric_query"] == 200 + tried + fused
    unfused = work_of(config(evaluation__fusion=False), facts())["evaluate"]
    assert unfused["metric_query"] == 200 + tried
    assert with_it["bm25_score"] == (50 + tried) * 100


def test_a_student_of_fewer_layers_has_its_encoder_measured_whole_and_cut() -> None:
    whole, cut = (work_of(config(distillation__layers=layers), facts())["evaluate"] for layers in (None, 1))
    through = 100 * 20 + 50 * 10
    assert whole["student_token"] == through + 50 * 10
    assert cut["student_token"] == (2 + 1) * through + 50 * 10  # two layers cost twice as much as the student's one
    assert cut["metric_query"] - whole["metric_query"] == 50
    short = work_of(config(), facts(untrained_length=5))["evaluate"]
    assert short["student_token"] == 100 * 5 + 50 * 10 + 50 * 10


def test_every_step_has_work_memory_and_disk_and_every_unit_is_known() -> None:
    generated, beside = config(distillation__generated=10, distillation__generator="tiny-decoder"), config(**WITH)
    for settings, some in ((beside, facts(companion=ENCODER)), (config(), facts()), (generated, facts())):
        work, needs = work_of(settings, some), needs_of(settings, some, 4)
        assert list(work) == list(needs) == work_steps(settings)
        assert {unit for step in work.values() for unit in step} <= set(UNITS)
        assert all(need.memory > 0 and need.disk >= 0 for need in needs.values())
    assert "generate_queries" in work


def test_memory_grows_with_chunk_weights_and_vectors() -> None:
    small, large = (needs_of(config(towers__chunk_size=size), facts(), 4)["train_towers"].memory for size in (2, 16))
    assert large > small
    assert needs_of(config(), facts(), 4)["train_towers"].memory > needs_of(config(), facts(), 2)["train_towers"].memory
    many = facts(documents=texts(10_000_000, 20))
    # Ten million float32 vectors of 64 dimensions are held three times while the student learns.
    grown = needs_of(config(), many, 4)["distil_query_tower"].memory - needs_of(config(), facts(), 4)["distil_query_tower"].memory
    assert grown > 3 * 4 * 64 * 9_000_000


def test_processes_that_work_side_by_side_are_all_counted() -> None:
    def needs(**changes: Any) -> Any:
        return needs_of(config(encoding__shard_size=10, towers__batch_size=16, **changes), facts(), 4)

    alone, own = needs()["encode_corpus"].memory, 4 * DECODER.parameters
    for runner in ("process_pool", "dask"):
        two, three, many = (needs(encoding__runner=runner, encoding__workers=n)["encode_corpus"].memory for n in (2, 3, 500))
        assert two - alone > WORKER + own and three - two > WORKER + own
        assert many - two == (10 - 2) * (three - two), "100 documents are ten shards, and no more processes have one"
    far = needs(encoding__runner="dask", encoding__workers=500, encoding__dask_address="tcp://cluster:8786")
    assert far["encode_corpus"].memory < alone, "a cluster's memory is not that of this machine"
    one, two, four = (needs(towers__processes=n)["train_towers"].memory for n in (1, 2, 4))
    assert two - one > WORKER + own and four - two == 2 * (two - one) - 2 * (WORKER + 600 * 100 + 4 * facts().documents.characters)


def test_the_tokens_of_a_large_corpus_are_counted() -> None:
    """A list of numbers in Python takes some fifty bytes a number; what is cut off is gone once its piece of the corpus is read."""
    settings = config(towers__max_document_length=20, towers__max_query_length=10)
    few, many, long = (facts(documents=texts(n, tokens)) for n, tokens in ((100, 20), (10**6, 20), (10**6, 2000)))
    tables = {name: 600 * some.documents.count + 4 * some.documents.characters for name, some in (("few", few), ("many", many))}
    alone, taken = config(**WITH, towers__max_document_length=20), config(**WITH, towers__max_document_length=20, towers__training="none")
    for step, asked in (("train_towers", settings), ("train_companion", alone), ("train_companion", taken)):
        beside = {"companion": ENCODER} if step == "train_companion" else {}
        memory = [needs_of(asked, facts(documents=some.documents, **beside), 4)[step].memory for some in (few, many, long)]
        assert memory[1] - memory[0] >= tables["many"] - tables["few"] + 50 * 20 * 999_900
        texts_alone = 4 * (long.documents.characters - many.documents.characters)
        assert 0.9 * texts_alone < memory[2] - memory[1] < 1.1 * texts_alone, "of what is cut off the text alone is held"
    with_it, without = (needs_of(config(evaluation__untrained_student=asked), many, 4)["evaluate"].memory for asked in (True, False))
    assert with_it - without > 50 * 20 * 10**6


def test_the_vectors_that_negatives_are_mined_with_are_counted() -> None:
    many = facts(documents=texts(10**7, 1))
    plain, mined = (config(towers__hard_negatives=n, towers__mining_depth=10) for n in (0, 1))
    found = mined_bytes(mined.towers, many)
    assert found > 4 * 64 * 10**7 and mined_bytes(plain.towers, many) == 0
    more = needs_of(mined, many, 4)["train_towers"].memory - needs_of(plain, many, 4)["train_towers"].memory
    assert found <= more < 1.1 * found, "and the longer batches"


def test_an_index_of_the_kind_that_was_asked_for_is_counted() -> None:
    many, needs = facts(documents=texts(10_000_000, 20)), {}
    for key in ("Flat", "IVF4096,PQ16x4fs", "IVF4096,Flat", "HNSW32"):
        needs[key] = needs_of(config(index__index_key=key), many, 4)
    vectors = 10_000_000 * 64
    for key, held in (("IVF4096,Flat", 4 * vectors), ("HNSW32", 4 * vectors + 10_000_000 * 4 * 64)):
        build = needs[key]["build_index"]
        assert build.memory - needs["IVF4096,PQ16x4fs"]["build_index"].memory > held - 10_000_000 * 16
        assert build.disk - needs["Flat"]["build_index"].disk > held
        assert needs[key]["register"].disk - needs["Flat"]["register"].disk > held
    assert needs["IVF4096,Flat"]["build_index"].extra_disk > 4 * vectors, "parts lie beside what they are merged into"
    assert needs["HNSW32"]["build_index"].extra_disk == needs["Flat"]["build_index"].extra_disk == 0
    bare = needs_of(config(index__index_key="IVF4096,Flat", index__refine="none"), many, 4)["build_index"]
    assert needs["IVF4096,Flat"]["build_index"].disk - bare.disk == 2 * vectors


@pytest.mark.parametrize(
    "key", ["IVF8,Flat", "IVF16(RCQ2x2),SQ8", "OPQ8_32,IVF8,PQ8", "IVF8,PQ16x4fsr", "HNSW16", "HNSW16,SQ8", "PQ8", "SQ8"]
)
def test_the_bytes_of_a_row_are_those_of_the_file(key: str) -> None:
    import faiss

    index = empty_index(key, 64)
    train(index, clustered(2000, dimension=64))
    empty = faiss.serialize_index(index).size
    index.add(clustered(6000, dimension=64))
    grown = faiss.serialize_index(index).size - empty
    assert grown / 6000 == pytest.approx(bytes_per_row(key, 64), rel=0.1)
    assert bytes_per_row("Flat", 64) == 0


def test_the_time_of_an_index_is_that_of_its_kind() -> None:
    def scores(documents: int, key: str) -> float:
        return work_of(config(index__index_key=key), facts(documents=texts(documents, 20)))["build_index"].get("score", 0.0)

    assert scores(10_000_000, "Flat") == 0
    # Lists of two levels are found by comparing with those of each level, not with all.
    assert scores(10_000_000, "auto") < 0.05 * scores(10_000_000, "IVF16384,Flat")
    assert scores(100_000, "HNSW32") > 1000 * 100_000


def test_what_a_training_holds_beside_its_weights_is_counted_once() -> None:
    # With so little to keep, the rest shows: gradient and two moments of what is trained, and the weights that were not there before.
    for training, trained, new in (("lora", 2 * DECODER.adapter_parameters(4), 2 * DECODER.adapter_parameters(4)), ("full", 2, 1)):
        towers = {"towers__training": training, "towers__lora_rank": 4, "towers__activation_checkpointing": True, "towers__chunk_size": 1}
        settings = config(**towers, towers__max_document_length=8, towers__max_query_length=8)
        kept = DECODER.kept(8, 4, True)
        size = 1 if training == "lora" else DECODER.parameters
        assert training_bytes(settings, facts(), 4) == kept + 12 * trained * size + 4 * new * size


def test_adapters_are_counted_in_the_layers_that_have_some() -> None:
    whole, upper, more = (trained_parameters(config(towers__lora_layers=count).towers, facts()) for count in (None, 1, 99))
    assert whole == 2 * upper == more
    full = [trained_parameters(config(towers__training="full", towers__lora_layers=count).towers, facts()) for count in (None, 1)]
    assert full[0] == full[1]


def test_shapes_count_parameters_as_the_models_have_them() -> None:
    # Embeddings 100 x 64, and a layer: q and o 64 x 64, k and v 64 x 32, three maps of 64 x 128.
    assert DECODER.parameters == 6400 + 2 * (2 * 4096 + 2 * 2048 + 3 * 8192)
    assert ENCODER.parameters == 6400 + 2 * (4 * 4096 + 2 * 8192)


WITH = {"towers__companion": {"base_model": "tiny-encoder", "steps": 10}}


def test_a_companion_adds_its_training_and_its_tokens_once() -> None:
    alone, joined = (work_of(config(**changes), facts(companion=shape)) for changes, shape in (({}, None), (WITH, ENCODER)))
    for step in ("encode_corpus", "encode_teacher_queries", "evaluate"):
        assert joined[step].get("student_token", 0) > alone[step].get("student_token", 0)
    judged = sum(real(t.student, t.count, config().towers.max_query_length) for t in facts().judged.values())
    more = joined["evaluate"]["student_token"] - alone["evaluate"]["student_token"]
    assert more == pytest.approx(judged * size_of(ENCODER) / size_of(facts().student))
    assert joined["train_companion"]["align_batch"] > 0
    assert joined["train_towers"] == {**alone["train_towers"], "student_load": 1}  # it is looked at before the towers are trained
    assert set(joined) - set(alone) == {"train_companion", "join_companion"}


def test_joining_a_companion_takes_longer_the_more_there_is_to_hash() -> None:
    whole = {"towers__training": "full", "towers__companion": {**WITH["towers__companion"], "training": "full"}}
    adapters, full = (work_of(config(**changes), facts(companion=ENCODER))["join_companion"] for changes in (WITH, whole))
    more = 8 * (facts().teacher.parameters + ENCODER.parameters) - 4 * sum(
        parameters(config(**WITH).towers, facts(companion=ENCODER)) for parameters in (trained_parameters, companion_parameters)
    )
    assert full["reference_second"] - adapters["reference_second"] == pytest.approx(3 * 5e-10 * more)


def test_a_companion_beside_a_static_student_costs_what_it_costs() -> None:
    static = {**WITH, "distillation__form": "static"}
    joined, alone = work_of(config(**static), facts(companion=ENCODER)), work_of(config(distillation__form="static"), facts())
    for step, unit in (("encode_corpus", "teacher_token"), ("train_companion", "teacher_train_token"), ("evaluate", "teacher_token")):
        assert joined[step][unit] > alone.get(step, {unit: 0})[unit]
    assert "align_batch" not in joined["train_companion"]


def test_a_judge_reads_beside_the_training_and_is_held_in_memory_alone() -> None:
    def judged(documents: int) -> Any:
        return config(towers__judge={"base_model": "a/judge", "documents": documents})

    works = [work_of(judged(n), facts(judge=shape)) for n, shape in ((4, None), (4, ENCODER), (9, ENCODER))]
    assert {step for step in works[0] if works[0][step] != works[1][step]} == {"train_towers"}
    plain, four, nine = (work["train_towers"]["teacher_token"] for work in works)
    assert nine - plain == pytest.approx(2 * (four - plain)) and four > plain  # 1 + 9 documents a query, 1 + 4
    needs = [needs_of(judged(4), facts(judge=shape), 4)["train_towers"] for shape in (None, ENCODER)]
    held = facts(judge=ENCODER).judge_bytes(judged(4).towers)
    assert needs[1].memory - needs[0].memory == held > 4 * ENCODER.parameters and needs[1].disk == needs[0].disk
    cards = [card_needs(judged(4), facts(judge=shape), 2)["train_towers"] for shape in (None, ENCODER)]
    assert cards[1] - cards[0] == held
    many = [work_of(judged(n), facts(judge=ENCODER))["train_towers"] for n in (200, 1000)]
    assert many[0] == many[1]  # a batch holds no more documents


def test_memory_and_disk_hold_the_companion() -> None:
    full = {"towers__companion": {**WITH["towers__companion"], "training": "full"}}
    plain, small, large = (
        needs_of(config(**changes), facts(companion=shape), 4) for changes, shape in (({}, None), (WITH, ENCODER), (full, DECODER))
    )
    assert small["train_companion"].disk < large["train_companion"].disk and "train_companion" not in plain
    assert plain["encode_corpus"].memory < small["encode_corpus"].memory < large["encode_corpus"].memory
    assert small["train_companion"].memory < large["train_companion"].memory
    assert large["train_companion"].extra_disk >= 24 * DECODER.parameters
    assert plain["register"].disk < small["register"].disk < large["register"].disk


def size_of(shape: Any) -> float:
    return float(shape.parameters - shape.embeddings)
