"""The forms of a student: a transformer, or a table with one vector for each token. Who wants to know what a form does asks it.

A transformer is an encoder, or layers of the trained query tower, whose token states are pooled. The static form is the mean of one vector
a token; it is saved as sentence-transformers' StaticEmbedding. A further form is one more class here.

A BERT encoder's forward pass goes over the real tokens alone: texts stand end to end, and only attention sees them side by side. Queries
of a batch differ in length, and with padding the longest sets the price of all: on 32 queries of 13 tokens in the mean the longest has
26. The linear maps, nine tenths of the work, need no padding; attention pads groups of texts of similar length. Our own code, since the
libraries' unpadded attention needs a GPU. The arithmetic is that of `BertModel` in evaluation mode (tested against it); gradients flow as
usual. Where one token stands for the text (pooling cls or last), the last layer is worked out for that token alone: its other states
would be thrown away.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.artifacts import read_json, write_json
from components.towers.contract import EncodingContract
from components.towers.device import pick_dtype
from components.towers.model_size import state_width
from components.towers.tokens import pad_batch, rows_of, token_ids, words_only
from components.towers.transformer import layer_count, layer_stack, pool, position_limit, settle

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
POOLINGS = {"mean": "mean", "cls": "cls", "last": "lasttoken"}  # our names and sentence-transformers'


class Form(ABC):
    """How a student of one form reads texts, makes vectors, is trained and lies on disk. `model` is what the form itself loads or makes."""

    has_layers: ClassVar[bool]  # of which some can be chosen and pruned

    @abstractmethod
    def layer_count(self, model: Any, name: str) -> int:
        """Transformer layers of the model called `name`."""

    @abstractmethod
    def token_table(self, model: Any) -> Any:
        """The module that holds one vector a token."""

    @abstractmethod
    def longest(self, model: Any) -> int | None:
        """Tokens of the longest text that the model has positions for; None without such a limit."""

    @abstractmethod
    def tokens(self, tokenizer: Any, texts: Sequence[str], contract: EncodingContract) -> list[list[int]]:
        """Token ids of the texts under the contract."""

    @abstractmethod
    def vectors(self, model: Any, rows: Sequence[Sequence[int]], contract: EncodingContract, pad: int, device: torch.device) -> Tensor:
        """One vector (len(rows), width) for each row of token ids, before the head; `pad` is the id that fills a batch."""

    @abstractmethod
    def frozen(self, model: Any, name: str, train_embeddings: bool, trained_layers: int | None) -> Iterator[Parameter]:
        """The parameters that a training leaves as they are."""

    @abstractmethod
    def save(self, model: Any, folder: Path) -> None:
        """Write the model into `folder`, its weights to `WEIGHTS`."""

    @abstractmethod
    def load(self, folder: Path, precision: str) -> Any:
        """The model in `folder`."""

    @abstractmethod
    def modules(self, model: Any, folder: Path, contract: EncodingContract) -> list[Any]:
        """The saved model with its pooling, as modules of sentence-transformers."""

    @abstractmethod
    def limit_length(self, backend: Any, length: int) -> None:
        """Tell the tokenizer that is saved with the model how long a text may be, where nothing else does."""

    @abstractmethod
    def hide_control_tokens(self, folder: Path) -> None:
        """Make control tokens ordinary text in the saved tokenizer, where its reader has no setting for that."""


class TransformerForm(Form):
    """A transformer whose token states are pooled."""

    has_layers = True

    def layer_count(self, model: Any, name: str) -> int:
        return layer_count(model, name)

    def token_table(self, model: Any) -> Any:
        return model.get_input_embeddings()

    def longest(self, model: Any) -> int | None:
        return position_limit(model)

    def tokens(self, tokenizer: Any, texts: Sequence[str], contract: EncodingContract) -> list[list[int]]:
        return token_ids(tokenizer, texts, contract)

    def vectors(self, model: Any, rows: Sequence[Sequence[int]], contract: EncodingContract, pad: int, device: torch.device) -> Tensor:
        if can_pack(model, device):
            return packed_vectors(model, rows, contract.pooling, device)
        batch = {name: values.to(device) for name, values in pad_batch(rows, pad).items()}
        return pool(model(**batch).last_hidden_state, batch["attention_mask"], contract.pooling)

    def frozen(self, model: Any, name: str, train_embeddings: bool, trained_layers: int | None) -> Iterator[Parameter]:
        if not train_embeddings:
            yield from model.get_input_embeddings().parameters()
        if trained_layers is not None and trained_layers < layer_count(model, name):
            owner, attribute = layer_stack(model, name)
            upper = {id(p) for layer in list(getattr(owner, attribute))[-trained_layers:] for p in layer.parameters()}
            yield from (p for p in model.parameters() if id(p) not in upper)

    def save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)

    def load(self, folder: Path, precision: str) -> Any:
        model = _model_class(folder).from_pretrained(folder, dtype=pick_dtype(precision), **_without_pooler(folder))
        settle(model)  # students of before were saved as their makers saved them
        return model

    def modules(self, model: Any, folder: Path, contract: EncodingContract) -> list[Any]:
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sentence_transformer.modules import Pooling

        transformer = Transformer(str(folder), max_seq_length=contract.max_length, model_kwargs=_without_pooler(folder))
        return [transformer, Pooling(state_width(model.config), POOLINGS[contract.pooling])]

    def limit_length(self, backend: Any, length: int) -> None:
        backend.no_truncation()  # the Transformer module keeps the longest text

    def hide_control_tokens(self, folder: Path) -> None:
        pass  # the tokenizer's own setting does


class StaticForm(Form):
    """The mean of one vector a token."""

    has_layers = False

    def layer_count(self, model: Any, name: str) -> int:
        return 0

    def token_table(self, model: Any) -> Any:
        return model["embedding"]

    def longest(self, model: Any) -> int | None:
        return None

    def tokens(self, tokenizer: Any, texts: Sequence[str], contract: EncodingContract) -> list[list[int]]:
        """Without the special tokens, which would be the same in every text; a row may be empty."""
        return rows_of(tokenizer, texts, contract, add_special_tokens=False)

    def vectors(self, model: Any, rows: Sequence[Sequence[int]], contract: EncodingContract, pad: int, device: torch.device) -> Tensor:
        """Means of the rows' token vectors; zeros for an empty row."""
        import torch

        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        ids = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        offsets = np.concatenate([[0], lengths.cumsum()[:-1]])
        vectors: Tensor = model["embedding"](torch.from_numpy(ids).to(device), torch.from_numpy(offsets).to(device))
        return vectors

    def frozen(self, model: Any, name: str, train_embeddings: bool, trained_layers: int | None) -> Iterator[Parameter]:
        return iter(())  # its token vectors are all there is

    def save(self, model: Any, folder: Path) -> None:
        from safetensors.torch import save_file

        save_file({name: p.detach().float().cpu().contiguous() for name, p in model.state_dict().items()}, folder / WEIGHTS)

    def load(self, folder: Path, precision: str) -> Any:
        from safetensors.torch import load_file

        return static_model(load_file(folder / WEIGHTS)["embedding.weight"])

    def modules(self, model: Any, folder: Path, contract: EncodingContract) -> list[Any]:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding

        return [StaticEmbedding.load(str(folder))]

    def limit_length(self, backend: Any, length: int) -> None:
        backend.enable_truncation(length)  # StaticEmbedding has no other place for the longest text

    def hide_control_tokens(self, folder: Path) -> None:
        """StaticEmbedding reads this file alone, and it has no use for control tokens, whose names it would find in texts."""
        write_json(folder / TOKENIZER, words_only(read_json(folder / TOKENIZER)))


FORMS: Mapping[str, Form] = {"transformer": TransformerForm(), "static": StaticForm()}


def static_model(weight: Tensor) -> Any:
    """The table of token vectors (vocabulary, width) as a module, under the name that StaticEmbedding gives it."""
    from torch import nn

    return nn.ModuleDict({"embedding": nn.EmbeddingBag.from_pretrained(weight, freeze=False)})


def _model_class(folder: Path) -> Any:
    import transformers

    return getattr(transformers, read_json(folder / "config.json")["architectures"][0])


def _without_pooler(folder: Path) -> dict[str, Any]:
    """What tells the model class of a saved encoder to make no pooler, whose weights would be random."""
    import inspect

    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(_model_class(folder).__init__).parameters else {}


# --- A BERT encoder over the real tokens alone


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
