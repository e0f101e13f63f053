"""A corpus and an encoder that processes other than the test's own can open, and that can be made to die."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.data.dataset import write_table
from components.data.tables import content_hash
from components.towers.contract import EncodingContract
from tests.encoders import WORDS, WordEncoder


def write_documents(path: Path, count: int) -> Path:
    """A table of `count` documents d0, d1, ... of two words each."""
    texts = [f"{WORDS[n % len(WORDS)]} {WORDS[n // len(WORDS) % len(WORDS)]}" for n in range(count)]
    rows = [(f"d{n}", "", text, "{}", content_hash(text)) for n, text in enumerate(texts)]
    write_table(pd.DataFrame(rows, columns=["doc_id", "title", "text", "metadata", "content_hash"]), path)
    return path


class Mortal(WordEncoder):
    """Kills its own process when it meets a text with the word `deadly`, as often as `lives` has files to take."""

    def __init__(self, deadly: str, deaths: Path) -> None:
        super().__init__("document")
        self.deadly, self.deaths = deadly, deaths

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        for mark in self.deaths.glob("death-*"):
            if any(self.deadly in text for text in texts):
                mark.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts, batch_size, progress)


@dataclass(frozen=True)
class Words:
    """Opens a WordEncoder; with `deaths`, one whose process dies at the word `deadly` for each file death-* in that folder."""

    deaths: str = ""
    deadly: str = "cheese"

    def contract(self) -> tuple[EncodingContract, str]:
        encoder = WordEncoder("document")
        return encoder.contract, encoder.space_id

    def load(self) -> WordEncoder:
        return Mortal(self.deadly, Path(self.deaths)) if self.deaths else WordEncoder("document")
