"""The token vectors that a static student starts from.

A token's first vector is what the encoder makes of a text of that token alone (as model2vec does), not the encoder's input embedding,
which its layers have not read yet. With MiniLM and a head fitted on 4,000 ICD-10-CM queries, the cosine to the teacher on others was
0.789 against 0.782 for input embeddings; vectors scaled down for frequent tokens (Arora, Liang and Ma 2017) gave 0.750, so they are not.
The vectors are trained like all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.distillation.student.encoder import StudentEncoder
from components.distillation.student.heads import ridge
from components.towers.tokens import rows_of, token_ids

if TYPE_CHECKING:
    from torch import Tensor

# Tokens that the encoder reads itself: all of a BERT's; of a decoder with 262,144 those in the texts and the first of the others.
DIRECT_TOKENS = 32_768


def initial_vectors(source: StudentEncoder, rows: Sequence[Sequence[int]]) -> Tensor:
    """Token vectors (vocabulary, width) float32 from the encoder `source`; `rows` are token ids of texts, read first."""
    import torch

    inputs = source.model.get_input_embeddings().weight.detach().float().cpu()
    counts = np.bincount(np.fromiter(chain.from_iterable(rows), dtype=np.int64), minlength=len(inputs))
    direct = torch.from_numpy(np.argsort(counts == 0, kind="stable")[:DIRECT_TOKENS].copy())
    read = torch.from_numpy(_vectors_of_single_tokens(source, direct.tolist()))
    # The rest by the linear map that comes closest to what the encoder does with the tokens it has read.
    table = inputs @ ridge(inputs[direct], read).T if len(direct) < len(inputs) else torch.empty(len(inputs), read.shape[1])
    table[direct] = read
    return table


def _vectors_of_single_tokens(source: StudentEncoder, tokens: Sequence[int]) -> NDArray[np.float32]:
    # Without an end token `token_ids` would give the empty text a token that no other text has.
    rows = (token_ids if source.contract.append_eos else rows_of)(source.tokenizer, ["", "a"], source.contract)
    empty, word = rows
    before = next((i for i, (x, y) in enumerate(zip(empty, word, strict=False)) if x != y), len(empty))
    return source.encode_rows([[*empty[:before], token, *empty[before:]] for token in tokens], progress="token vectors")
