from __future__ import annotations

import pytest

from components.errors import ConfigError
from components.index.config import IndexConfig
from components.index.index_keys import is_exact, require_trainable, resolve_key, usable_key


@pytest.mark.parametrize(
    ("documents", "dimension", "changes", "key"),
    [
        (99_999, 384, {}, "Flat"),
        (100_000, 384, {}, "IVF1024,PQ96x4fsr"),
        (1_000_000, 384, {}, "IVF4096,PQ96x4fsr"),
        (1_000_000, 768, {}, "IVF4096,PQ192x4fsr"),
        (1_000_000, 390, {}, "IVF4096,PQ78x4fsr"),  # 5 dimensions a code: 4 do not divide 390
        (1_000_000, 383, {}, "IVF4096,SQ8"),  # a prime
        (1_000_000, 384, {"refine": "none"}, "IVF4096,SQ8"),
        (5_000_000, 384, {}, "IVF4096,PQ96x4fsr"),  # 8192 lists would have 32 of the 262,144 training vectors each
        (5_000_000, 384, {"train_vectors": 400_000}, "IVF8192,PQ96x4fsr"),
        (10_000_000, 384, {}, "IVF16384(RCQ2x7),PQ96x4fsr"),
        (100_000_000, 384, {}, "IVF65536(RCQ2x8),PQ96x4fsr"),
        (300, 16, {"exact_below": 0}, "IVF4,PQ4x4fsr"),  # 300 // 39 = 7 lists, so 4
        (30, 16, {"exact_below": 0}, "IVF1,PQ4x4fsr"),
        (50, 16, {"index_key": "HNSW8"}, "HNSW8"),
    ],
)
def test_the_key_follows_the_size_of_the_corpus(documents: int, dimension: int, changes: dict, key: str) -> None:
    assert resolve_key(IndexConfig(**changes), documents, dimension) == key


def test_only_flat_is_exact() -> None:
    assert [is_exact(key) for key in ("Flat", "IVF4,Flat", "SQfp16")] == [True, False, False]


@pytest.mark.parametrize("key", ["Falt", "IVF8,PQ5", "IVF8,Nonsense", "PQ"])
def test_a_key_that_faiss_does_not_know_or_that_does_not_fit_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"index_key {key} cannot be made for vectors of 16 dimensions.*auto, Flat, IVF1024,Flat"):
        resolve_key(IndexConfig(index_key=key), 1000, 16)


@pytest.mark.parametrize("key", ["IVF8,PQ4,RFlat", "IDMap,Flat", "NSG8", "PQ4x4fs", "LSH"])
def test_a_kind_that_cannot_filter_or_score_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"index_key {key} "):
        resolve_key(IndexConfig(index_key=key), 1000, 16)


def test_too_few_vectors_for_the_lists_say_what_would_fit() -> None:
    with pytest.raises(ConfigError, match=r"1,024 lists, but only 1,000 vectors .* at most 16 lists \(IVF16\)"):
        require_trainable("IVF1024,Flat", 1000, 16)  # 1000 // 39 = 25 lists, so 16
    require_trainable("IVF1000,Flat", 1000, 16)
    require_trainable("Flat", 1, 16)


def test_residual_levels_need_vectors_for_one_level_only() -> None:
    require_trainable("IVF16384(RCQ2x7),PQ4x4fs", 128, 16)
    with pytest.raises(ConfigError, match="has 128 lists"):
        require_trainable("IVF16384(RCQ2x7),PQ4x4fs", 127, 16)


def test_too_few_vectors_for_the_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match="codes of 256 centroids, but only 255"):
        require_trainable("OPQ4,IVF4,PQ4", 255, 16)


def test_the_training_sample_bounds_the_lists_of_a_key_that_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="only 256 vectors"):
        usable_key(IndexConfig(index_key="IVF512,Flat", train_vectors=256), 100_000, 16)
