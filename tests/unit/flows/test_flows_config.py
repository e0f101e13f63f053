"""Presets, YAML files and overrides, and the sentences that wrong ones are answered with."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from components.errors import ConfigError
from flows.cli.prepare import parsed_settings
from flows.config import PRESETS, RetrainConfig, allowed, field_paths, layers_of, left_by_preset, load_config, preset_names
from flows.studies.context import StudySettings

ROOT = Path(__file__).resolve().parents[3]


def refusal(**arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(**arguments)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_presets_are_there() -> None:
    assert preset_names() == [
        "adopt",
        "cluster",
        "demo",
        "embeddinggemma",
        "endpoint",
        "gpu",
        "harrier",
        "pages",
        "qwen3-embedding",
        "smoke",
    ]


@pytest.mark.parametrize("name", preset_names())
def test_preset_says_its_command_and_nothing_that_is_default_anyway(name: str) -> None:
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert f"    scalingnote retrain --preset {name}" in header and f"scalingnote config show --preset {name}" in header
    chosen, defaults = load_config(name).model_dump(mode="json"), RetrainConfig().model_dump(mode="json")
    given = _leaves(yaml.safe_load(text))
    assert given <= set(field_paths(RetrainConfig))
    assert {field for field in given if _at(chosen, field) == _at(defaults, field)} == set()


def test_smoke_needs_no_download() -> None:
    config = load_config("smoke")
    assert (config.towers.base_model, config.distillation.student) == ("tiny-decoder", "tiny-encoder")


def test_the_later_source_wins(tmp_path: Path) -> None:
    file = written(tmp_path, "towers: {steps: 7, lora_rank: 2}\n")
    config = load_config("demo", file, {"towers.steps": 9, "data": {"seed": 1}})
    assert (config.towers.steps, config.towers.lora_rank, config.data.seed) == (9, 2, 1)
    assert config.towers.base_model == load_config("demo").towers.base_model


def test_a_list_is_of_many_things_within_bounds() -> None:
    schema = {"type": "array", "items": {"type": "integer", "minimum": 1}}
    assert allowed(schema) == "a list of whole numbers, at least 1"  # and not of "whole number, at least 1s"
    assert allowed({"type": "array", "items": {"type": "string"}}) == "a list of texts"


def test_nothing_given_means_defaults() -> None:
    assert load_config() == RetrainConfig()


@pytest.mark.parametrize("text", ["", "# nothing\n", "towers:\n", "{}"])
def test_empty_file_or_section_changes_nothing(tmp_path: Path, text: str) -> None:
    assert load_config("demo", written(tmp_path, text)) == load_config("demo")
    assert load_config(None, written(tmp_path, text)) == RetrainConfig()


def test_scientific_notation_is_a_number(tmp_path: Path) -> None:
    # YAML 1.1 reads 1e-4 as a text.
    assert load_config(None, written(tmp_path, "towers: {learning_rate: 1e-4}")).towers.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("towers.batch_size", 0, ["towers.batch_size: got 0", "at least 2", "at most 1000000"]),
        ("towers.learning_rate", float("nan"), ["towers.learning_rate: got nan", "above 0"]),
        ("towers.pooling", "max", ["towers.pooling: got 'max'", "last or mean"]),
        ("index.layout", "files", ["index.layout: got 'files'", "merged or shards"]),
        ("data.max_documents", 3, ["data.max_documents: got 3", "at least 50 or null"]),
        ("distillation.layers", ["a"], ["distillation.layers: got 'a'", "a list of whole numbers or a whole number or null"]),
        ("policy.beat_bm25", "maybe", ["policy.beat_bm25: got 'maybe'", "true or false"]),
        ("name", "My Retriever", ["name: got 'My Retriever'", "small letters, digits and hyphens"]),
        ("towers", 5, ["towers: got 5", "a section with its own fields"]),
        ("data.source", "", ["data.source: got ''", "a text, not empty"]),
    ],
)
def test_wrong_value_is_refused_with_what_is_allowed(field: str, value: Any, words: list[str]) -> None:
    message = refusal(overrides={field: value})
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("towers.stepz", "did you mean 'towers.steps'?"),
        ("tower", "did you mean 'towers'?"),
        ("lora_rank", "did you mean 'towers.lora_rank' or 'towers.companion.lora_rank'?"),
        ("seed", "'data.seed' or 'towers.seed'"),
        ("companion", "did you mean 'towers.companion'?"),
        ("endpoint", "did you mean 'towers.endpoint'?"),  # and not encoding, which is written alike
        ("towers.epochs", "did you mean 'distillation.epochs'?"),
    ],
)
def test_unknown_field_is_refused_with_the_nearest(field: str, hint: str) -> None:
    message = refusal(overrides={field: 3})
    assert f"{field}: unknown field" in message and hint in message


WITHOUT_EFFECT = [
    ("smoke", {"towers.companion.share": 0.3}, "towers.companion.share", "towers.companion.base_model is ''; name an encoder there"),
    ("demo", {"towers.companion": {"base_model": None, "steps": 9}}, "towers.companion.steps", "towers.companion.base_model is ''"),
    ("demo", {"towers.companion.training": "full", "towers.companion.lora_rank": 4}, "towers.companion.lora_rank", "is 'full'"),
    ("smoke", {"towers.training": "full", "towers.lora_layers": 1}, "towers.lora_layers", "towers.training is 'full'; set that to lora"),
    ("qwen3-embedding", {"towers": {"lora_layers": 1}}, "towers.lora_layers", "towers.training is 'none'"),
    ("smoke", {"towers.judge.weight": 2.0}, "towers.judge.weight", "towers.judge.base_model is ''; name a model there"),
    ("smoke", {"towers.endpoint.url": "http://127.0.0.1:1/v1"}, "towers.endpoint.url", "towers.base_model is 'tiny-decoder'"),
    ("smoke", {"distillation.generator": "gemma3-270m"}, "distillation.generator", "distillation.generated is 0"),
]


@pytest.mark.parametrize("overrides", [{"towers.companion": None, "towers.companion.share": 0.3}, {"index.seed": 5, "index": None}])
def test_a_section_is_not_taken_back_and_set_at_once(overrides: dict[str, Any]) -> None:
    section = next(key for key, value in overrides.items() if value is None)
    assert f"{section} is taken back (null), and {section}." in refusal(preset="demo", overrides=overrides)


@pytest.mark.parametrize(("preset", "overrides", "field", "why"), WITHOUT_EFFECT)
def test_a_setting_of_a_person_that_does_nothing_is_refused(preset: str, overrides: dict[str, Any], field: str, why: str) -> None:
    message = refusal(preset=preset, overrides=overrides)
    assert f"{field}: it has no effect while " in message and why in message
    assert message.count("it has no effect") == 1, message


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("demo", {"towers.companion.base_model": ""}),  # the preset's share and steps stay behind
        ("pages", {"towers.companion": None, "towers.training": "full"}),  # and its layers with adapters
        ("demo", {"towers.training": "full", "towers.lora_layers": None, "towers.companion.share": 0.5}),
        ("smoke", {"towers.companion": {"share": 0.5}, "towers.companion.steps": 150}),  # as they are anyway
        ("endpoint", {"towers.base_model": "tiny-decoder", "towers.training": "lora", "towers.lora_layers": 1}),
    ],
)
def test_what_a_preset_proposes_for_a_part_that_is_switched_off_is_no_fault(preset: str, overrides: dict[str, Any]) -> None:
    assert load_config(preset, None, overrides)


def test_a_file_is_refused_for_what_does_nothing_unless_it_or_the_command_line_switched_that_off(tmp_path: Path) -> None:
    share = written(tmp_path, "towers:\n  companion: {share: 0.3}\n  lora_layers: 1\n")
    assert "towers.companion.share: it has no effect" in (message := refusal(file=share)) and "lora_layers: " not in message
    assert "towers.lora_layers: it has no effect" in refusal(preset="qwen3-embedding", file=share)
    assert load_config("demo", share).towers.companion.share == 0.3
    assert load_config(None, share, {"towers.companion.base_model": "tiny-encoder"}).towers.companion.share == 0.3
    assert load_config("demo", share, {"towers.companion": None, "towers.training": "full"})
    # Every setting of a configuration, as `config show --write` writes it.
    whole = written(tmp_path, "towers:\n  companion: {base_model: '', share: 0.3}\n  training: full\n  lora_layers: 1\n")
    assert load_config(None, whole) and load_config("demo", whole, {"towers.training": "none"})
    assert load_config(None, written(tmp_path, "towers:\n  companion:\n  endpoint:\n  lora_layers: 1\n"))


@pytest.mark.parametrize("text", ["towers.companion.share: 0.3\n", "towers:\n  companion.share: 0.3\n"])
def test_a_dotted_name_in_a_file_is_told_how_to_write_it(tmp_path: Path, text: str) -> None:
    """It was called an unknown field, by the very name that `--set` takes and `config show` gives."""
    message = refusal(preset="demo", file=written(tmp_path, text))
    assert "towers.companion.share: unknown field; write it in its section, towers: {companion: {share: ...}}." in message


def test_all_wrong_fields_are_named_at_once(tmp_path: Path) -> None:
    file = written(tmp_path, "towers: {steps: -1}\nqolicy: {margin: 1}\n")
    message = refusal(preset="demo", file=file, overrides={"encoding.shard_size": 0})
    assert all(word in message for word in ("towers.steps", "qolicy", "encoding.shard_size", "preset demo", "mine.yaml", "command line"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("towers:\n  steps: [1\n", "line 3, column 1: not valid YAML"),
        ("towers:\n  steps: 1\n  steps: 2\n", "line 3, column 3: not valid YAML: the field 'steps' is given twice"),
        ("? [a, b]\n: 3\n", "line 1, column 3"),
        ("\x01", "not valid YAML"),
        ("- 1\n", "found list"),
        ("3: 4\n", "3: unknown field"),
        ("towers: &a {steps: 3, companion: *a}\n", "towers.companion"),
        ("!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_broken_file_is_refused_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(file=written(tmp_path, text))
    assert "mine.yaml" in message and words in message


def test_missing_file_folder_and_bytes(tmp_path: Path) -> None:
    assert "does not exist" in refusal(file=tmp_path / "none.yaml")
    assert "cannot be read: it is a folder. Name a file in it." in refusal(file=tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read: it is not UTF-8. Convert it to UTF-8." in refusal(file=tmp_path / "bytes.yaml")


@pytest.mark.parametrize("given", ["data.on_violation", "data"])
def test_one_word_for_a_section_stays_beneath_a_single_field_of_it(tmp_path: Path, given: str) -> None:
    """The word was lost as soon as one of its fields was set, in a file beneath it or beside it on the command line."""
    wanted = {"dangling_judgements": "drop", "exact_duplicates": "drop", "blank_texts": "refuse"}
    word = "drop" if given == "data.on_violation" else {"on_violation": "drop"}
    beside = load_config(overrides={given: word, "data.on_violation.blank_texts": "refuse"})
    file = written(tmp_path, "data: {on_violation: drop}\n")
    over = load_config(file=file, overrides={"data.on_violation.blank_texts": "refuse"})
    assert beside.data.on_violation.model_dump() == over.data.on_violation.model_dump() == wanted
    assert set(load_config(overrides={given: word}).data.on_violation.model_dump().values()) == {"drop"}


def test_unknown_preset_lists_the_presets() -> None:
    message = refusal(preset="dmo")
    assert "did you mean 'demo'?" in message and ", ".join(preset_names()) in message


def test_preset_is_no_path() -> None:
    assert "Unknown preset" in refusal(preset="../config")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["steps", "seed", "x"]), inner, max_size=3),
        max_leaves=5,
    ),
    st.sampled_from([*sorted(field_paths(RetrainConfig)), "towers", "zzz", "a.b.c"]),
)
def test_any_value_gives_a_configuration_or_a_refusal(value: Any, field: str) -> None:
    try:
        load_config(overrides={field: value})
    except ConfigError as error:
        assert field.split(".")[0] in str(error)


def test_configuration_survives_json() -> None:
    config = load_config("gpu")
    assert RetrainConfig.model_validate(json.loads(config.model_dump_json())) == config


def test_import_is_cheap() -> None:
    code = "import sys, flows.config; print(sorted({'torch', 'numpy', 'pandas', 'mlflow', 'prefect'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=600).stdout
    assert told.strip() == "[]"


def _leaves(values: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key}
    return found


def _at(values: Any, field: str) -> Any:
    for part in field.split("."):
        values = values[part]
    return values


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"towers.dimension": 100, "towers.matryoshka": [128]}, "dimension 100 is not in the matryoshka list [128]"),
        ({"towers.sharding": "fsdp"}, "sharding fsdp is for training full"),
        ({"towers.hard_negatives": 60}, "cannot be drawn from mining_depth 50"),
        ({"towers.processes": 3, "towers.batch_size": 32}, "cannot be shared equally by 3 processes"),
        ({"distillation.generated": 10}, "no generator is named"),
        ({"distillation.form": "static", "distillation.layers": 2}, "a static student has no layers"),
        ({"distillation.form": "static", "distillation.pooling": "cls"}, "pooling cls does not fit"),
        ({"distillation.student": "teacher", "distillation.pooling": "cls"}, "sees no other"),
        ({"distillation.prune_to": [2, 4]}, "must fall from step to step"),
        ({"distillation.source_shares": {"train": 2}}, "must lie between 0 and 1"),
        (
            {"evaluation.slices": [{"name": "a", "kind": "language", "edges": [1]}]},
            "evaluation.slices.0: the slices 'a' of kind language have no",
        ),
        ({"evaluation.slices": [{"name": "a", "kind": "language"}] * 2}, "two dimensions of slices are named 'a'"),
        (
            {"evaluation.slices": [{"name": "a", "kind": "size"}]},
            "evaluation.slices.0.kind: got 'size'; allowed: query_length or head_tail",
        ),
        ({"evaluation.slices": [{"name": "a", "kind": "language", "edge": 1}]}, "evaluation.slices.0.edge: unknown field; did you mean"),
        ({"policy.floors": {"ndcg@5": 0.3}}, "known are recall@1, recall@10, recall@50, recall@100, ndcg@10, mrr@10"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused_in_words(settings: dict[str, Any], words: str) -> None:
    assert words in refusal(overrides=settings)


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("towers.revision=0000000", "0000000"),
        ("towers.revision=1.0", "1.0"),
        ("towers.revision=null", None),
        ("towers.query_prompt=yes", "yes"),
        ("policy.version=2026-11-29", "2026-11-29"),
        ("name=2024", "2024"),
        ("name=2026-02-30", "2026-02-30"),
        ("towers.query_prompt=query: ", "query: "),
        ("towers.query_prompt=- a", "- a"),
        ("towers.query_prompt='query: '", "query: "),
        ("towers.vectors=/data/set #1", "/data/set #1"),
        ("towers.companion.base_model=", None),
        ("data.mix=[a, b]", ["a", "b"]),
        ("towers.steps=5", 5),
        ("distillation.refine_epochs=2", 2),
        ("towers.learning_rate=0.001", 0.001),
        ("data.max_documents=50", 50),
        ("index.nosuch=5", 5),
        ("study.seeds=[13, 14]", [13, 14]),
    ],
)
def test_words_of_the_command_line_stay_words_where_a_setting_takes_text(entry: str, value: object) -> None:
    assert parsed_settings(Namespace(set=[entry])) == {entry.partition("=")[0]: value}


@pytest.mark.parametrize("words", ["/data/set #1", "@home", "2026"])
def test_words_of_the_command_line_stay_words_in_settings_of_studies_too(words: str) -> None:
    assert parsed_settings(Namespace(set=[f"study.foreign_documents={words}"]), StudySettings) == {"study.foreign_documents": words}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("towers.steps=0100", "the number 0100 is not in plain digits"),
        ("towers.steps=1:30", "not in plain digits"),
        ("towers.steps=1_000", "not in plain digits"),
        ("towers.steps=2026-02-30", "is no timestamp"),
        ("towers={steps: 5, steps: 6}", "the field 'steps' is given twice"),
        ("study.seeds=" + "[" * 5000, "nested too deeply"),
        ("policy.min_power=", "is a variable unset? Write null for none"),
        ("towers.revision=", "is a variable unset?"),
        ("data.max_documents= ", "is a variable unset?"),
    ],
)
def test_values_of_the_command_line_that_would_be_read_as_others_are_refused(entry: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed_settings(Namespace(set=[entry]))
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["2026-02-30", "!!int x", "!!bool x", "!!timestamp x", "9" * 5000, "[" * 5000])
def test_values_of_a_file_that_yaml_fails_on_are_refused_with_the_file(text: str, tmp_path: Path) -> None:
    assert "mine.yaml" in (message := refusal(file=written(tmp_path, f"name: {text}\n"))) and "not valid YAML" in message


@pytest.mark.parametrize("field", ["policy.min_power", "policy.margin", "data.seed", "distillation.generated", "towers.learning_rate"])
@pytest.mark.parametrize("value", [True, False])
def test_yes_and_no_are_no_numbers(field: str, value: bool) -> None:
    assert f"{field}: got {value}; allowed: a" in refusal(overrides={field: value})


def test_what_a_preset_chose_for_its_base_model_is_told_where_another_one_is_named() -> None:
    named = {"towers.base_model": "Qwen/Qwen3-0.6B"}
    said = left_by_preset(layers_of("pages", None, named))
    assert said.startswith("towers.base_model is Qwen/Qwen3-0.6B, and what preset pages chose for gemma3-270m-warm stays: query_prompt ''")
    assert "lora_layers 9" in said and "learning_rate 0.0006" in said
    own = {"towers.query_prompt": "q", "towers.document_prompt": "", "towers.lora_layers": None}
    assert "learning_rate 0.0006. Set" in (rest := left_by_preset(layers_of("pages", None, {**named, **own}))) and "lora" not in rest
    for silent in (layers_of("pages"), layers_of(None, None, named), layers_of("pages", None, {"towers.base_model": "gemma3-270m-warm"})):
        assert left_by_preset(silent) == ""
    assert left_by_preset(layers_of("pages", None, {**named, **own, "towers.learning_rate": 1e-4})) == ""
