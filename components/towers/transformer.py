"""What becomes of a transformer: which way its attention looks, which layers it keeps, how token states become one vector.

transformers builds the masks of a decoder from `config.is_causal`, and its kernels take `is_causal` of each attention module when no mask
is needed, as in a batch without padding; both are set. A model may heed neither, so what it does is measured: if the first token's state
changes with the last token, the tokens see ahead.

A cut base model is named `<base>@<layers>`: `gemma3-270m@6` keeps the first three and the last three layers. First and last layers, since
those next to the token embeddings and next to the output carry what those in the middle only refine. `gemma3-270m@first6` keeps the first
six: its upper layers turn meaning into the next word, which an embedding does not need (Skean et al. 2025, "Layer by Layer").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from components.errors import ModelError
from components.towers.tokens import pad_batch

if TYPE_CHECKING:
    from torch import Tensor


def pool(states: Tensor, mask: Tensor, how: str) -> Tensor:
    """Pool token states (n, tokens, width) under a right-padded mask (n, tokens) to float32 (n, width).

    `last`: the state of the last real token; `mean`: the mean over real tokens; `cls`: the state of the first token. Zeros for a row
    without a real token, whose states may be anything.
    """
    import torch

    counts = mask.sum(1)
    if how == "last":
        pooled = states[torch.arange(len(states), device=states.device), (counts - 1).clamp(min=0)].float()
    elif how == "cls":
        pooled = states[:, 0].float()
    else:
        weights = mask.unsqueeze(-1).float()
        pooled = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    return pooled.where(counts[:, None] > 0, 0.0)


def normalize(vectors: Tensor) -> Tensor:
    """Scale rows to unit length."""
    from torch.nn.functional import normalize as unit

    return unit(vectors, dim=-1)


def cut(vectors: Tensor, dimension: int) -> Tensor:
    """The first `dimension` columns of unit rows as unit rows; rows of that width are given back as they are."""
    return vectors if vectors.shape[1] == dimension else normalize(vectors[:, :dimension])


# --- Whether the tokens of a model see the tokens after them: switched where the model can do both, and measured in every case.


# Two rows that differ in the last token, and a longer one that makes them carry padding.
_ROWS = ([5, 6, 7, 8], [5, 6, 7, 9])
_LONGER = [5, 6, 7, 8, 9, 6]
# Rounding can differ where experts are chosen by token; attention changes a state by far more.
_TOLERANCE = 1e-3


def set_attention(model: Any, attention: str) -> None:
    """Make `model` attend as asked, where it is a decoder; an encoder is left as it is."""
    if attention != "bidirectional":
        return
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.is_causal = False
        if getattr(module, "is_causal", None) is True:
            module.is_causal = False


def check_attention(model: Any, name: str, attention: str) -> None:
    """Raise ModelError when the tokens of `model` do not see what `attention` ("causal" or "bidirectional") says."""
    try:
        ahead = {_sees_ahead(model, beside) for beside in ([], [_LONGER])}
    except (TypeError, AttributeError, ValueError, LookupError, NotImplementedError) as error:  # as MPT without a mask of its own
        said = str(error).strip().partition("\n")[0][:160] or type(error).__name__
        raise ModelError(
            f"'{name}' cannot be run with towers.attention {attention} ({said}). Set the other kind of attention, or use another model."
        ) from None
    if attention == "causal" and ahead != {False}:
        raise ModelError(
            f"towers.attention is causal, but the tokens of '{name}' see those after them, as an encoder's do. "
            "Set towers.attention to bidirectional."
        )
    if attention == "bidirectional" and ahead != {True}:
        raise ModelError(
            f"towers.attention is bidirectional, but the tokens of '{name}' do not see those after them: its architecture is bound to "
            "one direction. Set towers.attention to causal, or use another model."
        )


def _sees_ahead(model: Any, beside: list[list[int]]) -> bool:
    """Whether the last token changes the state of the first, measured in two batches of one shape, so that nothing else differs."""
    import torch

    with torch.no_grad():
        one, other = (model(**_batch([row, *beside], model.device)).last_hidden_state[0, 0].float() for row in _ROWS)
    return bool((one - other).norm() > _TOLERANCE * one.norm())


def _batch(rows: list[list[int]], device: Any) -> dict[str, Any]:
    return {name: tensor.to(device) for name, tensor in pad_batch(rows, 0).items()}


def measured_attention(model: Any) -> Literal["causal", "bidirectional"]:
    """What the tokens of `model` see, of whatever architecture it is."""
    return "bidirectional" if _sees_ahead(model, [_LONGER]) else "causal"


# --- The layers of a transformer: where a model keeps them, and a model cut down to some of them.


# Where the common architectures keep their list of layers: BERT and its kin, DistilBERT, GPT-2, OPT, decoders and ModernBERT.
STACKS = ("encoder.layer", "transformer.layer", "encoder.layers", "decoder.layers", "h", "layers", "language_model.layers")


def first_and_last(count: int, total: int) -> tuple[int, ...]:
    """Numbers of `count` of `total` layers: the first half, rounded up, and the last half."""
    first = -(-count // 2)
    return (*range(first), *range(total - (count - first), total))


def configured_layers(config: Any, name: str) -> int:
    """Number of layers that a text model's configuration states; raises ModelError when it states none."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int):
        raise ModelError(f"The configuration of '{name}' does not say how many layers it has; name another model, or take it whole.")
    return layers


def position_limit(model: Any) -> int | None:
    """The longest text in tokens that `model` has positions for; None where its configuration states none.

    A table of positions that counts from behind the padding token (RoBERTa and its kin) has fewer places than rows: 512 of 514.
    """
    from torch.nn import Embedding

    stated = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(stated, int) or stated < 1:
        return None
    tables = [m for name, m in model.named_modules() if isinstance(m, Embedding) and m.num_embeddings == stated and "position" in name]
    return min((stated - (0 if t.padding_idx is None else t.padding_idx + 1) for t in tables), default=stated)


def layer_stack(model: Any, name: str) -> tuple[Any, str]:
    """The module that owns the model's list of layers, and the list's name in it; raises ModelError when none is known."""
    from torch.nn import ModuleList

    for path in STACKS:
        owner, (*parents, last) = model, path.split(".")
        for parent in parents:
            owner = getattr(owner, parent, None)
        if isinstance(getattr(owner, last, None), ModuleList):
            return owner, last
    raise ModelError(f"'{name}' keeps its layers under a name other than {', '.join(STACKS)}; take the whole model.")


def layer_count(model: Any, name: str) -> int:
    """Number of layers of a loaded model."""
    owner, attribute = layer_stack(model, name)
    return len(getattr(owner, attribute))


def recompute_layers(model: Any, name: str) -> None:
    """Keep the input of each layer alone for the backward pass, which works the layer out again (activation checkpointing).

    Memory falls to about one layer's, for one more forward pass; the gradients are equal, since the same arithmetic runs twice.
    transformers' own checkpointing does nothing in evaluation mode, in which towers are trained. Raises ModelError for a model whose
    layers are unknown.
    """
    owner, attribute = layer_stack(model, name)
    for layer in getattr(owner, attribute):
        layer.forward = partial(_recomputed, layer.forward, [m for m in layer.modules() if hasattr(m, "_active_adapter")])


def _recomputed(forward: Callable[..., Any], adapted: Sequence[Any], *given: Any, **named: Any) -> Any:
    import torch
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return forward(*given, **named)
    active = [module._active_adapter for module in adapted]

    def worked_out(*given: Any, **named: Any) -> Any:
        # The backward pass of one role may begin when the adapter of the other is active.
        now = [module._active_adapter for module in adapted]
        for module, adapter in zip(adapted, active, strict=True):
            module._active_adapter = adapter
        try:
            return forward(*given, **named)
        finally:
            for module, adapter in zip(adapted, now, strict=True):
                module._active_adapter = adapter

    # No layer draws random numbers in evaluation mode, so their state need not be kept.
    return checkpoint(worked_out, *given, use_reentrant=False, preserve_rng_state=False, **named)


class LowerStates:
    """The states below the first trained layer, kept from the pass of texts without a graph for that with one (see `losses`).

    No weight below that layer is trained, so both passes find the same there: gradients are equal, and the second pass begins at the
    trained layers. Outside `kept` the model is as it was, and so is one whose trained layers ask for more than the states of the last
    layer below them (Gemma 4's take keys and values of earlier ones): that is measured.
    """

    def __init__(self, model: Any, trained: int, name: str) -> None:
        """`trained`: how many layers are, counted from the output."""
        owner, attribute = layer_stack(model, name)
        lower = getattr(owner, attribute)[:-trained]
        self._found: dict[int, Any] | None = None
        self._rows: int | None = None
        for place, layer in enumerate(lower):
            layer.forward = partial(self._forward, layer.forward, place == len(lower) - 1)
        self._suffice = self._measured(model)

    def _measured(self, model: Any) -> bool:
        import torch

        self._suffice, rows, found = True, _ROWS, []
        with self.kept():
            for graph in (False, True):
                with torch.set_grad_enabled(graph), self.pass_of(rows):
                    try:
                        found.append(model(**_batch([*rows], model.device)).last_hidden_state)
                    except (LookupError, AttributeError, TypeError, ValueError, RuntimeError):  # the layers below leave it more than this
                        return False
        return torch.equal(*found)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within the block states are kept; the objects that `pass_of` is given have to live until its end."""
        self._found = {} if self._suffice else None
        try:
            yield
        finally:
            self._found = None

    @contextmanager
    def pass_of(self, rows: Any) -> Iterator[None]:
        """A pass of the model on `rows`, the very object that the other pass is given."""
        import torch

        self._rows = id(rows)
        try:
            yield
        finally:
            if self._found is not None and torch.is_grad_enabled():
                self._found.pop(self._rows, None)
            self._rows = None

    def _forward(self, forward: Callable[..., Any], last: bool, *given: Any, **named: Any) -> Any:
        import torch

        if self._found is None or self._rows is None:
            return forward(*given, **named)
        if torch.is_grad_enabled() and self._rows in self._found:
            return self._found[self._rows]  # what the last of them gave, whichever this is: the next one does not look at it
        found = forward(*given, **named)
        if last and not torch.is_grad_enabled():
            self._found[self._rows] = found
        return found


def keep_layers(model: Any, numbers: Sequence[int], name: str) -> None:
    """Cut `model` down to the layers `numbers`, in that order, its configuration with it."""
    from torch.nn import ModuleList

    owner, attribute = layer_stack(model, name)
    stack = getattr(owner, attribute)
    total = len(stack)
    if list(numbers) == list(range(total)):
        return
    setattr(owner, attribute, ModuleList([stack[i] for i in numbers]))
    for place, layer in enumerate(getattr(owner, attribute)):
        _renumber(layer, place)
    _cut_config(model.config.get_text_config(), numbers, total)
    _require_same_shape(model, name)


def _renumber(layer: Any, place: int) -> None:
    # The number is the layer's place in a cache, and some models look up their kind of attention by it.
    for module in layer.modules():
        for attribute in ("layer_idx", "layer_id"):
            if isinstance(getattr(module, attribute, None), int):
                setattr(module, attribute, place)


def _cut_config(config: Any, numbers: Sequence[int], total: int) -> None:
    """Lists with one entry a layer (the kinds of attention of Gemma 3 and ModernBERT) have to follow the layers that stay."""
    for key, value in list(vars(config).items()):
        if "layer" in key and isinstance(value, (list, tuple)) and len(value) == total:
            setattr(config, key, [value[i] for i in numbers])
    config.num_hidden_layers = len(numbers)


def _require_same_shape(model: Any, name: str) -> None:
    """A saved student is built from its configuration alone: refuse a cut that the configuration cannot express."""
    import torch

    try:
        with torch.device("meta"):
            rebuilt = type(model)(model.config)
    except (AssertionError, ValueError, TypeError, LookupError, RuntimeError) as error:  # as of a list with an entry for each layer
        said = str(error).strip().partition("\n")[0][:160] or type(error).__name__
        raise ModelError(f"'{name}' cannot be cut to some of its layers ({said}). Take the whole model.") from None
    wanted, found = ({k: v.shape for k, v in m.state_dict().items() if "pooler" not in k} for m in (model, rebuilt))
    if wanted != found:
        raise ModelError(f"'{name}' treats its first layer unlike the others, so a cut has to keep it: let the layers begin with 0.")
