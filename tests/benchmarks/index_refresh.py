"""Refresh of an index against a full build: seconds, and how many documents the tower really encoded.

    python tests/benchmarks/index_refresh.py --folder FOLDER [--documents 100000] [--share 0.01] [--base decoder-256x4] [--data FOLDER]

A document tower encodes the corpus and the index is built; then, in every round, a share of the documents changes (half of it reworded, a
quarter new, a quarter gone) and the index is refreshed from the full build. What is timed is all that either takes from the documents'
table on: finding the changes, encoding, index. The texts are made from words of very different frequency unless --data names real ones.
The tower is real, but trained for a single step: how well it encodes does not matter to the time it takes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.artifacts import IndexArtifact, VectorShards
from components.data.dataset import content_hash, document_text
from components.index.build import build_index
from components.index.config import EncodingConfig, IndexConfig
from components.index.corpus import ChosenDocuments, Documents, StoredDocuments
from components.index.encode import LoadedEncoder, ShardJob, encode_shards
from components.index.refresh import changes_since, read_documents, refresh_index

WORDS, SHORTEST, LONGEST = 4000, 6, 60
TABLE = "documents.parquet"
Texts = dict[str, str]


class Counted:
    """An encoder that counts the texts it is given."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.seen = encoder, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, texts: Any, *arguments: Any, **named: Any) -> Any:
        """The vectors of `texts`."""
        self.seen += len(texts)
        return self.encoder.encode(texts, *arguments, **named)


@dataclass(frozen=True)
class Measured:
    """Seconds and encoded documents of a build or refresh, and its index."""

    seconds: float
    encoded: int
    index: IndexArtifact
    counts: dict[str, int]


def main() -> None:
    """Build once, refresh in rounds, print the ratio."""
    options = _arguments()
    rng = np.random.default_rng(options.seed)
    texts = _real_texts(options) if options.data else {f"d{i:07d}": _text(rng) for i in range(options.documents)}
    tower = Counted(_tower(options, list(texts.values())))
    full = full_build(_empty(options.folder / "full"), texts, tower, options)
    print(f"full build: {full.seconds:.1f} s, {full.encoded:,} documents encoded, {full.index.attributes['index_key']}", flush=True)
    unchanged = refresh(_empty(options.folder / "unchanged"), texts, full.index, tower)
    same = unchanged.index.digest == full.index.digest
    print(f"nothing changed: {unchanged.seconds:.2f} s, {unchanged.encoded:,} documents encoded, the same index: {same}")
    runs = []
    for number in range(options.rounds):
        runs.append(refresh(_empty(options.folder / "refresh"), edited(texts, options.share, rng), full.index, tower))
        print(f"refresh {number + 1}: {runs[-1].seconds:.2f} s, {runs[-1].encoded:,} encoded, {runs[-1].counts}", flush=True)
    seconds = statistics.median(run.seconds for run in runs)
    print(f"refresh / full build: {seconds / full.seconds:.4f} of the time for {options.share:.2%} of {len(texts):,} documents")


def full_build(folder: Path, texts: Texts, tower: Counted, options: argparse.Namespace) -> Measured:
    """Encode everything and build the index."""
    path = _write(folder, texts)
    before, started = tower.seen, time.perf_counter()
    vectors = _encode(tower, StoredDocuments(path, EncodingConfig().shard_size), folder / "vectors")
    index = build_index(vectors, IndexConfig(index_key=options.key), _empty(folder / "index"))
    return Measured(time.perf_counter() - started, tower.seen - before, index, index.counts)


def refresh(folder: Path, texts: Texts, previous: IndexArtifact, tower: Counted) -> Measured:
    """Find what changed, encode it, refresh the index."""
    path = _write(folder, texts)
    before, started = tower.seen, time.perf_counter()
    changes = changes_since(previous.path, read_documents(folder))
    delta = None
    if len(changes.encoded):
        delta = _encode(tower, ChosenDocuments(path, changes.encoded, EncodingConfig().shard_size), folder / "vectors")
    index = refresh_index(previous, delta, changes, IndexConfig(), _empty(folder / "index"))
    return Measured(time.perf_counter() - started, tower.seen - before, index, changes.counts)


def edited(texts: Texts, share: float, rng: np.random.Generator) -> Texts:
    """The texts after changes to a share of them: half reworded, a quarter removed, a quarter added."""
    chosen = rng.choice(list(texts), max(4, round(len(texts) * share * 0.75)), replace=False).tolist()
    third = len(chosen) // 3
    removed, reworded = set(chosen[:third]), chosen[third:]
    kept = {doc_id: text for doc_id, text in texts.items() if doc_id not in removed}
    return kept | {doc_id: _text(rng) for doc_id in reworded} | {f"new{i:07d}": _text(rng) for i in range(third)}


def _encode(tower: Counted, documents: Documents, folder: Path) -> VectorShards:
    return encode_shards(ShardJob(LoadedEncoder(tower), documents, EncodingConfig().tokens_per_batch, _empty(folder)), {})


def _write(folder: Path, texts: Texts) -> Path:
    """The table of a dataset artifact, as far as encoding reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    hashes = [content_hash(document_text("", text)) for text in texts.values()]
    columns = {"doc_id": list(texts), "title": [""] * len(texts), "text": list(texts.values()), "content_hash": hashes}
    pq.write_table(pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()}), folder / TABLE)
    return folder / TABLE


def _text(rng: np.random.Generator) -> str:
    """Words whose frequency falls with their number, few or many of them."""
    length = int(np.clip(rng.lognormal(2.9, 0.6), SHORTEST, LONGEST))
    return " ".join(f"word{int(rank)}" for rank in np.minimum(rng.zipf(1.3, length), WORDS))


def _real_texts(options: argparse.Namespace) -> Texts:
    from components.data.config import DataConfig
    from components.data.sources import read_source

    frame = read_source(DataConfig(source=str(options.data))).documents.head(options.documents)
    texts = (document_text(title, text) for title, text in zip(frame["title"], frame["text"], strict=True))
    return dict(zip(frame["doc_id"], texts, strict=True))


def _tower(options: argparse.Namespace, texts: list[str]) -> Any:
    """The document tower of a training of one step."""
    from components.towers.config import TowerConfig
    from components.towers.encoder import load_tower
    from components.towers.pairs import Pairs
    from components.towers.train import train_towers

    some = texts[:2000]
    pairs = Pairs(some, some, [(i, i) for i in range(len(some))], {i: frozenset([i]) for i in range(len(some))})
    config = TowerConfig(
        base_model=options.base,
        steps=1,
        batch_size=4,
        max_query_length=16,
        max_document_length=options.length,
        max_mean_cosine=1.0,
        min_effective_rank=1.0,
        precision=options.precision,
    )
    folder = _empty(options.folder / "towers")
    train_towers(pairs, config, {}, folder)
    return load_tower(folder / "document_tower")


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="working folder; what it holds under full/, refresh/, ... is replaced")
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--share", type=float, default=0.01, help="share of the documents that changes")
    parser.add_argument("--base", default="decoder-256x4", help="decoder of the tower; gemma3-270m for a real one")
    parser.add_argument("--length", type=int, default=64, help="tokens of a document")
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="data folder with real documents")
    parser.add_argument("--key", default="auto", help="index_key")
    parser.add_argument("--rounds", type=int, default=3, help="refreshes")
    parser.add_argument("--seed", type=int, default=13)
    return parser.parse_args()


if __name__ == "__main__":
    main()
