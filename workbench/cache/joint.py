"""`JointBlocks`: the block managers of a model with several KV groups, driven as one.

It has the face of a `BlockManager`, so that the scheduler need not know; a model with one group has
no `JointBlocks`. A sequence has a table in every group. In all of them the tables end at the same
token, and the last block is shared in one only if it is in each, so that the first group's tables
can answer whether a token has room.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Any

from workbench.cache.blocks import BlockManager
from workbench.cache.lookup import PrefixLookup, find_prefix
from workbench.cache.table import BlockTable, OutOfBlocks
from workbench.describe import Described
from workbench.events import EventBus
from workbench.retention import KeptRange


class JointBlocks(Described):
    """Several groups' managers, of one block size, that count in one list.

    See `BlockManager` for what each method does: here it does so in every group, or in none.
    """

    def __init__(self, groups: Tokens[BlockManager]) -> None:
        """Take over managers that were made for this."""
        self.groups = tuple(groups)
        self.block_size = groups[0].block_size
        self.ref_counts, self.counters = groups[0].ref_counts, groups[0].counters
        self.host = None  # there is no host tier for several groups
        assert all(group.ref_counts is self.ref_counts for group in groups), "one list counts all"
        assert all(group.counters is self.counters for group in groups), "one set of counters"
        assert all(group.block_size == self.block_size for group in groups), "one block size"

    # --- reading ------------------------------------------------------------------------------

    @property
    def tables(self) -> dict[int, BlockTable]:
        """The first group's tables."""
        return self.groups[0].tables

    @property
    def bus(self) -> EventBus:
        """Where it is stated what happens to blocks."""
        return self.groups[0].bus

    @bus.setter
    def bus(self, bus: EventBus) -> None:
        for group in self.groups:
            group.bus = bus

    @property
    def step(self) -> int:
        """The step that events are stamped with."""
        return self.groups[0].step

    @step.setter
    def step(self, step: int) -> None:
        for group in self.groups:
            group.step = step

    @property
    def pending_copies(self) -> list[tuple[int, int]]:
        """The pending copies of all groups."""
        return [copy for group in self.groups for copy in group.pending_copies]

    @property
    def num_blocks(self) -> int:
        """Blocks of all groups."""
        return sum(group.num_blocks for group in self.groups)

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, in any group."""
        return sum(group.num_free for group in self.groups)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence refers to, in any group."""
        return sum(group.num_used for group in self.groups)

    @property
    def num_cached(self) -> int:
        """Free blocks whose content can still be found."""
        return sum(group.num_cached for group in self.groups)

    def lookup(
        self,
        token_ids: Tokens[int],
        namespace: str = "",
        names: Tokens[bytes] = (),
        *,
        partial: bool = True,
        explain: bool = True,
    ) -> PrefixLookup:
        """Return the prefix of which every group has what the next token looks at."""
        groups = [(group.prefix, group.window) for group in self.groups]
        asked = token_ids, self.block_size, namespace, self.groups[0].namespaces, names
        return find_prefix(groups, *asked, partial=partial, explain=explain)

    def lacks(self, sequence_id: int, start: int, stop: int) -> bool:
        """Whether free blocks do not suffice in some group."""
        return any(group.lacks(sequence_id, start, stop) for group in self.groups)

    def _parts(self, lookup: PrefixLookup | None) -> tuple[PrefixLookup | None, ...]:
        return (None,) * len(self.groups) if lookup is None else (lookup, *lookup.others)

    # --- a sequence's life --------------------------------------------------------------------

    def open(
        self,
        sequence_id: int,
        lookup: PrefixLookup | None = None,
        namespace: str = "",
        retention: tuple[KeptRange, ...] = (),
    ) -> None:
        """Start a table in every group."""
        for group, part in zip(self.groups, self._parts(lookup), strict=True):
            group.open(sequence_id, part, namespace, retention)

    def trim(self, sequence_id: int, start: int) -> None:
        """Let every window go of what no token from `start` on looks at."""
        for group in self.groups:
            group.trim(sequence_id, start)

    def grow(self, sequence_id: int, start: int, stop: int) -> None:
        """Make all tables hold `stop` tokens; raise `OutOfBlocks` before changing any."""
        if self.lacks(sequence_id, start, stop):
            free = ", ".join(str(group.num_free) for group in self.groups)
            raise OutOfBlocks(f"sequence {sequence_id} needs more blocks than are free: {free}")
        for group in self.groups:
            group.grow(sequence_id, start, stop)

    def shrink(self, sequence_id: int, num_tokens: int) -> None:
        """Let go of the blocks behind the first `num_tokens` in every group."""
        for group in self.groups:
            group.shrink(sequence_id, num_tokens)

    def publish(self, sequence_id: int, token_ids: Tokens[int], num_computed: int) -> None:
        """Make every full block of the first `num_computed` tokens findable."""
        for group in self.groups:
            group.publish(sequence_id, token_ids, num_computed)

    def can_fork(self, sequence_id: int, num_tokens: int) -> bool:
        """Whether every group still has what a sequence of `num_tokens` looks at."""
        return all(group.can_fork(sequence_id, num_tokens) for group in self.groups)

    def fork(self, sequence_id: int, child_id: int, num_tokens: int) -> None:
        """Give `child_id` tables of the blocks that hold the first `num_tokens` tokens."""
        for group in self.groups:
            group.fork(sequence_id, child_id, num_tokens)

    def finish_copies(self) -> None:
        """Forget the pending copies, now carried out, and release their sources."""
        for group in self.groups:
            group.finish_copies()

    def free(self, sequence_id: int) -> None:
        """Drop a sequence's tables."""
        for group in self.groups:
            group.free(sequence_id)

    def clear_cached(self) -> int:
        """Forget all cached content of free blocks; return how many that made blank."""
        return sum(group.clear_cached() for group in self.groups)

    # --- proof --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` unless every group is whole and all say the same."""
        for group in self.groups:
            group.check()
            assert group.tables.keys() == self.tables.keys(), "a sequence is not in every group"
            for sequence_id, table in group.tables.items():
                first = self.tables[sequence_id]
                assert table.stop == first.stop, "tables end at different tokens"
                assert table.hashes == first.hashes, "a block is published in one group only"
                assert table.writable_to == first.writable_to, "shared in one group only"

    def describe(self) -> dict[str, Any]:
        """Return how each group's blocks are used now."""
        facts: dict[str, Any] = {"blocks": self.num_blocks, "block_size": self.block_size}
        for group in self.groups:
            name = "full" if group.window is None else f"window of {group.window}"
            facts[name] = f"{group.num_used} used, {group.num_cached} cached of {group.num_blocks}"
        return {**facts, "sequences": len(self.tables)}


# What a scheduler drives: the blocks of a model with one KV group, or with several.
Blocks = BlockManager | JointBlocks
