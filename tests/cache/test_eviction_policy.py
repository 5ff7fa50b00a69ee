"""Eviction policies from a cell: they choose among what may go, and one that fails is replaced."""

from __future__ import annotations

import random
from typing import Any

import pytest

from workbench import events
from workbench.cache import BlockManager
from workbench.cache.eviction_policy import Evictable, get_eviction, lru
from workbench.errors import ConfigError
from workbench.retention import Retention, resolve

SIZE = 4
PROMPTS = {
    name: [number, *range(10 * number, 10 * number + 12)] for number, name in enumerate("abcd")
}


def remember(blocks: BlockManager, tokens: list[int], priority: int | None = None) -> None:
    """Compute and free a sequence of these tokens, all but the last of them in full blocks."""
    kept = () if priority is None else resolve([Retention(priority=priority)], len(tokens))
    lookup = blocks.lookup(tokens, partial=False)
    blocks.open(0, lookup, "", kept)
    blocks.grow(0, lookup.num_tokens, len(tokens))
    blocks.publish(0, tokens, len(tokens))
    blocks.free(0)
    blocks.check()


def take(blocks: BlockManager, count: int) -> None:
    """Have another sequence take `count` blocks."""
    blocks.open(9, None)
    blocks.grow(9, 0, count * SIZE)
    blocks.check()
    blocks.free(9)
    blocks.check()


def found(blocks: BlockManager) -> dict[str, int]:
    """Return how many tokens of each prompt are cached."""
    return {n: blocks.lookup(p, partial=False).num_tokens for n, p in PROMPTS.items()}


@pytest.fixture
def full() -> BlockManager:
    """A cache of twelve blocks that holds three of each prompt; `a` was found twice again."""
    blocks = BlockManager(13, SIZE)
    for name in "abcd":
        remember(blocks, PROMPTS[name])
    for _ in range(2):
        remember(blocks, PROMPTS["a"])
    for name in "bcd":
        remember(blocks, PROMPTS[name])
    return blocks


def test_a_policy_sees_the_leaves_as_lru_would_take_them(full: BlockManager) -> None:
    seen: list[list[Evictable]] = []

    def watch(candidates: Any) -> int:
        seen.append(list(candidates))
        return lru(candidates)

    full.pool.eviction.policy = watch
    take(full, 3)  # one is blank, so two are evicted
    [first, second] = seen
    assert [block.token_ids for block in first] == [tuple(PROMPTS[n][8:12]) for n in "abcd"]
    assert [block.num_hits for block in first] == [2, 1, 1, 1]
    assert [block.last_used for block in first] == sorted(block.last_used for block in first)
    assert second[0].token_ids == tuple(PROMPTS["a"][4:8]), "a leaf since the first one went"
    assert found(full) == {"a": 4, "b": 12, "c": 12, "d": 12}


def test_fewest_hits_first_keeps_what_is_found_often(full: BlockManager) -> None:
    full.pool.eviction.policy = lambda blocks: min(blocks, key=lambda b: b.num_hits).block_id
    take(full, 10)
    assert found(full) == {"a": 12, "b": 0, "c": 0, "d": 0}
    full.pool.eviction.policy = lru
    take(full, 13)
    assert not any(found(full).values())
    assert full.pool._hits == {}


def test_priorities_are_told_and_lru_heeds_them() -> None:
    blocks = BlockManager(6, SIZE)
    remember(blocks, PROMPTS["a"], priority=90)
    remember(blocks, PROMPTS["b"])
    priorities: list[int] = []

    def watch(candidates: Any) -> int:
        priorities.extend(block.priority for block in candidates)
        return candidates[-1].block_id

    blocks.pool.eviction.policy = watch
    take(blocks, 2)
    assert set(priorities) == {90, 35}
    assert found(blocks) == {"a": 4, "b": 12, "c": 0, "d": 0}, "the one that wanted most to stay"


class Boom(Exception):
    pass


def raises(_: Any) -> int:
    raise Boom("a bad policy")


def in_use(_: Any) -> int:
    return 12  # the blank block, which the taker has by then


@pytest.mark.parametrize(
    ("policy", "problem"),
    [
        (raises, "Boom: a bad policy"),
        (in_use, "12 is none of the 4 blocks"),
        (lambda _: -1, "-1 is none of"),
        (lambda _: None, "None is none of"),
        (lambda blocks: blocks[0], "Evictable("),
    ],
)
def test_a_policy_that_fails_is_replaced(full: BlockManager, policy: Any, problem: str) -> None:
    told: list[events.Event] = []
    full.bus.subscribe(told.append)
    full.pool.eviction.policy = policy
    with pytest.warns(UserWarning, match="using lru from now on"):
        take(full, 3)
    assert full.pool.eviction.policy is lru
    [failed] = [event for event in told if isinstance(event, events.PolicyFailed)]
    assert problem in failed.error
    assert found(full) == {"a": 4, "b": 12, "c": 12, "d": 12}


def test_clearing_by_hand_asks_nobody(full: BlockManager) -> None:
    full.pool.eviction.policy = raises
    assert full.clear_cached() == 12
    full.check()


def test_names() -> None:
    assert get_eviction("lru") is lru
    assert get_eviction(raises) is raises
    with pytest.raises(ConfigError, match="eviction='mru': no such policy"):
        get_eviction("mru")


def test_random_choices_leave_the_structure_whole() -> None:
    source = random.Random(4)
    blocks = BlockManager(9, SIZE)
    blocks.pool.eviction.policy = lambda cached: source.choice(cached).block_id
    for _ in range(300):
        length = source.randint(1, 24)
        remember(blocks, [source.randint(0, 1) for _ in range(length)])
        if source.random() < 0.3:
            take(blocks, source.randint(1, 9))
