"""A small retrieval problem with real words, for tests: a subject and an action make a document, its rewording a query."""

from __future__ import annotations

from components.towers.pairs import Pairs

SUBJECTS = ("kidney", "heart", "lung", "bone", "skin", "eye", "ear", "liver")
STATES = ("stone", "failure", "infection", "fracture", "burn", "tumour", "pain", "bleeding")
WORDING = {"stone": "calculus", "failure": "insufficiency", "infection": "sepsis", "fracture": "break", "burn": "scald"}


def documents() -> list[str]:
    """64 documents."""
    return [f"{subject} {state}\nDisorders of the {subject}" for subject in SUBJECTS for state in STATES]


def queries() -> list[str]:
    """One query for each document, in the same order."""
    return [f"{WORDING.get(state, state)} of {subject}" for subject in SUBJECTS for state in STATES]


def pairs() -> Pairs:
    """All pairs of query and document."""
    numbers = range(len(documents()))
    return Pairs(queries(), documents(), [(i, i) for i in numbers], {i: frozenset([i]) for i in numbers})
