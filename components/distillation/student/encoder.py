"""The student as a text encoder: tokens, an encoder of any form, and the head into the teacher's space.

A two-layer head starts as the linear one exactly, not from noise: GELU(x) - GELU(-x) = x, so a map B A equals [B, -B] GELU([A; -A]). What
is left of the hidden layer starts at random with no say in the output.

`project` is the one door from rows of token ids to vectors, in training and in inference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.student.forms import FORMS
from components.progress import Progress, counting
from components.towers.contract import EncodingContract, require_finite, unit
from components.towers.device import pick_device
from components.towers.tokens import batches_by_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


RIDGE = 1e-3  # share of the mean energy of a feature


def ridge(features: Tensor, targets: Tensor, strength: float = RIDGE) -> Tensor:
    """The linear map (outputs, inputs) float32 from rows of `features` (n, inputs) to `targets` (n, outputs), by ridge regression.

    `strength` is that of the ridge, as a share of the mean energy of a feature.
    """
    import torch

    x, y = features.double(), targets.double()
    gram = x.T @ x
    penalty = strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
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


TOKENS_PER_BATCH = 4096


class StudentEncoder:
    """A student for inference and training (see `components.towers.contract.TextEncoder`).

    `model` is what the contract's form makes (see `components.distillation.student.forms`); `head` a sequence of layers, or None for the
    bare encoder.
    """

    def __init__(self, model: Any, tokenizer: Any, head: Any | None, contract: EncodingContract, space_id: str) -> None:
        self.contract = contract
        self.form = FORMS[contract.form]
        self.space_id = space_id
        self.device = pick_device()
        self.model = model.eval().to(self.device)
        self.head = head.to(self.device) if head is not None else None
        self.tokenizer = tokenizer

    @property
    def layer_count(self) -> int:
        """Number of transformer layers; 0 for a student that has none."""
        return self.form.layer_count(self.model, self.contract.base_model)

    @property
    def token_table(self) -> Any:
        """The module that holds one vector a token."""
        return self.form.token_table(self.model)

    @property
    def longest(self) -> int | None:
        """Tokens of the longest text that the encoder has positions for; None without such a limit."""
        return self.form.longest(self.model)

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids under the contract."""
        return self.form.tokens(self.tokenizer, texts, self.contract)

    def project(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Vectors (len(rows), dimension) before normalisation, with a graph where gradients are on; without a head (len(rows), width)."""
        pooled = self.form.vectors(self.model, rows, self.contract, self.tokenizer.pad_token_id or 0, self.device)
        return pooled if self.head is None else self.head(pooled)

    def encode(self, texts: Sequence[str], batch_size: int | None = None, progress: Progress = None) -> NDArray[np.float32]:
        """Unit float32 vectors (len(texts), dimension), in the order of `texts`; raises ModelError for values that are not finite."""
        vectors = require_finite(self.features(texts, batch_size, progress), self.contract.base_model)
        return unit(vectors)

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
        frozen = {id(p) for p in self.form.frozen(self.model, self.contract.base_model, train_embeddings, trained_layers)}
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
