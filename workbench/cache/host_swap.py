"""`Swapper`: keeps a preempted sequence's KV on the host, and says where it is when it comes back.

Held by the scheduler's queues. It reads block tables and writes the host tier; blocks are released
and given again by `BlockManager.free` and `open`.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Tokens

from workbench.cache.host import SwappedOut as Kept
from workbench.cache.joint import Blocks
from workbench.cache.lookup import PrefixLookup
from workbench.cache.prefix import Content, PrefixIndex, root_hash
from workbench.cache.table import BlockTable
from workbench.events import BlockOffloaded, SwappedOut


class Swapper:
    """Swaps sequences whose tables are in `blocks`. Without a host tier nothing is ever kept."""

    def __init__(self, blocks: Blocks) -> None:
        self.group, self.host = blocks.groups[0], blocks.host

    def swap_out(self, sequence_id: int, token_ids: Tokens[int]) -> bool:
        """Keep the KV of these, a sequence's first tokens; its table stays.

        False, with nothing changed, if there is no host tier or it is full.
        """
        group = self.group
        if self.host is None:
            return False
        table, num_tokens = group.tables[sequence_id], len(token_ids)
        assert table.first == 0, "a window has let go of a block"
        block_ids = table.block_ids[: group.blocks_for(num_tokens)]
        sources = true_sources(block_ids, group.pending_copies)
        contents = contents_of(table, token_ids, group.block_size)
        moved = self.host.swap_out(sequence_id, sources, contents, num_tokens)
        if moved is not None and group.bus:
            self._tell(sequence_id, moved)
        return moved is not None

    def _tell(self, sequence_id: int, moved: list[tuple[int, int]]) -> None:
        assert self.host is not None
        bus, step = self.group.bus, self.group.step
        for block_id, slot in moved:
            content = self.host.content(slot)
            name = None if content is None else content.name.hex()
            bus.emit(BlockOffloaded(step, block_id, slot, sequence_id, name))
        kept = self.host.swapped[sequence_id]
        bus.emit(SwappedOut(step, sequence_id, kept.slots, kept.num_tokens))

    def find(self, sequence_id: int) -> PrefixLookup | None:
        """Return where a swapped-out sequence's blocks are now; None if nothing is kept of it."""
        kept = self.host.swapped.get(sequence_id) if self.host is not None else None
        return resumed(kept, self.group.prefix) if kept is not None else None

    def drop(self, sequence_id: int) -> None:
        """Forget what is kept of a sequence, if anything."""
        if self.host is not None:
            self.host.drop(sequence_id)


def contents_of(table: BlockTable, token_ids: Tokens[int], block_size: int) -> list[Content]:
    """Return the contents of a table's published blocks, as far as they hold these tokens."""
    names = table.hashes[: len(token_ids) // block_size]
    parents = [root_hash(table.namespace), *names]
    return [
        Content(name, parent, array("q", token_ids[i * block_size : (i + 1) * block_size]))
        for i, (name, parent) in enumerate(zip(names, parents, strict=False))
    ]


def resumed(kept: Kept, prefix: PrefixIndex) -> PrefixLookup:
    """Return where a swapped-out sequence's blocks are: those still on the device, then slots."""
    block_ids: list[int] = []
    for content_hash in kept.hashes:
        block_id = prefix.block(content_hash)
        if block_id is None:
            break
        block_ids.append(block_id)
    slots = kept.slots[len(block_ids) :]
    return PrefixLookup(tuple(block_ids), kept.hashes, kept.num_tokens, "swapped out", slots=slots)


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
