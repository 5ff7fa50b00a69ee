"""What the block manager asks about content that lies, or is about to lie, somewhere else.

Pure functions: a prefix lookup that goes on into the host tier, one for a sequence that was swapped
out, and where a block's content is while its copy is still owed.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import replace

from workbench.cache.host import HostTier, SwappedOut
from workbench.cache.prefix import PrefixIndex, PrefixLookup, block_hash, root_hash


def continued(
    found: PrefixLookup,
    host: HostTier,
    token_ids: Tokens[int],
    block_size: int,
    namespace: str,
) -> PrefixLookup:
    """Return a lookup that goes on, where it ended, with full blocks that the host tier holds."""
    if not host.num_findable:
        return found
    hashes, slots = list(found.hashes), []
    num_full = (len(token_ids) - 1) // block_size
    for index in range(len(hashes), num_full):
        tokens = token_ids[index * block_size : (index + 1) * block_size]
        content_hash = block_hash(hashes[-1] if hashes else root_hash(namespace), tokens)
        slot = host.find(content_hash)
        if slot is None:
            break
        hashes.append(content_hash)
        slots.append(slot)
    if not slots:
        return found
    whole = len(hashes) == num_full
    reason = "whole prompt cached" if whole else f"no block {len(hashes)} on device or host"
    return replace(
        found,
        hashes=tuple(hashes),
        slots=tuple(slots),
        num_tokens=len(hashes) * block_size,
        reason=reason,
    )


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
