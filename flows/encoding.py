"""Where the shards of a corpus are encoded: in this process, in processes of this machine, or on a Dask cluster.

Each shard is a Prefect task of its own in the last two. Prefect's process pool gives up all its shards when one of its processes dies,
so every worker is a pool of one process: a killed one costs the shard it had in hand, which is tried again in a fresh process.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from components.errors import ConfigError, ScalingNoteError
from components.index.config import EncodingConfig
from components.index.encode import Runner, ShardJob, encode_in_process, encode_shard_in_worker

encode_shard_task = task(
    name="encode_shard", task_run_name="encode_shard {number}", cache_policy=NO_CACHE, persist_result=False, log_prints=False
)(encode_shard_in_worker)


class WorkerLost(ScalingNoteError):
    """The process that encodes a shard died again and again."""

    @classmethod
    def of(cls, number: int, attempts: int) -> WorkerLost:
        """The error for shard `number`."""
        return cls(
            f"The process that encodes shard {number} died {attempts} times, which mostly means that memory ran out. Lower "
            "encoding.workers or encoding.tokens_per_batch and run the same command again; finished shards are kept."
        )


def runner_of(config: EncodingConfig) -> Runner:
    """The runner that `config` names; raises ConfigError when it needs a package that is not installed."""
    if config.runner == "in_process":
        return encode_in_process
    if config.runner == "process_pool":
        return partial(encode_in_processes, config)
    if find_spec("prefect_dask") is None:
        raise ConfigError(
            "encoding.runner is dask, which needs the package prefect-dask. Install it (pip install 'scalingnote[dask]'), "
            "or set encoding.runner to process_pool."
        )
    return partial(encode_on_dask, config)


@dataclass(frozen=True)
class Crew:
    """Workers that take the shards of one job from the same heap."""

    job: ShardJob
    waiting: deque[int]
    workers: int
    attempts: int


def encode_in_processes(config: EncodingConfig, job: ShardJob, numbers: Sequence[int]) -> None:
    """Encode the shards `numbers` in `config.workers` processes; raises WorkerLost, or what a shard raised, when the others are done."""
    crew = Crew(job, deque(numbers), min(config.workers, len(numbers)), config.attempts)
    with _shared_server(), ThreadPoolExecutor(crew.workers, "encoding") as threads:
        served = [threads.submit(copy_context().run, _serve, crew, worker) for worker in range(crew.workers)]
        try:
            wait(served, return_when=FIRST_EXCEPTION)
        finally:
            crew.waiting.clear()  # after a failure or an interruption nobody begins another shard
    for done in served:
        done.result()


def _serve(crew: Crew, worker: int) -> None:
    """Encode shards as long as there are any, in a process of one's own that is replaced when it dies."""
    from prefect.task_runners import ProcessPoolTaskRunner

    number, died = _next(crew), 0
    while number is not None:
        with ProcessPoolTaskRunner(max_workers=1, initializer=prepare_worker, initargs=(worker, crew.workers)) as pool:
            try:
                while number is not None:
                    pool.submit(encode_shard_task, {"job": crew.job, "number": number}).result()
                    number, died = _next(crew), 0
            except BrokenProcessPool:
                died += 1
                if died >= crew.attempts:
                    raise WorkerLost.of(number or 0, died) from None
                print(f"[encode_corpus] the process of shard {number} died; attempt {died + 1} of {crew.attempts}", flush=True)


def _next(crew: Crew) -> int | None:
    try:
        return crew.waiting.popleft()
    except IndexError:
        return None


def encode_on_dask(config: EncodingConfig, job: ShardJob, numbers: Sequence[int]) -> None:
    """Encode the shards `numbers` on a Dask cluster, which sees the same folders; Dask itself gives a lost worker's shard to another."""
    import dask
    from distributed.scheduler import KilledWorker
    from prefect_dask import DaskTaskRunner

    # Dask counts the deaths it forgives, not the attempts.
    forgiving = dask.config.set({"distributed.scheduler.allowed-failures": config.attempts - 1})
    with _shared_server(), forgiving, DaskTaskRunner(**_cluster(config)) as cluster:
        if not config.dask_address:
            cluster.client.register_plugin(_share_plugin(config.workers))
        found = {number: cluster.submit(encode_shard_task, {"job": job, "number": number}) for number in numbers}
        for number, future in found.items():
            try:
                future.result()
            except KilledWorker:
                raise WorkerLost.of(number, config.attempts) from None


def _cluster(config: EncodingConfig) -> dict[str, Any]:
    """How DaskTaskRunner finds its cluster; a local one has a worker a process, and no web page that would need a port."""
    if config.dask_address:
        return {"address": config.dask_address}
    return {"cluster_kwargs": {"n_workers": config.workers, "threads_per_worker": 1, "dashboard_address": None}}


def _share_plugin(workers: int) -> Any:
    """Makes every worker of a local cluster take its share when it starts, also one that replaces another."""
    from distributed import WorkerPlugin

    class TakeShare(WorkerPlugin):  # type: ignore[misc]
        def setup(self, worker: Any) -> None:
            take_share(int(worker.name), workers)

    return TakeShare()


def prepare_worker(worker: int, workers: int) -> None:
    """Make this process the worker number `worker` of `workers`, which ends with its parent."""
    take_share(worker, workers)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


def take_share(worker: int, workers: int) -> None:
    """Give this process its share of the processors, and a GPU of its own where there are any."""
    import torch

    torch.set_num_threads(threads_of(workers))
    device = device_of(worker, os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count())
    if device is not None:
        # Counting the devices does not open them yet, so they can still be chosen.
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def threads_of(workers: int) -> int:
    """Threads for each of `workers` processes: together they use the processors of this process, or as many as OMP_NUM_THREADS says."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    return min(share, int(limit)) if limit.isdigit() and int(limit) > 0 else share


def device_of(worker: int, visible: str | None, gpus: int) -> str | None:
    """The GPU of a worker for CUDA_VISIBLE_DEVICES, each in turn; None where there is none. `visible`: that variable as it is."""
    names = [name.strip() for name in visible.split(",") if name.strip()] if visible is not None else [str(n) for n in range(gpus)]
    return names[worker % len(names)] if names else None


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and keep its model in memory."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextmanager
def _shared_server() -> Iterator[None]:
    """Workers report to the Prefect server that this process uses: without its address each would start a server of its own."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL, temporary_settings

    if PREFECT_API_URL.value():
        yield
        return
    server = SubprocessASGIServer()
    server.start()
    with temporary_settings({PREFECT_API_URL: server.api_url}):
        yield
