"""Every changed byte is found: release, signature, pinned parts, audit log with its head, promotion records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from components import settings
from components.artifacts import SIGNATURE
from components.promotion.release import load_release
from components.promotion.verification import Check, verify_folder, verify_release
from components.tracking import registry
from components.tracking.audit import head_file
from tests.unit.promotion_world import NAME
from tests.unit.proof_world import Proven, proven_home

POSITIONS = 200
CHUNKS = 10


@pytest.fixture(scope="module")
def proven(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Proven]:
    with proven_home(tmp_path_factory.mktemp("fuzz"), mlflow_template) as world:
        yield world


def from_files(world: Proven) -> list[Check]:
    return verify_folder(NAME, world.home / "mlflow")


def from_store(world: Proven) -> list[Check]:
    return verify_release(NAME, "champion")


def groups(world: Proven) -> dict[str, list[Path]]:
    """All files that a release stands on, by what they are: positions are drawn evenly from the groups, then from the bytes."""
    release = registry.artifact_folder(f"{NAME}-release", 2)
    parts = [registry.artifact_folder(pin.model, pin.version) for _, pin in load_release(release).pins.items()]
    log = settings.audit_log()
    return {
        "release": [path for path in sorted(release.rglob("*")) if path.is_file() and path.name != SIGNATURE],
        "signature": [release / SIGNATURE],
        "parts": [path for part in parts for path in sorted(part.rglob("*")) if path.is_file()],
        "audit": [log, head_file(log)],
        "records": sorted((world.home / "mlflow").rglob("record.json")),
    }


def drawn(world: Proven) -> list[tuple[Path, int, int]]:
    """(file, position, bits to flip), the same ones each time."""
    rng = np.random.default_rng(7)
    found, made = list(groups(world).values()), []
    for number in range(POSITIONS):
        files = found[number % len(found)]
        path = files[int(rng.integers(len(files)))]
        made.append((path, int(rng.integers(path.stat().st_size)), int(rng.integers(1, 256))))
    return made


def undetected(world: Proven, changes: list[tuple[Path, int, int]], verify: object) -> list[tuple[str, int]]:
    """Change one byte at a time, verify, and put it back."""
    assert callable(verify)
    missed = []
    for path, position, bits in changes:
        whole = path.read_bytes()
        path.write_bytes(whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :])
        if all(check.ok for check in verify(world)):
            missed.append((path.name, position))
        path.write_bytes(whole)
    return missed


def test_unchanged_everything_holds(proven: Proven) -> None:
    for verify in (from_files, from_store):
        checks = verify(proven)
        assert [check for check in checks if not check.ok] == []
        assert {"files", "signature", "index", "decision", "signed records", "audit log"} <= {check.name for check in checks}
    assert {name: len(files) for name, files in groups(proven).items()}["records"] == 3


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_every_changed_byte_is_found(proven: Proven, chunk: int) -> None:
    assert undetected(proven, drawn(proven)[chunk::CHUNKS], from_files) == []


def test_a_changed_byte_is_found_through_the_registry(proven: Proven) -> None:
    assert undetected(proven, drawn(proven)[:10], from_store) == []
