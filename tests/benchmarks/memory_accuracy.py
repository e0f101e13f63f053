"""Memory of the towers' training: what the planner expects against what processes take, and whether it grows with the steps.

    python -m tests.benchmarks.memory_accuracy                       # float32 on a processor: each case expected, measured, ratio
    python -m tests.benchmarks.memory_accuracy --growth 40           # what the process holds, step by step, on texts of all lengths

Random models are made on the spot, large enough that the libraries do not dominate. Each case is a process of its own, whose libraries
are loaded before it counts: expected is the need of the step without PROGRAM, measured the peak of the process less what it held
then. On a GPU compare `tests.benchmarks.gpu_smoke` instead. Pairs a second are of processor time, since machines are shared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

VOCABULARY, WORDS, LENGTH = 16_000, 3_000, 96
# A decoder as Qwen3 and Llama are, a narrow deep one, and an encoder as BERT is, of some 60 million parameters each.
DECODER: dict[str, Any] = {"width": 768, "inner": 2304, "layers": 7, "heads": 12, "keys": 4}
NARROW: dict[str, Any] = {"width": 512, "inner": 1408, "layers": 16, "heads": 8, "keys": 8}
ENCODER: dict[str, Any] = {"width": 768, "inner": 3072, "layers": 7, "heads": 12, "keys": 0}
GEMMA: dict[str, Any] = {"width": 640, "inner": 2048, "layers": 18, "heads": 4, "keys": 1, "head_width": 256}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "decoder, chunk 8": (DECODER, {"chunk_size": 8, "activation_checkpointing": False}),
    "decoder, chunk 8, recomputed": (DECODER, {"chunk_size": 8, "activation_checkpointing": True}),
    "narrow decoder, chunk 8": (NARROW, {"chunk_size": 8, "activation_checkpointing": False}),
    "narrow decoder, chunk 8, recomputed": (NARROW, {"chunk_size": 8, "activation_checkpointing": True}),
    "encoder, chunk 8": (ENCODER, {"chunk_size": 8, "activation_checkpointing": False, "attention": "bidirectional", "pooling": "mean"}),
    "decoder, full, chunk 8": (
        {**DECODER, "layers": 3},
        {"chunk_size": 8, "activation_checkpointing": False, "training": "full", "batch_size": 8},
    ),
}


def main() -> None:
    """Measure every case in a process of its own, or the one that is named in this process."""
    options = _arguments()
    if options.case is not None:
        print(json.dumps(measure(options.case, options)))
        return
    cases = [name for name in ([""] if options.growth else CASES) if options.only in name]
    for name in cases:
        found = _in_own_process(name)
        if options.growth:
            continue
        ratio = found["expected"] / found["measured"]
        print(
            f"{name:38} {found['parameters'] / 1e6:4.0f} M  expected {found['expected'] / 1e9:5.2f} GB  measured "
            f"{found['measured'] / 1e9:5.2f} GB  ratio {ratio:4.2f}   {found['pairs_per_second']:5.2f} pairs/s",
            flush=True,
        )


def measure(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Train for some steps in this process; bytes that were expected and taken beyond the libraries, and pairs a second."""
    import peft  # noqa: F401
    import torch

    from components.settings import activate
    from components.studies import growth_cell as memory
    from components.towers.base_models import resolve_base
    from components.towers.config import TowerConfig
    from components.towers.loop import Training
    from components.towers.train import TwoTowers

    model, settings = CASES[case] if case else ({**GEMMA, "layers": options.layers}, {"precision": "bfloat16", "batch_size": 32})
    with tempfile.TemporaryDirectory(prefix="memory-") as scratch:
        os.environ["SCALINGNOTE_HOME"] = scratch
        activate()
        parameters = _make(model, Path(scratch) / "model", "float32" if case else "bfloat16")
        given = {"precision": "float32", "batch_size": 10, "max_document_length": LENGTH, "max_query_length": 24, **settings}
        for each in options.set:
            name, _, value = each.partition("=")
            given[name] = json.loads(value)
        given |= {"base_model": str(Path(scratch) / "model"), "steps": options.growth or options.steps}
        config = TowerConfig.model_validate(given)
        pairs = _pairs(4 * config.batch_size if not options.growth else 2000)
        torch.ones(256, 256) @ torch.ones(256, 256)  # the threads are started
        before = memory.resident()
        with suppress(OSError):  # the peak from here on, where the system lets a process reset it
            Path("/proc/self/clear_refs").write_text("5")
        towers = TwoTowers(resolve_base(config.base_model), config)
        towers.even = towers.even and not options.uneven
        rates = []

        class Watched(Training):
            def _step(self, step: int) -> float:
                started = time.process_time()
                loss = super()._step(step)
                rates.append(config.batch_size / (time.process_time() - started))
                if options.growth and step % 5 == 4:
                    now = f"{memory.anonymous() / 1e9:.2f} GB now, {memory.peak() / 1e9:.2f} at most"
                    print(f"step {step + 1}: {now}, {statistics.median(rates):.2f} pairs a processor second", file=sys.stderr, flush=True)
                return loss

        Watched(towers, pairs, config, Path(scratch)).to_end()
        rate = statistics.median(rates[1:])
        measured = memory.peak() - before
        expected = _expected(config, pairs, towers)
    return {"expected": expected, "measured": measured, "pairs_per_second": rate, "parameters": parameters}


def _expected(config: Any, pairs: Any, towers: Any) -> float:
    from components.planning.cost import PROGRAM, needs_of
    from components.planning.facts import shape_of_base
    from components.towers.base_models import resolve_base
    from flows.config import load_config
    from tests.unit.planning_world import facts, texts

    whole = load_config("smoke", None, {"data.source": "somewhere"})
    whole = whole.model_copy(update={"towers": config})
    known = facts(
        documents=texts(len(pairs.documents), config.max_document_length),
        teacher=shape_of_base(resolve_base(config.base_model)),
        pair_count=len(pairs.pairs),
    )
    return needs_of(whole, known, 4 if config.training == "full" else towers.dtype.itemsize)["train_towers"].memory - PROGRAM


def _make(model: dict[str, Any], folder: Path, kind: str) -> int:
    """Write a random model with a tokenizer of whole words; how many parameters it has."""
    import torch
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    from components.towers.base_models import _train_tokenizer

    folder.mkdir()
    _train_tokenizer([f"w{i}" for i in range(WORDS)], folder)  # a token each, so that lengths are those of the texts
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": model["width"], "intermediate_size": model["inner"]}
    shape |= {"num_hidden_layers": model["layers"], "num_attention_heads": model["heads"], "pad_token_id": 0}
    if model["keys"]:
        head = model.get("head_width", model["width"] // model["heads"])
        made: Any = Qwen3Model(Qwen3Config(**shape, num_key_value_heads=model["keys"], head_dim=head, eos_token_id=2, bos_token_id=1))
    else:
        made = BertModel(BertConfig(**shape), add_pooling_layer=False)
    made.to(getattr(torch, kind)).save_pretrained(folder)
    return sum(p.numel() for p in made.parameters())


def _pairs(count: int) -> Any:
    """Pairs of a short query and a document; every length is there, and a third of the documents are cut."""
    from components.towers.pairs import Pairs

    draw = random.Random(0)

    def words(fewest: int, most: int) -> str:
        return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(draw.randint(fewest, most)))

    queries, documents = ([words(*sizes) for _ in range(count)] for sizes in ((2, 20), (20, LENGTH * 3 // 2)))
    return Pairs(queries, documents, [(i, i) for i in range(count)], {i: frozenset({i}) for i in range(count)})


def _in_own_process(case: str) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.memory_accuracy", *sys.argv[1:], "--case", case]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--growth", type=int, default=0, metavar="STEPS", help="steps of a model of Gemma's shape in bfloat16, by length")
    parser.add_argument("--layers", type=int, default=18, help="layers of that model; fewer take less time and memory")
    parser.add_argument("--uneven", action="store_true", help="batches in the shapes that the texts have, as they were before")
    parser.add_argument("--steps", type=int, default=2, help="steps of a case")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose names contain this")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="a setting of the towers")
    parser.add_argument("--case", help="measure this one alone, in this process")
    return parser.parse_args()


if __name__ == "__main__":
    main()
