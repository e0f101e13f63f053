"""Attacks on the chain of promotion records with plain MLflow calls, on a real store: cut, renamed, written into, copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from components import settings
from components.artifacts import digest_of, seal
from components.errors import ArtifactError, ConfigError, PromotionError
from components.promotion.approval import approve
from components.promotion.promote import promote, promotion_fingerprint, rollback
from components.promotion.status import compare_anchor, history_of, render_history, status_of
from components.release.champion import servable_release
from components.settings import RESERVED_ENDINGS
from components.signing.statements import check_audit
from components.tracking import embedded, registry
from components.tracking import promotion_records as chain
from components.tracking import promotion_records as records
from components.tracking.audit_log import AuditEntry
from components.tracking.promotion_records import ANCHOR, open_chain, read_record_files
from components.tracking.store import client
from flows.config import RetrainConfig
from tests.unit.memory_tracking import MemoryTracking
from tests.unit.promotion_world import GOOD, NAME, World, no_smoke

RELEASE, EXPERIMENT = f"{NAME}-release", f"{NAME}-promotions"


@pytest.fixture(params=["embedded view", "client"])
def store(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two promotions and a rollback from release/2 to release/1, read by both ways that there are."""
    if request.param == "client":
        monkeypatch.setattr(embedded, "KNOWN_SCHEMAS", frozenset())
        monkeypatch.setattr(chain, "local_path", lambda location: None)
    registry.ensure_model(RELEASE)
    for number in (1, 2):
        client().create_model_version(RELEASE, source=str(home), await_creation_for=0)
        record("promote", number)
    record("rollback", 1)
    return home


def record(action: str, version: int) -> dict[str, Any]:
    written = records.append_record(NAME, {"action": action, "to_version": version})
    records.state_head(NAME, records.read_records(NAME))
    return written


def cut(keep: int) -> None:
    """A shorter chain in the place of the true one, as its writer could make it; the runs that are left over look like killed ones."""
    opened = open_chain(EXPERIMENT)
    assert opened is not None
    shorter = client().create_run(opened.experiment)
    for number in range(1, keep + 1):
        key = f"record-{number:06d}"
        client().log_param(shorter.info.run_id, key, opened.claims[key])
    for run_id, _ in opened.places()[keep:]:
        client().set_terminated(run_id, "KILLED")
        client().delete_tag(run_id, chain.SEQUENCE)
    client().set_experiment_tag(opened.experiment, ANCHOR, shorter.info.run_id)


def test_a_chain_that_was_cut_is_found_by_the_tag_of_the_release(store: Path) -> None:
    cut(2)
    with pytest.raises(ArtifactError, match=r"were cut or replaced: retriever-release/1 names record 3"):
        records.read_records(NAME)


def test_a_chain_that_was_cut_is_found_by_the_run_that_was_left_over(store: Path) -> None:
    opened = open_chain(EXPERIMENT)
    assert opened is not None
    left = opened.places()[2][0]
    cut(2)
    client().set_tag(left, chain.SEQUENCE, "3")
    client().delete_model_version_tag(RELEASE, "1", records.HEAD)
    with pytest.raises(ArtifactError, match=f"run {left} is a promotion record outside the chain"):
        records.read_records(NAME)


def test_a_renamed_experiment_is_no_empty_chain(store: Path) -> None:
    experiment = client().get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client().rename_experiment(experiment.experiment_id, "elsewhere")
    client().rename_registered_model(RELEASE, "elsewhere-release")  # with the tags that name the head
    for read in (records.read_records, records.ensure_chain, lambda name: records.append_record(name, {"to_version": 2})):
        with pytest.raises(ArtifactError, match="with the promotion records is named 'elsewhere' now"):
            read(NAME)
    client().rename_experiment(experiment.experiment_id, EXPERIMENT)
    client().rename_registered_model("elsewhere-release", RELEASE)
    assert len(records.read_records(NAME)) == 3


def test_an_experiment_that_was_replaced_by_a_new_one_is_no_empty_chain(store: Path) -> None:
    experiment = client().get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client().rename_experiment(experiment.experiment_id, "elsewhere")
    fresh = client().create_run(experiment.experiment_id)
    client().create_experiment(EXPERIMENT, tags={ANCHOR: fresh.info.run_id})
    with pytest.raises(ArtifactError, match=r"were cut or replaced: .* there are 0"):
        records.read_records(NAME)


def test_records_of_another_retriever_are_not_read_as_ones_own(store: Path) -> None:
    records.append_record("other", {"action": "promote", "to_version": 1})
    mine, other = (client().get_experiment_by_name(f"{name}-promotions") for name in (NAME, "other"))
    assert mine is not None and other is not None
    client().rename_experiment(mine.experiment_id, "away")
    client().rename_experiment(other.experiment_id, EXPERIMENT)
    with pytest.raises(ArtifactError, match="record 1 is one of the retriever 'other'"):
        records.read_records(NAME)


def test_an_auditors_anchor_finds_what_was_cut_with_all_tags(store: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.json"
    assert "was made" in compare_anchor(NAME, anchor)
    assert "record 3 is where it was" in compare_anchor(NAME, anchor)
    kept = anchor.read_bytes()
    cut(2)
    for version in ("1", "2"):
        client().delete_model_version_tag(RELEASE, version, records.HEAD)
    assert len(records.read_records(NAME)) == 2  # nothing in the store tells any more
    with pytest.raises(ArtifactError, match=r"the anchor .* names record 3"):
        compare_anchor(NAME, anchor)
    assert anchor.read_bytes() == kept


def test_the_audit_log_knows_of_records_that_were_cut() -> None:
    chain_of = [{"retriever": NAME, "sequence": number, "digest": f"{number:064x}"} for number in (1, 2, 3)]
    subject = {"model": RELEASE, "version": "1", "key": records.HEAD, "value": f"1:1000:3:{3:064x}"}
    fields: dict[str, Any] = {"at": "t", "user": "flow", "method": "POST", "path": "/x", "status": 200, "previous": None, "digest": "d"}
    entry = AuditEntry(sequence=7, action="set_version_tag", subject=subject, outcome="ok", **fields)
    check_audit(NAME, chain_of, [entry])
    for cut_off in (chain_of[:2], [], [*chain_of[:2], {**chain_of[2], "digest": "0" * 64}]):
        with pytest.raises(ArtifactError, match=r"the audit entry 7 \(flow on retriever-release/1\) names record 3"):
            check_audit(NAME, cut_off, [entry])
    others = entry.model_copy(update={"subject": {**subject, "model": "other-release"}})
    refused = entry.model_copy(update={"outcome": "refused"})
    check_audit(NAME, chain_of[:2], [others, refused])
    check_audit(NAME, [], [others, refused])


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"retriever": "retriever", "sequence": "3", "digest": "a"}', "\udc80"])
def test_a_file_that_is_no_anchor_is_refused_and_left_alone(home: Path, tmp_path: Path, content: str) -> None:
    anchor = tmp_path / "anchor.json"
    anchor.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="is no anchor"):
        compare_anchor(NAME, anchor)
    assert anchor.read_bytes() == content.encode(errors="surrogateescape")


def test_the_anchor_of_another_retriever_or_a_folder_is_refused(home: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.json"
    anchor.write_text(json.dumps({"retriever": "other", "sequence": 1, "digest": "a"}))
    with pytest.raises(ConfigError, match="anchor of the retriever 'other'"):
        compare_anchor(NAME, anchor)
    with pytest.raises(ConfigError, match="cannot be read"):
        compare_anchor(NAME, tmp_path)


def test_a_foreign_run_among_the_records_is_an_alarm_and_stops_nothing(store: Path) -> None:
    experiment = client().get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = client().create_run(experiment.experiment_id)
    client().set_terminated(run.info.run_id, "FINISHED")
    assert len(records.read_records(NAME)) == 3
    assert records.foreign_runs(NAME) == [run.info.run_id]
    client().delete_run(run.info.run_id)
    assert records.foreign_runs(NAME) == []


@pytest.mark.parametrize("key", ["record-0000003", "record-00000\uff14", "record-3"])
def test_a_second_claim_of_a_place_under_another_spelling_changes_nothing(store: Path, key: str) -> None:
    """MLflow lets no parameter change, but takes `record-0000003` for another one than `record-000003`."""
    opened = open_chain(EXPERIMENT)
    assert opened is not None
    written = records.read_records(NAME)
    forged = client().create_run(opened.experiment)
    client().log_dict(forged.info.run_id, {**written[-1], "to_version": 2}, "record.json")
    client().log_param(opened.run_id, key, f"{forged.info.run_id}:{'0' * 64}")
    assert records.read_records(NAME) == written and servable_release(NAME).version == 1
    assert records.foreign_runs(NAME) == [forged.info.run_id, key]


def test_a_head_that_a_candidate_brings_along_stops_nothing(store: Path) -> None:
    client().create_model_version(RELEASE, source=str(store), tags={records.HEAD: f"3:1:99:{'f' * 64}"}, await_creation_for=0)
    client().set_model_version_tag(RELEASE, "2", records.HEAD, "no head")
    assert len(records.read_records(NAME)) == 3


def test_a_run_that_poses_as_a_record_stops_the_readers_with_the_way_out(store: Path) -> None:
    """The run of a record that was cut off looks the same; deleting it must not be the way to hide one."""
    experiment = client().get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    run = client().create_run(experiment.experiment_id, tags={chain.SEQUENCE: "99"}).info.run_id
    client().set_terminated(run, "FINISHED")
    told = rf"run {run} is a promotion record outside the chain.* later record than 3, restore.* delete its tag scalingnote.sequence"
    with pytest.raises(ArtifactError, match=told):
        servable_release(NAME)
    client().delete_run(run)
    with pytest.raises(ArtifactError, match=told):
        servable_release(NAME)
    client().restore_run(run)
    client().delete_tag(run, chain.SEQUENCE)
    assert servable_release(NAME).version == 1 and records.foreign_runs(NAME) == [run]
    client().delete_run(run)
    assert servable_release(NAME).version == 1 and records.foreign_runs(NAME) == []


def test_a_forged_head_stops_the_readers_with_the_way_out(store: Path) -> None:
    """A record that was cut off and one that never was look the same; who set the tag by hand is found by the anchor and the audit log."""
    stated = client().get_model_version(RELEASE, "1").tags[records.HEAD]
    version, created, *_ = stated.split(":")
    client().set_model_version_tag(RELEASE, "1", records.HEAD, f"{version}:{created}:99:{'f' * 64}")
    with pytest.raises(
        ArtifactError, match=r"names record 99 .* there are 3.* names no record after 3, the tag .*chain_head .* was forged: delete"
    ):
        servable_release(NAME)
    client().delete_model_version_tag(RELEASE, "1", records.HEAD)
    assert servable_release(NAME).version == 1
    records.state_head(NAME, records.read_records(NAME))
    assert client().get_model_version(RELEASE, "1").tags[records.HEAD] == stated


def test_a_record_of_a_clock_that_was_set_back_keeps_its_place_and_shows(store: Path) -> None:
    early = records.append_record(NAME, {"action": "promote", "to_version": 2, "time": "2020-01-01T00:00:00+00:00"})
    odd = records.append_record(NAME, {"action": "rollback", "to_version": 1, "time": "yesterday"})
    entries = history_of(NAME)
    assert [entry["sequence"] for entry in entries if entry["dated_back"]] == [early["sequence"]] and len(entries) == odd["sequence"]
    assert servable_release(NAME).version == 1
    told = render_history(NAME, entries).splitlines()
    assert sum("dated before a record that stands above it" in line for line in told) == 1
    assert not any(entry["dated_ahead"] for entry in entries)
    ahead = records.append_record(NAME, {"action": "promote", "to_version": 2, "time": "2999-01-01T00:00:00+00:00"})
    entries = history_of(NAME)
    assert [entry["sequence"] for entry in entries if entry["dated_ahead"]] == [ahead["sequence"]]
    assert "dated ahead: that time is still to come" in render_history(NAME, entries)


FORMLESS: list[dict[str, Any]] = [
    {},
    {"action": "promote"},
    {"action": "promote", "to_version": "two"},
    {"action": "promote", "to_version": "2"},
    {"action": "promote", "to_version": True},
    {"action": "promote", "to_version": -1},
    {"action": "promote", "to_version": 2.0},
    {"action": "promote", "to_version": 2, "from_version": "one"},
    {"action": "pr\u043emote", "to_version": 2},
    {"action": ["promote"], "to_version": 2},
    {"action": "rollback", "to_version": 2, "skipped": 7},
    {"action": "rollback", "to_version": 2, "skipped": {"\uff12": "x"}},
]


@pytest.mark.parametrize("content", FORMLESS)
def test_a_record_that_no_promotion_writes_decides_nothing_and_is_named(store: Path, content: dict[str, Any]) -> None:
    records.append_record(NAME, content)
    changes = (
        lambda: promote(NAME, no_smoke),
        lambda: rollback(NAME, "Bob", "slow"),
        lambda: promotion_fingerprint(NAME),
        lambda: servable_release(NAME),
        lambda: status_of(NAME),
    )
    for use in changes:
        with pytest.raises(ArtifactError, match="record 4 is none that the promote flow writes"):
            use()
    assert len(render_history(NAME, history_of(NAME)).splitlines()) >= 8  # it can be looked at
    assert len(records.read_records(NAME)) == 4


def test_who_vouches_for_another_release_than_the_champion_moves_nothing(store: Path) -> None:
    """A record that says `vouch` reads as harmless in the history."""
    records.append_record(NAME, {"action": "promote", "to_version": 2})
    records.append_record(NAME, {"action": "vouch", "to_version": 1})
    with pytest.raises(ArtifactError, match="record 5 vouches for release/1, which was not champion then"):
        servable_release(NAME)


def test_the_status_names_runs_that_are_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    monkeypatch.setattr(records, "foreign_runs", lambda name: ["abc"])
    assert "retriever-promotions there is a run or a claim beside the promotion records (abc)" in status_of(NAME)["alarm"]
    world = World(tracking, tmp_path)
    for _ in range(2):
        approve(NAME, world.candidate(), "Ada")
        promote(NAME, no_smoke)
    tracking.aliases[RELEASE, "champion"] = 1
    alarm = status_of(NAME)["alarm"]
    assert "points at release/1" in alarm and "(abc)" in alarm  # one hides not the other


@pytest.mark.parametrize("ending", RESERVED_ENDINGS)
def test_no_retriever_bears_the_name_of_what_belongs_to_another(ending: str) -> None:
    with pytest.raises(ValidationError, match="is where the retriever 'mine' keeps its"):
        RetrainConfig(name=f"mine-{ending}")
    assert RetrainConfig(name=ending).name == ending


def artifacts() -> Path:
    return settings.artifact_root()


def test_the_files_alone_follow_no_record_that_a_training_wrote(home: Path) -> None:
    honest = [records.append_record(NAME, {"action": "promote", "to_version": number}) for number in (1, 2)]
    forged = {**honest[-1], "to_version": 7, "sequence": 3, "previous": honest[-1]["digest"]}
    forged["digest"] = digest_of({key: value for key, value in forged.items() if key != "digest"})
    for place in (f"{NAME}/run/artifacts", f"{NAME}/run/artifacts/notes", f"{EXPERIMENT}/run/artifacts/notes", "7/run/artifacts"):
        folder = artifacts() / place
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(forged, indent=2))
    (artifacts() / "7" / "run" / "artifacts" / "record.json").write_text("no record at all")
    assert read_record_files(artifacts(), NAME) == honest


def test_on_a_server_the_files_follow_the_folder_with_the_first_record(home: Path) -> None:
    honest = [records.append_record(NAME, {"action": "promote", "to_version": number}) for number in (1, 2)]
    (artifacts() / EXPERIMENT).rename(artifacts() / "12")
    forged = {**honest[-1], "sequence": 3, "previous": honest[-1]["digest"]}
    forged["digest"] = digest_of({key: value for key, value in forged.items() if key != "digest"})
    other = artifacts() / "3" / "run" / "artifacts"
    other.mkdir(parents=True)
    (other / "record.json").write_text(json.dumps(forged, indent=2))
    assert read_record_files(artifacts(), NAME) == honest
    shutil.copytree(artifacts() / "12", artifacts() / "13")
    assert read_record_files(artifacts(), NAME) == honest  # the same twice
    next((artifacts() / "13").rglob("record.json")).write_text(json.dumps({**honest[0], "to_version": 9}, indent=2))
    with pytest.raises(ArtifactError, match="in 2 folders"):
        read_record_files(artifacts(), NAME)


@pytest.mark.parametrize("within", ["0" * 32 + "/artifacts/", f"models/m-{'0' * 32}/artifacts/", ""])
def test_on_a_server_the_files_follow_no_folder_of_the_records_name_that_a_training_made(home: Path, within: str) -> None:
    """A server names its folders by numbers, so one that bears the name is somebody's own, within what they may write."""
    honest = [records.append_record(NAME, {"action": "promote", "to_version": number}) for number in (1, 2)]
    (artifacts() / EXPERIMENT).rename(artifacts() / "12")
    forged = {**honest[0], "to_version": 7}
    forged["digest"] = digest_of({key: value for key, value in forged.items() if key != "digest"})
    own = artifacts() / "3" / within / EXPERIMENT / ("1" * 32) / "artifacts"
    own.mkdir(parents=True)
    (own / "record.json").write_text(json.dumps(forged, indent=2))
    if within:
        assert read_record_files(artifacts(), NAME) == honest
    else:
        with pytest.raises(ArtifactError, match="in 2 folders"):
            read_record_files(artifacts(), NAME)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"retriever": "retriever", "sequence": 1e400}', b"\xff\xfe", b"", b"7"])
def test_a_file_that_is_no_record_stops_nobody_who_verifies_the_files(home: Path, content: bytes) -> None:
    written = [records.append_record(NAME, {"action": "promote", "to_version": number}) for number in (1, 2)]
    root = settings.artifact_root()
    place = root / "training" / ("0" * 32) / "artifacts" / "record.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    assert read_record_files(root, NAME) == written


def test_a_record_of_a_place_far_away_is_a_gap_at_once(home: Path) -> None:
    """Whoever counts to such a number is stopped for good."""
    place = settings.artifact_root() / "training" / ("0" * 32) / "artifacts" / "record.json"
    place.parent.mkdir(parents=True)
    for number, words in ((10**15, "promotion record 1 is missing"), (True, "does not hold a promotion record"), (0, "does not hold")):
        record = {"retriever": NAME, "sequence": number, "previous": None, "action": "promote", "to_version": 1}
        place.write_bytes(json.dumps({**record, "digest": digest_of(record)}, indent=2).encode())
        with pytest.raises(ArtifactError, match=words):
            read_record_files(settings.artifact_root(), NAME)


def test_an_honest_copy_verifies_after_a_race_of_two_promoters(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records.append_record(NAME, {"action": "promote", "to_version": 1})
    claim: Callable[..., None] = records._claim

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(records, "_claim", claim)
        records.append_record(NAME, {"action": "promote", "to_version": 2})
        claim(*arguments)

    monkeypatch.setattr(records, "_claim", late)
    with pytest.raises(PromotionError, match="at the same time"):
        records.append_record(NAME, {"action": "rollback", "to_version": 9})
    assert read_record_files(artifacts(), NAME) == records.read_records(NAME)


def test_a_mark_as_overtaken_alone_takes_no_record_away(home: Path) -> None:
    honest = [records.append_record(NAME, {"action": "promote", "to_version": number}) for number in (1, 2)]
    for path in artifacts().rglob("record.json"):
        path.with_name("overtaken.json").write_text("{}")
    assert read_record_files(artifacts(), NAME) == honest


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    tracking = MemoryTracking()
    tracking.install(monkeypatch)
    return World(tracking, tmp_path)


def test_files_that_were_swapped_after_the_check_are_not_promoted(world: World) -> None:
    approve(NAME, world.candidate(), "Ada")
    folder = world.tracking.artifact_folder(RELEASE, 1)

    def swap(manifest: Any) -> None:
        (folder / "note.txt").write_text("swapped while the smoke queries ran")
        seal(folder, "release", parents={}, attributes={})

    with pytest.raises(ArtifactError, match="expected"):
        promote(NAME, swap)
    assert world.tracking.records == []


def test_an_override_that_lost_the_race_leaves_no_mark(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(NAME, world.candidate({**GOOD, "student": 0.5}), "Ada", override="wanted")

    def refused(*arguments: Any, **named: Any) -> None:
        raise PromotionError("overtaken")

    with monkeypatch.context() as race, pytest.raises(PromotionError, match="overtaken"):
        race.setattr(records, "append_record", refused)
        promote(NAME, no_smoke)
    assert "scalingnote.overridden" not in world.tracking.models[RELEASE][0].tags
    assert promote(NAME, no_smoke).status == "promoted" and servable_release(NAME).version == 1
    assert world.tracking.models[RELEASE][0].tags["scalingnote.overridden"] == "wanted"


def test_a_rollback_names_the_digest_that_was_checked(world: World) -> None:
    for _ in range(2):
        approve(NAME, world.candidate(), "Ada")
        promote(NAME, no_smoke)
    rollback(NAME, "Bob", "slow")
    assert world.tracking.records[-1]["manifest_digest"] == world.tracking.records[0]["manifest_digest"]


def test_asynchronous_logging_lets_no_two_records_take_one_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    records.append_record(NAME, {"action": "promote", "to_version": 1})
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")  # as if set after the store was opened
    claim: Callable[..., None] = records._claim

    def late(*arguments: Any) -> None:
        monkeypatch.setattr(records, "_claim", claim)
        records.append_record(NAME, {"action": "promote", "to_version": 2})
        claim(*arguments)

    monkeypatch.setattr(records, "_claim", late)
    with pytest.raises(PromotionError, match="at the same time"):
        records.append_record(NAME, {"action": "promote", "to_version": 3})
    assert [found["to_version"] for found in records.read_records(NAME)] == [1, 2]


@pytest.mark.parametrize(("variable", "value"), [("MLFLOW_REGISTRY_URI", "databricks-uc"), ("MLFLOW_WORKSPACE", "team")])
def test_a_registry_or_workspace_elsewhere_is_refused_at_the_start(
    home: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=f"{variable} names"):
        client()
    monkeypatch.setenv(variable, settings.tracking_uri() if variable == "MLFLOW_REGISTRY_URI" else "default")
    assert client()
