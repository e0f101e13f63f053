"""A small encoder beside the towers: one vector of both, trained and killed and loaded like any tower, and what a student takes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from components.artifacts import DatasetArtifact, open_artifact, verify
from components.distillation.config import DistillationConfig
from components.distillation.router import export_router
from components.distillation.student import new_student, save_student
from components.distillation.student.initial import check_before_towers, untrained_student, width_of
from components.errors import ArtifactError, CollapseError, ConfigError, ModelError
from components.evaluation.report import EncoderSpeed
from components.evaluation.speed import parameters_of, with_work
from components.release.completeness import base_models_of
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import COMPANION, EncodingContract, check_probes, load_contract, save_contract, space_id_of
from components.towers.encoder import JoinedTower, load_tower, open_tower
from components.towers.loop import CHECKPOINT, Training
from components.towers.train import companion_towers, join_companion, take_part, train_companion, train_towers, training_losses
from flows.config import COMMAND_LINE, RetrainConfig, layers_of, settle
from flows.config_view import settings_of
from flows.runner import Step
from flows.steps import companion_step, joined_step, stage_one, towers_step
from tests.training.tiny_world import documents, pairs, queries, trained

SHARE = 0.3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Towers with a companion and towers without, trained once; and the configuration of the former."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(tmp_path_factory.mktemp("home")))
        config = with_companion()
        joined, alone = tmp_path_factory.mktemp("joined"), tmp_path_factory.mktemp("alone")
        trained(config, joined)
        train_towers(pairs(), config.model_copy(update={"companion": TowerConfig().companion}), {}, alone)
        yield joined / "joined", alone, config


def with_companion(**changes: Any) -> TowerConfig:
    encoder = resolve_base("tiny-encoder", documents() + queries()).location
    companion = {"base_model": encoder, "share": SHARE, "steps": 12, "lora_rank": 4, "learning_rate": 0.003, **changes}
    return TowerConfig(
        base_model="tiny-decoder", pooling="mean", steps=8, batch_size=16, checkpoint_every=3, lora_rank=4, precision="float32",
        max_mean_cosine=1.0, min_effective_rank=1.0, companion=companion,
    )  # fmt: skip


@pytest.mark.parametrize("role", ["query_tower", "document_tower"])
def test_the_cosine_is_the_weighted_mean_of_both(made: Any, role: str) -> None:
    joined, alone, _ = made
    tower = open_tower(joined / role)
    own, beside = open_tower(alone / role), load_tower(joined / role / COMPANION)
    vectors, first, second = (encoder.encode(documents()) for encoder in (tower, own, beside))
    assert vectors.shape[1] == first.shape[1] + second.shape[1] == tower.contract.dimension
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors @ vectors.T, (1 - SHARE) * first @ first.T + SHARE * second @ second.T, atol=1e-5)
    assert np.abs(first @ first.T - second @ second.T).max() > 0.01  # else the weights could be anything
    assert check_probes(tower, joined / role, 1e-4) < 1e-4


def test_what_is_counted_and_named_is_of_both(made: Any) -> None:
    joined, alone, config = made
    tower, own = load_tower(joined / "query_tower"), load_tower(alone / "query_tower")
    assert isinstance(tower, JoinedTower) and tower.width == tower.contract.dimension == width_of(config)
    assert tower.worked_tokens(queries()) == own.worked_tokens(queries()) + tower.companion.worked_tokens(queries())
    verify(joined)
    attributes = open_artifact(joined).attributes
    assert attributes["companion_steps"] == 12 and float(str(attributes["companion_final_loss"])) > 0
    assert not (joined / COMPANION).exists() and not list(joined.rglob(CHECKPOINT))
    parts = {role: open_artifact(joined.parent / role) for role in ("towers", "companion")}
    expected = {"dataset": "d", **{role: part.digest for role, part in parts.items()}}
    assert open_artifact(joined).parents == open_artifact(joined / "query_tower").parents == expected
    found = base_models_of({role: joined / role for role in ("query_tower", "document_tower")})
    assert {role: pin.name for role, pin in found.items() if role.endswith("_companion")} == {
        f"{role}_companion": config.companion.base_model for role in ("query_tower", "document_tower")
    }


def test_the_space_is_named_by_both(made: Any) -> None:
    joined, alone, _ = made
    contract, space = load_contract(joined / "document_tower")
    assert space == space_id_of(contract) != load_contract(alone / "document_tower")[1]
    for change in ({"companion": "another"}, {"companion_share": 0.5}):
        assert space_id_of(contract.model_copy(update=change)) != space


def test_contracts_without_a_companion_keep_the_names_of_their_spaces() -> None:
    given = {
        "role": "document", "base_model": "m", "base_digest": "d", "adapter_digest": "a", "tokenizer_digest": "t", "pooling": "last",
        "normalize": True, "prompt": "", "append_eos": True, "max_length": 8, "dimension": 4,
    }  # fmt: skip
    # As commit 539deb8 named it.
    assert space_id_of(EncodingContract.model_validate(given)) == "f30dff530ace4c87674594effacd1ab5135e50fbbd89f599edf61f1ace790192"


def test_another_companion_is_refused(made: Any, tmp_path: Path) -> None:
    joined, _, _ = made
    shutil.copytree(joined / "query_tower", tmp_path / "tower")
    shutil.rmtree(tmp_path / "tower" / COMPANION)
    shutil.copytree(joined / "document_tower" / COMPANION, tmp_path / "tower" / COMPANION)
    with pytest.raises(ArtifactError, match="the companion is not the one its contract names"):
        load_tower(tmp_path / "tower")
    shutil.rmtree(tmp_path / "tower" / COMPANION)
    with pytest.raises(ArtifactError, match=r"encoding_contract\.json"):
        load_tower(tmp_path / "tower")


def test_what_the_companion_counts_is_changed_without_training_and_touches_no_part(made: Any, tmp_path: Path) -> None:
    joined, _, _ = made
    parts = [open_artifact(joined.parent / part) for part in ("towers", "companion")]
    other = join_companion(*parts, 0.8, tmp_path)
    assert other.digest != open_artifact(joined).digest
    first, second = (load_tower(folder / "query_tower").encode(queries()) for folder in (tmp_path, joined))
    own = first.shape[1] - load_tower(tmp_path / "query_tower" / COMPANION).width
    np.testing.assert_allclose(np.linalg.norm(first[:, :own], axis=1) ** 2, 0.2, atol=1e-5)
    np.testing.assert_allclose(first[:, :own] / 0.2**0.5, second[:, :own] / (1 - SHARE) ** 0.5, atol=1e-5)
    for file in [path for path in tmp_path.rglob("*") if path.is_file()]:
        file.unlink()
    assert join_companion(*parts, 0.8, tmp_path).digest == other.digest  # as after a kill: the folders were left
    for folder in (*(part.path for part in parts), joined, tmp_path):  # their files are linked
        for artifact in (folder, folder / "query_tower", folder / "document_tower"):
            verify(artifact)


@pytest.mark.parametrize("killed_in", [5, 8 + 7])  # the towers take 8 steps, then the companion takes its 12
def test_a_killed_training_gives_the_vectors_of_a_straight_one(
    made: Any, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: int
) -> None:
    joined, _, config = made
    steps: list[str] = []
    step = Training._step

    def until_killed(self: Training, *given: Any) -> Any:
        if len(steps) == killed_in:
            raise KeyboardInterrupt
        steps.append(self.label)
        return step(self, *given)

    monkeypatch.setattr(Training, "_step", until_killed)
    with pytest.raises(KeyboardInterrupt):
        trained(config, tmp_path)
    assert set(steps) == ({"train towers"} if killed_in < 8 else {"train companion", "train towers"})
    steps.clear()
    monkeypatch.setattr(Training, "_step", lambda self, *given: (steps.append(self.label), step(self, *given))[1])
    part, train = ("towers", train_towers) if killed_in < 8 else ("companion", train_companion)
    made_again = train(pairs(), config, {"dataset": "d"}, tmp_path / part)
    assert len(steps) == (8 - 3 if killed_in < 8 else 12 - 6)  # from the last checkpoint on
    assert training_losses(made_again.path) == pytest.approx(training_losses(joined.parent / part), abs=1e-5)
    for role in ("query_tower", "document_tower"):
        ours, theirs = load_tower(made_again.path / role).encode(documents()), load_tower(joined.parent / part / role).encode(documents())
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_model_as_published_has_a_companion_too(home: Path, tmp_path: Path) -> None:
    tower = load_tower(trained(with_companion().model_copy(update={"training": "none"}), tmp_path) / "document_tower")
    assert isinstance(tower, JoinedTower) and tower.contract.adapter_digest is None
    assert tower.companion.contract.adapter_digest is not None


def test_a_student_starts_from_the_companion_and_is_untrained_without(made: Any) -> None:
    joined, _, config = made
    tower = load_tower(joined / "query_tower", "float32")
    assert isinstance(tower, JoinedTower)
    student = DistillationConfig(student=config.companion.base_model, precision="float32")
    vectors = tower.encode(queries())
    begun = new_student(queries(), vectors, tower.space_id, student, joined / "query_tower")
    for name, weight in tower.companion.model.state_dict().items():
        np.testing.assert_array_equal(begun.model.state_dict()[name].numpy(), weight.numpy())
    fresh = untrained_student(student, queries(), joined / "query_tower", 32)
    published = fresh.model.state_dict()
    assert any(
        not np.allclose(published[n].float().numpy(), w.float().numpy(), atol=0.01) for n, w in tower.companion.model.state_dict().items()
    )
    other = student.model_copy(update={"student": "tiny-encoder"})  # made of these texts, so another model of this form
    apart = new_student(queries(), vectors, tower.space_id, other, joined / "query_tower")
    assert apart.contract.base_digest != begun.contract.base_digest == tower.companion.contract.base_digest


def test_a_companion_that_was_cut_is_another_encoder_than_the_whole_one(home: Path, tmp_path: Path) -> None:
    whole = with_companion().companion.base_model
    folder = trained(with_companion(base_model=f"{whole}@1"), tmp_path) / "query_tower"
    tower = load_tower(folder, "float32")
    assert isinstance(tower, JoinedTower)
    for student, layers, taken in ((f"{whole}@1", 1, True), (whole, 2, False)):
        config = DistillationConfig(student=student, precision="float32")
        begun = new_student(queries(), tower.encode(queries()), tower.space_id, config, folder)
        mine, theirs = begun.model.state_dict(), tower.companion.model.state_dict()
        assert begun.layer_count == layers
        assert all(np.array_equal(mine[name].numpy(), weight.numpy()) for name, weight in theirs.items()) == taken


def test_a_student_may_be_as_wide_as_both(home: Path) -> None:
    config = with_companion()
    check_before_towers(DistillationConfig(student=config.companion.base_model), config)
    with pytest.raises(ModelError, match="no-such-model"):
        check_before_towers(DistillationConfig(student="tiny-encoder"), with_companion(base_model="no-such-model"))


def test_a_package_of_modules_cannot_hold_two_encoders(made: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--part student"):
        export_router({"document": made[0] / "document_tower"}, tmp_path / "package")


def test_a_decoder_may_be_a_companion_and_an_encoder_says_what_it_cannot(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^towers\.companion: towers\.companion\.attention is causal.* Set towers\.companion\.attention"):
        train_towers(pairs(), with_companion(attention="causal"), {}, tmp_path)
    folder = trained(with_companion(base_model="tiny-decoder", attention="causal"), tmp_path)
    assert isinstance(load_tower(folder / "query_tower"), JoinedTower)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_model": "no-such-model"}, r"^towers\.companion: .*no-such-model"),
        ({"attention": "causal"}, r"^towers\.companion: towers\.companion\.attention is causal"),
    ],
)
def test_what_the_companion_cannot_be_is_said_before_the_towers_are_trained(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(Training, "_step", lambda *_: pytest.fail("something was trained"))
    for training in ("lora", "none"):
        with pytest.raises(ModelError, match=said):
            train_towers(pairs(), with_companion(**wrong).model_copy(update={"training": training}), {}, tmp_path / "towers")
    assert not (tmp_path / "towers").exists()


def test_processes_that_a_launcher_started_are_refused_before_anything_is_trained(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"towers\.processes"):  # as torchrun -m components.towers.launch calls it
        take_part(pairs(), with_companion(), {}, tmp_path / "towers")
    assert not (tmp_path / "towers").exists()


def test_a_collapse_of_the_companion_is_told_as_its_own(home: Path, tmp_path: Path) -> None:
    with pytest.raises(CollapseError, match=r"^towers\.companion.*has collapsed"):
        train_companion(pairs(), with_companion().model_copy(update={"min_effective_rank": 1000.0}), {}, tmp_path)


def test_a_student_that_is_cut_from_the_tower_has_no_companion(made: Any, tmp_path: Path) -> None:
    tower = made[0] / "query_tower"
    config = DistillationConfig(student="teacher", layers=1, precision="float32", max_query_length=32)
    student = new_student(queries(), load_tower(tower).encode(queries()), "space", config, tower)
    save_contract(tmp_path, save_student(student, tmp_path), "space")
    assert set(base_models_of({"query_encoder": tmp_path})) == {"query_encoder"}
    assert export_router({"query": tmp_path}, tmp_path / "package")


def test_the_work_and_the_size_of_a_joined_tower_are_those_of_both(made: Any) -> None:
    tower = load_tower(made[0] / "query_tower", "float32")
    assert isinstance(tower, JoinedTower)
    speed = EncoderSpeed(p50_ms=1, p95_ms=1, qps=10, batch_size=8, queries=5)
    joined, *parts = (with_work(speed, encoder, queries()) for encoder in (tower, tower.own, tower.companion))
    for name in ("flops_per_query", "tokens_per_second"):  # all tokens that are read, as the operations are those of both
        assert getattr(joined, name) == pytest.approx(sum(getattr(part, name) or 0 for part in parts))
    for name in ("parameters", "parameters_without_embeddings"):
        assert parameters_of(tower)[name] == parameters_of(tower.own)[name] + parameters_of(tower.companion)[name]


def test_two_local_models_have_a_part_in_the_key_each(home: Path, tmp_path: Path) -> None:
    folders = [Path(shutil.copytree(resolve_base("tiny-encoder", queries()).location, tmp_path / name)) for name in ("one", "other")]
    dataset = DatasetArtifact(kind="dataset", path=tmp_path, digest="d")

    def keys() -> tuple[str, str]:
        towers = {"base_model": str(folders[0]), "attention": "bidirectional", "companion": {"base_model": str(folders[1])}}
        config = RetrainConfig.model_validate({"towers": towers})
        return towers_step(config, dataset).folder.name, companion_step(config, dataset).folder.name

    found = [keys()]
    for folder in folders:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "changed": True}))
        found.append(keys())
    (towers, companion), (other, as_before), (as_changed, another) = found
    assert towers != other == as_changed and companion == as_before != another


def test_a_change_of_one_encoder_trains_the_other_no_more_than_a_change_of_what_it_counts(tmp_path: Path) -> None:
    """For a weight that was looked for the LLM was trained again, and for a longer training of the LLM the companion."""
    dataset = DatasetArtifact(kind="dataset", path=tmp_path, digest="d")

    def keys(**changes: Any) -> dict[str, str]:
        towers = {"base_model": "tiny-decoder", **changes, "companion": {"base_model": "tiny-encoder", **changes.get("companion", {})}}
        config = RetrainConfig.model_validate({"towers": towers})
        steps = towers_step(config, dataset), companion_step(config, dataset), joined_step(config, dataset, dataset)
        return {step.name: step.folder.name for step in steps}

    before = keys()
    for changes, expected in (
        ({"companion": {"share": 0.2}}, {"join_companion"}),
        ({"companion": {"steps": 9}}, {"train_companion"}),
        ({"companion": {"lora_rank": 2}}, {"train_companion"}),
        ({"steps": 9, "lora_rank": 2, "hard_negatives": 2, "learning_rate": 0.1}, {"train_towers"}),
        ({"seed": 9}, {"train_towers", "train_companion"}),
        ({"max_query_length": 9}, {"train_towers", "train_companion"}),
        ({"chunk_size": 4}, {"train_towers"}),  # of short texts the companion takes more at once
        ({"chunk_size": 64}, {"train_towers", "train_companion"}),
    ):
        after = keys(**changes)
        assert {name for name in before if before[name] != after[name]} == expected, changes


def test_the_companion_is_trained_first_so_that_its_collapse_costs_no_training_of_the_towers(tmp_path: Path) -> None:
    dataset, asked = DatasetArtifact(kind="dataset", path=tmp_path, digest="d"), list[str]()

    def run(step: Step) -> Any:
        asked.append(step.name)
        raise CollapseError("The query tower has collapsed")

    towers = {"base_model": "tiny-decoder", "companion": {"base_model": "tiny-encoder"}}
    with pytest.raises(CollapseError):
        stage_one(RetrainConfig.model_validate({"towers": towers}), dataset, run)
    assert asked == ["train_companion"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"companion": {"base_model": "vectors"}}, "no weights that could be trained"),
        ({"base_model": "vectors", "vectors": "here", "companion": {"base_model": "e"}}, "set companion.base_model to ''"),
        ({"sharding": "fsdp", "training": "full", "companion": {"base_model": "e"}}, "set sharding to none"),
        ({"companion": {"base_model": "e", "share": 1.0}}, "less than 1"),
        ({"companion": {"base_model": "e", "pooling": "cls", "attention": "causal"}}, "set it to mean or last"),
        ({"companion": {"base_model": "e", "hard_negatives": 3}}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_words(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TowerConfig.model_validate(given)


def test_no_name_is_no_companion() -> None:
    config = TowerConfig.model_validate({"base_model": "vectors", "vectors": "here", "companion": {"base_model": None}})
    assert config.companion.base_model == ""


def test_null_takes_back_the_companion_of_a_preset_and_says_from_where(tmp_path: Path) -> None:
    """`--set towers.companion=null` was read, and the companion of the preset stayed."""
    empty = tmp_path / "none.yaml"
    empty.write_text("towers:\n  companion:\n")
    for layers, source in (
        (layers_of("pages", overrides={"towers.companion": None}), COMMAND_LINE),
        (layers_of("pages", empty), str(empty)),
    ):
        config = settle(RetrainConfig, layers)
        assert config.towers.companion == TowerConfig().companion and config.towers.base_model == "gemma3-270m-warm"
        told = {each.field: each for each in settings_of(layers)}["towers.companion.base_model"]
        assert (told.value, told.source) == ("", source)
    again = layers_of("pages", empty, {"towers.companion.base_model": "e"})
    assert settle(RetrainConfig, again).towers.companion.steps == TowerConfig().companion.steps
    assert settle(RetrainConfig, layers_of("pages", overrides={"towers": None})).towers.companion.base_model


def test_the_companion_takes_of_the_towers_what_concerns_data_and_loss() -> None:
    config = TowerConfig(batches_by="chapter", temperature=0.2, seed=9, matryoshka=(32,), dimension=32, hard_negatives=2, lora_layers=1)
    own = companion_towers(config.model_copy(update={"companion": config.companion.model_copy(update={"base_model": "e"})}))
    assert (own.base_model, own.batches_by, own.temperature, own.seed) == ("e", "chapter", 0.2, 9)
    assert (own.matryoshka, own.dimension, own.hard_negatives, own.lora_layers, own.companion.base_model) == ((), None, 0, None, "")
    assert json.loads(own.model_dump_json())  # a launcher gets it as a file
