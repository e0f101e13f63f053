"""Training of the towers: throughput against sentence-transformers, and memory against two separate towers.

    python tests/benchmarks/tower_training.py --data FOLDER [--base NAME] [--lora-layers 9] [--chunk N] [--recompute] [--rounds N]

Three systems train on the same pairs with the same model, adapters, batch, chunk, lengths and number format: ours (two adapters on one
decoder, gradient caching), sentence-transformers' trainer with its cached loss (one adapter for both roles, it knows no other), and two
separate towers (two decoders with an adapter each, trained by our loop). Each run is a process of its own, the systems take turns,
and what is compared is the ratio of medians. Memory is the peak of what the process has for itself (of a GPU: what it took there), less
what it held with the libraries loaded and no model; pages of the files that are read are not counted, since the system drops them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

THEIRS = "sentence_transformers"
SYSTEMS = ("scalingnote", THEIRS, "two_towers")
WARM_UP = 1  # steps that are not timed


def main() -> None:
    """Measure all systems in turns, or one of them in this process."""
    options = _arguments()
    if options.system:
        print(json.dumps(measure(options.system, options)))
        return
    # Their trainer reads its data with the package datasets, which nothing else here needs.
    measured = [system for system in SYSTEMS if system != THEIRS or find_spec("datasets") is not None]
    if THEIRS not in measured:
        print("sentence_transformers is left out: its trainer needs the package 'datasets' (pip install datasets)", flush=True)
    runs = {system: [] for system in measured}  # type: dict[str, list[dict[str, float]]]
    for number in range(options.rounds):
        for system in measured:
            runs[system].append(_in_own_process(system))
            print(f"round {number + 1}, {system}: {runs[system][-1]}", flush=True)
    _report(runs, options.json)


def measure(system: str, options: argparse.Namespace) -> dict[str, float]:
    """Pairs per second and peak memory in bytes of one system in this process."""
    import peft  # noqa: F401  the libraries belong to every system and are loaded before memory is counted
    import sentence_transformers  # noqa: F401

    pairs = list(islice(_pairs(options.data), options.batch * (options.steps + WARM_UP)))
    train = _with_sentence_transformers if system == THEIRS else _with_towers
    with peak_of_process() as held:
        seconds = train(pairs, options, system)
    return {"pairs_per_second": options.batch * options.steps / seconds, "memory": float(max(held) - held[0])}


def _with_towers(pairs: list[tuple[str, str]], options: argparse.Namespace, system: str) -> float:
    import torch

    from components.towers.contract import ROLES
    from components.towers.loop import in_chunks
    from components.towers.losses import cached_backward, info_nce

    towers = _towers(options, 2 if system == "two_towers" else 1)
    parameters = [p for tower in {id(t): t for t in towers.values()}.values() for p in tower.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    rows = {role: towers[role].tokens([pair[side] for pair in pairs], role) for side, role in enumerate(ROLES)}
    started = 0.0
    for step in range(options.steps + WARM_UP):
        started = time.perf_counter() if step == WARM_UP else started
        batch = slice(step * options.batch, (step + 1) * options.batch)
        (queries, query_places), (documents, document_places) = (
            in_chunks(rows[role][batch], options.chunk * options.document_length) for role in ROLES
        )
        with ExitStack() as block:
            for tower in {id(t): t for t in towers.values()}.values():
                block.enter_context(tower.passing_twice())
            cached_backward(
                lambda chunk, role: towers[role].embed(chunk, role),
                queries,
                documents,
                # Chunks are sorted by length, as in training, so the rows are put back in their order; the places are bound now.
                lambda q, d, i=query_places, j=document_places: info_nce(q[i], d[j], 0.03),  # type: ignore[misc]
            )
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def _towers(options: argparse.Namespace, count: int) -> dict[str, Any]:
    from components.towers.base_models import resolve_base
    from components.towers.config import TowerConfig
    from components.towers.two_towers import TwoTowers

    config = TowerConfig(
        base_model=options.base,
        max_query_length=options.query_length,
        max_document_length=options.document_length,
        precision=options.precision,
        lora_rank=16,
        lora_alpha=32,
        lora_layers=options.lora_layers,
        activation_checkpointing=options.recompute,
    )
    base = resolve_base(options.base, _texts(options.data))
    made = [TwoTowers(base, config) for _ in range(count)]
    return {"query": made[0], "document": made[-1]}


def _with_sentence_transformers(pairs: list[tuple[str, str]], options: argparse.Namespace, system: str) -> float:
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    model = _sentence_transformer(options)
    clock = _clock()
    data = Dataset.from_dict({"query": ["query: " + q for q, _ in pairs], "document": ["document: " + d for _, d in pairs]})
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=options.batch,
            max_steps=options.steps + WARM_UP,
            bf16=_is_bfloat16(options),
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=options.recompute,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_drop_last=True,
        )
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / 0.03, mini_batch_size=options.chunk)
        SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[clock]).train()
    return clock.ended - clock.started


def _sentence_transformer(options: argparse.Namespace) -> Any:
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from components.towers.base_models import resolve_base
    from components.towers.device import pick_dtype

    # The library has one length for both roles: queries are far below it, documents are cut where ours are.
    transformer = Transformer(
        resolve_base(options.base, _texts(options.data)).location,
        max_seq_length=options.document_length,
        model_kwargs={"dtype": pick_dtype(options.precision)},
    )
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()])
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, **_adapted(transformer.model, options)))
    return model


def _adapted(model: Any, options: argparse.Namespace) -> dict[str, Any]:
    """peft's settings for adapters on all linear maps of the last `lora_layers` layers, or of all."""
    if options.lora_layers is None:
        return {"target_modules": "all-linear"}
    from components.towers.transformer import layer_stack
    from components.towers.two_towers import adapted_maps

    owner, name = layer_stack(model, options.base)
    total = len(getattr(owner, name))
    upper = list(range(total - options.lora_layers, total))
    return {"target_modules": adapted_maps(model, options.base)[0], "layers_to_transform": upper, "layers_pattern": name}


def _clock() -> Any:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = ended = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.ended = time.perf_counter()

    return Clock()


def _pairs(folder: Path) -> Iterator[tuple[str, str]]:
    """(query, document) of the folder's train judgements, in a fixed order; over again when they are too few."""
    from components.data.config import DataConfig
    from components.data.dataset import document_text
    from components.data.sources import read_source

    tables = read_source(DataConfig(source=str(folder)))
    queries = dict(zip(tables.queries["query_id"], tables.queries["text"], strict=True))
    documents = {
        d: document_text(title, text)
        for d, title, text in zip(tables.documents["doc_id"], tables.documents["title"], tables.documents["text"], strict=True)
    }
    train = tables.judgements[(tables.judgements["split"] == "train") & (tables.judgements["score"] > 0)]
    train = train.sample(frac=1, random_state=13)
    while True:
        yield from ((queries[q], documents[d]) for q, d in zip(train["query_id"], train["doc_id"], strict=True))


def _texts(folder: Path) -> list[str]:
    """What the tokenizer of a model that is built here is trained on."""
    return [text for pair in islice(_pairs(folder), 2000) for text in pair]


def _is_bfloat16(options: argparse.Namespace) -> bool:
    import torch

    from components.towers.device import pick_dtype

    return pick_dtype(options.precision) == torch.bfloat16


@contextmanager
def peak_of_process() -> Iterator[list[int]]:
    """Bytes that the process holds for itself, at the beginning and every hundredth of a second; of a GPU its peak, at the end."""
    import torch

    own = Path("/proc/self/status")
    held, ended = [_anonymous(own)], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            held.append(_anonymous(own))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield held
    finally:
        ended.set()
        watcher.join()
        if torch.cuda.is_available():
            held[:] = [0, int(torch.cuda.max_memory_allocated())]


def _anonymous(status: Path) -> int:
    return next(int(line.split()[1]) * 1024 for line in status.read_text(encoding="ascii").splitlines() if line.startswith("RssAnon"))


def _in_own_process(system: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--system", system]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _report(runs: dict[str, list[dict[str, float]]], file: Path | None) -> None:
    speed = {s: statistics.median(run["pairs_per_second"] for run in of) for s, of in runs.items()}
    memory = {s: statistics.median(run["memory"] for run in of) for s, of in runs.items()}
    for system in runs:
        print(f"{system:24} {speed[system]:8.2f} pairs/s {memory[system] / 2**30:8.2f} GiB")
    if file is not None:
        rows = [{"system": s, "pairs/s": speed[s], "GiB": memory[s] / 2**30} for s in runs]
        file.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    if THEIRS in runs:
        print(f"throughput, ours / sentence-transformers: {speed['scalingnote'] / speed[THEIRS]:.2f}")
    print(f"memory, ours / two separate towers: {memory['scalingnote'] / memory['two_towers']:.2f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="BEIR-layout folder with train judgements")
    parser.add_argument("--base", default="gemma3-270m", help="decoder, default gemma3-270m; decoder-1536x24 is a random one of 0.5 B")
    parser.add_argument("--steps", type=int, default=4, help="timed steps a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=8, help="pairs in memory at once")
    parser.add_argument("--lora-layers", type=int, help="layers with adapters, counted from the output; all without it")
    parser.add_argument("--recompute", action="store_true", help="work the layers out again in the backward pass, in all systems")
    parser.add_argument("--query-length", type=int, default=24)
    parser.add_argument("--document-length", type=int, default=64)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--json", type=Path, help="write the medians into this file, too")
    parser.add_argument("--system", choices=SYSTEMS, help="measure this one alone, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
