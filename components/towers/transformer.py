"""What becomes of a transformer: which way its attention looks, which layers it keeps, how token states become one vector.

transformers builds the masks of a decoder from `config.is_causal`, and its kernels take `is_causal` of each attention module when no mask
is needed, as in a batch without padding; both are set. A model may heed neither, so what it does is measured: if the first token's state
changes with the last token, the tokens see ahead.

A cut base model is named `<base>@<layers>`: `gemma3-270m@6` keeps the first three and the last three layers. First and last layers, since
those next to the token embeddings and next to the output carry what those in the middle only refine. `gemma3-270m@first6` keeps the first
six: its upper layers turn meaning into the next word, which an embedding does not need (Skean et al. 2025, "Layer by Layer").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.errors import ModelError
from components.towers import hub
from components.towers.contract import mixed_formats
from components.towers.device import autocast, pick_device
from components.towers.tokens import pad_batch

if TYPE_CHECKING:
    import torch
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


# --- Which models can encode texts, and what one is told before it does.


def require_text_model(whole: Any, name: str, finished: bool = False) -> Any:
    """The part of the configuration `whole` that reads text; raises ModelError, with the reason, for what cannot encode texts here.

    `finished`: of a saved encoder, whose probes say whether this machine's kernels still give its vectors.
    """
    kinds = [str(kind) for kind in getattr(whole, "architectures", None) or []]
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(
            f"'{name}' scores texts (a cross-encoder or classifier, {kinds[0]}) and gives no vectors. Name an encoder or a decoder."
        )
    if getattr(whole, "is_encoder_decoder", False):
        raise ModelError(f"'{name}' ({whole.model_type}) has an encoder and a decoder. Name a model that is one of the two alone.")
    if hasattr(whole, "logit_scale_init_value"):  # CLIP and its kin
        raise ModelError(f"'{name}' ({whole.model_type}) is two models, of texts and of other things. Name an encoder of texts alone.")
    # transformers takes what a model of texts and images says of its text part alone, too.
    quantized = getattr(whole, "quantization_config", None) or getattr(whole.get_text_config(), "quantization_config", None)
    if quantized and not finished:
        how = quantized.get("quant_method") if isinstance(quantized, dict) else getattr(quantized, "quant_method", None)
        raise ModelError(
            f"The weights of '{name}' are quantized ({getattr(how, 'value', how) or 'somehow'}), so its vectors would hang on a machine's "
            "kernels. Name the model that it was made from."
        )
    config = whole.get_text_config()
    if not isinstance(getattr(config, "vocab_size", None), int):
        raise ModelError(f"'{name}' ({whole.model_type}) does not read text alone. Name a language model or a text encoder.")
    return config


# What stands beside or in the place of a quantized weight: without a word in config.json transformers leaves the scales out.
_OF_QUANTIZED = re.compile(r"(weight_scale|scale_inv|zero_point|qweight|qzeros|weight_packed|absmax|\.SCB)")


def require_plain_weights(unused: Iterable[str], name: str, folder: str) -> None:
    """Raise ModelError where the weights in `folder` are quantized, and its configuration does not say so.

    Weights that were left `unused` show it, and whole numbers in the place of weights, which transformers takes for the weights themselves.
    """
    # As it stands there: that of a loaded model no longer says so once its weights were made plain again.
    said = hub.read_own(Path(folder) / "config.json")
    if any(isinstance(part, dict) and part.get("quantization_config") is not None for part in (said, said.get("text_config"))):
        return
    signs = [f"they come with {scale}" for scale in sorted(filter(_OF_QUANTIZED.search, unused))]
    signs = signs or [f"{weight} holds whole numbers" for weight in hub.whole_numbers(Path(folder))]
    if signs:
        raise ModelError(
            f"The weights of '{name}' are quantized ({signs[0]}), which its config.json does not say. Name the model that it was made from."
        )


# --- Whether the tokens of a model see the tokens after them: switched where the model can do both, and measured in every case.


# Two rows that differ in the last token, and a longer one that makes them carry padding.
_ROWS = ([5, 6, 7, 8], [5, 6, 7, 9])
_LONGER = [5, 6, 7, 8, 9, 6]
# Rounding can differ where experts are chosen by token; attention changes a state by far more.
_TOLERANCE = 1e-3
_COMPANY = {4: 1e-4, 2: 0.15}  # what a state may differ by beside a longer text, by bytes of a number; Gemma's rounds by .04 in half
_BESIDE_LEVEL = 5  # times what it differs by beside a text of its own length, which no padding comes with
# What a model's own code raises where it was not made for texts alone.
FAULTS = (TypeError, AttributeError, ValueError, LookupError, RuntimeError, AssertionError, ImportError)


def settle(model: Any) -> None:
    """Let `model` give what is asked of it here: a saved configuration may want tuples, all layers' states or a cache of keys.

    BigBird's sparse attention would be switched off by the first short text, and stay off.
    """
    for config in (model.config, model.config.get_text_config()):
        config.use_cache = config.output_hidden_states = config.output_attentions = False
        config.return_dict = True
        if getattr(config, "attention_type", None) == "block_sparse":
            model.set_attention_type("original_full")
            config.attention_type = "original_full"


def in_one_format(model: Any, dtype: torch.dtype) -> None:
    """Give the weights of a quantized model the format that was asked for, where they were made plain again.

    transformers leaves them in that of their scales (FP8's are float32) beside others. A GPU that calculates in FP8 keeps what it has.
    """
    import torch

    weights = list(model.parameters())
    if {weight.dtype for weight in weights} <= {torch.float32, torch.bfloat16, torch.float16}:
        for weight in weights:
            weight.data = weight.data.to(dtype)


# Where models of texts and images keep the part that reads texts; SmolVLM and its kin under the latter name.
_TEXT_PARTS = ("language_model", "text_model")


def text_part(model: Any) -> Any:
    """The part of a model of texts and images that reads texts; any other model as it is."""
    name = text_part_name(model)
    return getattr(model, name) if name else model


def text_part_name(model: Any) -> str:
    """What a model of texts and images calls the part that reads texts; empty for any other model."""
    if model.config.get_text_config() is model.config:
        return ""
    return next((name for name in _TEXT_PARTS if getattr(model, name, None) is not None), "")


def require_states(model: Any, name: str, width: int) -> None:
    """Raise ModelError for a model whose states would make wrong vectors: that fails on texts, or reads the padding of a batch.

    `width`: of a state by the configuration. A text is read alone, and beside a longer one: what mixes neighbours (convolutions, a Fourier
    transform) or draws hashes by chance gives it other states there, so that its vector would hang on the batch that it came in. What
    rounding does to it beside a text of its own length, experts that are chosen by token above all, is no fault of the padding.
    """
    import torch

    row = _ROWS[0]
    try:
        with torch.no_grad():
            batches = (_batch(rows, model.device) for rows in ([row], [row], [row, _ROWS[1]], [row, [*_LONGER, *_LONGER]]))
            alone, *others = (model(**batch).last_hidden_state[0, : len(row)].float() for batch in batches)
    except FAULTS as error:
        raise mixed_formats(name, error) or ModelError(
            f"'{name}' cannot be run on texts alone ({_said(error)}). Use another model."
        ) from None
    if alone.shape[1] != width:
        raise ModelError(f"A state of '{name}' has {alone.shape[1]} numbers, and its configuration says {width}. Use another model.")
    if not alone.isfinite().all():
        raise ModelError(f"'{name}' gives values that are not finite for a short text. Fetch the weights again, or use another model.")
    again, level, padded = (float(((alone - other).norm(dim=1) / alone.norm(dim=1)).mean()) for other in others)
    tolerance = _COMPANY[min(4, model.dtype.itemsize)]
    # Asked so that what is no number is refused. What differs when it is read again draws by chance, and has no measure in `level`.
    if not (again <= tolerance and padded <= max(tolerance, _BESIDE_LEVEL * level)):
        raise ModelError(
            f"'{name}' gives a text other states beside a longer one: it reads the padding of a batch, so that a text would have another "
            "vector in every company. Use another model."
        )


def require_format(model: Any, name: str, dtype: torch.dtype) -> None:
    """Raise ModelError for a model whose code fails under autocast to `dtype`, in which it is to be trained (DeBERTa's first version).

    A model that lies on the processor and will be trained on a GPU is not tried: its kernels are others there.
    """
    import torch

    if pick_device().type != model.device.type:
        return
    try:
        with torch.no_grad(), autocast(model.device, dtype):
            model(**_batch([*_ROWS, _LONGER], model.device))
    except FAULTS as error:
        said = f"'{name}' cannot be trained in {str(dtype).removeprefix('torch.')} ({_said(error)}). Set precision to float32."
        raise mixed_formats(name, error) or ModelError(said) from None


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Class validation error") else 0].strip()[:160]  # the reason stands below the check's name


def set_attention(model: Any, attention: str) -> None:
    """Make `model` attend as asked, where it is a decoder; an encoder, and a decoder that was made to look both ways, stay as they are.

    The latter (EmbeddingGemma) has windows of its own for both directions, which this switch would change.
    """
    if attention != "bidirectional" or getattr(model.config.get_text_config(), "use_bidirectional_attention", None) in (True, "all"):
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
    except FAULTS as error:  # as MPT without a mask of its own
        raise mixed_formats(name, error) or ModelError(
            f"'{name}' cannot be run with towers.attention {attention} ({_said(error)}). Set the other kind of attention, or use another "
            "model."
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
STACKS = (
    "encoder.layer", "transformer.layer", "encoder.layers", "decoder.layers", "h", "layers", *(f"{part}.layers" for part in _TEXT_PARTS),
)  # fmt: skip


def first_and_last(count: int, total: int) -> tuple[int, ...]:
    """Numbers of `count` of `total` layers: the first half, rounded up, and the last half."""
    first = -(-count // 2)
    return (*range(first), *range(total - (count - first), total))


def configured_layers(config: Any, name: str) -> int:
    """Number of layers that a text model's configuration states; raises ModelError when it states none."""
    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1:
        raise ModelError(f"The configuration of '{name}' does not say how many layers it has; name another model, or take it whole.")
    return layers


def position_limit(model: Any) -> int | None:
    """The longest text in tokens that `model` has positions for; None where its configuration states none.

    A table of positions that counts from behind the padding token (RoBERTa and its kin) has fewer places than rows: 512 of 514. Rotary
    positions of Phi's long form turn by other angles for every text of a batch that holds one beyond the length of the short form.
    """
    config = model.config.get_text_config()
    named = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))  # MPT has biases for the latter
    stated = next((number for number in named if isinstance(number, int) and number >= 1), None)
    if stated is None:
        return None
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and rope.get("rope_type") == "longrope":
        short = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
        return min(stated, short) if isinstance(short, int) else stated
    named_so = [module for name, module in model.named_modules() if "position" in name]  # not all are torch's Embedding, as I-BERT's
    tables = [m for m in named_so if hasattr(m, "padding_idx") and getattr(getattr(m, "weight", None), "shape", ())[:1] == (stated,)]
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
    raise ModelError(
        f"'{name}' keeps its layers under a name other than {', '.join(STACKS)}, so they are not cut, trained in part or given adapters. "
        "Take it whole, as a teacher with towers.training full or none, or take another model."
    )


def keeps_layers(model: Any) -> bool:
    """Whether the model keeps its layers where `layer_stack` finds them."""
    try:
        layer_stack(model, "")
    except ModelError:
        return False
    return True


def layer_count(model: Any, name: str) -> int:
    """Number of layers of a loaded model, as its configuration states it where the list of layers is not known (ALBERT, XLNet)."""
    try:
        owner, attribute = layer_stack(model, name)
    except ModelError:
        return configured_layers(model.config.get_text_config(), name)
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


# Entries of a configuration that name layers by their numbers; lists with one entry a layer are told by their length.
_NUMBERED = ("attn_layer_indices", "mlp_only_layers", "moe_layers", "hybrid_layer_ids", "full_attn_idxs")
_OF_LAYERS = re.compile(r"layer|block|attention_window|intermediate_size|sparsity_pattern")
_PLACE = re.compile(r"(layer|block)_?(idx|id|index|number)")


def keep_layers(model: Any, numbers: Sequence[int], name: str, finished: bool = False) -> None:
    """Cut `model` down to the layers `numbers`, in that order, and its configuration. Raises ModelError for a cut that it cannot say.

    `finished`: the cut is that of a saved encoder, which its probes guard; what would be refused today still has to open.
    """
    from torch.nn import ModuleList

    total = layer_count(model, name)
    if list(numbers) == list(range(total)):
        return
    owner, attribute = layer_stack(model, name)
    if not finished and getattr(model.config.get_text_config(), "num_kv_shared_layers", False):  # Gemma 3n and 4
        raise ModelError(f"'{name}' has upper layers that take keys and values of lower ones, so that none can be cut. Take it whole.")
    stack = getattr(owner, attribute)
    setattr(owner, attribute, ModuleList([stack[i] for i in numbers]))
    for place, layer in enumerate(getattr(owner, attribute)):
        _renumber(layer, place)
    _cut_config(model.config.get_text_config(), numbers, total)
    if not finished:
        _require_same(model, numbers, name)


def _renumber(layer: Any, place: int) -> None:
    # The number is the layer's place in a cache, and some models look up their kind of attention by it.
    for module in layer.modules():
        for attribute, value in list(vars(module).items()):
            if _PLACE.fullmatch(attribute) and type(value) is int:
                setattr(module, attribute, place)


def _cut_config(config: Any, numbers: Sequence[int], total: int) -> None:
    """What a configuration says of single layers has to follow those that stay: kinds of attention, windows, which have experts."""
    for key, value in list(vars(config).items()):
        if key in _NUMBERED and isinstance(value, (list, tuple)):
            setattr(config, key, type(value)(place for place, number in enumerate(numbers) if number in value))
        elif isinstance(value, (list, tuple)) and len(value) == total and _OF_LAYERS.search(key):
            setattr(config, key, type(value)(value[i] for i in numbers))
    if isinstance(dense := getattr(config, "first_k_dense_replace", None), int):  # DeepSeek and its kin
        config.first_k_dense_replace = sum(number < dense for number in numbers)
    config.num_hidden_layers = len(numbers)


def _require_same(model: Any, numbers: Sequence[int], name: str) -> None:
    """A saved student is built from its configuration alone: refuse a cut that would be another model then, in shape or in what it does."""
    import torch
    from huggingface_hub.errors import StrictDataclassError

    try:
        with torch.device("meta"):
            rebuilt = type(model)(type(model.config).from_dict(model.config.to_dict()))
    except (*FAULTS, StrictDataclassError) as error:  # as of a list with an entry for each layer
        raise ModelError(f"'{name}' cannot be cut to some of its layers ({_said(error)}). Take the whole model.") from None
    wanted, found = ({k: v.shape for k, v in m.state_dict().items() if "pooler" not in k} for m in (model, rebuilt))
    if wanted != found:
        if numbers[0] != 0:
            raise ModelError(f"'{name}' treats its first layer unlike the others, so a cut has to keep it: let the layers begin with 0.")
        raise ModelError(f"'{name}' has layers of several kinds, and its configuration cannot say which of them a cut has. Take it whole.")
    kept, read = _settings(model, name), _settings(rebuilt, name)
    if other := sorted(key for key in kept.keys() & read.keys() if kept[key] != read[key]):
        raise ModelError(
            f"'{name}' treats a layer by its place among all of them ({other[0]}), so that one which is cut would be another model once it "
            "is saved. Take it whole."
        )


def _settings(model: Any, name: str) -> Mapping[str, Any]:
    """What the layers were told when they were made, by path and name; not how attention looks, which `set_attention` changes."""
    told = (bool, int, float, str)
    owner, attribute = layer_stack(model, name)
    return {
        f"layer {place}: {path}.{key}": "nan" if value != value else value  # which would differ from itself
        for place, layer in enumerate(getattr(owner, attribute))
        for path, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, told) and not key.startswith("_") and key not in ("training", "is_causal", "gradient_checkpointing")
    }
