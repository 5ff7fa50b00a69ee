"""Who owns which block: allocation, reference counts, copy-on-write, prefix reuse, LRU eviction.

A block holds the KV of `block_size` tokens in every layer. Each is exactly one of: *blank* (free,
no content), *cached* (free, its content can be found again, evicted least recently used first) or
*in use* (referred to by that many block tables). Driven by the scheduler, the only caller that
changes anything; it knows nothing of tensors. `check()` proves the structure whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Tokens
from typing import Any

from workbench.cache.host import HostTier
from workbench.cache.host_lookup import continued
from workbench.cache.prefix import PrefixIndex, PrefixLookup, block_hash, root_hash
from workbench.cache.proof import prove_counted, prove_findable, prove_host
from workbench.cache.stats import CacheCounters
from workbench.cache.table import BlockTable, OutOfBlocks
from workbench.config import require_positive
from workbench.describe import Described
from workbench.events import (
    BlockAllocated,
    BlockCached,
    BlockCopied,
    BlockEvicted,
    BlockFreed,
    BlockOffloaded,
    BlockReleased,
    BlockRestored,
    BlockShared,
    EventBus,
)


class BlockManager(Described):
    """Allocator of `num_blocks` blocks. `step` is stamped on events by the scheduler.

    host: the tier that takes in what is evicted or swapped out, if there is one.
    """

    def __init__(self, num_blocks: int, block_size: int, host: HostTier | None = None) -> None:
        """Raise `ConfigError` unless both are whole numbers of at least 1."""
        require_positive("num_blocks", num_blocks)
        require_positive("block_size", block_size)
        self.num_blocks, self.block_size, self.host = num_blocks, block_size, host
        self.bus = EventBus()
        self.step = 0
        self.counters = CacheCounters()
        self.ref_counts = [0] * num_blocks
        self.tables: dict[int, BlockTable] = {}
        self.pending_copies: list[tuple[int, int]] = []
        self.prefix = PrefixIndex()
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._namespaces: set[str] = set()

    # --- reading ------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones (evicted for it) included."""
        return len(self._blank) + len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks that some sequence refers to."""
        return self.num_blocks - self.num_free

    @property
    def num_cached(self) -> int:
        """Free blocks whose content can still be found."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Return how many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def lookup(
        self, token_ids: Tokens[int], namespace: str = "", names: Tokens[bytes] = ()
    ) -> PrefixLookup:
        """Return the cached prefix of a token list, and why it ends there; change nothing.

        names: content hashes of the first blocks, where they are known.
        """
        size, host = self.block_size, self.host
        found = self.prefix.lookup(token_ids, size, namespace, self._namespaces, names)
        if host is None:
            return found
        return continued(found, host, token_ids, size, namespace, names)

    def num_missing(self, sequence_id: int, start: int, stop: int) -> int:
        """Return how many free blocks `grow` to `stop` tokens, writing from `start`, would take."""
        block_ids = self.tables[sequence_id].block_ids
        missing = -(-stop // self.block_size) - len(block_ids)
        first = start // self.block_size
        shared = first < len(block_ids) and self.ref_counts[block_ids[first]] > 1
        return (missing if missing > 0 else 0) + shared

    # --- a sequence's life --------------------------------------------------------------------

    def open(self, sequence_id: int, lookup: PrefixLookup | None, namespace: str = "") -> None:
        """Start a block table, taking a reference on every block that `lookup` found.

        What it found on the host gets blocks of its own; its transfer is owed from now on.
        """
        table = self.tables[sequence_id] = BlockTable(namespace)
        self._namespaces.add(namespace)
        for index, block_id in enumerate(lookup.block_ids if lookup else ()):
            table.block_ids.append(block_id)
            self._take(block_id)
            if self.bus:
                self.bus.emit(BlockShared(self.step, block_id, sequence_id, index))
        if lookup is not None:
            table.hashes += lookup.hashes
            self._restore(sequence_id, table, lookup.slots)

    def _restore(self, sequence_id: int, table: BlockTable, slots: tuple[int, ...]) -> None:
        """Give a table blocks for these host slots; the named ones can be found at once."""
        if self.host is None:
            return
        for slot in slots:  # held before a block is evicted to the host for one of them
            self.host.hold(slot)
        for slot in slots:
            index, block_id = len(table.block_ids), self._allocate(sequence_id)
            table.block_ids.append(block_id)
            self.host.restore(slot, block_id)
            if self.bus:
                self.bus.emit(BlockAllocated(self.step, block_id, sequence_id, index))
                self.bus.emit(BlockRestored(self.step, slot, block_id, sequence_id))
            if index < len(table.hashes):
                self._make_findable(block_id, table.hashes[index])
        self.host.drop(sequence_id)

    def grow(self, sequence_id: int, start: int, stop: int) -> None:
        """Make the table hold `stop` tokens, with the block written from `start` on its own.

        Doing it twice changes nothing, so a step that was interrupted can be planned again. Raises
        `OutOfBlocks` before changing anything if `num_missing` exceeds `num_free`.
        """
        if self.num_missing(sequence_id, start, stop) > self.num_free:
            raise OutOfBlocks(
                f"sequence {sequence_id} needs more blocks than the {self.num_free} free"
            )
        table = self.tables[sequence_id]
        self._own_first(sequence_id, table, start // self.block_size)
        for index in range(len(table.block_ids), self.blocks_for(stop)):
            block_id = self._allocate(sequence_id)
            table.block_ids.append(block_id)
            if self.bus:
                self.bus.emit(BlockAllocated(self.step, block_id, sequence_id, index))

    def _own_first(self, sequence_id: int, table: BlockTable, index: int) -> None:
        """Copy-on-write: replace the block about to be written if others refer to it too."""
        if index >= len(table.block_ids) or self.ref_counts[table.block_ids[index]] == 1:
            return
        source = table.block_ids[index]
        block_id = self._allocate(sequence_id)
        table.block_ids[index] = block_id
        del table.hashes[index:]
        # The reference on `source` passes to the pending copy: its content must outlive that.
        self.pending_copies.append((source, block_id))
        self.counters.copies += 1
        if self.bus:
            self.bus.emit(BlockCopied(self.step, source, block_id, sequence_id, index))

    def publish(self, sequence_id: int, token_ids: Tokens[int], num_computed: int) -> None:
        """Make every full block of the first `num_computed` tokens findable by its content."""
        table = self.tables[sequence_id]
        size = self.block_size
        for index in range(len(table.hashes), num_computed // size):
            parent = table.hashes[-1] if table.hashes else root_hash(table.namespace)
            content_hash = block_hash(parent, token_ids[index * size : (index + 1) * size])
            table.hashes.append(content_hash)
            self._make_findable(table.block_ids[index], content_hash)

    def _make_findable(self, block_id: int, content_hash: bytes) -> None:
        if self.prefix.add(content_hash, block_id) and self.bus:
            self.bus.emit(BlockCached(self.step, block_id, content_hash.hex()))

    def fork(self, sequence_id: int, child_id: int, num_tokens: int) -> None:
        """Give `child_id` a table of the blocks that hold the first `num_tokens` tokens.

        Who writes to a shared block copies it.
        """
        parent, num_blocks = self.tables[sequence_id], self.blocks_for(num_tokens)
        hashes = parent.hashes[: num_tokens // self.block_size]
        child = BlockTable(parent.namespace, parent.block_ids[:num_blocks], hashes)
        self.tables[child_id] = child
        for index, block_id in enumerate(child.block_ids):
            self.ref_counts[block_id] += 1
            if self.bus:
                self.bus.emit(BlockShared(self.step, block_id, child_id, index))

    def finish_copies(self) -> None:
        """Forget the pending copies, now carried out, and release their sources."""
        copies, self.pending_copies = self.pending_copies, []
        for source, _ in copies:
            self._release(source)

    def free(self, sequence_id: int) -> None:
        """Drop a table. Blocks that nobody refers to become blank, or stay findable until evicted.

        The tail goes first, so that of a prefix the end is evicted before what it rests on.
        """
        table = self.tables.pop(sequence_id)
        for copy in list(self.pending_copies):
            if copy[1] in table.block_ids and self.ref_counts[copy[1]] == 1:  # nobody else wants it
                self.pending_copies.remove(copy)
                self._release(copy[0])
        for block_id in reversed(table.block_ids):
            self._release(block_id, sequence_id)

    def clear_cached(self) -> int:
        """Forget all cached content, also the host's; return how many blocks that made blank."""
        count = len(self._cached)
        while self._cached:
            block_id = self._evict(sequence_id=None)
            self._blank.append(block_id)
        if self.host is not None:
            self.host.clear()
        return count

    # --- blocks -------------------------------------------------------------------------------

    def _allocate(self, sequence_id: int) -> int:
        block_id = self._blank.pop() if self._blank else self._evict(sequence_id)
        self.ref_counts[block_id] = 1
        self._note_peak()
        return block_id

    def _evict(self, sequence_id: int | None) -> int:
        block_id, _ = self._cached.popitem(last=False)
        content_hash = self.prefix.evict(block_id, self.step, sequence_id)
        self.counters.evictions += sequence_id is not None
        if self.bus:
            self.bus.emit(BlockEvicted(self.step, block_id, content_hash.hex(), sequence_id))
        if self.host is not None and sequence_id is not None:
            slot = self.host.keep(content_hash, block_id)
            if slot is not None and self.bus:
                self.bus.emit(BlockOffloaded(self.step, block_id, slot, None))
        return block_id

    def _take(self, block_id: int) -> None:
        if self.ref_counts[block_id] == 0:
            del self._cached[block_id]
            self._note_peak()
        self.ref_counts[block_id] += 1

    def _note_peak(self) -> None:
        used = self.num_blocks - len(self._blank) - len(self._cached)
        if used > self.counters.peak_used:
            self.counters.peak_used = used

    def _release(self, block_id: int, sequence_id: int | None = None) -> None:
        self.ref_counts[block_id] -= 1
        left = self.ref_counts[block_id]
        if self.bus and sequence_id is not None:
            self.bus.emit(BlockReleased(self.step, block_id, sequence_id, left))
        if left:
            return
        if self.host is not None and self.host.cancel(block_id):
            self.prefix.forget(block_id)
        cached = self.prefix.content(block_id) is not None
        if cached:
            self._cached[block_id] = None
        else:
            self._blank.append(block_id)
        if self.bus:
            self.bus.emit(BlockFreed(self.step, block_id, cached))

    # --- proof --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise `AssertionError` unless each block is blank, cached or in use, and counted."""
        counts, blank, cached = self.ref_counts, self._blank, self._cached
        prove_counted(counts, blank, cached, self.tables, self.pending_copies)
        prove_findable(self.prefix, blank, cached)
        if self.host is not None:
            prove_host(self.host, counts, self.tables)

    def describe(self) -> dict[str, Any]:
        """Return how the blocks are used now."""
        return {
            "blocks": self.num_blocks,
            "block_size": self.block_size,
            "used": self.num_used,
            "cached": self.num_cached,
            "blank": len(self._blank),
            "sequences": len(self.tables),
        }
