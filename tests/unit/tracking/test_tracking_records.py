"""Promotion records: order, safety against kills and rivals, and what tampering looks like."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from components.artifacts import digest_of
from components.errors import ArtifactError, PromotionError
from components.tracking import embedded
from components.tracking import promotion_records as chain
from components.tracking import promotion_records as records
from components.tracking.packaging import local_path
from components.tracking.promotion_records import append_record, open_chain, read_records
from components.tracking.store import TrackingError, client

EXPERIMENT = "retriever-promotions"


@pytest.fixture(params=["embedded view", "client"])
def store(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both ways of reading: the quick view of the embedded store, and MLflow's client as a server needs it."""
    if request.param == "client":
        monkeypatch.setattr(embedded, "KNOWN_SCHEMAS", frozenset())
        monkeypatch.setattr(chain, "local_path", lambda location: None)
    return home


def append(count: int) -> list[dict[str, Any]]:
    return [append_record("retriever", {"action": "promote", "version": number}) for number in range(1, count + 1)]


def record_file(number: int) -> Path:
    opened = open_chain(EXPERIMENT)
    assert opened is not None
    run_id, _ = opened.places()[number - 1]
    folder = local_path(client().get_run(run_id).info.artifact_uri)
    assert folder is not None
    return folder / "record.json"


def test_records_come_back_in_order_and_chained(store: Path) -> None:
    assert read_records("retriever") == []
    written = append(3)
    assert read_records("retriever") == written
    assert [record["sequence"] for record in written] == [1, 2, 3]
    assert [record["previous"] for record in written] == [None, written[0]["digest"], written[1]["digest"]]
    assert written[1]["version"] == 2
    assert all(record["digest"] == digest_of({k: v for k, v in record.items() if k != "digest"}) for record in written)
    assert read_records("another") == []


def test_a_field_of_the_chain_is_refused(home: Path) -> None:
    with pytest.raises(PromotionError, match="'sequence'"):
        append_record("retriever", {"sequence": 5})


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("call", ["create_run", "log_dict", "log_param", "set_terminated"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_call_the_record_is_there_completely_or_not(
    home: Path, monkeypatch: pytest.MonkeyPatch, call: str, before: bool
) -> None:
    append(1)
    kind, original = type(client()), getattr(client(), call)

    def killed(self: Any, *arguments: Any, **named: Any) -> None:
        if not before:
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kind, call, killed)
        append_record("retriever", {"action": "rollback"})
    claimed = call == "set_terminated" or (call == "log_param" and not before)
    assert len(read_records("retriever")) == 1 + claimed
    append_record("retriever", {"action": "again"})
    assert [record["sequence"] for record in read_records("retriever")] == list(range(1, 3 + claimed))


@pytest.mark.parametrize("call", ["create_run", "create_experiment"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_while_the_chain_is_made(home: Path, monkeypatch: pytest.MonkeyPatch, call: str, before: bool) -> None:
    kind, original = type(client()), getattr(client(), call)

    def killed(self: Any, *arguments: Any, **named: Any) -> None:
        if not before:
            original(*arguments, **named)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(kind, call, killed)
        append(1)
    assert read_records("retriever") == []
    append(2)
    assert len(read_records("retriever")) == 2


def rival(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """Another writer appends the moment `name` is about to run."""
    original: Callable[..., Any] = getattr(module, name)

    def second(*arguments: Any, **named: Any) -> Any:
        monkeypatch.setattr(module, name, original)
        append_record("retriever", {"action": "rival"})
        return original(*arguments, **named)

    monkeypatch.setattr(module, name, second)


def test_the_second_of_two_at_once_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append(1)
    rival(monkeypatch, records, "_claim")
    with pytest.raises(PromotionError, match="at the same time"):
        append_record("retriever", {"action": "mine"})
    assert [record["action"] for record in read_records("retriever")] == ["promote", "rival"]


def test_two_that_make_the_chain_at_once_share_it(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival(monkeypatch, records, "create_experiment")
    append_record("retriever", {"action": "mine"})
    assert [record["action"] for record in read_records("retriever")] == ["rival", "mine"]


def test_a_changed_file_breaks_the_chain(store: Path) -> None:
    append(3)
    path = record_file(2)
    path.write_text(path.read_text().replace('"version": 2', '"version": 9'))
    with pytest.raises(ArtifactError, match="record 2 was changed"):
        read_records("retriever")
    with pytest.raises(ArtifactError, match="record 2 was changed"):
        append(1)


def test_a_file_with_a_matching_digest_of_its_own_breaks_the_chain(store: Path) -> None:
    append(2)
    content = json.loads(record_file(1).read_text())
    content["version"] = 9
    content["digest"] = digest_of({key: value for key, value in content.items() if key != "digest"})
    record_file(1).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="record 1 was changed"):
        read_records("retriever")


def test_a_changed_space_or_a_key_that_stands_twice_is_seen(store: Path) -> None:
    append(1)
    whole = record_file(1).read_text()
    for changed in (whole.replace("{\n ", "{\n\t"), whole.replace('"action"', '"action": "promote", "action"')):
        record_file(1).write_text(changed)
        with pytest.raises(ArtifactError, match="record 1 was changed: its file does not read as it was written"):
            read_records("retriever")


def test_a_signature_is_part_of_the_record_and_says_all_but_the_digest(store: Path) -> None:
    seen: list[dict[str, Any]] = []

    def sign(record: Mapping[str, Any]) -> dict[str, Any]:
        seen.append(dict(record))
        return {"sig": "s"}

    written = append_record("retriever", {"action": "promote"}, sign)
    assert read_records("retriever") == [written]
    assert written["signature"] == {"sig": "s"}
    assert {**seen[0], "signature": written["signature"], "digest": written["digest"]} == written


def test_deletions_break_the_chain(store: Path) -> None:
    append(2)
    opened = open_chain(EXPERIMENT)
    assert opened is not None
    last = opened.places()[1][0]
    client().delete_run(last)
    with pytest.raises(
        ArtifactError, match=r"run of promotion record 2 was deleted\. Restore it: mlflow runs restore --run-id [0-9a-f]{32} "
    ):
        read_records("retriever")
    client().restore_run(last)
    record_file(1).unlink()
    with pytest.raises(ArtifactError, match="file of promotion record 1 cannot be read"):
        read_records("retriever")
    client().delete_run(opened.run_id)
    with pytest.raises(ArtifactError, match="holds the chain of promotion records was deleted"):
        read_records("retriever")
    client().delete_experiment(opened.experiment)
    with pytest.raises(ArtifactError, match=f"experiment {EXPERIMENT}.* was deleted"):
        read_records("retriever")


def test_a_chain_cut_short_or_forged_is_seen(store: Path) -> None:
    append(2)
    opened = open_chain(EXPERIMENT)
    assert opened is not None
    shorter = client().create_run(opened.experiment)
    client().log_param(shorter.info.run_id, "record-000001", opened.claims["record-000001"])
    client().set_experiment_tag(opened.experiment, chain.ANCHOR, shorter.info.run_id)
    with pytest.raises(ArtifactError, match="outside the chain"):
        read_records("retriever")
    client().log_param(shorter.info.run_id, "record-000003", opened.claims["record-000002"])
    with pytest.raises(ArtifactError, match="record 2 is missing"):
        read_records("retriever")


def test_an_experiment_of_another_making_is_refused(store: Path) -> None:
    client().create_experiment(EXPERIMENT)
    with pytest.raises(ArtifactError, match="names no chain of promotion records"):
        append(1)


@pytest.mark.parametrize("store", ["client"], indirect=True)
def test_a_server_that_is_in_trouble_has_not_lost_the_chain(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told as deleted, which is a refusal that the watching promoter remembers."""
    append(1)
    real, codes = client().get_run, iter(["TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR"])

    def unwell(run_id: str) -> Any:
        raise MlflowException("try again later", error_code=getattr(databricks_pb2, next(codes)))

    monkeypatch.setattr(client(), "get_run", unwell)
    with pytest.raises(TrackingError, match="Could not read the promotion records"):
        read_records("retriever")
    with pytest.raises(TrackingError, match="Could not look for runs"):
        records.foreign_runs("retriever")
    monkeypatch.setattr(client(), "get_run", real)
    assert len(read_records("retriever")) == 1


@pytest.mark.parametrize("store", ["client"], indirect=True)
@pytest.mark.parametrize("error", [MlflowException("too many 429 error responses"), requests.HTTPError("502 Bad Gateway")])
def test_a_server_that_is_in_trouble_has_not_damaged_the_file_of_a_record(
    error: Exception, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was told as one that cannot be read, which a trusted key was to strike out."""
    append(1)

    def unwell(*_: object) -> Any:
        raise error

    real, chains = client().get_run, iter([True])

    def run(run_id: str) -> Any:
        if next(chains, False):
            return real(run_id)
        raise MlflowException("too many 502 error responses")

    with monkeypatch.context() as patch:
        patch.setattr(client(), "download_artifacts", unwell)
        with pytest.raises(ArtifactError, match="record 1 cannot be read"):  # the server is well, and this file is not
            read_records("retriever")
        with monkeypatch.context() as away:  # a server that is well, and a bucket behind it that is not
            away.setattr(client(), "list_artifacts", unwell)
            with pytest.raises(TrackingError, match="Could not read the promotion records"):
                read_records("retriever")
        patch.setattr(client(), "get_run", run)
        with pytest.raises(TrackingError, match="Could not read the promotion records"):
            read_records("retriever")
    assert len(read_records("retriever")) == 1
