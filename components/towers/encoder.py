"""A tower as a text encoder: base model with the adapter of one role merged for speed, the fully trained model, or a published one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.errors import ArtifactError, ModelError
from components.progress import Progress, counting
from components.towers.adapters import ADAPTER, adapter_digest
from components.towers.base_models import BaseModel, resolve_base
from components.towers.beginnings import Bundle, bundles_of, can_share, longest_shared, numbers_of, pooled_bundles, worth_sharing
from components.towers.config import WITHOUT_WEIGHTS
from components.towers.contract import EncodingContract, TextEncoder, is_tokenizer_of, load_contract
from components.towers.device import pick_device
from components.towers.full import WEIGHTS, full_digest
from components.towers.tokens import batches_by_tokens, pad_batch, token_ids
from components.towers.trained.endpoint import load_endpoint
from components.towers.trained.published import asked_attention, head_digest, load_head, read_published
from components.towers.trained.stored import load_stored
from components.towers.two_towers import finished, load_decoder, pooled

if TYPE_CHECKING:
    from torch import Tensor

TOKENS_PER_BATCH = 2048


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
    def tokenizer(self) -> Any:
        """The transformer's tokenizer, which other encoders may use as well: to change it, copy it."""
        return self._tokenizer

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids under the contract."""
        return token_ids(self._tokenizer, texts, self.contract)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`; encoded in batches of similar length.

        Where enough texts begin alike and the model allows it, common beginnings are worked out once (`components.towers.beginnings`).
        """
        import torch

        rows = self.tokens(texts)
        vectors = np.empty((len(rows), self.contract.dimension), dtype=np.float32)
        with torch.inference_mode(), counting(progress, len(rows), "text") as done:
            for numbers, found in self._encoded(rows, batch_size):
                vectors[numbers] = found.cpu().numpy()
                done(len(numbers))
        return vectors

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


def open_tower(folder: Path) -> TextEncoder:
    """The tower in `folder`, whatever it is: with weights, of stored vectors, or behind an address. Raises as their own loaders do."""
    form = load_contract(folder)[0].form
    return load_stored(folder) if form == "vectors" else load_endpoint(folder) if form == "endpoint" else load_tower(folder)


def load_tower(folder: Path, precision: str = "auto") -> TowerEncoder:
    """Load a tower folder; raises ArtifactError when base, tokenizer or weights are not those of its contract."""
    contract, space_id = load_contract(folder)
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
    return TowerEncoder(model, tokenizer, contract, space_id, head)


def _with_adapter(folder: Path, contract: EncodingContract, precision: str) -> tuple[Any, Any]:
    from peft import PeftModel

    base = _base_of(folder, contract)
    if adapter_digest(folder) != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the adapter is not the one its contract names. Restore it, or retrain.")
    decoder, tokenizer = load_decoder(base, precision, contract.attention)
    return PeftModel.from_pretrained(decoder, str(folder / ADAPTER)).merge_and_unload(), tokenizer


def _as_published(folder: Path, contract: EncodingContract, precision: str) -> tuple[Any, Any, Any]:
    """Model, tokenizer and the maps behind the pooling, all from the base model: nothing was trained here."""
    base = _base_of(folder, contract)
    published = read_published(base)
    head = published.head if published else ()
    if head_digest(base, head) != contract.head_digest or contract.adapter_digest is not None:
        raise ArtifactError(f"{folder}: the weights are not those its contract names. Restore the tower, or retrain.")
    return *load_decoder(base, precision, asked_attention(published, contract.attention)), load_head(base, head)


def published_encoder(base: BaseModel, contract: EncodingContract, precision: str = "auto") -> TowerEncoder:
    """A published model as an encoder of its own, without a folder; see `components.towers.two_towers.published_contracts`."""
    published = read_published(base)
    model, tokenizer = load_decoder(base, precision, asked_attention(published, contract.attention))
    return TowerEncoder(model, tokenizer, contract, "", load_head(base, published.head if published else ()))


def _base_of(folder: Path, contract: EncodingContract) -> BaseModel:
    # Code of the base runs for a tower that was made with it; that it is the same code, the digest says.
    base = resolve_base(contract.base_model, revision=contract.base_revision, code=contract.base_code is not None)
    if base.digest != contract.base_digest:
        raise ArtifactError(
            f"{folder} was made on '{contract.base_model}' with digest {contract.base_digest[:12]}, but that model is now "
            f"{base.digest[:12]}. Restore the base model, or retrain."
        )
    return base


def _fully_trained(folder: Path, contract: EncodingContract, precision: str) -> tuple[Any, Any]:
    """The model of `folder`/model; the base model it was trained from is not needed."""
    if full_digest(folder) != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the weights are not those its contract names. Restore them, or retrain.")
    return load_decoder(BaseModel(contract.base_model, str(folder / WEIGHTS), contract.base_digest), precision, contract.attention)
