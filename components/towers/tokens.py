"""From texts to padded batches: prompt, truncation, end token, length-sorted batches bounded by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from components.towers.contract import EncodingContract

if TYPE_CHECKING:
    import torch


def token_ids(tokenizer: Any, texts: Sequence[str], contract: EncodingContract) -> list[list[int]]:
    """Token ids of each text under the contract, at most `max_length` of them, the end token kept when text is cut."""
    if not texts:
        return []
    if not contract.append_eos:
        return tokenizer([contract.prompt + t for t in texts], truncation=True, max_length=contract.max_length)["input_ids"]
    eos = tokenizer.eos_token_id
    rows = tokenizer([contract.prompt + t for t in texts], truncation=True, max_length=contract.max_length)["input_ids"]
    # Gemma's tokenizer adds no end token and others do; pooling the last token needs exactly one.
    return [[*(row[:-1] if row and row[-1] == eos else row[: contract.max_length - 1]), eos] for row in rows]


def pad_batch(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, torch.Tensor]:
    """Right-padded int64 `input_ids` and `attention_mask`, both (len(rows), longest row).

    Right padding whatever the tokenizer prefers: positions start at 0 and a causal model's real tokens never see the padding.
    """
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def batches_by_tokens(lengths: Sequence[int], tokens_per_batch: int, rows_per_batch: int | None = None) -> list[list[int]]:
    """Row numbers grouped by similar length so that rows x longest <= tokens_per_batch (always at least one row)."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        batch = batches[-1] if batches else None
        full = batch is None or lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch
        if full or (rows_per_batch is not None and batch is not None and len(batch) >= rows_per_batch):
            batches.append([i])
        else:
            batches[-1].append(i)
    return batches
