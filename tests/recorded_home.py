"""A home folder as another commit makes it, packed into one file, for the tests that today's code still reads it.

    python -m tests.recorded_home COMMIT      # writes tests/recorded/home.tar.xz and, beside it, what its commands have to say

Code of that commit and home lie in a folder of a neutral name, so that no path or name of a machine gets into the archive. Packed are the
MLflow store and nothing that a home makes again: working files, caches, logs and Prefect's database stay out.
"""

from __future__ import annotations

import argparse
import getpass
import io
import json
import lzma
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from tests.flows.cli_world import SMALL, write_collection

ROOT = Path(__file__).resolve().parents[1]
PLACE = Path(tempfile.gettempdir(), "scalingnote-recorded")
ARCHIVE = ROOT / "tests" / "recorded" / "home.tar.xz"
EXPECTED = ARCHIVE.with_name("home.json")
QUERY = "heart stone"
# A student without layers: weights are most of what is packed.
_LESS = ("distillation.form=static", "distillation.max_mean_cosine=1.0", "distillation.min_effective_rank=1.0")
SETTINGS = (*SMALL, *(word for setting in _LESS for word in ("--set", setting)))
# Two releases, one promoted after the other; the second differs in its policy alone and so shares all parts with the first.
COMMANDS: tuple[tuple[str, ...], ...] = (
    ("retrain", *SETTINGS, "--data", "../clinic"),
    ("approve", "candidate/1", "--as", "Ada Lovelace"),
    ("promote",),
    ("retrain", *SETTINGS, "--data", "../clinic", "--set", "policy.margin=0.4"),
    ("approve", "candidate/2", "--as", "Ada Lovelace"),
    ("promote",),
)
# The command line, which records the machine that it runs on: here none in particular.
COMMAND = """
import platform, runpy
platform.node, platform.platform = lambda: "recorder", lambda *_, **__: "Linux"
runpy.run_module("flows.cli", run_name="__main__", alter_sys=True)
"""
ALIEN = re.compile(rb"(?<![\w.-])/(?:root|home|Users|work)\b")  # what no file may hold, beside the names of this machine and its user


def unpack(place: Path) -> Path:
    """The recorded home below `place`, which may be anywhere: a home can be moved."""
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        archive.extractall(place, filter="data")
    return place / "home"


def record(commit: str) -> None:
    """Make the home with the code of `commit` and pack it."""
    shutil.rmtree(PLACE, ignore_errors=True)
    code, home = PLACE / "code", PLACE / "home"
    code.mkdir(parents=True)
    packed = subprocess.run(("git", "archive", commit), cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(code, filter="data")
    write_collection(PLACE / "clinic")
    revision = subprocess.run(("git", "rev-parse", commit), cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PREFECT_", "SCALINGNOTE_", "PYTHON"))},
        **dict.fromkeys(("USER", "LOGNAME", "USERNAME", "LNAME"), "ada"),
        "SCALINGNOTE_HOME": str(home),
        "SCALINGNOTE_REVISION": revision,
        "SCALINGNOTE_ANSWER_LOG": "off",
        "OMP_NUM_THREADS": "1",
    }

    def run(*words: str) -> Any:
        done = subprocess.run(
            (sys.executable, "-c", COMMAND, *words, "--json"), cwd=code, env=environment, check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{words} ended with {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
        return json.loads(done.stdout)

    for words in COMMANDS:
        run(*words)
    expected = {"commit": revision, "query": QUERY, "hits": run("search", QUERY)["hits"]}
    _pack(home)
    EXPECTED.write_text(f"{json.dumps(expected, indent=1)}\n", encoding="utf-8")


def _pack(home: Path) -> None:
    database = home / "mlflow" / "mlflow.db"
    with sqlite3.connect(database) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with sqlite3.connect(database) as store:
        store.execute("VACUUM")
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for path in sorted((home / "mlflow").rglob("*")):
            if path.is_file() and path.suffix not in (".log", ".lock") and not path.name.endswith(("-wal", "-shm")):
                _require_neutral(path)
                member = archive.gettarinfo(path, f"home/{path.relative_to(home)}")
                member.uid = member.gid = member.mtime = 0
                member.uname = member.gname = ""
                archive.addfile(member, io.BytesIO(path.read_bytes()))
    ARCHIVE.parent.mkdir(exist_ok=True)
    ARCHIVE.write_bytes(lzma.compress(held.getvalue(), preset=9 | lzma.PRESET_EXTREME))


def _require_neutral(path: Path) -> None:
    """Refuse a file with a path of a machine, its name, or its user's."""
    if "code" in path.parts:  # what was registered of the project itself
        return
    content = path.read_bytes()
    names = re.compile(b"|".join(re.escape(f'"{word}"'.encode()) for word in (platform.node(), getpass.getuser())))
    for found in (ALIEN.search(content), names.search(content)):
        if found is not None:
            raise SystemExit(f"{path} holds {found.group()!r}: {content[max(0, found.start() - 80) : found.end() + 80]!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("commit", help="commit whose code makes the home")
    record(parser.parse_args().commit)
