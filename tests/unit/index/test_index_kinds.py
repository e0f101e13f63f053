from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from components.errors import ConfigError
from components.index.config import IndexConfig
from components.index.index_keys import is_exact, require_trainable, resolve_key, usable_key
from components.index.parts import train_template
from tests.unit.index_world import clustered


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
    with pytest.raises(ConfigError, match="at least 256 vectors to train its codes or its OPQ or PCA, but only 255"):
        require_trainable("OPQ4,IVF4,PQ4", 255, 16)


@pytest.mark.parametrize(
    ("key", "least"),
    [("OPQ4,PQ4x4", 256), ("OPQ4_8,IVF4,Flat", 256), ("PCA8,Flat", 8), ("IVF4,RQ4x6", 64), ("IVF4,PRQ2x2x6", 64), ("IVF4,PQ4x4fs", 16)],
)
def test_vectors_that_suffice_for_what_a_key_trains_do_so_in_silence(key: str, least: int, capfd: pytest.CaptureFixture[str]) -> None:
    from components.index.engine import empty_index, train

    with pytest.raises(ConfigError, match=f"at least {least} vectors"):
        require_trainable(key, least - 1, 16)
    require_trainable(key, least, 16)
    train(empty_index(key, 16), clustered(least))
    assert "WARNING" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("HNSW0", "fewer than 2 neighbours"),  # these ended the whole process, with the encoding of the corpus done
        ("HNSW1", "fewer than 2 neighbours"),
        ("HNSW1,SQ8", "fewer than 2 neighbours"),
        ("IVF8_HNSW1,Flat", "fewer than 2 neighbours"),
        ("RR0,Flat", "makes 0 dimensions of 16"),
        ("PCA0,Flat", "makes 0 dimensions of 16"),
        ("PCA32,Flat", "makes 32 dimensions of 16"),  # and these with words of FAISS alone
        ("OPQ3,Flat", "the 3 parts of its OPQ do not divide 16 dimensions"),
        ("OPQ4_18,Flat", "the 4 parts of its OPQ do not divide 18 dimensions"),
        ("IVF0,Flat", "has 0 lists"),
        ("IVF2(RCQ2x1),Flat", "has 2 lists, and its levels make 4"),
        ("IVF4,PQ4x0", "its codes have no bits"),
    ],
)
def test_a_key_that_faiss_makes_and_cannot_use_is_refused_before_anything_is_encoded(key: str, fault: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be used: .*{fault}.*Examples: auto, Flat"):
        resolve_key(IndexConfig(index_key=key), 1000, 16)


@pytest.mark.parametrize("key", ["HNSW2", "PCA16,Flat", "RR32,Flat", "OPQ4_8,IVF4,PQ4x4", "IVF4(RCQ2x1),Flat", "IVF4,PQ4x1", "IVF1,Flat"])
def test_a_key_at_its_bounds_can_be_used(key: str) -> None:
    assert resolve_key(IndexConfig(index_key=key), 1000, 16) == key


def test_what_faiss_cannot_train_all_the_same_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"index_key IVF8,Flat cannot be trained with 5 vectors of 16 dimensions.*FAISS: "):
        train_template("IVF8,Flat", clustered(5), "a" * 64, "fp16", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_search_is_no_wider_than_faiss_counts() -> None:
    assert IndexConfig(ef_search=1_000_000).ef_search == 1_000_000
    with pytest.raises(ValidationError, match="less than or equal to 1000000"):
        IndexConfig(ef_search=10**12)


def test_the_training_sample_bounds_the_lists_of_a_key_that_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="only 256 vectors"):
        usable_key(IndexConfig(index_key="IVF512,Flat", train_vectors=256), 100_000, 16)
