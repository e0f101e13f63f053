"""What people get wrong: each mistake ends with a message that names the thing and an exit status, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components.planning.plan import Room
from tests.flows.cli_world import SMALL, assert_refused, at_home, done, scalingnote, write_collection

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture(scope="module")
def clinic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder without a mistake."""
    return write_collection(tmp_path_factory.mktemp("data") / "clinic")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path, clinic: Path) -> Iterator[Path]:
    """A home with a promoted release; the mistakes are made beside it and must leave it as it is."""
    with at_home(tmp_path_factory.mktemp("mistakes") / "home", mlflow_template) as home:
        assert done("promote")["status"] == "nothing"
        rollback = ("rollback", "--as", "Ada", "--reason", "slow")
        assert_refused(scalingnote(*rollback), 7, "nothing to roll back to", "no release was promoted yet")
        done("retrain", *SMALL, "--data", clinic)
        done("approve", "1", "--as", "Ada")
        done("promote")
        yield home


@pytest.fixture
def broken(tmp_path: Path, clinic: Path) -> Path:
    """A copy of the data to break."""
    return Path(shutil.copytree(clinic, tmp_path / "broken"))


def replace(file: Path, old: str, new: str) -> None:
    """Replace the first `old` in a file."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def unknown_document(data: Path) -> None:
    replace(data / "qrels" / "test.tsv", "q0\td0\t", "q0\tnowhere\t")


def unknown_query(data: Path) -> None:
    replace(data / "qrels" / "train.tsv", "q2\td2\t", "nobody\td2\t")


def empty_document(data: Path) -> None:
    replace(data / "corpus.jsonl", "A patient with attack, found in the heart.", " ")


def duplicate_ids(data: Path) -> None:
    replace(data / "corpus.jsonl", '"_id": "d8"', '"_id": "d7"')


def test_query_in_train(data: Path) -> None:
    replace(data / "queries.jsonl", "my heart has a burn", "Heart stone!")


test_query_in_train.__test__ = False  # type: ignore[attr-defined]
BROKEN_DATA: list[tuple[Callable[[Path], None], tuple[str, ...]]] = [
    (unknown_document, ("judgements", "nowhere", "test", "q0")),
    (unknown_query, ("judgements", "nobody")),
    (empty_document, ("documents", "text.not_blank", "d1")),
    (duplicate_ids, ("documents", "doc_id", "d7")),
    (test_query_in_train, ("queries", "leakage.test_in_train.normalised", "r2")),
]


@pytest.mark.parametrize(("breaks", "named"), BROKEN_DATA, ids=lambda value: getattr(value, "__name__", ""))
def test_broken_data_stops_before_any_training(
    installed: Path, broken: Path, breaks: Callable[[Path], None], named: tuple[str, ...]
) -> None:
    breaks(broken)
    trained = set((installed / "work" / "train_towers").iterdir())
    outcome = scalingnote("retrain", *SMALL, "--data", broken)
    assert_refused(outcome, 3, *named, "nothing was trained", "report.html")
    assert set((installed / "work" / "train_towers").iterdir()) == trained
    checked = scalingnote("validate", *SMALL, "--data", broken, "--json")
    assert checked.status == 3
    assert json.loads(checked.out)["exit_status"] == 3


def missing_corpus(data: Path) -> Path:
    (data / "corpus.jsonl").unlink()
    return data


def a_file(data: Path) -> Path:
    return data / "corpus.jsonl"


def nothing_there(data: Path) -> Path:
    return data / "elsewhere"


def cut_off(data: Path) -> Path:
    replace(data / "queries.jsonl", "}\n", "\n")
    return data


UNREADABLE: list[tuple[Callable[[Path], Path], tuple[str, ...]]] = [
    (missing_corpus, ("corpus.jsonl", "is missing")),
    (a_file, ("corpus.jsonl is a file", "expected a folder")),
    (nothing_there, ("elsewhere", "does not exist")),
    (cut_off, ("queries.jsonl:1", "not a line of JSON")),
]


@pytest.mark.parametrize(("change", "named"), UNREADABLE, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("command", ["retrain", "validate"])
def test_unreadable_data_is_named(
    installed: Path, broken: Path, command: str, change: Callable[[Path], Path], named: tuple[str, ...]
) -> None:
    assert_refused(scalingnote(command, *SMALL, "--data", change(broken)), 3, *named)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--set", "towers.batch_size=0"), ("towers.batch_size", "got 0", "at least")),
        (("--set", "towers.batchsize=8"), ("towers.batchsize", "did you mean 'towers.batch_size'")),
        (("--set", "towers.steps"), ("FIELD=VALUE", "towers.steps")),
        (("--set", "data.scope=world"), ("data.scope", "demo or quick or full")),
        (("--set", "index.index_key=HNFW32"), ("index_key HNFW32", "FAISS does not know", "Flat")),
        (("--preset", "dmeo"), ("dmeo", "did you mean 'demo'")),
        (("--config", "no-such.yaml"), ("no-such.yaml", "does not exist")),
        (("--max-documents", "many"), ("--max-documents", "many")),
        (("--name", "Not A Name"), ("name", "Not A Name")),
    ],
)
def test_wrong_configuration_is_explained(installed: Path, clinic: Path, arguments: tuple[str, ...], named: tuple[str, ...]) -> None:
    assert_refused(scalingnote("retrain", *SMALL, "--data", clinic, *arguments), 2, *named)


def test_typo_in_a_file_is_explained(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("towers:\n  bacth_size: 16\n", encoding="utf-8")
    outcome = scalingnote("retrain", "--config", file, "--json")
    assert_refused(outcome, 2, "mine.yaml", "bacth_size", "batch_size")
    assert json.loads(outcome.out)["exit_status"] == 2


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        ((), 2, ("COMMAND",)),
        (("serach", "heart"), 2, ("serach", "search")),
        (("search",), 2, ("query",)),
        (("search", "heart", "-k", "0"), 2, ("-k", "1 to 10000")),
        (("search", " "), 3, ("empty",)),
        (("search", "\u200b\u00ad"), 3, ("empty",)),
        (("search", "heart", "--release", "newest"), 7, ("newest", "champion")),
        (("search", "heart", "--name", "nobody"), 7, ("nobody",)),
        (("approve", "candidate/9", "--as", "Ada"), 7, ("candidate/9", "candidate/1")),
        (("approve", "candidate/1"), 7, ("--as NAME",)),
        (("approve", "candidate/1", "--as", " "), 7, ("--as NAME",)),
        (("approve", "candidate/1", "--as", "\u2060"), 7, ("--as NAME",)),
        (("rollback", "--as", "Ada", "--reason", "slow"), 7, ("nothing to roll back to", "release/1")),
        (("verify", "release/9"), 7, ("release/9",)),
        (("trace", "candidate/9"), 7, ("candidate/9",)),
        (("trace", "d9999"), 3, ("d9999",)),
        (("run", "--queries", "no-such.jsonl", "--output", "out.trec"), 3, ("no-such.jsonl",)),
    ],
)
def test_wrong_arguments_are_explained(installed: Path, arguments: tuple[str, ...], status: int, named: tuple[str, ...]) -> None:
    assert_refused(scalingnote(*arguments), status, *named)


def test_one_changed_byte_of_the_index_is_found(installed: Path) -> None:
    (file,) = (installed / "mlflow").rglob("part-00000.vectors.npy")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert_refused(scalingnote("search", "heart attack"), 6, "part-00000.vectors.npy", "was changed")
        found = scalingnote("verify", "champion", "--json")
        assert_refused(found, 6, "part-00000.vectors.npy", "was changed")
        assert [check["name"] for check in found.result["checks"] if not check["ok"]] == ["index"]
    finally:
        file.write_bytes(whole)
    assert done("verify")["verified"] is True


def test_a_student_in_another_ones_folder_is_refused(installed: Path) -> None:
    from components.tracking.registry import artifact_folder

    folder = artifact_folder("retriever-query-encoder", 1)
    kept = folder.with_name("kept")
    folder.rename(kept)
    try:
        foreign_student(kept, folder)
        assert_refused(scalingnote("search", "heart attack"), 6, folder.name, "was replaced")
        assert_refused(scalingnote("verify"), 6, "query encoder", "was replaced")
    finally:
        shutil.rmtree(folder)
        kept.rename(folder)
    assert done("verify")["verified"] is True


def test_a_candidate_with_a_student_of_another_space_is_refused(installed: Path, tmp_path: Path) -> None:
    from components.release.manifest import Pin, load_release, write_candidate
    from components.tracking.registry import artifact_folder, register, versions

    run_id = versions("retriever-candidate")[0].run_id
    student = foreign_student(artifact_folder("retriever-query-encoder", 1), tmp_path / "student")
    registered = register("retriever-query-encoder", student, run_id, {}, {})
    folder = artifact_folder("retriever-candidate", 1)
    before = load_release(folder)
    pin = Pin(model=registered.name, version=registered.version, digest=registered.digest)
    (tmp_path / "candidate").mkdir()
    manifest = before.model_copy(update={"pins": before.pins.model_copy(update={"query_encoder": pin})})
    candidate = write_candidate(manifest, folder / "evaluation", folder / "validation", tmp_path / "candidate")
    version = register("retriever-candidate", candidate, run_id, {}, {}).version
    assert_refused(scalingnote("search", "heart", "--release", f"candidate/{version}"), 6, "vector space", "query encoder")
    assert_refused(scalingnote("verify", f"candidate/{version}"), 6, "query encoder", "belongs to the space")
    done("approve", f"candidate/{version}", "--as", "Ada")
    assert_refused(scalingnote("promote"), 7, "does not verify", "nothing was changed", "query encoder")
    assert done("status")["champion"] == 1


def foreign_student(source: Path, folder: Path):  # type: ignore[no-untyped-def]
    """A copy of a student that says it belongs to another space."""
    from components.artifacts import read_manifest, seal
    from components.towers.contract import load_contract, save_contract

    shutil.copytree(source, folder)
    manifest = read_manifest(folder)
    contract, _ = load_contract(folder)
    save_contract(folder, contract, "f" * 64)
    attributes = {**manifest.attributes, "space_id": "f" * 64}
    return seal(folder, manifest.kind, counts=manifest.counts, parents=manifest.parents, attributes=attributes)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_full_disk_is_named_and_finished_steps_are_kept(
    installed: Path, mlflow_template: Path, clinic: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ("retrain", *SMALL, "--data", clinic)
    with at_home(small_disk / "home", mlflow_template) as home:
        assert_refused(scalingnote(*build), 9, str(home), "is full")
        assert not (home / "prefect" / "prefect.db").exists(), "no server was started on a disk too small for it"
        monkeypatch.setattr("flows.cli.output.NEEDED_BYTES", 0)
        assert_refused(scalingnote(*build), 9, "This job writes about", "is free")  # the sum is known before the first step
        monkeypatch.setattr("components.planning.plan.free_room", lambda _: Room(2**50, 2**50))  # it becomes full while the steps run
        interrupted = scalingnote(*build)
        assert_refused(interrupted, 9, str(home), "is full", "finished steps are kept")
        subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
        again = scalingnote(*build)
    finished = [line.split("]")[0] + "]" for line in interrupted.out.splitlines() if "] done in" in line]
    assert finished and again.status == 0, again.err
    assert [line.split("]")[0] + "]" for line in again.out.splitlines() if line.endswith("taken from the cache")] == finished
