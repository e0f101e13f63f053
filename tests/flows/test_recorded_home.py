"""A home that the code of an earlier commit made, unpacked elsewhere: today's commands and MLflow itself read it as it is.

`python -m tests.recorded_home COMMIT` makes it again. A change that this refuses needs a way for the homes that people have.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from components.tracking.embedded import former_roots
from components.tracking.store import client
from tests import recorded_home
from tests.flows.cli_world import at_home, done, environment, scalingnote, write_collection

pytestmark = pytest.mark.slow
EXPECTED = json.loads(recorded_home.EXPECTED.read_text(encoding="utf-8"))
# The towers stand on a base model, which is registered nowhere, and in a home only where it was built.
MODELS = ("release/2", "candidate/1", "query-encoder/1", "index/1")
# Loads every model that is named and asks it its own example; prints what the release finds, and where its code came from.
LOADING = """
import json, sys
import mlflow
query, *names = sys.argv[1:]
found = {}
for name in names:
    model = mlflow.pyfunc.load_model(f"models:/retriever-{name}")
    assert len(model.predict(model.input_example)), name
    if name.startswith("release"):
        (row,) = model.predict([query], params={"k": 10}).to_dict("records")
        found = {"doc_ids": list(row["doc_ids"]), "scores": [float(score) for score in row["scores"]]}
import components.artifacts
print(json.dumps({**found, "code": components.artifacts.__file__}))
"""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home, at a place that it was not made at."""
    return recorded_home.unpack(tmp_path_factory.mktemp("recorded"))


@pytest.fixture
def home(recorded: Path, tmp_path: Path, mlflow_template: Path) -> Iterator[Path]:
    """A copy of it, entered."""
    with at_home(Path(shutil.copytree(recorded, tmp_path / "home")), mlflow_template) as folder:
        yield folder


def digest_of(folder: Path) -> dict[str, str]:
    files = (path for path in (folder / "mlflow").rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def documents(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["doc_id"] for hit in hits]


def test_the_archive_is_small_and_names_no_machine() -> None:
    assert recorded_home.ARCHIVE.stat().st_size < 1_000_000
    assert len(EXPECTED["commit"]) == 40 and EXPECTED["hits"]


def test_todays_commands_find_it_right_and_change_nothing_in_it_by_looking(home: Path) -> None:
    before = digest_of(home)
    for ref in ("champion", "previous", "candidate/1", "candidate/2", "release/1"):
        found = scalingnote("verify", ref)
        assert found.status == 0, found.out + found.err
    status = done("status")
    assert status["champion"] is not None and not status.get("alarms"), status
    hits = done("search", EXPECTED["query"])["hits"]
    assert documents(hits) == documents(EXPECTED["hits"])
    assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in EXPECTED["hits"]], abs=1e-3)
    assert [entry["action"] for entry in done("history")["history"]] == ["promote", "promote"]
    told = scalingnote("trace", "champion")
    assert told.status == 0 and "Ada Lovelace" in told.out and EXPECTED["commit"][:7] in told.out, told.out
    for form in ("json", "html", "openlineage", "cyclonedx"):
        assert scalingnote("trace", "champion", "--format", form).status == 0, form
    assert digest_of(home) == before


def test_it_is_rolled_back_and_goes_on(home: Path, tmp_path: Path) -> None:
    assert scalingnote("rollback", "--as", "Ada Lovelace", "--reason", "too many complaints").status == 0
    assert [entry["action"] for entry in done("history")["history"]] == ["promote", "promote", "rollback"]
    assert scalingnote("verify").status == 0
    assert documents(done("search", EXPECTED["query"])["hits"]) == documents(EXPECTED["hits"])
    assert not former_roots(home / "mlflow" / "mlflow.db")
    # The next build is compared with what the former code released, and takes the place of it.
    data = write_collection(tmp_path / "clinic")
    assert done("retrain", *recorded_home.SETTINGS, "--data", data, "--set", "towers.seed=14")["candidate"] == "candidate/3"
    assert scalingnote("approve", "candidate/3", "--as", "Ada Lovelace", "--override", "its gates do not matter here").status == 0
    assert done("promote")["status"] == "promoted"
    assert scalingnote("verify").status == 0


def test_what_it_holds_is_approved_late_verified_and_rolled_back_from(home: Path) -> None:
    """The decision against today's champion is made by a version whose policies have more fields than that of the candidate."""
    assert scalingnote("approve", "candidate/1", "--as", "Ada Lovelace", "--override", "its gates do not matter here").status == 0
    assert done("promote")["to_version"] == 3
    found = scalingnote("verify", "champion")
    assert found.status == 0, found.out
    assert scalingnote("rollback", "--as", "Ada Lovelace", "--reason", "too many complaints").status == 0
    assert [scalingnote("verify", ref).status for ref in ("champion", "release/3")] == [0, 0]


# As in an environment where nothing of ours is installed, such as one that MLflow makes for a model; and as in one that works with it.
ALONE = f"""
import sys
sys.path = [place for place in sys.path if place not in ("", {str(recorded_home.ROOT)!r})]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
"""
TOGETHER = "import components.serving.loader, components.tracking.packaging, components.index.search"


@pytest.mark.parametrize("before", [ALONE, TOGETHER])
def test_mlflow_loads_every_version_with_the_code_of_its_day_and_with_todays(home: Path, before: str, mlflow_template: Path) -> None:
    client()  # whatever opens the store to write, such as `scalingnote ui`, puts the locations in it right
    assert not former_roots(home / "mlflow" / "mlflow.db")
    variables = {**environment(home, mlflow_template), "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow' / 'mlflow.db'}"}
    run = (sys.executable, "-c", before + LOADING, EXPECTED["query"], *MODELS)
    root = {"PYTHONPATH": str(recorded_home.ROOT)} if before == TOGETHER else {}
    loaded = subprocess.run(run, cwd=home, env={**variables, **root}, capture_output=True, text=True, check=False, timeout=900)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    found = json.loads(loaded.stdout.splitlines()[-1])
    assert found["doc_ids"] == documents(EXPECTED["hits"])[: len(found["doc_ids"])]
    assert Path(found["code"]).is_relative_to(recorded_home.ROOT if before == TOGETHER else home)
