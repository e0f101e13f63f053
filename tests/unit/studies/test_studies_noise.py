"""Noise changes what its kind says, as often as its rate says, and the same query always in the same way."""

from __future__ import annotations

import random

import pytest

from components.distillation.query_sources import KINDS, POLITE, Noise, add_noise, dropped_words, typos

TEXTS = ["Acute kidney failure with tubular necrosis", "Burn of the left hand", "x"]


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_query_gets_the_same_noise_whatever_stands_beside_it(kind: str) -> None:
    noise = Noise(kind, 0.5, 7)
    alone = [add_noise([text], noise)[0] for text in TEXTS]
    assert add_noise(TEXTS, noise) == alone
    assert add_noise(TEXTS[::-1], noise) == alone[::-1]


@pytest.mark.parametrize("kind", ["typos", "dropped_words", "verbosity"])
def test_another_seed_gives_other_noise(kind: str) -> None:
    many = [f"{text} number {n}" for n in range(20) for text in TEXTS]
    assert add_noise(many, Noise(kind, 0.5, 1)) != add_noise(many, Noise(kind, 0.5, 2))


def test_every_long_word_gets_one_typo_at_rate_one() -> None:
    changed = typos(TEXTS[0], 1.0, random.Random(1)).split()
    for before, after in zip(TEXTS[0].split(), changed, strict=True):
        assert after != before or len(set(before)) == 1
        assert after[0] == before[0] or sorted(after) == sorted(before)
        assert abs(len(after) - len(before)) <= 1


def test_words_of_two_letters_keep_their_spelling() -> None:
    assert typos("a of b", 1.0, random.Random(1)) == "a of b"


def test_the_rate_is_the_share_of_the_words() -> None:
    words = " ".join(f"word{n}" for n in range(4000))
    kept = dropped_words(words, 0.3, random.Random(5)).split()
    assert 0.67 < len(kept) / 4000 < 0.73
    assert kept == [word for word in words.split() if word in set(kept)]


def test_words_are_dropped_where_a_script_writes_no_spaces() -> None:
    text = "人工智能是一门新的技术科学" * 40
    kept = dropped_words(text, 0.3, random.Random(5))
    assert 0.6 < len(kept) / len(text) < 0.8 and " " not in kept


def test_one_word_always_stays() -> None:
    assert dropped_words("only three words", 1.0, random.Random(1)) in {"only", "three", "words"}
    assert dropped_words("", 1.0, random.Random(1)) == ""


def test_case_and_padding_at_rate_one() -> None:
    assert add_noise(TEXTS[:1], Noise("upper_case", 1.0, 1)) == [TEXTS[0].upper()]
    assert add_noise(TEXTS[:1], Noise("lower_case", 1.0, 1)) == [TEXTS[0].lower()]
    assert add_noise(TEXTS[:1], Noise("verbosity", 1.0, 1))[0] in {frame.format(TEXTS[0]) for frame in POLITE}
