"""A lookup finds the longest computed prefix, and says in words why it ends where it does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.cache import BlockManager, HostTier, PrefixIndex, block_hash
from workbench.cache import prefix as module
from workbench.cache.lookup import find_prefix
from workbench.cache.prefix import Content, root_hash

SIZE = 4
TOKENS = list(range(50, 90))


@pytest.fixture
def blocks() -> BlockManager:
    """A manager in which 12 tokens were computed and freed."""
    manager = BlockManager(8, SIZE)
    remember(manager, TOKENS[:12])
    return manager


def remember(blocks: BlockManager, tokens: list[int], namespace: str = "") -> None:
    blocks.open(0, None, namespace)
    blocks.grow(0, 0, len(tokens))
    blocks.publish(0, tokens, len(tokens))
    blocks.free(0)


@pytest.mark.parametrize(
    ("tokens", "num_tokens", "reason"),
    [
        (TOKENS[:13], 12, "whole prompt cached"),
        (TOKENS[:12], 11, "whole prompt cached; partial: 3 of 4 tokens of block 2 copied"),
        (TOKENS[:5], 4, "whole prompt cached"),
        (TOKENS[:4], 3, "prompt shorter than a block; partial: 3 of 4 tokens of block 0 copied"),
        (TOKENS[:1], 0, "prompt shorter than a block"),
        (TOKENS[:17], 12, "no such block 3 was ever computed"),
        (
            [*TOKENS[:9], 1, 1, 1, 1],
            9,
            "no such block 2 was ever computed; partial: 1 of 4 tokens of block 2 copied",
        ),
        ([*TOKENS[:8], 1, 1, 1, 1, 1], 8, "no such block 2 was ever computed"),
        ([*TOKENS[:3], 1, 1], 3, "no such prefix; partial: 3 of 4 tokens of block 0 copied"),
        ([1, *TOKENS[1:13]], 0, "no such prefix"),
        (TOKENS[4:13], 0, "no such prefix"),
    ],
)
def test_reasons(blocks: BlockManager, tokens: list[int], num_tokens: int, reason: str) -> None:
    found = blocks.lookup(tokens)
    assert (found.num_tokens, found.reason) == (num_tokens, reason)
    assert len(found.hashes) == num_tokens // SIZE
    assert len(found.block_ids) == blocks.blocks_for(num_tokens)
    assert found.num_copied == num_tokens % SIZE
    whole = blocks.lookup(tokens, partial=False)
    told = reason.replace(" copied", " begin alike, not copied")
    assert (whole.num_tokens, whole.reason) == (num_tokens - found.num_copied, told)
    silent = blocks.lookup(tokens, explain=False)
    assert replace(found, reason="", cause="") == silent
    assert len(set(found.block_ids)) == len(found.block_ids)
    blocks.check()


def test_the_longest_beginning_is_found_among_many_that_came_later() -> None:
    blocks = BlockManager(64, SIZE)
    remember(blocks, [1, 2, 3, 4])
    for other in range(40):
        remember(blocks, [1, 10 + other, 0, 0])
    assert blocks.lookup([1, 2, 3, 9, 9]).num_copied == 3
    blocks.check()


FEW = st.lists(st.integers(0, 2), min_size=SIZE, max_size=SIZE)


@given(st.lists(FEW), st.lists(st.integers(0, 2), min_size=1, max_size=SIZE), st.data())
def test_a_beginning_is_as_long_as_any(
    kept: list[list[int]], wanted: list[int], data: st.DataObject
) -> None:
    index, held = PrefixIndex(), {}
    for block_id, tokens in enumerate(kept):
        if index.add(Content.of(root_hash(""), tokens), block_id):
            held[block_id] = tokens
    for block_id in data.draw(st.sets(st.sampled_from(sorted(held))) if held else st.just(set())):
        index.forget(block_id)
        del held[block_id]
    index.check()
    longest = max((module.common_length(tokens, wanted) for tokens in held.values()), default=0)
    found = index.beginning(root_hash(""), wanted)
    assert (found.num_tokens if found else 0) == longest
    if found:
        assert held[found.block_id][:longest] == wanted[:longest]


def test_evicted(blocks: BlockManager) -> None:
    blocks.step = 17
    blocks.open(5, None)
    blocks.grow(5, 0, 6 * SIZE)
    assert blocks.lookup(TOKENS[:13]).reason == "block 2 was evicted at step 17 for sequence 5"
    assert blocks.lookup(TOKENS[:13]).num_tokens == 8
    blocks.grow(5, 0, 8 * SIZE)
    assert blocks.lookup(TOKENS[:13]).reason == "block 0 was evicted at step 17 for sequence 5"
    blocks.free(5)
    remember(blocks, TOKENS[:12])
    assert blocks.lookup(TOKENS[:13]).reason == "whole prompt cached", "it was computed again"
    blocks.clear_cached()
    assert blocks.lookup(TOKENS[:13]).reason == "block 0 was evicted at step 17 by hand"


def test_namespaces(blocks: BlockManager) -> None:
    found = blocks.lookup(TOKENS[:13], "tenant")
    assert (found.num_tokens, found.reason) == (0, "cached only in namespace ''")
    remember(blocks, TOKENS[20:29], "tenant")
    assert blocks.lookup(TOKENS[20:29]).reason == "cached only in namespace 'tenant'"
    assert blocks.lookup(TOKENS[20:29], "tenant").num_tokens == 8
    assert blocks.lookup([1, 2, 3, 4, 5], "tenant").reason == "no such prefix"
    blocks.check()


def test_a_lookup_changes_nothing(blocks: BlockManager) -> None:
    before = blocks.describe(), list(blocks.pool.cached), dict(blocks.prefix.items())
    for tokens in (TOKENS[:13], TOKENS[:3], [9] * 20):
        for namespace in ("", "other"):
            blocks.lookup(tokens, namespace)
    assert (blocks.describe(), list(blocks.pool.cached), dict(blocks.prefix.items())) == before


def test_a_hash_depends_on_everything_before_it() -> None:
    root = root_hash("")
    one, other = block_hash(root, [1, 2]), block_hash(root, [1, 3])
    names = {
        one,
        other,
        block_hash(root, [2, 1]),
        block_hash(root, [1, 2, 0]),
        block_hash(one, [5, 6]),
        block_hash(other, [5, 6]),
        block_hash(root_hash("a"), [1, 2]),
        block_hash(root_hash("b"), [1, 2]),
        root,
    }
    assert len(names) == 9
    assert block_hash(root, (1, 2)) == one, "any kind of list"
    assert {len(name) for name in names} == {16}


def test_large_token_ids() -> None:
    assert block_hash(root_hash(""), [2**40]) != block_hash(root_hash(""), [0])


def test_evictions_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVICTIONS_REMEMBERED", 2)
    index = PrefixIndex()
    root = root_hash("")
    names = [block_hash(root, [i]) for i in range(3)]
    for block_id, name in enumerate(names):
        assert index.add(Content.of(root, [block_id]), block_id)
        assert not index.add(Content.of(root, [block_id]), 7), "the first block stays"
        assert index.block(name) == block_id
        content = index.content(block_id)
        assert content is not None
        assert (content.name, content.parent, list(content.token_ids)) == (name, root, [block_id])
        index.check()
    for block_id in range(3):
        assert index.evict(block_id, 4, None).name == names[block_id]
        index.check()
    assert len(index) == 0
    reasons = [index.why_missing(names[i], 0, [i], "", set()) for i in range(3)]
    forgotten = "block 0 was never computed, or evicted before what is remembered"
    evicted = ("evicted", "block 0 was evicted at step 4 by hand")
    assert reasons == [("unknown", forgotten), evicted, evicted]


def test_a_block_behind_the_host_tiers_is_not_copied() -> None:
    """Part of a block is copied only right behind what the device holds: the host tier's blocks lie
    in between, and get theirs later."""
    tokens = TOKENS[: 3 * SIZE]
    first = Content.of(root_hash(""), tokens[:SIZE])
    second = Content.of(first.name, tokens[SIZE : 2 * SIZE])
    third = Content.of(second.name, tokens[2 * SIZE :])
    index, host = PrefixIndex(), HostTier(4)
    for content, block_id in ((first, 5), (third, 6)):  # the second one's only copy is on the host
        index.add(content, block_id)
    slot = host.keep(second, 7)
    found = find_prefix([(index, None)], tokens, SIZE, "", set(), partial=True, host=host)
    assert (found.block_ids, found.slots) == ((5,), (slot,))
    assert (found.num_tokens, found.num_copied) == (2 * SIZE, 0)
