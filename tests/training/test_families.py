"""The families of models that people name: what each has to do as a teacher or as a student, on tiny models with tokenizers of its kind."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from components.distillation.config import DistillationConfig
from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.initial import Source, bare_student
from components.distillation.student.storage import load_student, save_student
from components.errors import ModelError
from components.evaluation.speed import _operations
from components.planning.facts import shape_of_base
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import record_probes, save_contract, space_id_of
from components.towers.encoder import JoinedTower, load_tower
from components.towers.losses import cached_backward, info_nce
from components.towers.model_size import model_without_memory, require_positions, shape_of
from components.towers.transformer import check_attention, layer_stack
from components.towers.two_towers import Adapters, TwoTowers, load_decoder
from tests.families import SHARED_KEYS, STUDENTS, TEACHERS
from tests.training.tiny_world import documents, queries, trained

TEXTS = [*documents(), *queries()]
LONG = " ".join(documents())


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The folder of each family's model."""
    root = tmp_path_factory.mktemp("families")
    for name, family in {**TEACHERS, **STUDENTS}.items():
        (root / name).mkdir()
        family.write(TEXTS, root / name)
    return {name: str(root / name) for name in (*TEACHERS, *STUDENTS)}


def towers_on(folder: str, **changes: Any) -> TwoTowers:
    given = {"base_model": folder, "lora_rank": 2, "max_query_length": 16, "max_document_length": 24, "precision": "float32", **changes}
    return TwoTowers(resolve_base(folder), TowerConfig(**given))


@pytest.mark.parametrize("name", TEACHERS)
def test_every_linear_map_of_every_layer_learns(name: str, families: dict[str, str], home: Path) -> None:
    from torch.nn import Linear

    towers = towers_on(families[name])
    maps = [n for n, m in towers.model.named_modules() if isinstance(m, Linear) and ".layers." in n and "lora_" not in n]
    assert maps and all(n.endswith("base_layer") for n in maps), "a linear map without an adapter"
    rows = towers.tokens(documents()[:4], "document")
    (towers.embed(rows, "document")[:, 0]).sum().backward()
    learned = {n for n, p in towers._weights.trained.items() if ".document" in n and "lora_B" in n}
    gradients = {n: towers._weights.trained[n].grad for n in learned}
    assert learned and not [n for n, gradient in gradients.items() if gradient is None or not gradient.abs().sum() > 0]
    if "moe" in name:
        assert any("experts" in n for n in learned)


@pytest.mark.parametrize("name", [*TEACHERS, *STUDENTS])
def test_layers_that_are_not_trained_are_worked_out_once_and_the_gradients_are_those_of_two_passes(
    name: str, families: dict[str, str], home: Path
) -> None:
    attention = "bidirectional" if name in STUDENTS else "causal"
    towers = towers_on(families[name], lora_layers=1, attention=attention, pooling="mean")
    with torch.no_grad():
        for i, parameter in enumerate(towers.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    rows = towers.tokens(documents()[:4], "document")
    chunks, passes = [rows[:2], rows[2:]], list[int]()
    owner, layers = layer_stack(towers.model.get_base_model(), name)
    lowest = next(m for m in getattr(owner, layers)[0].modules() if isinstance(m, torch.nn.Linear))
    lowest.register_forward_hook(lambda *_: passes.append(0))

    def gradients(kept: bool) -> list[torch.Tensor]:
        passes.clear()
        towers.model.zero_grad()
        with towers.passing_twice() if kept else nullcontext():
            cached_backward(towers.embed, chunks, chunks, lambda q, d: info_nce(q, d, 0.1))  # type: ignore[arg-type]
        return [torch.zeros(()) if p.grad is None else p.grad.clone() for p in towers.parameters()]

    plain, twice = gradients(False), len(passes)
    kept, once = gradients(True), len(passes)
    assert (once < twice) == (name not in SHARED_KEYS)
    assert any(g.abs().sum() > 0 for g in plain)
    for ours, theirs in zip(kept, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_text_ends_with_the_token_that_its_tokenizer_means(name: str, families: dict[str, str], home: Path) -> None:
    towers = towers_on(families[name])
    end = towers.tokenizer.convert_tokens_to_ids(TEACHERS[name].end)
    short, long = towers.tokens(["kidney stone", LONG], "document")
    assert len(long) == 24 and len(short) < 24
    for row in (short, long):
        assert row[-1] == end and row.count(end) == (2 if row[0] == end else 1)
        assert len(row) - len(towers.tokenizer("", add_special_tokens=True)["input_ids"]) > 1


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("name", TEACHERS)
def test_the_saved_tower_encodes_as_the_one_in_training(
    name: str, attention: str, families: dict[str, str], tmp_path: Path, home: Path
) -> None:
    import torch

    towers = towers_on(families[name], attention=attention)
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    texts = [documents()[0], LONG, "x"]
    wanted = {role: towers.encode(towers.tokens(texts, role), role) for role in ("query", "document")}  # type: ignore[arg-type]
    assert np.abs(wanted["query"] - wanted["document"]).max() > 1e-3
    for role, expected in wanted.items():
        contract = towers.save(role, tmp_path / role)  # type: ignore[arg-type]
        assert contract is not None
        save_contract(tmp_path / role, contract, space_id_of(contract.model_copy(update={"role": "document"})))
        loaded = load_tower(tmp_path / role, "float32")
        assert np.abs(loaded.encode(texts) - expected).max() < 1e-4
        for text, vector in zip(texts, expected, strict=True):  # alone, without padding
            assert np.abs(loaded.encode([text])[0] - vector).max() < 1e-4


COMMON = [
    "kidney stone",
    "kidney stone of the left side",
    "kidney stone of the right side",
    "kidney",
    "heart attack",
    "heart attack, old",
] * 4


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("name", TEACHERS)
def test_texts_that_begin_alike_get_the_vectors_that_each_has_alone(
    name: str, pooling: str, families: dict[str, str], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    towers = towers_on(families[name], pooling=pooling, query_prompt="Instruct: find the entry of this diagnosis. Query: ")
    with torch.no_grad():
        for parameter in towers.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    contract = towers.save("query", tmp_path)
    assert contract is not None
    save_contract(tmp_path, contract, space_id_of(contract.model_copy(update={"role": "document"})))
    tower = load_tower(tmp_path, "float32")
    seen: list[int] = []
    forward = tower.model.forward

    def counted(*given: Any, **named: Any) -> Any:
        seen.append(named["input_ids"].numel())
        return forward(*given, **named)

    shared_only = tower.encode(COMMON)  # measures once whether the model can
    monkeypatch.setattr(tower.model, "forward", counted)
    shared, of_shared = tower.encode(COMMON), sum(seen)
    apart = np.concatenate([tower.encode([text]) for text in COMMON])
    assert of_shared == tower.worked_tokens(COMMON)
    window = getattr(tower.model.config, "sliding_window", None) or 16
    assert (of_shared < 0.5 * (sum(seen) - of_shared)) == (window >= 16), "shared where no layer's window is shorter than the texts"
    np.testing.assert_allclose(shared, apart, atol=2e-5)
    np.testing.assert_array_equal(shared, shared_only)
    batches = tower.encode(COMMON, batch_size=5)  # as a timing asks for
    np.testing.assert_allclose(batches, apart, atol=2e-5)


def test_what_sees_ahead_or_has_no_room_for_a_tree_is_encoded_the_plain_way(
    families: dict[str, str], tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import components.towers.encoder as encoder
    from components.towers.encoder import can_share, longest_shared

    def saved(name: str, **changes: Any) -> Any:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        contract = towers_on(families[name], **changes).save("query", folder)
        assert contract is not None
        save_contract(folder, contract, space_id_of(contract.model_copy(update={"role": "document"})))
        return load_tower(folder, "float32")

    causal = saved("gemma-3")
    assert can_share(causal.model) and longest_shared(causal.model) == 8, "its sliding window"
    monkeypatch.setattr(encoder, "pooled_bundles", lambda *given: pytest.fail("a tree of tokens"))
    both_ways = saved("qwen3", attention="bidirectional", max_query_length=24)
    assert np.isfinite(both_ways.encode(COMMON)).all()
    one_by_one = [causal.encode([text])[0] for text in COMMON]
    assert max(map(len, causal.tokens(COMMON))) > 8
    np.testing.assert_allclose(causal.encode(COMMON), one_by_one, atol=2e-5)


def test_a_model_that_heeds_no_mask_or_no_positions_of_ours_is_found_out(families: dict[str, str], home: Path) -> None:
    import torch

    from components.towers.encoder import can_share
    from components.towers.two_towers import load_decoder

    for dropped in ("attention_mask", "position_ids"):
        model, _ = load_decoder(resolve_base(families["qwen3"]), "float32")
        with torch.no_grad():  # states of a tiny random model hardly depend on their neighbours; these do
            for layer in model.layers:
                layer.self_attn.o_proj.weight.mul_(30)
        assert can_share(model)
        forward = model.forward

        def deaf(dropped: str = dropped, forward: Any = forward, position_ids: Any = None, **named: Any) -> Any:
            given = {**named, "position_ids": position_ids}
            if given["attention_mask"].ndim == 4:
                given[dropped] = None
            return forward(**{name: value for name, value in given.items() if value is not None})

        model.forward = deaf
        assert not can_share(model)


@pytest.mark.parametrize("name", [*STUDENTS, "llama-3.2", "smollm", "mistral"])  # the last three know no padding
def test_a_student_of_the_family_is_saved_and_loaded_and_opened_by_sentence_transformers(
    name: str, families: dict[str, str], tmp_path: Path, home: Path
) -> None:
    from sentence_transformers import SentenceTransformer

    from components.distillation.student.initial import new_student

    config = DistillationConfig(student=families[name], precision="float32", max_query_length=20)
    vectors = np.random.default_rng(1).normal(size=(len(TEXTS), 32)).astype(np.float32)
    student = new_student(TEXTS, vectors, "space", config, None)
    texts = ["kidney stone", LONG]
    expected = student.encode(texts)
    save_contract(tmp_path, save_student(student, tmp_path), "space")
    assert np.abs(load_student(tmp_path, "float32").encode(texts) - expected).max() < 1e-5
    assert np.abs(SentenceTransformer(str(tmp_path), device="cpu").encode(texts) - expected).max() < 1e-4


@pytest.mark.parametrize("name", STUDENTS)
def test_a_companion_of_the_family_is_what_a_student_of_it_starts_from(
    name: str, families: dict[str, str], tmp_path: Path, home: Path
) -> None:
    from components.distillation.student.initial import new_student

    companion = {"base_model": families[name], "steps": 2, "lora_rank": 2, "learning_rate": 0.01}
    config = TowerConfig(
        base_model="tiny-decoder", steps=1, batch_size=8, max_query_length=16, max_document_length=24, precision="float32",
        max_mean_cosine=1.0, min_effective_rank=1.0, companion=companion,
    )  # fmt: skip
    folder = trained(config, tmp_path) / "query_tower"
    tower = load_tower(folder, "float32")
    assert isinstance(tower, JoinedTower)
    asked = DistillationConfig(student=families[name], precision="float32", max_query_length=16)
    student = new_student(queries(), tower.encode(queries()), "space", asked, folder)
    mine, theirs = (np.float64(encoder.encode(queries())) for encoder in (bare(student), tower.companion))
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


def bare(student: StudentEncoder) -> StudentEncoder:
    """The student's encoder without the head, as unit vectors."""
    contract = student.contract.model_copy(update={"dimension": student.model.config.hidden_size, "pooling": "mean"})
    return StudentEncoder(student.model, student.tokenizer, None, contract, student.space_id)


@pytest.mark.parametrize(("name", "limit"), [("bert", 64), ("roberta", 64), ("xlm-roberta", 64), ("distilbert", 64), ("qwen3", 64)])
def test_texts_longer_than_the_positions_are_refused_before_training_and_the_longest_works(
    name: str, limit: int, families: dict[str, str], home: Path
) -> None:
    base = resolve_base(families[name])
    require_positions(base, limit, "distillation.max_query_length")
    with pytest.raises(ModelError, match=f"max_query_length is {limit + 1}, but .* has positions for {limit} tokens"):
        require_positions(base, limit + 1, "distillation.max_query_length")
    if name in STUDENTS:
        student = bare_student(Source(DistillationConfig(student=families[name], max_query_length=limit, precision="float32"), TEXTS, None))
        rows = student.tokens([LONG])
        assert len(rows[0]) == limit
        assert np.isfinite(student.encode([LONG])).all()


@pytest.mark.parametrize("name", [*TEACHERS, *STUDENTS])
def test_what_a_plan_counts_of_a_model_is_what_it_has(name: str, families: dict[str, str], home: Path) -> None:
    base = resolve_base(families[name])
    model = model_without_memory(base)
    tables = [module for module in model.modules() if type(module).__name__ == "Embedding" and module is not model.get_input_embeddings()]
    counted = sum(p.numel() for p in model.parameters()) - sum(table.weight.numel() for table in tables)  # positions and segments
    assert shape_of_base(base).parameters == pytest.approx(counted, rel=0.1), "but for biases and norms"


@pytest.mark.parametrize("name", [*TEACHERS, *STUDENTS])
def test_operations_are_counted_of_every_family(name: str, families: dict[str, str], home: Path) -> None:
    model = model_without_memory(resolve_base(families[name]))
    short, long = (_operations(SimpleNamespace(model=model), np.array([length])) for length in (8.0, 16.0))  # type: ignore[arg-type]
    assert 0 < 2 * short < long < 4 * short, "attention grows faster than the text, and maps as it does"


def test_experts_are_counted_in_full_and_passed_by_few(families: dict[str, str], home: Path) -> None:
    from transformers import AutoConfig

    large = AutoConfig.for_model(  # as Qwen3-30B-A3B states itself
        "qwen3_moe", vocab_size=151_936, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_experts=128,
        num_experts_per_tok=8, num_hidden_layers=48, num_attention_heads=32, num_key_value_heads=4, head_dim=128,
    )  # fmt: skip
    shape = shape_of(large, 48)
    assert shape.parameters == pytest.approx(30.2e9, rel=0.02) and shape.inner == 8 * 768
    trained = sum(p.numel() for n, p in towers_on(families["qwen3-moe"])._weights.trained.items() if ".document" in n)
    assert shape_of_base(resolve_base(families["qwen3-moe"])).adapter_parameters(2) == pytest.approx(trained, rel=0.1)


def test_a_configuration_without_an_inner_width_means_four_times_the_width() -> None:
    from transformers import AutoConfig

    small = AutoConfig.for_model("gpt2", n_embd=32, n_layer=2, n_head=4)
    assert shape_of(small, 2).inner == 128 and shape_of(AutoConfig.for_model("gpt2", n_embd=32, n_head=4, n_inner=48), 2).inner == 48


def test_weights_that_adapters_cannot_reach_are_refused_by_name(families: dict[str, str], home: Path) -> None:
    import torch

    from components.towers.two_towers import adapted_maps, load_decoder

    model, _ = load_decoder(resolve_base(families["qwen3"]), "float32")
    model.layers[1].mlp.convolution = torch.nn.Conv1d(4, 4, 3)
    with pytest.raises(ModelError, match=r"adapters cannot be put on \(mlp.convolution.weight\).*towers.training to full"):
        adapted_maps(model, "odd")


def test_a_model_that_peft_takes_for_something_else_is_refused_in_words(families: dict[str, str], home: Path) -> None:
    class Holder(torch.nn.Module):
        """As in Reformer: what holds a linear map is called as another linear map is."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4)

    base = resolve_base(families["qwen3"])
    model, _ = load_decoder(base, "float32")
    model.layers[1].mlp.q_proj = Holder()
    with pytest.raises(ModelError, match=r"cannot take adapters \(Target module Holder.*towers.training to full"):
        Adapters(model, TowerConfig(base_model=base.name, lora_rank=2), base)


@pytest.mark.parametrize("error", [AttributeError("'NoneType' object has no attribute 'to'"), TypeError("a mask"), KeyError("full")])
def test_a_model_whose_code_fails_under_an_attention_is_refused_with_the_reason(error: Exception) -> None:
    class Failing(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, **_: Any) -> None:
            raise error

    with pytest.raises(ModelError, match=r"'odd' cannot be run with towers.attention bidirectional .*Set the other kind of attention"):
        check_attention(Failing(), "odd", "bidirectional")


def test_a_model_that_mixes_number_formats_is_refused_with_the_variable_that_helps(tmp_path: Path) -> None:
    def failing(message: str) -> Any:
        def encode(*_: object, **__: object) -> None:
            raise RuntimeError(message)

        return SimpleNamespace(encode=encode, contract=SimpleNamespace(base_model="odd"))

    with pytest.raises(ModelError, match=r"'odd' mixes number formats .expected scalar type Float.*SCALINGNOTE_PRECISION=float32"):
        record_probes(failing("expected scalar type Float but found BFloat16"), tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        record_probes(failing("CUDA out of memory"), tmp_path)
