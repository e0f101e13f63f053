"""What each mining of hard negatives kept and dropped, with examples: mining_report.json for programs, mining_report.md for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.artifacts import read_json, write_atomic, write_json

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
    lines = ["# Mining of hard negatives", "", *_settings(rounds), header, "|" + " ---: |" * 9, *map(_row, rounds), ""]
    for report in rounds:
        lines += [f"## Examples of round {report['round']}", "", *_examples(report["examples"])]
    return "\n".join(lines).rstrip() + "\n"


def _settings(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _examples(examples: Sequence[Mapping[str, Any]]) -> list[str]:
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
