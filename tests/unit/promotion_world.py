"""Complete small releases on disk, for the tests of the promotion room; the registry in memory stands beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.artifacts import Artifact, seal, write_json
from components.data.validation_report import ContractUsed, ValidationReport
from components.evaluation.champion_comparison import CANDIDATE, CHAMPION, SERVED, ComparisonSummary
from components.evaluation.report import (
    AnnSummary,
    EncoderSpeed,
    Evaluation,
    HealthSummary,
    SpeedSummary,
    Summary,
    SystemSummary,
    load_evaluation,
    write_report,
)
from components.gates.config import PolicyConfig
from components.gates.decide import GateInputs, decide
from components.gates.decision import Findings, write_facts
from components.release.champion import ChampionEvaluation, load_champion_evaluation
from components.release.manifest import (
    REPORT_PAGE,
    DatasetPin,
    LineageNode,
    Pin,
    Pins,
    ReleaseManifest,
    SmokeQuery,
    evaluation_pin,
    write_candidate,
)
from components.towers.contract import EncodingContract, save_contract, space_id_of
from components.tracking import registry
from components.tracking.provenance import Provenance, version_tags
from components.tracking.registry import RegisteredVersion
from components.tracking.runs import StepRecord, open_flow_run, record_step
from tests.unit.memory_tracking import Killed as Killed
from tests.unit.memory_tracking import MemoryTracking as MemoryTracking

NAME = "retriever"
# Nothing is timed or counted here.
POLICY = PolicyConfig(min_queries=20, min_slice_queries=15, max_p95_ratio=None, min_qps_ratio=None, max_removed_share=None)
FACTS = Findings(contract_errors=0, contract_warnings=0, lineage_gaps=(), space_mismatches=())
GOOD = {"student": 0.70, "teacher": 0.72, "bm25": 0.40, "student_untrained": 0.30}
CONTRACT = EncodingContract(
    role="document",
    base_model="tiny",
    base_digest="b",
    adapter_digest="a",
    tokenizer_digest="t",
    pooling="last",
    normalize=True,
    prompt="document: ",
    append_eos=True,
    max_length=32,
    dimension=8,
)
SPACE = space_id_of(CONTRACT)


def make_evaluation(levels: Mapping[str, float] = GOOD, queries: int = 40, judgements: str = "j1", speed_up: float = 5.0) -> Evaluation:
    """Every system has `level` on the mean of each metric, with the same spread over queries in two slices; the index loses nothing."""
    spread = np.linspace(-0.15, 0.15, queries)
    ids = [f"q{n:03d}" for n in range(queries)]
    tables = [
        pd.DataFrame({"query_id": ids, "system": system, "metric": metric, "value": level + spread})
        for system, level in levels.items()
        for metric in ("recall@50", "ndcg@10")
    ]
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["query_id", "system", "metric", "value"])
    slices = pd.DataFrame({"query_id": ids, "dimension": "half", "slice": ["even", "odd"] * (queries // 2) + ["even"] * (queries % 2)})
    return with_ann(Evaluation(_summary(levels, queries, judgements, speed_up), rows, slices=slices), np.ones(queries))


def with_ann(report: Evaluation, recall: NDArray[np.float64]) -> Evaluation:
    """The report with this recall@100 of the index for the first queries."""
    values = pd.DataFrame({"query_id": [f"q{n:03d}" for n in range(len(recall))], "metric": "recall@100", "value": recall})
    mean = float(recall.mean())
    ann = AnnSummary(
        queries=len(recall),
        documents=3,
        recall={"recall@100": mean},
        intervals={"recall@100": (mean, mean)},
        ndcg_lost=0.002,
        ndcg_lost_interval=(0.0, 0.004),
    )
    return replace(report, summary=report.summary.model_copy(update={"ann": ann}), ann=values)


def _summary(levels: Mapping[str, float], queries: int, judgements: str, speed_up: float) -> Summary:
    timed = EncoderSpeed(p50_ms=1.0, p95_ms=2.0, qps=100.0, batch_size=32, queries=20)
    both = {"student", "teacher"} <= set(levels)
    return Summary(
        split="test",
        queries=queries,
        documents=3,
        depth=100,
        confidence=0.95,
        judgements_digest=judgements,
        systems={name: SystemSummary(metrics={"recall@50": v, "ndcg@10": v}, intervals={}) for name, v in levels.items()},
        comparisons=(),
        retention={"recall@50": levels["student"] / levels["teacher"]} if both else {},
        retention_intervals={},
        speed=SpeedSummary(teacher=timed, student=timed.model_copy(update={"qps": 100 * speed_up}), speed_up=speed_up, search_p50_ms=0.1),
        health={name: HealthSummary(mean_cosine=0.1, effective_rank=20.0, queries=queries) for name in ("teacher", "student")},
    )


def make_values(candidate: Evaluation, champion: Evaluation, served: NDArray[np.float64] | None = None) -> pd.DataFrame:
    """What the students of both reports reached, as the comparison keeps it; `served`: the champion's shares of relevant documents."""
    sides = ((CANDIDATE, candidate), (CHAMPION, champion))
    tables = [report.per_query[report.per_query["system"] == "student"].assign(system=name) for name, report in sides]
    if served is not None:
        ids = sorted(candidate.per_query["query_id"].unique())
        tables.append(pd.DataFrame({"query_id": ids, "system": CHAMPION, "metric": SERVED, "value": served}))
    return pd.concat(tables, ignore_index=True)


def make_comparison(p95_ms: float = 2.0, qps: float = 100.0, queries: int = 40, removed: int | None = 0) -> ComparisonSummary:
    """Candidate and champion timed in one run; the champion takes 2 ms, answers 100 queries per second and has 1,000 documents."""
    speeds = [EncoderSpeed(p50_ms=1.0, p95_ms=p95, qps=rate, batch_size=32, queries=20) for p95, rate in ((p95_ms, qps), (2.0, 100.0))]
    return ComparisonSummary(
        baseline_version=1,
        judgements_digest="j1",
        queries=queries,
        candidate=speeds[0],
        champion=speeds[1],
        sizes={"champion": {"documents": 1000}},
        removed=removed,
    )


def no_smoke(manifest: ReleaseManifest) -> None:
    """In place of the smoke queries of a promotion, where no release can answer any."""
    assert manifest.name == NAME


Register = Callable[[str, Artifact], RegisteredVersion]
PROVENANCE = Provenance(
    code_revision="abc",
    dirty=False,
    patch_digest=None,
    code_digest="c" * 64,
    lock_digest="e" * 64,
    python="3.11",
    packages={},
    platform="test",
    user="somebody",
)


def into_mlflow() -> Register:
    """Registers parts and candidates in the tracking store that the environment names, as steps of one flow run."""
    parent = open_flow_run(NAME, "retrain", {}, PROVENANCE, {})

    def register(model: str, artifact: Artifact) -> RegisteredVersion:
        run = record_step(parent, StepRecord(model, {}, artifact))
        return registry.register(model, artifact, run, {}, version_tags(PROVENANCE, "d" * 64, {}, "flow-1"))

    return register


def make_candidate(root: Path, register: Register, levels: Mapping[str, float] = GOOD) -> RegisteredVersion:
    """Build and register one complete candidate under `root`, decided against the champion there is."""
    pins = {role: register(f"{NAME}-{role.replace('_', '-')}", make_part(root / role, role)) for role in Pins.model_fields}
    evaluation = _evaluation(root / "evaluation", levels, {role: pin.digest for role, pin in pins.items()})
    validation = _folder(root / "validation")
    checked = ContractUsed(name="documents", version="1.0.0", file="documents.yaml", sha256="0" * 64)
    write_json(
        validation / "report.json",
        ValidationReport(dataset="toy", dataset_digest="d" * 64, counts={}, contracts=(checked,), results=()).model_dump(),
    )
    seal(validation, "validation", attributes={"passed": True})
    report, baseline = load_evaluation(evaluation.path), load_champion_evaluation(NAME)
    manifest = ReleaseManifest(
        name=NAME,
        space_id=SPACE,
        pins=Pins(**{role: Pin(model=pin.name, version=pin.version, digest=pin.digest) for role, pin in pins.items()}),
        dataset=DatasetPin(name="toy", digest="d" * 64, source_digest="s" * 64, contracts={"documents": "1.0.0"}),
        evaluation=evaluation_pin(report.summary, evaluation.digest),
        decision=decide(_evidence(report, baseline), POLICY),
        baseline_version=baseline.version if baseline else None,
        smoke=(SmokeQuery(query="heart attack", doc_ids=("d1",)),),
        provenance={"code_revision": "abc", "dirty": True, "lock_digest": "l", "platform": "test machine", "packages": {"numpy": "2"}},
        config={"policy": POLICY.model_dump(mode="json"), "data": {"source": "toy"}},
        lineage=_lineage(pins, evaluation),
        flow_run_id="flow-1",
    )
    folder = _folder(root / "candidate")
    write_facts(folder, FACTS)
    (folder / REPORT_PAGE).write_text("<!doctype html><title>evidence</title>")
    return register(f"{NAME}-candidate", write_candidate(manifest, evaluation.path, validation, folder))


def _evidence(report: Evaluation, baseline: ChampionEvaluation | None) -> GateInputs:
    if baseline is None:
        return GateInputs(report, facts=FACTS)
    return GateInputs(report, baseline.evaluation, facts=FACTS, champion=baseline.version, lost=baseline.lost)


def make_part(folder: Path, role: str) -> Artifact:
    """One of the four artifacts that a release pins, with next to nothing in it."""
    _folder(folder)
    if role == "index":
        ids = pd.DataFrame({"doc_id": ["d1", "d2"], "content_hash": ["h1", "h2"], "shard": pd.array([0, 1], dtype="int32")})
        ids.to_parquet(folder / "doc_ids.parquet", index=False)
        return seal(folder, "index", parents={"vectors": "v" * 64}, attributes={"space_id": SPACE})
    contract = CONTRACT if role == "document_tower" else CONTRACT.model_copy(update={"role": "query", "base_model": role})
    save_contract(folder, contract, SPACE)
    (folder / "weights.bin").write_bytes(str(folder).encode())  # every candidate has weights of its own
    return seal(folder, "encoder", parents={"dataset": "d" * 64}, attributes={"space_id": SPACE})


def _evaluation(folder: Path, levels: Mapping[str, float], parents: Mapping[str, str]) -> Artifact:
    report = make_evaluation(levels)
    write_report(_folder(folder), report)
    return seal(folder, "evaluation", parents=parents)


def _lineage(pins: Mapping[str, RegisteredVersion], evaluation: Artifact) -> tuple[LineageNode, ...]:
    data = LineageNode(digest="d" * 64, kind="dataset", name="toy", counts={"documents": 2})
    vectors = LineageNode(digest="v" * 64, kind="vectors", name="corpus", parents={"document_tower": pins["document_tower"].digest})
    nodes = [
        LineageNode(
            digest=pin.digest,
            kind="index" if role == "index" else "encoder",
            name=role,
            parents={"vectors": "v" * 64} if role == "index" else {"dataset": "d" * 64},
            run_id=f"run-{role}",
        )
        for role, pin in pins.items()
    ]
    return (data, vectors, *nodes, LineageNode(digest=evaluation.digest, kind="evaluation", name="test", parents=evaluation.parents))


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@dataclass
class World:
    """Tracking in memory, and candidates made into it."""

    tracking: MemoryTracking
    root: Path

    def candidate(self, levels: Mapping[str, float] = GOOD) -> int:
        number = len(self.tracking.models.get(f"{NAME}-candidate", [])) + 1
        return make_candidate(self.root / str(number), self._register, levels).version

    def _register(self, model: str, artifact: Artifact) -> RegisteredVersion:
        return RegisteredVersion(name=model, version=self.tracking.add(model, artifact.path, artifact.digest), digest=artifact.digest)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change `release.json` and seal the folder again, as somebody with write access to the store could."""
    from components.artifacts import read_json, read_manifest

    manifest = read_manifest(folder)
    content = read_json(folder / "release.json")
    change(content)
    write_json(folder / "release.json", content)
    seal(folder, manifest.kind, counts=manifest.counts, parents=manifest.parents, attributes=manifest.attributes)
