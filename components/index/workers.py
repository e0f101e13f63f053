"""What a process that encodes shards does before it begins: its share of the machine, and an end when its parent ends."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def prepare_worker(worker: int, workers: int) -> None:
    """Make this process the worker number `worker` of `workers`, which ends with its parent."""
    take_share(worker, workers)
    threading.Thread(target=_end_with_parent, name="parent-watch", daemon=True).start()


def take_share(worker: int, workers: int) -> None:
    """Give this process its share of the processors, and a GPU of its own where there are any; torch must not be imported yet."""
    os.environ["OMP_NUM_THREADS"] = str(threads_of(workers))
    device = device_of(worker, os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus_here())
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def threads_of(workers: int) -> int:
    """Threads for each of `workers` processes: together they use the processors of this process, or fewer if OMP_NUM_THREADS says so."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    return min(share, int(limit)) if limit.isdigit() and int(limit) > 0 else share


def useful_workers(asked: int) -> int:
    """How many of `asked` processes may encode on this machine: one for each GPU, where there are any.

    Two models on one GPU do not encode faster, and their batches may not fit beside each other.
    """
    names = _named(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus_here())
    return min(asked, len(names)) if names else asked


def device_of(worker: int, visible: str | None, gpus: int) -> str | None:
    """The GPU of a worker for CUDA_VISIBLE_DEVICES, each in turn; None where there is none. `visible`: that variable as it is."""
    names = _named(visible, gpus)
    return names[worker % len(names)] if names else None


def _named(visible: str | None, gpus: int) -> list[str]:
    return [name.strip() for name in visible.split(",") if name.strip()] if visible is not None else [str(n) for n in range(gpus)]


def _gpus_here() -> int:
    """GPUs of this machine, counted without torch."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever, and keep its model in memory."""
    from multiprocessing import connection, parent_process

    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
