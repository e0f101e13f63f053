"""Data sets of a hub by name: read as the folder they are, known by their commit, found in the cache without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from components.data.config import DataConfig
from components.data.dataset import load_dataset
from components.data.snapshot import snapshot
from components.data.sources import hub_folder, mixed_name, read_source, remarks_on, source_digest, source_name
from components.errors import DataError
from tests.data_world import write_folder, write_lines
from tests.flows.cli_world import assert_refused, scalingnote
from tests.hub_world import Hub, hub_on_loopback, use_cache

NAME = "somebody/entries"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path) -> Iterator[Hub]:
    with hub_on_loopback(monkeypatch, cache) as running:
        folder = write_folder(tmp_path / "entries")
        write_lines(folder / "README.md", ["# Entries"])
        (folder / "pictures.safetensors").write_bytes(b"1" * 1000)
        running.add(NAME, folder)
        yield running


def of(revision: str = "") -> DataConfig:
    return DataConfig(source=f"hub:{NAME}{revision}")


def again() -> None:
    """As another process would ask."""
    hub_folder.cache_clear()


def test_a_set_is_read_as_a_folder_with_these_files_is(hub: Hub, tmp_path: Path) -> None:
    mine, theirs = read_source(DataConfig(source=str(tmp_path / "entries"))), read_source(of())
    for table in ("documents", "queries", "judgements", "unlabelled"):
        assert getattr(theirs, table).equals(getattr(mine, table))
    assert source_name(of()) == "somebody-entries"
    assert source_digest(of()) == source_digest(DataConfig(source=str(tmp_path / "entries")))
    assert not [path for path in hub.requests if path.endswith((".safetensors", "README.md"))]


def test_the_snapshot_and_what_is_said_name_the_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.models[NAME].main
    assert remarks_on(of())[0] == f"somebody-entries: read from the hub's data set at commit {commit}."
    (folder := tmp_path / "made").mkdir()
    made = snapshot(of(), folder)
    assert made.attributes["commit_of_somebody-entries"] == commit
    assert len(load_dataset(made.path).documents) == 260


def test_a_commit_that_is_named_is_read_for_ever_and_a_branch_moves(hub: Hub, tmp_path: Path) -> None:
    first, digest = hub.models[NAME].main, source_digest(of())
    write_lines(tmp_path / "entries" / "queries.jsonl", ['{"_id": "q0", "text": "another question"}'])
    second = hub.add(NAME, tmp_path / "entries")
    assert hub_folder(of().source).name == first  # one process, one commit
    again()
    assert hub_folder(of().source).name == second and source_digest(of()) != digest
    assert hub_folder(of(f"@{first}").source).name == first and source_digest(of(f"@{first}")) == digest


def test_what_is_in_the_cache_is_read_without_a_network(hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    digest = source_digest(of())
    use_cache(monkeypatch, cache, offline=True)
    asked = len(hub.requests)
    assert source_digest(of()) == digest and len(hub.requests) == asked


def test_a_set_that_is_not_whole_in_the_cache_is_never_read_without_a_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """As a killed download leaves it: without its dev judgements a share of train would be held out in their place."""
    (hub_folder(of().source) / "qrels" / "dev.tsv").unlink()
    use_cache(monkeypatch, cache, offline=True)
    with pytest.raises(DataError, match="not whole"):
        source_digest(of())


def test_two_sets_are_mixed_and_both_commits_are_kept(hub: Hub, tmp_path: Path) -> None:
    other = hub.add("somebody/others", write_folder(tmp_path / "others"))
    mixed = read_source(of().model_copy(update={"mix": ("hub:somebody/others",)}))
    assert mixed.sources == ("somebody-entries", "somebody-others") and mixed_name("hub:somebody/others@main") == "somebody-others"
    assert mixed.notes["commit_of_somebody-others"] == other and mixed.notes["commit_of_somebody-entries"] == hub.models[NAME].main


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hub:entries", "names no data set of a hub. Expected hub:OWNER/NAME or hub:OWNER/NAME@REVISION."),
        ("hub:", "names no data set of a hub"),
        ("hub:a/b/c", "names no data set of a hub"),
        ("hub:somebody/../etc", "names no data set of a hub"),
        ("hub:nobody/nothing", "The data set 'nobody/nothing' is not on http://127.0.0.1"),
        (f"hub:{NAME}@v9", f"The data set '{NAME}' has no revision 'v9'"),
    ],
)
def test_a_name_that_is_not_there_is_one_sentence(hub: Hub, source: str, said: str) -> None:
    with pytest.raises(DataError, match=r"^[^\n]+$") as refused:
        source_digest(DataConfig(source=source))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("status", "code", "said"), [(403, "GatedRepo", "is gated"), (503, "", "does not give"), (401, "", "does not give")]
)
def test_a_set_that_may_not_be_read_or_a_broken_hub_is_one_sentence(hub: Hub, status: int, code: str, said: str) -> None:
    hub.status[NAME] = (status, code)
    with pytest.raises(DataError, match=said):
        source_digest(of())


def test_a_set_that_was_never_fetched_is_said_without_a_network(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use_cache(monkeypatch, cache, offline=True)
    with pytest.raises(DataError, match="does not give 'somebody/entries' now"):
        source_digest(of())


def test_a_set_without_judgements_is_refused_as_a_folder_is(hub: Hub, tmp_path: Path) -> None:
    write_lines(tmp_path / "bare" / "corpus.jsonl", ['{"_id": "a", "text": "b"}'])
    hub.add("somebody/bare", tmp_path / "bare")
    with pytest.raises(DataError, match="quer"):
        source_digest(DataConfig(source="hub:somebody/bare"))


def test_the_command_validates_a_set_by_its_name(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALINGNOTE_HOME", str(tmp_path / "home"))
    outcome = scalingnote("validate", "--data", f"hub:{NAME}")
    assert outcome.status == 0, outcome.out + outcome.err
    assert f"at commit {hub.models[NAME].main}" in outcome.out + outcome.err
    assert_refused(scalingnote("validate", "--data", "hub:nobody/nothing"), 3, "is not on")
