"""Attacks by values of another form than any that a command writes: endless numbers, dates, fields and columns of other kinds."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from components import settings
from components.errors import ArtifactError, ConfigError, PromotionError
from components.gates.policy import allowed_policies
from components.promotion import promote as promotion
from components.promotion.promote import promotion_fingerprint
from components.promotion.record import append
from components.promotion.status import history_of, render_history, status_of
from components.promotion.verification import verify_release
from components.release.champion import servable_release
from components.release.open import recorded_digest
from components.text import as_json
from components.tracking import audit_log as audit
from components.tracking import promotion_records as records
from components.tracking import registry
from components.tracking.server.permissions import Call, load_permissions, refusal
from components.tracking.store import client
from flows.webhook import Deliveries, DeliveryError, sign
from tests.flows.cli_world import assert_refused, scalingnote
from tests.unit.promotion_world import NAME

RELEASE, EXPERIMENT = f"{NAME}-release", f"{NAME}-promotions"
ENDLESS = "9" * 5000  # more digits than Python reads as a number


@pytest.fixture
def store(home: Path) -> Path:
    """Two releases and their promotions."""
    registry.ensure_model(RELEASE)
    for number in (1, 2):
        client().create_model_version(RELEASE, source=str(home), await_creation_for=0)
        records.append_record(NAME, {"action": "promote", "to_version": number})
    records.state_head(NAME, records.read_records(NAME))
    return home


def test_a_number_without_an_end_in_a_tag_stops_nobody(store: Path) -> None:
    experiment = client().get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    client().create_run(experiment.experiment_id, tags={records.SEQUENCE: ENDLESS})  # a writer that was killed leaves a running one
    created = client().get_model_version(RELEASE, "1").creation_timestamp
    for head in (f"1:{ENDLESS}:1:{'f' * 64}", f"1:{created}:{ENDLESS}:{'f' * 64}"):
        client().set_model_version_tag(RELEASE, "1", records.HEAD, head)
        assert servable_release(NAME).version == 2 and len(history_of(NAME)) == 2


@pytest.mark.parametrize(
    "reference",
    [
        ("verify", f"release/{ENDLESS}"),
        ("search", "x", "--release", f"candidate/{ENDLESS}"),
        ("trace", f"release/{ENDLESS}"),
        ("trace", f"model/{RELEASE}/{ENDLESS}"),
        ("approve", ENDLESS, "--as", "Ada"),
        ("verify", "release/\u0661"),
    ],
)
def test_a_reference_to_a_number_without_an_end_is_refused_in_a_sentence(home: Path, reference: tuple[str, ...]) -> None:
    assert_refused(scalingnote(*reference), 7)


def test_a_copy_of_a_number_without_an_end_or_in_other_digits_is_none() -> None:
    for number in (ENDLESS, "\u0661", "1\n"):
        call = Call("ada", ("reviewer",), "create_model_version", {"model": RELEASE, "source": f"models:/{NAME}-candidate/{number}"})
        told = refusal(call, load_permissions(), None)  # type: ignore[arg-type]
        assert told is not None and "can only be a copy" in told
        info = registry.VersionInfo(name=RELEASE, version=1, tags={}, source=call.subject["source"], run_id=None, created_ms=1, aliases=())
        assert registry.copied_from(info) is None


FORMS: list[dict[str, Any]] = [
    {"decisions": "x"},
    {"decisions": [1]},
    {"decisions": {"a": 1}},
    {"decisions": [{"against": 1}]},
    {"audit_digest": 5, "audit_sequence": {"a": 1}},
    {"time": "0001-01-01T00:00:00+00:00"},
    {"time": ["x"]},
    {"approved_by": ["x"], "override_by": {"a": 1}, "override": ["x"]},
    {"packages": ["x"]},
]


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_a_record_with_fields_of_another_form_can_be_looked_at(store: Path, fields: dict[str, Any]) -> None:
    records.append_record(NAME, {"action": "promote", "to_version": 2, **fields})
    records.append_record(NAME, {"action": "vouch", "to_version": 2, "time": "2026-11-29T00:00:00+00:00"})
    assert len(render_history(NAME, history_of(NAME)).splitlines()) >= 8
    assert servable_release(NAME).version == 2 and status_of(NAME)["champion"] == 2
    assert [check for check in verify_release(NAME, "champion") if not check.ok]


def test_releases_that_were_passed_over_have_numbers_that_end(store: Path) -> None:
    records.append_record(NAME, {"action": "rollback", "to_version": 1, "skipped": {ENDLESS: "x"}})
    with pytest.raises(ArtifactError, match="record 3 is none that the promote flow writes"):
        promotion_fingerprint(NAME)


@pytest.mark.parametrize("digest", [5, None, "", ["x"]])
def test_a_record_without_the_digest_of_its_release_serves_nothing(store: Path, digest: Any) -> None:
    records.append_record(NAME, {"action": "promote", "to_version": 2, "manifest_digest": digest})
    with pytest.raises(ArtifactError, match="record 3 names no digest of the release that it serves"):
        recorded_digest(NAME, RELEASE, 2)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE model_versions SET creation_time = 'abc'",
        "UPDATE model_versions SET creation_time = NULL",
        "UPDATE model_versions SET creation_time = 1e30",
        "UPDATE model_versions SET version = 'two' WHERE version = 2",
        "UPDATE model_versions SET version = 1.5 WHERE version = 2",
        "UPDATE model_version_tags SET value = x'ff00'",
        "INSERT INTO registered_model_aliases (name, version, alias, workspace) VALUES ('retriever-release', 'two', 'champion', 'default')",
        "UPDATE runs SET artifact_uri = NULL",
        "UPDATE runs SET artifact_uri = 's3://x/y'",
        "UPDATE runs SET artifact_uri = 'file:///' || char(0)",
    ],
)
def test_a_database_that_was_changed_past_mlflow_is_named_in_a_sentence(store: Path, change: str) -> None:
    with sqlite3.connect(store / "mlflow" / "mlflow.db") as connection:
        connection.execute(change)
    for read in (servable_release, status_of, history_of):
        with pytest.raises(ArtifactError, match=r"which MLflow does not write|record 1 cannot be read"):
            read(NAME)


def test_a_tag_without_a_value_is_an_empty_one(store: Path) -> None:
    with sqlite3.connect(store / "mlflow" / "mlflow.db") as connection:
        connection.execute("UPDATE model_version_tags SET value = NULL")
    assert servable_release(NAME).version == 2


@pytest.mark.parametrize("stamp", [ENDLESS, "9" * 400, "nan", "-1", " 1", "\u0661"])
def test_a_delivery_of_no_time_is_refused_in_a_sentence(stamp: str) -> None:
    body, secret = json.dumps({"data": {"name": RELEASE}}).encode(), "s" * 16
    headers = {"X-MLflow-Signature": sign(secret, "1", stamp, body), "X-MLflow-Timestamp": stamp, "X-MLflow-Delivery-Id": "1"}
    with pytest.raises(DeliveryError, match="is not within 300 seconds"):
        Deliveries(NAME, secret).accept(headers, body, time.time())


@pytest.mark.parametrize("times", ["1e999", "NaN", "5000", "10000000000000", "-1", '"9"', "true", "null"])
def test_a_refusal_that_was_remembered_otherwise_than_it_is_written_is_examined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: str
) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path))
    monkeypatch.setattr(promotion, "promotion_fingerprint", lambda name: "s")
    file = settings.home() / "promotion" / f"{NAME}.refused.json"
    file.parent.mkdir(parents=True)
    file.write_text(f'{{"state": "s", "message": "m", "at": {time.time() - 1}, "times": {times}}}')
    assert promotion.refused_before(NAME) is None


@pytest.mark.parametrize(
    "text", ["min_queries: 010", "min_queries: 2_0", "margin: 0:30.5", "min_queries: 1:30", "<<: {margin: 0.5}\nmargin: 0.01"]
)
def test_a_policy_that_two_readers_read_as_two_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    monkeypatch.setenv("SCALINGNOTE_POLICY", str(tmp_path / "policy.yaml"))
    with pytest.raises(ConfigError, match=r"not in plain digits|merged by <<"):
        allowed_policies()


CALL = {"user": "ada", "method": "POST", "path": "/x", "action": "run", "status": 200, "outcome": "ok"}


@pytest.mark.parametrize("number", [0, -1, -5])
def test_the_head_of_an_audit_log_names_an_entry(tmp_path: Path, number: int) -> None:
    """A head of entry 0 would let a log pass that was cut to nothing."""
    log = tmp_path / "audit.jsonl"
    audit.append_entry(log, CALL)
    content = audit.head_file(log).read_bytes().replace(b'"sequence":1', b'"sequence":%d' % number)
    audit.head_file(log).write_bytes(content)
    log.write_bytes(b"")
    assert "was edited" in audit.state_of(log, "log").fault
    with pytest.raises(ArtifactError, match="was edited"):
        audit.read_audit(log)


def test_an_entry_of_a_number_without_an_end_is_named(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    audit.append_entry(log, CALL)
    log.write_bytes(log.read_bytes().replace(b'"sequence":1,', f'"sequence":{ENDLESS},'.encode()))
    assert "entry 1 was edited" in audit.state_of(log, "log").fault


def test_a_record_that_no_reader_would_take_is_not_written(store: Path) -> None:
    """It was claimed, and from then on every reading of the chain said that the record was changed."""
    before = records.read_records(NAME)
    for odd in (float("nan"), float("inf")):
        with pytest.raises(PromotionError, match="nan or infinity"):
            append(NAME, {"action": "promote", "to_version": 1, "decisions": [{"comparison": {"p95": odd}}]}, before)
    assert records.read_records(NAME) == before


def test_json_of_a_command_has_no_word_that_json_has_not(home: Path) -> None:
    """`replay --json` could print NaN, which strict readers refuse."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    odd = {"a": float("nan"), "b": [float("inf"), (1.5, -float("inf"))], "c": {"d": "NaN"}}
    assert json.loads(as_json(odd), parse_constant=refuse) == {"a": None, "b": [None, [1.5, None]], "c": {"d": "NaN"}}
    assert as_json({"a": 1.5}) == '{"a": 1.5}'
