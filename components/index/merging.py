"""Merging of FAISS indexes made from one template, and the check that a merged index holds what its parts held.

FAISS's own `merge_from` destroys memory on block-packed lists (fast scan). When a receiving list holds a non-zero multiple of
`block_size` entries, `BlockInvertedLists::add_entries` (1.12 to 1.15.1) takes its end for the border of a block, where the number of
vectors in a block is meant, and copies as many blocks as the merged list will have, past the end of its buffer. So such lists are
unpacked and packed here. Plain codes are left to `merge_from`; every other kind is grown as one index and never merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.artifacts import digest_of
from components.errors import ArtifactError
from components.index.engine import block_lists, inner_index, inverted_lists, may_merge_from, memory, threads

MERGE_VERSION = 2  # how parts are put together; indexes that do not say it were merged by FAISS itself
AT_ONCE = 2**22  # bytes of codes that are read, unpacked or packed at a time: what stays in the processor's cache
WAITING = 2**26  # bytes of codes of several parts that are packed together
_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)
_BLOCKS = 128  # blocks that are sorted at a time: what fits the processor's cache
Ids = NDArray[np.int64]
Codes = NDArray[np.uint8]


class ListRows(NamedTuple):
    """Rows of some lists of an index.

    `lists` and `sizes` (rows in each) int64 (m,); `ids` int64 (n,), list after list; `codes` uint8 (at least n, bytes a row), in which
    the rows of a list lie together from its place in `starts`, int64 (m,), on.
    """

    lists: Ids
    sizes: Ids
    ids: Ids
    codes: Codes
    starts: Ids


class Contents:
    """What the lists of an index hold: of each its rows, and a digest of their numbers and codes, which have to ascend.

    The digest is the sum, modulo 2**64, of a hash of each row: it finds faults of memory, disk and programs, not an attacker, and thousands
    of lists are added to at a time.
    """

    def __init__(self) -> None:
        self.rows, self._digests, self._last = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._ascending = True

    def add(self, rows: ListRows, first: int) -> None:
        """Count rows that follow those there are; their numbers start at `first`."""
        ids, begins = rows.ids + first, np.cumsum(rows.sizes) - rows.sizes
        self._grow(int(rows.lists.max()) + 1)
        steps = np.diff(ids, prepend=-1)
        steps[begins] = ids[begins] - self._last[rows.lists]
        self._ascending &= bool((steps > 0).all())
        self._last[rows.lists] = ids[begins + rows.sizes - 1]
        self.rows[rows.lists] += rows.sizes
        self._digests[rows.lists] += np.add.reduceat(_hashes(ids, rows.codes, _each(rows.starts, rows.sizes)), begins)

    def _grow(self, lists: int) -> None:
        if (more := lists - len(self.rows)) > 0:
            self.rows, self._digests = np.pad(self.rows, (0, more)), np.pad(self._digests, (0, more))
            self._last = np.pad(self._last, (0, more), constant_values=-1)

    @property
    def digest(self) -> str:
        """sha256 (hex) over rows and digests of all lists."""
        return digest_of([self.rows.tolist(), self._digests.tolist()])

    def difference(self, found: Contents) -> str | None:
        """The first list in which `found` differs, in words; None when they are equal."""
        self._grow(len(found.rows))
        found._grow(len(self.rows))
        different = np.flatnonzero((self.rows != found.rows) | (self._digests != found._digests))
        if len(different):
            number = int(different[0])
            here, there = int(self.rows[number]), int(found.rows[number])
            held = "other rows or codes than" if here == there else f"{there:,} rows instead of the {here:,} of"
            return f"list {number} holds {held} the parts"
        return None if self._ascending and found._ascending else "its rows are not in order"


def _hashes(ids: Ids, codes: Codes, places: Ids) -> NDArray[np.uint64]:
    """A hash of each row's number and code, uint64 (n,): products with odd numbers, added up and mixed. `places` are the rows' codes."""
    missing = -codes.shape[1] % 8
    words = np.ascontiguousarray(np.pad(codes, ((0, 0), (0, missing))) if missing else codes).view(np.uint64)
    keys = np.random.default_rng(13).integers(2**63, size=words.shape[1] + 1, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = (words @ keys[1:])[places] + ids.view(np.uint64) * keys[0]
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> np.uint64(29)
    return np.asarray(hashes, np.uint64)


class Merge:
    """Indexes of one template put one behind the other; `contents` is what the whole then has to hold."""

    def __init__(self) -> None:
        self.contents = Contents()
        self._index: Any | None = None
        self._packing: _Packing | None = None
        self._waiting: list[ListRows] = []

    def append(self, part: Any) -> None:
        """Put the rows of `part` behind the others. Afterwards it is used up.

        Raises ArtifactError for kinds that cannot be merged and for a part that was not made from the template of the others.
        """
        if self._index is None:
            self._packing = _packing_of(part)
            if self._packing is None:
                _require_may_merge_from(part)
        else:
            _require_alike(self._index, part)
        first = 0 if self._index is None else self._index.ntotal
        for rows in rows_of(part, self._packing):
            self.contents.add(rows, first)
            if self._index is not None and self._packing is not None:
                self._wait(rows, first)
        if self._index is None:
            self._index = part
        elif self._packing is None:
            _merge_from(self._index, part, first)
        else:
            for index in (self._index, inner_index(self._index)):
                index.ntotal = first + part.ntotal

    def take(self) -> Any:
        """The merged index, which is not kept here; None when nothing was appended."""
        self._put_in()
        index, self._index = self._index, None
        return index

    def _wait(self, rows: ListRows, first: int) -> None:
        """Rows of several parts are packed together: a list costs the same time for one row as for many."""
        self._waiting.append(rows._replace(ids=rows.ids + first))
        if sum(some.codes.nbytes for some in self._waiting) >= WAITING:
            self._put_in()

    def _put_in(self) -> None:
        lists = None if self._index is None else block_lists(self._index)
        if not self._waiting or self._packing is None or lists is None:
            return
        waiting, self._waiting = self._waiting, []
        of = np.concatenate([np.repeat(rows.lists, rows.sizes) for rows in waiting])
        order = np.argsort(of, kind="stable")
        codes, skipped = np.concatenate([rows.codes for rows in waiting]), np.cumsum([0, *(len(rows.codes) for rows in waiting)])
        found = [_each(rows.starts + skip, rows.sizes) for rows, skip in zip(waiting, skipped[:-1], strict=True)]
        ids, places = np.concatenate([rows.ids for rows in waiting])[order], np.concatenate(found)[order]
        sizes, start = np.bincount(of, minlength=lists.nlist), 0
        for numbers in _groups(sizes, self._packing.width):
            stop = start + int(sizes[numbers].sum())
            self._packing.append(lists, numbers, sizes[numbers], ids[start:stop], codes[places[start:stop]])
            start = stop

    def difference(self, found: Any) -> str | None:
        """The first list in which an index does not hold what the parts held, in words; None when it holds all."""
        contents = Contents()
        for rows in rows_of(found, self._packing):
            contents.add(rows, 0)
        return self.contents.difference(contents)


def can_merge(index: Any) -> bool:
    """Whether indexes of this kind can be merged, by FAISS or here. The others are grown as one index where one file is asked for.

    Not merged are graphs (HNSW), which FAISS cannot merge; lists of Panorama, whose codes FAISS loses (faiss#5607); FlatDedup, which
    keeps rows outside of its lists; and fast scans with 64 or more vectors in a block, whose codes FAISS cannot unpack.
    """
    blocks = block_lists(index)
    return may_merge_from(index) if blocks is None else _Packing.of(blocks) is not None


def rows_of(index: Any, packing: _Packing | None = None) -> Iterator[ListRows]:
    """All rows of an index of plain or block-packed codes, list by list, some 4 MiB of codes at a time; without lists all stand in list 0.

    How the lists are packed is worked out when it is not given.
    """
    lists = inverted_lists(index)
    if lists is None:
        yield from _rows_without_lists(inner_index(index))
        return
    packing = packing or _packing_of(index)
    sizes = np.array([lists.list_size(number) for number in range(lists.nlist)], np.int64)
    for numbers in _groups(sizes, lists.code_size if packing is None else packing.width):
        mine = sizes[numbers]
        ids = np.concatenate([memory(lists.get_ids(number), size) for number, size in zip(numbers.tolist(), mine.tolist(), strict=True)])
        codes, starts = _plain_codes(lists, numbers, mine) if packing is None else packing.codes(lists, numbers, mine)
        yield ListRows(numbers, mine, ids, codes, starts)


def lists_damaged_by_faiss(index: Any, parts: Sequence[int]) -> list[int]:
    """Numbers of the lists at which FAISS's `merge_from` wrote past its buffers when it merged parts of so many rows, in their order.

    The merging is done over from the row numbers in the lists, which are those of the parts one after another. Raises ArtifactError when
    they are not, each once and ascending in every list: then what was written over is beyond doubt.
    """
    lists = block_lists(index)
    if lists is None:
        return []
    ends, seen, damaged = np.cumsum(parts), np.zeros(sum(parts), bool), []
    whole = _Packing.of(lists) is not None
    for number in range(lists.nlist):
        if not (size := lists.list_size(number)):
            continue
        ids = memory(lists.get_ids(number), size)
        if ids[0] < 0 or ids[-1] >= len(seen) or (np.diff(ids) <= 0).any() or seen[ids].any():
            raise ArtifactError(f"list {number} holds row numbers that no merge of its parts can give")
        seen[ids] = True
        added = np.bincount(np.searchsorted(ends, ids, side="right"), minlength=len(ends))
        before = np.cumsum(added) - added
        met = (added > 0) & (before > 0)
        if whole:  # else every code that FAISS moved by itself was lost
            met &= before % lists.block_size == 0
        if met.any():
            damaged.append(number)
    if not seen.all():
        raise ArtifactError(f"row {int(np.argmin(seen))} is in none of the lists")
    return damaged


class _Packing:
    """How block-packed lists hold codes: `vectors` to a block, their half bytes in FAISS's order, which its own packer is asked for.

    `width` are the bytes of a code, `block` those of a block; `to_codes` and `to_blocks` say for each half byte where it is taken from.
    """

    def __init__(self, packer: Any, to_blocks: Ids) -> None:
        self.vectors, self.width, self.block = int(packer.nvec), int(packer.code_size), int(packer.block_size)
        self._to_blocks, self._to_codes = to_blocks, np.argsort(to_blocks)
        # Of a block's bytes those bits that belong to its first 0, 1, 2, ... vectors.
        first = np.arange(self.vectors)[None, :, None] < np.arange(self.vectors)[:, None, None]
        lanes = np.repeat(first.reshape(-1, 1) * np.uint8(255), self.width, axis=1)
        self._masks = self._packed(lanes)

    @classmethod
    def of(cls, lists: Any) -> _Packing | None:
        """The packing of a FAISS BlockInvertedLists; None when its packer does not give each half byte a place of its own."""
        packer = lists.packer
        halves = int(packer.nvec * packer.code_size * 2)
        if halves != 2 * packer.block_size:
            return None
        # Each half byte of the codes spells its own number, one digit (base 16) a time; what stands in the block then is the order.
        numbers, found = np.arange(halves), np.zeros(halves, np.int64)
        for shift in range(0, halves.bit_length(), 4):
            digits = ((numbers >> shift) & 15).astype(np.uint8).reshape(-1, 2)
            codes = (digits[:, 0] | digits[:, 1] << 4).reshape(packer.nvec, packer.code_size)
            block = np.zeros((1, packer.block_size), np.uint8)
            for vector in range(packer.nvec):
                packer.pack_1(codes[vector], vector, block)
            found |= _halves(block[0]).astype(np.int64) << shift
        return cls(packer, found) if np.array_equal(np.sort(found), numbers) else None

    def codes(self, lists: Any, numbers: Ids, sizes: Ids) -> tuple[Codes, Ids]:
        """Codes of some lists of so many rows, none empty, uint8 (places, width), and where each list begins there."""
        counts = -(-sizes // self.vectors)
        pairs = zip(numbers.tolist(), (counts * self.block).tolist(), strict=True)
        blocks = np.concatenate([memory(lists.get_codes(number), size) for number, size in pairs])
        return self._unpacked(blocks.reshape(-1, self.block)), (np.cumsum(counts) - counts) * self.vectors

    def append(self, lists: Any, numbers: Ids, sizes: Ids, ids: Ids, codes: Codes) -> None:
        """Put rows, their numbers and codes list after list, behind those that the lists hold; `sizes` says how many into which."""
        held = np.array([lists.list_size(number) for number in numbers.tolist()], np.int64)
        taken = held % self.vectors  # places of the last block that are not free
        counts = -(-(taken + sizes) // self.vectors)
        lanes = np.zeros((int(counts.sum()) * self.vectors, self.width), np.uint8)
        lanes[_each((np.cumsum(counts) - counts) * self.vectors + taken, sizes)] = codes
        blocks = self._packed(lanes)
        each = zip(numbers.tolist(), sizes.tolist(), held.tolist(), taken.tolist(), counts.tolist(), strict=True)
        start = done = 0
        for number, size, before, kept, count in each:
            lists.resize(number, before + size)
            memory(lists.get_ids(number), before + size)[before:] = ids[done : done + size]
            whole = memory(lists.get_codes(number), (before // self.vectors + count) * self.block).reshape(-1, self.block)
            if kept:
                blocks[start] |= whole[-count] & self._masks[kept]
            whole[-count:] = blocks[start : start + count]
            start, done = start + count, done + size

    def _unpacked(self, blocks: Codes) -> Codes:
        return self._sorted(blocks, self._to_codes, (len(blocks) * self.vectors, self.width))

    def _packed(self, lanes: Codes) -> Codes:
        return self._sorted(lanes.reshape(-1, self.block), self._to_blocks, (len(lanes) // self.vectors, self.block))

    @staticmethod
    def _sorted(blocks: Codes, order: Ids, shape: tuple[int, int]) -> Codes:
        """The half bytes of each block in another order, with as many threads as FAISS would take."""
        width, out = blocks.shape[1], np.empty_like(blocks)
        source = order // 2 + order % 2 * width
        low, high = source[0::2], source[1::2]

        def sort(start: int) -> None:
            # Eight bytes at a time where half bytes move within a byte only: NumPy has no fast shift of single bytes.
            some = blocks[start : start + _BLOCKS].view(np.uint64)
            halves = np.concatenate([some & _LOW, some >> np.uint64(4) & _LOW], axis=1).view(np.uint8)
            joined = halves.take(high, axis=1).view(np.uint64)
            joined <<= np.uint64(4)
            joined |= halves.take(low, axis=1).view(np.uint64)
            out[start : start + _BLOCKS] = joined.view(np.uint8)

        if len(blocks) <= _BLOCKS:
            sort(0)
        else:
            with ThreadPoolExecutor(threads()) as pool:
                list(pool.map(sort, range(0, len(blocks), _BLOCKS)))
        return out.reshape(shape)


def _halves(values: Codes) -> Codes:
    """Half bytes, low before high, (m,) to (2 m,)."""
    return np.stack([values & 15, values >> 4], axis=-1).reshape(-1)


def _each(starts: Ids, sizes: Ids) -> Ids:
    """The numbers from each start on, as many as its size says, one after another."""
    return np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))


def _groups(sizes: Ids, width: int) -> Iterator[Ids]:
    """Numbers of the lists that are not empty, in groups of some 4 MiB of codes: a block of 32 is the least that a list takes."""
    numbers = np.flatnonzero(sizes)
    if len(numbers):
        yield from np.split(numbers, np.flatnonzero(np.diff(np.cumsum(sizes[numbers] + 32) // _rows_at_once(width))) + 1)


def _rows_at_once(width: int) -> int:
    return max(1, AT_ONCE // max(width, 64))


def _plain_codes(lists: Any, numbers: Ids, sizes: Ids) -> tuple[Codes, Ids]:
    starts, width = np.cumsum(sizes) - sizes, lists.code_size
    if not width:  # SQ0 keeps lists alone
        return np.empty((int(sizes.sum()), 0), np.uint8), starts
    pairs = zip(numbers.tolist(), (sizes * width).tolist(), strict=True)
    return np.concatenate([memory(lists.get_codes(number), size) for number, size in pairs]).reshape(-1, width), starts


def _rows_without_lists(index: Any) -> Iterator[ListRows]:
    codes, none = memory(index.codes.data(), index.ntotal * index.code_size), np.zeros(1, np.int64)
    codes = codes.reshape(index.ntotal, index.code_size)
    step = _rows_at_once(index.code_size)
    for start in range(0, index.ntotal, step):
        stop = min(index.ntotal, start + step)
        yield ListRows(none, np.array([stop - start]), np.arange(start, stop), codes[start:stop], none)


def _packing_of(index: Any) -> _Packing | None:
    """How the codes of an index are packed; None when they are not. Raises ArtifactError when they cannot be unpacked."""
    lists = block_lists(index)
    packing = None if lists is None else _Packing.of(lists)
    if lists is not None and packing is None:
        raise ArtifactError(
            f"Lists of {lists.n_per_block} vectors in a block cannot be merged: FAISS does not unpack their codes. Take an index key with "
            "blocks of 32 (PQ48x4fs without a number behind it), or index.layout shards."
        )
    return packing


def _require_alike(merged: Any, part: Any) -> None:
    try:
        merged.check_compatible_for_merge(part)
    except RuntimeError as error:
        raise ArtifactError(f"it does not go with the parts before it ({str(error).splitlines()[-1][-160:]})") from None


def _require_may_merge_from(index: Any) -> None:
    if not may_merge_from(index):
        names = [type(held).__name__ for held in (inner_index(index), inverted_lists(index)) if held is not None]
        raise ArtifactError(
            f"FAISS's merge_from must not be called on {' with '.join(names)}: it is missing, writes past their buffers or loses their "
            "codes. Put the rows in by components.index.merging.Merge, or build one index of all rows."
        )


def _merge_from(merged: Any, part: Any, first: int) -> None:
    """FAISS's own merge, for plain codes alone. This is its only caller, which a test holds."""
    for index in (merged, part):
        _require_may_merge_from(index)
    # Inverted files keep row numbers, which have to be moved; plain codes count their rows themselves.
    merged.merge_from(part, 0 if inverted_lists(merged) is None else first)
