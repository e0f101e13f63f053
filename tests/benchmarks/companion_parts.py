"""What the two encoders of joined towers find alone and together: every finished training with a companion in a home, each on its own data.

    SCALINGNOTE_HOME=HOME python -m tests.benchmarks.companion_parts [--split test]

`tower` is the LLM's half alone and `companion` the small encoder's, queries and documents each through its own two towers; `joined` is
what the teacher of the release answers with. `companions` are two small encoders side by side at equal weights, that of this training and
that of the next seed: what joining gives without an LLM. `student` is what these towers taught, where the home holds one (with fewer layers
it is `student-LAYERS`); it finds the joined documents. Search is exact. Trainings that differ in the seed alone are one table, with
intervals that draw seeds and units of queries together.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
PAIRS = (
    ("joined", "tower"), ("joined", "companion"), ("joined", "companions"), ("companions", "companion"),
    ("student", "joined"), ("student", "companion"), ("student", "companions"),
)  # fmt: skip
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


@dataclass(frozen=True)
class Training:
    """One training and its seed; `similar`: how similar each part finds the judged queries and the documents, float32 (both)."""

    seed: int
    judged: Any
    documents: list[str]
    units: Any
    similar: dict[str, Any]


def measured(split: str) -> dict[str, list[Training]]:
    """Data and settings but the seed -> each training, by its seed."""
    from components.artifacts import digest_of
    from components.errors import ConfigError
    from components.settings import work_folder

    found: dict[str, list[Training]] = defaultdict(list)
    for folder, settings, data in trainings():
        same = {key: value for key, value in settings.items() if key != "seed"}
        label = f"data {data[:12]}, settings {digest_of(same)[:12]}"
        found[label].append(training(settings["seed"], folder, work_folder() / "snapshot_data" / data, split))
    if not found:
        raise ConfigError(f"{work_folder()} holds no finished towers with a companion. Build one: scalingnote retrain --preset demo")
    return {label: sorted(runs, key=lambda run: run.seed) for label, runs in found.items()}


def trainings() -> Iterator[tuple[Path, dict[str, Any], str]]:
    """Of finished joined towers their folder, the settings of the whole stage, and the key of their data."""
    from components.artifacts import is_complete, read_json
    from components.settings import work_folder

    def parts_of(made: dict[str, str]) -> Any:
        return read_json(work_folder() / made["step"] / f"{made['key']}.key.json")["parts"]

    for step in ("join_companion", "train_towers"):  # until 2026-11-30 a companion was a part of the towers' training
        for path in sorted((work_folder() / step).glob("*.key.json")):
            folder, parts = path.with_name(path.name.removesuffix(".key.json")), read_json(path)["parts"]
            joined = [parts_of(parts["inputs"][role]) for role in ("companion", "towers") if role in parts["inputs"]]
            settings = {key.removeprefix("towers."): value for part in (*joined, parts) for key, value in part["settings"].items()}
            if settings.get("companion.base_model") and is_complete(folder):
                yield folder, settings, (joined or [parts])[-1]["inputs"]["dataset"]["key"]


def training(seed: int, towers: Path, data: Path, split: str) -> Training:
    """The judged queries of the split and all documents through both halves of these towers."""
    from components.data.dataset import load_dataset
    from components.distillation.student.storage import load_student
    from components.evaluation.summarize import judged_split
    from components.evaluation.units import query_units
    from components.index.shards import unit_rows
    from components.towers.encoder import JoinedTower, load_tower

    dataset = load_dataset(data)
    judged = judged_split(dataset, split)
    query = load_tower(towers / "query_tower")
    assert isinstance(query, JoinedTower)
    share, asked, doc_ids = query.contract.companion_share or 0.0, judged.texts, dataset.documents["doc_id"].tolist()
    both = documents_of(towers, doc_ids, dataset.document_texts())
    width = query.own.contract.dimension
    own, beside = unit_rows(both[:, :width]), unit_rows(both[:, width:])
    similar = {"tower": query.own.encode(asked) @ own.T, "companion": query.companion.encode(asked) @ beside.T}
    similar["joined"] = (1 - share) * similar["tower"] + share * similar["companion"]
    similar |= {name: load_student(folder).encode(asked) @ both.T for name, folder in students(towers)}
    return Training(seed, judged, doc_ids, query_units(judged, dataset).numbers, similar)


def documents_of(towers: Path, doc_ids: list[str], texts: list[str]) -> Any:
    """Joined vectors of the documents, float32 and of unit length: those of the finished corpus step (fp16), else encoded now."""
    from components.artifacts import is_complete, open_artifact, read_json
    from components.index.shards import read_vectors
    from components.towers.encoder import load_tower

    for path in sorted((towers.parents[1] / "encode_corpus").glob("*.key.json")):
        folder = path.with_name(path.name.removesuffix(".key.json"))
        if read_json(path)["parts"]["inputs"]["document_tower"].get("key") == towers.name and is_complete(folder):
            found = read_vectors(open_artifact(folder))
            row = {doc_id: number for number, doc_id in enumerate(found.doc_ids)}
            return found.vectors[[row[doc_id] for doc_id in doc_ids]]
    return load_tower(towers / "document_tower").encode(texts, progress=f"{towers.name}: documents")


def students(towers: Path) -> Iterator[tuple[str, Path]]:
    """The finished students of these towers that have a transformer, by how many layers they kept; of several alike the last one's."""
    from components.artifacts import is_complete, read_json

    for path in sorted((towers.parents[1] / "distil_query_tower").glob("*.key.json"), key=lambda path: path.stat().st_mtime):
        parts, folder = read_json(path)["parts"], path.with_name(path.name.removesuffix(".key.json"))
        layers, form = (parts["settings"].get(f"distillation.{name}") for name in ("layers", "form"))
        if parts["inputs"]["query_tower"]["key"] == towers.name and form == "transformer" and is_complete(folder):
            yield ("student" if layers is None else f"student-{layers}"), folder


def scores(run: Training, following: Training | None) -> Any:
    """(part, metric) -> a value for each judged query; `following`: the training whose companion stands beside this one's."""
    import pandas as pd

    from components.evaluation.metrics import per_query_metrics
    from components.evaluation.summarize import scores_of

    beside = {} if following is None else {"companions": (run.similar["companion"] + following.similar["companion"]) / 2}
    frames = []
    for part, found in (run.similar | beside).items():
        best = (-found).argsort(axis=1, kind="stable")[:, :100]
        rows = zip(run.judged.query_ids, found, best, strict=True)
        rankings = {query: [(run.documents[d], float(row[d])) for d in top] for query, row, top in rows}
        frames.append(per_query_metrics(run.judged.judgements, rankings).assign(system=part))
    return scores_of(pd.concat(frames), run.judged.query_ids)


def lines(runs: list[Training]) -> list[str]:
    """A line for each part and metric, and one for each difference, with its p by Holm over all differences."""
    from components.evaluation.units import seeded_interval
    from components.studies.report import holm

    said = [f"  seeds {', '.join(str(run.seed) for run in runs)}"]
    several, units = len(runs) > 1, runs[0].units
    found = [scores(run, runs[(place + 1) % len(runs)] if several else None) for place, run in enumerate(runs)]
    parts = [part for part, metric in found[0] if metric == METRICS[0] and all((part, metric) in each for each in found)]
    for metric in METRICS:
        for part in parts:
            end = seeded_interval([each[part, metric] for each in found], None, "mean", units=units)
            said.append(f"  {metric:10} {part:22} {end.difference:.3f} [{end.low:.3f} {end.high:.3f}]")
    compared = {}
    for metric in METRICS:
        for one, other in PAIRS:
            if one in parts and other in parts:
                first, second = ([each[part, metric] for each in found] for part in (one, other))
                compared[metric, f"{one} - {other}"] = seeded_interval(first, second, units=units)
    chances = holm([1.0 if end.p is None else end.p for end in compared.values()])
    for ((metric, pair), end), chance in zip(compared.items(), chances, strict=True):
        said.append(f"  {metric:10} {pair:22} {end.difference:+.3f} [{end.low:+.3f} {end.high:+.3f}] p {chance:.2g}")
    return said


if __name__ == "__main__":
    main()
