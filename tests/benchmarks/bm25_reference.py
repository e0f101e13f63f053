"""Our BM25 beside others: published figures where the data is a set of BEIR, and bm25s as its makers recommend it everywhere.

    python -m tests.benchmarks.bm25_reference --data DIR [--data DIR ...] [--split test] [--stemmer auto]

`ours` is the baseline of the evaluation, k1 and b chosen on dev where the set has dev queries. On a set of BEIR (told by the folder's name
and its numbers of documents and queries) `ours at 0.9, 0.4` has the k1 and b of the published figures, which are Anserini's BM25 over
title and text (castorini/pyserini, pyserini/2cr/beir.yaml, condition bm25-flat), and must lie within .015 nDCG@10 of them. `bm25s` is the
library by itself: its own words, English stop words removed, Snowball's English stemmer, k1 1.5 and b 0.75, as its README shows. Exit
status 1 where a published figure is missed. On BEIR's sets a document with the query's own id is left out, as there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.data.config import DataConfig
from components.data.dataset import Dataset, load_dataset
from components.data.snapshot import snapshot
from components.errors import ScalingNoteError
from components.evaluation.bm25 import Bm25Documents, Bm25Ranker, bm25_ranker
from components.evaluation.rankers import Ranker
from components.evaluation.report import Bm25Setup
from components.evaluation.summarize import judged_split
from components.studies.report import mean_metrics

TOLERANCE = 0.015
ANSERINI = {"k1": 0.9, "b": 0.4}
DEPTH = 100


@dataclass(frozen=True)
class Published:
    """A set of BEIR: documents and test queries (Thakur et al. 2021, table 1), nDCG@10 and recall@100 of BM25 (see above)."""

    documents: int
    queries: int
    ndcg: float
    recall: float


BEIR = {
    "trec-covid": Published(171_332, 50, 0.5947, 0.1091),
    "nfcorpus": Published(3_633, 323, 0.3218, 0.2457),
    "nq": Published(2_681_468, 3_452, 0.3055, 0.7513),
    "hotpotqa": Published(5_233_329, 7_405, 0.6330, 0.7957),
    "fiqa": Published(57_638, 648, 0.2361, 0.5395),
    "arguana": Published(8_674, 1_406, 0.3970, 0.9324),
    "webis-touche2020": Published(382_545, 49, 0.4422, 0.5822),
    "quora": Published(522_931, 10_000, 0.7886, 0.9733),
    "dbpedia-entity": Published(4_635_922, 400, 0.3180, 0.4682),
    "scidocs": Published(25_657, 1_000, 0.1490, 0.3477),
    "fever": Published(5_416_568, 6_666, 0.6513, 0.9185),
    "climate-fever": Published(5_416_593, 1_535, 0.1651, 0.4249),
    "scifact": Published(5_183, 300, 0.6789, 0.9253),
}


class Bm25s:
    """The library as its README shows it, for English."""

    def __init__(self, dataset: Dataset) -> None:
        import bm25s
        import Stemmer

        self._stemmer: Any = Stemmer.Stemmer("english")
        self._ids = [str(i) for i in dataset.documents["doc_id"]]
        self._index: Any = bm25s.BM25()
        self._index.index(self._words(dataset.document_texts()), show_progress=False)

    def _words(self, texts: Sequence[str]) -> Any:
        import bm25s

        return bm25s.tokenize(list(texts), stopwords="en", stemmer=self._stemmer, show_progress=False)

    def rank(self, queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        found, scores = self._index.retrieve(self._words(queries), k=min(k, len(self._ids)), show_progress=False)
        return [
            [(self._ids[row], float(score)) for row, score in zip(rows, best, strict=True) if score > 0]
            for rows, best in zip(found, scores, strict=True)
        ]


def published_for(name: str, documents: int, queries: int) -> Published | None:
    """The figures of the BEIR set `name`, where the data has as many documents and queries: a part of it has figures of its own."""
    known = BEIR.get(name.casefold())
    return known if known and (known.documents, known.queries) == (documents, queries) else None


def compare(folder: Path, split: str, stemmer: str) -> bool:
    """Print the systems on one set; False where a published figure is missed."""
    is_beir = folder.resolve().name.casefold() in BEIR
    with tempfile.TemporaryDirectory() as scratch:
        config = DataConfig(source=str(folder), ignore_identical_ids="always" if is_beir else "same_text")
        dataset = load_dataset(snapshot(config, Path(scratch)))
    queries = len(judged_split(dataset, split).query_ids)
    published = published_for(folder.resolve().name, len(dataset.documents), queries) if split == "test" else None
    print(f"\n{folder.resolve().name}, {split}: {len(dataset.documents):,} documents, {queries:,} judged queries")
    ours = _shown("ours", lambda: bm25_ranker(dataset, stemmer, progress=False), dataset, split)
    _shown("bm25s", lambda: Bm25s(dataset), dataset, split)
    if is_beir and published is None:
        print(f"{'published':22} none for a part of it or another split")
    if published is None:
        return True
    print(f"{'published':22} {published.ndcg:8.4f} {'':11} {published.recall:12.4f}")
    setup = Bm25Setup(stemmer=ours.stemmer, **ANSERINI)
    same = _shown("ours at 0.9, 0.4", lambda: _at(dataset, setup), dataset, split)
    away = same.ndcg - published.ndcg
    verdict = "within" if abs(away) <= TOLERANCE else "NOT within"
    print(f"{'':22} {away:+8.4f} from the published figure, {verdict} {TOLERANCE}")
    return abs(away) <= TOLERANCE


@dataclass(frozen=True)
class _Found:
    ndcg: float
    stemmer: str


def _at(dataset: Dataset, setup: Bm25Setup) -> Bm25Ranker:
    ids = [str(i) for i in dataset.documents["doc_id"]]
    return Bm25Ranker(Bm25Documents.read(ids, dataset.document_texts(), setup.stemmer, progress=False), setup, progress=False)


def _shown(name: str, opener: Any, dataset: Dataset, split: str) -> _Found:
    started = time.perf_counter()
    ranker: Ranker = opener()
    opened = time.perf_counter()
    means = mean_metrics(ranker, dataset, split, DEPTH)
    setup = getattr(ranker, "setup", None)
    told = f"opened in {opened - started:.1f} s, asked in {time.perf_counter() - opened:.1f} s"
    print(f"{name:22} {means['ndcg@10']:8.4f} {means['recall@50']:11.4f} {means['recall@100']:12.4f}  {told}", flush=True)
    if setup is not None:
        print(f"{'':22} {setup.words}")
    return _Found(means["ndcg@10"], setup.stemmer if setup else "none")


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare on every set; 1 where a published figure is missed, 3 where a set cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, action="append", required=True, metavar="DIR", help="a data folder; may be given several times"
    )
    parser.add_argument("--split", default="test")
    parser.add_argument("--stemmer", default="auto", help="auto, none, or a language")
    options = parser.parse_args(arguments)
    print(f"{'':22} {'nDCG@10':>8} {'recall@50':>11} {'recall@100':>12}")
    try:
        return 0 if min(compare(folder, options.split, options.stemmer) for folder in options.data) else 1
    except (ScalingNoteError, ValueError) as error:
        print(error, file=sys.stderr)
        return 3


if __name__ == "__main__":
    raise SystemExit(main())
