"""A trained tower as a text encoder: base model plus the adapter of one role, merged for speed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import file_sha256
from components.errors import ArtifactError
from components.towers.backbone import load_decoder
from components.towers.base_models import resolve_base
from components.towers.contract import EncodingContract, load_contract
from components.towers.pooling import normalize, pool
from components.towers.precision import pick_device
from components.towers.tokens import batches_by_tokens, pad_batch, token_ids

TOKENS_PER_BATCH = 2048


class TowerEncoder:
    """A query or document tower for inference (see `components.towers.contract.TextEncoder`)."""

    def __init__(self, model: Any, tokenizer: Any, contract: EncodingContract, space_id: str) -> None:
        self.contract = contract
        self.space_id = space_id
        self.tokens_per_batch = TOKENS_PER_BATCH
        self._device = pick_device()
        self._model = model.to(self._device).eval()
        self._tokenizer = tokenizer

    @property
    def model(self) -> Any:
        """The transformer with all that was trained in its weights, for a student that takes layers of it."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The transformer's tokenizer."""
        return self._tokenizer

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: str | None = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`; encoded in batches of similar length."""
        import torch
        from tqdm import tqdm

        rows = token_ids(self._tokenizer, texts, self.contract)
        vectors = np.empty((len(rows), self.contract.dimension), dtype=np.float32)
        with torch.inference_mode(), tqdm(total=len(rows), desc=progress, disable=progress is None, unit="text", mininterval=1) as bar:
            for batch in batches_by_tokens([len(r) for r in rows], self.tokens_per_batch, batch_size):
                vectors[batch] = self._embed([rows[i] for i in batch])
                bar.update(len(batch))
        return vectors

    def _embed(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        batch = {k: v.to(self._device) for k, v in pad_batch(rows, self._tokenizer.pad_token_id or 0).items()}
        states = self._model(**batch).last_hidden_state
        return normalize(pool(states, batch["attention_mask"], self.contract.pooling)).cpu().numpy()


def load_tower(folder: Path, precision: str = "auto") -> TowerEncoder:
    """Load a tower folder; raises ArtifactError when base, tokenizer or adapter are not those of its contract."""
    from peft import PeftModel

    from components.artifacts import digest_of

    contract, space_id = load_contract(folder)
    base = resolve_base(contract.base_model)
    if base.digest != contract.base_digest:
        raise ArtifactError(
            f"{folder}: made on '{contract.base_model}' with digest {contract.base_digest[:12]}, but that model is now "
            f"{base.digest[:12]}. Restore the base model, or retrain."
        )
    if file_sha256(folder / "adapter" / "adapter_model.safetensors") != contract.adapter_digest:
        raise ArtifactError(f"{folder}: the adapter is not the one its contract names. Restore it, or retrain.")
    decoder, tokenizer = load_decoder(base, precision)
    if digest_of(tokenizer.get_vocab()) != contract.tokenizer_digest:
        raise ArtifactError(f"{folder}: the tokenizer of '{contract.base_model}' has changed. Restore it, or retrain.")
    model = PeftModel.from_pretrained(decoder, str(folder / "adapter")).merge_and_unload()
    return TowerEncoder(model, tokenizer, contract, space_id)
