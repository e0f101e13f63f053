"""The same calls against a tracking server: artifacts go up and come down through it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.artifacts import SIGNATURE, seal, verify
from components.errors import ArtifactError, ModelError, PromotionError
from components.tracking import promotion_records as records
from components.tracking.packaging import share_file
from components.tracking.promotion_records import append_record, read_records
from components.tracking.provenance import Provenance
from components.tracking.registry import alias, artifact_folder, copied_from, copy_version, register, set_alias, versions
from components.tracking.runs import StepRecord, close_flow_run, open_flow_run, record_step
from components.tracking.store import clear_caches, client
from flows.runner import remove_unused

PROVENANCE = Provenance(
    code_revision="abc",
    dirty=False,
    patch_digest=None,
    code_digest="c" * 64,
    lock_digest=None,
    python="3.11",
    packages={},
    platform="test",
    user="somebody",
)


@pytest.fixture
def server(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A tracking server of two processes on a free port of the loopback interface."""
    database = tmp_path / "server" / "mlflow.db"
    database.parent.mkdir()
    shutil.copyfile(mlflow_template, database)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(database.parent / "artifacts")]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    with (database.parent / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=database.parent, env=environment, stdout=log, stderr=log)
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait(uri, process)
        monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    finally:
        process.terminate()
        process.wait(600)
        clear_caches()


def _wait(uri: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert process.poll() is None, "the server ended while it started"
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=1)
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise AssertionError("the server did not answer within two minutes")


def test_the_whole_path_through_a_server(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "index"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "data").write_text("vectors")
    artifact = seal(folder, "index", attributes={"space_id": "s"})
    parent = open_flow_run("retriever", "retrain", {"a": 1}, PROVENANCE, {})
    step = record_step(parent, StepRecord("build_index", {}, artifact))
    registered = register("retriever-index", artifact, step, {}, {"data_digest": "d"})
    assert register("retriever-index", artifact, step, {}, {}) == registered
    close_flow_run(parent, "FINISHED")
    assert {entry.path for entry in client().list_artifacts(step, "index")} == {"index/manifest.json"}
    downloaded = artifact_folder("retriever-index", 1)
    assert verify(downloaded, artifact.digest).kind == "index"
    assert artifact_folder("retriever-index", 1) == downloaded
    assert copy_version("retriever-index", 1, "retriever-release") == 1
    assert copied_from(versions("retriever-release")[0]) == ("retriever-index", 1)
    set_alias("retriever-release", "champion", 1)
    assert alias("retriever-release", "champion") == 1
    assert versions("retriever-release")[0].aliases == ("champion",)
    assert versions("none") == []
    with pytest.raises(ModelError, match="no version 2"):
        artifact_folder("retriever-index", 2)
    _signed_later(tmp_path, artifact.digest)
    _records(monkeypatch)
    _pruned()
    _swept(tmp_path)


def _signed_later(tmp_path: Path, digest: str) -> None:
    """A signature that comes after the registration reaches everybody, also through a copy of the version."""
    (artifact_folder("retriever-release", 1) / SIGNATURE).write_text("signed")
    share_file("retriever-release", 1, SIGNATURE)
    shutil.rmtree(tmp_path / "home" / "work" / "downloads")  # as another machine would see it
    fetched = artifact_folder("retriever-index", 1)
    assert (fetched / SIGNATURE).read_text() == "signed"
    assert verify(fetched, digest).digest == digest


def _pruned() -> None:
    """What nothing here has opened for long is removed, where the store still has it; a machine that serves kept every release for ever."""
    folder = artifact_folder("retriever-index", 1)
    use = folder.with_suffix(".uri")
    used = time.time() - 40 * 86_400
    assert remove_unused(30) == []
    os.utime(use, (used, used))
    assert [each.step for each in remove_unused(30, dry_run=True)] == ["downloads"]
    assert [each.step for each in remove_unused(30, only="retriever")] == [], "copies are of no retriever alone"
    (folder / "deep" / "data").write_text("other than the store's")
    assert remove_unused(30) == [], "perhaps the last copy there is"
    (folder / "deep" / "data").write_text("vectors")
    [removed] = remove_unused(30)
    assert (removed.step, removed.key, folder.exists()) == ("downloads", folder.name, False)
    assert list(folder.parent.iterdir()) == [use]
    assert removed.bytes > len("vectors")
    assert (artifact_folder("retriever-index", 1) / "deep" / "data").read_text() == "vectors"
    assert remove_unused(30) == [], "it was just fetched"


def _swept(tmp_path: Path) -> None:
    """Files that are gone are a finding about that version; it was told as a server that does not work, and ended key rotations."""
    for model in (tmp_path / "server" / "artifacts").rglob("sealed"):
        shutil.rmtree(model)
    with pytest.raises(ArtifactError, match="holds nothing at"):
        artifact_folder("retriever-index", 1, fresh=True)
    assert (artifact_folder("retriever-index", 1) / "deep" / "data").read_text() == "vectors", "the last copy serves on"


def _records(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_records("retriever") == []
    first = append_record("retriever", {"action": "promote"})
    claim = records._claim

    def rival(*arguments: object) -> None:
        monkeypatch.setattr(records, "_claim", claim)
        append_record("retriever", {"action": "rival"})
        claim(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "_claim", rival)
    with pytest.raises(PromotionError, match="at the same time"):
        append_record("retriever", {"action": "mine"})
    assert [record["action"] for record in read_records("retriever")] == ["promote", "rival"]
    opened = records.open_chain("retriever-promotions")
    assert opened is not None
    client().delete_run(opened.places()[0][0])
    with pytest.raises(ArtifactError, match="record 1 was deleted"):
        read_records("retriever")
    assert first["sequence"] == 1
