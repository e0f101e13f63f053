"""A trained tower as a text encoder; texts that begin alike go through a causal model together, each common beginning once.

A token's state depends there on what stands before it alone, so texts with the same first tokens (a prompt, a catalogue's entries, titles
of one family) share those states exactly. The tokens of a bundle of texts form a tree; attention lets each see its ancestors, at the
position that it has in its own text. The same idea serves candidate drafts in tree attention (Miao et al., SpecInfer, 2024) and prompts
in vLLM's prefix cache. Queries of a few words behind an instruction of twenty tokens cost a third.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import digest_of, file_sha256
from components.errors import ArtifactError, ModelError
from components.progress import Progress, counting
from components.settings import models_folder
from components.towers import hub
from components.towers.base_models import BaseModel, is_on_hub, resolve_base
from components.towers.config import WITHOUT_WEIGHTS
from components.towers.contract import (
    COMPANION,
    EncodingContract,
    TextEncoder,
    identity_of,
    is_tokenizer_of,
    load_contract,
    require_finite,
)
from components.towers.device import pick_device
from components.towers.model_size import state_width
from components.towers.tokens import batches_by_tokens, pad_batch, token_ids
from components.towers.trained.endpoint import load_endpoint
from components.towers.trained.published import asked_attention, head_digest, is_published, load_head, published_head
from components.towers.trained.stored import load_stored
from components.towers.transformer import FAULTS, pool
from components.towers.two_towers import ADAPTER, WEIGHTS, adapter_digest, finished, full_digest, load_decoder, pooled

if TYPE_CHECKING:
    from torch import Tensor


NODES = 128  # of a bundle; attention is quadratic in them, and a larger one saves no more
LONGEST = 512  # tokens of a text; the mask of a tree is quadratic in its longest
WORTH = 0.9  # share of the tokens that have to be left, else the plain way is as fast
# Rows that begin alike, so that the last of them stands far from its place in the tree, and what their states may differ by: rounding,
# not what a wrong neighbour or place would change. The tree is as large as one can be: a window that goes by places in it shows (GPT-Neo).
_ROWS = tuple([5, 6, *range(first, first + 5)] for first in range(7, 32))
_TOLERANCE, _COARSE_TOLERANCE = 1e-3, 0.15  # the latter in half precision, where Gemma's states differ by .04 by rounding, .45 by a place


@dataclass
class Bundle:
    """A tree of tokens: id, depth and parent (-1 for none) of each node, and number and last node of each text in it."""

    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def seen(self) -> NDArray[np.bool_]:
        """Which nodes each node sees: itself and its ancestors, bool (nodes, nodes)."""
        seen = np.eye(len(self.ids), dtype=bool)
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] |= seen[parent]
        return seen


def bundles_of(rows: Sequence[Sequence[int]], nodes: int = NODES) -> list[Bundle]:
    """All rows as trees of at most `nodes` tokens. A longer row is a tree of its own; no tree is empty."""
    bundles: list[Bundle] = []
    path: list[int] = []
    for number, common in common_lengths(rows):
        row = rows[number]
        if not bundles or len(bundles[-1].ids) + len(row) - common > nodes:
            bundles.append(Bundle())
            common = 0
        bundle = bundles[-1]
        del path[common:]
        for depth in range(common, len(row)):
            bundle.parents.append(path[-1] if path else -1)
            bundle.depths.append(depth)
            path.append(len(bundle.ids))
            bundle.ids.append(row[depth])
        bundle.texts.append(number)
        bundle.ends.append(path[-1])
    return bundles


def common_lengths(rows: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Row numbers, sorted by the rows' tokens; with each, how many leading tokens it shares with the row before it."""
    last: Sequence[int] = ()
    for number in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        yield number, _common(last, rows[number])
        last = rows[number]


def worth_sharing(rows: Sequence[Sequence[int]], bundles: Sequence[Bundle]) -> bool:
    """Whether enough tokens are saved."""
    return sum(len(bundle.ids) for bundle in bundles) <= WORTH * sum(map(len, rows))


def longest_shared(model: Any) -> int:
    """The longest text in tokens that may stand in a tree: a mask of our own would let layers see further back than their window."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    return min(LONGEST, window) if isinstance(window, int) else LONGEST


def can_share(model: Any) -> bool:
    """Whether `model` gives the same states for a tree of tokens as for each text alone.

    Measured, as architectures differ in the masks and positions that they heed; one that fails in any way is encoded the plain way.
    """
    import torch

    if "position_ids" not in signature(model.forward).parameters:
        return False
    if any(isinstance(module, torch.nn.Conv1d) for module in model.modules()):  # what lies beside a token in a tree is not before it
        return False

    tolerance = _TOLERANCE if model.dtype in (torch.float32, torch.float64) else _COARSE_TOLERANCE
    try:
        with torch.inference_mode():
            batch = {name: tensor.to(model.device) for name, tensor in pad_batch(_ROWS, 0).items()}
            alone = pool(model(**batch).last_hidden_state, batch["attention_mask"], "last")
            bundles = bundles_of(_ROWS)
            shared = pooled_bundles(model, bundles, "last", 0)[np.argsort(numbers_of(bundles))]
    except FAULTS:
        return False
    return bool(((alone - shared).norm(dim=1) / alone.norm(dim=1)).mean() <= tolerance)


def numbers_of(bundles: Sequence[Bundle]) -> list[int]:
    """The numbers of the texts in these bundles, in the order in which `pooled_bundles` gives their states."""
    return [number for bundle in bundles for number in bundle.texts]


def pooled_bundles(model: Any, bundles: Sequence[Bundle], pooling: str, pad_id: int) -> Tensor:
    """Pooled states (texts, width) float32 of a batch of bundles, one bundle after the other."""
    import torch

    device, nodes = model.device, max(len(bundle.ids) for bundle in bundles)
    batch = pad_batch([bundle.ids for bundle in bundles], pad_id)
    depths = pad_batch([bundle.depths for bundle in bundles], 0)["input_ids"]
    seen = np.broadcast_to(np.eye(nodes, dtype=bool), (len(bundles), nodes, nodes)).copy()  # padding sees itself: no row without any
    for own, bundle in zip(seen, bundles, strict=True):
        own[: len(bundle.ids), : len(bundle.ids)] = bundle.seen()
    mask = torch.zeros(len(bundles), 1, nodes, nodes, dtype=model.dtype)
    mask.masked_fill_(~torch.from_numpy(seen)[:, None], torch.finfo(model.dtype).min)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": depths}
    states = model(**{name: tensor.to(device) for name, tensor in inputs.items()}).last_hidden_state
    weights = (_weights(bundle, own, pooling) for bundle, own in zip(bundles, seen, strict=True))
    return torch.cat([torch.from_numpy(own).to(device) @ tokens.float() for own, tokens in zip(weights, states, strict=True)])


def _weights(bundle: Bundle, seen: NDArray[np.bool_], pooling: str) -> NDArray[np.float32]:
    """What each node counts in each text's vector, float32 (texts, nodes)."""
    ends = np.asarray(bundle.ends)
    if pooling == "mean":
        return (seen[ends] / (np.asarray(bundle.depths)[ends] + 1)[:, None]).astype(np.float32)
    weights = np.zeros((len(ends), seen.shape[1]), np.float32)
    # The first of a text's nodes is its only ancestor without a parent, and stands before all others in the tree.
    weights[np.arange(len(ends)), seen[ends].argmax(1) if pooling == "cls" else ends] = 1.0
    return weights


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of equal first tokens."""
    for place, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return place
    return min(len(one), len(other))


# --- A tower as a text encoder: base model with the adapter of one role merged for speed, the fully trained model, or a published one.


TOKENS_PER_BATCH = 2048
MAP = "space_map.npy"  # float32 (width behind the pooling, dimension)


class TowerEncoder:
    """A query or document tower for inference (see `components.towers.contract.TextEncoder`)."""

    def __init__(self, model: Any, tokenizer: Any, contract: EncodingContract, space_id: str, head: Any = None) -> None:
        self.contract = contract
        self.space_id = space_id
        self.tokens_per_batch = TOKENS_PER_BATCH
        self._device = pick_device()
        self._model = model.to(self._device).eval()
        self._head = None if head is None else head.to(self._device).eval()
        self._tokenizer = tokenizer

    @property
    def model(self) -> Any:
        """The transformer with all that was trained in its weights, for a student that takes layers of it."""
        return self._model

    @property
    def head(self) -> Any:
        """The maps behind the pooling of a published model, each linear map with its activation; None where there are none."""
        return self._head

    @property
    def width(self) -> int:
        """Dimensions behind the pooling and the maps, before they are cut to the contract's."""
        widths = [layer.out_features for layer in self._head or () if hasattr(layer, "out_features")]
        return int(widths[-1] if widths else state_width(self._model.config))

    @property
    def tokenizer(self) -> Any:
        """The transformer's tokenizer, which other encoders may use as well: to change it, copy it."""
        return self._tokenizer

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids under the contract."""
        return token_ids(self._tokenizer, texts, self.contract)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`; encoded in batches of similar length.

        Where enough texts begin alike and the model allows it, common beginnings are worked out once (`components.towers.encoder`). Raises
        ModelError for values that are not finite.
        """
        import torch

        rows = self.tokens(texts)
        vectors = np.empty((len(rows), self.contract.dimension), dtype=np.float32)
        with torch.inference_mode(), counting(progress, len(rows), "text") as done:
            for numbers, found in self._encoded(rows, batch_size):
                vectors[numbers] = found.cpu().numpy()
                done(len(numbers))
        return require_finite(vectors, self.contract.base_model)

    def worked_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that go through the model for `encode(texts)`, padding included."""
        rows = self.tokens(texts)
        lengths = [len(one.ids) for one in bundles] if (bundles := self._bundles(rows)) else [len(row) for row in rows]
        return sum(lengths[batch[0]] * len(batch) for batch in batches_by_tokens(lengths, self.tokens_per_batch))

    def _encoded(self, rows: Sequence[Sequence[int]], batch_size: int | None) -> Iterator[tuple[list[int], Tensor]]:
        """Numbers of rows and their vectors, batch by batch."""
        if batch_size is None and (bundles := self._bundles(rows)):
            for batch in batches_by_tokens([len(bundle.ids) for bundle in bundles], self.tokens_per_batch):
                some = [bundles[i] for i in batch]
                yield numbers_of(some), self._of_bundles(some)
            return
        for batch in batches_by_tokens([len(row) for row in rows], self.tokens_per_batch, batch_size):
            own = [rows[i] for i in batch]
            if batch_size is not None and (bundles := self._bundles(own)):
                yield [batch[i] for i in numbers_of(bundles)], self._of_bundles(bundles)
            else:
                yield batch, self._alone(own)

    def _bundles(self, rows: Sequence[Sequence[int]]) -> list[Bundle] | None:
        """Trees of the rows' tokens; None where they save too little or the model cannot take them."""
        if self.contract.attention != "causal" or len(rows) < 2 or not all(rows) or max(map(len, rows)) > longest_shared(self._model):
            return None
        bundles = bundles_of(rows)
        return bundles if worth_sharing(rows, bundles) and self._can_share else None

    @cached_property
    def _can_share(self) -> bool:
        return can_share(self._model)

    def _of_bundles(self, bundles: Sequence[Bundle]) -> Tensor:
        states = pooled_bundles(self._model, bundles, self.contract.pooling, self._tokenizer.pad_token_id or 0)
        return finished(states, self.contract, self._head)

    def _alone(self, rows: Sequence[Sequence[int]]) -> Tensor:
        batch = {k: v.to(self._device) for k, v in pad_batch(rows, self._tokenizer.pad_token_id or 0).items()}
        return pooled(self._model, batch, self.contract, self._head)


class JoinedTower(TowerEncoder):
    """A tower and its companion: both vectors side by side, so that the cosine is the weighted mean of their cosines.

    Model, tokenizer, head and tokens are those of the tower itself.
    """

    def __init__(self, own: TowerEncoder, companion: TowerEncoder, contract: EncodingContract, space_id: str) -> None:
        super().__init__(own.model, own.tokenizer, contract, space_id, own.head)
        self.own, self.companion = own, companion

    @property
    def width(self) -> int:
        """Dimensions of both together."""
        return self.own.width + self.companion.width

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), as `TowerEncoder.encode` gives those of each; `progress` is the tower's."""
        share = self.contract.companion_share or 0.0
        parts = (self.own, 1 - share, progress), (self.companion, share, None)
        for encoder, _, _ in parts:
            encoder.tokens_per_batch = self.tokens_per_batch
        return np.concatenate([np.float32(weight**0.5) * one.encode(texts, batch_size, bar) for one, weight, bar in parts], axis=1)

    def worked_tokens(self, texts: Sequence[str]) -> int:
        """Tokens that go through both models for `encode(texts)`, padding included."""
        return self.own.worked_tokens(texts) + self.companion.worked_tokens(texts)


def joined_contract(contract: EncodingContract, companion: EncodingContract, share: float) -> EncodingContract:
    """The contract of a tower with the contract `contract` and its companion."""
    wide = contract.dimension + companion.dimension
    return contract.model_copy(update={"companion": identity_of(companion), "companion_share": share, "dimension": wide})


def open_tower(folder: Path) -> TextEncoder:
    """The tower in `folder`, whatever it is: with weights, of stored vectors, or behind an address. Raises as their own loaders do."""
    form = load_contract(folder)[0].form
    return load_stored(folder) if form == "vectors" else load_endpoint(folder) if form == "endpoint" else load_tower(folder)


def load_tower(folder: Path, precision: str = "auto") -> TowerEncoder:
    """Load a tower folder; raises ArtifactError when base, tokenizer or weights are not those of its contract."""
    contract, space_id = load_contract(folder)
    if contract.companion is not None:
        companion = load_tower(folder / COMPANION, precision)
        if identity_of(companion.contract) != contract.companion:
            raise ArtifactError(f"{folder}: the companion is not the one its contract names. Restore it, or retrain.")
        return JoinedTower(
            _loaded(folder, _without_companion(contract, companion.contract), space_id, precision), companion, contract, space_id
        )
    return _loaded(folder, contract, space_id, precision)


def _without_companion(contract: EncodingContract, companion: EncodingContract) -> EncodingContract:
    """The contract of a tower as it was before `companion` was put beside it."""
    return contract.model_copy(update={"companion": None, "companion_share": None, "dimension": contract.dimension - companion.dimension})


def _loaded(folder: Path, contract: EncodingContract, space_id: str, precision: str) -> TowerEncoder:
    """A tower without its companion."""
    if contract.base_model in WITHOUT_WEIGHTS:
        raise ModelError(f"{folder}: the teacher is '{contract.base_model}', so it has no layers to take. Name another student.")
    if (folder / WEIGHTS).is_dir():
        model, tokenizer, head = *_fully_trained(folder, contract, precision), None
    elif (folder / ADAPTER).is_dir():
        model, tokenizer, head = *_with_adapter(folder, contract, precision), None
    else:
        model, tokenizer, head = _as_published(folder, contract, precision)
    if not is_tokenizer_of(contract, tokenizer):
        raise ArtifactError(f"{folder}: the tokenizer of '{contract.base_model}' has changed. Restore it, or retrain.")
    if contract.map_digest is not None:
        head = _through_map(folder, contract, head)
    return TowerEncoder(model, tokenizer, contract, space_id, head)


def _through_map(folder: Path, contract: EncodingContract, head: Any) -> Any:
    """The tower's own head, if any, and behind it the map into the space of another document tower, as one module."""
    import torch
    from torch import nn

    try:
        if file_sha256(folder / MAP) != contract.map_digest:
            raise ArtifactError(f"{folder}: the map is not the one its contract names. Restore it, or refresh the query tower again.")
        matrix = torch.from_numpy(np.load(folder / MAP, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / MAP} cannot be read ({error}). Restore it, or refresh the query tower again.") from None
    layer = nn.Linear(*matrix.shape, bias=False)
    with torch.no_grad():
        layer.weight.copy_(matrix.T)
    return nn.Sequential(*(head if head is not None else ()), layer).eval()


def _with_adapter(folder: Path, contract: EncodingContract, precision: str) -> tuple[Any, Any]:
    from peft import PeftModel

    base = _base_of(folder, contract)
    if adapter_digest(folder) != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the adapter is not the one its contract names. Restore it, or retrain.")
    decoder, tokenizer = load_decoder(base, precision, contract.attention, finished=True)
    return PeftModel.from_pretrained(decoder, str(folder / ADAPTER)).merge_and_unload(), tokenizer


def _as_published(folder: Path, contract: EncodingContract, precision: str) -> tuple[Any, Any, Any]:
    """Model, tokenizer and the maps behind the pooling, all from the base model: nothing was trained here."""
    base = _base_of(folder, contract)
    head = published_head(base)
    if head_digest(base, head) != contract.head_digest or contract.adapter_digest is not None:
        raise ArtifactError(f"{folder}: the weights are not those its contract names. Restore the tower, or retrain.")
    attention = asked_attention(is_published(base), contract.attention)
    return *load_decoder(base, precision, attention, finished=True), load_head(base, head)


def _base_of(folder: Path, contract: EncodingContract) -> BaseModel:
    # One of a hub has its commit (before there were any, a digest that says so): whatever bears a folder's name there is another model.
    if contract.base_revision is None and not contract.base_digest.startswith("hub:") and is_on_hub(contract.base_model):
        raise ArtifactError(
            f"{folder} was made on the folder '{contract.base_model}', which is not below the current folder, nor in {models_folder()}. "
            "Run the command where the towers were trained, or restore that folder."
        )
    # Code of the base runs for a tower that was made with it; that it is the same code, the digest says.
    base = resolve_base(contract.base_model, revision=contract.base_revision, code=contract.base_code is not None)
    if not is_base_of(contract, base):
        raise ArtifactError(
            f"{folder} was made on '{contract.base_model}' with digest {contract.base_digest[:12]}, but that model is now "
            f"{base.digest[:12]}. Restore the base model, or retrain."
        )
    return base


def is_base_of(contract: EncodingContract, base: BaseModel) -> bool:
    """Whether an encoder with this contract was made from `base`, by the digest that it has or by the one that it had."""
    return contract.base_digest == base.digest or contract.base_digest == _former_digest(base)


def _former_digest(base: BaseModel) -> str | None:
    """The digest that a model had until 2026-11-30.

    What lies in hidden folders (.cache, .git) of a folder began to be left out then, and files of weights to count by their use.
    """
    folder = Path(base.location)
    if not folder.is_dir():
        return None
    if base.revision is None:
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
        whole = digest_of({path.relative_to(folder).as_posix(): file_sha256(path) for path in files})
    else:
        whole = hub.former_digest(folder)
        whole = digest_of({"model": whole, "code": base.code}) if base.code else whole
    return whole if base.layers is None else digest_of([whole, list(base.layers)])


def _fully_trained(folder: Path, contract: EncodingContract, precision: str) -> tuple[Any, Any]:
    """The model of `folder`/model; the base model it was trained from is not needed."""
    if full_digest(folder) != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the weights are not those its contract names. Restore them, or retrain.")
    base = BaseModel(contract.base_model, str(folder / WEIGHTS), contract.base_digest)
    return load_decoder(base, precision, contract.attention, finished=True)
