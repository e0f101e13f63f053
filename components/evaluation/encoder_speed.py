"""Speed and size of a teacher and its students, all opened at once and timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from components.artifacts import Artifact
from components.data.dataset import load_dataset
from components.evaluation.latency import TEACHER_SHARE, Timed, encoding, measure_speeds
from components.evaluation.machine import describe_machine
from components.evaluation.rankers import DenseRanker, Ranker
from components.evaluation.summarize import judged_split

if TYPE_CHECKING:
    from components.evaluation.config import EvaluationConfig
    from components.towers.contract import TextEncoder


def encoder_speeds(encoders: Mapping[str, Artifact], teacher: str, dataset: Artifact, config: EvaluationConfig) -> dict[str, Any]:
    """Name -> p50_ms and p95_ms at batch 1, qps at batch `config.throughput_batch`, and parameters; and the `machine` in words.

    Only encoding is timed, tokenisation included; the search is the same for all.
    """
    from components.distillation.student import load_encoder

    opened = {name: load_encoder(artifact.path) for name, artifact in encoders.items()}
    queries = judged_split(load_dataset(dataset.path), config.split).texts
    systems = {name: Timed(encoding(encoder), TEACHER_SHARE if name == teacher else 1) for name, encoder in opened.items()}
    speeds = measure_speeds(systems, queries, config)
    return {
        "machine": describe_machine(),
        "systems": {name: {**speeds[name].model_dump(), **parameters_of(encoder)} for name, encoder in opened.items()},
    }


def serving_speeds(openers: Mapping[str, Callable[[], Ranker]], dataset: Artifact, config: EvaluationConfig) -> dict[str, Any]:
    """Name -> speed of whole answers, search of `config.depth` documents included, and the seconds that opening the system took.

    Opening BM25 is indexing the documents, opening an untrained encoder is encoding them; others load what was built before.
    """
    rankers, opening = {}, {}
    for name, open_ranker in openers.items():
        started = time.perf_counter()
        rankers[name] = open_ranker()
        opening[name] = time.perf_counter() - started
    queries = judged_split(load_dataset(dataset.path), config.split).texts
    speeds = measure_speeds({name: _answering(name, ranker, config.depth) for name, ranker in rankers.items()}, queries, config)
    systems = {name: {**speed.model_dump(), "opening_seconds": opening[name]} for name, speed in speeds.items()}
    return {"machine": describe_machine(), "systems": systems}


def _answering(name: str, ranker: Ranker, depth: int) -> Timed:
    # Without their progress bars, which would be timed too.
    quiet = replace(ranker, label=None) if isinstance(ranker, DenseRanker) else ranker
    return Timed(lambda texts: quiet.rank(texts, depth), TEACHER_SHARE if name == "teacher" else 1)


def parameters_of(encoder: TextEncoder) -> dict[str, int]:
    """`parameters`, and `parameters_without_embeddings`: those that work for every token. Shared weights count once."""
    from torch import nn

    modules = [module for owner in vars(encoder).values() if isinstance(owner, nn.Module) for module in owner.modules()]
    sizes = {id(p): p.numel() for module in modules for p in module.parameters(recurse=False)}
    tables = {id(m.weight): m.weight.numel() for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    total = sum(sizes.values())
    return {"parameters": total, "parameters_without_embeddings": total - sum(tables.values())}
