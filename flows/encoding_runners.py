"""Where the shards of a corpus are encoded: in this process, in processes of this machine, or on a Dask cluster.

Inside a flow each shard is a Prefect task of its own. Prefect's own process pool (ProcessPoolTaskRunner) is not used: it is one pool, so
a process that dies breaks the shards of all others too, and leaves their task runs as running for ever; and each of its processes runs
Prefect's engine. Here every worker is a pool of one process that knows nothing of Prefect: a killed one costs the shard it had in hand,
which is tried again in a fresh process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextvars import copy_context
from functools import partial
from importlib.util import find_spec
from logging import WARNING
from multiprocessing import get_context
from threading import Lock
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from components.errors import ConfigError, ScalingNoteError
from components.index.config import EncodingConfig
from components.index.encode import Runner, ShardJob, encode_in_process, encode_shard_in_worker
from components.index.workers import kill_processes, prepare_worker, take_share, threads_of, useful_workers
from flows.reporting import say

TASK: dict[str, Any] = {
    "name": "encode_shard",
    "description": "Encode one shard of the documents.",
    "task_run_name": "encode_shard {number}",
    "cache_policy": NO_CACHE,
    "persist_result": False,
}


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


class Worker:
    """A process that encodes one shard at a time, and is replaced when it dies."""

    def __init__(self, job: ShardJob, place: tuple[int, int], attempts: int) -> None:
        """`place`: the worker's number, and how many there are."""
        self._job, self._place, self._attempts, self._killed = job, place, attempts, False
        self._pool, self._changing = self._fresh(), Lock()

    def encode(self, number: int) -> int:
        """Encode shard `number`; raises WorkerLost, or what the shard raised."""
        for attempt in range(1, self._attempts + 1):
            try:
                return self._submit(number).result()
            except BrokenProcessPool:
                self.close()
                if self._killed:
                    raise
                say(f"[encode_corpus] the process of shard {number} died in attempt {attempt} of {self._attempts}", WARNING)
                self._pool = self._fresh()
        raise WorkerLost.of(number, self._attempts)

    def kill(self) -> None:
        """End the process in the middle of its shard, which whoever goes on encodes anew."""
        with self._changing:
            self._killed = True
            kill_processes(self._pool)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()

    def _submit(self, number: int) -> Future[int]:
        """Give the process its shard; raises BrokenProcessPool once the worker was killed."""
        with self._changing:  # the process starts in here: a kill comes before, and nothing starts, or after, and finds it
            if self._killed:
                raise BrokenProcessPool("The worker was killed.")
            return self._pool.submit(encode_shard_in_worker, self._job, number)

    def _fresh(self) -> ProcessPoolExecutor:
        # A forked process would hang in torch, whose threads are not forked with it. The process itself starts with its first shard.
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=prepare_worker, initargs=self._place)


def encode_in_processes(config: EncodingConfig, job: ShardJob, numbers: Sequence[int]) -> None:
    """Encode the shards `numbers` in `config.workers` processes, one a GPU at most.

    Raises WorkerLost, or what a shard raised, when the others are done.
    """
    count, waiting = min(useful_workers(config.workers), len(numbers)), deque(numbers)
    with ThreadPoolExecutor(count, "encoding") as threads:
        workers = [Worker(job, (place, count), config.attempts) for place in range(count)]
        served = [threads.submit(copy_context().run, _serve, worker, waiting) for worker in workers]
        try:
            wait(served, return_when=FIRST_EXCEPTION)
        except BaseException:  # Ctrl-C, or a signal that reaches this process alone: a shard in hand may take many minutes more
            waiting.clear()
            for worker in workers:
                worker.kill()
            raise
        finally:
            waiting.clear()  # after a failure nobody begins another shard
    for done in served:
        done.result()


def _serve(worker: Worker, waiting: deque[int]) -> None:
    """Let `worker` encode shards as long as there are any."""
    encode = task(**TASK)(worker.encode) if FlowRunContext.get() else worker.encode
    try:
        while (number := _next(waiting)) is not None:
            encode(number)
    finally:
        worker.close()


def _next(waiting: deque[int]) -> int | None:
    try:
        return waiting.popleft()
    except IndexError:  # asking for the length first would be one step too late, with other workers beside this one
        return None


def encode_on_dask(config: EncodingConfig, job: ShardJob, numbers: Sequence[int]) -> None:
    """Encode the shards `numbers` on a Dask cluster, which sees the same folders; Dask itself gives a lost worker's shard to another."""
    import dask
    from distributed.scheduler import KilledWorker
    from prefect_dask import DaskTaskRunner

    # Dask counts the deaths it forgives, not the attempts.
    forgiving = dask.config.set({"distributed.scheduler.allowed-failures": config.attempts - 1})
    encode = task(**TASK)(encode_shard_in_worker)
    with forgiving, DaskTaskRunner(**_cluster(config)) as cluster:
        if not config.dask_address:
            cluster.client.register_plugin(_share_plugin(useful_workers(config.workers)))
        found = {number: cluster.submit(encode, {"job": job, "number": number}) for number in numbers}
        for number, future in found.items():
            try:
                future.result()
            except KilledWorker:
                raise WorkerLost.of(number, config.attempts) from None


def _cluster(config: EncodingConfig) -> dict[str, Any]:
    """How DaskTaskRunner finds its cluster; a local one has a worker a process, and no web page that would need a port."""
    if config.dask_address:
        return {"address": config.dask_address}
    # Dask gives its workers one thread, if nobody says otherwise.
    workers = useful_workers(config.workers)
    environment = {"PREFECT_API_URL": _server_address(), "OMP_NUM_THREADS": str(threads_of(workers))}
    return {"cluster_kwargs": {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None, "env": environment}}


def _share_plugin(workers: int) -> Any:
    """Makes every worker of a local cluster take its share when it starts, also one that replaces another."""
    from distributed import WorkerPlugin

    class TakeShare(WorkerPlugin):
        def setup(self, worker: Any) -> None:
            take_share(int(worker.name), workers)

    return TakeShare()


def _server_address() -> str:
    """Where this process's Prefect server listens: without its address each Dask worker would start a server of its own."""
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_API_URL

    if address := PREFECT_API_URL.value():
        return str(address)
    server = SubprocessASGIServer()  # of a flow that a script called, not our command line
    server.start()
    return server.api_url
