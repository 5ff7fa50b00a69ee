"""Whose block is which: block tables, copy-on-write, prefix reuse, and what a window lets go.

A block holds the KV of `block_size` tokens in every layer of a KV group; `BlockPool` says which
are free, the tables kept here which sequence refers to which. Driven by the scheduler, the only
caller that changes anything; it knows nothing of tensors. `check()` proves the structure whole.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens

from workbench.cache.host import HostTier
from workbench.cache.lookup import PrefixLookup, find_prefix, first_block
from workbench.cache.pool import BlockPool
from workbench.cache.pool_facts import PoolFacts
from workbench.cache.prefix import Content, root_hash
from workbench.cache.stats import CacheCounters
from workbench.cache.table import BlockTable, BlockTables, OutOfBlocks, check_tables
from workbench.config import require_positive
from workbench.events import BlockAllocated, BlockCopied, BlocksDropped, BlockShared
from workbench.retention import KeptRange


class BlockManager(PoolFacts):
    """The block tables of one KV group, over a pool of `num_blocks` blocks.

    window: how many tokens a token sees in this group, itself included (None: all before it).
    host: the tier that takes in what is evicted or swapped out, if there is one. ref_counts,
    counters: what the model's other groups count in; this one's blocks are numbered after theirs.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        window: int | None = None,
        host: HostTier | None = None,
        ref_counts: list[int] | None = None,
        counters: CacheCounters | None = None,
    ) -> None:
        """Raise `ConfigError` unless sizes and window are whole numbers of at least 1."""
        require_positive("block_size", block_size)
        if window is not None:
            require_positive("window", window)
        counts: list[int] = [] if ref_counts is None else ref_counts
        self.counters = CacheCounters() if counters is None else counters
        self.pool = BlockPool(num_blocks, counts, self.counters, host)
        self.num_blocks, self.block_size, self.window = num_blocks, block_size, window
        self.ref_counts, self.prefix, self.host = counts, self.pool.prefix, host
        self.tables = BlockTables()
        self.holed: set[int] = set()  # whose tables have holes
        self.pending_copies: list[tuple[int, int]] = []  # (source, destination)
        self.namespaces: set[str] = set()

    @property
    def groups(self) -> tuple[BlockManager, ...]:
        """The managers of the model's KV groups: this one alone."""
        return (self,)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def lookup(
        self,
        token_ids: Tokens[int],
        namespace: str = "",
        names: Tokens[bytes] = (),
        *,
        partial: bool = True,
        explain: bool = True,
    ) -> PrefixLookup:
        """Return the cached prefix of a token list, and why it ends there; change nothing.

        names: content hashes of the first blocks, where they are known. partial: whether the first
        tokens of a block may be found as well, to be copied. explain: whether to say why.
        """
        asked = token_ids, self.block_size, namespace, self.namespaces, names
        groups = [(self.prefix, self.window)]
        return find_prefix(groups, *asked, partial=partial, host=self.host, explain=explain)

    def num_missing(self, sequence_id: int, start: int, stop: int) -> int:
        """Return how many free blocks `grow` to `stop` tokens, writing from `start`, would take."""
        table = self.tables[sequence_id]
        missing = max(0, self.blocks_for(stop) - table.stop)
        return missing + self.must_copy(table, start // self.block_size)

    def lacks(self, sequence_id: int, start: int, stop: int) -> bool:
        """Whether the free blocks do not suffice for `grow`."""
        return self.num_missing(sequence_id, start, stop) > self.num_free

    def must_copy(self, table: BlockTable, index: int) -> bool:
        """Whether others use the block about to be written, or may look for what it holds."""
        place = index - table.begin
        if place >= len(table.block_ids):
            return False
        block_id = table.block_ids[place]
        return self.ref_counts[block_id] > 1 or self.prefix.content(block_id) is not None

    def open(
        self,
        sequence_id: int,
        lookup: PrefixLookup | None = None,
        namespace: str = "",
        retention: tuple[KeptRange, ...] = (),
    ) -> None:
        """Start a block table, taking a reference on every block that `lookup` found.

        A block that matches in part is taken as well: `grow` copies it, as it does any block that
        is about to be written and that others want. What was found on the host gets blocks of its
        own, and the transfer is owed from now on. retention: how the blocks are kept afterwards.
        """
        table = self.tables[sequence_id] = BlockTable(namespace, retention=retention)
        self.namespaces.add(namespace)
        if lookup is None:
            return
        table.first, table.hashes = lookup.first, list(lookup.hashes)
        for index, block_id in enumerate(lookup.block_ids, table.first):
            whole = index < len(table.hashes)
            self.pool.take(block_id, table.keep(index, self.block_size) if whole else None)
            table.block_ids.append(block_id)
            if self.pool.bus:
                self.pool.bus.emit(BlockShared(self.pool.step, block_id, sequence_id, index))
        self._restore(sequence_id, table, lookup.slots)

    def _restore(self, sequence_id: int, table: BlockTable, slots: tuple[int, ...]) -> None:
        if self.host is None:
            return
        for slot in slots:
            self.host.hold(slot)  # before a block is evicted to the host for one of them
        for index, slot in enumerate(slots, table.stop):
            block_id = self.pool.restore(slot, sequence_id, table.keep(index, self.block_size))
            table.block_ids.append(block_id)
            if self.pool.bus:
                self.pool.bus.emit(BlockAllocated(self.pool.step, block_id, sequence_id, index))
        self.host.drop(sequence_id)

    def trim(self, sequence_id: int, start: int) -> None:
        """Let go of the blocks that no token from `start` on looks at; they stay findable."""
        table = self.tables[sequence_id]
        count = first_block(start, self.window, self.block_size) - table.first
        if count > 0:
            self._let_go(sequence_id, slice(0, count))
            table.first += count

    def shrink(self, sequence_id: int, num_tokens: int) -> None:
        """Let go of the blocks behind the first `num_tokens`, which a draft was given."""
        table, stop = self.tables[sequence_id], self.blocks_for(num_tokens)
        if table.stop > stop:
            self._let_go(sequence_id, slice(stop - table.begin, None))
            table.writable_to = min(table.writable_to, table.stop * self.block_size)

    def _let_go(self, sequence_id: int, places: slice) -> None:
        block_ids = self.tables[sequence_id].block_ids
        outside = block_ids[places]
        del block_ids[places]
        self._release_all(outside, sequence_id)

    def drop(self, sequence_id: int, indices: Tokens[int]) -> None:
        """Let go of these computed blocks of a sequence, given in order; others may still use them.

        It publishes nothing from now on: what it computes rests on what it has kept.
        """
        dropped = self.tables[sequence_id].drop(indices)
        self.holed.add(sequence_id)
        self.counters.dropped += len(dropped)
        if self.bus:
            self.bus.emit(BlocksDropped(self.step, sequence_id, tuple(indices)))
        self._release_all(dropped, sequence_id)

    def grow(self, sequence_id: int, start: int, stop: int) -> None:
        """Make the table hold `stop` tokens, with the block written from `start` on its own.

        Doing it twice changes nothing, so a step that was interrupted can be planned again. Raises
        `OutOfBlocks` before changing anything if it `lacks` blocks.
        """
        if self.lacks(sequence_id, start, stop):
            raise OutOfBlocks(
                f"sequence {sequence_id} needs more blocks than the {self.num_free} free"
            )
        table = self.tables[sequence_id]
        if self.must_copy(table, start // self.block_size):
            self._copy(sequence_id, table, start // self.block_size)
        for index in range(table.stop, self.blocks_for(stop)):
            block_id = self.pool.allocate(sequence_id, table.keep(index, self.block_size))
            table.block_ids.append(block_id)
            if self.pool.bus:
                self.pool.bus.emit(BlockAllocated(self.pool.step, block_id, sequence_id, index))
        table.writable_to = table.stop * self.block_size

    def _copy(self, sequence_id: int, table: BlockTable, index: int) -> None:
        """Copy-on-write: replace a block by a copy that is still to be made."""
        source = table.block_ids[index - table.begin]
        block_id = self.pool.allocate(sequence_id, table.keep(index, self.block_size))
        table.block_ids[index - table.begin] = block_id
        del table.hashes[index:]
        # The reference on `source` passes to the pending copy: its content must outlive that.
        self.pending_copies.append((source, block_id))
        self.counters.copies += 1
        if self.bus:
            self.bus.emit(BlockCopied(self.step, source, block_id, sequence_id, index))

    def publish(self, sequence_id: int, token_ids: Tokens[int], num_computed: int) -> None:
        """Make every full block of the first `num_computed` tokens findable by its content."""
        table, size = self.tables[sequence_id], self.block_size
        if table.holes:
            return
        for index in range(len(table.hashes), num_computed // size):
            parent = table.hashes[-1] if table.hashes else root_hash(table.namespace)
            block_id = table.block_ids[index - table.first]
            tokens = token_ids[index * size : (index + 1) * size]
            content = Content.of(parent, tokens)
            table.hashes.append(content.name)
            self.pool.make_findable(block_id, content)

    def can_fork(self, sequence_id: int, num_tokens: int) -> bool:
        """Whether the table still has all that a sequence of its first `num_tokens` looks at.

        A dropping policy may have been asked, or told, of more than that.
        """
        table, first = (
            self.tables[sequence_id],
            first_block(num_tokens, self.window, self.block_size),
        )
        return table.first <= first and num_tokens >= max(table.asked_at, table.weighed_at)

    def fork(self, sequence_id: int, child_id: int, num_tokens: int) -> None:
        """Give `child_id` a table of the blocks that hold the first `num_tokens` tokens.

        Who first writes to a shared block copies it. Ask `can_fork` before.
        """
        assert self.can_fork(sequence_id, num_tokens), "a window or policy has let go of a block"
        parent = self.tables[sequence_id]
        first = first_block(num_tokens, self.window, self.block_size)
        child = self.tables[child_id] = parent.branch(first, num_tokens, self.block_size)
        parent.writable_to = 0  # its last block may be shared now
        if child.holes:
            self.holed.add(child_id)
            if self.bus:
                self.bus.emit(BlocksDropped(self.step, child_id, tuple(child.holes)))
        for index, block_id in zip(child.indices, child.block_ids, strict=True):
            self.ref_counts[block_id] += 1
            if self.pool.bus:
                self.pool.bus.emit(BlockShared(self.pool.step, block_id, child_id, index))

    def finish_copies(self) -> None:
        """Forget the pending copies, now carried out, and release their sources."""
        copies, self.pending_copies = self.pending_copies, []
        for source, _ in copies:
            self.pool.release(source)

    def free(self, sequence_id: int) -> None:
        """Drop a table. Blocks that nobody refers to become blank, or stay findable until evicted.

        The tail goes first, so that of a prefix the end is evicted before what it rests on.
        """
        table = self.tables[sequence_id]
        self.holed.discard(sequence_id)
        del self.tables[sequence_id]
        for block_id in reversed(table.block_ids):
            self._release(block_id, sequence_id)

    def resize(self, num_blocks: int) -> None:
        """Have more blocks, or not the last ones; see `BlockPool.resize`."""
        self.pool.resize(num_blocks)
        self.num_blocks = num_blocks

    def clear_cached(self) -> int:
        """Forget all cached content of free blocks and the host's; return how many became blank."""
        return self.pool.clear_cached()

    def _release_all(self, block_ids: Tokens[int], sequence_id: int) -> None:
        for block_id in reversed(block_ids):
            self._release(block_id, sequence_id)

    def _release(self, block_id: int, sequence_id: int | None) -> None:
        """Give a reference up; drop the pending copy into a block that nobody wants now."""
        if self.pool.release(block_id, sequence_id) and self.pending_copies:
            for copy in [copy for copy in self.pending_copies if copy[1] == block_id]:
                self.pending_copies.remove(copy)
                self._release(copy[0], None)

    def check(self) -> None:
        """Raise `AssertionError` unless every block is counted, and in one place only."""
        self.pool.check()
        used = {block: count for block in self.pool.ids if (count := self.ref_counts[block])}
        check_tables(self.tables, self.pending_copies, used, self.block_size)
        holed = {number for number, table in self.tables.items() if table.holes}
        assert self.holed == holed, "a table with holes is not known, or the reverse"
        in_use = len(self.ref_counts) - self.ref_counts.count(0)
        assert self.counters.used == in_use, "blocks in use are counted wrong"
        if self.host is not None:
            assert not self.host.swapped.keys() & self.tables.keys(), "swapped out and in use"
