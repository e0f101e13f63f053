"""A BERT encoder's forward pass over the real tokens alone: texts stand end to end, and only attention sees them side by side.

Queries of a batch differ in length, and with padding the longest sets the price of all: on 32 queries of 13 tokens in the mean the
longest has 26. The linear maps, nine tenths of the work, need no padding. Our own code, since the libraries' unpadded attention needs a
GPU. The arithmetic is that of `BertModel` in evaluation mode (tested against it); gradients flow as usual. Where one token stands for
the text (pooling cls or last), the last layer is worked out for that token alone: its other states would be thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class _Layout(NamedTuple):
    """Where packed tokens stand: `place` of each in the padded (texts x longest) grid, `text` of each, lengths, and real places."""

    place: Tensor
    text: Tensor
    position: Tensor
    lengths: Tensor
    real: Tensor


def can_pack(model: Any) -> bool:
    """Whether `model` is a plain BERT encoder, whose layers are known here."""
    return type(model).__name__ == "BertModel" and not model.config.is_decoder and not model.config.add_cross_attention


def packed_vectors(model: Any, rows: Sequence[Sequence[int]], pooling: str, device: torch.device) -> Tensor:
    """Pooled states (len(rows), width) float32 of token id rows, no row empty; `pooling` is mean, cls or last."""
    import torch

    layout = _layout(rows, device)
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=len(layout.text))).to(device)
    states = _embed(model.embeddings, ids, layout.position)
    *lower, highest = model.encoder.layer
    for layer in lower:
        states = _layer(layer, states, layout)
    if pooling == "mean":
        return _mean(_layer(highest, states, layout), layout)
    return _layer_of_one_token(highest, states, layout, pooling).float()


def _layout(rows: Sequence[Sequence[int]], device: torch.device) -> _Layout:
    import torch

    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    text = np.repeat(np.arange(len(rows)), lengths)
    position = np.arange(len(text)) - np.repeat(lengths.cumsum() - lengths, lengths)
    longest = int(lengths.max())
    real = np.arange(longest) < lengths[:, None]
    parts = (text * longest + position, text, position, lengths, real)
    return _Layout(*(torch.from_numpy(part).to(device) for part in parts))


def _embed(embeddings: Any, ids: Tensor, position: Tensor) -> Tensor:
    words, places = embeddings.word_embeddings(ids), embeddings.position_embeddings(position)
    states: Tensor = embeddings.LayerNorm(words + embeddings.token_type_embeddings.weight[0] + places)
    return states


def _layer(layer: Any, states: Tensor, layout: _Layout) -> Tensor:
    return _after_attention(layer, _attention(layer.attention.self, states, layout), states)


def _layer_of_one_token(layer: Any, states: Tensor, layout: _Layout, pooling: str) -> Tensor:
    """The layer's states (texts, width) of the first or last token of each text, which attends to all."""
    module, ends = layer.attention.self, layout.lengths.cumsum(0)
    own = states[ends - layout.lengths if pooling == "cls" else ends - 1]
    query = module.query(own).view(len(own), 1, module.num_attention_heads, -1).transpose(1, 2)
    key, value = _by_head(module, (module.key, module.value), states, layout)
    mixed = _mix(query, key, value, layout.real[:, None, None, :])
    return _after_attention(layer, mixed.reshape(len(own), -1), own)


def _after_attention(layer: Any, mixed: Tensor, states: Tensor) -> Tensor:
    states = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + states)
    widened = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states))
    result: Tensor = layer.output.LayerNorm(layer.output.dense(widened) + states)
    return result


def _attention(module: Any, states: Tensor, layout: _Layout) -> Tensor:
    """Attention within each text (tokens, width): the only part that is padded."""
    texts, longest = layout.real.shape
    query, key, value = _by_head(module, (module.query, module.key, module.value), states, layout)
    mixed = _mix(query, key, value, layout.real[:, None, None, :])
    return mixed.transpose(1, 2).reshape(texts * longest, -1)[layout.place]


def _by_head(module: Any, maps: Sequence[Any], states: Tensor, layout: _Layout) -> Tensor:
    """What each map makes of the states, padded: (maps, texts, heads, longest, width of a head)."""
    import torch
    from torch.nn.functional import linear

    joint = linear(states, torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps]))
    texts, longest = layout.real.shape
    grid = joint.new_zeros(texts * longest, joint.shape[1]).index_copy(0, layout.place, joint)
    return grid.view(texts, longest, len(maps), module.num_attention_heads, -1).permute(2, 0, 3, 1, 4)


def _mix(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if not torch.is_grad_enabled() or query.is_cuda:
        return scaled_dot_product_attention(query, key, value, attn_mask=real)
    # On a CPU the fused attention's backward pass takes 40 % of a training step at query lengths, the plain one's next to nothing.
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return scores.masked_fill(~real, float("-inf")).softmax(-1).to(value.dtype) @ value


def _mean(states: Tensor, layout: _Layout) -> Tensor:
    sums = states.new_zeros(len(layout.lengths), states.shape[1]).float().index_add(0, layout.text, states.float())
    return sums / layout.lengths[:, None]
