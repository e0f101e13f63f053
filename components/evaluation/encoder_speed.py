"""Speed and size of a teacher and its students, all opened at once and timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from components.artifacts import Artifact, read_manifest
from components.data.dataset import load_dataset
from components.evaluation.bm25 import Bm25Ranker
from components.evaluation.fusion import FusedRanker
from components.evaluation.machine import describe_machine
from components.evaluation.rankers import DenseRanker, Ranker
from components.evaluation.report import EncoderSpeed
from components.evaluation.speed import PARTS, Answer, Timed, encoding, measure_speeds, with_work
from components.evaluation.summarize import judged_split

if TYPE_CHECKING:
    from torch import nn

    from components.evaluation.config import EvaluationConfig
    from components.towers.contract import TextEncoder


def encoder_speeds(encoders: Mapping[str, Artifact], dataset: Artifact, config: EvaluationConfig) -> dict[str, Any]:
    """Name -> p50_ms and p95_ms at batch 1, qps at batch `config.throughput_batch`, work and parameters; and the `machine` in words.

    Only encoding is timed, tokenisation included; the search is the same for all.
    """
    from components.distillation.student import load_encoder

    opened = {name: load_encoder(artifact.path) for name, artifact in encoders.items()}
    queries = judged_split(load_dataset(dataset.path), config.split).texts
    speeds = measure_speeds({name: encoding(encoder) for name, encoder in opened.items()}, queries, config)
    return {
        "machine": describe_machine(),
        "systems": {name: {**with_work(speeds[name], e, queries).model_dump(), **parameters_of(e)} for name, e in opened.items()},
    }


def serving_speeds(openers: Mapping[str, Callable[[], Ranker]], dataset: Artifact, config: EvaluationConfig) -> dict[str, Any]:
    """Name -> speed of whole answers, search of `config.depth` documents included, and the seconds that opening the system took.

    Opening BM25 is indexing the documents, opening an untrained encoder is encoding them; others load what was built before. Of an encoder
    work and parameters are told as well.
    """
    rankers, opening = {}, {}
    for name, open_ranker in openers.items():
        started = time.perf_counter()
        rankers[name] = open_ranker()
        opening[name] = time.perf_counter() - started
    queries = judged_split(load_dataset(dataset.path), config.split).texts
    speeds = measure_speeds({name: answering(ranker, config.depth) for name, ranker in rankers.items()}, queries, config)
    systems = {name: {**_worked(speeds[name], ranker, queries), "opening_seconds": opening[name]} for name, ranker in rankers.items()}
    return {"machine": describe_machine(), "systems": systems}


def _worked(speed: EncoderSpeed, ranker: Ranker, queries: Sequence[str]) -> dict[str, Any]:
    size = {"bytes": bytes_of(ranker)}
    if not isinstance(ranker, DenseRanker):
        return {**speed.model_dump(), **size}
    return {**with_work(speed, ranker.encoder, queries).model_dump(), **parameters_of(ranker.encoder), **size}


def bytes_of(ranker: Ranker) -> int | None:
    """What a system has to keep at hand to answer: weights, vectors, and BM25's table of words and documents; None where nobody knows.

    Of an index that was built these are its files, of one in memory its vectors in float32.
    """
    if isinstance(ranker, Bm25Ranker):
        return ranker.nbytes
    if isinstance(ranker, FusedRanker):
        both = [bytes_of(ranker.dense), bytes_of(ranker.lexical)]
        return None if None in both else sum(filter(None, both))
    if not isinstance(ranker, DenseRanker):
        return None
    index = ranker.index
    files = read_manifest(index.artifact.path).files.values() if index.artifact is not None else ()
    kept = sum(file.bytes for file in files) if files else len(index.rows) * index.dimension * np.dtype(np.float32).itemsize
    weights = {id(p): p.numel() * p.element_size() for module in _modules(ranker.encoder) for p in module.parameters(recurse=False)}
    return int(sum(weights.values()) + kept)


def answering(ranker: Ranker, depth: int) -> Timed:
    """Whole answers without progress bars, which would be timed too; an encoder may read a batch in parts, as in `encoding`."""
    if isinstance(ranker, FusedRanker) and isinstance(ranker.dense, DenseRanker):
        quiet, dense = ranker.quiet(), answering(ranker.dense, depth)

        def both(answer: Answer) -> Answer:
            return lambda texts: quiet.fused(answer(texts), quiet.lexical.rank(texts, depth), depth)  # type: ignore[arg-type]

        return Timed(both(dense.answer), tuple(map(both, dense.others)))
    if not isinstance(ranker, DenseRanker):
        silent = ranker.quiet() if isinstance(ranker, Bm25Ranker) else ranker
        return Timed(lambda texts: silent.rank(texts, depth))

    def way(parts: int) -> Answer:
        return lambda texts: ranker.rank_vectors(ranker.encoder.encode(texts, batch_size=-(-len(texts) // parts)), depth)

    return Timed(way(1), tuple(map(way, PARTS)))


def parameters_of(encoder: TextEncoder) -> dict[str, int]:
    """`parameters`, and `parameters_without_embeddings`: those that work for every token. Shared weights count once."""
    from torch import nn

    modules = _modules(encoder)
    sizes = {id(p): p.numel() for module in modules for p in module.parameters(recurse=False)}
    tables = {id(m.weight): m.weight.numel() for m in modules if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    total = sum(sizes.values())
    return {"parameters": total, "parameters_without_embeddings": total - sum(tables.values())}


def _modules(encoder: TextEncoder) -> list[nn.Module]:
    from torch import nn

    return [module for owner in vars(encoder).values() if isinstance(owner, nn.Module) for module in owner.modules()]
