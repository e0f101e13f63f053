from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.artifacts import Artifact
from components.evaluation import speed as latency
from components.evaluation.bm25 import bm25_ranker
from components.evaluation.config import EvaluationConfig
from components.evaluation.rankers import FusedRanker, symmetric_ranker
from components.evaluation.report import EncoderSpeed, FusionSetup
from components.evaluation.speed import Timed, encoding, measure_speeds, serving_speeds, with_work
from components.towers.tokens import batches_by_tokens
from tests.encoders import WordEncoder, contract_of
from tests.unit.evaluation.test_evaluation_fusion import WITH_DEV

QUERIES = [f"query {i}" for i in range(50)]


def measured(monkeypatch: pytest.MonkeyPatch, times: Iterator[float], precision: float = 0.1) -> EncoderSpeed:
    """The speed of a system whose calls take `times`, one after the other."""

    def timed(call: Callable[[], object]) -> float:
        call()
        return next(times)

    monkeypatch.setattr(latency, "_seconds", timed)
    config = EvaluationConfig(latency_queries=200, throughput_batch=4, speed_precision=precision)
    return measure_speeds({"it": Timed(len)}, QUERIES, config)["it"]


def test_timing_ends_when_its_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, cycle([0.1]))
    assert found.queries == 80  # two rounds of five: the p95 of one would stand on two queries
    assert (found.p50_ms, found.p95_ms, found.qps) == pytest.approx((100, 100, 40))


def test_times_that_scatter_are_measured_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, cycle([0.01, 0.09, 0.02, 0.25, 0.01, 0.01, 0.4])).queries == 200


def test_a_busy_machine_is_measured_for_a_minute_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = [1.0, 9.0, 2.0, 25.0, 1.0, 1.0, 40.0]  # a hundred times what is measured to the end above
    assert measured(monkeypatch, cycle(slow)).queries == 120  # a batch a round, and three of them are the fewest that say anything


def test_a_precision_of_nought_times_every_query(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(monkeypatch, cycle([0.24, 0.25, 0.26]), precision=0.0).queries == 200


def test_a_large_model_is_timed_until_three_batches_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    # One batch a round, since a batch takes longer than a round's share.
    assert measured(monkeypatch, cycle([3.0])).queries == 120


class Clock:
    """Times that follow from who is called with how many texts, and the calls that were timed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.calls = 0.0, list[tuple[str, int]]()

        def seconds(call: Callable[[], object]) -> float:
            before = self.now
            call()
            return self.now - before

        monkeypatch.setattr(latency, "_seconds", seconds)

    def system(self, name: str, each: float) -> Callable[[list[str]], object]:
        def answer(texts: list[str]) -> object:
            self.now += each * len(texts)
            self.calls.append((name, len(texts)))
            return texts

        return answer


def test_every_system_answers_as_many_queries_and_batches_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    systems = {"slow": Timed(clock.system("slow", 0.05)), "fast": Timed(clock.system("fast", 0.001))}
    found = measure_speeds(systems, QUERIES, EvaluationConfig(latency_queries=20, throughput_batch=4, speed_precision=0))
    counted = Counter(clock.calls)
    assert counted["slow", 1] == counted["fast", 1] and counted["slow", 4] == counted["fast", 4] == 2 + 5 * 5
    assert found["slow"].queries == found["fast"].queries == 20
    assert found["fast"].qps == pytest.approx(1000) and found["slow"].qps == pytest.approx(20)


def test_a_system_is_timed_by_the_way_that_is_fastest_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    ways = [clock.system(name, each) for name, each in (("whole", 0.02), ("halves", 0.01), ("quarters", 0.03), ("eighths", 0.001))]
    found = measure_speeds({"it": Timed(ways[0], tuple(ways[1:]))}, QUERIES, EvaluationConfig(latency_queries=20, throughput_batch=8))
    assert found["it"].qps == pytest.approx(100)
    assert not any(name == "eighths" for name, _ in clock.calls)  # a slower way ends the search
    assert {name for name, size in clock.calls if size == 1} == {"halves"}


class Padded:
    """An encoder that notes the padded tokens of each of its passes; a text has as many tokens as characters."""

    def __init__(self) -> None:
        self.padded: list[int] = []

    def encode(self, texts: list[str], batch_size: int) -> None:
        for rows in batches_by_tokens([len(text) for text in texts], 10**6, batch_size):
            self.padded.append(len(rows) * max(len(texts[row]) for row in rows))


def test_parts_of_similar_length_hold_less_padding_than_the_whole() -> None:
    encoder = Padded()
    timed = encoding(encoder)  # type: ignore[arg-type]
    texts = ["a" * size for size in (2, 30, 4, 28, 3, 29, 5, 31)]
    sums = []
    for way in (timed.answer, *timed.others):
        encoder.padded.clear()
        way(texts)
        sums.append(sum(encoder.padded))
    assert sums == [8 * 31, 4 * 31 + 4 * 5, 2 * 31 + 2 * 29 + 2 * 5 + 2 * 3, sum(map(len, texts))]


def test_the_work_of_a_query_by_hand() -> None:
    import torch
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=50)
    model = BertModel(config, add_pooling_layer=False)
    head = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False))
    encoder: Any = SimpleNamespace(model=model, head=head, tokens=lambda texts: [[1] * len(text) for text in texts])
    speed = EncoderSpeed(p50_ms=1, p95_ms=1, qps=100, batch_size=4, queries=20)
    found = with_work(speed, encoder, ["aa", "aaaa"])
    maps = 2 * (4 * 8 * 8 + 2 * 8 * 16)
    assert found.flops_per_query == pytest.approx(2 * maps * 3 + 4 * 2 * 8 * (4 + 16) / 2 + 2 * 8 * 4)
    assert found.tokens_per_second == pytest.approx(300)
    assert with_work(speed, WordEncoder(), ["aa"]) == speed  # it does not tell its tokens


def test_stored_vectors_and_endpoints_are_not_timed_alone_or_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of vectors "encodes" faster than any model, and was what the study of worth told to deploy."""
    encoder = WordEncoder()
    dense = symmetric_ranker(encoder, WITH_DEV)
    monkeypatch.setattr("components.evaluation.speed.load_dataset", lambda _: WITH_DEV)
    for form, timed in (("transformer", True), ("vectors", False), ("endpoint", False)):
        encoder.contract = contract_of("query").model_copy(update={"form": form})
        systems = {"dense": lambda: dense, "fused": lambda: FusedRanker(dense, bm25_ranker(WITH_DEV, progress=False), FusionSetup())}
        openers = {**systems, "bm25": lambda: bm25_ranker(WITH_DEV, progress=False)}
        dataset = Artifact(kind="dataset", path=Path(), digest="d" * 64)
        found = serving_speeds(openers, dataset, EvaluationConfig(latency_queries=20, throughput_batch=2))["systems"]
        assert set(found) == ({"dense", "fused", "bm25"} if timed else {"bm25"})
