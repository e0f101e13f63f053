"""Full training, both attention modes, fewer dimensions, mining and query prediction: load-back parity, resuming, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from components.artifacts import read_json, verify, write_json
from components.errors import ArtifactError, CollapseError, ConfigError, ModelError
from components.towers.base_models import resolve_base
from components.towers.config import TowerConfig
from components.towers.contract import save_contract, space_id_of
from components.towers.encoder import load_tower
from components.towers.loop import CHECKPOINT, Training, in_chunks
from components.towers.negatives import HardNegatives, Mined, round_of_step
from components.towers.pairs import Pairs
from components.towers.tokens import pad_batch, tokens_of
from components.towers.train import _check_collapse, train_towers, training_losses
from components.towers.transformer import check_attention, set_attention
from components.towers.two_towers import TwoTowers
from tests.training.test_mining_report import report
from tests.training.tiny_world import documents, pairs, queries

CONFIG = TowerConfig(
    base_model="tiny-decoder",
    pooling="mean",
    steps=12,
    batch_size=16,
    chunk_size=8,
    checkpoint_every=5,
    lora_rank=4,
    precision="float32",
    max_mean_cosine=1.0,
)
MINING = {"hard_negatives": 2, "mining_start": 3, "mining_interval": 4, "mining_depth": 8, "query_prediction_weight": 0.3}
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {"training": "full"},
    "bidirectional": {"attention": "bidirectional"},
    "dimension": {"matryoshka": (8, 16), "dimension": 16},
    "upper layers": {"lora_layers": 1},
    "all": {"training": "full", "attention": "bidirectional", "pooling": "last", "matryoshka": (16,), "dimension": 16},
}


def towers_of(**changes: Any) -> TwoTowers:
    """Towers with weights moved away from their start, where both roles are alike."""
    towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG.model_copy(update=changes))
    with torch.no_grad():
        for i, parameter in enumerate(towers.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    return towers


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tower_gives_the_vectors_of_the_tower_in_training(home: Path, tmp_path: Path, kind: str) -> None:
    towers = towers_of(**KINDS[kind])
    for role in ("query", "document"):
        expected = towers.encode(towers.tokens(documents(), role), role)
        folder = tmp_path / role
        folder.mkdir()
        contract = towers.save(role, folder)
        assert contract is not None
        save_contract(folder, contract, space_id_of(contract.model_copy(update={"role": "document"})))
        loaded = load_tower(folder, precision="float32")
        assert loaded.contract.dimension == expected.shape[1] == (16 if "dimension" in KINDS[kind] else 64)
        np.testing.assert_allclose(loaded.encode(documents()), expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
        assert str(home) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    query, document = (load_tower(tmp_path / role, precision="float32").encode(["kidney stone"]) for role in ("query", "document"))
    assert np.abs(query - document).max() > 0.01


def test_fewer_dimensions_are_the_first_ones_made_unit_again(home: Path) -> None:
    rows = [[5, 6, 7], [8, 9]]
    whole = towers_of().encode(rows, "query")
    short = towers_of(**KINDS["dimension"]).encode(rows, "query")
    np.testing.assert_allclose(short, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-6)


def test_the_first_token_sees_the_last_in_bidirectional_attention_alone(home: Path) -> None:
    batch = {"input_ids": torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]]), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    for attention, differs in (("causal", False), ("bidirectional", True)):
        model = towers_of(attention=attention).model
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        assert (float((states[0, 0] - states[1, 0]).abs().max()) > 1e-4) == differs


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_tokens_after_the_end_change_nothing(home: Path, attention: str, pooling: str) -> None:
    towers = towers_of(attention=attention, pooling=pooling)
    short, long = [5, 6, 7], [9, 8, 7, 6, 5, 9, 8, 7, 6]
    with torch.no_grad():
        alone, padded = towers.embed([short], "document")[0], towers.embed([short, long], "document")[0]
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_killed_training_with_mining_gives_the_towers_of_a_straight_one(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = CONFIG.model_copy(update={**MINING, **KINDS[kind]})
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
    train_towers(pairs(), config, {}, straight)
    with monkeypatch.context() as patch:
        _kill_at(9, patch)
        with pytest.raises(KeyboardInterrupt):
            train_towers(pairs(), config, {}, killed)
    assert (killed / CHECKPOINT).exists() and (killed / "negatives_1.npy").exists()
    mined = _rounds_mined(monkeypatch)
    train_towers(pairs(), config, {}, killed)
    assert mined == [2]  # rounds 0 and 1 are read, though the checkpoint is older than round 1
    assert training_losses(killed) == pytest.approx(training_losses(straight), abs=1e-5)
    assert [r["round"] for r in read_json(killed / "mining_report.json")["rounds"]] == [0, 1, 2]
    for role in ("query_tower", "document_tower"):
        ours, theirs = (load_tower(folder / role, precision="float32").encode(documents()) for folder in (killed, straight))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    verify(killed)


def _kill_at(step: int, patch: pytest.MonkeyPatch) -> None:
    original = Training._step

    def killed(self: Training, number: int) -> float:
        if number == step:
            raise KeyboardInterrupt
        return original(self, number)

    patch.setattr(Training, "_step", killed)


def _rounds_mined(patch: pytest.MonkeyPatch) -> list[int]:
    original, rounds = Training._mine, []

    def counted(self: Training, number: int) -> Mined:
        rounds.append(number)
        return original(self, number)

    patch.setattr(Training, "_mine", counted)
    return rounds


def test_a_checkpoint_holds_the_random_state(home: Path, tmp_path: Path) -> None:
    towers = towers_of()
    run = Training(towers, pairs(), CONFIG, tmp_path)
    run._save()
    expected = torch.rand(3)
    torch.manual_seed(0)
    Training(towers, pairs(), CONFIG, tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_mining_is_repeated_at_its_interval() -> None:
    config = CONFIG.model_copy(update=MINING)
    assert [round_of_step(step, config) for step in (0, 2, 3, 6, 7, 11)] == [None, None, 0, 0, 1, 2]
    once = config.model_copy(update={"mining_interval": 0})
    assert [round_of_step(step, once) for step in (2, 3, 11)] == [None, 0, 0]
    assert round_of_step(11, CONFIG) is None


def test_a_round_is_mined_once_and_a_torn_file_does_not_count(tmp_path: Path) -> None:
    rounds: list[int] = []

    def mined(number: int) -> Mined:
        rounds.append(number)
        return Mined(np.full((4, 2), number), report(number))

    config = CONFIG.model_copy(update=MINING)
    first = HardNegatives(config, tmp_path, mined)
    assert first.of_step(2) is None
    for step in (3, 4, 7):
        first.of_step(step)
    (tmp_path / ".negatives_2.npy.tmp").write_bytes(b"torn")
    again = HardNegatives(config, tmp_path, mined)
    found = [again.of_step(step) for step in (3, 7, 11)]
    assert [int(values[0, 0]) for values in found if values is not None] == [0, 1, 2]
    assert rounds == [0, 1, 2]
    assert [r["round"] for r in read_json(tmp_path / "mining_report.json")["rounds"]] == [0, 1, 2]
    assert (tmp_path / "mining_report.md").read_text().count("## Examples of round") == 3


def test_chunks_hold_rows_of_similar_length_and_give_back_the_order() -> None:
    rows = [[1], [2, 2, 2], [3, 3], [4, 4, 4, 4]]
    chunks, places = in_chunks(rows, 16, 2)
    assert chunks == [[[4, 4, 4, 4], [2, 2, 2]], [[3, 3], [1]]]
    assert [[row for chunk in chunks for row in chunk][place] for place in places] == rows


def test_chunks_are_bounded_by_their_tokens_with_padding() -> None:
    rows = [[1], [2, 2, 2], [3, 3], [4, 4, 4, 4], [5], [6]]
    chunks, _ = in_chunks(rows, 6)
    assert [[len(row) for row in chunk] for chunk in chunks] == [[4], [3, 2], [1, 1, 1]]
    assert in_chunks(rows, 1)[0] == [[row] for row in sorted(rows, key=lambda r: -len(r))]


def test_even_batches_have_few_shapes_and_the_same_rows() -> None:
    for rows, shape in (
        ([[5] * 3] * 5, (8, 8)),
        ([[5] * 24] * 32, (32, 24)),
        ([[5] * 40] * 3, (4, 48)),
        ([[5] * 128] * 16, (16, 128)),
        ([[5] * 97, [6]], (2, 128)),
        ([[5] * 224] * 3, (4, 224)),
        ([[5] * 160] * 27, (32, 160)),
        ([[]], (8, 8)),
    ):
        plain, even = pad_batch(rows, 0), pad_batch(rows, 0, even=True)
        assert tuple(even["input_ids"].shape) == shape and (shape[0] * shape[1]) % (64 if len(rows) < 27 else 256) == 0
        longest = plain["input_ids"].shape[1]
        for name, values in plain.items():
            assert torch.equal(even[name][: len(rows), :longest], values)
        for padded, asked in ((plain, False), (even, True)):
            assert tokens_of(longest, len(rows), asked) == padded["input_ids"].numel()
            assert not even[name][: len(rows), longest:].any()
        assert even["attention_mask"][len(rows) :].sum(dim=1).tolist() == [1] * (shape[0] - len(rows))  # without one they give NaN


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_even_batches_change_neither_vectors_nor_gradients(home: Path, tmp_path: Path, pooling: str) -> None:
    found = {}
    for even in (False, True):
        run = Training(towers_of(pooling=pooling), pairs(), CONFIG.model_copy(update={"pooling": pooling}), tmp_path)
        run.towers.even = even
        loss = run.backward(list(range(8)), None)
        gradients = [p.grad for p in run.towers.parameters()]
        found[even] = loss, gradients, run.towers.encode(run.document_tokens, "document")
    assert found[True][0] == pytest.approx(found[False][0], abs=1e-5)
    for ours, plain in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(found[True][2], found[False][2], atol=1e-5)


def test_bfloat16_on_a_processor_takes_even_batches(home: Path) -> None:
    on_processor = not torch.cuda.is_available()
    assert towers_of(precision="bfloat16").even is on_processor
    assert not towers_of(precision="float32").even


def test_even_chunks_stay_within_their_tokens() -> None:
    rows = [[1] * length for length in range(90, 129)]
    chunks, _ = in_chunks(rows, 16 * 128, even=True)
    assert [pad_batch(chunk, 0, even=True)["input_ids"].numel() for chunk in chunks] == [2048, 2048, 768]


def test_small_chunks_of_even_batches_are_hardly_padding() -> None:
    rows = [[1] * (17 + 3 * number % 48) for number in range(32)]
    chunks, _ = in_chunks(rows, 4 * 64, even=True)
    padded, plain = (sum(pad_batch(chunk, 0, even)["input_ids"].numel() for chunk in chunks) for even in (True, False))
    assert padded < 1.4 * plain


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_batch_that_is_no_larger_than_a_chunk_is_one_chunk(home: Path, tmp_path: Path, precision: str) -> None:
    """Texts of any length of either role: in two chunks each of them is computed twice."""
    config = CONFIG.model_copy(update={"precision": precision, "chunk_size": 32, "max_query_length": 20, "max_document_length": 18})
    run = Training(towers_of(**config.model_dump()), pairs(), config, tmp_path)
    for longest in (config.max_query_length, config.max_document_length):
        rows = [[5] * longest] * config.chunk_size
        assert len(run._chunks(rows)[0]) == 1
    assert len(run._chunks([[5] * 24] * (config.chunk_size + 1))[0]) == 2, "what a chunk keeps stays bounded"


def test_a_changed_full_model_is_refused(home: Path, tmp_path: Path) -> None:
    contract = towers_of(training="full").save("document", tmp_path)
    assert contract is not None
    save_contract(tmp_path, contract, space_id_of(contract))
    config = read_json(tmp_path / "model" / "config.json")
    write_json(tmp_path / "model" / "config.json", {**config, "rms_norm_eps": 0.1})
    with pytest.raises(ArtifactError, match="weights are not those its contract names"):
        load_tower(tmp_path)


def test_an_encoder_trains_with_bidirectional_attention_only(home: Path) -> None:
    base = resolve_base("tiny-encoder", documents() + queries())
    full = CONFIG.model_copy(update={"base_model": "tiny-encoder", "training": "full"})
    with pytest.raises(ModelError, match=r"attention is causal, but the tokens of 'tiny-encoder-.*' see those after them"):
        TwoTowers(base, full)
    towers = TwoTowers(base, full.model_copy(update={"attention": "bidirectional"}))
    assert towers.encode([[5, 6, 7]], "query").shape == (1, 64)
    adapted = TwoTowers(base, full.model_copy(update={"attention": "bidirectional", "training": "lora"}))
    assert adapted.encode([[5, 6, 7]], "query").shape == (1, 64)


def test_what_a_model_cannot_do_is_refused_before_training(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"names 65 dimensions, but the vectors of 'tiny-decoder-.*' have 64"):
        train_towers(pairs(), CONFIG.model_copy(update={"matryoshka": (65,)}), {}, tmp_path)
    with pytest.raises(ConfigError, match=r"mining_start \(12\) is not below towers\.steps \(12\)"):
        train_towers(pairs(), CONFIG.model_copy(update={"hard_negatives": 1, "mining_start": 12}), {}, tmp_path)
    base = resolve_base("tiny-decoder", documents() + queries())
    tokenizer = Path(base.location) / "tokenizer_config.json"
    write_json(tokenizer, {**read_json(tokenizer), "eos_token": None})
    last = CONFIG.model_copy(update={"pooling": "last"})
    assert not TwoTowers(base, last).contracts["query"].append_eos  # the tokenizer itself ends every text with [SEP]
    whole = tokenizer.with_name("tokenizer.json")
    write_json(whole, {**read_json(whole), "post_processor": None})
    with pytest.raises(ModelError, match=r"pooling is last, but the tokenizer of 'tiny-decoder-.*' has no end token"):
        TwoTowers(base, last)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_a_model_with_sliding_windows_attends_as_asked(attention: str) -> None:
    from transformers import Gemma3TextConfig, Gemma3TextModel

    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = Gemma3TextModel(Gemma3TextConfig(vocab_size=20, head_dim=16, sliding_window=8, **shape)).eval()
    set_attention(model, attention)
    check_attention(model, "small", attention)
    with pytest.raises(ModelError, match=r"towers\.attention is"):
        check_attention(model, "small", "causal" if attention == "bidirectional" else "bidirectional")


def test_a_model_bound_to_one_direction_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.towers.two_towers.set_attention", lambda model, attention: None)
    with pytest.raises(ModelError, match=r"attention is bidirectional, but the tokens of 'tiny-decoder-.*' do not see"):
        towers_of(attention="bidirectional")


class Remembering(Training):
    """Keeps the trained weights after every step."""

    def _step(self, step: int) -> float:
        value = super()._step(step)
        self.__dict__.setdefault("seen", {})[step] = {name: weight.clone() for name, weight in self.towers.state().items()}
        return value


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_towers_become_the_mean_of_the_last_checkpoints(home: Path, tmp_path: Path, kind: str) -> None:
    config = CONFIG.model_copy(update={**KINDS[kind], "merge_last": 3, "steps": 11, "checkpoint_every": 4})
    towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), config)
    run = Remembering(towers, pairs(), config, tmp_path)
    run.to_end()
    seen = run.__dict__["seen"]
    for name, weight in towers.state().items():
        # After the last step (10), and four and eight steps before it.
        torch.testing.assert_close(weight, (seen[10][name] + seen[6][name] + seen[2][name]) / 3)


def test_a_merged_training_that_was_killed_ends_with_the_same_towers(home: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"merge_last": 3, "steps": 12, "checkpoint_every": 3})
    ends = []
    for name, stops in (("straight", ()), ("killed", (5, 10))):
        folder = tmp_path / name
        folder.mkdir()
        for stop in (*stops, None):
            towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), config)
            run = _Killed(towers, pairs(), config, folder)
            run.stop = stop
            try:
                run.to_end()
            except KeyboardInterrupt:
                assert stop is not None
        ends.append(towers.state())
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, rtol=0, atol=0)


class _Killed(Training):
    stop: int | None = None

    def _step(self, step: int) -> float:
        if step == self.stop:
            raise KeyboardInterrupt
        return super()._step(step)


def test_a_training_that_has_become_no_numbers_ends_at_once_and_keeps_the_last_weights_that_were_some(home: Path, tmp_path: Path) -> None:
    class Spoilt(Training):
        def backward(self, batch: Any, negatives: Any) -> float:
            value = super().backward(batch, negatives)
            if len(self.losses) == 2:
                next(p for p in self.towers.parameters() if p.grad is not None).grad.fill_(float("nan"))
            return value

    config = CONFIG.model_copy(update={"checkpoint_every": 1})
    run = Spoilt(TwoTowers(resolve_base("tiny-decoder", documents() + queries()), config), pairs(), config, tmp_path)
    with pytest.raises(CollapseError, match=r"train towers, step 3 of 12: the loss is .* and the norm of its gradient nan"):
        run.to_end()
    kept = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert len(kept["losses"]) == 2 and all(bool(weight.isfinite().all()) for weight in kept["towers"].values())


def test_a_few_queries_are_no_collapse(home: Path, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 2, "min_effective_rank": 4.0})
    for count in (1, 3):  # each is asked for all documents of its share
        asked = [(n % count, n) for n in range(64)]
        relevant = {query: frozenset(n for q, n in asked if q == query) for query in range(count)}
        folder = tmp_path / str(count)
        folder.mkdir()
        train_towers(Pairs(queries()[:count], documents(), asked, relevant), config, {}, folder)
        assert read_json(folder / "training_log.json")["spread"]["query"]["effective_rank"] <= count


@pytest.mark.parametrize(("different", "refused"), [(64, True), (3, False)])
def test_many_texts_of_which_few_token_rows_are_left_are_a_collapse_and_few_texts_are_none(different: int, refused: bool) -> None:
    """A prompt that leaves room for one word makes three rows of all queries, whose vectors tell three kinds of them apart."""
    rows, texts = [[1, number % 3] for number in range(64)], [f"query {number % different}" for number in range(64)]
    towers: Any = SimpleNamespace(encode=lambda asked, _: np.eye(8, dtype=np.float32)[[row[1] for row in asked]])
    whole = SimpleNamespace(queries=texts, documents=texts)
    run: Any = SimpleNamespace(query_tokens=rows, document_tokens=rows, pairs=whole, towers=towers)
    if refused:
        with pytest.raises(CollapseError, match=r"effective rank of 3\.0 \(allowed: at least 4"):
            _check_collapse(run, TowerConfig())
    else:
        assert _check_collapse(run, TowerConfig())["query"].effective_rank == pytest.approx(3, abs=0.01)


def test_batches_by_a_field_of_single_values_say_that_they_are_of_any_pairs(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CONFIG.model_copy(update={"batches_by": "author"})
    for kinds, said in (([str(n) for n in range(64)], True), (["x", "y"] * 32, False)):
        Training(towers_of(), replace(pairs(), kinds=kinds), config, tmp_path)
        assert ("No value of 'author' (towers.batches_by) has the 16 pairs of a batch" in capsys.readouterr().out) is said


def test_prefixes_are_whole_numbers_above_nothing() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        TowerConfig(matryoshka=(0, 16))


def test_query_prediction_needs_vectors_as_wide_as_the_token_embeddings(home: Path, tmp_path: Path) -> None:
    towers, config = towers_of(), CONFIG.model_copy(update={"query_prediction_weight": 0.3})
    towers.input_embeddings = lambda: torch.zeros(99, 16)  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="its vectors have 64 numbers and these 16"):
        Training(towers, pairs(), config, tmp_path)


def test_without_merging_nothing_more_is_kept(home: Path, tmp_path: Path) -> None:
    towers = TwoTowers(resolve_base("tiny-decoder", documents() + queries()), CONFIG)
    run = Training(towers, pairs(), CONFIG, tmp_path)
    run.to_end()
    assert run._totals == {} and "merged" not in torch.load(tmp_path / CHECKPOINT, weights_only=True)


def test_a_merging_that_reaches_back_too_far_is_refused() -> None:
    with pytest.raises(ValueError, match="reaches back beyond the first of 50 steps"):
        TowerConfig(merge_last=3, checkpoint_every=25, steps=50)
    with pytest.raises(ValueError, match="merge_last keeps a second copy"):
        TowerConfig(merge_last=2, sharding="fsdp", training="full")
    with pytest.raises(ValueError, match="merge_last"):
        TowerConfig(merge_last=0)
