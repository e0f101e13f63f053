"""A small retrieval problem with real words, for tests: a subject and an action make a document, its rewording a query."""

from __future__ import annotations

from pathlib import Path

from components.towers.config import TowerConfig
from components.towers.pairs import Pairs
from components.towers.train import join_companion, train_companion, train_towers

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


def trained(config: TowerConfig, folder: Path) -> Path:
    """The three steps of stage 1 with a companion, in folders of their own; the folder of the joined towers."""
    parts = [folder / "towers", folder / "companion"]
    for part in (*parts, folder / "joined"):
        part.mkdir(parents=True, exist_ok=True)
    made = [train(pairs(), config, {"dataset": "d"}, part) for train, part in zip((train_towers, train_companion), parts, strict=True)]
    join_companion(*made, config.companion.share, folder / "joined")
    return folder / "joined"
