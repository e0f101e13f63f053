"""Index keys: which FAISS index a corpus gets, and whether a key fits the vectors, before anything is trained."""

from __future__ import annotations

from components.index.config import IndexConfig


def resolve_key(config: IndexConfig, documents: int, dimension: int) -> str:
    """The FAISS factory key for a corpus: the one asked for, or for `auto` the one that its size asks for.

    Raises ConfigError for a key that FAISS does not know or that does not fit the dimension.
    """
    raise NotImplementedError


def require_trainable(key: str, vectors: int, dimension: int) -> None:
    """Raise ConfigError, with what would fit, when `vectors` are too few to train an index of this key."""
    raise NotImplementedError


def is_exact(key: str) -> bool:
    """Whether a key names exact search (`Flat`), which has no template and no FAISS file."""
    return key == "Flat"
