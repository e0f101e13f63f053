"""The machine as it is described in the provenance."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.tracking import provenance as machine
from components.tracking.provenance import collect_provenance


def test_the_provenance_names_the_machine() -> None:
    found = collect_provenance().machine
    assert found["host"] and found["processor"] and int(found["cores"]) >= 1
    assert float(found["memory_gib"]) > 0


def test_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("Fast One", "Fast Two")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text(f"Model: \t\t {name}\nIRQ: 1\n")
    monkeypatch.setattr(machine, "_GPUS", tmp_path)
    assert machine.describe_host()["gpus"] == "Fast One, Fast Two"
    monkeypatch.setattr(machine, "_GPUS", tmp_path / "none")
    assert "gpus" not in machine.describe_host()
