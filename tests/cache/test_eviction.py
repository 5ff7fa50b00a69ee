"""Which block goes next: leaves only, lowest priority first, then the least recently used."""

from __future__ import annotations

import random
from array import array

from workbench.cache import BlockManager
from workbench.cache.eviction import EvictionQueue, Keep
from workbench.cache.prefix import Content
from workbench.retention import Retention, resolve

SIZE = 4


class Clock:
    """Time that stands still until it is set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def content(number: int, parent: int = -1) -> Content:
    """Return the content of a block that continues another."""
    names = [i.to_bytes(4, "big", signed=True) for i in (number, parent)]
    return Content(*names, array("q", [number]))


def drain(queue: EvictionQueue) -> list[int]:
    order = []
    while queue:
        queue.check()
        order.append(queue.pop().block_id)
    queue.check()
    return order


def test_the_least_recently_used_goes_first_and_a_child_before_its_parent() -> None:
    queue = EvictionQueue()
    for number, parent in ((2, 1), (1, 0), (5, -1), (0, -1), (3, 1)):
        queue.add(number, content(number, parent))
    # 1 is older than 5, but 3 goes on from it; once 3 is gone it has its old place.
    assert drain(queue) == [2, 5, 3, 1, 0]


def test_lower_priority_goes_first_and_leaves_come_before_priority() -> None:
    queue = EvictionQueue()
    queue.add(1, content(1), Keep(80))
    queue.add(2, content(2))
    queue.add(3, content(3), Keep(0))
    queue.add(4, content(4, 3), Keep(100))
    assert drain(queue) == [2, 1, 4, 3]


def test_after_its_time_a_block_has_the_default_priority() -> None:
    clock = Clock()
    queue = EvictionQueue(clock)
    queue.add(1, content(1), Keep(90, seconds=10))
    queue.add(2, content(2), Keep(0, seconds=5))
    queue.add(3, content(3), Keep(40))
    queue.add(4, content(4))
    clock.now += 4.9
    assert queue.pop().block_id == 2, "its low priority still holds"
    queue.add(2, content(2), Keep(0, seconds=5))
    clock.now += 5.1
    # 1 and 2 fell back to 35 and are as old as they are: 1 before 4 before 2 before 3.
    assert drain(queue) == [1, 4, 2, 3]


def test_time_runs_from_the_last_use() -> None:
    clock = Clock()
    queue = EvictionQueue(clock)
    queue.add(1, content(1), Keep(90, seconds=10))
    clock.now += 9
    queue.remove(content(1).name)
    queue.add(1, content(1), Keep(90, seconds=10))
    queue.add(2, content(2))
    clock.now += 9
    assert queue.pop().block_id == 2
    clock.now += 2
    queue.add(3, content(3), Keep(34))
    assert drain(queue) == [3, 1]


def test_against_a_plain_list() -> None:
    """Random additions, removals and evictions over a forest, beside a search through all."""
    source = random.Random(5)
    clock = Clock()
    queue = EvictionQueue(clock)
    parents = {number: source.choice([-1, *range(number)]) for number in range(60)}
    model: dict[int, tuple[Keep, int, float]] = {}  # block -> how kept, when added: turn and time

    def priority(number: int) -> int:
        keep, _, since = model[number]
        return 35 if keep.seconds and clock.now >= since + keep.seconds else keep.priority

    for turn in range(4000):
        clock.now += source.random()
        number = source.randrange(60)
        if number in model and source.random() < 0.5:
            del model[number]
            queue.remove(content(number).name)
        elif number not in model:
            keep = Keep(source.choice([0, 20, 35, 90]), source.choice([None, None, 3.0, 30.0]))
            model[number] = keep, turn, clock.now
            queue.add(number, content(number, parents[number]), keep)
        elif source.random() < 0.6:
            leaves = [n for n in model if all(parents[child] != n for child in model)]
            expected = min(leaves, key=lambda n: (priority(n), model[n][1]))
            assert queue.pop().block_id == expected
            del model[expected]
        assert set(queue) == set(model)
        if turn % 50 == 0:
            queue.check()
    assert max(len(queue._order), len(queue._expiries)) <= 2 * 60 + 65


def remember(blocks: BlockManager, tokens: list[int], *ranges: Retention, prompt: int = 0) -> None:
    """Compute and free a sequence whose first `prompt` tokens (0: all) are its prompt."""
    kept = resolve(ranges, prompt or len(tokens))
    lookup = blocks.lookup(tokens)
    blocks.open(0, lookup, "", kept)
    blocks.grow(0, lookup.num_tokens, len(tokens))
    blocks.finish_copies()
    blocks.publish(0, tokens, len(tokens))
    blocks.free(0)
    blocks.check()


def survivors(blocks: BlockManager, count: int, prompts: dict[str, list[int]]) -> dict[str, int]:
    """Take `count` blocks for another sequence; return how much of each prompt is left."""
    blocks.open(9, None)
    blocks.grow(9, 0, count * SIZE)
    left = {name: blocks.lookup(p, partial=False).num_tokens for name, p in prompts.items()}
    blocks.free(9)
    return left


A, B = [1, *range(10, 22)], [2, *range(30, 42)]  # three full blocks each, and a token


def test_a_ranges_blocks_outlive_others() -> None:
    blocks = BlockManager(8, SIZE)
    remember(blocks, A, Retention(0, 8, priority=90))
    remember(blocks, B)
    assert survivors(blocks, 6, {"a": A, "b": B}) == {"a": 8, "b": 0}, "a's third block is default"


def test_decoded_blocks_may_go_first() -> None:
    blocks = BlockManager(8, SIZE)
    remember(blocks, B)
    remember(blocks, A, Retention(priority=5, part="decode"), prompt=5)
    # The block of tokens 4 … 7 begins within the prompt; that of 8 … 11 is decoded.
    assert survivors(blocks, 3, {"a": A, "b": B}) == {"a": 8, "b": 12}


def test_the_latest_request_that_says_something_decides() -> None:
    blocks = BlockManager(8, SIZE)
    remember(blocks, A, Retention(priority=90))
    remember(blocks, B)
    remember(blocks, A)  # says nothing: as it was
    assert survivors(blocks, 6, {"a": A, "b": B}) == {"a": 8, "b": 0}
    blocks.clear_cached()
    remember(blocks, A, Retention(priority=90))
    remember(blocks, A, Retention(priority=0))
    remember(blocks, B)
    assert survivors(blocks, 6, {"a": A, "b": B}) == {"a": 0, "b": 8}


def test_a_new_content_does_not_inherit() -> None:
    blocks = BlockManager(3, SIZE)
    remember(blocks, A[:5], Retention(priority=100))
    assert blocks.pool.keep(blocks.lookup(A[:6], partial=False).block_ids[0]) == Keep(100)
    blocks.open(9, None)
    blocks.grow(9, 0, 12)
    blocks.free(9)
    assert {blocks.pool.keep(block) for block in range(3)} == {Keep()}
    blocks.check()


def test_blocks_in_use_are_never_evicted() -> None:
    blocks = BlockManager(8, SIZE)
    blocks.open(1, None, "", resolve([Retention(priority=0)], 12))
    blocks.grow(1, 0, 12)
    blocks.publish(1, A, 12)
    mine = list(blocks.tables[1].block_ids)
    remember(blocks, B, Retention(priority=100))
    assert survivors(blocks, 5, {"a": A, "b": B}) == {"a": 12, "b": 0}
    assert blocks.tables[1].block_ids == mine
    blocks.free(1)
