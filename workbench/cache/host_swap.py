"""`Swapper`: keeps a preempted sequence's KV on the host, and says where it is when it comes back.

Held by the scheduler's queues. It reads block tables and writes the host tier; blocks are released
and given again by `BlockManager.free` and `open`.
"""

from __future__ import annotations

from workbench.cache.blocks import BlockManager
from workbench.cache.host import SwappedOut
from workbench.cache.prefix import PrefixIndex, PrefixLookup
from workbench.events import BlockOffloaded


class Swapper:
    """Swaps sequences of one block manager. Without a host tier nothing is ever kept."""

    def __init__(self, blocks: BlockManager) -> None:
        self.blocks = blocks

    def swap_out(self, sequence_id: int, num_tokens: int) -> bool:
        """Keep the KV of a sequence's first `num_tokens` tokens; its table stays.

        False, with nothing changed, if there is no host tier or it is full.
        """
        blocks = self.blocks
        if blocks.host is None:
            return False
        table = blocks.tables[sequence_id]
        block_ids = table.block_ids[: blocks.blocks_for(num_tokens)]
        hashes = table.hashes[: num_tokens // blocks.block_size]
        sources = true_sources(block_ids, blocks.pending_copies)
        moved = blocks.host.swap_out(sequence_id, sources, hashes, num_tokens)
        if blocks.bus:
            for block_id, slot in moved or ():
                blocks.bus.emit(BlockOffloaded(blocks.step, block_id, slot, sequence_id))
        return moved is not None

    def find(self, sequence_id: int) -> PrefixLookup | None:
        """Return where a swapped-out sequence's blocks are now; None if nothing is kept of it."""
        host = self.blocks.host
        kept = host.swapped.get(sequence_id) if host is not None else None
        return resumed(kept, self.blocks.prefix) if kept is not None else None

    def drop(self, sequence_id: int) -> None:
        """Forget what is kept of a sequence, if anything."""
        if self.blocks.host is not None:
            self.blocks.host.drop(sequence_id)


def resumed(kept: SwappedOut, prefix: PrefixIndex) -> PrefixLookup:
    """Return where a swapped-out sequence's blocks are: those still on the device, then slots."""
    block_ids: list[int] = []
    for content_hash in kept.hashes:
        block_id = prefix.block(content_hash)
        if block_id is None:
            break
        block_ids.append(block_id)
    slots = kept.slots[len(block_ids) :]
    return PrefixLookup(tuple(block_ids), kept.hashes, kept.num_tokens, "swapped out", slots)


def true_sources(block_ids: list[int], copies: list[tuple[int, int]]) -> list[int]:
    """Return the blocks that hold these blocks' content while `copies` (source, destination) are
    owed: a destination's content is its source's, which may be a destination itself."""
    if not copies:
        return block_ids
    source_of = {destination: source for source, destination in copies}
    sources = []
    for block in block_ids:
        while block in source_of:
            block = source_of[block]
        sources.append(block)
    return sources
