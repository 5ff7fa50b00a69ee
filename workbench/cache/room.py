"""How many blocks a sequence may come to take, and whether that many are free, group by group.

Asked by the planner before it starts a sequence or a fork, and by the engine before it queues one:
what exceeds the whole cache is refused. It reads block tables and changes nothing. Where layers
have a window a sequence gives up blocks as it goes on, but one that others use as well does not
become free by that: there each sequence is counted with all it ever holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workbench.cache.blocks import BlockManager
from workbench.cache.joint import Blocks
from workbench.cache.lookup import PrefixLookup


def peak(group: BlockManager, num_tokens: int, max_new: int) -> int:
    """Return the most blocks that a sequence of `num_tokens` holds in a group at any time.

    max_new: tokens that a step computes at most. With a window that is what a step looks at and
    writes, wherever in a block it begins.
    """
    whole, size = group.blocks_for(num_tokens), group.block_size
    if group.window is None:
        return whole
    return min(whole, (group.window + max_new + size - 3) // size + 1)


def fits(
    blocks: Blocks,
    lookup: PrefixLookup | None,
    num_tokens: int,
    max_new: int,
    reserved: Sequence[int] | None = None,
) -> bool:
    """Whether a sequence of `num_tokens` that begins with what was found can run undisturbed.

    max_new: tokens that a step computes at most. reserved: each group's blocks that are kept for
    others (None: none).
    """
    parts: Iterable[PrefixLookup | None] = [None] * len(blocks.groups)
    if lookup is not None:
        parts = (lookup, *lookup.others)
    needed = [
        _needed(group, part, num_tokens, max_new)
        for group, part in zip(blocks.groups, parts, strict=True)
    ]
    return _are_free(blocks, needed, reserved)


def fork_fits(
    blocks: Blocks,
    sequence_id: int,
    num_shared: int,
    num_tokens: int,
    max_new: int,
    reserved: Sequence[int],
) -> bool:
    """Whether a fork of a sequence, at token `num_shared`, can grow to `num_tokens`.

    Of a shared block that both write, each may need a copy.
    """
    copied = num_shared % blocks.block_size > 0
    needed = []
    for group in blocks.groups:
        if group.window is None:
            own = group.blocks_for(num_tokens) - num_shared // group.block_size
        else:
            own = peak(group, num_tokens, max_new)
            own += _num_alone(group, group.tables[sequence_id].block_ids)
        needed.append(own + copied)
    return _are_free(blocks, needed, reserved)


def may_take(
    blocks: Blocks, sequence_id: int, start: int, stop: int, max_new: int
) -> tuple[int, ...]:
    """Return how many blocks a sequence may still take in each group until it holds `stop` tokens.

    start: where it writes next. max_new: tokens that a step computes at most.
    """
    taken = []
    for group in blocks.groups:
        missing = group.num_missing(sequence_id, start, stop)
        if group.window is not None:
            table = group.tables[sequence_id]
            own = peak(group, stop, max_new) - _num_alone(group, table.block_ids)
            missing = own + group.must_copy(table, start // group.block_size)
        taken.append(missing)
    return tuple(taken)


def _needed(group: BlockManager, lookup: PrefixLookup | None, num_tokens: int, max_new: int) -> int:
    """Return how many free blocks a sequence takes that is not started yet."""
    needed = peak(group, num_tokens, max_new)
    if lookup is None:
        return needed
    # While a block is copied, its source is in use as well.
    needed += lookup.num_copied > 0
    if group.window is not None:
        return needed + _num_alone(group, lookup.block_ids)
    revived = sum(1 for block_id in lookup.block_ids if not group.ref_counts[block_id])
    return needed + revived - len(lookup.block_ids)


def _num_alone(group: BlockManager, block_ids: Iterable[int]) -> int:
    """Return how many of these blocks are referred to once."""
    return sum(1 for block_id in block_ids if group.ref_counts[block_id] == 1)


def _are_free(blocks: Blocks, needed: Sequence[int], reserved: Sequence[int] | None) -> bool:
    kept = reserved or [0] * len(needed)
    groups = zip(blocks.groups, needed, kept, strict=True)
    return all(count + others <= group.num_free for group, count, others in groups)
