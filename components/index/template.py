"""The template of an index: trained, empty, and the same for every part, so that parts can be built apart and searched together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.index.config import IndexConfig

TEMPLATE_FILE = "template.faiss"


@dataclass(frozen=True)
class Template:
    """What every part of an index shares. `index` (trained, empty) and `digest` (sha256 of its file) are None for exact search."""

    key: str
    dimension: int
    space_id: str
    refine: Literal["none", "int8", "fp16"]
    index: Any | None
    digest: str | None


def train_template(key: str, sample: NDArray[np.float32], space_id: str, config: IndexConfig, folder: Path) -> Template:
    """Train on the sample, float32 (n, d) of unit length, and write `template.faiss` into `folder` (nothing for exact search)."""
    raise NotImplementedError


def read_template(folder: Path) -> Template:
    """The template of the finished index in `folder`; raises ArtifactError when its file is not what the manifest says."""
    raise NotImplementedError
