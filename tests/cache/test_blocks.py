"""The block manager by itself: who owns what, sharing, copies, eviction, and its own proof."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest

from workbench import events
from workbench.cache import BlockManager, OutOfBlocks, room
from workbench.cache.eviction import Keep
from workbench.cache.prefix import Content, block_hash, root_hash
from workbench.errors import ConfigError

SIZE = 4
TOKENS = list(range(100, 140))


@pytest.fixture
def blocks() -> Iterator[BlockManager]:
    """Eight blocks of four tokens; whole at the end of the test."""
    manager = BlockManager(8, SIZE)
    yield manager
    manager.check()


def start(blocks: BlockManager, sequence_id: int, tokens: list[int], namespace: str = "") -> int:
    """Open a table for tokens, compute and publish them all; return how many were found."""
    lookup = blocks.lookup(tokens, namespace)
    blocks.open(sequence_id, lookup, namespace)
    blocks.grow(sequence_id, lookup.num_tokens, len(tokens))
    blocks.publish(sequence_id, tokens, len(tokens))
    return lookup.num_tokens


@pytest.mark.parametrize("num_tokens", [1, 3, 4, 5, 8, 32])
def test_growth_is_exact(blocks: BlockManager, num_tokens: int) -> None:
    blocks.open(1, None)
    wanted = blocks.blocks_for(num_tokens)
    assert wanted == (num_tokens + 3) // 4
    assert blocks.num_missing(1, 0, num_tokens) == wanted
    blocks.grow(1, 0, num_tokens)
    assert len(set(blocks.tables[1].block_ids)) == wanted
    assert (blocks.num_used, blocks.num_free) == (wanted, 8 - wanted)
    blocks.grow(1, 0, num_tokens)
    assert blocks.num_used == wanted, "growing twice changes nothing"
    blocks.free(1)
    assert (blocks.num_used, blocks.num_cached) == (0, 0)


def test_out_of_blocks_changes_nothing(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:20])
    blocks.open(2, None)
    with pytest.raises(OutOfBlocks, match="sequence 2 needs more blocks than the 3 free"):
        blocks.grow(2, 0, 13)
    assert blocks.tables[2].block_ids == []
    assert blocks.num_free == 3
    blocks.grow(2, 0, 12)
    assert blocks.num_free == 0
    blocks.free(1)
    blocks.free(2)


def test_out_of_blocks_for_a_copy(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:31])
    blocks.fork(1, 2, 31)
    assert blocks.num_missing(2, 30, 31) == 1
    with pytest.raises(OutOfBlocks):
        blocks.grow(2, 30, 31)
    assert blocks.pending_copies == []
    blocks.free(1)
    assert blocks.num_missing(2, 30, 31) == 0, "now it is the only owner"
    blocks.free(2)


def test_a_prefix_is_shared_and_kept_after_its_owner(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:10])
    assert start(blocks, 2, [*TOKENS[:9], 7]) == 8
    one, two = blocks.tables[1].block_ids, blocks.tables[2].block_ids
    assert one[:2] == two[:2]
    assert one[2] != two[2]
    assert [blocks.ref_counts[b] for b in one] == [2, 2, 1]
    blocks.free(1)
    assert [blocks.ref_counts[b] for b in two] == [1, 1, 1]
    blocks.free(2)
    assert blocks.num_cached == 2
    assert start(blocks, 3, TOKENS[:10]) == 8
    assert blocks.tables[3].block_ids[:2] == one[:2]
    assert blocks.num_cached == 0
    blocks.free(3)


def test_the_last_token_is_always_computed(blocks: BlockManager) -> None:
    for length, found in ((4, 3), (5, 4), (8, 7), (9, 8)):
        blocks.clear_cached()
        start(blocks, 1, TOKENS[:length])
        blocks.free(1)
        assert blocks.lookup(TOKENS[:length]).num_tokens == found


def test_only_full_computed_blocks_are_published(blocks: BlockManager) -> None:
    blocks.open(1, None)
    blocks.grow(1, 0, 12)
    for computed, found in ((0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (11, 8)):
        blocks.publish(1, TOKENS[:12], computed)
        assert blocks.lookup(TOKENS[:12]).num_tokens == found
    blocks.free(1)


def test_equal_content_twice(blocks: BlockManager) -> None:
    """Two sequences that compute the same at the same time: one block is found, both are freed."""
    for sequence_id in (1, 2):
        blocks.open(sequence_id, None)
        blocks.grow(sequence_id, 0, 9)
    for sequence_id in (1, 2):
        blocks.publish(sequence_id, TOKENS[:9], 9)
    assert len(blocks.prefix) == 2
    assert blocks.lookup(TOKENS[:9]).block_ids == tuple(blocks.tables[1].block_ids[:2])
    blocks.free(1)
    blocks.free(2)
    assert (blocks.num_cached, blocks.num_free) == (2, 8)


def test_the_least_recently_used_is_evicted_first(blocks: BlockManager) -> None:
    prompts = {name: [name, *TOKENS[:4]] for name in (1, 2, 3)}  # one full block each
    for name, tokens in prompts.items():
        start(blocks, name, tokens)
    for name in (2, 1, 3):
        blocks.free(name)
    start(blocks, 4, prompts[2])  # used again: now it is the youngest
    blocks.free(4)
    evicted = []
    blocks.bus.subscribe(
        lambda e: evicted.append(e) if isinstance(e, events.BlockEvicted) else None
    )
    blocks.step = 9
    blocks.open(5, None)
    for count in range(1, 9):
        blocks.grow(5, 0, SIZE * count)
    name_of = {block_hash(root_hash(""), tokens[:SIZE]).hex(): n for n, tokens in prompts.items()}
    assert [name_of[event.content_hash] for event in evicted] == [1, 3, 2]
    assert {(e.step, e.for_sequence_id) for e in evicted} == {(9, 5)}
    blocks.free(5)


def test_blank_blocks_go_before_cached_ones(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:9])
    blocks.free(1)
    blocks.open(2, None)
    blocks.grow(2, 0, 6 * SIZE)
    assert blocks.num_cached == 2
    blocks.grow(2, 0, 7 * SIZE)
    assert blocks.num_cached == 1
    blocks.free(2)


@pytest.mark.parametrize("in_use", [True, False])
def test_a_block_that_goes_on_differently_is_copied(blocks: BlockManager, in_use: bool) -> None:
    start(blocks, 1, TOKENS[:12])
    source = blocks.tables[1].block_ids[1]
    if not in_use:
        blocks.free(1)
    found = blocks.lookup([*TOKENS[:6], 7, 7, 7])
    assert (found.num_tokens, found.num_copied, found.block_ids[-1]) == (6, 2, source)
    assert len(found.hashes) == 1
    blocks.open(2, found)
    assert blocks.num_missing(2, 6, 9) == 2, "the copy, and a block for the last token"
    blocks.grow(2, 6, 9)
    copy = blocks.tables[2].block_ids[1]
    assert blocks.pending_copies == [(source, copy)]
    assert blocks.ref_counts[source] == 1 + in_use, "held by the copying"
    blocks.grow(2, 6, 9)
    assert len(blocks.pending_copies) == 1, "growing twice changes nothing"
    blocks.check()
    blocks.finish_copies()
    assert blocks.ref_counts[source] == in_use
    blocks.publish(2, [*TOKENS[:6], 7, 7, 7], 9)
    assert blocks.lookup([*TOKENS[:6], 7, 7, 9]).block_ids[1] == copy, "the better match"
    assert blocks.lookup(TOKENS[:9]).num_tokens == 8, "the source is as it was"
    blocks.free(2)


def test_a_partial_match_dies_with_its_owner(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:8])
    blocks.free(1)
    blocks.open(2, blocks.lookup([*TOKENS[:6], 7, 7, 7]))
    blocks.grow(2, 6, 9)
    blocks.free(2)
    assert blocks.pending_copies == []
    assert (blocks.num_used, blocks.num_cached) == (0, 2)


def test_a_copy_and_its_source_must_both_fit() -> None:
    blocks = BlockManager(3, SIZE)
    start(blocks, 1, TOKENS[:12])
    blocks.free(1)
    prompt = [*TOKENS[:10], 7]
    assert not room.fits(blocks, blocks.lookup(prompt), 11, 11)
    assert room.fits(blocks, blocks.lookup(prompt, partial=False), 11, 11)


def test_a_shared_published_block_is_never_overwritten(blocks: BlockManager) -> None:
    """A fork that goes back into a block which its parent has published since."""
    start(blocks, 1, TOKENS[:8])
    blocks.fork(1, 2, 7)
    blocks.free(1)
    blocks.grow(2, 7, 8)
    assert len(blocks.pending_copies) == 1
    assert blocks.lookup(TOKENS[:9]).num_tokens == 8
    blocks.finish_copies()
    blocks.free(2)


def test_of_a_prefix_the_end_is_evicted_first(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:17])
    blocks.free(1)
    blocks.open(2, None)
    for left in (4, 3, 2, 1, 0):
        blocks.grow(2, 0, SIZE * (8 - left))
        assert blocks.lookup(TOKENS[:17]).num_tokens == SIZE * left
    blocks.free(2)


def test_clear_cached(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:9])
    start(blocks, 2, TOKENS[20:29])
    blocks.free(2)
    assert blocks.clear_cached() == 2
    assert blocks.clear_cached() == 0
    assert blocks.lookup(TOKENS[20:29]).reason == "block 0 was evicted at step 0 by hand"
    assert blocks.lookup(TOKENS[:9]).num_tokens == 8, "what is in use stays"
    blocks.free(1)


def test_a_fork_shares_until_it_writes(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:10])
    blocks.fork(1, 2, 10)
    assert blocks.tables[1].block_ids == blocks.tables[2].block_ids
    assert blocks.num_used == 3
    source = blocks.tables[1].block_ids[2]
    blocks.grow(2, 10, 11)
    copy = blocks.tables[2].block_ids[2]
    assert copy != source
    assert blocks.pending_copies == [(source, copy)]
    assert blocks.tables[1].block_ids[2] == source
    blocks.check()
    blocks.grow(1, 10, 11)  # the source is held by the copying, so the parent must leave it too
    assert blocks.tables[1].block_ids[2] != source
    assert len(blocks.pending_copies) == 2
    blocks.check()
    blocks.finish_copies()
    assert blocks.ref_counts[source] == 0
    blocks.free(1)
    blocks.free(2)


def test_whole_shared_blocks_are_never_copied(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:8])
    blocks.fork(1, 2, 8)
    blocks.grow(2, 8, 9)
    assert blocks.pending_copies == []
    assert blocks.num_used == 3
    blocks.free(1)
    blocks.free(2)


def test_a_pending_copy_dies_with_its_only_owner(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:10])
    blocks.fork(1, 2, 10)
    blocks.grow(2, 10, 11)
    blocks.free(2)
    assert blocks.pending_copies == []
    assert [blocks.ref_counts[b] for b in blocks.tables[1].block_ids] == [1, 1, 1]
    blocks.fork(1, 3, 10)
    blocks.grow(3, 10, 11)
    blocks.free(1)  # the source outlives its owner, for the copying
    assert len(blocks.pending_copies) == 1
    blocks.check()
    blocks.finish_copies()
    blocks.free(3)
    assert blocks.num_used == 0


def test_events_tell_it_all(blocks: BlockManager) -> None:
    told: list[events.Event] = []
    blocks.bus.subscribe(told.append)
    blocks.step = 3
    start(blocks, 1, TOKENS[:5])
    blocks.fork(1, 2, 5)
    blocks.grow(2, 4, 6)
    blocks.finish_copies()
    blocks.free(1)
    blocks.free(2)
    assert {event.step for event in told} == {3}
    assert [type(event).__name__ for event in told] == [
        *["BlockAllocated"] * 2,
        "BlockCached",
        *["BlockShared"] * 2,
        "BlockCopied",
        "BlockReleased",  # the copy is made
        *["BlockReleased", "BlockFreed", "BlockReleased"],  # of 1: its tail, and the shared one
        *["BlockReleased", "BlockFreed"] * 2,
    ]
    assert told[-1].cached is True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b.ref_counts.__setitem__(b.tables[1].block_ids[0], 2),
        lambda b: b.ref_counts.__setitem__(b.pool.blank[0], 1),
        lambda b: b.pool.blank.pop(),
        lambda b: b.pool.blank.append(b.pool.blank[0]),
        lambda b: b.pool.blank.append(b.tables[1].block_ids[0]),
        lambda b: b.pool.cached.add(b.pool.blank[0], Content(b"x", b"", array("q", [1]))),
        lambda b: b.pool.cached._order.clear(),
        lambda b: b.pool.cached._children.clear(),
        lambda b: b.pool._keep.__setitem__(b.pool.blank[0], Keep(1)),
        lambda b: setattr(b.tables[1], "writable_to", 8),
        lambda b: b.prefix._children.clear(),
        lambda b: b.tables[1].block_ids.append(b.tables[1].block_ids[0]),
        lambda b: b.tables[1].block_ids.pop(),
        lambda b: b.tables[1].hashes.extend([b""] * 9),
        lambda b: b.pending_copies.append((b.tables[1].block_ids[0], b.pool.blank[0])),
        lambda b: b.prefix._block_of.__setitem__(b"x", b.pool.blank[0]),
        lambda b: b.prefix._content_of.clear(),
        lambda b: b.tables.pop(1),
    ],
)
def test_check_sees_damage(damage) -> None:
    manager = BlockManager(8, SIZE)
    start(manager, 1, TOKENS[:9])
    start(manager, 2, TOKENS[20:29])
    manager.free(2)
    manager.check()
    damage(manager)
    with pytest.raises(AssertionError):
        manager.check()


@pytest.mark.parametrize("wrong", [(0, 4), (-1, 4), (4, 0), (4.0, 4), (4, True), (None, 4)])
def test_sizes(wrong: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="must be a whole number of at least 1"):
        BlockManager(*wrong)


def test_describe(blocks: BlockManager) -> None:
    start(blocks, 1, TOKENS[:9])
    start(blocks, 2, TOKENS[20:29])
    blocks.free(2)
    facts = blocks.describe()
    assert (facts["used"], facts["cached"], facts["blank"], facts["sequences"]) == (3, 2, 3, 1)
    assert "cached" in blocks._repr_html_()
    blocks.free(1)


def test_dropped_blocks_leave_holes_and_what_is_shared_stays() -> None:
    blocks = BlockManager(8, 4)
    blocks.open(1, None)
    blocks.grow(1, 0, 18)
    blocks.publish(1, list(range(18)), 18)
    ids = list(blocks.tables[1].block_ids)
    blocks.fork(1, 2, 18)
    blocks.drop(1, [0, 2])
    table = blocks.tables[1]
    assert (table.block_ids, table.indices) == ([ids[1], ids[3], ids[4]], [1, 3, 4])
    assert (table.holes, table.begin, table.stop) == ([0, 2], 2, 5)
    assert blocks.tables[2].block_ids == ids, "the other one still has them"
    assert [blocks.ref_counts[block] for block in ids] == [1, 2, 1, 2, 2]
    blocks.check()
    blocks.grow(1, 18, 22)  # copies the block that it writes, and takes one more
    assert table.indices == [1, 3, 4, 5]
    assert table.block_ids[2] not in ids
    blocks.publish(1, list(range(22)), 22)
    assert len(table.hashes) == 4, "nothing is published behind a hole"
    blocks.drop(1, [4])
    blocks.fork(1, 3, 22)
    assert blocks.tables[3].holes == [0, 2, 4]
    blocks.finish_copies()
    for number in (1, 2, 3):
        blocks.free(number)
        blocks.check()
    assert blocks.num_used == 0


def test_a_fork_goes_no_further_back_than_what_a_policy_knows() -> None:
    blocks = BlockManager(8, 4)
    blocks.open(1, None)
    blocks.grow(1, 0, 9)
    assert blocks.can_fork(1, 3)
    blocks.tables[1].asked_at = 8
    assert (blocks.can_fork(1, 7), blocks.can_fork(1, 8)) == (False, True)
    blocks.tables[1].weigh([1.0, 2.0, 3.0], 9)
    assert (blocks.can_fork(1, 8), blocks.can_fork(1, 9)) == (False, True)
    blocks.tables[1].weigh([1.0, 2.0], 9)
    assert blocks.tables[1].masses == {0: 2.0, 1: 4.0, 2: 3.0}
    blocks.drop(1, [1])
    assert blocks.tables[1].masses == {0: 2.0, 2: 3.0}
    blocks.free(1)
