"""Two evaluations held against each other: equal, within tolerance, different, and always the first difference by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from components.artifacts import DatasetArtifact, open_artifact, read_json, seal, verify, write_json
from components.data.config import DataConfig
from components.data.snapshot import snapshot
from components.data.sources import source_digest
from components.errors import ArtifactError, DataError
from components.evaluation.report import write_report
from components.promotion.approval import approve
from components.promotion.promote import promote
from components.release.manifest import LineageNode, load_release
from flows import replay as replaying
from flows import servers
from flows.replay import Replayed, compare_evaluations, compare_lineage
from flows.reporting import emit
from flows.servers import ServerError
from tests.data_world import write_folder
from tests.unit.promotion_world import NAME, MemoryTracking, World, make_evaluation, no_smoke


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """The same evaluation twice."""
    made = make_evaluation()
    for name in ("recorded", "again"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, made)
    return tmp_path / "recorded", tmp_path / "again"


def change_report(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = read_json(folder / "report.json")
    change(content)
    write_json(folder / "report.json", content)


def change_query(folder: Path, value: float) -> None:
    table = pd.read_parquet(folder / "per_query.parquet")
    table.loc[0, "value"] = value
    table.to_parquet(folder / "per_query.parquet", index=False)


def test_the_same_values_are_equal_and_counted(folders: tuple[Path, Path]) -> None:
    found = compare_evaluations(*folders)
    assert (found.outcome, found.differing, found.first) == ("equal", 0, None)
    assert found.values > 4 * 2 * 40  # every system, metric and query, and the figures above them
    assert found.text().startswith("equal: ")


def test_times_are_not_compared(folders: tuple[Path, Path]) -> None:
    change_report(folders[1], lambda report: report["speed"]["student"].update(p50_ms=99.0))
    assert compare_evaluations(*folders).outcome == "equal"


def test_systems_and_comparisons_that_a_later_version_adds_are_left_out(folders: tuple[Path, Path]) -> None:
    def add(report: dict[str, Any]) -> None:
        report["systems"]["student_fused"] = report["systems"]["student"]
        new = [{**compared, "system": "student_fused"} for compared in report["comparisons"]]
        report["comparisons"] = [*new, *report["comparisons"]]

    change_report(folders[1], add)
    path = folders[1] / "per_query.parquet"
    table = pd.read_parquet(path)
    pd.concat([table, table[table["system"] == "student"].assign(system="student_fused")]).to_parquet(path, index=False)
    assert compare_evaluations(*folders).outcome == "equal"
    assert compare_evaluations(*reversed(folders)).outcome == "different"  # one that is not given any more
    missing = table[table["query_id"] != table["query_id"].iloc[0]]
    missing.to_parquet(path, index=False)
    assert compare_evaluations(*folders).outcome == "different"


def test_what_queries_are_worth_is_not_compared_with_what_an_older_arithmetic_said(folders: tuple[Path, Path]) -> None:
    told = {"rule": "each page", "units": 9, "largest": 20, "design_effects": {"ndcg@10": 1.2}, "words": "worth 33"}
    change_report(folders[0], lambda report: report.update(units=told))
    new = {**told, "design_effects": {"ndcg@10": 4.0}, "words": "worth 10", "spread": "left_out"}
    change_report(folders[1], lambda report: report.update(units=new))
    assert compare_evaluations(*folders).outcome == "equal"
    assert str(compare_evaluations(*reversed(folders)).first).startswith("units.")
    change_report(folders[1], lambda report: report.update(units={**new, "units": 8}))
    assert str(compare_evaluations(*folders).first).startswith("units.units")


def test_a_query_more_of_a_recorded_system_is_a_difference(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "per_query.parquet"
    table = pd.read_parquet(path)
    pd.concat([table, table.iloc[:1].assign(query_id="another")]).to_parquet(path, index=False)
    assert compare_evaluations(*folders).outcome == "different"


def test_a_single_query_may_differ_while_the_figures_hold(folders: tuple[Path, Path]) -> None:
    change_query(folders[1], 0.9)
    found = compare_evaluations(*folders)
    assert (found.outcome, found.differing) == ("within tolerance", 1)
    assert found.first is not None and found.first.where == "query q000 student recall@50 (per_query.parquet)"
    assert (found.first.recorded, found.first.found) == (pytest.approx(0.55), 0.9)


def test_a_figure_is_held_against_the_tolerance(folders: tuple[Path, Path]) -> None:
    change_report(folders[1], lambda report: report["systems"]["student"]["metrics"].update({"ndcg@10": 0.7005}))
    assert compare_evaluations(*folders).outcome == "within tolerance"
    found = compare_evaluations(*folders, tolerance=1e-4)
    assert found.outcome == "different"
    assert str(found.first) == "systems.student.metrics.ndcg@10: recorded 0.7, found 0.7005"


def test_what_is_missing_or_of_another_kind_is_different(folders: tuple[Path, Path]) -> None:
    change_report(folders[1], lambda report: report["systems"].pop("bm25"))
    found = compare_evaluations(*folders)
    assert found.outcome == "different" and "systems.bm25" in str(found.first) and "found nothing" in str(found.first)


def test_a_missing_table_or_query_is_different(folders: tuple[Path, Path]) -> None:
    table = pd.read_parquet(folders[1] / "per_query.parquet")
    table.iloc[1:].to_parquet(folders[1] / "per_query.parquet", index=False)
    assert compare_evaluations(*folders).outcome == "different"
    table.to_parquet(folders[1] / "per_query.parquet", index=False)
    (folders[1] / "ann.parquet").unlink()
    found = compare_evaluations(*folders)
    assert found.outcome == "different" and found.differing == 40 and "ann.parquet" in str(found.first)


def test_figures_that_a_later_version_adds_are_left_out(folders: tuple[Path, Path]) -> None:
    change_report(folders[1], lambda report: report.update(something_new=1))
    assert compare_evaluations(*folders).outcome == "equal"


def test_a_folder_without_a_report_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"report\.json is missing"):
        compare_evaluations(folders[0], tmp_path / "nowhere")


def node(name: str, digest: str, kind: str = "encoder") -> LineageNode:
    return LineageNode(digest=digest, kind=kind, name=name)


def test_a_build_is_compared_step_by_step() -> None:
    recorded = [node("data", "a", "dataset"), node("towers", "b"), node("student", "c"), node("evaluate", "d", "evaluation")]
    again = [node("data", "a", "dataset"), node("towers", "b"), node("student", "x"), node("evaluate", "y", "evaluation")]
    assert compare_lineage(recorded, recorded) == (3, None)
    equal, first = compare_lineage(recorded, again)
    assert (equal, str(first)) == (2, "student (encoder): recorded c, found x")
    assert str(compare_lineage(recorded, again[:2])[1]) == "student (encoder): recorded c, found nothing"
    assert str(compare_lineage(recorded, [*recorded, node("index", "b", "index")])[1]) == "index (index): recorded nothing, found b"


def test_parts_of_an_older_build_are_held_against_those_in_the_same_role_whatever_step_made_them() -> None:
    """Towers with a companion were once made in one step: paired by place, all that came after them was held against something else."""
    data, towers = node("data", "a", "dataset"), node("train_towers", "b", "towers")
    rest = [node("distil", "s"), node("index", "i", "index")]
    recorded = [data, towers, *(node("train_towers", digest) for digest in "qd"), *rest]
    again = [data, node("train_towers", "x", "towers"), node("train_companion", "y", "towers"), node("join_companion", "z", "towers")]
    again += [*(node("join_companion", digest) for digest in "qd"), *rest]
    roles = {"q": "query tower", "d": "document tower", "s": "query encoder", "i": "index"}
    equal, first = compare_lineage(recorded, again, (roles, roles))
    assert (equal, str(first)) == (5, "train_towers (towers): recorded b, found x")


def test_intervals_over_single_queries_are_not_held_against_those_over_units(folders: tuple[Path, Path]) -> None:
    """A report of before units were kept: its means are compared, its intervals nobody would compute again."""
    for folder, ends in zip(folders, ([0.4, 0.6], [0.2, 0.8]), strict=True):
        change_report(folder, lambda report, ends=ends: report["systems"]["student"]["intervals"].update({"ndcg@10": ends}))  # type: ignore[misc]
    assert compare_evaluations(*folders).outcome == "different"
    change_report(folders[1], lambda report: report.update(units={"rule": "by page", "units": 4, "largest": 10, "words": "w"}))
    assert compare_evaluations(*folders).outcome == "equal"
    change_report(folders[1], lambda report: report["systems"]["student"]["metrics"].update({"ndcg@10": 0.1}))
    assert compare_evaluations(*folders).outcome == "different"


def test_a_build_asks_for_its_servers_before_minutes_of_measuring(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "open_pinned", lambda *_: SimpleNamespace(title="release/1", manifest=SimpleNamespace(config={})))
    monkeypatch.setattr(replaying, "amend_config", lambda *_: None)
    monkeypatch.setattr(replaying, "_require_full", lambda _: None)
    monkeypatch.setattr(replaying, "_evaluate", lambda *_: pytest.fail("it was measured first"))
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}), pytest.raises(ServerError, match="does not answer"):
        replaying.replay("retriever", "release/1", build=True)


def test_the_release_that_it_was_compared_with_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay ended without a word of what it had measured: "There is no version 1"."""
    world = World(MemoryTracking(), tmp_path)
    world.tracking.install(monkeypatch)
    for _ in range(2):
        approve(NAME, world.candidate(), "Ada")
        promote(NAME, no_smoke)
    folder = tmp_path / "2" / "candidate"
    kept = SimpleNamespace(make=lambda place: shutil.copytree(folder / "evaluation", place, dirs_exist_ok=True))
    monkeypatch.setattr(replaying, "evaluation_step", lambda *_: kept)
    monkeypatch.setattr(replaying, "_dataset", lambda *_: None)
    monkeypatch.setattr(replaying, "EvaluationInputs", lambda *_: None)
    parts = dict.fromkeys(("query_tower", "query_encoder", "index"))
    base: Any = SimpleNamespace(artifact=open_artifact(folder), manifest=load_release(folder), **parts)
    config: Any = None
    again = [tmp_path / "whole", tmp_path / "lost"]
    for place in again:
        place.mkdir()
    assert replaying._evaluate(config, base, again[0], None)[1:] == ("pass", "")
    world.tracking.delete_version(f"{NAME}-release", 1)
    compared, verdict, lost = replaying._evaluate(config, base, again[1], None)
    assert (compared.outcome, verdict) == ("equal", "not_decidable")
    assert (
        "the gates against the champion cannot be decided again: release/1 of 'retriever' cannot be opened"
        in Replayed("release/2", compared, verdict, "pass", None, lost).text()
    )


def test_nobody_is_told_that_the_candidate_of_a_replay_waits(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A team's automations asked for a review of a candidate that lay in a folder which was removed after the replay."""
    told: list[str] = []
    monkeypatch.setattr("prefect.events.emit_event", lambda event, **_: told.append(event))

    def build(*_: object, **__: object) -> Any:
        emit("candidate.registered", "retriever", "candidate/1: pass. It waits for a reviewer")
        return SimpleNamespace(folder=str(tmp_path))

    built = SimpleNamespace(lineage=(), pins={})
    monkeypatch.setattr(servers, "run_flow", build)
    monkeypatch.setattr(replaying, "load_release", lambda _: built)
    monkeypatch.setattr(replaying, "compare_evaluations", lambda *_: None)
    base: Any = SimpleNamespace(manifest=built, artifact=SimpleNamespace(path=tmp_path))
    config: Any = None
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        replaying._build(config, base, tmp_path / "other")
        assert told == []
        build()
    assert told == ["scalingnote.candidate.registered"]


def test_data_that_is_given_is_read_although_the_tables_of_the_record_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other data was passed over, and the release called equal."""
    (tmp_path / "kept").mkdir()
    kept = seal(tmp_path / "kept", "dataset")
    recorded = SimpleNamespace(digest=kept.digest, name="clinic", source_digest="as it was")
    base: Any = SimpleNamespace(title="release/1", manifest=SimpleNamespace(dataset=recorded, lineage=()))
    config: Any = SimpleNamespace(data=SimpleNamespace(source="DIR"))
    monkeypatch.setattr(replaying, "_kept", lambda _: iter([DatasetArtifact(**kept.model_dump())]))
    monkeypatch.setattr("components.data.snapshot.snapshot", lambda _, folder: seal(folder, "dataset", counts={"documents": 1}))
    for given in (None, "as it was"):
        assert replaying._dataset(config, base, tmp_path / "read", given).digest == kept.digest
    with pytest.raises(DataError, match=r"DIR gives \w{12} now: it was changed since"):
        replaying._dataset(config, base, tmp_path / "read", "as it is now")


def test_the_same_tables_are_the_data_of_a_release_whatever_their_folder_and_form_are(tmp_path: Path, home: Path) -> None:
    """The folder's name and its files' form are a part of the digest, and a copy of the data elsewhere was called changed."""
    documents = [{"_id": f"d{n}", "title": f"t{n}", "text": f"words of document {n}"} for n in range(4)]
    queries = [{"_id": f"q{n}", "text": f"a question about {n}"} for n in range(4)]
    judged = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td{n}\t1\n" for n in range(4))

    def written(name: str, comma: bool, texts: Sequence[Mapping[str, str]] = queries) -> DataConfig:
        (tmp_path / name / "qrels").mkdir(parents=True)
        for table, rows in (("corpus", documents), ("queries", texts)):
            frame, path = pd.DataFrame(rows), tmp_path / name / table
            frame.to_csv(f"{path}.csv", index=False) if comma else frame.to_json(f"{path}.jsonl", orient="records", lines=True)
        for split in ("train", "dev", "test"):
            (tmp_path / name / "qrels" / f"{split}.tsv").write_text(judged, encoding="utf-8")
        return DataConfig(source=str(tmp_path / name))

    (tmp_path / "made").mkdir()
    made = snapshot(written("hospital", comma=False), tmp_path / "made")
    recorded = SimpleNamespace(digest=made.digest, name="hospital", source_digest=made.attributes["source_digest"])
    base: Any = SimpleNamespace(title="release/1", manifest=SimpleNamespace(dataset=recorded, lineage=()))
    for name, comma in (("copy", False), ("table", True)):
        config: Any = SimpleNamespace(data=written(name, comma))
        found = replaying._dataset(config, base, tmp_path / f"read-{name}", source_digest(config.data))
        assert found.digest == verify(tmp_path / f"read-{name}").digest == made.digest
    config = SimpleNamespace(data=written("other", comma=True, texts=[{**queries[0], "text": "another"}, *queries[1:]]))
    with pytest.raises(DataError, match="it was changed since"):
        replaying._dataset(config, base, tmp_path / "read-other", source_digest(config.data))


def test_mixed_tables_are_the_data_of_a_release_whatever_the_first_folder_and_the_files_of_its_splits_are_called(tmp_path: Path) -> None:
    """The names of mixed data sets, and that validation was read as dev, are a part of the digest too."""
    first, further = write_folder(tmp_path / "clinic"), write_folder(tmp_path / "wards")
    (first / "qrels" / "dev.tsv").rename(first / "qrels" / "validation.tsv")
    (tmp_path / "made").mkdir()
    made = snapshot(DataConfig(source=str(first), mix=(str(further),)), tmp_path / "made")
    recorded = SimpleNamespace(digest=made.digest, name="clinic+wards", source_digest=made.attributes["source_digest"])
    lineage = (LineageNode(digest=made.digest, kind="dataset", name="snapshot_data", counts=made.counts, attributes=made.attributes),)
    base: Any = SimpleNamespace(title="release/1", manifest=SimpleNamespace(dataset=recorded, lineage=lineage))
    first.rename(tmp_path / "copy")
    (tmp_path / "copy" / "qrels" / "validation.tsv").rename(tmp_path / "copy" / "qrels" / "valid.tsv")
    config: Any = SimpleNamespace(data=DataConfig(source=str(tmp_path / "copy"), mix=(str(further),)))
    assert replaying._dataset(config, base, tmp_path / "read", source_digest(config.data)).digest == made.digest
