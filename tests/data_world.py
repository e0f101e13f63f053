"""A small data folder in the BEIR layout that breaks no contract; tests break it on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SPLITS = {"train": range(120), "dev": range(120, 140), "test": range(140, 260)}


def documents() -> list[Row]:
    """260 documents d0 ... d259."""
    return [{"_id": f"d{n}", "title": f"Entry {n}", "text": f"What entry {n} is about", "metadata": {"n": n}} for n in range(260)]


def queries() -> list[Row]:
    """One query q0 ... q259 for each document."""
    return [{"_id": f"q{n}", "text": f"where is number {n}?"} for n in range(260)]


def qrels(split: str) -> list[str]:
    """Lines of the split's judgements: query n asks for document n."""
    return [f"q{n}\td{n}\t1" for n in SPLITS[split]]


def write_lines(path: Path, lines: list[str]) -> None:
    """Write the lines of a text file, its folder included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write JSON Lines."""
    write_lines(path, [json.dumps(row) for row in rows])


def write_folder(folder: Path) -> Path:
    """The whole data folder."""
    write_rows(folder / "corpus.jsonl", documents())
    write_rows(folder / "queries.jsonl", queries())
    for split in SPLITS:
        write_lines(folder / "qrels" / f"{split}.tsv", ["query-id\tcorpus-id\tscore", *qrels(split)])
    return folder
