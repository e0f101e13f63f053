"""How tests are shared out among processes, and that files written by them do not wait for the disk."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.settings import usable_processors
from tests import workers

ROOT = Path(__file__).resolve().parents[2]


def test_every_file_whose_tests_take_the_built_release_is_in_its_chain() -> None:
    takes = re.compile(r"^def \w+\([^)]*\bbuilt: Built\b", re.MULTILINE)
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py") if takes.search(path.read_text("utf-8"))}
    assert files == set(workers.CHAINED)


def test_what_is_said_to_take_longest_is_there() -> None:
    assert [name for name in workers.LONGEST if name != workers.CHAIN and not (ROOT / name).is_file()] == []


def test_files_stay_whole_and_the_chain_runs_in_one_process() -> None:
    assert workers.run_together("tests/unit/test_code.py::test_x[a::b]") == "tests/unit/test_code.py"
    assert len({workers.run_together(f"{file}::test_x") for file in workers.CHAINED}) == 1


def test_the_longest_are_handed_out_first_then_ring_by_ring() -> None:
    files = [
        "unit/test_a.py",
        "training/test_b.py",
        "flows/test_c.py",
        "elsewhere/test_d.py",
        "training/test_towers.py",
        "flows/test_proof.py",
    ]
    nodes = [f"tests/{file}::test_x" for file in files]
    ordered = [node.split("/", 1)[1].partition("::")[0] for node in sorted(nodes, key=workers.rank)]
    assert ordered == [
        "flows/test_proof.py", "training/test_towers.py", "flows/test_c.py", "training/test_b.py", "unit/test_a.py", "elsewhere/test_d.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "chosen", "several"),
    [
        (("tests",), False, True),
        ((), False, True),
        (("tests/unit", "tests/flows"), False, True),
        (("tests",), True, False),
        (("tests/unit/test_code.py",), False, False),
        (("tests/unit", "tests/unit/test_code.py::test_x"), False, False),
    ],
)
def test_whole_rings_take_all_processors_and_chosen_tests_one_process(arguments: tuple[str, ...], chosen: bool, several: bool) -> None:
    assert workers.number_of_workers(arguments, chosen) == (usable_processors() + 1 if several else 0)


@pytest.mark.parametrize(("count", "threads"), [("1", 4), ("2", 2), ("4", 1), ("9", 1)])
def test_all_workers_together_take_the_processors_there_are(count: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "usable_processors", lambda: 4)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", count)
    assert workers.threads_of_a_worker() == threads


def test_a_report_that_tells_of_bytes_that_are_no_text_can_be_sent_from_process_to_process() -> None:
    execnet = pytest.importorskip("execnet.gateway_base")
    report = {"sections": [("Captured log", "caf\udcff é")], "duration": 0.5, "longrepr": None, "user_properties": [["a", 1]]}
    with pytest.raises(execnet.DumpError):
        execnet.dumps(report)
    sent = execnet.loads(execnet.dumps(workers.sendable(report)))
    assert sent == {**report, "sections": [("Captured log", "caf\\udcff é")]}


@pytest.mark.parametrize(
    ("blocks", "memory", "flags", "used"),
    [
        (2**23, 2**34, 0, True),
        (2**14, 2**34, 0, False),  # the 64 MB of a container
        (2**23, 2**32, 0, False),
        (2**23, 2**34, os.ST_NOEXEC, False),
    ],
)
def test_files_of_tests_lie_in_memory_where_there_is_room(
    blocks: int, memory: int, flags: int, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_flag=flags)
    monkeypatch.setattr(workers.os, "statvfs", lambda _root: found)
    monkeypatch.setattr(workers.os, "access", lambda *_: True)
    monkeypatch.setattr(workers, "free_memory", lambda: memory)
    assert (workers.temporary_root() == "/dev/shm") == used
