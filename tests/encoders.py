"""Encoders for tests whose vectors, and so whose rankings, can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.data.dataset import Dataset, content_hash, document_text
from components.towers.contract import EncodingContract, space_id_of

WORDS = ("apple", "bread", "cheese", "dates", "eggs", "figs", "grape", "honey")


def contract_of(role: Literal["query", "document"], name: str = "words") -> EncodingContract:
    return EncodingContract(
        role=role,
        base_model=name,
        base_digest="0" * 64,
        adapter_digest=None,
        tokenizer_digest="1" * 64,
        pooling="mean",
        normalize=True,
        prompt="",
        append_eos=False,
        max_length=32,
        dimension=len(WORDS) + 1,
    )


class WordEncoder:
    """One dimension a word of WORDS, scaled to unit length; a text without any of them lies on the last axis.

    A query of one word scores 1 with the document of that word alone, sqrt(1/2) with one of two words, 0 with all others.
    """

    def __init__(self, role: Literal["query", "document"] = "query", name: str = "words") -> None:
        self.contract = contract_of(role, name)
        self.space_id = space_id_of(contract_of("document", name))
        self.calls: list[list[str]] = []

    @property
    def texts_seen(self) -> int:
        return sum(len(call) for call in self.calls)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        self.calls.append(list(texts))
        vectors = np.zeros((len(texts), self.contract.dimension), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, WORDS.index(word) if word in WORDS else -1] = 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def dataset_of(documents: dict[str, str], queries: dict[str, str], judgements: Sequence[tuple[str, str, int]]) -> Dataset:
    """A data set whose judgements are all of the split `test`."""
    texts = [(doc_id, "", text, "{}", content_hash(document_text("", text))) for doc_id, text in documents.items()]
    rows = [(*judgement, "test") for judgement in judgements]
    return Dataset(
        documents=pd.DataFrame(texts, columns=["doc_id", "title", "text", "metadata", "content_hash"]),
        queries=pd.DataFrame(list(queries.items()), columns=["query_id", "text"]),
        all_judgements=pd.DataFrame(rows, columns=["query_id", "doc_id", "score", "split"]),
        unlabelled=pd.DataFrame({"query_id": [], "text": []}),
    )
