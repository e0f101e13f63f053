"""Every path that runs on a GPU, in six minutes at most: tiny models first, then Gemma 3 270M with its peaks beside the planner's.

    python -m tests.benchmarks.gpu_smoke [--without-gemma | --quick] [--json FILE]

Each part says what it saw or why it failed, its seconds, and the peak of the device's memory; the parts are independent, and one that
fails does not end the run. On a machine without a GPU the same parts run on the processor: that shows that the script is in order, and
says nothing of CUDA. Exit status 1 when a part failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from components.settings import activate
from tests.training.student_world import word_data
from tests.training.tiny_world import documents, pairs, queries
from tests.training.two_processes import CONFIG, loss_and_gradient, negatives
from tests.unit.planning_world import facts
from tests.unit.planning_world import texts as measured_texts

Part = Callable[[Path], str]
NOTABLE = 1e-2  # largest difference of a unit vector's number that bfloat16 may make


def main() -> int:
    """Run the parts and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--without-gemma", action="store_true", help="tiny models alone")
    parser.add_argument("--quick", action="store_true", help="tiny models, without the whole line: half a minute on a processor")
    parser.add_argument("--json", type=Path, help="write what was seen into this file")
    options = parser.parse_args()
    activate()
    import torch

    print(describe(), flush=True)
    parts = TINY if options.quick else {**TINY, **LINE, **({} if options.without_gemma else GEMMA)}
    seen = [run(name, part) for name, part in parts.items()]
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": describe(), "parts": seen}, indent=1), encoding="utf-8")
    failed = [part["name"] for part in seen if part["failed"]]
    print(f"{len(seen) - len(failed)} of {len(seen)} parts passed" + (f"; failed: {', '.join(failed)}" if failed else ""))
    if not torch.cuda.is_available():
        print("CUDA IS UNTRIED: there is no GPU here, and every part ran on the processor.")
    return 1 if failed else 0


def describe() -> str:
    """Device, versions and number format."""
    import torch

    from components.towers.device import pick_device, pick_dtype

    device = pick_device()
    if device.type != "cuda":
        return f"no GPU: the parts run on the processor, and CUDA stays untried; torch {torch.__version__}, {pick_dtype('auto')}"
    about = torch.cuda.get_device_properties(device)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, torch {torch.__version__}, CUDA {torch.version.cuda}, {pick_dtype('auto')}"


def run(name: str, part: Part) -> dict[str, Any]:
    """Run one part in a folder of its own."""
    import torch

    from components.towers.device import give_back_memory

    give_back_memory()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gpu-smoke-") as scratch:
        try:
            said, failed = part(Path(scratch)), False
        except Exception:
            said, failed = traceback.format_exc(limit=-3), True
    seconds = time.perf_counter() - started
    print(f"{'FAILED' if failed else 'passed'}  {name:<34} {seconds:6.1f} s  {peak() / 2**20:8.0f} MiB  {said}", flush=True)
    return {"name": name, "failed": failed, "seconds": round(seconds, 2), "peak_bytes": peak(), "said": said}


def peak() -> int:
    """Most bytes that tensors had on the GPU since the last reset; 0 without one."""
    import torch

    return int(torch.cuda.max_memory_allocated()) if torch.cuda.is_available() else 0


def gradients(**changes: Any) -> Part:
    """Loss and gradient on the device against those of the processor in float32."""

    def part(folder: Path) -> str:
        import torch

        from components.towers import device as precision

        config = CONFIG.model_copy(update=changes)
        loss, found = loss_and_gradient(config, negatives(2), folder)
        device, precision_of = precision.pick_device(), precision.pick_device
        backbone = sys.modules["components.towers.two_towers"]
        backbone.pick_device = lambda: torch.device("cpu")  # type: ignore[attr-defined]
        try:
            expected_loss, expected = loss_and_gradient(config.model_copy(update={"precision": "float32"}), negatives(2), folder)
        finally:
            backbone.pick_device = precision_of  # type: ignore[attr-defined]
        far = max(float((a.cpu() - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in zip(found, expected, strict=True))
        bound = 0.3 if config.precision == "bfloat16" else 1e-2
        assert abs(loss - expected_loss) < 0.05 * max(1.0, expected_loss) and far < bound, (loss, expected_loss, far)
        return f"{len(found)} gradients on {device}, largest relative difference from the processor {far:.1e}"

    return part


def training(**changes: Any) -> Part:
    """A short training of both towers, sealed, loaded again and used."""

    def part(folder: Path) -> str:
        from components.towers.encoder import load_tower
        from components.towers.train import train_towers, training_losses

        config = CONFIG.model_copy(update={"steps": 20, "checkpoint_every": 5, **changes})
        train_towers(pairs(), config, {"dataset": "d"}, folder)
        losses = training_losses(folder)
        assert losses[-1] < losses[0], losses
        vectors = load_tower(folder / "document_tower").encode(documents())
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        return f"loss {losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps"

    return part


def mined(folder: Path) -> str:
    """Exact neighbours on the device are those of the processor."""
    from components.towers import negatives as mining

    rng = np.random.default_rng(0)
    table = rng.standard_normal((20_000, 64), dtype=np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    scores, _ = mining.nearest(table[:500], table, 10)
    expected = -np.sort(-(table[:500] @ table.T), axis=1)[:, :10]
    assert np.allclose(scores, expected, atol=1e-3)
    return "500 queries against 20,000 documents"


def student(**changes: Any) -> Part:
    """A distillation of a tiny encoder, and its vectors padded against packed ones of the processor."""

    def part(folder: Path) -> str:
        import torch

        from components.distillation.config import DistillationConfig
        from components.distillation.student import load_student
        from components.distillation.student.forms import packed_vectors
        from components.distillation.train import train_student
        from components.towers.tokens import pad_batch
        from components.towers.transformer import pool

        settings = {"student": "tiny-encoder", "epochs": 4, "refine_epochs": 1, "batch_size": 16, "max_mean_cosine": 1.0, **changes}
        artifact = train_student(word_data(), DistillationConfig.model_validate(settings), {}, folder)
        loaded: Any = load_student(artifact.path)
        vectors = loaded.encode(queries())
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
        if not loaded.form.has_layers:
            return "static"
        rows = loaded.tokens(queries())
        with torch.inference_mode():
            batch = {name: values.to(loaded.device) for name, values in pad_batch(rows, loaded.tokenizer.pad_token_id or 0).items()}
            padded = pool(loaded.model(**batch).last_hidden_state, batch["attention_mask"], loaded.contract.pooling).float().cpu()
            packed = packed_vectors(loaded.model.cpu().float(), rows, loaded.contract.pooling, torch.device("cpu"))
        far = float((padded - packed).abs().max())
        assert far < 0.05, far
        return f"padded and packed states differ by {far:.1e} at most"

    return part


def whole_line(folder: Path) -> str:
    """The preset smoke from data to a candidate, approved, promoted, searched and verified."""
    import os

    environment = {**os.environ, "SCALINGNOTE_HOME": str(folder / "home")}
    for words in (
        ("retrain", "--preset", "smoke"),
        ("approve", "candidate/1", "--as", "smoke"),
        ("promote",),
        ("search", "x"),
        ("verify", "champion"),
    ):
        command = [sys.executable, "-c", "from flows.cli import start; start()", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{words}: {done.stdout[-500:]} {done.stderr[-1500:]}"
    return "retrain, approve, promote, search, verify"


def gemma(**changes: Any) -> Part:
    """Steps of Gemma 3 270M at the lengths of the preset pages: pairs and documents a second, and the peak beside the planner's."""

    def part(folder: Path) -> str:
        import torch

        from components.planning.cost import training_bytes
        from components.planning.facts import shape_of_base
        from components.towers.base_models import resolve_base
        from components.towers.config import TowerConfig
        from components.towers.loop import Training
        from components.towers.pairs import Pairs
        from components.towers.two_towers import TwoTowers

        on_gpu = torch.cuda.is_available()
        count = 256 if on_gpu else 8
        texts = [f"document {i} " + "about the care of the kidney and the heart " * 20 for i in range(count)]
        asked = [f"question {i} about the kidney" for i in range(count)]
        given = Pairs(asked, texts, [(i, i) for i in range(count)], {i: frozenset({i}) for i in range(count)})
        chunk = 64 if on_gpu else 4
        settings = {"base_model": "gemma3-270m", "batch_size": count, "chunk_size": chunk, "max_document_length": 128, **changes}
        config = TowerConfig.model_validate(settings)
        towers = TwoTowers(resolve_base("gemma3-270m"), config)
        work = Training(towers, given, config, folder)
        work._step(0)  # allocates the optimizer's state
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        steps = 4 if on_gpu else 1
        for step in range(1, 1 + steps):
            work._step(step)
        if on_gpu:
            torch.cuda.synchronize()
        rate = steps * count / (time.perf_counter() - started)
        known = facts(documents=measured_texts(count, 128), teacher=shape_of_base(resolve_base("gemma3-270m")), pair_count=count)
        whole = SimpleNamespace(towers=config.model_copy(update={"activation_checkpointing": towers.recomputes}))
        planned = known.teacher.parameters * towers.dtype.itemsize + training_bytes(whole, known, towers.dtype.itemsize)
        rows = towers.tokens(texts, "document")
        started = time.perf_counter()
        towers.encode(rows, "document")
        encoded = count / (time.perf_counter() - started)
        seen = f"peak {peak() / 2**30:.2f} GiB, planned {planned / 2**30:.2f}" if on_gpu else f"planned {planned / 2**30:.2f} GiB"
        return f"{rate:.1f} pairs/s, {encoded:.1f} documents/s of 128 tokens, {seen}"

    return part


TINY: dict[str, Part] = {
    "gradients, LoRA, float32": gradients(),
    "gradients, LoRA, bfloat16": gradients(precision="bfloat16"),
    "gradients, full": gradients(training="full"),
    "gradients, bidirectional": gradients(attention="bidirectional"),
    "gradients, layers recomputed": gradients(activation_checkpointing=True),
    "gradients, full, recomputed, bf16": gradients(training="full", activation_checkpointing=True, precision="bfloat16"),
    "training, LoRA, mined negatives": training(hard_negatives=2, mining_start=5, mining_depth=8),
    "training, full": training(training="full"),
    "training, LoRA, bfloat16": training(precision="bfloat16", activation_checkpointing=True),
    "nearest documents": mined,
    "student, linear head": student(head="linear"),
    "student, static": student(form="static"),
}
LINE: dict[str, Part] = {"the whole line": whole_line}
GEMMA: dict[str, Part] = {
    "Gemma 3 270M, LoRA": gemma(),
    "Gemma 3 270M, LoRA, recomputed": gemma(activation_checkpointing=True),
}

if __name__ == "__main__":
    sys.exit(main())
