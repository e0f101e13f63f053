"""One reading command in the odd places of `tests/README.md`: it works, or one sentence says what is missing, and never a traceback."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.cli_world import environment, write_collection

ROOT = Path(__file__).resolve().parents[2]
COMMAND = f"'{sys.executable}' -c 'import sys; from flows.cli import start; sys.exit(start())'"
NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""
WORKS = "no candidates yet"
pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
def variables(tmp_path: Path, mlflow_template: Path) -> dict[str, str]:
    """The environment of a process that works in an empty home below `tmp_path`."""
    write_collection(tmp_path / "clinic")
    (tmp_path / "nolocks").mkdir()
    (tmp_path / "nolocks" / "sitecustomize.py").write_text(NO_LOCKS)
    return {**environment(tmp_path / "home", mlflow_template), "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    ("place", "status", "said"),
    [
        ("ulimit -n 64; {command} status", 0, WORKS),
        ("PYTHONOPTIMIZE=2 {command} status", 0, WORKS),
        ("PYTHONWARNINGS=error {command} status", 0, WORKS),
        ("TZ=Pacific/Chatham LC_ALL=C PYTHONHASHSEED=1 {command} status", 0, WORKS),
        ("NO_COLOR=1 TERM=dumb COLUMNS=1 {command} status", 0, WORKS),
        ("umask 077; TMPDIR=/nonexistent {command} status", 0, WORKS),
        ("ln -s home link; SCALINGNOTE_HOME={folder}/link {command} status", 0, WORKS),
        ("PYTHONPATH={folder}/nolocks:$PYTHONPATH {command} status", 0, WORKS),
        ("mkdir gone; cd gone; rmdir ../gone; {command} status", 0, WORKS),
        ("mkdir gone; cd gone; rmdir ../gone; unset SCALINGNOTE_HOME; {command} status", 2, "the current folder was removed"),
        ("SCALINGNOTE_HOME={folder}/{long} {command} status", 2, "File name too long"),
        ("touch file; SCALINGNOTE_HOME={folder}/file/home {command} status", 2, "is a file, or lies below one"),
        ("MLFLOW_TRACKING_URI=mysql+pymysql://u:s3cr3t@127.0.0.1:1/x {command} status", 2, "pip install pymysql"),
        ("COLUMNS=1 {command} --help", 0, "usage"),
        ("PYTHONOPTIMIZE=2 {command} validate --data {folder}/clinic", 0, "keeps its contracts"),
        ("PYTHONOPTIMIZE=2 {python} -OO -m flows.cli status", 0, WORKS),
        ("mkdir -p x/components; touch x/components/__init__.py; PYTHONPATH={folder}/x:$PYTHONPATH {command} status", 2, "PYTHONPATH"),
        ("SCALINGNOTE_HOME=/dev/null {command} status", 2, "is a file, or lies below one"),
        ("SCALINGNOTE_HOME={folder}'/ho me '\\''s \"x\" #1%20;&=é' {command} status", 0, WORKS),
    ],
)
def test_status_works_or_says_why_it_does_not(place: str, status: int, said: str, variables: dict[str, str], tmp_path: Path) -> None:
    script = place.format(command=COMMAND, python=sys.executable, folder=shlex.quote(str(tmp_path)), long="x" * 300)
    done = subprocess.run(
        [shutil.which("bash") or "sh", "-c", script], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    assert not (tmp_path / "gone").exists()
