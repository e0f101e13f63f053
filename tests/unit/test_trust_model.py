"""The trust model names only attacks that are tried: every test of its table exists, and every attack of the suite can be found there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "components" / "promotion" / "README.md"
ATTACKS = ROOT / "tests" / "attacks"
ROW = re.compile(r"^\|.*\| `(test_\w+\.py)::(test_\w+)` \|$")


def rows() -> list[tuple[str, str]]:
    """(file, test) of each row of the table of attacks."""
    table = MODEL.read_text(encoding="utf-8").partition("## Attacks\n")[2]
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    found = [ROW.match(line) for line in lines]
    assert all(found), lines[[bool(match) for match in found].index(False)]
    return [(match[1], match[2]) for match in found if match]


def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_attack_in_the_table_is_a_test() -> None:
    named = rows()
    assert len(named) == len(set(named)) > 30
    assert [(file, test) for file, test in named if test not in _tests_of(ATTACKS / file)] == []


def test_every_file_of_attacks_is_in_the_table() -> None:
    assert {path.name for path in ATTACKS.glob("test_*.py")} == {file for file, _ in rows()}
