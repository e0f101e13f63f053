"""Noise in queries, as people and programs make it: typing errors, words left out, other case, polite padding.

What happens to a query depends on its text, the kind, the rate and the seed alone, not on the queries around it, so that every system
is asked the same noisy queries.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

SHORTEST = 3  # letters of a word that can get a typing error; in a shorter one it would leave another word
KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
POLITE = (
    "Hello, could you please tell me {}? Thank you very much.",
    "I was wondering if you could help me with the following: {}",
    "Hi there! I am looking for information about {}, thanks in advance.",
    "Please find everything that you know about {} for me.",
)

MIXED = (("typos", 0.3), ("dropped_words", 0.3), ("lower_case", 1.0), ("verbosity", 1.0))  # kind and rate, each as often as another


class Noise(NamedTuple):
    """One of `KINDS`, the share of the words that change (for verbosity of the queries), and the seed."""

    kind: str
    rate: float
    seed: int


def add_noise(texts: Sequence[str], noise: Noise) -> list[str]:
    """`texts` with the noise in them, in the same order."""
    change = KINDS[noise.kind]
    return [change(text, noise.rate, random.Random(f"{noise.seed}:{noise.kind}:{text}")) for text in texts]


def mixed_noise(texts: Sequence[str], seed: int) -> list[str]:
    """`texts` with one of `MIXED` in each, which follows from the text and the seed."""
    chosen = [random.Random(f"{seed}:mixed:{text}").choice(MIXED) for text in texts]
    return [add_noise([text], Noise(kind, rate, seed))[0] for text, (kind, rate) in zip(texts, chosen, strict=True)]


def typos(text: str, rate: float, rng: random.Random) -> str:
    """One error in each chosen word: a letter doubled, left out, struck beside its key, or exchanged with the next."""
    return _each_word(text, rate, rng, lambda word: _misspelt(word, rng) if len(word) >= SHORTEST else word)


def dropped_words(text: str, rate: float, rng: random.Random) -> str:
    """The chosen words are left out; one word always stays."""
    words = text.split()
    kept = [word for word in words if rng.random() >= rate]
    return " ".join(kept or ([rng.choice(words)] if words else []))


def upper_case(text: str, rate: float, rng: random.Random) -> str:
    """The chosen words in capitals."""
    return _each_word(text, rate, rng, str.upper)


def lower_case(text: str, rate: float, rng: random.Random) -> str:
    """The chosen words without capitals."""
    return _each_word(text, rate, rng, str.lower)


def verbosity(text: str, rate: float, rng: random.Random) -> str:
    """The chosen queries within a polite sentence."""
    return rng.choice(POLITE).format(text) if rng.random() < rate else text


KINDS: dict[str, Callable[[str, float, random.Random], str]] = {
    "typos": typos,
    "dropped_words": dropped_words,
    "upper_case": upper_case,
    "lower_case": lower_case,
    "verbosity": verbosity,
}


def _each_word(text: str, rate: float, rng: random.Random, change: Callable[[str], str]) -> str:
    return " ".join(change(word) if rng.random() < rate else word for word in text.split())


def _misspelt(word: str, rng: random.Random) -> str:
    place = rng.randrange(1, len(word))  # the first letter is the one that people get right
    before, first, second, after = word[: place - 1], word[place - 1], word[place], word[place + 1 :]
    return before + rng.choice((second + first, first, first + second + second, first + _beside(second, rng))) + after


def _beside(letter: str, rng: random.Random) -> str:
    """A key beside that of `letter`; the letter itself doubled where the keyboard has no such key."""
    row = next((row for row in KEYBOARD if letter.lower() in row), None)
    if row is None:
        return letter * 2
    place = row.index(letter.lower())
    return rng.choice([row[i] for i in (place - 1, place + 1) if 0 <= i < len(row)])
