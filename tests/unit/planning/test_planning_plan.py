"""Proposals, budgets, room and forecasts: pure decisions on facts that are made up."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import ConfigError, ResourceError
from components.evaluation.units import margin_for, queries_for, queries_needed
from components.planning import plan
from components.planning.cost import UNITS, Need, card_needs, kept_bytes, needs_of, step_tokens
from components.planning.facts import Shape
from components.planning.plan import Choice, Forecast, Room, parse_budget, parse_card
from components.towers.device import FREED_FROM
from flows.cli.parser import build_parser
from flows.cli.prepare import _set_by_person
from flows.config import PRESETS, RetrainConfig, load_config
from tests.unit.planning_world import facts, texts

RATES = {**dict.fromkeys(UNITS, 0.0), "teacher_train_token": 1e-3, "teacher_token": 2e-4, "align_batch": 0.05, "refine_batch": 0.06}
ROOM = Room(32 * 10**9, 10**12)


def own(**changes: Any) -> RetrainConfig:
    given_values = {"data.source": "somewhere", **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_config("smoke", None, given_values)


def chosen(found: list[Choice]) -> dict[str, Any]:
    return {choice.field: choice.value for choice in found}


def test_lengths_follow_from_the_data() -> None:
    lengths = np.array([30] * 94 + [100] * 6)
    documents = replace(texts(100), teacher=lengths)
    found = plan.from_data(own(), facts(documents=documents), (), ROOM, 4)
    assert chosen(found)["towers.max_document_length"] == 104
    assert chosen(found)["towers.max_query_length"] == 12
    assert "30 tokens in the middle" in next(c.reason for c in found if c.field == "towers.max_document_length")


def test_long_sentences_that_are_learned_from_do_not_lengthen_the_queries() -> None:
    found = plan.from_data(own(), facts(sources={"train": texts(64), "sentences": texts(10, 60)}), (), ROOM, 4)
    assert chosen(found)["distillation.max_query_length"] == 24


def test_what_a_person_set_stays_and_is_told_what_the_data_would_ask() -> None:
    found = {c.field: c for c in plan.from_data(own(), facts(), {"towers.max_document_length"}, ROOM, 4)}
    stays = found["towers.max_document_length"]
    assert stays.value == stays.before == 48
    assert "as you set it; the data would ask for 24" in stays.reason


def test_the_built_in_data_keeps_the_lengths_of_its_presets() -> None:
    found = chosen(plan.from_data(load_config("smoke"), facts(), (), ROOM, 4))
    assert found["towers.max_document_length"] == 48


def test_queries_that_were_drawn_in_groups_show_a_wider_margin_only() -> None:
    asked = own(policy__margin=0.01, policy__min_power=0.8)
    alone, grouped = (chosen(plan.from_data(asked, facts(design_effect=effect), (), ROOM, 4)) for effect in (1.0, 4.0))
    assert grouped["policy.margin"] == pytest.approx(2 * alone["policy.margin"], abs=0.01)
    reasons = [choice.reason for choice in plan.from_data(asked, facts(design_effect=4.0), (), ROOM, 4) if choice.field == "policy.margin"]
    assert "4.0 of them say about as much as one drawn by itself" in reasons[0]


def test_a_margin_that_the_queries_cannot_show_is_widened_with_a_version_of_its_own() -> None:
    asked = own(policy__margin=0.01, policy__min_power=0.8)
    found = chosen(plan.from_data(asked, facts(), (), ROOM, 4))
    smallest = margin_for(plan.TRAINING_SPREAD, 50)
    assert smallest <= found["policy.margin"] < smallest + 0.005
    assert found["policy.baseline_margin"] == found["policy.margin"]
    assert found["policy.version"] == f"smoke-2-margin-{found['policy.margin']:g}"
    enough = facts(judged={"test": texts(queries_for(plan.TRAINING_SPREAD, 0.01))})
    assert chosen(plan.from_data(asked, enough, (), ROOM, 4))["policy.margin"] == 0.01


def test_a_margin_that_a_person_set_leaves_the_rest_of_the_policy_as_it_is() -> None:
    asked = own(policy__margin=0.01, policy__min_power=0.8)
    found = {choice.field: choice for choice in plan.from_data(asked, facts(), {"policy.margin"}, ROOM, 4)}
    assert found["policy.margin"].value == 0.01 and "as you set it; the data would ask for" in found["policy.margin"].reason
    planned = plan.changed(asked, {field: choice.value for field, choice in found.items()})
    assert planned.policy == asked.policy, "a version that names another margin than the one that decides"


def test_a_margin_that_is_planned_for_few_units_is_one_that_their_gate_can_decide_on() -> None:
    """The gate's interval ends at Student's quantile for so many units; by the normal one, the planned margin fell short of its power."""
    asked, effect = own(policy__margin=0.01, policy__min_power=0.8), 4.0
    for units, student in ((6, 2.015), (20, 1.729)):
        margin = chosen(plan.from_data(asked, facts(design_effect=effect, units=units), (), ROOM, 4))["policy.margin"]
        assert margin / (plan.TRAINING_SPREAD * np.sqrt(effect / 50)) - student >= 0.84
    assert any("drawn in 3 units, fewer than 5" in note for note in plan.notes_on(asked, facts(units=3), None, None))
    assert not any("drawn in" in note for found in (None, 5) for note in plan.notes_on(asked, facts(units=found), None, None))


def test_queries_that_the_settings_take_apart_are_told_before_anything_is_trained() -> None:
    apart = facts(taken_apart=7)
    assert any("of which the data makes 7 units" in note for note in plan.notes_on(own(), apart, None, None))
    assert not any("takes queries apart" in note for note in plan.notes_on(own(), facts(), None, None))
    assert not any("takes queries apart" in note for note in plan.notes_on(own(policy__own_units=False), apart, None, None))


def test_the_queries_that_few_units_ask_for_come_in_more_units() -> None:
    """At Student's quantile for two units, which more queries would not be, a plan told many times as many."""
    asked = own(policy__margin=0.01, policy__min_power=0.8)
    reasons = [c.reason for c in plan.from_data(asked, facts(design_effect=4.0, units=2), (), ROOM, 4) if c.field == "policy.margin"]
    needed = int(reasons[0].partition("about ")[2].partition(" judged")[0].replace(",", ""))
    assert needed < 1.1 * queries_for(plan.TRAINING_SPREAD * 2, 0.01)


def test_the_number_of_queries_is_that_of_the_gate() -> None:
    differences = np.tile([0.3, -0.3, 0.1, -0.1], 50)
    assert queries_for(float(differences.std(ddof=1)), 0.02) == queries_needed(differences, 0.02)
    assert margin_for(0.2, queries_for(0.2, 0.02)) <= 0.02


def test_little_memory_makes_smaller_chunks() -> None:
    large = own(towers__batch_size=512, towers__chunk_size=512, towers__max_document_length=1000)
    thin = Shape(layers=2, width=64, inner=128, heads=2, key_heads=2, head_width=32, vocabulary=1000, gated=True)
    some = facts(documents=texts(1000, 1000), pair_count=1000, teacher=thin)
    sixteen = needs_of(plan.changed(large, {"towers.chunk_size": 16}), some, 4)["train_towers"].memory
    one = needs_of(plan.changed(large, {"towers.chunk_size": 1}), some, 4)["train_towers"].memory

    def planned(memory: float) -> dict[str, Any]:
        return {c.field: c.value for c in plan.from_data(large, some, {"towers.max_document_length"}, Room(int(memory), 10**12), 4)}

    found = planned(sixteen / plan.MEMORY_SHARE + 1)
    assert (found["towers.chunk_size"], found["towers.activation_checkpointing"]) == (16, None)
    # Fewer than eight rows at a time are slower than working the layers out twice.
    assert planned(one / plan.MEMORY_SHARE + 1)["towers.activation_checkpointing"] is True
    assert planned(10**13)["towers.chunk_size"] == 64, "a pass that keeps a gibibyte is slow, however much memory there is"


def test_a_pass_keeps_less_than_the_heap_holds_on_a_processor_and_what_fits_on_a_card() -> None:
    wide = Shape(layers=18, width=640, inner=2048, heads=4, key_heads=1, head_width=256, vocabulary=262_144, gated=True)
    some = facts(documents=texts(150, 1000), pair_count=1000, teacher=wide)
    config = own(towers__chunk_size=32, towers__batch_size=32, towers__max_document_length=152, towers__precision="bfloat16")

    def chunk(on_card: bool) -> Any:
        choices = plan.from_data(config, some, {"towers.max_document_length"}, Room(10**11, 10**12), 2, on_card=on_card)
        return next(c for c in choices if c.field == "towers.chunk_size")

    found = chunk(on_card=False)
    assert kept_bytes(plan.changed(config, {"towers.chunk_size": found.value}).towers, some) < FREED_FROM
    assert kept_bytes(plan.changed(config, {"towers.chunk_size": 2 * found.value}).towers, some) >= FREED_FROM
    assert found.value < 32 and "a larger part keeps 1.1 GB and more" in found.reason
    assert chunk(on_card=True).value == 32


def test_a_card_that_holds_a_larger_part_is_given_it() -> None:
    asked = own(towers__chunk_size=8, towers__batch_size=64)
    small, large = (chosen(plan.from_data(asked, facts(pair_count=1000), (), Room(size, 10**12), 2, on_card=True)) for size in (1, 10**11))
    assert (small["towers.chunk_size"], large["towers.chunk_size"]) == (1, plan.CARD_CHUNK)
    whole = plan.changed(asked, {"towers.chunk_size": 500})  # more than the batch has is as good as all of it
    assert chosen(plan.from_data(whole, facts(pair_count=1000), (), Room(10**11, 10**12), 2, on_card=True))["towers.chunk_size"] == 500


def test_a_small_card_has_the_layers_worked_out_again_and_one_that_is_too_small_is_refused() -> None:
    large = own(towers__batch_size=512, towers__chunk_size=512, towers__max_document_length=1000)
    big = Shape(layers=36, width=2560, inner=9728, heads=32, key_heads=8, head_width=128, vocabulary=150_000, gated=True)
    some = facts(documents=texts(1000, 1000), pair_count=1000, teacher=big)
    lengths = {"towers.max_document_length"}
    found = {c.field: c.value for c in plan.from_data(large, some, lengths, Room(24 * 10**9, 10**12), 2, on_card=True)}
    assert found["towers.activation_checkpointing"] is True
    sized = plan.changed(large, found)
    assert card_needs(sized, some, 2)["train_towers"] < 24 * 10**9 * plan.MEMORY_SHARE
    assert card_needs(plan.changed(sized, {"towers.activation_checkpointing": False}), some, 2)["train_towers"] > 24 * 10**9
    assert plan.card_problem(sized, some, 2, 24 * 10**9) == ""
    assert "take a smaller towers.base_model" in plan.card_problem(sized, some, 2, 6 * 10**9)


QWEN = {"heads": 16, "key_heads": 8, "head_width": 128, "vocabulary": 151_936, "gated": True}
GEMMA = Shape(layers=18, width=640, inner=2048, heads=4, key_heads=1, head_width=256, vocabulary=262_144, gated=True)
EMBEDDINGGEMMA = replace(GEMMA, layers=24, width=768, inner=1152, heads=3)
CARDS = {
    "gpu": (24, Shape(layers=28, width=1024, inner=3072, **QWEN)),
    "cluster": (40, Shape(layers=36, width=2560, inner=9728, **{**QWEN, "heads": 32})),
    "qwen3-embedding": (4, Shape(layers=28, width=1024, inner=3072, **QWEN)),
    "qwen3-embedding-4b": (16, Shape(layers=36, width=2560, inner=9728, **{**QWEN, "heads": 32})),
    "qwen3-embedding-8b": (24, Shape(layers=36, width=4096, inner=12288, **{**QWEN, "heads": 32})),
    "embeddinggemma": (4, EMBEDDINGGEMMA),
    "harrier": (4, GEMMA),
}


@pytest.mark.parametrize("preset", CARDS)
def test_a_preset_fits_the_card_that_it_names(preset: str) -> None:
    gigabytes = CARDS[preset][0]
    needs = needs_on_card(preset)
    assert set(needs) == {"train_towers", "encode_corpus", "encode_teacher_queries", "distil_query_tower", "evaluate"}
    assert max(needs.values()) < 0.9 * gigabytes * 10**9
    named = (PRESETS / f"{preset.removesuffix('-4b').removesuffix('-8b')}.yaml").read_text(encoding="utf-8")
    assert re.search(rf"\b{gigabytes}\b[^.]* GB", named)


def needs_on_card(preset: str) -> dict[str, int]:
    """What the steps of a preset take of a card, on documents that all are as long as it lets them be."""
    config = load_config(preset.removesuffix("-4b").removesuffix("-8b"), None, {"data.source": "somewhere"})
    longest = texts(1_000_000 if preset == "cluster" else 46_881, config.towers.max_document_length)
    return card_needs(config, facts(documents=longest, pair_count=100_000, teacher=CARDS[preset][1]), 2)


def test_the_table_of_presets_says_what_the_planner_counts() -> None:
    text = (PRESETS.parents[1] / "components/towers/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)`,? ?(4B|8B)?[^|]*\| (\d+) GB \| ([\d.-]+) \| ([\d.]+) \|", text, re.M)
    told = {f"{name}-{size.lower()}".rstrip("-"): (int(card), *numbers) for name, size, card, *numbers in rows}
    steps = ("train_towers", "encode_corpus")
    for preset, (card, _) in CARDS.items():
        needs = needs_on_card(preset)
        trains = load_config(preset.removesuffix("-4b").removesuffix("-8b"), None, {"data.source": "x"}).towers.training != "none"
        counted = [f"{needs[step] / 1e9:.1f}" if trains or step != "train_towers" else "-" for step in steps]
        assert told.get(preset) == (card, *counted), preset
    assert set(told) == set(CARDS)


def test_training_on_pages_takes_less_than_its_preset_says() -> None:
    config = load_config("pages", None, {"data.source": "somewhere"})
    pages = texts(7_000, 2 * config.towers.max_document_length)
    for precision, size in (("bfloat16", 2), ("float32", 4)):
        settings = plan.changed(config, {"towers.precision": precision})
        need = needs_of(settings, facts(documents=pages, pair_count=10_000, teacher=GEMMA), size)["train_towers"].memory
        assert need < 4 * 10**9
    assert "under 4 GB" in (PRESETS / "pages.yaml").read_text(encoding="utf-8")


def test_a_budget_is_filled_and_not_exceeded() -> None:
    for budget in (60.0, 600.0, 6000.0):
        asked = own(towers__steps=150)
        found = plan.to_budget(asked, facts(), (), budget, RATES)
        assert found is not None
        fitted = plan.changed(asked, chosen(found))
        assert plan.total_of(fitted, facts(), RATES) <= budget
    assert chosen(plan.to_budget(own(), facts(), (), 6000.0, RATES) or [])["distillation.epochs"] == plan.MOST_EPOCHS


def test_a_budget_that_holds_the_settings_as_they_are_is_never_too_small_for_many_pairs() -> None:
    asked = own(towers__steps=150)
    for pairs in (10**4, 10**6, 10**8):
        many = facts(pair_count=pairs)
        whole = plan.total_of(asked, many, RATES)
        found = plan.to_budget(asked, many, (), whole / plan.SPARE, RATES)
        assert found is not None and plan.FEWEST_STEPS <= chosen(found)["towers.steps"] <= 150
        tries = list(plan._tries(asked, many, set()))
        assert min(one.settings["towers.steps"] for one in tries) == plan.FEWEST_STEPS
        assert max(one.settings["towers.steps"] for one in tries) == min(plan.MOST_STEPS, round(2 * pairs / asked.towers.batch_size))


@pytest.mark.parametrize(
    ("asked", "least"),
    [
        ({"towers__merge_last": 3, "towers__checkpoint_every": 25}, 51),
        ({"towers__hard_negatives": 1, "towers__mining_start": 60}, 61),
        ({"towers__hard_negatives": 1, "towers__mining_start": 500}, 150),  # which the training refuses, whatever the budget
    ],
)
def test_no_budget_leaves_a_training_fewer_steps_than_it_takes_to_mine_and_to_merge(asked: dict[str, Any], least: int) -> None:
    settings = own(towers__steps=150, **asked)
    for pairs in (10**3, 10**6):
        many = facts(pair_count=pairs)
        assert min(one.settings["towers.steps"] for one in plan._tries(settings, many, set())) == least
        assert plan.to_budget(settings, many, (), 0.1, RATES) is None and "--budget" in plan.knob(settings, many, (), 0.1, RATES)


def test_more_time_never_gives_fewer_steps() -> None:
    steps = []
    for budget in (20.0, 40.0, 80.0, 160.0, 320.0):
        found = plan.to_budget(own(towers__steps=500), facts(), (), budget, RATES)
        steps.append(chosen(found)["towers.steps"] if found else 0)
    assert steps == sorted(steps) and steps[-1] > steps[0]


def test_steps_that_a_person_set_are_not_touched_by_the_budget() -> None:
    found = plan.to_budget(own(towers__steps=77), facts(), {"towers.steps"}, 600.0, RATES)
    assert found is not None and "towers.steps" not in chosen(found)


def test_a_companion_takes_fewer_steps_where_time_is_short_and_never_more_than_it_was_given() -> None:
    asked, steps = own(towers__companion__base_model="all-minilm-l6-v2", towers__companion__steps=4000), []
    whole = plan.total_of(asked, facts(companion=facts().student), RATES)
    for budget in (0.4 * whole, whole, 100 * whole):
        found = plan.to_budget(asked, facts(companion=facts().student), (), budget, RATES)
        assert found is not None
        assert plan.total_of(plan.changed(asked, chosen(found)), facts(companion=facts().student), RATES) <= budget
        steps.append(chosen(found)[plan.COMPANION_STEPS])
    assert steps == sorted(steps) and plan.FEWEST_STEPS <= steps[0] < steps[-1] == 4000
    kept = next(choice for choice in found if choice.field == plan.COMPANION_STEPS)
    assert "never more" in kept.reason and "in the time there is" not in kept.reason
    held = plan.to_budget(asked, facts(companion=facts().student), {plan.COMPANION_STEPS}, 100 * whole, RATES)
    assert held is not None and plan.COMPANION_STEPS not in chosen(held)


def test_what_a_person_sets_within_a_section_of_a_section_is_known_to_the_plan() -> None:
    words = ["plan", "--preset", "pages", "--set", "towers.companion.steps=77", "--set", "towers.steps=5"]
    given = _set_by_person(build_parser().parse_args(words))
    assert {plan.COMPANION_STEPS, "towers.steps"} <= given and "towers.max_document_length" not in given


def test_a_model_that_is_trained_in_full_has_no_layers_below_the_trained_ones() -> None:
    whole = own(towers__training="full", towers__chunk_size=2)
    upper = plan.changed(whole, {"towers.lora_layers": 1})
    assert kept_bytes(upper.towers, facts()) == kept_bytes(whole.towers, facts()) > 0
    assert step_tokens(upper.towers, facts()) == step_tokens(whole.towers, facts())


def test_what_cannot_fit_names_the_budget_that_would_and_fewer_documents() -> None:
    many = facts(documents=texts(100_000, 20))
    assert plan.to_budget(own(), many, (), 100.0, RATES) is None
    said = plan.knob(own(), many, (), 100.0, RATES)
    assert "--budget" in said and "--max-documents" in said
    count = int(said.split("--max-documents ")[1].rstrip("."))
    assert plan.to_budget(own(), plan.fewer_documents(many, count), (), 100.0, RATES) is not None


def test_fewer_documents_than_a_named_index_has_lists_are_not_proposed() -> None:
    asked, many = own(index__index_key="IVF4096,Flat"), facts(documents=texts(100_000, 20))
    said = plan.knob(asked, many, (), 40.0, RATES)
    assert int(said.split("--max-documents ")[1].rstrip(".")) >= 4096
    assert "--budget" in plan.knob(asked, many, (), 1.0, RATES) and "--max-documents" not in plan.knob(asked, many, (), 1.0, RATES)


def test_steps_that_a_person_set_too_high_are_named() -> None:
    said = plan.knob(own(towers__steps=100_000), facts(), {"towers.steps"}, 60.0, RATES)
    assert "leave out towers.steps, which you set" in said


def test_disk_and_memory_that_are_too_small_are_refused_with_the_sum() -> None:
    needs = {"train_towers": Need(5 * 10**9, 10**9, 10**9), "encode_corpus": Need(10**9, 8 * 10**9)}
    plan.require_room(needs, Room(6 * 10**9, 20 * 10**9))
    with pytest.raises(ResourceError, match=r"5\.0 GB of memory in the step train_towers, and 4\.0 GB is free"):
        plan.require_room(needs, Room(4 * 10**9, 20 * 10**9))
    sums = r"about 9\.0 GB \(encode_corpus 8\.0 GB, train_towers 1\.0 GB\) and 1\.0 GB while it runs, and 11\.0 GB is free"
    with pytest.raises(ResourceError, match=sums) as caught:
        plan.require_room(needs, Room(6 * 10**9, 11 * 10**9))
    assert caught.value.exit_code == 9
    plan.require_room({}, Room(0, 0))


@pytest.mark.parametrize(
    ("step", "named", "not_named"),
    [
        ("train_towers", ("towers.chunk_size", "towers.base_model"), ("distillation.",)),
        ("train_companion", ("towers.chunk_size", "towers.companion.base_model"), ("distillation.",)),
        ("encode_corpus", ("encoding.tokens_per_batch", "towers.base_model"), ("chunk_size", "distillation.")),
        ("distil_query_tower", ("distillation.refine_negatives", "distillation.student"), ("towers.", "lengths")),
        (
            "evaluate",
            ("evaluation.untrained_student", "policy.beat_untrained and policy.teacher_worth", "towers.base_model", "--max-documents"),
            ("chunk_size", "lengths"),
        ),
        ("register", ("Take a smaller towers.base_model", "--max-documents"), ("evaluation.", "lengths")),
    ],
)
def test_where_memory_is_short_only_settings_that_the_step_hangs_on_are_named(
    step: str, named: tuple[str, ...], not_named: tuple[str, ...]
) -> None:
    said = plan.room_problem({step: Need(5 * 10**9, 0)}, Room(4 * 10**9, 10**12))
    assert all(word in said for word in named) and not any(word in said for word in not_named)


def test_a_student_that_a_card_or_a_budget_cannot_hold_is_named_and_not_its_teacher() -> None:
    many = facts(documents=texts(10**6, 20))
    needs = card_needs(own(), many, 4)
    assert max(needs, key=lambda step: needs[step]) == "distil_query_tower"
    said = plan.card_problem(own(), many, 4, needs["distil_query_tower"] - 1)
    assert "distillation.student, lower distillation.batch_size" in said and "lengths" not in said and "base_model" not in said
    slow = {**dict.fromkeys(UNITS, 0.0), "align_batch": 10.0}
    assert plan.knob(own(), facts(), (), 1.0, slow).endswith("distil_query_tower takes most: take a smaller distillation.student.")


JUDGE = Shape(layers=24, width=1024, inner=4096, heads=16, key_heads=16, head_width=64, vocabulary=250_000, gated=False)


def test_a_judge_is_named_where_memory_is_short() -> None:
    asked, beside = own(towers__judge__base_model="cross"), facts(judge=JUDGE)
    size = beside.judge_bytes(asked.towers)
    needs = needs_of(asked, beside, 4)
    assert needs["train_towers"].judge == size > 10**9 and needs["encode_corpus"].judge == 0
    room = Room(needs["train_towers"].memory - size // 2, 10**12)
    with pytest.raises(ResourceError, match=rf"The judge takes {size / 1e9:.1f} GB of it: name a smaller towers.judge.base_model, or none"):
        plan.require_room(needs, room)
    plan.require_room(needs_of(asked, facts(), 4), room)
    rows = plan.rows_of(asked, beside, RATES, RATES, 4)
    assert "towers.judge.base_model" in plan.room_problem({row.step: row.need for row in rows}, room)
    card = card_needs(asked, beside, 4)["train_towers"] - size // 2
    assert "towers.judge.base_model" in plan.card_problem(asked, beside, 4, card)
    assert "judge" not in plan.card_problem(own(), facts(), 4, 10**6)


def test_a_judge_is_named_where_time_is_short() -> None:
    asked, beside = own(towers__judge__base_model="cross"), facts(judge=JUDGE)
    said = plan.knob(asked, beside, (), 1.0, RATES)
    assert "Of it the judge takes" in said and "towers.judge.documents" in said
    assert "judge" not in plan.knob(own(), facts(), (), 1.0, RATES)


def test_room_is_read_from_the_system(tmp_path: Path) -> None:
    room = plan.free_room(tmp_path / "not" / "there")
    assert room.memory > 0 and room.disk > 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1h", 3600), ("1.5h", 5400), ("2d", 172_800), ("1h30m", 5400), ("366d", 366 * 86400)]
)
def test_a_budget_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


NO_BUDGETS = ["", "0", "0s", "0h0m", "1", "-1h", "1 h 30", "1h 30m", "h", "1e3s", "1H", "inf", "nans", "400d", "999999999d", "1h\n", "1,5h"]


@pytest.mark.parametrize("text", [*NO_BUDGETS, "\N{ARABIC-INDIC DIGIT ONE}h"])
def test_any_other_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--budget is"):
        parse_budget(text)


@given(st.text(alphabet="0123456789.smhd -", max_size=8))
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert 0 < parse_budget(text) <= 366 * 86400


def test_a_card_is_named_by_its_memory() -> None:
    assert parse_card("24 GB") == parse_card("24") == parse_card("24gib") == 24 * 10**9
    for wrong in ("", "0 GB", "A100", "-1", "24 MB", "99999 GB"):
        with pytest.raises(ConfigError, match="--card"):
            parse_card(wrong)


def test_what_is_left_is_corrected_by_what_was_measured() -> None:
    forecast = Forecast({"train_towers": 100.0, "encode_corpus": 100.0, "evaluate": 100.0})
    assert forecast.seconds == pytest.approx(300)
    assert forecast.after("train_towers", 200.0) == "about 5 min left of the whole flow"
    # Twice as slow as expected so far: the rest (200 s) is taken to be 1.5 times as long, half the way from hope to experience.
    assert forecast.seconds == pytest.approx(300)
    assert forecast.after("encode_corpus", 200.0) is not None
    assert 100 < forecast.seconds < 200
    assert forecast.after("evaluate", 200.0) is None


def test_a_step_from_the_cache_says_nothing_about_speed() -> None:
    forecast = Forecast({"train_towers": 100.0, "evaluate": 100.0})
    forecast.after("train_towers", None)
    assert forecast.seconds == pytest.approx(100)
    assert forecast.after("unknown", 5.0) is not None
    assert forecast.seconds == pytest.approx(100)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (89.4, "89 s"), (130, "2 min"), (5399, "90 min"), (9000, "2.5 h"), (9e4, "25 h"), (2e5, "2.3 days")],
)
def test_spans_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert plan.in_words(seconds) == words


def test_too_few_judged_queries_are_said() -> None:
    notes = plan.notes_on(own(policy__min_queries=100), facts(), None, None)
    assert any("test has 50 judged queries, and policy.min_queries asks for 100" in note for note in notes)


def test_a_card_that_is_not_here_is_said() -> None:
    assert any("No GPU is here" in note for note in plan.notes_on(own(), facts(), 24 * 10**9, None))
    assert any("less than the 80.0 GB" in note for note in plan.notes_on(own(), facts(), 80 * 10**9, 24 * 10**9))
    assert any("made for one" in note for note in plan.notes_on(own(towers__batch_size=512), facts(), None, None))


def test_the_data_are_described_in_numbers() -> None:
    lines = plan.describe_data(facts())
    assert lines[0] == "100 documents of 20 / 20 / 20 tokens (50 / 95 / 99 %), scripts: latin 100%"
    assert lines[-1] == "judged queries by split: train 64, dev 10, test 50; 64 training pairs"


def test_a_busy_machine_is_said() -> None:
    quiet, busy = (plan.Row("train_towers", 100.0, cpu, 0, 0, 0) for cpu in (190.0, 25.0))
    assert plan.busy_note([quiet]) == plan.busy_note([plan.Row("evaluate", None, None, 0, 0, 0)]) == ""
    assert "for 25% of their time" in plan.busy_note([busy])
