"""Differences between any systems of a finished study that scores per query, such as those that its own table does not compare.

    SCALINGNOTE_HOME=HOME python -m tests.benchmarks.study_pairs worth layers-6+bm25,teacher+bm25 untrained+bm25 [--split test]

Each of the first systems minus the last one (or each of several, with commas), for the report of the study that was made or used last.
Intervals draw seeds and units of queries together; p by Holm over the lines that are printed. A system that was trained with one seed
alone claims nothing, and has no p.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
METRICS = ("recall@50", "ndcg@10")
KEYS = ".key.json"


class Run(NamedTuple):
    """One measured cell of a study: the folder of its scores, and whether a seed was what it differs by from others of its system."""

    folder: Path
    trained: bool


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of the study, such as worth")
    parser.add_argument("systems", help="names of systems with commas between them")
    parser.add_argument("baseline", help="the system that they are held against, or several with commas")
    parser.add_argument("--split", default="test")
    options = parser.parse_args(arguments)
    from components import settings
    from components.errors import ScalingNoteError

    try:
        report, cells = newest(options.study)
        settings.activate()  # not before: it would make a home where there is none
        systems, baselines = ([name.strip() for name in given.split(",")] for given in (options.systems, options.baseline))
        found = lines(cells, systems, baselines, options.split)
        print("\n".join([f"{options.study}, {report}", *found]))
    except ScalingNoteError as error:
        sys.exit(f"{error}")


def newest(study: str) -> tuple[str, dict[str, list[Run]]]:
    """Name of the report of `study` that was made or used last, and its systems with the scores of each of their seeds.

    Raises ConfigError when there is none.
    """
    from components.artifacts import is_complete, read_json
    from components.errors import ConfigError
    from components.settings import work_folder

    records = [(path, read_json(path)) for path in sorted((work_folder() / "study_report").glob(f"*{KEYS}"))]
    # By the times that stand there: a copy of a home has others of its files.
    for path, record in sorted(records, key=lambda entry: _last_use(entry[1]), reverse=True):
        made = path.with_name(path.name.removesuffix(KEYS))
        if record["parts"]["settings"].get("study") != study or not is_complete(made):
            continue
        found: dict[str, list[Run]] = {}
        for cell, given in sorted(record["parts"]["inputs"].items()):
            name, mark, _ = cell.rpartition("@")
            folder = work_folder() / given.get("step", "") / given.get("key", "")
            found.setdefault(name or cell, []).append(Run(folder, bool(mark)))
        return f"report {made.name[:8]} of {_last_use(record)}", found
    raise ConfigError(f"{work_folder()} holds no finished report of the study '{study}'. Run it: scalingnote study {study}")


def _last_use(record: dict[str, Any]) -> str:
    return max([record["begun"]["at"], record.get("finished_at", ""), *(use["at"] for use in record.get("uses", {}).values())])


def lines(cells: dict[str, list[Run]], systems: Sequence[str], baselines: Sequence[str], split: str) -> list[str]:
    """One line for each difference; raises ConfigError for systems and splits that cannot be compared."""
    from components.errors import ConfigError
    from components.evaluation.units import seeded_interval
    from components.studies.report import holm
    from components.studies.scores import load_scores

    for baseline in baselines:
        _require_pairs(cells, systems, baseline)
    _require_once(baselines)
    scores = {name: [load_scores(run.folder) for run in cells[name]] for name in (*systems, *baselines)}
    first = scores[baselines[0]][0]
    if split not in (splits := {of for of, _ in first}):
        raise ConfigError(f"'{split}' was not scored. Splits: {', '.join(sorted(splits))}.")
    compared = {}
    for name, baseline, metric in product(systems, baselines, METRICS):
        ours, theirs = ([each[split, metric] for each in scores[system]] for system in (name, baseline))
        compared[name, baseline, metric] = seeded_interval(ours, theirs, units=first.units[split])
    silent = {name for name in (*systems, *baselines) if _one_seed(cells[name])}
    claimed = {pair: end.p for pair, end in compared.items() if end.p is not None and silent.isdisjoint(pair[:2])}
    chances = dict(zip(claimed, holm(list(claimed.values())), strict=True))
    told = []
    for (name, baseline, metric), end in compared.items():
        pair, alone = (name, baseline, metric), [system for system in (name, baseline) if system in silent]
        chance = f"p {chances[pair]:.2g}" if pair in chances else "no p"
        why = f" ({' and '.join(alone)} trained with one seed: no claim)" if alone else ""
        told.append(f"{name} - {baseline} {metric} {end.difference:+.3f} [{end.low:+.3f} {end.high:+.3f}] {chance}{why}")
    return told


def _one_seed(runs: Sequence[Run]) -> bool:
    return len(runs) == 1 and runs[0].trained


def _require_pairs(cells: dict[str, list[Run]], systems: Sequence[str], baseline: str) -> None:
    from components.errors import ConfigError
    from components.studies.scores import SCORES_FILE

    known = sorted(name for name, runs in cells.items() if all((run.folder / SCORES_FILE).is_file() for run in runs))
    if not known:
        raise ConfigError("The study has no scores per query in this home: it measures something else, or they were removed.")
    if (unknown := next((name for name in (*systems, baseline) if name not in known), None)) is not None:
        raise ConfigError(f"The study has no system '{unknown}' with scores per query. Systems: {', '.join(known)}.")
    _require_once(systems)
    if baseline in systems:
        raise ConfigError(f"'{baseline}' cannot be held against itself. Leave it out of the systems.")


def _require_once(names: Sequence[str]) -> None:
    from components.errors import ConfigError

    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"'{twice}' is named twice, and would count twice in Holm's correction. Name each system once.")


if __name__ == "__main__":
    main()
