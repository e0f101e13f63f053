"""A corpus at its real size, from the file to the searchable index: seconds and peak memory of every stage, and a refresh of one document.

    python -m tests.benchmarks.at_size [--folder FOLDER] [--documents 1000000] [--words 60] [--base decoder-64x2] [--rows 40000000]

The documents are random words of very different frequency, the encoder is a random decoder of two layers trained for a single step: how
well it encodes does not matter to what the stages cost. Every stage runs in a process of its own, whose largest resident memory is its
peak; seconds are by the clock and, which other programs change less, of processors. The refresh is what the flow does, in one process as
there: a new snapshot of the data with one document reworded, its contracts, the changes, the encoding, the index. With --documents twice
(1000000,2000000) the stages' growth is shown: 2.0 is linear. --rows sends so many simulated rows, with titles and without texts or
vectors, through the bookkeeping of a refresh; it takes about 250 bytes of disk a row.

Each finished stage is written to times.json in the folder, with the machine. The same command with the same --folder goes on after what
is there; a stage that was cut off begins anew, so that what it took is known. Until a stage ends, a line a minute says what it has written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from components.artifacts import read_json, write_json
from components.towers.launch import _end_with_launcher
from components.tracking.provenance import describe_host

WORDS = 20_000
STAGES = ("snapshot", "validate", "encode", "index")
AT_ONCE = 1_000_000
SAY_EVERY = 60.0  # seconds


class Took(NamedTuple):
    """Of one stage: seconds by the clock and of all processors, and the largest resident memory in GiB."""

    seconds: float
    processors: float
    peak: float

    def __str__(self) -> str:
        """For people."""
        return f"{self.seconds:.1f} s ({self.processors:.1f} s of processors), peak {self.peak:.2f} GiB"


class Times:
    """What each stage took, in `times.json` as soon as it has ended."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        """Take up what the same options left there on the same machine, or empty the folder's stages."""
        self._path = folder / "times.json"
        self._about = {"machine": describe_host(), **{name: getattr(options, name) for name in ("words", "base", "seed")}}
        known = read_json(self._path) if self._path.is_file() else {}
        self._stages: dict[str, Any] = known["stages"] if known.get("about") == self._about else {}
        print(json.dumps(self._about), flush=True)

    def of(self, what: str, target: Path, function: Callable[..., str], *arguments: Any) -> Took:
        """What `function`, which writes `target`, took now or in an earlier run of this program."""
        known = self._stages.get(what)
        if known is None or not target.exists():
            took, said = _apart(what, target, function, *arguments)
            known = self._stages[what] = {**took._asdict(), "said": said}
            write_json(self._path, {"about": self._about, "stages": self._stages})
        else:
            what = f"{what}, measured before"
        took = Took(known["seconds"], known["processors"], known["peak"])
        print(f"{what}: {took} ({known['said']})", flush=True)
        return took


def main() -> None:
    """Run the stages for each size and print them."""
    options = _arguments()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="at_size-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"To go on where this ends early: --folder {folder}", flush=True)
    _run(folder, options)
    if options.folder is None:
        shutil.rmtree(folder)


def _run(folder: Path, options: argparse.Namespace) -> None:
    times = Times(folder, options)
    sizes = [int(size) for size in options.documents.split(",") if size]
    found = {size: _at_size(folder / f"at-{size}", size, options, times) for size in sizes}
    if len(sizes) == 2:
        small, large = (found[size] for size in sizes)
        growth = {stage: large[stage].processors / max(small[stage].processors, 1e-9) for stage in STAGES}
        print(
            f"{sizes[1] / sizes[0]:.2f} times the documents, seconds of processors: "
            + ", ".join(f"{s} x {x:.2f}" for s, x in growth.items())
        )
    if options.rows:
        times.of(f"{options.rows:,} simulated rows", folder / "rows", bookkeeping, folder / "rows", options.rows)


def _at_size(folder: Path, documents: int, options: argparse.Namespace, times: Times) -> dict[str, Took]:
    def took(what: str, target: str, function: Callable[..., str], *arguments: Any) -> Took:
        return times.of(f"{documents:,} documents, {what}", folder / target, function, *arguments)

    took("data", "data", write_data, folder / "data", documents, options.words, options.seed, False)
    took("tower", "towers", make_tower, folder, options.base)
    stages = {
        "snapshot": took("snapshot", "snapshot", take_snapshot, folder / "data", folder / "snapshot"),
        "validate": took("validate", "report", check, folder / "snapshot", folder / "report"),
        "encode": took("encode", "vectors", encode, folder, folder / "snapshot", folder / "vectors"),
        "index": took("index", "index", index, folder / "vectors", folder / "snapshot", folder / "index"),
    }
    took("first answer with titles, opened by sizes", "index", search, folder / "index")
    total = _sum(stages.values())
    took("changed data", "changed", write_data, folder / "changed", documents, options.words, options.seed, True)
    after = took("refresh of one document", "index-2", refresh, folder)
    print(
        f"   in all {total}; refresh of one document {after}: {after.seconds / total.seconds:.2%} by the clock, "
        f"{after.processors / total.processors:.2%} of the processors' seconds",
        flush=True,
    )
    return stages


def write_data(folder: Path, documents: int, words: int, seed: int, changed: bool) -> str:
    """A data folder of random documents; `changed`: the one in the middle reads otherwise."""
    (_empty(folder) / "qrels").mkdir()
    rng = np.random.default_rng(seed)
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for start in range(0, documents, 10_000):
            ranks = np.minimum(rng.zipf(1.2, (min(10_000, documents - start), words)), WORDS)
            for row, line in enumerate(ranks.tolist(), start=start):
                text = "another text" if changed and row == documents // 2 else " ".join(f"w{rank}" for rank in line)
                corpus.write(json.dumps({"_id": f"d{row:09d}", "title": f"Title {row}", "text": text}) + "\n")
    splits = {"train": range(200), "dev": range(200, 240), "test": range(240, 300)}
    with (folder / "queries.jsonl").open("w", encoding="utf-8") as queries:
        queries.writelines(json.dumps({"_id": f"q{n}", "text": f"what says document number {n}"}) + "\n" for n in range(300))
    for split, numbers in splits.items():
        lines = [f"q{n}\td{n:09d}\t1\n" for n in numbers]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")
    return ""


def make_tower(folder: Path, base: str) -> str:
    """A document tower trained for one step, in `folder/towers`."""
    from components.towers.config import TowerConfig
    from components.towers.pairs import Pairs
    from components.towers.train import train_towers

    with (folder / "data" / "corpus.jsonl").open(encoding="utf-8") as corpus:
        some = [json.loads(line)["text"] for line, _ in zip(corpus, range(2000), strict=False)]
    pairs = Pairs(some, some, [(i, i) for i in range(len(some))], {i: frozenset([i]) for i in range(len(some))})
    loose = {"max_mean_cosine": 1.0, "min_effective_rank": 1.0}
    config = TowerConfig(base_model=base, steps=1, batch_size=4, max_query_length=16, max_document_length=96, **loose)
    train_towers(pairs, config, {}, _empty(folder / "towers"))
    return ""


def take_snapshot(data: Path, folder: Path) -> str:
    """The tables of a data folder."""
    from components.data.config import DataConfig
    from components.data.snapshot import snapshot

    return f"{snapshot(DataConfig(source=str(data)), _empty(folder)).counts['documents']:,} documents"


def check(snapshot: Path, folder: Path) -> str:
    """The contracts that come with the project."""
    from components.artifacts import DatasetArtifact, open_artifact
    from components.data.contracts import contracts_folder
    from components.data.validation import validate

    dataset = DatasetArtifact(**open_artifact(snapshot).model_dump())
    return f"{validate(dataset, contracts_folder(''), _empty(folder)).counts}"


def encode(folder: Path, snapshot: Path, target: Path) -> str:
    """All documents of the snapshot."""
    from components.index.config import EncodingConfig
    from components.index.corpus import StoredDocuments

    documents = StoredDocuments(snapshot / "documents.parquet", EncodingConfig().shard_size)
    return f"{_encoded(folder, documents, target).counts}"


def index(vectors: Path, snapshot: Path, folder: Path) -> str:
    """The index with its titles, tuned on documents."""
    from components.artifacts import VectorShards, open_artifact
    from components.index.build import build_index, display_titles
    from components.index.config import IndexConfig

    shards = VectorShards(**open_artifact(vectors).model_dump())
    made = build_index(shards, IndexConfig(), _empty(folder), display_titles(snapshot / "documents.parquet"))
    return f"{made.attributes['index_key']}, recall {made.attributes['ann_recall']}"


def search(folder: Path) -> str:
    """Open the index, ask it ten times for ten documents, and look their titles up."""
    from components.artifacts import open_artifact
    from components.index.rows import read_titles
    from components.index.search import load_index

    started = time.perf_counter()
    opened = load_index(folder, open_artifact(folder).space_id, check="sizes")
    titles = read_titles(folder, opened.rows)
    ready, took = time.perf_counter() - started, []
    for number in range(10):
        started = time.perf_counter()
        query = np.random.default_rng(number).normal(size=(1, opened.dimension)).astype(np.float32)
        _, ids = opened.search(query / np.linalg.norm(query), 10)
        assert all(titles[doc_id] for doc_id in ids[0])
        took.append(1000 * (time.perf_counter() - started))
    return f"open {ready:.2f} s, first answer {took[0]:.1f} ms, then {np.median(took[1:]):.1f} ms"


def refresh(folder: Path) -> str:
    """As the flow does it, in one process: the new snapshot, its contracts, and from the verified index of before to the sealed one."""
    started = time.perf_counter()
    take_snapshot(folder / "changed", folder / "snapshot-2")
    taken = time.perf_counter() - started
    check(folder / "snapshot-2", folder / "report-2")
    checked = time.perf_counter() - started - taken
    return f"snapshot {taken:.1f} s, contracts {checked:.1f} s, {_refresh_of_index(folder)}"


def _refresh_of_index(folder: Path) -> str:
    from components.artifacts import IndexArtifact, open_artifact
    from components.index.build import display_titles
    from components.index.config import EncodingConfig, IndexConfig
    from components.index.corpus import ChosenDocuments
    from components.index.refresh import changes_since, read_documents, refresh_index

    started = time.perf_counter()
    previous = IndexArtifact(**open_artifact(folder / "index").model_dump())
    changes = changes_since(previous.path, read_documents(folder / "snapshot-2"))
    found = time.perf_counter() - started
    documents = ChosenDocuments(folder / "snapshot-2" / "documents.parquet", changes.encoded, EncodingConfig().shard_size)
    delta = _encoded(folder, documents, folder / "delta")
    titles = display_titles(folder / "snapshot-2" / "documents.parquet")
    ready = time.perf_counter() - started
    made = refresh_index(previous, delta, changes, IndexConfig(), _empty(folder / "index-2"), titles)
    written = sum(path.stat().st_size for path in made.path.iterdir() if path.stat().st_nlink == 1)
    return f"{changes.counts}, changes {found:.1f} s, until the index {ready:.1f} s, {written / 2**20:.0f} MiB of files written"


def bookkeeping(folder: Path, rows: int) -> str:
    """Rows of an index and of a data set, one in a million of them changed, through all of a refresh that needs no vector."""
    import pyarrow as pa

    from components.artifacts import IndexArtifact
    from components.index import refresh as steps
    from components.index.build import display_titles
    from components.index.refresh import changes_since, read_documents
    from components.index.rows import IDS_FILE, live_rows, read_rows, read_single, write_deleted, write_rows

    _write_rows(_empty(folder) / IDS_FILE, rows, 0)
    _write_rows(folder / "documents.parquet", rows, 1)
    started = time.perf_counter()
    changes = changes_since(folder, read_documents(folder))
    compared = time.perf_counter() - started
    index = IndexArtifact(path=folder, digest="0" * 64, counts={"documents": rows, "parts": 1})
    update = steps._joined(index, None, changes)
    live = live_rows(rows, update.deleted)
    table = update.table.append_column("part", pa.array(np.zeros(rows, np.int32)))
    write_rows(_empty(folder / "new"), table, display_titles(folder / "documents.parquet"), steps._hash_reader(index, update))
    write_deleted(folder / "new", update.deleted)
    written = time.perf_counter() - started
    del table, update
    assert len(read_rows(folder / "new")) == rows and len(live) == rows - len(changes.deleted)
    before, after = (
        read_single(place, ("doc_id", "content_hash", "title"), (0, rows // 3, rows - 1)) for place in (folder, folder / "new")
    )
    assert before == after
    return f"{changes.counts}, compared in {compared:.0f} s, written after {written:.0f} s"


def _write_rows(path: Path, rows: int, changed: int) -> None:
    """doc_id, content_hash, title and what else an index has of its rows; with `changed` one hash in a million is another."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    texts, numbered = ("doc_id", "content_hash", "title"), ("part", "order")
    schema = pa.schema([*((name, pa.large_string()) for name in texts), *((name, pa.int32()) for name in numbered)])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, AT_ONCE):
            numbers = np.arange(start, min(start + AT_ONCE, rows))
            digits = bytearray(np.random.default_rng(start).bytes(32 * len(numbers)).hex(), "ascii")
            if changed:
                digits[:64] = b"0" * 64
            ends = pa.py_buffer(64 * np.arange(len(numbers) + 1))
            hashes = pa.LargeStringArray.from_buffers(len(numbers), ends, pa.py_buffer(digits))
            words = pc.utf8_lpad(pa.array(numbers).cast(pa.large_string()), 11, "0")
            ids, titles = (
                pc.binary_join_element_wise(pa.scalar(start_of, pa.large_string()), words, pa.scalar("", pa.large_string()))
                for start_of in ("d", "The title of the document number ")
            )
            columns = [ids, hashes, titles, np.zeros(len(numbers), np.int32), numbers.astype(np.int32)]
            writer.write_table(pa.table(columns, schema=schema))


def _encoded(folder: Path, documents: Any, target: Path) -> Any:
    from components.index.config import EncodingConfig
    from components.index.encode import LoadedEncoder, ShardJob, encode_shards
    from components.towers.encoder import load_tower

    tower = load_tower(folder / "towers" / "document_tower")
    return encode_shards(ShardJob(LoadedEncoder(tower), documents, EncodingConfig().tokens_per_batch, _empty(target)), {})


def _apart(what: str, target: Path, function: Callable[..., str], *arguments: Any) -> tuple[Took, str]:
    """What `function` took in a process of its own, and what it says."""
    started = time.monotonic()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_launcher) as process:
        working = process.submit(_measured, function, arguments)
        while True:
            try:
                return working.result(SAY_EVERY)
            except TimeoutError:
                if working.done():  # the work's own
                    raise
                with suppress(OSError):  # a file that was renamed or removed meanwhile
                    sizes = [path.stat().st_size for path in target.rglob("*")]
                    print(f"{what}: {time.monotonic() - started:.0f} s so far, {sum(sizes) / 2**20:,.0f} MiB written", flush=True)


def _measured(function: Callable[..., str], arguments: tuple[Any, ...]) -> tuple[Took, str]:
    started, worked = time.perf_counter(), time.process_time()
    said = function(*arguments)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return Took(time.perf_counter() - started, time.process_time() - worked, peak), said


def _sum(stages: Iterable[Took]) -> Took:
    seconds, processors, peaks = zip(*stages, strict=True)
    return Took(sum(seconds), sum(processors), max(peaks))


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="working folder, kept (default: one that goes when all is measured)")
    parser.add_argument("--documents", default="1000000", help="how many; two numbers with a comma: the growth from one to the other")
    parser.add_argument("--words", type=int, default=60, help="words of a document")
    parser.add_argument("--base", default="decoder-64x2", help="random decoder of the tower, its width and layers")
    parser.add_argument("--rows", type=int, default=40_000_000, help="simulated rows for the bookkeeping; 0: none")
    parser.add_argument("--seed", type=int, default=13)
    return parser.parse_args()


if __name__ == "__main__":
    main()
