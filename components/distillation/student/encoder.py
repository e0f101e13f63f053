"""The student as a text encoder: tokens, an encoder of any form, and the head into the teacher's space.

A BERT encoder's forward pass goes over the real tokens alone: texts stand end to end, and only attention sees them side by side. The
static form is the mean of one vector a token, no transformer; it is saved as sentence-transformers' StaticEmbedding.

A two-layer head starts as the linear one exactly, not from noise: GELU(x) - GELU(-x) = x, so a map B A equals [B, -B] GELU([A; -A]). What
is left of the hidden layer starts at random with no say in the output.

Queries of a batch differ in length, and with padding the longest sets the price of all: on 32 queries of 13 tokens in the mean the
longest has 26. The linear maps, nine tenths of the work, need no padding; attention pads groups of texts of similar length. Our own code,
since the libraries' unpadded attention needs a GPU. The arithmetic is that of `BertModel` in evaluation mode (tested against it);
gradients flow as usual. Where one token stands for the text (pooling cls or last), the last layer is worked out for that token alone: its
other states would be thrown away.

Two forms: a transformer (an encoder, or layers of the trained query tower) whose token states are pooled, and a static one, the mean of
one vector a token. `project` is the one door from rows of token ids to vectors, in training and in inference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.progress import Progress, counting
from components.towers.contract import EncodingContract
from components.towers.device import pick_device
from components.towers.tokens import batches_by_tokens, pad_batch, rows_of, token_ids
from components.towers.transformer import layer_count, layer_stack, pool

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter


RIDGE = 1e-3  # share of the mean energy of a feature


def ridge(features: Tensor, targets: Tensor) -> Tensor:
    """The linear map (outputs, inputs) float32 from rows of `features` (n, inputs) to `targets` (n, outputs), by ridge regression."""
    import torch

    x, y = features.double(), targets.double()
    gram = x.T @ x
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram + penalty, x.T @ y).T.float().contiguous()


def new_head(weight: Tensor, features: Tensor, config: DistillationConfig) -> Any:
    """The head that the configuration asks for, starting as the fitted map `weight` (dimension, width) on `features` (n, width)."""
    return linear_head(weight) if config.head == "linear" else two_layer_head(weight, features, config.head_width)


def linear_head(weight: Tensor) -> Any:
    """A linear map without bias with the given weight (dimension, width)."""
    from torch import nn

    head = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    head[0].weight.data = weight.clone()
    return head


def two_layer_head(weight: Tensor, features: Tensor, hidden: int) -> Any:
    """Linear, GELU, linear with `hidden` units between, equal at the start to the map `weight` (dimension, width).

    `features` (n, width) give the scale at which the hidden units work: a standard deviation of 1, where GELU bends. With fewer than
    2 * rank units the start is the best map of the rank that fits (Eckart and Young), not `weight` itself.
    """
    import torch
    from torch import nn

    first, second = nn.Linear(weight.shape[1], hidden), nn.Linear(hidden, weight.shape[0], bias=False)
    left, singular, right = torch.linalg.svd(weight.double(), full_matrices=False)
    rank = min(hidden // 2, len(singular))
    spread = (features.double() @ right[:rank].T).std(0)
    # Directions in which the features hardly vary would get weights of any size, which the first steps would blow up.
    scale = spread.clamp(min=1e-2 * spread.max())
    inner, outer = right[:rank] / scale[:, None], left[:, :rank] * (singular[:rank] * scale)
    with torch.no_grad():
        first.bias.zero_()
        first.weight[: 2 * rank] = torch.cat([inner, -inner]).float()
        second.weight.zero_()
        second.weight[:, : 2 * rank] = torch.cat([outer, -outer], dim=1).float()
    return nn.Sequential(first, nn.GELU(), second)


# --- A BERT encoder's forward pass over the real tokens alone: texts stand end to end, and only attention sees them side by side.


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


# --- The static form: the mean of one vector a token, no transformer; saved as sentence-transformers' StaticEmbedding.


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


# --- The student as a text encoder: tokens, an encoder of any form, and the head into the teacher's space.


TOKENS_PER_BATCH = 4096


class StudentEncoder:
    """A student for inference and training (see `components.towers.contract.TextEncoder`).

    `model` is a transformer, or the token table of `static_model`; `head` a sequence of layers, or None for the bare encoder.
    """

    def __init__(self, model: Any, tokenizer: Any, head: Any | None, contract: EncodingContract, space_id: str) -> None:
        self.contract = contract
        self.space_id = space_id
        self.device = pick_device()
        self.model = model.eval().to(self.device)
        self.head = head.to(self.device) if head is not None else None
        self.tokenizer = tokenizer

    @property
    def is_static(self) -> bool:
        """Whether the student is a table of token vectors."""
        return self.contract.form == "static"

    @property
    def layer_count(self) -> int:
        """Number of transformer layers; 0 for a static student."""
        return 0 if self.is_static else layer_count(self.model, self.contract.base_model)

    @property
    def token_table(self) -> Any:
        """The module that holds one vector a token."""
        return self.model["embedding"] if self.is_static else self.model.get_input_embeddings()

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids under the contract."""
        return (static_tokens if self.is_static else token_ids)(self.tokenizer, texts, self.contract)

    def project(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Vectors (len(rows), dimension) before normalisation, with a graph where gradients are on; without a head (len(rows), width)."""
        pooled = mean_vectors(self.model, rows, self.device) if self.is_static else self._pooled(rows)
        return pooled if self.head is None else self.head(pooled)

    def _pooled(self, rows: Sequence[Sequence[int]]) -> Tensor:
        if can_pack(self.model, self.device):
            return packed_vectors(self.model, rows, self.contract.pooling, self.device)
        batch = {k: v.to(self.device) for k, v in pad_batch(rows, self.tokenizer.pad_token_id or 0).items()}
        return pool(self.model(**batch).last_hidden_state, batch["attention_mask"], self.contract.pooling)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`."""
        vectors = self.features(texts, batch_size, progress)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)

    def features(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Vectors before normalisation, float32 (len(texts), dimension); of the encoder's own width where there is no head."""
        return self.encode_rows(self.tokens(texts), batch_size, progress)

    def encode_rows(self, rows: Sequence[Sequence[int]], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """As `features`, from rows of token ids, in batches of similar length."""
        import torch

        vectors = np.empty((len(rows), self.contract.dimension), dtype=np.float32)
        with torch.inference_mode(), counting(progress, len(rows), "text") as done:
            for batch in batches_by_tokens([len(r) for r in rows], TOKENS_PER_BATCH, batch_size):
                vectors[batch] = self.project([rows[i] for i in batch]).float().cpu().numpy()
                done(len(batch))
        return vectors

    def parameters(self, train_embeddings: bool, trained_layers: int | None = None) -> list[Parameter]:
        """The parameters to train, in a fixed order; the others are frozen, so that no gradient is computed for them.

        A transformer's input embeddings are trained only if `train_embeddings`; a static student's token vectors always are. With
        `trained_layers` only that many last layers and the head are: no gradient is computed below them.
        """
        embeddings = () if train_embeddings or self.is_static else self.model.get_input_embeddings().parameters()
        frozen = {id(parameter) for parameter in embeddings}
        if trained_layers is not None and trained_layers < self.layer_count:
            owner, attribute = layer_stack(self.model, self.contract.base_model)
            upper = {id(p) for layer in list(getattr(owner, attribute))[-trained_layers:] for p in layer.parameters()}
            frozen |= {id(p) for p in self.model.parameters() if id(p) not in upper}
        for parameter in self._named().values():
            parameter.requires_grad_(id(parameter) not in frozen)
        return [p for p in self._named().values() if p.requires_grad]

    def state(self) -> dict[str, Tensor]:
        """Copies of the weights that are trained, by name. What `parameters` froze is not among them: it never changes."""
        return {name: p.detach().clone() for name, p in self._named().items() if p.requires_grad}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back weights given by `state()` of a student with as many layers."""
        parameters = self._named()
        for name, value in state.items():
            parameters[name].data.copy_(value)

    def _named(self) -> dict[str, Parameter]:
        parts = {"model": self.model, "head": self.head}
        return {f"{part}/{name}": p for part, module in parts.items() if module is not None for name, p in module.named_parameters()}
