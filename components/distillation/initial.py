"""The student before its training: a small encoder, and a projection fitted to the teacher in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from components.distillation.config import DistillationConfig
from components.distillation.student import StudentEncoder, load_small_encoder, student_contract
from components.towers.base_models import resolve_base
from components.towers.precision import autocast, pick_device, pick_dtype

if TYPE_CHECKING:
    from torch import Tensor

FIT_TEXTS = 8192  # texts that the projection is fitted on, several for each of its rows
RIDGE = 1e-3  # share of the mean energy of a feature


def new_student(texts: Sequence[str], teacher: NDArray[np.float32], space_id: str, config: DistillationConfig) -> StudentEncoder:
    """A student for the space of the teacher's vectors (len(texts), dimension); raises ModelError for an unusable encoder."""
    import torch
    from torch import nn

    torch.manual_seed(config.seed)
    base = resolve_base(config.student, texts)
    # The fused attention's backward pass takes 40 % of a training step on a CPU at query lengths; the plain one next to nothing.
    model, tokenizer = load_small_encoder(base, config.layers, "eager" if pick_device().type == "cpu" else "sdpa")
    contract = student_contract(base, tokenizer, teacher.shape[1], config.max_query_length, config.query_prompt)
    projection = nn.Linear(model.config.hidden_size, teacher.shape[1], bias=False)
    student = StudentEncoder(model.eval(), tokenizer, projection, contract, space_id)
    projection.weight.data = fit_projection(student, texts, teacher, config.precision).to(student.device)
    return student


def fit_projection(student: StudentEncoder, texts: Sequence[str], teacher: NDArray[np.float32], precision: str) -> Tensor:
    """The linear map (dimension, width) from the untrained encoder's features to the teacher's vectors, by ridge regression.

    It is the closed-form optimum of the alignment's last layer; started from a random map, several epochs go by to find it.
    """
    import torch

    bare = StudentEncoder(student.model, student.tokenizer, None, student.contract, student.space_id)
    sample = np.random.default_rng(0).permutation(len(texts))[:FIT_TEXTS]
    with autocast(student.device, pick_dtype(precision)):
        features = torch.from_numpy(bare.features([texts[i] for i in sample], progress="fit the projection")).double()
    gram = features.T @ features
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram + ridge, features.T @ torch.from_numpy(teacher[sample]).double()).T.float().contiguous()
