"""Negatives: hard ones mined from all documents with the towers as they are, and which documents of a batch are none.

What each mining kept and dropped is reported.

The nearest documents of a query are its hardest negatives, and the likeliest to be unjudged positives. So a candidate that scores above a
share of the positive's score is dropped (positive-aware mining, Moreira et al. 2024, "NV-Retriever"), and so is a document whose text
equals a relevant one's, or which the query is itself. What is left is drawn from at random.

A round's file is written last, so a continued run reads the rounds that a killed one has finished.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.artifacts import read_json, write_atomic, write_json
from components.errors import ConfigError
from components.towers.config import TowerConfig
from components.towers.device import pick_device
from components.towers.pairs import Pairs
from components.towers.processes import current_world, from_main, sum_over_processes

Nearest = tuple[NDArray[np.float32], NDArray[np.int64]]  # inner products and numbers of documents, (queries, k) each
KEPT, RELEVANT, SAME_TEXT, NEAR = range(4)
REASONS = ("kept", "relevant", "same_text", "above_positive_share")
EXAMPLES_PER_REASON = 5
# Scores and documents on the device at a time: on a card a gigabyte of scores, so that a product is no matrix times a few rows.
_SCORES_AT_ONCE = {"cpu": 2**24, "cuda": 2**28}
_DOCUMENTS_AT_ONCE = {"cpu": 2**16, "cuda": 2**19}
_PAIRS_AT_ONCE = 8192
_SAMPLE = 512


@dataclass(frozen=True)
class Mined:
    """negatives: int64 (pairs, h) document numbers, -1 where fewer are left; report: what was kept and dropped, and examples."""

    negatives: NDArray[np.int64]
    report: dict[str, Any]


@dataclass(frozen=True)
class _Judged:
    """Candidates of some pairs: document numbers and scores (n, k), the positives' scores (n,), and a reason (n, k) for each."""

    documents: NDArray[np.int64]
    scores: NDArray[np.float32]
    positive: NDArray[np.float32]
    reasons: NDArray[np.int8]


def mine(
    queries_vec: NDArray[np.float32],
    documents_vec: NDArray[np.float32],
    pairs: Pairs,
    config: TowerConfig,
    round: int,
    found: Nearest | None = None,
) -> Mined:
    """`config.hard_negatives` documents for each pair, drawn from those of the nearest `config.mining_depth` that may be negatives.

    `queries_vec` (queries, d) and `documents_vec` (documents, d): unit float32 rows of all texts of `pairs`; `found`: what `nearest`
    gives for them, where it is known. The draw follows from the seed and the number of the round alone.
    """
    miner = _Miner(queries_vec, documents_vec, pairs, config, found or nearest(queries_vec, documents_vec, config.mining_depth))
    rng = np.random.default_rng([config.seed, round])
    negatives = np.full((len(pairs.pairs), config.hard_negatives), -1, np.int64)
    counts = np.zeros(len(REASONS), np.int64)
    for start in range(0, len(pairs.pairs), _PAIRS_AT_ONCE):
        rows = slice(start, start + _PAIRS_AT_ONCE)
        judged = miner.judge(miner.numbers[rows])
        negatives[rows] = _drawn(judged, config.hard_negatives, rng)
        counts += np.bincount(judged.reasons.ravel(), minlength=len(REASONS))
    if not (negatives >= 0).any():
        print(
            f"[train_towers] Of the {miner.depth} nearest documents none may be a negative of any pair: all are relevant or score too near "
            "their positive. Raise towers.mining_start, towers.mining_depth or towers.positive_share.",
            flush=True,
        )
    report = {"round": round, **_settings(config), **_summary(negatives, counts), "examples": _examples(miner, pairs, rng)}
    return Mined(negatives, report)


class _Miner:
    """The nearest documents of every query, and what is known about them."""

    def __init__(
        self, queries: NDArray[np.float32], documents: NDArray[np.float32], pairs: Pairs, config: TowerConfig, found: Nearest
    ) -> None:
        self.numbers = np.array(pairs.pairs, np.int64).reshape(-1, 2)
        self._queries, self._documents = queries, documents
        self._groups, self._share = pairs.document_groups, config.positive_share
        self._scores, self._nearest = found
        self.depth = self._nearest.shape[1]
        judged = np.array([(query, document) for query, found in pairs.relevant.items() for document in found], np.int64).reshape(-1, 2)
        self._relevant = np.sort(judged[:, 0] * len(documents) + judged[:, 1])
        query, group = pairs.known_groups
        self._known = np.sort(query * len(documents) + group)

    def judge(self, numbers: NDArray[np.int64]) -> _Judged:
        """Candidates of the pairs (query number, document number) in the rows of `numbers` (n, 2)."""
        query, document = numbers[:, 0], numbers[:, 1]
        found, scores = self._nearest[query], self._scores[query]
        positive = np.einsum("nd,nd->n", self._queries[query], self._documents[document])
        reasons = np.full(found.shape, KEPT, np.int8)
        if self._share is not None:
            # The distance is taken off |positive|: a share of a negative score would be a bound above the positive itself.
            reasons[scores > (positive - (1 - self._share) * np.abs(positive))[:, None]] = NEAR
        size = len(self._documents)
        reasons[_member(query[:, None] * size + self._groups[found], self._known)] = SAME_TEXT
        reasons[_member(query[:, None] * size + found, self._relevant)] = RELEVANT
        return _Judged(found, scores, positive, reasons)


def nearest(queries: NDArray[np.float32], documents: NDArray[np.float32], count: int) -> Nearest:
    """Inner products and numbers of the `count` documents nearest to each query, exact, best first; on the GPU where there is one.

    Both are read in blocks, so that a device holds a part of the documents and of the scores alone.
    """
    import torch

    device = pick_device()
    count, size = min(count, len(documents)), _DOCUMENTS_AT_ONCE[device.type]
    scores = np.full((len(queries), count), -np.inf, np.float32)
    numbers = np.zeros((len(queries), count), np.int64)
    for first in range(0, len(documents), size):
        table = torch.from_numpy(documents[first : first + size]).to(device)
        step = max(1, _SCORES_AT_ONCE[device.type] // len(table))
        for start in range(0, len(queries), step):
            rows = slice(start, start + step)
            best = torch.topk(torch.from_numpy(queries[rows]).to(device) @ table.T, min(count, len(table)), dim=1)
            both = np.concatenate([scores[rows], best.values.cpu().numpy()], axis=1)
            theirs = np.concatenate([numbers[rows], best.indices.cpu().numpy() + first], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :count]
            scores[rows], numbers[rows] = np.take_along_axis(both, order, 1), np.take_along_axis(theirs, order, 1)
    return scores, numbers


def nearest_together(queries: NDArray[np.float32], documents: NDArray[np.float32], count: int) -> Nearest:
    """`nearest`, where each of the processes that train together searches for its share of the queries; all have to call it."""
    world = current_world()
    count = min(count, len(documents))
    scores, numbers = np.zeros((len(queries), count), np.float32), np.zeros((len(queries), count), np.int64)
    own = np.array_split(np.arange(len(queries)), world.size)[world.rank]
    scores[own], numbers[own] = nearest(queries[own], documents, count)
    return sum_over_processes(scores), sum_over_processes(numbers)


def known_false_negatives(
    pairs: Pairs, query_numbers: Sequence[int], document_numbers: Sequence[int], targets: Sequence[int] | None = None
) -> NDArray[np.bool_]:
    """bool (n, m): True where the document is known to be relevant to the row's query, by judgement or by its text, or is no document (-1).

    `targets` (n,): the column of each row's own positive, which is never marked; by default the row's number.
    """
    columns = np.asarray(document_numbers, np.int64)
    groups = np.where(columns < 0, -1, pairs.document_groups[columns])
    order = np.argsort(groups, kind="stable")
    query, known = pairs.known_groups
    numbers = np.asarray(query_numbers, np.int64)
    rows, entries = _ranges(np.searchsorted(query, numbers), np.searchsorted(query, numbers, "right"))
    ordered, wanted = groups[order], known[entries]
    hits, places = _ranges(np.searchsorted(ordered, wanted), np.searchsorted(ordered, wanted, "right"))
    found = np.zeros((len(numbers), len(columns)), np.bool_)
    found[:, columns < 0] = True
    found[rows[hits], order[places]] = True
    found[np.arange(len(numbers)), np.arange(len(numbers)) if targets is None else np.asarray(targets)] = False
    return found


def _ranges(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All numbers from each start up to its end, one range after the other, and before them the number of the range they belong to."""
    counts = ends - starts
    owner = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    return owner, starts[owner] + offset


def _member(values: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of `values` stand in the sorted `keys`."""
    if not len(keys):
        return np.zeros(values.shape, np.bool_)
    places = np.minimum(np.searchsorted(keys, values), len(keys) - 1)
    return keys[places] == values


def _drawn(judged: _Judged, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 (n, count): kept candidates of each row in random order, then -1."""
    chance = np.where(judged.reasons == KEPT, rng.random(judged.reasons.shape), np.inf)
    places = np.argsort(chance, axis=1)[:, :count]
    drawn = np.where(np.isfinite(np.take_along_axis(chance, places, 1)), np.take_along_axis(judged.documents, places, 1), -1)
    return np.pad(drawn, ((0, 0), (0, count - drawn.shape[1])), constant_values=-1)


def _settings(config: TowerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("hard_negatives", "mining_depth", "positive_share")}


def _summary(negatives: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "pairs": len(negatives),
        "candidates": int(counts.sum()),
        "kept": int(counts[KEPT]),
        "dropped": {REASONS[reason]: int(counts[reason]) for reason in (RELEVANT, SAME_TEXT, NEAR)},
        "drawn": int((negatives >= 0).sum()),
        "pairs_with_too_few": int((negatives < 0).any(1).sum()),
    }


def _examples(miner: _Miner, pairs: Pairs, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Up to five candidates of each fate, from randomly chosen pairs, each of another pair."""
    numbers = miner.numbers[np.sort(rng.permutation(len(miner.numbers))[:_SAMPLE])]
    judged = miner.judge(numbers)
    examples = []
    for reason, name in enumerate(REASONS):
        there = judged.reasons == reason
        for row in np.flatnonzero(there.any(1))[:EXAMPLES_PER_REASON]:
            place = int(there[row].argmax())
            query, positive = numbers[row]
            example = {"query": pairs.queries[query], "positive": pairs.documents[positive]}
            example |= {"candidate": pairs.documents[judged.documents[row, place]], "reason": name}
            scores = {"positive_score": judged.positive[row], "candidate_score": judged.scores[row, place]}
            examples.append({**example, **{key: round(float(value), 4) for key, value in scores.items()}})
    return examples


# --- When negatives are mined, and where they are kept: mined once a round with the towers of that step, saved, and read ever after.


class HardNegatives:
    """The mined negatives of every step; `mined(round)` mines with the towers as they are, in all processes alike."""

    def __init__(self, config: TowerConfig, folder: Path, mined: Callable[[int], Mined]) -> None:
        self._config, self._folder, self._mined = config, folder, mined
        self._round: int | None = None
        self._negatives: NDArray[np.int64] | None = None

    def of_step(self, step: int) -> NDArray[np.int64] | None:
        """int64 (pairs, hard_negatives) document numbers, -1 where there are fewer; None before the first mining."""
        wanted = round_of_step(step, self._config)
        if wanted != self._round and wanted is not None:
            self._negatives = self._read(wanted)
            self._round = wanted
        return self._negatives

    def _read(self, number: int) -> NDArray[np.int64]:
        path = self._folder / f"negatives_{number}.npy"
        # Asked of the main process alone: another one would see the file appear while it looks.
        if not from_main(path.exists):
            mined = self._mined(number)
            from_main(lambda: self._write(mined, path))
        return from_main(lambda: np.load(path, allow_pickle=False))

    def _write(self, mined: Mined, path: Path) -> None:
        add_round(self._folder, mined.report)
        beside = path.with_name(f".{path.name}.tmp")
        with beside.open("wb") as handle:
            np.save(handle, mined.negatives)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(beside, path)


def round_of_step(step: int, config: TowerConfig) -> int | None:
    """Number of the mining whose negatives the step uses; None while there are none."""
    if not config.hard_negatives or step < config.mining_start:
        return None
    return (step - config.mining_start) // config.mining_interval if config.mining_interval else 0


def check_mining(config: TowerConfig) -> None:
    """Raise ConfigError when hard negatives are asked for and the training ends before the first mining."""
    if config.hard_negatives and config.mining_start >= config.steps:
        raise ConfigError(
            f"towers.hard_negatives is {config.hard_negatives}, but towers.mining_start ({config.mining_start}) is not below "
            f"towers.steps ({config.steps}), so none would ever be mined. Lower mining_start, or set hard_negatives to 0."
        )


# --- What each mining of hard negatives kept and dropped, with examples: mining_report.json for programs, mining_report.md for people.


REPORT_JSON = "mining_report.json"
REPORT_MD = "mining_report.md"
_SHOWN = 160
_TITLES = {
    "kept": "Kept: could be drawn",
    "relevant": "Dropped: judged relevant",
    "same_text": "Dropped: same text as a relevant one, or the query's own document",
    "above_positive_share": "Dropped: too near to the positive's score",
}


def add_round(folder: Path, report: Mapping[str, Any]) -> None:
    """Add the report of one mining (`Mined.report`) to those in `folder`; a round that is mined again takes its old place."""
    before = load_rounds(folder) if (folder / REPORT_JSON).exists() else []
    rounds = sorted([*(r for r in before if r["round"] != report["round"]), dict(report)], key=lambda r: int(r["round"]))
    write_json(folder / REPORT_JSON, {"rounds": rounds})
    write_atomic(folder / REPORT_MD, render(rounds).encode())


def load_rounds(folder: Path) -> list[dict[str, Any]]:
    """The reports of all minings in `folder`, in their order; raises ArtifactError when there are none."""
    rounds: list[dict[str, Any]] = read_json(folder / REPORT_JSON)["rounds"]
    return rounds


def render(rounds: Sequence[Mapping[str, Any]]) -> str:
    """The rounds as Markdown: a table of the counts, then the examples of each round."""
    header = "| round | pairs | candidates | kept | relevant | same text | too near | drawn | pairs with too few |"
    lines = ["# Mining of hard negatives", "", *_setting_lines(rounds), header, "|" + " ---: |" * 9, *map(_row, rounds), ""]
    for report in rounds:
        lines += [f"## Examples of round {report['round']}", "", *_example_lines(report["examples"])]
    return "\n".join(lines).rstrip() + "\n"


def _setting_lines(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rounds:
        return []
    last = rounds[-1]
    share = last["positive_share"]
    bound = "no bound on their score" if share is None else f"none above {share:g} of the positive's score"
    return [f"{last['hard_negatives']} for each pair, from the nearest {last['mining_depth']} documents, {bound}.", ""]


def _row(report: Mapping[str, Any]) -> str:
    dropped = report["dropped"]
    counts = [report[name] for name in ("round", "pairs", "candidates", "kept")]
    counts += [dropped[name] for name in ("relevant", "same_text", "above_positive_share")]
    return "| " + " | ".join(f"{count:,}" for count in [*counts, report["drawn"], report["pairs_with_too_few"]]) + " |"


def _example_lines(examples: Sequence[Mapping[str, Any]]) -> list[str]:
    lines: list[str] = []
    for reason, title in _TITLES.items():
        chosen = [example for example in examples if example["reason"] == reason]
        lines += [f"### {title}", ""] if chosen else []
        for example in chosen:
            lines += [
                f"- query: {_shown(example['query'])}",
                f"  - positive ({example['positive_score']:.3f}): {_shown(example['positive'])}",
                f"  - candidate ({example['candidate_score']:.3f}): {_shown(example['candidate'])}",
            ]
        lines += [""] if chosen else []
    return lines


def _shown(text: str) -> str:
    """One line of the text, cut, with nothing in it that Markdown would read as markup."""
    line = " ".join(text.split())
    line = line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
    return "`" + line.replace("`", "'") + "`"
