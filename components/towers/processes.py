"""Several processes that train one pair of towers: each embeds its share of a batch, all see all documents, gradients are summed.

Which process this is, its device and its process group come from accelerate's state, set up from the variables that torchrun gives.
Ours are the gather, since the loss needs gradients to flow back to the process that embedded a document, and the sum of gradients:
gradient caching runs several backward passes a step, each through one adapter, and DistributedDataParallel's hooks would send
every one of them. In one process every function here gives its input back, so there is one code path.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from components import errors
from components.artifacts import read_json, write_atomic, write_json
from components.errors import DataError, ModelError, ScalingNoteError
from components.settings import asked_threads, usable_processors
from components.towers.config import TowerConfig
from components.towers.pairs import Pairs

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Item = TypeVar("Item")
Numbers = TypeVar("Numbers", NDArray[np.float32], NDArray[np.int64])
FAILURE = "failure.json"
LONGEST_WAIT_HOURS = 6
_SENT_AT_ONCE = 2**26  # bytes of an array that stand on a device at a time


@dataclass(frozen=True)
class World:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item], rank: int | None = None) -> Sequence[Item]:
        """The part of `items` of the process `rank` (this one by default): consecutive, of equal size."""
        size = len(items) // self.size
        start = size * (self.rank if rank is None else rank)
        return items[start : start + size]


_obeys = False  # see `obey_launcher`


def obey_launcher() -> None:
    """Take the variables of a launcher (torchrun, or ours) as meant for this process.

    Any other process ignores them: a shell or a batch system leaves them behind, and who waits for processes that nobody started waits
    for ten minutes and more.
    """
    global _obeys
    _obeys = True


def launched() -> bool:
    """Whether a launcher started this process as one of several that train together."""
    return _obeys and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join_world() -> World:
    """This process's place; where a launcher started several, the process group and device are set up first (nccl, gloo on CPUs)."""
    import torch

    if launched() and not torch.distributed.is_initialized():
        from accelerate import PartialState

        if not torch.cuda.is_available():
            _share_processors()
        # The others wait while the main process looks for negatives among millions of documents, which takes longer than 10 minutes.
        PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=LONGEST_WAIT_HOURS))
    return current_world()


def _share_processors() -> None:
    """Divide the processors that may be used: two processes that each use all of them are slower than one."""
    import torch

    share = max(1, usable_processors() // max(1, int(os.environ.get("LOCAL_WORLD_SIZE") or "1")))
    threads = min(share, asked_threads() or share)
    # accelerate reads the variable; torch has read it already.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def leave_world() -> None:
    """Close the process group, if there is one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def current_world() -> World:
    """This process's place among those of the process group; one of one without a group."""
    import torch

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return World()
    return World(torch.distributed.get_rank(), torch.distributed.get_world_size())


@cache
def _gather() -> Any:
    import torch

    class Gather(torch.autograd.Function):
        """Forward: the rows of all processes. Backward: the sum over all processes' losses of the gradient of the own rows."""

        @staticmethod
        def forward(ctx: Any, rows: Tensor) -> Tensor:
            parts = [torch.empty_like(rows) for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather(parts, rows.contiguous())
            ctx.count = len(rows)
            return torch.cat(parts)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Tensor:
            total = gradients[0].contiguous()
            torch.distributed.all_reduce(total)
            start = torch.distributed.get_rank() * ctx.count
            return total[start : start + ctx.count]

    return Gather


def gather_with_gradient(rows: Tensor) -> Tensor:
    """Rows (n, d) of every process, in the order of the processes: (n x processes, d); n has to be equal in all of them.

    The gradient is that of the sum of all processes' losses.
    """
    return rows if current_world().size == 1 else _gather().apply(rows)


def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace each gradient by its sum over the processes, in one message. Sharded parameters have theirs summed already."""
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None and not is_sharded(p)]
    if current_world().size == 1 or not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def sum_over_processes(values: Numbers) -> Numbers:
    """The sum of the arrays of all processes, which have one shape (rows, ...), in place and in blocks: a GPU never holds the whole."""
    if current_world().size == 1:
        return values
    import torch

    rows = max(1, _SENT_AT_ONCE // max(1, values[:1].nbytes))
    for start in range(0, len(values), rows):
        block = torch.from_numpy(values[start : start + rows]).to(_device())
        torch.distributed.all_reduce(block)
        values[start : start + rows] = block.cpu().numpy()
    return values


def from_main(make: Callable[[], Item]) -> Item:
    """What `make()` gives in the main process, in all of them; an expected error there is raised in all of them."""
    world = current_world()
    if world.size == 1:
        return make()
    import torch

    result: list[Any] = [_tried(make) if world.main else None]
    torch.distributed.broadcast_object_list(result)
    value, error = result[0]
    if error is not None:
        raise error
    return value


def _tried(make: Callable[[], Item]) -> tuple[Item | None, ScalingNoteError | None]:
    try:
        return make(), None
    except ScalingNoteError as error:
        return None, error


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Give whole tensors the numbers that they have in the main process, in place; all processes have to call it."""
    if current_world().size > 1:
        import torch

        for tensor in tensors:
            torch.distributed.broadcast(tensor.detach(), 0)


def wait_for_all() -> None:
    """Return when every process has come here."""
    if current_world().size > 1:
        import torch

        torch.distributed.barrier()


def require_same_data(digest: str) -> None:
    """Raise DataError in every process unless all of them give the same digest."""
    world = current_world()
    if world.size == 1:
        return
    import torch

    found: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(found, digest)
    for rank, other in enumerate(found):
        if other != found[0]:
            raise DataError(
                f"The {world.size} processes of this training hold different data: process 0 has {found[0][:12]}, process {rank} has "
                f"{other[:12]} (digests of pairs, configuration, base model and checkpoint). Give every process the same pairs file "
                "and configuration, and an output folder that all of them share."
            )


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds a part of the tensor only."""
    return hasattr(tensor, "full_tensor")


def collected(tensors: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Whole copies on the CPU in the main process, nothing in the others. All processes have to call it: shards are gathered."""
    main = current_world().main
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()
        if main:
            found[name] = whole.to("cpu", copy=True)
    return found


def like(whole: Tensor, tensor: Tensor) -> Tensor:
    """`whole` on the device of `tensor` and, where that is sharded, cut as it is."""
    if not is_sharded(tensor):
        return whole.to(tensor.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


def _device() -> str:
    import torch

    return "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"


def train_in_processes(pairs: Pairs, config: TowerConfig, parents: Mapping[str, str], folder: Path) -> None:
    """Train with `config.processes` processes on this machine; an expected failure of one of them is raised here."""
    with tempfile.TemporaryDirectory(prefix="scalingnote-launch-") as scratch:
        given = Path(scratch)
        write_pairs(pairs, given / "pairs.json")
        write_json(given / "config.json", config.model_dump())
        write_json(given / "parents.json", dict(parents))
        names = {"pairs": given / "pairs.json", "config": given / "config.json", "parents": given / "parents.json"}
        names |= {"out": folder.resolve(), "failure": given / FAILURE}
        _launch(config.processes, [text for name, path in names.items() for text in (f"--{name}", str(path))], given)


def _launch(processes: int, arguments: Sequence[str], scratch: Path) -> None:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher prints a page about a failed process, whose message is raised below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"towers-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        # Ctrl-C reaches every process of the terminal by itself.
        signals_to_handle="SIGTERM",
        logs_specs=DefaultLogsSpecs(log_dir=str(scratch / "logs")),
    )
    try:
        with _signals_kept():
            elastic_launch(settings, sys.executable)("-m", "components.towers.launch", *arguments)
    except ChildFailedError as failed:
        raise failure_of(failed, scratch) from None
    except SignalException as told:  # it has ended the processes; now whoever listened before decides what becomes of this one
        os.kill(os.getpid(), told.sigval)
        raise


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM, which the launcher replaces for good when it runs in the main thread."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def failure_of(failed: Any, scratch: Path) -> ScalingNoteError:
    """What the failed process left in `scratch`, as an error of its own class; else the exit status that `failed` knows of torch."""
    told = scratch / FAILURE
    if told.exists():
        raw = read_json(told)
        found: ScalingNoteError = getattr(errors, raw["class"])(raw["message"])
        return found
    rank, process = failed.get_first_failure()
    return ModelError(
        f"Process {rank} of the training ended with exit status {process.exitcode}; if it wrote why, that stands above. "
        "Killed without a word (-9) it most often lacked memory: lower towers.chunk_size or towers.processes."
    )


def write_pairs(pairs: Pairs, path: Path) -> None:
    """Write the training pairs as one JSON file."""
    relevant = [[query, sorted(documents)] for query, documents in pairs.relevant.items()]
    content = {name: list(getattr(pairs, name)) for name in ("queries", "documents", "pairs", "origins", "kinds")} | {
        "relevant": relevant,
        "own": list(pairs.own.items()),
    }
    write_atomic(path, json.dumps(content, ensure_ascii=False).encode())
