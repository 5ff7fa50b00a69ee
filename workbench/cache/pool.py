"""`BlockPool`: the blocks of one KV group, each with a count of who refers to it.

A block is exactly one of: *blank* (free, no content), *cached* (free, its content can be found
again until it is evicted) or *in use* (its count is above 0). The pool knows no block tables:
`BlockManager` drives it. What happens to a block is stated on `bus`.
"""

from __future__ import annotations

from workbench.cache.eviction import DEFAULT_KEEP, CachedBlock, EvictionQueue, Keep
from workbench.cache.eviction_policy import Evictable, GuardedEviction
from workbench.cache.host import HostTier
from workbench.cache.prefix import Content, PrefixIndex
from workbench.cache.stats import CacheCounters
from workbench.config import require_positive
from workbench.events import (
    BlockCached,
    BlockEvicted,
    BlockFreed,
    BlockOffloaded,
    BlockReleased,
    BlockRestored,
    EventBus,
    HostCleared,
    PolicyFailed,
)
from workbench.retention import DEFAULT_PRIORITY


class BlockPool:
    """`num_blocks` blocks, numbered by `ids` and counted in `ref_counts`.

    Pools of one model share that list, so that a number names one block of the model: a pool's
    blocks come after those that are in the list already. They share `counters` too. What is evicted
    for another sequence goes to `host`, if there is one, unless it has less than the default
    priority then. `eviction` says which block that is. `step` is stamped on events. `births` counts
    how often each block was given out for new content.
    """

    def __init__(
        self,
        num_blocks: int,
        ref_counts: list[int],
        counters: CacheCounters,
        host: HostTier | None = None,
    ) -> None:
        """Raise `ConfigError` unless there is at least one block."""
        require_positive("num_blocks", num_blocks)
        self.ids = range(len(ref_counts), len(ref_counts) + num_blocks)
        ref_counts.extend([0] * num_blocks)
        self.ref_counts, self.counters, self.host = ref_counts, counters, host
        self.bus = EventBus()
        self.step = 0
        self.prefix = PrefixIndex()
        self.cached = EvictionQueue()
        self.eviction = GuardedEviction(self._policy_failed)
        self.blank = list(reversed(self.ids))
        self.births = [0] * num_blocks
        self._keep: dict[int, Keep] = {}  # of blocks that are kept in another way than the default
        self._hits: dict[int, int] = {}  # of findable blocks, how often they were found

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones (evicted for it) included."""
        return len(self.blank) + len(self.cached)

    def allocate(self, sequence_id: int, keep: Keep | None = None) -> int:
        """Return a free block, now in use; the one to be evicted next where none is blank."""
        block_id = self.blank.pop() if self.blank else self._evict(sequence_id)
        self.ref_counts[block_id] = 1
        self.births[block_id - self.ids.start] += 1
        self.counters.block_used()
        if keep is not None:
            self._keep[block_id] = keep
        return block_id

    def restore(self, slot: int, sequence_id: int, keep: Keep | None = None) -> int:
        """Return a block to which the host tier owes the content of a slot that the caller holds.

        It can be found at once by a name that the slot has: whoever reads it does so afterwards.
        """
        assert self.host is not None, "a slot without a host tier"
        content = self.host.content(slot)
        block_id = self.allocate(sequence_id, keep)
        self.host.restore(slot, block_id)
        if self.bus:
            self.bus.emit(BlockRestored(self.step, slot, block_id, sequence_id))
        if content is not None:
            self.make_findable(block_id, content)
        return block_id

    def make_findable(self, block_id: int, content: Content) -> None:
        """Let a block be found by its content, unless another one is."""
        if self.prefix.add(content, block_id) and self.bus:
            self.bus.emit(BlockCached(self.step, block_id, content.name.hex()))

    def take(self, block_id: int, keep: Keep | None = None) -> None:
        """Take a further reference on a block that was found by its content."""
        if self.ref_counts[block_id] == 0:
            content = self.prefix.content(block_id)
            assert content is not None, "a blank block was found"
            self.cached.remove(content.name)
            self.counters.block_used()
        self.ref_counts[block_id] += 1
        self._hits[block_id] = self._hits.get(block_id, 0) + 1
        if keep is not None:
            self._keep[block_id] = keep

    def release(self, block_id: int, sequence_id: int | None = None) -> bool:
        """Give a reference up (None: a pending copy's); return whether it was the last one.

        The block is then blank, or stays findable until it is evicted; not if its content is still
        owed by the host.
        """
        self.ref_counts[block_id] -= 1
        left = self.ref_counts[block_id]
        if self.bus:
            self.bus.emit(BlockReleased(self.step, block_id, sequence_id, left))
        if left:
            return False
        self.counters.used -= 1
        if self.host is not None and self.host.cancel(block_id):
            self.prefix.forget(block_id)
        content = self.prefix.content(block_id)
        if content is not None:
            self.cached.add(block_id, content, self._keep.get(block_id, DEFAULT_KEEP))
        else:
            self._keep.pop(block_id, None)
            self._hits.pop(block_id, None)
            self.blank.append(block_id)
        if self.bus:
            self.bus.emit(BlockFreed(self.step, block_id, content is not None))
        return True

    def clear_cached(self) -> int:
        """Forget all cached content of free blocks and the host's; return how many became blank."""
        if self.host is not None:
            self.host.clear()
            if self.bus:
                self.bus.emit(HostCleared(self.step))
        count = len(self.cached)
        while self.cached:
            self.blank.append(self._evict(sequence_id=None))
        return count

    @property
    def held(self) -> list[int]:
        """The blocks that are in use or cached, by number."""
        return sorted(set(self.ids) - set(self.blank))

    def resize(self, num_blocks: int) -> None:
        """Have more blocks, or not the last ones, of which none may be in use.

        What they hold is forgotten, and all that rests on it. Only a pool that counts alone can.
        """
        old, new = self.ids, range(self.ids.start, self.ids.start + num_blocks)
        assert len(self.ref_counts) == old.stop, "others are numbered after these"
        going = range(new.stop, old.stop)
        assert not any(self.ref_counts[block] for block in going), "a block in use cannot go"
        for name in self.cached.with_what_continues(going):
            self.blank.append(self._clear(self.cached.remove(name), sequence_id=None))
        kept = [block for block in self.blank if block in new]
        self.blank = [*reversed(range(old.stop, new.stop)), *kept]  # what is new goes last
        self.ref_counts[new.stop :] = [0] * (new.stop - old.stop)
        self.births += [0] * (num_blocks - len(self.births))  # never fewer: they count on
        self.ids = new

    def keep(self, block_id: int) -> Keep:
        """Return how a block is kept once nobody uses it."""
        return self._keep.get(block_id, DEFAULT_KEEP)

    def _evict(self, sequence_id: int | None) -> int:
        by_policy = sequence_id is not None and not self.eviction.plain
        return self._clear(self._choose() if by_policy else self.cached.pop(), sequence_id)

    def _clear(self, evicted: CachedBlock, sequence_id: int | None) -> int:
        """Forget what a block holds that nobody uses, and return the block."""
        block_id = evicted.block_id
        self._keep.pop(block_id, None)
        self._hits.pop(block_id, None)
        content = self.prefix.evict(block_id, self.step, sequence_id)
        self.counters.evictions += sequence_id is not None
        if self.bus:
            self.bus.emit(BlockEvicted(self.step, block_id, content.name.hex(), sequence_id))
        worth_it = sequence_id is not None and evicted.priority >= DEFAULT_PRIORITY
        if self.host is not None and worth_it:
            slot = self.host.keep(content, block_id)
            if slot is not None and self.bus:
                self.bus.emit(BlockOffloaded(self.step, block_id, slot, None, content.name.hex()))
        return block_id

    def _choose(self) -> CachedBlock:
        """Take out the cached block that the policy wants gone."""
        leaves = self.cached.leaves()
        candidates = []
        for _, leaf in leaves:
            content = self.prefix.content(leaf.block_id)
            assert content is not None, "a cached block cannot be found"
            facts = tuple(content.token_ids), self._hits.get(leaf.block_id, 0)
            candidates.append(Evictable(leaf.block_id, *facts, leaf.turn, leaf.priority))
        chosen = self.eviction.choose(candidates)
        return self.cached.remove(next(name for name, leaf in leaves if leaf.block_id == chosen))

    def _policy_failed(self, name: str, problem: str) -> None:
        if self.bus:
            self.bus.emit(PolicyFailed(self.step, name, problem))

    def check(self) -> None:
        """Raise `AssertionError` unless each block is blank, cached or in use, as it is found."""
        blank, cached = set(self.blank), set(self.cached)
        used = {block for block in self.ids if self.ref_counts[block]}
        assert len(blank) == len(self.blank), "a block is blank twice"
        assert not blank & cached, "a block is blank and cached"
        assert used == set(self.ids) - blank - cached, "a block is lost, or free and used"
        assert self._keep.keys() <= used | cached, "a blank block is kept"
        assert self._hits.keys() <= used | cached, "a blank block was found"
        self.prefix.check()
        self.cached.check()
        findable = {block for _, block in self.prefix.items()}
        assert not blank & findable, "a blank block can be found"
        assert cached <= findable, "a cached block cannot be found"
        if self.host is not None:
            self.host.check()
            assert used >= self.host.restoring.keys(), "a block nobody refers to is being restored"
