"""The proof for a card, run dry: every part on tiny models, one JSON and one table; what takes too long ends alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from components.code import ROOT
from tests.benchmarks import gpu_proof
from tests.benchmarks.gpu_proof import Part

SCRIPT = ROOT / "tests" / "benchmarks" / "gpu_proof.sh"


@pytest.mark.server
@pytest.mark.slow
def test_a_dry_run_goes_through_every_part_and_writes_one_json_and_one_table(tmp_path: Path) -> None:
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ("bash", str(SCRIPT), "--dry-run", "--out", str(tmp_path / "out"))
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    proof, text = json.loads((tmp_path / "out" / "gpu_proof.json").read_text()), (tmp_path / "out" / "gpu_proof.md").read_text()
    assert [part["name"] for part in proof["parts"]] == ["throughput", "query towers, clinic", "scaling"]
    assert all(part["failed"] is None and part["seconds"] > 0 and part["result"]["rows"] for part in proof["parts"])
    assert [row["system"] for row in proof["parts"][1]["result"]["rows"]] == ["teacher", "layers-1", "static"]
    assert proof["dry_run"] and proof["machine"]["libraries"]["torch"] and "(dry run: tiny models, made-up data)" in text
    assert "| layers-1" in text and "pairs/s" in text and proof["machine"]["libraries"]["torch"] in text


def test_a_part_that_fails_or_takes_too_long_does_not_end_the_rest(tmp_path: Path) -> None:
    def part(name: str, code: str, limit: float = 600) -> Part:
        return Part(name, (sys.executable, "-c", code), limit)

    parts = [
        part("slow", "import time; time.sleep(3600)", 1),
        part("wrong", "raise SystemExit('no such thing')"),
        part("good", """print('{"rows": [{"system": "x", "R@50": 0.5}]}')"""),
    ]
    found = gpu_proof.run_all(parts, tmp_path, 1200)
    assert found[0]["failed"] == "not done within 1 s" and "no such thing" in found[1]["failed"] and found[2]["failed"] is None
    text = gpu_proof.table({"machine": gpu_proof.machine(), "dry_run": False, "parts": found})
    assert "not done: not done within 1 s" in text and "| x" in text and "dry run" not in text
    assert gpu_proof.run_all(parts, tmp_path, 0)[0]["failed"] == "not begun: the time was used up"


def test_the_limits_of_two_data_sets_fit_into_twelve_minutes(tmp_path: Path) -> None:
    parts = gpu_proof.parts_of([tmp_path / "tldr", tmp_path / "squad"], tmp_path, dry_run=False)
    assert sum(part.limit for part in parts) <= 12 * 60
    towers = [part for part in parts if part.name.startswith("query towers")]
    assert [part.name for part in towers] == ["query towers, tldr", "query towers, squad"]
    assert all("towers.batch_size=1024" in part.command and "towers.base_model=gemma3-270m-warm" in part.command for part in towers)


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "--dry-run for a trial"), (("--data", "nowhere"), "no such folder: nowhere"), (("--dry-run", "--minutes", "0"), "above 0")],
)
def test_wrong_arguments_are_refused_with_what_to_do(words: tuple[str, ...], said: str) -> None:
    command = (sys.executable, "-m", "tests.benchmarks.gpu_proof", *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_the_settings_for_a_card_are_valid(tmp_path: Path) -> None:
    from flows.config import load_settings
    from flows.studies.context import StudySettings

    for preset, settings in (("pages", gpu_proof.CARD), ("pages", gpu_proof.SCALING), ("smoke", gpu_proof.TINY)):
        import yaml

        given = {field: yaml.safe_load(str(value)) if value != "" else "" for field, value in {**settings, **gpu_proof.ONE_SEED}.items()}
        config = load_settings(StudySettings, preset, overrides=given)
        assert config.study.seeds == (13,)
