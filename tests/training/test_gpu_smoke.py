"""The script for a GPU is in order: its quickest form runs here, and says that CUDA was not tried where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_quick_form_of_the_smoke_test_runs_whole_and_says_what_it_did_not_try(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.benchmarks.gpu_smoke", "--quick", "--json", str(tmp_path / "seen.json")]
    environment = {**os.environ, "SCALINGNOTE_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    seen = json.loads((tmp_path / "seen.json").read_text(encoding="utf-8"))["parts"]
    assert len(seen) == 12 and not any(part["failed"] for part in seen)
    assert ("CUDA IS UNTRIED" in done.stdout) is not torch.cuda.is_available()
