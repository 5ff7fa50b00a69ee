"""`BlockTable`: one sequence's blocks in one KV group.

Written by `BlockManager` alone; read by the planner, which asks what can be written at once, and by
`run.inputs`, which makes a tensor of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from workbench.cache.eviction import Keep
from workbench.errors import WorkbenchError
from workbench.retention import KeptRange


class OutOfBlocks(WorkbenchError, RuntimeError):
    """No free block is left; ask `lacks` first."""


@dataclass(slots=True)
class BlockTable:
    """A sequence's blocks in order, from its block `first` on: a window has let go of the others.

    `hashes` names the sequence's full, computed blocks from block 0 on. Tokens below `writable_to`
    can be written at once: their blocks are there, and nobody else refers to them.
    """

    namespace: str
    block_ids: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    first: int = 0
    writable_to: int = 0
    retention: tuple[KeptRange, ...] = ()

    @property
    def stop(self) -> int:
        """The number after the sequence's last block."""
        return self.first + len(self.block_ids)

    def slot(self, position: int, block_size: int, first_id: int) -> int:
        """Return where a token lies in the tensor of a group whose blocks begin at `first_id`."""
        index, offset = divmod(position, block_size)
        return (self.block_ids[index - self.first] - first_id) * block_size + offset

    def branch(self, first: int, num_tokens: int, block_size: int) -> BlockTable:
        """Return a table of the same blocks, from `first` to that of token `num_tokens` - 1."""
        stop = -(-num_tokens // block_size)
        block_ids = self.block_ids[first - self.first : stop - self.first]
        hashes = self.hashes[: num_tokens // block_size]
        return BlockTable(self.namespace, block_ids, hashes, first, retention=self.retention)

    def keep(self, index: int, block_size: int) -> Keep | None:
        """Return how the request wants block `index` to be kept; None where it says nothing."""
        for one in self.retention:
            if one.holds(index * block_size):
                return Keep(one.priority, one.seconds)
        return None

    def check(self, block_size: int, ref_counts: Mapping[int, int]) -> None:
        """Raise `AssertionError` unless no block is there twice and what is writable is its own."""
        assert len(set(self.block_ids)) == len(self.block_ids), "a table holds a block twice"
        assert len(self.hashes) <= self.stop, "more published than allocated"
        if not self.writable_to:
            return
        assert self.writable_to == self.stop * block_size, (
            "writable without a block, or the reverse"
        )
        # Without prefix reuse no block is named: then only the last is known to be unfinished.
        own = self.block_ids[max(0, len(self.hashes) - self.first) if self.hashes else -1 :]
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
