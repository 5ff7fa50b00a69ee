"""`BlockTable`: one sequence's blocks in one KV group.

Written by `BlockManager`, its masses by the scheduler; read by the planner, which asks what can be
written at once, and by `run.inputs`, which makes a tensor of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

from workbench.cache.eviction import Keep
from workbench.errors import WorkbenchError
from workbench.retention import KeptRange


class OutOfBlocks(WorkbenchError, RuntimeError):
    """No free block is left; ask `lacks` first."""


class NoBlockTable(WorkbenchError, KeyError):
    """A sequence has no block table (it was not opened, or was freed)."""

    def __init__(self, sequence_id: int, known: Iterable[int]) -> None:
        self.sequence_id = sequence_id
        shown = ", ".join(map(str, islice(known, 8))) or "none"
        super().__init__(
            f"sequence_id={sequence_id!r}: has no block table. Begin with "
            f"`blocks.open(sequence_id)`. Open: {shown}"
        )

    def __str__(self) -> str:
        """`KeyError` would show the message quoted."""
        return str(self.args[0])


class BlockTables(dict[int, "BlockTable"]):
    """Block tables by sequence id; `NoBlockTable` for one that is not there."""

    def __missing__(self, sequence_id: int) -> BlockTable:
        raise NoBlockTable(sequence_id, self)


@dataclass(slots=True)
class BlockTable:
    """A sequence's blocks in order, from its block `first` on: a window has let go of the others.

    `hashes` names the sequence's full, computed blocks from block 0 on. Tokens below `writable_to`
    can be written at once: their blocks are there, and nobody else refers to them.

    `holes` are the numbers of blocks that a dropping policy has given up, rising: whatever lies
    behind them moves up in `block_ids`. `masses`: the attention that blocks have had, by number,
    where a policy asks for it. `asked_at` and `weighed_at`: how many tokens were computed when a
    policy was last asked, and when attention was last added.
    """

    namespace: str
    block_ids: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    first: int = 0
    writable_to: int = 0
    retention: tuple[KeptRange, ...] = ()
    holes: list[int] = field(default_factory=list)
    masses: dict[int, float] = field(default_factory=dict)
    asked_at: int = 0
    weighed_at: int = 0

    @property
    def begin(self) -> int:
        """How many blocks are missing before the last: what is written next lies so much further in
        the sequence than in `block_ids`."""
        return self.first + len(self.holes)

    @property
    def stop(self) -> int:
        """The number after the sequence's last block."""
        return self.begin + len(self.block_ids)

    @property
    def indices(self) -> list[int]:
        """The numbers of the blocks that are there, in order."""
        gone = set(self.holes)
        return [index for index in range(self.first, self.stop) if index not in gone]

    def place(self, index: int) -> int:
        """Return where in `block_ids` a block lies that is no hole."""
        return index - self.first - bisect_left(self.holes, index)

    def slot(self, position: int, block_size: int, first_id: int) -> int:
        """Return where a token lies in the tensor of a group whose blocks begin at `first_id`."""
        index, offset = divmod(position, block_size)
        return (self.block_ids[self.place(index)] - first_id) * block_size + offset

    def branch(self, first: int, num_tokens: int, block_size: int) -> BlockTable:
        """Return a table of the same blocks, from `first` to that of token `num_tokens` - 1.

        What was dropped is missing in it as well, and its blocks have had the same attention.
        """
        stop = -(-num_tokens // block_size)
        block_ids = self.block_ids[first - self.first : self.place(stop)]
        hashes = self.hashes[: num_tokens // block_size]
        child = BlockTable(self.namespace, block_ids, hashes, first, retention=self.retention)
        child.holes, child.masses = list(self.holes), dict(self.masses)
        child.asked_at, child.weighed_at = self.asked_at, self.weighed_at
        return child

    def drop(self, indices: Iterable[int]) -> list[int]:
        """Take out these blocks, given in order, and return their ids."""
        indices = list(indices)
        block_ids = [self.block_ids[self.place(index)] for index in indices]
        gone = set(block_ids)
        self.block_ids[:] = [block_id for block_id in self.block_ids if block_id not in gone]
        self.holes = sorted([*self.holes, *indices])
        for index in indices:
            self.masses.pop(index, None)
        self.writable_to = 0  # the last block may be among them
        return block_ids

    def weigh(self, masses: Iterable[float], num_computed: int) -> None:
        """Add the attention that the first blocks have had in the step that ended here."""
        self.weighed_at = num_computed
        # A step that failed before may have grown the table by more.
        for index, mass in zip(self.indices, masses, strict=False):
            self.masses[index] = self.masses.get(index, 0.0) + mass

    def keep(self, index: int, block_size: int) -> Keep | None:
        """Return how the request wants block `index` to be kept; None where it says nothing."""
        for one in self.retention:
            if one.holds(index * block_size):
                return Keep(one.priority, one.seconds)
        return None

    def check(self, block_size: int, ref_counts: Mapping[int, int]) -> None:
        """Raise `AssertionError` unless no block is there twice and what is writable is its own."""
        assert len(set(self.block_ids)) == len(self.block_ids), "a table holds a block twice"
        assert self.holes == sorted(set(self.holes)), "a block was dropped twice"
        assert not self.holes or self.first <= self.holes[0], "a hole outside the table"
        assert not self.holes or self.holes[-1] < self.stop, "a hole outside the table"
        assert not self.masses.keys() & set(self.holes), "a dropped block has attention"
        assert len(self.hashes) <= self.stop, "more published than allocated"
        if not self.writable_to:
            return
        assert self.writable_to == self.stop * block_size, (
            "writable without a block, or the reverse"
        )
        # Without prefix reuse no block is named, nor is one behind a hole: then only the last is
        # known to be unfinished.
        known = self.hashes and not self.holes
        own = self.block_ids[max(0, len(self.hashes) - self.first) if known else -1 :]
        assert all(ref_counts[block] == 1 for block in own), "a block to be written is shared"


def check_tables(
    tables: Mapping[int, BlockTable],
    pending_copies: Iterable[tuple[int, int]],
    used: Mapping[int, int],
    block_size: int,
) -> None:
    """Raise `AssertionError` unless tables and pending copies are all that refers to blocks.

    used: how often each block is referred to, of those that are.
    """
    expected = Counter(block for table in tables.values() for block in table.block_ids)
    expected.update(source for source, _ in pending_copies)
    assert used == dict(expected), "a reference count is wrong"
    for table in tables.values():
        table.check(block_size, used)
