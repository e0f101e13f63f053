"""A BERT encoder's forward pass over the real tokens alone: texts stand end to end, and only attention sees them side by side.

Queries of a batch differ in length, and with padding the longest sets the price of all: on 32 queries of 13 tokens in the mean the
longest has 26. The linear maps, nine tenths of the work, need no padding; attention pads groups of texts of similar length. Our own
code, since the libraries' unpadded attention needs a GPU. The arithmetic is that of `BertModel` in evaluation mode (tested against it);
gradients flow as usual. Where one token stands for the text (pooling cls or last), the last layer is worked out for that token alone:
its other states would be thrown away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_GROUP = 8  # texts whose attention is worked out together, padded to the longest of them


class _Group(NamedTuple):
    """Texts and tokens of a group, the token (of these) for each place of the padded (texts x longest) grid, each token's place, and
    which places are `real` (texts, longest). A place that is not holds the group's first token, which attention does not see."""

    texts: slice
    tokens: slice
    source: Tensor
    place: Tensor
    real: Tensor


class _Layout(NamedTuple):
    """Texts packed from the shortest to the longest: `text` and `position` of each token, lengths of the texts, and groups of them."""

    text: Tensor
    position: Tensor
    lengths: Tensor
    groups: tuple[_Group, ...]


def can_pack(model: Any, device: torch.device) -> bool:
    """Whether `model` is a plain BERT encoder, whose layers are known here, on a processor.

    On a GPU the time of a small encoder is the number of kernels it starts, and every group of texts starts its own: padding is faster.
    """
    plain = type(model).__name__ == "BertModel" and not model.config.is_decoder and not model.config.add_cross_attention
    return plain and device.type == "cpu"


def packed_vectors(model: Any, rows: Sequence[Sequence[int]], pooling: str, device: torch.device) -> Tensor:
    """Pooled states (len(rows), width) float32 of token id rows, zeros for an empty one; `pooling` is mean, cls or last."""
    import torch

    if not all(rows):
        full = [number for number, row in enumerate(rows) if row]
        vectors = torch.zeros(len(rows), model.config.hidden_size, device=device)
        found = packed_vectors(model, [rows[number] for number in full], pooling, device) if full else vectors[:0]
        return vectors.index_copy(0, torch.tensor(full, dtype=torch.long, device=device), found)
    order = np.argsort([len(row) for row in rows], kind="stable")
    packed = [rows[number] for number in order]
    layout = _layout(packed, device)
    ids = torch.from_numpy(np.fromiter(chain.from_iterable(packed), dtype=np.int64, count=len(layout.text))).to(device)
    vectors = _forward(model, ids, layout, pooling)
    return vectors.index_select(0, torch.from_numpy(np.argsort(order)).to(device))


def _forward(model: Any, ids: Tensor, layout: _Layout, pooling: str) -> Tensor:
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
    starts = lengths.cumsum() - lengths
    text = np.repeat(np.arange(len(rows)), lengths)
    parts = (text, np.arange(len(text)) - np.repeat(starts, lengths), lengths)
    tokens, position, sizes = (torch.from_numpy(part).to(device) for part in parts)
    return _Layout(tokens, position, sizes, tuple(_groups(lengths, device)))


def _groups(lengths: NDArray[np.int64], device: torch.device) -> Iterator[_Group]:
    import torch

    first = 0
    for start in range(0, len(lengths), _GROUP):
        some = lengths[start : start + _GROUP]
        real = np.arange(some.max()) < some[:, None]
        place = np.flatnonzero(real)
        source = np.zeros(real.size, np.int64)
        source[place] = np.arange(len(place))
        arrays = (torch.from_numpy(part).to(device) for part in (source, place, real))
        yield _Group(slice(start, start + len(some)), slice(first, first + len(place)), *arrays)
        first += len(place)


def _embed(embeddings: Any, ids: Tensor, position: Tensor) -> Tensor:
    words, places = embeddings.word_embeddings(ids), embeddings.position_embeddings(position)
    states: Tensor = embeddings.LayerNorm(words + embeddings.token_type_embeddings.weight[0] + places)
    return states


def _layer(layer: Any, states: Tensor, layout: _Layout) -> Tensor:
    return _after_attention(layer, _attention(layer.attention.self, states, layout), states)


def _layer_of_one_token(layer: Any, states: Tensor, layout: _Layout, pooling: str) -> Tensor:
    """The layer's states (texts, width) of the first or last token of each text, which attends to all."""
    import torch

    module, ends = layer.attention.self, layout.lengths.cumsum(0)
    own = states[ends - layout.lengths if pooling == "cls" else ends - 1]
    query, joint = module.query(own), _joint((module.key, module.value), states)
    mixed = [_of_one(module, query[group.texts], joint, group) for group in layout.groups]
    return _after_attention(layer, torch.cat(mixed), own)


def _of_one(module: Any, query: Tensor, joint: Tensor, group: _Group) -> Tensor:
    key, value = _by_head(module, joint, group)
    asked = query.view(len(query), 1, module.num_attention_heads, -1).transpose(1, 2)
    return _mix(asked, key, value, group.real[:, None, None, :]).reshape(len(query), -1)


def _after_attention(layer: Any, mixed: Tensor, states: Tensor) -> Tensor:
    states = layer.attention.output.LayerNorm(layer.attention.output.dense(mixed) + states)
    widened = layer.intermediate.intermediate_act_fn(layer.intermediate.dense(states))
    result: Tensor = layer.output.LayerNorm(layer.output.dense(widened) + states)
    return result


def _attention(module: Any, states: Tensor, layout: _Layout) -> Tensor:
    """Attention within each text (tokens, width): the only part that is padded."""
    import torch

    joint = _joint((module.query, module.key, module.value), states)
    return torch.cat([_of_all(module, joint, group) for group in layout.groups])


def _of_all(module: Any, joint: Tensor, group: _Group) -> Tensor:
    query, key, value = _by_head(module, joint, group)
    mixed = _mix(query, key, value, group.real[:, None, None, :])
    return mixed.transpose(1, 2).reshape(group.real.numel(), -1).index_select(0, group.place)


def _joint(maps: Sequence[Any], states: Tensor) -> Tensor:
    """What each map makes of the states, side by side: one product instead of several."""
    import torch
    from torch.nn.functional import linear

    return linear(states, torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps]))


def _by_head(module: Any, joint: Tensor, group: _Group) -> Tensor:
    """A group's part of the joint product, padded: (maps, texts, heads, longest, width of a head)."""
    grid = joint[group.tokens].index_select(0, group.source)
    heads, width = module.num_attention_heads, module.attention_head_size
    return grid.view(*group.real.shape, -1, heads, width).permute(2, 0, 3, 1, 4)


def _mix(query: Tensor, key: Tensor, value: Tensor, real: Tensor) -> Tensor:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if not torch.is_grad_enabled():
        return scaled_dot_product_attention(query, key, value, attn_mask=real)
    # On a CPU the fused attention's backward pass takes 40 % of a training step at query lengths, the plain one's next to nothing.
    scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
    return scores.masked_fill(~real, float("-inf")).softmax(-1).to(value.dtype) @ value


def _mean(states: Tensor, layout: _Layout) -> Tensor:
    sums = states.new_zeros(len(layout.lengths), states.shape[1]).float().index_add(0, layout.text, states.float())
    return sums / layout.lengths[:, None]
