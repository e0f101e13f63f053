"""The runners of the encoding: the same shards from each, and what a worker that dies or fails costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path

import pytest
from prefect import flow

from components import settings
from components.artifacts import DatasetArtifact, EncoderArtifact, VectorShards, file_sha256
from components.errors import ConfigError, ModelError
from components.index import workers
from components.index.config import EncodingConfig
from components.index.corpus import StoredDocuments
from components.index.encode import ShardJob, encode_shards
from components.index.workers import device_of, threads_of
from flows import encoding_runners as encoding
from flows.cli.output import is_disk_full
from flows.config import load_config
from flows.encoding_runners import WorkerLost, runner_of
from flows.steps import vectors_step
from tests.flows.cli_world import at_home
from tests.flows.shard_world import Words, words, write_documents

needs_dask = pytest.mark.skipif(find_spec("prefect_dask") is None, reason="prefect-dask is not installed (extra dask)")
DOCUMENTS, SHARD = 20, 4  # the word cheese stands in documents 2, 10 and 16 to 19: shards 0, 2 and 4


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Path]:
    with at_home(tmp_path_factory.mktemp("runners") / "home", mlflow_template) as home:
        (home / "prefect").mkdir()
        yield home


@pytest.fixture(params=["process_pool", pytest.param("dask", marks=[needs_dask, pytest.mark.server, pytest.mark.slow])])
def runner(request: pytest.FixtureRequest) -> str:
    """Each runner with processes of its own; Dask's are Prefect tasks, which need a server."""
    if request.param == "dask":
        request.getfixturevalue("prefect")
    return str(request.param)


def encoded(folder: Path, encoder: Words, runner: str = "in_process", attempts: int = 3) -> VectorShards:
    """20 documents in 5 shards, encoded into `folder`/out by two workers."""
    (folder / "out").mkdir(exist_ok=True, parents=True)
    documents = StoredDocuments(write_documents(folder / "documents.parquet", DOCUMENTS), SHARD)
    config = EncodingConfig.model_validate({"runner": runner, "workers": 2, "attempts": attempts})
    return encode_shards(ShardJob(encoder, documents, 64, folder / "out"), {}, runner_of(config))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in (folder / "out").iterdir()}


def test_a_killed_worker_costs_one_shard_and_the_result_is_that_of_one_process(tmp_path: Path, runner: str) -> None:
    here = encoded(tmp_path / "here", words(tmp_path / "calm"))
    encoder = words(tmp_path / "deadly", "death", 1)
    assert encoded(tmp_path / "there", encoder, runner).digest == here.digest
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    calls = encoder.calls()
    assert [count for _, count in calls] == [SHARD] * 6, "five shards, and the one whose worker died again"
    processes = {pid for pid, _ in calls}
    assert os.getpid() not in processes and 2 <= len(processes) <= 3


def test_a_shard_whose_workers_always_die_is_named_and_finished_shards_stay(tmp_path: Path, runner: str) -> None:
    with pytest.raises(WorkerLost, match=r"shard [024] died 2 times.*finished shards are kept"):
        encoded(tmp_path, words(tmp_path / "deadly", "death", 40), runner, attempts=2)
    finished = len(list((tmp_path / "out").glob("shard-*.json")))
    again = words(tmp_path / "calm")
    assert encoded(tmp_path, again).counts == {"documents": DOCUMENTS, "shards": 5}
    assert len(again.calls()) == 5 - finished


def test_what_fails_in_a_worker_is_said_as_it_is_and_not_tried_again(tmp_path: Path, runner: str) -> None:
    with pytest.raises(ModelError, match="troubled"):
        encoded(tmp_path / "model", words(tmp_path / "a", "model", 40), runner)
    with pytest.raises(OSError) as caught:
        encoded(tmp_path / "disk", words(tmp_path / "b", "disk", 40), runner)
    assert is_disk_full(caught.value)


def test_an_interruption_does_not_wait_for_the_shards_in_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = words(tmp_path / "slow", "sleep", 3)

    def interrupted(*_: object, **__: object) -> None:
        while len(list(encoder.folder.glob("trouble-*"))) == 3:  # until a worker sleeps in its shard
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(encoding, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoded(tmp_path, encoder, "process_pool")


@pytest.mark.server
def test_in_a_flow_the_shards_are_encoded_alike(prefect: Path, tmp_path: Path) -> None:
    encode = flow(persist_result=False)(lambda folder, encoder: encoded(folder, encoder, "process_pool"))
    encoder = words(tmp_path / "deadly", "death", 1)
    assert encode(tmp_path / "there", encoder).digest == encoded(tmp_path / "here", words(tmp_path / "calm")).digest
    assert len(encoder.calls()) == 6


def test_a_full_disk_keeps_the_finished_shards(tmp_path: Path) -> None:
    encoder = words(tmp_path / "disk", "disk", 1)
    write_documents(tmp_path / "documents.parquet", DOCUMENTS)
    with pytest.raises(OSError) as caught:
        encoded(tmp_path, Words(encoder.folder, "disk"))
    assert is_disk_full(caught.value)
    assert list((tmp_path / "out").glob(".*.tmp")) == []
    assert encoded(tmp_path, encoder).digest == encoded(tmp_path / "straight", words(tmp_path / "calm")).digest


def test_a_worker_that_was_killed_starts_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two processes, or before its first, it encoded a shard to its end."""
    worker = encoding.Worker(None, (0, 1), 3)  # type: ignore[arg-type]
    started: list[int] = []

    class Dying(encoding.ProcessPoolExecutor):
        def __init__(self) -> None:
            self._processes = {}

        def submit(self, *_: object) -> Future[int]:  # type: ignore[override]
            started.append(1)
            raise encoding.BrokenProcessPool

        def shutdown(self) -> None: ...  # type: ignore[override]

    def fresh() -> Dying:
        worker.kill()  # as another thread would right now
        return Dying()

    worker._pool = Dying()
    monkeypatch.setattr(worker, "_fresh", fresh)
    for _ in range(2):
        with pytest.raises(encoding.BrokenProcessPool):
            worker.encode(0)
    assert started == [1]


OF_AN_INDEX = (
    "import multiprocessing, sys, time\n"
    "from components.index.workers import prepare_worker\n"
    "def work():\n    prepare_worker(0, 1)\n    print('ready', flush=True)\n    time.sleep(600)\n"
    "if __name__ == '__main__':\n"
    "    child = multiprocessing.get_context('spawn').Process(target=work)\n"
    "    child.start()\n    print(child.pid, flush=True)\n    child.join()\n"
)
OF_A_STUDY = (
    "import os, time\n"
    "from components.studies.growth_cell import _in_own_process\n"
    "def work():\n    print(os.getpid(), 'ready', sep='\\n', flush=True)\n    time.sleep(600)\n"
    "if __name__ == '__main__':\n    _in_own_process(work)\n"
)


@pytest.mark.parametrize("code", [OF_AN_INDEX, OF_A_STUDY], ids=["index", "study"])
def test_a_worker_ends_with_its_parent(code: str, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline().strip() == "ready"
    parent.send_signal(signal.SIGKILL)
    parent.wait(timeout=600)
    parent.stdout.close()
    deadline = time.monotonic() + 600
    while _is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    """An ended process whose new parent has not asked for its status yet does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_runner_is_no_part_of_the_steps_key(tmp_path: Path) -> None:
    dataset = DatasetArtifact(path=tmp_path, digest="a" * 64)
    tower = EncoderArtifact(path=tmp_path, digest="b" * 64)
    one, other, coarser = (
        vectors_step(load_config("smoke", None, changes), dataset, tower).folder
        for changes in ({}, {"encoding.runner": "process_pool", "encoding.workers": 2}, {"encoding.shard_size": 50})
    )
    assert one == other != coarser


def test_dask_that_is_not_installed_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package prefect-dask"):
        runner_of(EncodingConfig(runner="dask"))


def test_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(settings, "_OWN_CGROUP", Path("/nowhere"))  # the quota of the machine that tests
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_of(count) for count in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [threads_of(count) for count in (1, 8)] == [2, 1]
    for odd, threads in (("4,2", 4), ("\u00b2", 8), ("", 8), ("64", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert threads_of(1) == threads


def test_one_worker_at_most_encodes_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_gpus_here", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [workers.useful_workers(asked) for asked in (1, 8)] == [1, 2]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert workers.useful_workers(8) == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden: the processors encode
    assert workers.useful_workers(8) == 8


@pytest.mark.parametrize(
    ("worker", "visible", "gpus", "device"),
    [(0, None, 0, None), (0, None, 4, "0"), (5, None, 4, "1"), (1, "6,7", 8, "7"), (2, "6, 7", 8, "6"), (0, "", 8, None)],
)
def test_each_worker_takes_a_gpu_of_its_own(worker: int, visible: str | None, gpus: int, device: str | None) -> None:
    assert device_of(worker, visible, gpus) == device
