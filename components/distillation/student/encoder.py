"""The student as a text encoder: tokens, an encoder of any form, and the head into the teacher's space.

Two forms: a transformer (an encoder, or layers of the trained query tower) whose token states are pooled, and a static one, the mean of
one vector a token. `project` is the one door from rows of token ids to vectors, in training and in inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.distillation.student.packed import can_pack, packed_vectors
from components.distillation.student.static import mean_vectors, static_tokens
from components.progress import Progress, counting
from components.towers.contract import EncodingContract
from components.towers.device import pick_device
from components.towers.layers import layer_count, layer_stack
from components.towers.pooling import pool
from components.towers.tokens import batches_by_tokens, pad_batch, token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

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
