"""What a sequence may come to take, counted by hand, in groups with a window and without.

Blocks hold four tokens, a window six, and a step computes one token unless it is said: then what a
sequence holds of a window at once is three blocks.
"""

from __future__ import annotations

import pytest

from workbench.cache import KVCache, room
from workbench.cache.joint import Blocks
from workbench.cache.lookup import PrefixLookup

SIZE = 4
WINDOW = 6
TOKENS = list(range(100, 140))


def make(num_blocks: int, windows: tuple[int | None, ...] = (None,)) -> Blocks:
    cache = KVCache(
        num_layers=len(windows),
        num_kv_heads=1,
        head_dim=1,
        num_blocks=num_blocks,
        block_size=SIZE,
        windows=windows,
    )
    return cache.blocks


def compute(blocks: Blocks, sequence_id: int, tokens: list[int]) -> PrefixLookup:
    """Run tokens one by one, as after a lookup; return what was found."""
    lookup = blocks.lookup(tokens)
    blocks.open(sequence_id, lookup)
    for start in range(lookup.num_tokens, len(tokens)):
        blocks.trim(sequence_id, start)
        blocks.grow(sequence_id, start, start + 1)
        blocks.finish_copies()
        blocks.publish(sequence_id, tokens, start + 1)
    return lookup


def needs(blocks: Blocks, lookup: PrefixLookup | None, num_tokens: int) -> list[int]:
    """Return how many blocks must be free in each group for `fits` to say yes."""
    found = []
    for place, group in enumerate(blocks.groups):
        for count in range(group.num_blocks + 1):
            reserved = [0] * len(blocks.groups)
            reserved[place] = group.num_free - count
            if room.fits(blocks, lookup, num_tokens, 1, reserved):
                found.append(count)
                break
        else:
            pytest.fail("it never fits")
    return found


def test_a_prefix_in_use_is_free_of_charge_and_a_cached_one_is_not() -> None:
    blocks = make(20)
    compute(blocks, 1, TOKENS[:9])
    lookup = blocks.lookup([*TOKENS[:8], 7, 7])
    assert lookup.block_ids == (0, 1)
    assert needs(blocks, lookup, 14) == [2], "four in all, two of them shared"
    blocks.free(1)
    assert needs(blocks, lookup, 14) == [4], "the two lie among the free ones"
    assert needs(blocks, None, 14) == [4]


def test_the_source_of_a_copy_is_needed_beside_it() -> None:
    """Block 1 is copied for its first two tokens: while that is owed, source and copy are held."""
    blocks = make(20)
    compute(blocks, 1, TOKENS[:9])
    lookup = blocks.lookup([*TOKENS[:6], 7, 7])
    assert (lookup.num_tokens, lookup.num_copied) == (6, 2)
    assert needs(blocks, lookup, 8) == [1], "a shared block, and a copy of one in use"
    blocks.free(1)
    assert needs(blocks, lookup, 8) == [3], "block 0, the source and its copy"
    taken = 20 - blocks.num_free
    blocks.open(2, lookup)
    blocks.grow(2, 6, 8)
    assert 20 - blocks.num_free - taken == 3, "which is what it takes"


def test_under_a_window_a_sharer_pays_for_what_it_makes_shared() -> None:
    """Who gives up a block that another uses frees none. So each is counted with its peak, less
    what it has alone."""
    blocks = make(20, (WINDOW,))
    compute(blocks, 1, TOKENS[:9])
    assert room.may_take(blocks, 1, 9, 40, 1) == (0,), "it holds its three blocks alone"
    lookup = blocks.lookup([*TOKENS[:8], 7, 7])
    assert len(lookup.block_ids) == 2
    assert needs(blocks, lookup, 40) == [3 + 2], "its peak, and two that the other had alone"
    blocks.open(2, lookup)
    assert room.may_take(blocks, 1, 9, 40, 1) == (2,)
    assert room.may_take(blocks, 2, 8, 40, 1) == (3,)
    third = blocks.lookup([*TOKENS[:8], 8, 8])
    assert needs(blocks, third, 40) == [3], "shared already: nobody has them alone"
    blocks.open(3, third)
    assert room.may_take(blocks, 1, 9, 40, 1) == (2,)


def test_under_a_window_a_cached_block_is_part_of_the_peak() -> None:
    blocks = make(20, (WINDOW,))
    compute(blocks, 1, TOKENS[:9])
    blocks.free(1)
    whole = blocks.lookup([*TOKENS[:8], 7, 7])
    assert needs(blocks, whole, 40) == [3]
    partial = blocks.lookup([*TOKENS[:7], 7, 7])
    assert partial.num_copied == 3
    assert needs(blocks, partial, 40) == [4], "and the source of a copy"


def test_the_copy_that_is_owed_is_kept_in_reserve() -> None:
    """Two share a half-written block: each may have to copy it before it writes."""
    blocks = make(20, (None, WINDOW))
    compute(blocks, 1, TOKENS[:6])
    assert room.may_take(blocks, 1, 6, 7, 1) == (0, 0)
    blocks.fork(1, 2, 6)
    # Seven tokens are two blocks: of a window's both are shared now, so both are counted.
    assert room.may_take(blocks, 1, 6, 7, 1) == (1, 2 + 1)
    assert room.may_take(blocks, 2, 6, 7, 1) == (1, 2 + 1)
    blocks.grow(2, 6, 7)
    assert room.may_take(blocks, 2, 6, 7, 1) == (0, 1), "one is its own"


def test_what_is_still_to_come() -> None:
    blocks = make(20, (None, WINDOW))
    compute(blocks, 1, TOKENS[:6])
    assert room.may_take(blocks, 1, 6, 8, 1) == (0, 0)
    assert room.may_take(blocks, 1, 6, 30, 1) == (6, 1), "a window never holds more than three"
    assert room.may_take(blocks, 1, 6, 30, 8) == (6, 2), "with more tokens in a step, four"


@pytest.mark.parametrize("windows", [(None,), (WINDOW,), (None, WINDOW)], ids=str)
@pytest.mark.parametrize("length", [8, 9])
def test_room_for_a_fork(windows: tuple[int | None, ...], length: int) -> None:
    """A child of 8 tokens shares two whole blocks; one of 9 also a block that both write."""
    blocks = make(20, windows)
    compute(blocks, 1, TOKENS[:length])
    needed = []
    for group in blocks.groups:
        copied = length % SIZE > 0
        if group.window is None:  # 20 tokens are five blocks; two are shared for good
            needed.append(3 + copied)
        else:  # its peak, and what the parent no longer has alone
            needed.append(3 + len(group.tables[1].block_ids) + copied)
    for place, count in enumerate(needed):
        for spare, fits in ((0, True), (-1, False)):
            reserved = [0] * len(needed)
            reserved[place] = blocks.groups[place].num_free - count - spare
            assert room.fork_fits(blocks, 1, length, 20, 1, reserved) == fits


def test_fits_asks_every_group() -> None:
    blocks = make(6, (None, WINDOW))
    assert room.fits(blocks, None, 24, 1)
    assert not room.fits(blocks, None, 25, 1)
    assert not room.fits(blocks, None, 24, 1, [1, 0])
    assert not room.fits(blocks, None, 24, 1, [0, 4])
    assert room.fits(blocks, None, 24, 1, [0, 3])
