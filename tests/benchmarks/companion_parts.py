"""What the two encoders of joined towers find alone and together: every finished training with a companion in a home, each on its own data.

    SCALINGNOTE_HOME=HOME python -m tests.benchmarks.companion_parts [--split test]

`tower` is the LLM's half alone and `companion` the small encoder's, queries and documents each through its own two towers; `joined` is
what the teacher of the release answers with. Search is exact. Trainings that differ in the seed alone are one line, with intervals that
draw seeds and units of queries together.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
PARTS = ("tower", "companion", "joined")
PAIRS = (("joined", "tower"), ("joined", "companion"))
METRICS = ("recall@50", "ndcg@10")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="test")
    split = parser.parse_args().split
    from components import settings

    settings.activate()
    from components.errors import ScalingNoteError

    try:
        for label, found in measured(split).items():
            print("\n".join([label, *lines(found)]))
    except ScalingNoteError as error:
        sys.exit(f"{error}")


def measured(split: str) -> dict[str, list[Any]]:
    """Data and settings but the seed -> (seed, per-query scores, units) of each training."""
    from components.artifacts import digest_of, is_complete, read_json
    from components.errors import ConfigError
    from components.settings import work_folder

    found: dict[str, list[Any]] = defaultdict(list)
    for path in sorted((work_folder() / "train_towers").glob("*.key.json")):
        folder = path.with_name(path.name.removesuffix(".key.json"))
        parts = read_json(path)["parts"]
        settings = {key.removeprefix("towers."): value for key, value in parts["settings"].items()}
        if not settings.get("companion.base_model") or not is_complete(folder):
            continue
        same = {key: value for key, value in settings.items() if key != "seed"}
        data = parts["inputs"]["dataset"]["key"]
        label = f"data {data[:12]}, settings {digest_of(same)[:12]}"
        found[label].append((settings["seed"], *scores(folder, work_folder() / "snapshot_data" / data, split)))
    if not found:
        raise ConfigError(f"{work_folder()} holds no finished towers with a companion. Build one: scalingnote retrain --preset demo")
    return found


def scores(towers: Path, data: Path, split: str) -> tuple[Any, Any]:
    """(system, metric) -> a value for each judged query, and the queries' units."""
    import pandas as pd

    from components.data.dataset import load_dataset
    from components.evaluation.metrics import per_query_metrics
    from components.evaluation.summarize import judged_split, scores_of
    from components.evaluation.units import query_units
    from components.towers.encoder import JoinedTower, load_tower

    dataset = load_dataset(data)
    judged = judged_split(dataset, split)
    query, document = (load_tower(towers / f"{role}_tower") for role in ("query", "document"))
    assert isinstance(query, JoinedTower) and isinstance(document, JoinedTower)
    share, texts, ids = query.contract.companion_share or 0.0, dataset.document_texts(), dataset.documents["doc_id"].tolist()
    tower = query.own.encode(judged.texts) @ document.own.encode(texts, progress=f"{towers.name}: documents").T
    companion = query.companion.encode(judged.texts) @ document.companion.encode(texts).T
    frames = []
    for part, similar in zip(PARTS, (tower, companion, (1 - share) * tower + share * companion), strict=True):
        best = (-similar).argsort(axis=1, kind="stable")[:, :100]
        rankings = {q: [(ids[d], float(row[d])) for d in top] for q, row, top in zip(judged.query_ids, similar, best, strict=True)}
        frames.append(per_query_metrics(judged.judgements, rankings).assign(system=part))
    return scores_of(pd.concat(frames), judged.query_ids), query_units(judged, dataset).numbers


def lines(runs: list[Any]) -> list[str]:
    """A line for each part, and for each difference."""
    from components.evaluation.units import seeded_interval

    said = [f"  seeds {', '.join(str(seed) for seed, _, _ in sorted(runs, key=lambda run: run[0]))}"]
    units = runs[0][2]
    for metric in METRICS:
        for part in PARTS:
            values = [found[part, metric] for _, found, _ in runs]
            end = seeded_interval(values, None, "mean", units=units)
            said.append(f"  {metric:10} {part:20} {end.difference:.3f} [{end.low:.3f} {end.high:.3f}]")
        for one, other in PAIRS:
            first, second = ([found[part, metric] for _, found, _ in runs] for part in (one, other))
            end = seeded_interval(first, second, units=units)
            said.append(f"  {metric:10} {one + ' - ' + other:20} {end.difference:+.3f} [{end.low:+.3f} {end.high:+.3f}]")
    return said


if __name__ == "__main__":
    main()
