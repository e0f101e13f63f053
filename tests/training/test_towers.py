"""Stage 1 on a tiny random decoder: gradients, cached gradients, resuming, load-back parity, collapse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.artifacts import verify
from components.errors import ArtifactError, CollapseError, ModelError, ProbeMismatch
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import PROBE_TEXTS, ROLES, check_probes, load_contract, measure_spread, refuse_collapse, save_contract
from components.towers.encoder import load_tower
from components.towers.loop import CHECKPOINT
from components.towers.losses import cached_backward, info_nce
from components.towers.train import train_towers, training_losses
from components.towers.two_towers import TwoTowers
from tests.training.tiny_world import documents, pairs, queries

CONFIG = TowerConfig(
    base_model="tiny-decoder", pooling="mean", steps=30, batch_size=16, chunk_size=16, checkpoint_every=5, lora_rank=4, precision="float32"
)


@pytest.fixture
def towers(home: Path) -> TwoTowers:
    built = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG)
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):  # a fresh adapter is all zeros on one side and has no gradient on the other
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    return built


def gradient(towers: TwoTowers, chunk: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one batch of 8 pairs in chunks of `chunk`."""
    rows = {"query": towers.tokens(queries()[:8], "query"), "document": towers.tokens(documents()[:8], "document")}
    chunks = {role: [r[i : i + chunk] for i in range(0, 8, chunk)] for role, r in rows.items()}
    towers.model.zero_grad()
    with towers.passing_twice():
        loss = cached_backward(towers.embed, chunks["query"], chunks["document"], lambda q, d: info_nce(q, d, 0.1))  # type: ignore[arg-type]
    return loss, {n: p.grad.clone() for n, p in towers.model.named_parameters() if p.grad is not None}


def test_both_adapters_get_a_gradient_and_the_base_gets_none(towers: TwoTowers) -> None:
    _, found = gradient(towers, 8)
    for role in ("query", "document"):
        values = [g.abs().max() for name, g in found.items() if f".{role}_tower." in name]
        assert values and all(v > 0 for v in values)
    assert all(".lora_" in name for name in found)


def test_adapters_of_the_upper_layers_get_the_gradients_they_have_beside_adapters_of_all_layers(home: Path) -> None:
    base = resolve_base("tiny-decoder", documents() + queries())
    every, upper = (TwoTowers(base, CONFIG.model_copy(update={"lora_layers": count})) for count in (None, 1))
    lowest = sorted({int(name.split("layers.")[1].split(".")[0]) for name, _ in every.model.named_parameters() if ".lora_" in name})
    assert lowest[-1] == len(lowest) - 1 > 0
    with torch.no_grad():
        trained = dict(every.model.named_parameters())
        for name, parameter in upper.model.named_parameters():
            if ".lora_" in name:
                assert f"layers.{lowest[-1]}." in name
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
                trained[name].copy_(parameter)  # the lower adapters are fresh, so they change nothing
    (loss, found), (same, wanted) = gradient(upper, 8), gradient(every, 8)
    assert loss == pytest.approx(same, abs=1e-6)
    assert set(found) == {name for name in wanted if f"layers.{lowest[-1]}." in name}
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-5)


def test_no_graph_reaches_below_the_layers_with_adapters(home: Path) -> None:
    towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG.model_copy(update={"lora_layers": 1}))
    stack = next(m for m in towers.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1)
    seen: list[bool] = []
    for layer in stack:
        layer.register_forward_hook(lambda module, given, made: seen.append((made[0] if isinstance(made, tuple) else made).requires_grad))
    towers.embed(towers.tokens(documents()[:4], "document"), "document")
    assert seen == [False] * (len(stack) - 1) + [True]


@pytest.mark.parametrize(("precision", "near"), [("float32", 1e-6), ("bfloat16", 0.02)])
def test_what_lies_below_the_first_trained_layer_is_worked_out_once_for_both_passes_of_a_chunk(
    precision: str, near: float, home: Path
) -> None:
    changes = {"lora_layers": 1, "precision": precision}
    towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG.model_copy(update=changes))
    with torch.no_grad():
        for i, parameter in enumerate(towers.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    stack = next(m for m in towers.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 1)
    passes = {"below": 0, "trained": 0}

    def counted(layer: str) -> Callable[..., None]:
        def count(*_: Any) -> None:
            passes[layer] += 1

        return count

    for name, layer in (("below", stack[0]), ("trained", stack[-1])):
        layer.self_attn.register_forward_hook(counted(name))
    whole = gradient(towers, 8)
    assert passes == {"below": 2, "trained": 2}  # one chunk a role passes once
    loss, found = gradient(towers, 3)
    assert passes == {"below": 2 + 6, "trained": 2 + 11}  # all three chunks of a role pass twice, but the first one of documents
    assert loss == pytest.approx(whole[0], abs=near)
    assert found.keys() == whole[1].keys()
    for key, value in found.items():
        torch.testing.assert_close(value, whole[1][key], atol=near, rtol=10 * near)


def test_no_state_outlives_the_step_that_kept_it(home: Path) -> None:
    towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG.model_copy(update={"lora_layers": 1}))
    first, second = (towers.tokens(documents()[i : i + 4], "document") for i in (0, 4))
    wanted = towers.embed(second, "document").detach()
    rows = list(first)
    with torch.no_grad(), towers.passing_twice():
        towers.embed(rows, "document")
    rows[:] = second  # the very object, with other texts in it
    torch.testing.assert_close(towers.embed(rows, "document").detach(), wanted, atol=0, rtol=0)
    with towers.passing_twice():
        torch.testing.assert_close(towers.embed(rows, "document").detach(), wanted, atol=0, rtol=0)


def test_more_layers_with_adapters_than_there_are_is_refused(home: Path) -> None:
    with pytest.raises(ModelError, match=r"lora_layers is 9, but '.*' has 2 layers. Give 2 at most"):
        TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG.model_copy(update={"lora_layers": 9}))


def test_cached_gradients_equal_those_of_the_whole_batch(towers: TwoTowers) -> None:
    whole_loss, whole = gradient(towers, 8)
    cached_loss, cached = gradient(towers, 3)
    assert cached_loss == pytest.approx(whole_loss, abs=1e-5)
    assert whole.keys() == cached.keys()
    for name in whole:
        torch.testing.assert_close(cached[name], whole[name], atol=1e-5, rtol=1e-4)


def test_training_lowers_the_loss_and_its_towers_find_documents(home: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 120, "learning_rate": 3e-3})
    artifact = train_towers(pairs(), config, {"dataset": "d"}, tmp_path)
    losses = training_losses(tmp_path)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    query_tower, document_tower = load_tower(tmp_path / "query_tower"), load_tower(tmp_path / "document_tower")
    assert query_tower.space_id == document_tower.space_id
    scores = query_tower.encode(queries()) @ document_tower.encode(documents()).T
    found = (scores.argsort(1)[:, ::-1][:, :5] == np.arange(64)[:, None]).any(1).mean()
    assert found > 0.3  # 0.08 by chance
    assert artifact.parents == {"dataset": "d"}
    verify(tmp_path)


@pytest.mark.parametrize(
    "base", ["tiny-decoder", "tiny-encoder"]
)  # BERT has maps named query: an adapter of that name was saved without them
def test_the_loaded_towers_give_the_vectors_that_were_trained(home: Path, tmp_path: Path, base: str) -> None:
    attention = "bidirectional" if base == "tiny-encoder" else "causal"
    config = CONFIG.model_copy(update={"base_model": base, "attention": attention, "max_mean_cosine": 1.0})
    towers = TwoTowers(resolve_base(base, documents() + queries()), config)
    with torch.no_grad():  # of adapters that all count; fresh ones change nothing
        for i, parameter in enumerate(towers.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    for role in ROLES:
        (tmp_path / role).mkdir()
        contract = towers.save(role, tmp_path / role)
        assert contract is not None
        save_contract(tmp_path / role, contract, "a space")
        wanted = towers.encode(towers.tokens(documents(), role), role)
        np.testing.assert_allclose(load_tower(tmp_path / role, "float32").encode(documents()), wanted, atol=1e-4)


def test_a_killed_training_gives_the_vectors_of_a_straight_one(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    straight.mkdir()
    killed.mkdir()
    train_towers(pairs(), CONFIG, {}, straight)
    steps_taken = _kill_after(17, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train_towers(pairs(), CONFIG, {}, killed)
    monkeypatch.undo()
    monkeypatch.setenv("SCALINGNOTE_HOME", str(home))
    assert steps_taken == list(range(17))
    assert (killed / CHECKPOINT).exists()
    train_towers(pairs(), CONFIG, {}, killed)
    assert training_losses(killed) == pytest.approx(training_losses(straight), abs=1e-5)
    for role in ("query_tower", "document_tower"):
        ours, theirs = load_tower(killed / role).encode(documents()), load_tower(straight / role).encode(documents())
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def _kill_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from components.towers.loop import Training

    original, taken = Training._step, []

    def step(self: Training, number: int) -> float:
        if number == steps:
            raise KeyboardInterrupt
        taken.append(number)
        return original(self, number)

    monkeypatch.setattr(Training, "_step", step)
    return taken


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained pair of towers in a home of its own."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(root / "home"))
        (root / "towers").mkdir()
        train_towers(pairs(), CONFIG, {}, root / "towers")
    return root


def test_a_saved_tower_gives_the_vectors_of_the_tower_in_training(home: Path, towers: TwoTowers, tmp_path: Path) -> None:
    from components.towers.contract import save_contract, space_id_of

    with torch.no_grad():
        expected = towers.embed(towers.tokens(documents(), "document"), "document").numpy()
    contract = towers.save("document", tmp_path)
    save_contract(tmp_path, contract, space_id_of(contract))
    assert str(home) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    loaded = load_tower(tmp_path, precision="float32")
    np.testing.assert_allclose(loaded.encode(documents()), expected, atol=1e-5)


def test_probes_notice_an_encoder_that_has_changed(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(trained / "home"))
    folder = trained / "towers" / "query_tower"
    encoder = load_tower(folder)
    assert len(set(PROBE_TEXTS)) == 64
    assert check_probes(encoder, folder, 0.001) < 0.001
    with torch.no_grad():
        for parameter in encoder._model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    with pytest.raises(ProbeMismatch, match="no longer gives its recorded vectors"):
        check_probes(encoder, folder, 0.01)


def test_an_exchanged_adapter_or_base_is_refused(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setenv("SCALINGNOTE_HOME", str(trained / "home"))
    folder = tmp_path / "tower"
    shutil.copytree(trained / "towers" / "query_tower", folder)
    shutil.copy(trained / "towers" / "document_tower" / "adapter" / "adapter_model.safetensors", folder / "adapter")
    with pytest.raises(ArtifactError, match="not the one its contract names"):
        load_tower(folder)
    contract, _ = load_contract(trained / "towers" / "query_tower")
    base = trained / "home" / "models" / contract.base_model / "manifest.json"
    kept = base.read_text()
    base.write_text(kept.replace('"kind"', '"kind" '))
    try:
        load_tower(trained / "towers" / "query_tower")  # spaces in the JSON change nothing
        base.write_text(kept.replace('"name": "tiny-decoder"', '"name": "another"'))
        with pytest.raises(ArtifactError, match="made on"):
            load_tower(trained / "towers" / "query_tower")
    finally:
        base.write_text(kept)


def test_collapse_is_told_by_cosine_and_by_rank() -> None:
    rng = np.random.default_rng(0)
    spread = measure_spread(_unit(rng.normal(size=(64, 32))))
    assert abs(spread.mean_cosine) < 0.05 and spread.effective_rank > 20
    refuse_collapse("tower", spread, 0.9, 4)
    crowded = measure_spread(_unit(np.ones((64, 32)) + 0.01 * rng.normal(size=(64, 32))))
    with pytest.raises(CollapseError, match=r"mean cosine of 1\.000"):
        refuse_collapse("tower", crowded, 0.9, 4)
    flat = measure_spread(_unit(np.pad(rng.normal(size=(64, 2)), ((0, 0), (0, 30)))))
    with pytest.raises(CollapseError, match="effective rank"):
        refuse_collapse("tower", flat, 0.9, 4)
    broken = measure_spread(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(CollapseError):
        refuse_collapse("tower", broken, 0.9, 4)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_unusable_models_and_batches_get_a_clear_error(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not exist"):
        resolve_base("./no/such/model")
    with pytest.raises(ModelError, match=r"only 64 training pairs"):
        train_towers(pairs(), CONFIG.model_copy(update={"batch_size": 65}), {}, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_base(str(tmp_path / "empty"))
