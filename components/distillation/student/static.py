"""The static form: the mean of one vector a token, no transformer; saved as sentence-transformers' StaticEmbedding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from components.towers.contract import EncodingContract
from components.towers.tokens import rows_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def static_model(weight: Tensor) -> Any:
    """The table of token vectors (vocabulary, width) as a module, under the name that StaticEmbedding gives it."""
    from torch import nn

    return nn.ModuleDict({"embedding": nn.EmbeddingBag.from_pretrained(weight, freeze=False)})


def static_tokens(tokenizer: Any, texts: Sequence[str], contract: EncodingContract) -> list[list[int]]:
    """Token ids without the special tokens, which would be the same in every text; a row may be empty."""
    return rows_of(tokenizer, texts, contract, add_special_tokens=False)


def mean_vectors(model: Any, rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Means of the rows' token vectors (len(rows), width); zeros for an empty row."""
    import torch

    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
    offsets = np.concatenate([[0], lengths.cumsum()[:-1]])
    vectors: Tensor = model["embedding"](torch.from_numpy(ids).to(device), torch.from_numpy(offsets).to(device))
    return vectors
