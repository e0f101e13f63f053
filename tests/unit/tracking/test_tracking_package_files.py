"""The files with which MLflow loads a version: listed when it is registered, and every change of them found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from components.artifacts import readable_json
from components.errors import ArtifactError
from components.tracking import packaging
from components.tracking.packaging import LIST_FILE, SEALED_PATH, check_package, write_package


@pytest.fixture
def package(tmp_path: Path) -> tuple[Path, str]:
    """The folder of a model, and the digest of its list."""
    root = tmp_path / "model"
    for name in ("MLmodel", "code/components/retriever.py", f"{SEALED_PATH}/manifest.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"content of {name}")
    return root, write_package(root)


def test_an_unchanged_package_holds_and_the_sealed_files_are_not_its_concern(package: tuple[Path, str]) -> None:
    root, digest = package
    (root / SEALED_PATH / "manifest.json").write_text("other")  # its own digest covers it
    (root / "registered_model_meta").write_text("written by MLflow when it loads the version")
    assert check_package([root / SEALED_PATH], digest) and check_package([root / SEALED_PATH], None)


@pytest.mark.parametrize("place", ["code/components/__pycache__/retriever.cpython-311.pyc", "code/components/retriever.pyc"])
def test_byte_code_that_python_would_run_in_place_of_the_source_is_refused(package: tuple[Path, str], place: str) -> None:
    root, digest = package
    (root / place).parent.mkdir(exist_ok=True)
    (root / place).write_bytes(b"byte code")
    with pytest.raises(ArtifactError, match="is byte code, which Python runs in place of the source"):
        check_package([root / SEALED_PATH], digest)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("code/components/retriever.py", b"import os", "retriever.py, with which MLflow loads the version, was changed"),
        ("MLmodel", None, "MLmodel, with which MLflow loads the version, is missing"),
        ("code/components/more.py", b"", "more.py, with which MLflow loads the version, does not belong there"),
        (LIST_FILE, b'{"files": {}}', "does not read as it was written"),
        (LIST_FILE, readable_json({"files": {}}), "MLmodel, with which MLflow loads the version, does not belong there"),
        (LIST_FILE, readable_json([]), "is not a list of files"),
        (LIST_FILE, None, "was changed or removed after the version was registered"),
    ],
)
def test_every_difference_is_named(package: tuple[Path, str], name: str, content: bytes | None, said: str) -> None:
    root, digest = package
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=said):
        check_package([root / SEALED_PATH], digest)


def test_what_was_registered_before_there_were_lists_or_is_a_bare_copy_is_told_apart(package: tuple[Path, str], tmp_path: Path) -> None:
    root, digest = package
    assert not check_package([Path(shutil.copytree(root / SEALED_PATH, tmp_path / "bare" / "copy"))], digest)
    (root / LIST_FILE).unlink()
    assert not check_package([root / SEALED_PATH], None)


def test_a_list_that_fits_changed_code_is_not_the_registered_one(package: tuple[Path, str], tmp_path: Path) -> None:
    root, digest = package
    same = Path(shutil.copytree(root, tmp_path / "another retriever's"))
    (root / "MLmodel").write_text("changed")
    forged = write_package(root)
    with pytest.raises(ArtifactError, match="was changed or removed"):
        check_package([root / SEALED_PATH], digest)
    assert check_package([root / SEALED_PATH, same / SEALED_PATH], digest)  # the registered one is there
    assert forged != digest


def test_a_cloud_that_does_not_answer_leaves_the_copy_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its library has errors of its own, and nothing could be searched although the release lay here."""
    (tmp_path / "manifest.json").write_text("{}")
    gone = type("EndpointConnectionError", (Exception,), {"__module__": "botocore.exceptions"})

    def away(artifact_uri: str) -> list[Any]:
        raise gone("Could not connect to the endpoint URL")

    monkeypatch.setattr("mlflow.artifacts.list_artifacts", away)
    assert packaging._is_current("s3://models/1", tmp_path) and "the copy on this machine is kept" in caplog.text
    monkeypatch.setattr("mlflow.artifacts.list_artifacts", lambda artifact_uri: [][1])
    with pytest.raises(IndexError):
        packaging._is_current("s3://models/1", tmp_path)


def test_no_password_stands_beside_a_download_which_stays_then(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noted there is all that `prune-work` knows of where it came from."""
    uri = "ftp://ada:secret@store/models/1"
    folder = packaging._download_folder(uri)
    folder.mkdir(parents=True)
    monkeypatch.setattr(packaging, "_listed", lambda uri: {})
    packaging._keep_use(uri, folder)
    use = folder.with_suffix(".uri")
    os.utime(use, (0, 0))
    assert "secret" not in use.read_text() and list(packaging.unused_downloads(30)) == []
    use.write_text(uri)
    os.utime(use, (0, 0))
    assert list(packaging.unused_downloads(30)) == [folder], "else the line before would say nothing"


def test_what_the_store_holds_now_is_not_the_copy_of_this_machine_where_the_server_refuses_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` held the copy against the record, and passed: a refusal has the form of an error of this machine's files."""
    place = "mlflow-artifacts:/1/models/m/artifacts/sealed"
    copy = packaging._download_folder(place)
    copy.mkdir(parents=True)

    def refused(**_: object) -> Any:
        raise requests.HTTPError("403 Client Error: FORBIDDEN")

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", refused)
    with pytest.raises(requests.HTTPError):
        packaging._download(place, fresh=True)
    assert copy.is_dir()


@pytest.mark.parametrize(
    ("code", "raised"),
    [("RESOURCE_DOES_NOT_EXIST", ArtifactError), ("INVALID_PARAMETER_VALUE", ArtifactError), ("INTERNAL_ERROR", MlflowException)],
)
def test_a_place_that_the_server_knows_nothing_of_is_a_finding_and_one_that_it_fails_at_is_none(
    code: str, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that names the run of another store was told as a tracking server in trouble, and no rollback went past it."""

    def answered(**_: object) -> Any:
        raise MlflowException("no such run", error_code=getattr(databricks_pb2, code))

    monkeypatch.setattr("mlflow.artifacts.download_artifacts", answered)
    monkeypatch.setattr("mlflow.artifacts.list_artifacts", answered)
    with pytest.raises(raised):
        packaging._fetched("runs:/1/model", tmp_path)
