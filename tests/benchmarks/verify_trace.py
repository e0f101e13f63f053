"""Seconds of `verify` beyond the plain hashing of the same bytes, and seconds of `trace`, on a release of a given size.

    python tests/benchmarks/verify_trace.py [--gigabytes 1] [--rounds 3] [--folder FOLDER]

The release is made of a small candidate of the unit tests whose index holds random bytes for vectors; it is signed, approved and promoted
in a home of its own. Every command runs in a process of its own, as a person would start it, with the imports counted; the plain hashing
reads the same files with sha256 just before it, so both find them in the system's cache.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
BLOCK = 64 * 1024 * 1024


def main() -> None:
    """Make the release, time the commands in turns, print the medians."""
    options = _arguments()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = prepare(Path(folder), int(options.gigabytes * 2**30))
        variables = {**os.environ, "SCALINGNOTE_HOME": str(Path(folder) / "home")}
        size = sum(path.stat().st_size for path in files)
        rows = [timed(files, variables) for _ in range(options.rounds)]
    print(f"{size / 2**30:.2f} GiB in a release and its parts; medians of {options.rounds} rounds")
    print(f"{'':22} {'seconds':>8} {'CPU seconds':>12}")
    for name in rows[0]:
        wall, cpu = (statistics.median(row[name][kind] for row in rows) for kind in (0, 1))
        print(f"{name:22} {wall:8.2f} {cpu:12.2f}")


def timed(files: list[Path], variables: dict[str, str]) -> dict[str, tuple[float, float]]:
    """Seconds and CPU seconds (which other work on the machine does not change much) of one round."""
    row = {"hashing": plain_hashing(files), "verify": command("verify", variables)}
    (hashed, hashed_cpu), (verified, verified_cpu) = row.values()
    return {**row, "verify beyond hashing": (verified - hashed, verified_cpu - hashed_cpu), "trace": command("trace", variables)}


def prepare(folder: Path, size: int) -> list[Path]:
    """A promoted release whose index has `size` bytes of vectors; returns all files that `verify` hashes."""
    from components import settings
    from components.promotion.approval import approve
    from components.promotion.promote import promote
    from components.release.manifest import load_release
    from components.signing.keys import make_key
    from components.tracking import registry
    from tests.unit import promotion_world
    from tests.unit.proof_world import register

    with mock.patch.dict(os.environ, {"SCALINGNOTE_HOME": str(folder / "home")}):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        settings.activate()
        make_key(settings.keys_folder() / "signing.pem")
        small = promotion_world.make_part

        def large(part: Path, role: str) -> object:
            if role == "index":
                part.mkdir(parents=True)
                write_random(part / "part-00000.vectors.npy", size)
            return small(part, role)

        with mock.patch.object(promotion_world, "make_part", large):
            promotion_world.make_candidate(folder / "made", register)
        approve(promotion_world.NAME, 1, "Ada")
        promote(promotion_world.NAME, lambda manifest: None)
        release = registry.artifact_folder(f"{promotion_world.NAME}-release", 1)
        parts = [registry.artifact_folder(pin.model, pin.version) for _, pin in load_release(release).pins.items()]
    return [path for place in (release, *parts) for path in sorted(place.rglob("*")) if path.is_file()]


def write_random(path: Path, size: int) -> None:
    """Bytes that no file system can shrink."""
    with path.open("wb") as handle:
        for start in range(0, size, BLOCK):
            handle.write(os.urandom(min(BLOCK, size - start)))


def plain_hashing(files: list[Path]) -> tuple[float, float]:
    """sha256 over all the files."""
    from components.artifacts import file_sha256

    started, cpu = time.perf_counter(), time.process_time()
    for path in files:
        file_sha256(path)
    return time.perf_counter() - started, time.process_time() - cpu


def command(name: str, variables: dict[str, str]) -> tuple[float, float]:
    """One command about the champion; stops with its output when it fails."""
    line = [sys.executable, "-m", "flows.cli.main", name, "champion"]
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout}{done.stderr}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="GiB of vectors in the index (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each command is timed (default 3)")
    parser.add_argument("--folder", type=Path, help="where the release is made, with twice its size free (default: the system's)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
