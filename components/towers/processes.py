"""Several processes that train one pair of towers: each embeds its share of a batch, all see all documents, gradients are summed.

Which process this is, its device and its process group come from accelerate's state, set up from the variables that torchrun gives.
Ours are the gather, since the loss needs gradients to flow back to the process that embedded a document, and the sum of gradients:
gradient caching runs several backward passes a step, each through one adapter, and DistributedDataParallel's hooks would send
every one of them. In one process every function here gives its input back, so there is one code path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from components.errors import DataError, ScalingNoteError
from components.settings import asked_threads, usable_processors

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

Item = TypeVar("Item")
Numbers = TypeVar("Numbers", NDArray[np.float32], NDArray[np.int64])
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
