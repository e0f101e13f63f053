"""Differences between any systems of a finished study that scores per query, such as those that its own table does not compare.

    SCALINGNOTE_HOME=HOME python -m tests.benchmarks.study_pairs worth layers-6+bm25,teacher+bm25 untrained+bm25 [--split test]

Each of the first systems minus the last one, for the study's newest finished report. Intervals draw seeds and units of queries together;
p by Holm over the lines that are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
METRICS = ("recall@50", "ndcg@10")


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="name of the study, such as worth")
    parser.add_argument("systems", help="names of systems with commas between them")
    parser.add_argument("baseline", help="the system that they are held against")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    from components import settings

    settings.activate()
    from components.errors import ScalingNoteError

    try:
        print("\n".join(lines(newest(options.study), options.systems.split(","), options.baseline, options.split)))
    except ScalingNoteError as error:
        sys.exit(f"{error}")


def newest(study: str) -> dict[str, list[Path]]:
    """System -> folders of its scores, one for each seed, of the newest report of `study`; raises ConfigError when there is none."""
    from components.artifacts import is_complete, read_json
    from components.errors import ConfigError
    from components.settings import work_folder

    reports = sorted((work_folder() / "study_report").glob("*.key.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(reports):
        made = path.with_name(path.name.removesuffix(".key.json"))
        if not is_complete(made) or read_json(path)["parts"]["settings"].get("study") != study:
            continue
        found: dict[str, list[Path]] = defaultdict(list)
        for cell, given in sorted(read_json(path)["parts"]["inputs"].items()):
            found[cell.partition("@")[0]].append(work_folder() / given["step"] / given["key"])
        return found
    raise ConfigError(f"{work_folder()} holds no finished report of the study '{study}'. Run it: scalingnote study {study}")


def lines(cells: dict[str, list[Path]], systems: list[str], baseline: str, split: str) -> list[str]:
    """One line for each difference."""
    from components.errors import ConfigError
    from components.evaluation.units import seeded_interval
    from components.studies.report import holm
    from components.studies.scores import load_scores

    if unknown := [name for name in (*systems, baseline) if name not in cells]:
        raise ConfigError(f"The study has no system '{unknown[0]}'. Systems: {', '.join(sorted(cells))}.")
    scores = {name: [load_scores(folder) for folder in cells[name]] for name in (*systems, baseline)}
    if split not in (splits := {of for of, _ in scores[baseline][0]}):
        raise ConfigError(f"'{split}' was not scored. Splits: {', '.join(sorted(splits))}.")
    units = scores[baseline][0].units[split]
    compared = {}
    for name in systems:
        for metric in METRICS:
            first, second = ([each[split, metric] for each in scores[system]] for system in (name, baseline))
            compared[name, metric] = seeded_interval(first, second, units=units)
    chances = holm([1.0 if end.p is None else end.p for end in compared.values()])
    return [
        f"{name} - {baseline} {metric} {end.difference:+.3f} [{end.low:+.3f} {end.high:+.3f}] p {chance:.2g}"
        for ((name, metric), end), chance in zip(compared.items(), chances, strict=True)
    ]


if __name__ == "__main__":
    main()
