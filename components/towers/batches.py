"""Which pairs make the batch of a step: a function of the seed and the step alone, so that a continued run sees the same data.

Every epoch is a new random order cut into batches; what is left over, less than a batch, waits for the next epoch. Pairs of similar
length can be put together (`length_window`), which saves padding, and pairs of one data set (`homogeneous_batches`) or of one kind
(`batches_by`), since documents of another are told apart too easily to teach anything: on ICD-10-CM batches of one chapter brought a
teacher of 80 steps from .43 to .50 nDCG@10.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from components.errors import ModelError
from components.towers.config import TowerConfig
from components.towers.pairs import Pairs


class BatchPlan:
    """The batches of every step. Raises ModelError when there are fewer pairs than a batch needs."""

    def __init__(self, pairs: Pairs, config: TowerConfig, query_lengths: Sequence[int], document_lengths: Sequence[int]) -> None:
        """`query_lengths` and `document_lengths`: tokens of every query and document of `pairs`."""
        self._seed, self._size, self._window = config.seed, config.batch_size, config.length_window
        numbers = np.array(pairs.pairs, np.int64).reshape(-1, 2)
        self._lengths = np.asarray(document_lengths)[numbers[:, 1]], np.asarray(query_lengths)[numbers[:, 0]]
        origins = _by_origin(pairs) if config.homogeneous_batches else {"": np.arange(len(numbers))}
        for origin, members in origins.items():
            _require_a_batch(origin, len(members), config.batch_size)
        kinds = np.array(pairs.kinds)
        self._groups = [group for members in origins.values() for group in _by_kind(members, kinds[members], config.batch_size)]
        self.steps_per_epoch = sum(len(members) // self._size for members in self._groups)
        self._epoch = -1
        self._batches: list[NDArray[np.int64]] = []

    def of_step(self, step: int) -> list[int]:
        """Pair numbers of the step's batch, that of all processes together."""
        epoch, slot = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._of_epoch(epoch), epoch
        return [int(number) for number in self._batches[slot]]

    def _of_epoch(self, epoch: int) -> list[NDArray[np.int64]]:
        rng = np.random.default_rng([self._seed, epoch])
        batches = [batch for members in self._groups for batch in self._cut(members[rng.permutation(len(members))], rng)]
        if len(self._groups) > 1:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _cut(self, order: NDArray[np.int64], rng: np.random.Generator) -> list[NDArray[np.int64]]:
        """Batches of an order whose remainder is dropped; within each window sorted by length and then in random order."""
        whole = order[: len(order) // self._size * self._size]
        if self._window == 1:
            return list(whole.reshape(-1, self._size))
        batches: list[NDArray[np.int64]] = []
        for start in range(0, len(whole), self._window * self._size):
            members = whole[start : start + self._window * self._size]
            documents, queries = (lengths[members] for lengths in self._lengths)
            rows = members[np.lexsort((queries, documents))].reshape(-1, self._size)
            batches += list(rows[rng.permutation(len(rows))])
        return batches


def _by_origin(pairs: Pairs) -> dict[str, NDArray[np.int64]]:
    """Pair numbers of each data set, the data sets in alphabetical order."""
    origins = np.array(pairs.origins)
    return {origin: np.flatnonzero(origins == origin) for origin in sorted(set(pairs.origins))}


def _by_kind(members: NDArray[np.int64], kinds: NDArray[np.str_], size: int) -> list[NDArray[np.int64]]:
    """Pair numbers of each kind, in alphabetical order; kinds of less than a batch make one group, with the smallest other if need be."""
    groups = [members[kinds == kind] for kind in np.unique(kinds)]
    large, small = ([g for g in groups if (len(g) >= size) == enough] for enough in (True, False))
    if not small:
        return large
    rest = np.sort(np.concatenate(small))
    if len(rest) < size and large:
        smallest = min(range(len(large)), key=lambda i: len(large[i]))
        rest = np.sort(np.concatenate([rest, large.pop(smallest)]))
    return [*large, rest]


def _require_a_batch(origin: str, count: int, size: int) -> None:
    if count >= size:
        return
    if not origin:
        raise ModelError(f"towers.batch_size is {size}, but there are only {count} training pairs. Lower it.")
    raise ModelError(
        f"towers.homogeneous_batches needs {size} training pairs of every data set (towers.batch_size), "
        f"but '{origin}' has only {count}. Lower the batch size, or set towers.homogeneous_batches to false."
    )
