"""The parameters of the deployments: what the form of the Prefect page is made from, and the configuration that they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import ValidationError, validate

import flows.refresh_query
from components.errors import ConfigError, ModelError, PromotionError
from components.towers.config import TowerConfig
from components.tracking.runs import FlowRun
from flows.adopt import adopted_run, with_vectors_at_home
from flows.config import RetrainConfig, field_paths, load_config, preset_names
from flows.parameters import Preset, requested_config
from flows.promote import promote
from flows.refresh_index import CHANGEABLE as INDEX_CHANGEABLE
from flows.refresh_index import RefreshConfig, configured, open_base, refresh_index, requested_refresh
from flows.refresh_query import CHANGEABLE as QUERY_CHANGEABLE
from flows.refresh_query import QueryRefreshConfig, _first_release, refresh_query_tower
from flows.retrain import retrain, train
from flows.why import STEPS

ROOT = Path(__file__).resolve().parents[3]
FLOWS: dict[str, Any] = {
    "retrain": retrain,
    "train": train,
    "refresh-index": refresh_index,
    "refresh-query-tower": refresh_query_tower,
    "promote": promote,
}


def schema_of(flow: Any) -> dict[str, Any]:
    return parameter_schema(flow.fn).model_dump_for_openapi()


def check(flow: Any, parameters: dict[str, Any]) -> None:
    """As Prefect's server does when a run is made."""
    validate(parameters, schema_of(flow), raise_on_error=True, ignore_required=True)


def test_presets_of_the_form_are_those_there_are() -> None:
    assert list(get_args(Preset)) == preset_names()


@pytest.mark.parametrize("name", sorted(FLOWS))
def test_every_parameter_of_a_deployment_is_described_and_its_own_parameters_are_valid(name: str) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    assert sorted(deployment["name"] for deployment in deployments) == sorted(FLOWS)
    parameters = next(deployment for deployment in deployments if deployment["name"] == name)["parameters"]
    schema = schema_of(FLOWS[name])
    assert set(parameters) <= set(schema["properties"])
    assert [key for key, found in schema["properties"].items() if not found.get("description")] == []
    check(FLOWS[name], parameters)
    FLOWS[name].validate_parameters(parameters)


@pytest.mark.parametrize(
    ("name", "without"),
    [
        ("retrain", {"encode_changes", "refresh_index", "map_query_tower"}),
        ("train", {"encode_changes", "refresh_index", "map_query_tower", "evaluate", "compare_with_champion", "write_candidate"}),
        ("refresh-query-tower", {"encode_changes", "refresh_index"}),
    ],
)
def test_steps_that_can_be_made_again_are_those_of_the_flow(name: str, without: set[str]) -> None:
    assert set(schema_of(FLOWS[name])["properties"]["again"]["items"]["enum"]) == set(STEPS) - without
    with pytest.raises(Exception, match="is not one of"):
        check(FLOWS[name], {"again": ["evaluat"]})


@pytest.mark.parametrize("name", ["retrain", "train", "refresh-index", "refresh-query-tower"])
def test_builds_and_refreshes_take_the_same_typed_parameters(name: str) -> None:
    properties = schema_of(FLOWS[name])["properties"]
    assert {"preset", "data", "name", "settings"} <= set(properties)
    assert properties["preset"]["anyOf"][0]["enum"] == preset_names()
    assert properties["settings"]["type"] == "object"


def leaves(properties: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, found in properties.items():
        if "properties" in found:
            yield from leaves(found["properties"], f"{prefix}{name}.")
        else:
            yield prefix + name, found


def test_form_of_the_settings_describes_and_bounds_every_field_and_fills_none_in() -> None:
    settings = schema_of(retrain)["properties"]["settings"]
    fields = dict(leaves(settings["properties"]))
    assert set(fields) == set(field_paths(RetrainConfig)) - {"name"}
    assert [field for field, found in fields.items() if not found["description"] or "default" in found] == []
    steps = fields["towers.steps"]
    assert (steps["minimum"], steps["maximum"], steps["description"]) == (
        1,
        10_000_000,
        "Optimizer steps (a whole number, at least 1 and at most 10000000; default 150)",
    )
    # The page sends false for every untouched switch, and so would switch gates off.
    assert [field for field, found in fields.items() if "boolean" in str([found.get("type"), found.get("anyOf")])] == []
    assert fields["towers.activation_checkpointing"]["enum"] == [True, False]
    assert fields["policy.beat_bm25"]["enum"] == [True, False]
    assert fields["index.layout"]["enum"] == ["merged", "shards"]
    query = schema_of(refresh_query_tower)["properties"]
    assert list(query["settings"]["properties"]) == ["data", "towers", "distillation", "evaluation", "policy"]
    assert query["new_teacher"]["type"] == "boolean" and query["new_teacher"]["default"] is False
    assert set(schema_of(refresh_index)["properties"]["settings"]["properties"]["index"]["properties"]) == {
        path.partition(".")[2] for path in INDEX_CHANGEABLE if path.startswith("index.")
    }


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"settings": {"towers.batch_size": 0}}, "0 is less than the minimum of 2"),
        ({"settings": {"towers": {"batch_size": 0}}}, "0 is less than the minimum of 2"),
        ({"settings": {"towers": {"stepz": 3}}}, "'stepz' was unexpected"),
        ({"settings": {"towers.stepz": 3}}, "one of the sections data, towers"),
        ({"settings": {"tower": {"steps": 3}}}, "one of the sections data, towers"),
        ({"settings": "towers.steps=3"}, "is not of type 'object'"),
        ({"settings": ["towers.steps"]}, "is not of type 'object'"),
        ({"settings": {"index.layout": "files"}}, "is not one of ['merged', 'shards']"),
        ({"settings": {"policy.beat_bm25": "maybe"}}, "is not one of [True, False]"),
        ({"settings": {"policy": {"beat_bm25": 1}}}, "is not one of [True, False]"),
        ({"preset": "dmo"}, "'dmo' is not one of ['adopt', 'cluster', 'demo'"),
        ({"name": "My Retriever"}, "does not match"),
        ({"data": 5}, "5 is not of type 'string'"),
    ],
)
def test_a_wrong_parameter_is_refused_when_a_run_is_made(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        check(retrain, parameters)
    assert words in str(caught.value)


def test_a_refresh_is_refused_what_its_release_keeps() -> None:
    check(refresh_index, {"settings": {"index.compact_share": 0.5, "encoding": {"workers": 2}}})
    for settings in ({"index.index_key": "Flat"}, {"index": {"index_key": "Flat"}}, {"towers": {"steps": 3}}):
        with pytest.raises(ValidationError):
            check(refresh_index, {"settings": settings})


@pytest.mark.parametrize("settings", ["towers.steps=3", 3, ["towers"]])
def test_settings_that_are_no_mapping_are_refused_by_the_flow_with_an_example(settings: Any) -> None:
    with pytest.raises(ParameterTypeError, match=r"settings are a mapping such as \{towers.steps: 80\}"):
        retrain.validate_parameters({"settings": settings})


def test_parameters_give_what_the_command_line_gives() -> None:
    asked = requested_config("demo", "DIR", "mine", {"towers.steps": 9, "towers": {"lora_rank": 2}, "distillation.epochs": 3})
    given = {"towers.steps": 9, "towers.lora_rank": 2, "distillation.epochs": 3, "data.source": "DIR", "name": "mine"}
    assert asked == load_config("demo", None, given)
    assert requested_config(None, "", "", {}) == RetrainConfig()
    assert requested_config("smoke", "", "", {}).name == "smoke"


def test_data_and_name_win_over_settings_however_these_are_written() -> None:
    for settings in ({"data.source": "A", "data": {"source": "B"}}, {"data": {"source": "B"}, "name": "b"}):
        asked = requested_config("demo", "C", "c", settings)
        assert (asked.data.source, asked.name) == ("C", "c")


def test_a_whole_configuration_stands_in_the_place_of_a_preset() -> None:
    config = load_config("smoke")
    assert requested_config(None, "", "", {}, config) == config
    assert requested_config(None, "", "", {"towers.steps": 3}, config).towers.steps == 3
    with pytest.raises(ConfigError, match=r"Both preset \(demo\) and config are given"):
        requested_config("demo", "", "", {}, config)


def test_flow_itself_refuses_both_and_unknown_settings_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match="Both preset"):
        retrain.fn(preset="demo", config=load_config("smoke"))
    with pytest.raises(ConfigError, match=r"\(preset demo, settings\).*\n.*towers.stepz: unknown field; did you mean 'towers.steps'"):
        retrain.fn(preset="demo", settings={"towers.stepz": 3})


def release(config: RetrainConfig) -> Any:
    return SimpleNamespace(config=config.model_dump(mode="json"))


def test_a_refresh_takes_from_a_preset_what_it_may_change_but_never_the_gates() -> None:
    base = load_config("smoke", None, {"policy.margin": 0.3, "distillation.layers": 1, "data.source": "MINE"})
    asked = requested_refresh(RefreshConfig, None, preset="pages", settings={"distillation.epochs": 5})
    found, pages = configured(asked, release(base), QUERY_CHANGEABLE), load_config("pages")
    assert found.distillation == pages.distillation.model_copy(update={"epochs": 5}) and found.evaluation == pages.evaluation
    assert (found.policy, found.towers, found.index, found.data) == (base.policy, base.towers, base.index, base.data)
    index = configured(requested_refresh(RefreshConfig, None, preset="gpu"), release(base), INDEX_CHANGEABLE)
    assert (index.encoding, index.distillation, index.index) == (load_config("gpu").encoding, base.distillation, base.index)


def test_a_new_teacher_brings_its_own_settings_and_not_those_of_the_one_before() -> None:
    own = {"pooling", "query_prompt", "document_prompt", "dimension", "max_query_length", "max_document_length"}
    base = load_config("smoke", None, {"towers.revision": "abc", "towers.query_prompt": "find: "})
    ask = partial(QueryRefreshConfig, new_teacher=True)

    def towers(request: QueryRefreshConfig) -> TowerConfig:
        return configured(request, release(base), request.changeable).towers

    preset = towers(ask(preset="qwen3-embedding"))
    assert (
        preset == load_config("qwen3-embedding").towers
        and preset.model_fields_set == load_config("qwen3-embedding").towers.model_fields_set
    )
    larger = {"towers.base_model": "Qwen/Qwen3-Embedding-4B"}  # the lengths of the preset stay, and not the 32,768 tokens that it reads
    found, wanted = towers(ask(preset="qwen3-embedding", settings=larger)), load_config("qwen3-embedding", None, larger).towers
    assert (found, found.model_fields_set) == (wanted, wanted.model_fields_set) and found.max_document_length == 512
    published = towers(ask(settings={"towers": {"base_model": "a/b", "training": "none", "max_query_length": 40}}))
    assert own & published.model_fields_set == {"max_query_length"} and published.revision is None
    # The same model, as it was published: with its own prompts, and not with those that towers were trained on it with.
    as_it_is = towers(ask(settings={"towers.training": "none", "towers.pooling": "mean"}))
    assert own & as_it_is.model_fields_set == {"pooling"} and as_it_is.revision == "abc"
    trained = towers(ask(settings={"towers.base_model": "a/b"}))
    assert trained == base.towers.model_copy(update={"base_model": "a/b", "revision": None})
    longer = towers(ask(settings={"towers.steps": 99}))
    assert longer == base.towers.model_copy(update={"steps": 99})
    with pytest.raises(ConfigError, match=r"towers\.steps belongs to what the release keeps"):
        towers(QueryRefreshConfig(settings={"towers.steps": 99}))


def test_a_refresh_of_a_misspelt_retriever_makes_nothing_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment with a wrong name left an empty model there."""

    def unknown(*_: object) -> Any:
        raise PromotionError("no release was promoted yet")

    monkeypatch.setattr("components.release.open.resolve", unknown)
    monkeypatch.setattr("flows.refresh_index.require_decidable", lambda _: pytest.fail("a model was made"))
    with pytest.raises(PromotionError):
        open_base(RefreshConfig(name="shpo"))


def test_what_the_registration_would_refuse_is_refused_before_an_encoder_is_made_for_adopted_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(_: str) -> None:
        raise ConfigError("the policies cannot be read")

    monkeypatch.setattr("flows.refresh_query.require_decidable", refused)
    monkeypatch.setattr("flows.refresh_query.recorded_flow", lambda *_: pytest.fail("it was begun"))
    adopted: Any = SimpleNamespace(config=load_config("smoke").model_dump(mode="json"), run_id="a1", started="now")
    with pytest.raises(ConfigError, match="policies"):
        _first_release(QueryRefreshConfig(name="shop", release="adopted"), adopted, [])


@pytest.mark.parametrize("settings", [{"distillation": 5}, {"towers": []}, {"towers.companion": "a/b"}])
def test_a_word_in_the_place_of_a_section_is_refused_by_a_refresh_in_words(settings: dict[str, Any]) -> None:
    """It ended in an unexpected failure."""
    request = QueryRefreshConfig(new_teacher=True, settings=settings)
    with pytest.raises(ConfigError, match=next(iter(settings))):
        configured(request, release(load_config("smoke")), request.changeable)
    nothing = QueryRefreshConfig(new_teacher=True, settings=dict.fromkeys(settings))
    configured(nothing, release(load_config("smoke")), nothing.changeable)


def test_a_refresh_asks_for_another_generator_without_the_commit_of_the_one_before() -> None:
    """The commit of the first one was asked of the second one's repository, which has none of that name."""
    own = {"generated": 5, "generator": "a/first", "generator_revision": "f" * 40, "student": "a/student", "revision": "e" * 40}
    base = load_config("smoke", None, {f"distillation.{field}": value for field, value in own.items()})
    found = configured(RefreshConfig(settings={"distillation.generator": "a/second"}), release(base), QUERY_CHANGEABLE).distillation
    assert (found.generator, found.generator_revision, found.revision) == ("a/second", None, "e" * 40)
    named = {"distillation": {"generator": "a/second", "generator_revision": "v2"}}
    assert configured(RefreshConfig(settings=named), release(base), QUERY_CHANGEABLE).distillation.generator_revision == "v2"
    more = configured(RefreshConfig(settings={"distillation.generated": 7}), release(base), QUERY_CHANGEABLE).distillation
    assert more == base.distillation.model_copy(update={"generated": 7})


def test_a_new_teacher_has_no_commit_of_another_judge_and_none_where_nothing_is_trained() -> None:
    own = {"towers.judge.base_model": "a/judge", "towers.judge.revision": "f" * 40, "towers.judge.weight": 2.0}
    base = release(load_config("smoke", None, own))

    def judge(**settings: Any) -> Any:
        asked = QueryRefreshConfig(new_teacher=True, settings={key.replace("__", "."): value for key, value in settings.items()})
        return configured(asked, base, asked.changeable).towers.judge

    assert (judge().base_model, judge().revision) == ("a/judge", "f" * 40)
    other = judge(towers__judge__base_model="a/other")
    assert (other.base_model, other.revision, other.weight) == ("a/other", None, 2.0)
    assert judge(towers__training="none").base_model == ""


def test_vectors_that_were_copied_into_a_home_are_found_where_the_home_lies_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`refresh-query-tower` after `adopt --qdrant` looked for them where the home had been."""
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    own = {"towers.base_model": "vectors", "towers.vectors": "/the old home/collections/abc"}
    adopted = FlowRun("1", "adopt", "FINISHED", "", {}, None, load_config("smoke", None, own).model_dump(mode="json"))
    monkeypatch.setattr("flows.adopt.newest_flow_run", lambda *_: adopted)
    monkeypatch.setattr("flows.adopt._released", lambda _: False)

    def vectors(recorded: FlowRun | None) -> str | None:
        assert recorded is not None
        return configured(RefreshConfig(), recorded, QUERY_CHANGEABLE).towers.vectors

    assert vectors(adopted_run(RefreshConfig())) == own["towers.vectors"]  # it is not here either: the error names what is recorded
    copy = tmp_path / "work" / "collections" / "abc"
    copy.mkdir(parents=True)
    assert vectors(adopted_run(RefreshConfig())) == str(copy)
    for other in ({"towers": {"vectors": "/elsewhere/abc"}}, {"towers": {"vectors": None}}, {"name": "of an older release"}):
        assert with_vectors_at_home(other) == other


def test_what_a_run_of_a_deployment_asks_for_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"towers\.companion\.share: it has no effect"):
        requested_config("smoke", "", "", {"towers": {"companion": {"share": 0.3}}})
    with pytest.raises(ConfigError, match=r"towers\.lora_layers: it has no effect"):
        requested_config(None, "", "", {"towers.lora_layers": 1}, load_config("qwen3-embedding"))
    switched_off = load_config("demo", None, {"towers.companion.base_model": "", "towers.training": "full"})
    assert requested_config(None, "", "", {}, switched_off) == switched_off
    ask = QueryRefreshConfig(new_teacher=True, settings={"towers.companion.share": 0.3})
    with pytest.raises(ConfigError, match=r"\(the release, command line\)(.|\n)*towers\.companion\.share: it has no effect"):
        configured(ask, release(load_config("smoke")), ask.changeable)
    assert configured(QueryRefreshConfig(), release(switched_off), QUERY_CHANGEABLE) == switched_off


def test_the_teacher_that_a_release_has_is_no_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = SimpleNamespace(digest="same")
    monkeypatch.setattr(flows.refresh_query, "train_both", lambda *_: (tower, tower))
    monkeypatch.setattr(flows.refresh_query, "_require_usable", lambda *_: None)
    with pytest.raises(ConfigError, match="the teacher that release/3 has already"):
        flows.refresh_query._new_teacher(None, None, SimpleNamespace(query_tower=tower, title="release/3"), None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"'tiny-encoder' is 64 wide, the index 32"),
        ({"towers.max_document_length": 600}, r"towers\.max_document_length is 600, but .* has positions for 512"),
        ({"distillation.layers": 3}, r"distillation\.layers is 3, but 'tiny-encoder' has 2 layers"),
    ],
)
def test_what_cannot_follow_a_new_teacher_is_refused_before_it_is_trained(
    monkeypatch: pytest.MonkeyPatch, home: Path, settings: dict[str, Any], said: str
) -> None:
    trained: list[object] = []
    monkeypatch.setattr(flows.refresh_query, "train_both", lambda *given: trained.append(given))
    monkeypatch.setattr("components.data.dataset.load_dataset", lambda _: None)
    monkeypatch.setattr("components.distillation.train.check_sources", lambda *_: None)
    base = SimpleNamespace(index=SimpleNamespace(attributes={"dimension": 64 if settings else 32}))
    with pytest.raises(ModelError, match=said):
        flows.refresh_query._new_teacher(load_config("smoke", None, settings), None, base, SimpleNamespace(path=None))
    assert not trained


def test_a_refresh_keeps_its_releases_settings_without_a_preset() -> None:
    base = load_config("smoke")
    found = configured(RefreshConfig(settings={"policy.margin": 0.1}), release(base), QUERY_CHANGEABLE)
    untouched = {"data": {}, "towers": {"endpoint": {}}, "policy": {"margin": 0.1}}  # as the page sends them
    assert configured(RefreshConfig(settings=untouched), release(base), QUERY_CHANGEABLE) == found
    assert found == load_config("smoke", None, {"policy.margin": 0.1})


def test_a_refresh_refuses_a_request_beside_single_parameters_and_unknown_presets() -> None:
    whole = RefreshConfig(name="mine")
    nothing = {"name": "retriever", "release": "champion", "data": "", "preset": None, "settings": {}}
    assert requested_refresh(RefreshConfig, whole, **nothing) == whole
    assert requested_refresh(RefreshConfig, None, **{**nothing, "name": "mine"}) == whole
    with pytest.raises(ConfigError, match="Both request and data, settings are given"):
        requested_refresh(RefreshConfig, whole, **{**nothing, "data": "DIR", "settings": {"policy.margin": 0.1}})
    with pytest.raises(ConfigError, match="Unknown preset 'dmo'; did you mean 'demo'"):
        configured(RefreshConfig(preset="dmo"), release(load_config("smoke")), QUERY_CHANGEABLE)
