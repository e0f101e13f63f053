"""config show and config diff: every value with its meaning and origin, and what two configurations have different."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.utils.file_utils import local_file_uri_to_path

from components.errors import ConfigError
from components.settings import strict_yaml
from components.towers.trained.published import OWN
from components.tracking.runs import StepRecord, close_flow_run, open_flow_run, record_step
from components.tracking.store import client
from flows.cli.parser import build_parser
from flows.cli.prepare import read_config
from flows.config import Layer, RetrainConfig, field_paths, load_config, preset_names
from flows.config_view import (
    TEACHERS_OWN,
    as_yaml,
    differences,
    field_schemas,
    flat,
    left_to_the_model,
    render_settings,
    same,
    settings_of,
    shown,
)
from tests.flows.cli_world import assert_refused, done, scalingnote
from tests.unit.tracking.test_tracking_runs import PROVENANCE, make_artifact


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))


def flow_run(**config: Any) -> str:
    run_id = open_flow_run("retriever", "retrain", config, PROVENANCE, {})
    close_flow_run(run_id, "FINISHED")
    return run_id


def test_every_setting_has_a_description_and_says_what_it_allows() -> None:
    settings = settings_of([])
    assert [setting.field for setting in settings] == list(field_paths(RetrainConfig))
    assert [setting.field for setting in settings if not setting.description or setting.allowed in ("", "a value")] == []


def test_what_stays_of_a_preset_beside_another_base_model_is_said() -> None:
    words = ("config", "show", "--preset", "pages", "--set", "towers.base_model=decoder-64x2")
    assert "lora_layers 9" in done(*words)["notes"][0]
    assert done("config", "show", "--preset", "pages")["notes"] == []
    assert "what preset pages chose for gemma3-270m-warm stays" in scalingnote(*words).out


def test_each_value_says_where_it_comes_from_and_the_last_one_wins(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("towers: {steps: 7, lora_rank: 2}\nindex:\n")
    found = done("config", "show", "--preset", "demo", "--config", file, "--set", "towers.steps=9", "--data", "DIR", "--name", "mine")
    settings = found["settings"]
    assert {field: settings[field]["from"] for field in ("towers.steps", "data.source", "name")} == dict.fromkeys(
        ("towers.steps", "data.source", "name"), "command line"
    )
    assert (settings["towers.lora_rank"]["from"], settings["towers.lora_rank"]["value"]) == (str(file), 2)
    assert settings["towers.max_query_length"]["from"] == "preset demo"
    assert settings["index.layout"] == {
        "value": "merged",
        "default": "merged",
        "from": "default",
        "changed": False,
        "description": "One index file, or one for each shard, opened together",
        "allowed": "merged or shards",
    }
    assert found["config"]["towers"]["steps"] == 9 and found["sources"] == ["preset demo", str(file), "command line"]


def test_one_word_for_a_section_is_from_whoever_gave_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {on_violation: drop}\n")
    for words, source in ((("--set", "data.on_violation=drop"), "command line"), (("--config", file), str(file))):
        found = done("config", "show", *words, "--changed")["settings"]
        assert {field: value["from"] for field, value in found.items()} == dict.fromkeys(
            ("data.on_violation.dangling_judgements", "data.on_violation.exact_duplicates", "data.on_violation.blank_texts"), source
        )


def test_changed_shows_only_what_differs_from_the_defaults() -> None:
    found = done("config", "show", "--preset", "smoke", "--changed")
    given = yaml.safe_load((Path(__file__).parents[3] / "flows" / "presets" / "smoke.yaml").read_text(encoding="utf-8"))
    assert len(found["settings"]) == 1 + sum(len(section) for section in given.values() if isinstance(section, dict))
    assert done("config", "show", "--changed")["settings"] == {}
    assert "towers.steps" not in done("config", "show", "--changed", "--set", "towers.steps=150")["settings"]


def test_table_is_grouped_by_section_and_keeps_to_its_width() -> None:
    text = render_settings(settings_of([Layer("preset demo", {"towers": {"steps": 80}})]), 110)
    headings = [line.partition(":")[0] for line in text.splitlines() if line and not line.startswith(" ")]
    assert headings == ["general", "data", "towers", "encoding", "distillation", "index", "evaluation", "policy"]
    assert max(len(line) for line in text.splitlines()) <= 110
    row = next(line for line in text.splitlines() if line.startswith("  steps "))
    assert row.split()[:4] == ["steps", "80", "preset", "demo"]


def test_command_prints_the_table_and_counts_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    out = scalingnote("config", "show", "--set", "towers.steps=9").out
    assert "Optimizer steps (a whole number, at least 1 and at most 10000000; default 150)" in " ".join(out.split())
    assert f"1 of {len(settings_of([]))} settings differ from their defaults (the defaults, command line)." in out


@pytest.mark.parametrize("preset", preset_names())
def test_written_file_gives_the_same_configuration_again(tmp_path: Path, preset: str) -> None:
    target = tmp_path / "complete.yaml"
    odd = ("towers.query_prompt=\"a: 'b' # c\\n  d\\t\\u202e \"", "policy.floors={ndcg@10: 0.4}", "distillation.refine_learning_rate=1e-05")
    options = ("--preset", preset, *(word for entry in odd for word in ("--set", entry)))
    outcome = scalingnote("config", "show", *options, "--write", target)
    assert outcome.status == 0 and f"Written to {target}." in outcome.out
    given = yaml.safe_load(target.read_text(encoding="utf-8"))
    assert set(flat(given)) == set(field_paths(RetrainConfig)) - left_to_the_model(load_config(preset, None, {"towers.query_prompt": "a"}))
    assert done("config", "diff", target, target)["equal"]
    assert load_config(None, target).model_dump() == RetrainConfig(**done("config", "show", *options)["config"]).model_dump()
    assert load_config(None, target).towers.query_prompt == "a: 'b' # c\n  d\t\u202e "


@pytest.mark.parametrize("preset", ["qwen3-embedding", "embeddinggemma", "harrier", "endpoint"])
def test_what_a_teacher_brings_itself_is_neither_shown_nor_written_as_set(tmp_path: Path, preset: str) -> None:
    """A published model was asked with the default prompts and pooling of an untrained one, once its preset was written to a file."""
    target, asked = tmp_path / "complete.yaml", load_config(preset)
    own = {"query_prompt", "document_prompt", *(() if preset == "endpoint" else OWN)} - asked.towers.model_fields_set
    assert left_to_the_model(asked) == {f"towers.{field}" for field in own} != set()
    assert scalingnote("config", "show", "--preset", preset, "--write", target).status == 0
    found = done("config", "show", "--preset", preset)
    for again in (load_config(None, target), load_config(None, None, found["config"])):
        assert again == asked and not again.towers.model_fields_set & own
    assert {field for field, told in found["settings"].items() if told["from"] == TEACHERS_OWN} == left_to_the_model(asked)
    assert done("config", "diff", preset, target)["equal"]
    assert set(done("config", "diff", preset, "demo")["only_in_b"]) == left_to_the_model(asked)
    assert "query_prompt: left out, so that the model's own counts" in target.read_text() or "query_prompt" not in own


def test_a_model_that_is_trained_and_vectors_that_exist_bring_nothing_themselves() -> None:
    assert left_to_the_model(load_config("demo")) == left_to_the_model(RetrainConfig()) == frozenset()
    vectors = {"towers.base_model": "vectors", "towers.vectors": "DIR"}
    assert left_to_the_model(load_config("adopt", None, vectors)) == frozenset()


def test_policy_file_stands_alone_in_the_place_of_the_policy_before_it(tmp_path: Path) -> None:
    file, policy = tmp_path / "mine.yaml", tmp_path / "policy.yaml"
    file.write_text("policy: {floors: {recall@50: 0.9}}\n")
    policy.write_text('version: "2026-1"\nfloors: {ndcg@10: 0.4}\n')
    found = done("config", "show", "--preset", "demo", "--config", file, "--policy", policy)
    assert found["config"]["policy"]["floors"] == {"ndcg@10": 0.4}
    assert found["settings"]["policy.margin"]["from"] == f"policy {policy}" and found["settings"]["policy.margin"]["value"] == 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--preset", "dmo"), ["Unknown preset 'dmo'", "did you mean 'demo'?"]),
        (("--set", "towers.stepz=3"), ["towers.stepz: unknown field; did you mean 'towers.steps'?"]),
        (("--set", "towers.steps"), ["--set expects FIELD=VALUE"]),
        (("--set", "policy.margin=2"), ["policy.margin: got 2", "at most 0.5"]),
        (("--config", "none.yaml"), ["none.yaml does not exist"]),
        (("--write", "."), ["--write . is no file"]),
        (("--write", "no/such/folder.yaml"), ["lies in a folder that does not exist"]),
        (("--name", "My Retriever"), ["name: got 'My Retriever'"]),
    ],
)
def test_show_refuses_bad_input_in_words(arguments: tuple[str, ...], words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(scalingnote("config", "show", *arguments), 2, *words)


def test_odd_characters_of_the_command_line_leave_the_file_readable(tmp_path: Path) -> None:
    target = tmp_path / "complete.yaml"
    prompt = "\x01\udcff\n\u2028\x7f"  # as bytes that are no text arrive from a shell
    outcome = scalingnote("config", "show", "--set", f"towers.query_prompt={json.dumps(prompt)}", "--name", "mine", "--write", target)
    assert outcome.status == 0, outcome.err
    assert load_config(None, target).towers.query_prompt == prompt
    assert_refused(scalingnote("config", "show", "--data", "caf\udcff", "--write", target), 2, "holds bytes that are no text")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_that_is_written_to_stays_a_link(there: bool, tmp_path: Path) -> None:
    """It was replaced by a file, and what it led to kept the former settings."""
    target, link = tmp_path / "shared.yaml", tmp_path / "link.yaml"
    link.symlink_to(target)
    if there:
        target.write_text("name: old\n")
    assert scalingnote("config", "show", "--preset", "smoke", "--write", link).status == 0
    assert link.is_symlink() and "towers:" in target.read_text()


def test_show_never_writes_over_the_file_it_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# why\ntowers: {steps: 7}\n")
    assert_refused(scalingnote("config", "show", "--config", file, "--write", file), 2, "its comments would be lost")
    assert file.read_text() == "# why\ntowers: {steps: 7}\n"


def test_diff_prints_only_what_differs_and_ends_with_status_0() -> None:
    outcome = scalingnote("config", "diff", "demo", "pages")
    assert outcome.status == 0 and "towers.steps" in outcome.out and "refine_titles" not in outcome.out
    found = done("config", "diff", "demo", "pages")
    assert not found["equal"] and found["different"]["distillation.epochs"] == {"a": 1, "b": 4}
    equal = scalingnote("config", "diff", "demo", "demo")
    assert equal.status == 0 and "All settings are equal." in equal.out


def test_runs_are_compared_by_what_they_recorded(home: Path) -> None:
    recorded = load_config("smoke").model_dump(mode="json")
    first = flow_run(**recorded)
    del recorded["towers"]["precision"]
    second = flow_run(**{**recorded, "old": {"field": 1}, "data": {**recorded["data"], "seed": 14}})
    found = done("config", "diff", first, second)
    assert found["different"] == {"data.seed": {"a": 13, "b": 14}}
    assert (found["only_in_a"], found["only_in_b"]) == ({"towers.precision": "float32"}, {"old.field": 1})
    out = scalingnote("config", "diff", first, second).out
    assert f"Only in {first}; {second} does not record:" in out and "towers.precision" in out and "(retrain, " in out
    assert done("config", "diff", first, "smoke")["equal"]


def test_diff_refuses_runs_without_a_configuration(home: Path, tmp_path: Path) -> None:
    run_id = flow_run(towers={"steps": 7})
    step = record_step(run_id, StepRecord("evaluate", {}, make_artifact(tmp_path / "report", "evaluation")))
    assert_refused(scalingnote("config", "diff", step, "demo"), 2, "is that of the step evaluate", run_id)
    artifacts = Path(local_file_uri_to_path(client().get_run(run_id).info.artifact_uri))
    (artifacts / "config.json").write_text("{broken")
    assert_refused(scalingnote("config", "diff", run_id, "demo"), 2, "holds no configuration")
    shutil.rmtree(artifacts)
    assert_refused(scalingnote("config", "diff", run_id, "demo"), 2, "holds no configuration", "candidate/N")
    assert_refused(scalingnote("config", "diff", "0" * 32, "demo"), 2, f"MLflow has no run {'0' * 32}")


@pytest.mark.parametrize(
    ("ref", "status", "words"),
    [
        ("champion", 7, "No release of 'retriever' was promoted yet"),
        ("release/7", 7, "release/7 does not exist"),
        ("candidate/x", 7, "'candidate/x' names no release"),
        ("dmo", 2, "'dmo' names no configuration; did you mean 'demo'?"),
        ("", 2, "names no configuration"),
        ("none.yaml", 2, "does not exist"),
    ],
)
def test_diff_says_what_it_cannot_find(home: Path, ref: str, status: int, words: str) -> None:
    assert_refused(scalingnote("config", "diff", "demo", ref), status, words)


def test_differences_tell_true_from_one_and_a_missing_field_from_null() -> None:
    found = differences({"a": {"x": 1, "y": None, "z": [0]}}, {"a": {"x": True, "z": [0.0]}})
    assert [(d.field, d.in_a, d.in_b) for d in found] == [("a.x", True, True), ("a.y", True, False)]
    assert same({"k": [1, 2]}, {"k": [1, 2]}) and not same({"k": [1]}, {"k": [True]})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a b", "a b"),
        ("2026-02-28", '"2026-02-28"'),
        ("1", '"1"'),
        ("", '""'),
        ("null", '"null"'),
        ("\u202e", '"\\u202e"'),
        ([1], "[1]"),
        (None, "null"),
    ],
)
def test_value_is_shown_as_yaml_would_take_it(value: Any, text: str) -> None:
    assert shown(value) == text and yaml.safe_load(text) == value


def test_a_day_that_there_is_not_is_shown_as_the_text_that_it_is() -> None:
    assert shown("2026-02-30") == '"2026-02-30"'
    assert strict_yaml(as_yaml(settings_of([Layer("x", {"data": {"source": "2026-02-30"}})]), []))["data"]["source"] == "2026-02-30"


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [("--data", "a", "data.source=b"), ("--name", "one", "name=two"), ("--max-documents", "50", "data.max_documents=60")],
)
def test_an_option_and_a_setting_that_contradict_each_other_are_refused(option: str, value: str, field: str) -> None:
    told = f"{option} {value} and --set {field} contradict each other"
    with pytest.raises(ConfigError, match=told):
        read_config(build_parser().parse_args(["config", "show", option, value, "--set", field]))
    same = f"{field.partition('=')[0]}={value}"
    assert read_config(build_parser().parse_args(["config", "show", option, value, "--set", same]))


def test_schemas_stand_alone() -> None:
    assert "$ref" not in json.dumps(field_schemas(RetrainConfig))
    assert as_yaml(settings_of([]), ["one", ""]).startswith("# one\n#\n# Name of the retriever")
