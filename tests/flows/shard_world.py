"""A corpus, and encoders that processes other than the test's own can open and that can be made to fail there."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.data.dataset import content_hash, write_table
from components.errors import ModelError
from components.towers.contract import EncodingContract
from tests.encoders import WORDS, WordEncoder


def write_documents(path: Path, count: int) -> Path:
    """A table of `count` documents d0, d1, ... of two words each."""
    texts = [f"{WORDS[n % len(WORDS)]} {WORDS[n // len(WORDS) % len(WORDS)]}" for n in range(count)]
    rows = [(f"d{n}", "", text, "{}", content_hash(text)) for n, text in enumerate(texts)]
    write_table(pd.DataFrame(rows, columns=["doc_id", "title", "text", "metadata", "content_hash"]), path)
    return path


def _taken(path: Path) -> bool:
    """Whether this process is the one that removed `path`: two workers at their first shards see the same files."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


class Troubled(WordEncoder):
    """Writes down every call, and has `trouble` at each text with the word `cheese`: once for each file `trouble-*` in `folder`."""

    def __init__(self, folder: Path, trouble: str) -> None:
        super().__init__("document")
        self.folder, self.trouble = folder, trouble

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        with (self.folder / "calls").open("a") as calls:
            calls.write(f"{os.getpid()} {len(texts)}\n")
        if any("cheese" in text for text in texts) and any(_taken(path) for path in sorted(self.folder.glob("trouble-*"))):
            self._fail()
        return super().encode(texts, batch_size, progress)

    def _fail(self) -> None:
        if self.trouble == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "sleep":
            time.sleep(3600)
        if self.trouble == "disk":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise ModelError("The model is troubled.")


@dataclass(frozen=True)
class Words:
    """Where to get a `Troubled`."""

    folder: Path
    trouble: str = "none"

    def contract(self) -> tuple[EncodingContract, str]:
        encoder = WordEncoder("document")
        return encoder.contract, encoder.space_id

    def load(self) -> WordEncoder:
        return Troubled(self.folder, self.trouble)

    def calls(self) -> list[tuple[int, int]]:
        """Process and number of texts of each call so far."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [(int(pid), int(count)) for pid, count in (line.split() for line in lines)]


def words(folder: Path, trouble: str = "none", times: int = 0) -> Words:
    """An encoder that has `trouble` (death, sleep, disk or model) the first `times` times."""
    folder.mkdir(parents=True)
    for number in range(times):
        (folder / f"trouble-{number}").touch()
    return Words(folder, trouble)
