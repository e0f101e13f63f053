"""Two processes on the CPU give what one gives: gather, loss, gradient, a whole training; different data is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from components.artifacts import MOST_JSON, verify, write_json
from components.errors import ArtifactError, ConfigError, DataError, ModelError
from components.towers import processes as towers_processes
from components.towers.config import TowerConfig
from components.towers.encoder import load_tower
from components.towers.launch import main, read_pairs
from components.towers.loop import share_of
from components.towers.negatives import nearest
from components.towers.processes import FAILURE, World, failure_of, gather_with_gradient, launched, require_same_data, write_pairs
from components.towers.train import train_towers, training_losses
from tests.training.tiny_world import documents, pairs
from tests.training.two_processes import CONFIG, FULL, loss_and_gradient, negatives, vectors

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a home of its own."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture
def at_home(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same home for every test of this module, so that all use one tiny model."""
    monkeypatch.setenv("SCALINGNOTE_HOME", str(root / "home"))
    return root


@pytest.fixture(scope="module")
def found(root: Path) -> list[dict[str, Any]]:
    """What each of two processes has measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALINGNOTE_HOME", str(root / "home"))
        loss_and_gradient(CONFIG, negatives(2), root)  # the tiny model exists before two processes look for it
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "SCALINGNOTE_HOME": str(root / "home"), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.training.two_processes", str(root)]
    processes = [subprocess.Popen(command, env={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, cwd=ROOT) for r in (0, 1)]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(root / f"found_{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_the_gather_gives_all_rows_and_the_gradient_of_both_losses(found: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        together, gradient = found[rank]["gathered"]
        assert together[:, 0].tolist() == [0, 0, 1, 1]
        # Row i is weighed by (1 + 2) x (i + 1): once by each process.
        assert gradient[:, 0].tolist() == [[3, 6], [9, 12]][rank]


@pytest.mark.parametrize("count", [2, 3])
def test_loss_and_gradient_with_hard_negatives_are_those_of_one_process(found: list[dict[str, Any]], at_home: Path, count: int) -> None:
    loss, gradient = loss_and_gradient(CONFIG, negatives(count), at_home)
    for rank in (0, 1):
        _same(found[rank][f"lora_{count}"], loss, gradient)


def test_loss_and_gradient_of_sharded_models_are_those_of_one_process(found: list[dict[str, Any]], at_home: Path) -> None:
    loss, gradient = loss_and_gradient(FULL, negatives(2), at_home)
    assert len(gradient) > 40
    _same(found[0]["fsdp"], loss, gradient)
    _same(found[0]["fsdp_recomputed"], loss, gradient)


def test_the_main_process_alone_reads_the_weights_of_sharded_models(found: list[dict[str, Any]]) -> None:
    assert [found[rank]["weights_read"] for rank in (0, 1)] == [1, 0]


def test_each_process_searches_its_share_of_the_queries(found: list[dict[str, Any]]) -> None:
    scores, numbers = nearest(*vectors(), 5)
    for rank in (0, 1):
        np.testing.assert_array_equal(found[rank]["nearest"][1], numbers)
        np.testing.assert_allclose(found[rank]["nearest"][0], scores, atol=1e-6)


def test_a_process_without_a_word_to_foretell_takes_part(found: list[dict[str, Any]]) -> None:
    first, second = (found[rank]["wordless"] for rank in (0, 1))
    assert [g.shape for g in first] == [(4, 4), ()]
    assert float(first[0].abs().max()) > 0
    for ours, theirs in zip(first, second, strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_sharded_models_are_stored_whole(found: list[dict[str, Any]], at_home: Path) -> None:
    (weights, moments), (read_weights, read_moments) = found[0]["checkpoint"]["states"]
    assert len(weights) > 40 and found[1]["checkpoint"]["states"][0][0] == {}  # the main process alone holds them
    for name in weights:
        torch.testing.assert_close(read_weights[name], weights[name], atol=0, rtol=0)
    for number in moments:
        for name in ("step", "exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(read_moments[number][name], moments[number][name], atol=0, rtol=0)
    vectors = load_tower(at_home / "sharded", precision="float32").encode(documents())
    np.testing.assert_allclose(vectors, found[0]["checkpoint"]["vectors"], atol=1e-5)


def test_the_mean_of_the_last_checkpoints_is_that_of_every_process(found: list[dict[str, Any]]) -> None:
    """The others kept what they had after the last step, and measured half of what tells a collapse with it."""
    for ours, theirs in zip(found[0]["merged"], found[1]["merged"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def _same(two: tuple[float, list[torch.Tensor]], loss: float, gradient: list[torch.Tensor]) -> None:
    assert two[0] == pytest.approx(loss, abs=1e-5)
    assert len(two[1]) == len(gradient)
    assert max(float(g.abs().max()) for g in gradient) > 1e-3
    for ours, theirs in zip(two[1], gradient, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_different_data_and_a_batch_that_cannot_be_shared_are_refused(found: list[dict[str, Any]]) -> None:
    for rank in (0, 1):
        assert found[rank]["different_data"].startswith("DataError: The 2 processes of this training hold different data: process 0 has")
        assert found[rank]["odd_batch"].startswith("ConfigError: towers.batch_size 7 cannot be shared equally by 2 processes")


@pytest.mark.slow
def test_a_training_with_two_processes_gives_the_towers_of_one(at_home: Path) -> None:
    config = CONFIG.model_copy(update={"steps": 8, "hard_negatives": 2, "mining_start": 3, "mining_depth": 8, "checkpoint_every": 3})
    handler = signal.getsignal(signal.SIGTERM)
    for name, processes in (("one", 1), ("two", 2)):
        (at_home / name).mkdir()
        artifact = train_towers(pairs(), config.model_copy(update={"processes": processes}), {"dataset": "d"}, at_home / name)
        assert artifact.parents == {"dataset": "d"}
    verify(at_home / "two")
    assert signal.getsignal(signal.SIGTERM) == handler and not launched()
    assert training_losses(at_home / "two") == pytest.approx(training_losses(at_home / "one"), abs=1e-4)
    np.testing.assert_array_equal(np.load(at_home / "two" / "negatives_0.npy"), np.load(at_home / "one" / "negatives_0.npy"))
    for role in ("query_tower", "document_tower"):
        one, two = (load_file(at_home / name / role / "adapter" / "adapter_model.safetensors") for name in ("one", "two"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-4, rtol=1e-3)
        vectors = [load_tower(at_home / name / role, precision="float32").encode(documents()) for name in ("one", "two")]
        np.testing.assert_allclose(vectors[1], vectors[0], atol=1e-4)


def test_an_expected_failure_of_a_process_is_raised_as_its_own_class(at_home: Path, tmp_path: Path) -> None:
    write_pairs(pairs(), tmp_path / "pairs.json")
    write_json(tmp_path / "config.json", CONFIG.model_copy(update={"base_model": "./no/such/model"}).model_dump())
    given = {"pairs": tmp_path / "pairs.json", "config": tmp_path / "config.json", "out": tmp_path / "out", "failure": tmp_path / FAILURE}
    with pytest.raises(SystemExit) as ended:
        main([text for name, path in given.items() for text in (f"--{name}", str(path))])
    assert ended.value.code == ModelError.exit_code
    raised = failure_of(SimpleNamespace(), tmp_path)
    assert type(raised) is ModelError and "does not exist" in str(raised)


def test_a_process_that_ends_without_a_word_is_named(tmp_path: Path) -> None:
    killed = SimpleNamespace(get_first_failure=lambda: (1, SimpleNamespace(exitcode=-9)))
    assert "Process 1 of the training ended with exit status -9" in str(failure_of(killed, tmp_path))


def test_a_signal_to_the_launcher_reaches_whoever_listened_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launcher made an ordinary failure of it, and the command ended with "Unexpected failure"."""
    from torch.distributed.elastic.multiprocessing import SignalException

    def told(*_: object) -> None:
        raise SignalException("told to end", signal.SIGTERM)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: told)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    try:
        with pytest.raises(SignalException):
            towers_processes._launch(2, [], tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_sharding_needs_several_processes(at_home: Path) -> None:
    with pytest.raises(ConfigError, match="fsdp, which divides a model among several processes, but there is one"):
        train_towers(pairs(), FULL.model_copy(update={"sharding": "fsdp"}), {}, at_home)


def test_one_process_needs_no_group() -> None:
    rows = torch.ones(2, 3)
    assert gather_with_gradient(rows) is rows
    require_same_data("a")
    assert World().share([1, 2, 3]) == [1, 2, 3]


def test_the_share_of_a_process_knows_where_its_positives_stand() -> None:
    mined = np.full((64, 1), -1)
    mined[[3, 17, 40]] = [[12], [26], [49]]
    share = share_of(pairs(), [3, 17, 40, 8], mined, World(rank=1, size=2))
    assert share.queries == [40, 8]
    assert share.documents == [40, 8, 49, 8]  # pair 8 has no mined negative: its positive fills the place
    assert share.columns == [3, 17, 12, 26, 40, 8, 49, -1]  # and is masked there
    assert share.targets == [4, 5]


def test_pairs_survive_their_file_and_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given in (pairs(), replace(pairs(), origins=["a", "b"] * 32, kinds=["x", "y", "", "z"] * 16, own={3: 5})):
        write_pairs(given, tmp_path / "pairs.json")
        assert read_pairs(tmp_path / "pairs.json") == given
    write_json(tmp_path / "other.json", {"queries": []})
    with pytest.raises(DataError, match="does not hold training pairs"):
        read_pairs(tmp_path / "other.json")
    write_json(tmp_path / "config.json", {"steps": 0})
    given = ["--pairs", str(tmp_path / "pairs.json"), "--config", str(tmp_path / "config.json"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == ConfigError.exit_code
    assert "steps: Input should be greater than or equal to 1" in capsys.readouterr().err


def test_pairs_of_a_corpus_larger_than_any_other_file_of_json_are_read(tmp_path: Path) -> None:
    """They hold all documents: a training in several processes ended where those took more than 64 MB."""
    given = replace(pairs(), documents=[*documents(), "x" * MOST_JSON])
    write_pairs(given, tmp_path / "pairs.json")
    assert read_pairs(tmp_path / "pairs.json") == given
    with pytest.raises(ArtifactError, match="is missing"):
        read_pairs(tmp_path / "none.json")


def test_the_settings_say_what_cannot_work_together() -> None:
    with pytest.raises(ValueError, match="cannot be shared equally"):
        TowerConfig(batch_size=8, processes=3)
    with pytest.raises(ValueError, match="sharding fsdp is for training full"):
        TowerConfig(sharding="fsdp")


def test_variables_that_a_launcher_left_behind_are_ignored(at_home: Path) -> None:
    """With them a plain training would wait ten minutes for a process that nobody started."""
    script = (
        "from pathlib import Path; from components.towers.train import train_towers\n"
        "from tests.training.two_processes import CONFIG\nfrom tests.training.tiny_world import pairs\n"
        "import sys; out = Path(sys.argv[1]); out.mkdir()\n"
        "print(train_towers(pairs(), CONFIG.model_copy(update={'steps': 1}), {'dataset': 'd'}, out).kind)"
    )
    left = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    environment = {**os.environ, **left, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "TORCHELASTIC_RUN_ID": "gone"}
    command = [sys.executable, "-c", script, str(at_home / "plain")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip().endswith("towers"), done.stderr[-2000:]
