"""KV groups: which layers share one, what a cache of several holds, and its managers as one."""

from __future__ import annotations

import pytest
import torch

from workbench.cache import JointBlocks, KVCache, KVGroup, OutOfBlocks, groups_of, room
from workbench.cache.groups import group_layers
from workbench.cache.sizing import size_for_memory
from workbench.config import ModelConfig

SIZE = 4
TOKENS = list(range(100, 140))
CONFIG = ModelConfig(
    architecture="Qwen2ForCausalLM",
    vocab_size=11,
    hidden_size=24,
    intermediate_size=8,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    context=64,
    windows=(6, None, 6, None),
)


def make(num_blocks: int = 12, window_blocks: int | None = 7) -> KVCache:
    return KVCache.for_config(CONFIG, num_blocks, SIZE, window_blocks=window_blocks)


def compute(cache: KVCache, sequence_id: int, tokens: list[int], chunk: int = 3) -> int:
    """Run tokens through the blocks as a scheduler would; return how many were found."""
    blocks = cache.blocks
    lookup = blocks.lookup(tokens)
    blocks.open(sequence_id, lookup)
    start = lookup.num_tokens
    while start < len(tokens):
        stop = min(start + chunk, len(tokens))
        blocks.trim(sequence_id, start)
        blocks.grow(sequence_id, start, stop)
        cache.check()
        blocks.finish_copies()
        blocks.publish(sequence_id, tokens, stop)
        start = stop
        cache.check()
    return lookup.num_tokens


def test_layers_are_grouped_by_window_and_shape() -> None:
    assert groups_of(CONFIG) == (
        KVGroup((1, 3), None, 2, 6),
        KVGroup((0, 2), 6, 2, 6),
    )
    kinds = [(8, 2, 6), (None, 2, 6), (8, 1, 6), (None, 2, 8), (8, 2, 6)]
    assert [(g.layers, g.window, g.num_kv_heads, g.head_dim) for g in group_layers(kinds)] == [
        ((1,), None, 2, 6),
        ((3,), None, 2, 8),
        ((0, 4), 8, 2, 6),
        ((2,), 8, 1, 6),
    ]


def test_each_group_has_a_tensor_and_each_layer_its_view() -> None:
    cache = make()
    assert [t.shape for t in cache.tensors] == [(2, 2, 12, 4, 2, 6), (2, 2, 7, 4, 2, 6)]
    for layer, (group, place) in enumerate([(1, 0), (0, 0), (1, 1), (0, 1)]):
        assert cache.layers[layer].data_ptr() == cache.tensors[group][place].data_ptr()
    assert cache.num_blocks == 19
    assert isinstance(cache.blocks, JointBlocks)
    assert "window of 6" in cache.describe()
    with pytest.raises(ValueError, match="too many values"):
        cache.tensor  # noqa: B018
    one = KVCache.for_config(CONFIG, 5, SIZE)
    assert [g.num_blocks for g in one.blocks.groups] == [5, 5]


def test_copies_stay_in_their_group() -> None:
    cache = make()
    for tensor in cache.tensors:
        tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))
    before = [tensor.clone() for tensor in cache.tensors]
    cache.copy_blocks([(3, 5), (12 + 2, 12 + 6), (5, 1)])
    assert torch.equal(cache.tensors[0][:, :, 5], before[0][:, :, 3])
    assert torch.equal(cache.tensors[0][:, :, 1], before[0][:, :, 3])
    assert torch.equal(cache.tensors[1][:, :, 6], before[1][:, :, 2])
    changed = [
        (old != new).flatten(3).any(-1).any(0).any(0)
        for old, new in zip(before, cache.tensors, strict=True)
    ]
    assert [c.nonzero()[:, 0].tolist() for c in changed] == [[1, 5], [6]]


def test_a_window_lets_go_and_its_blocks_stay_findable() -> None:
    cache = make(window_blocks=9)
    compute(cache, 1, TOKENS[:30])
    full, window = (group.tables[1] for group in cache.blocks.groups)
    assert (full.first, len(full.block_ids)) == (0, 8)
    assert (window.first, window.stop) == ((27 - 6 + 1) // SIZE, 8)
    assert cache.blocks.groups[1].num_cached == 5, "blocks 0 to 4"
    cache.blocks.free(1)
    assert compute(cache, 2, TOKENS[:30]) == 28
    cache.blocks.free(2)
    assert compute(cache, 3, [*TOKENS[:26], 7]) == 26, "two tokens of block 6"
    assert cache.blocks.groups[1].tables[3].first == (26 - 6 + 1) // SIZE
    cache.blocks.free(3)
    assert cache.blocks.num_used == 0


def test_a_match_needs_the_windows_last_blocks_only() -> None:
    cache = make(window_blocks=12)
    compute(cache, 1, TOKENS[:30])
    cache.blocks.free(1)
    window = cache.blocks.groups[1]
    names = cache.blocks.lookup(TOKENS[:30]).hashes
    for name in names[:2]:  # of blocks 0 and 1, as if evicted
        block = window.prefix.require(name)
        window.pool.cached.remove(name)
        window.prefix.evict(block, 3, 5)
        window.pool.blank.append(block)
    cache.check()
    found = cache.blocks.lookup(TOKENS[:30])
    assert found.num_tokens == 28
    shorter = cache.blocks.lookup([*TOKENS[:13], 7, 7, 7])
    assert shorter.num_tokens == 0, "a token at 12 looks at block 1, and one at 4 at block 0"
    assert shorter.reason == "block 0 was evicted at step 3 for sequence 5"
    assert cache.blocks.lookup([*TOKENS[:17], 7, 7, 7]).num_tokens == 17


def test_out_of_blocks_in_one_group_changes_none() -> None:
    cache = make(num_blocks=12, window_blocks=3)
    blocks = cache.blocks
    blocks.open(1, None)
    assert blocks.lacks(1, 0, 16)
    with pytest.raises(OutOfBlocks, match="more blocks than are free: 12, 3"):
        blocks.grow(1, 0, 16)
    assert [group.num_used for group in blocks.groups] == [0, 0]
    assert not room.fits(blocks, None, 16, 16)
    assert room.fits(blocks, None, 40, 1), "one token at a time, a window takes three blocks"
    blocks.free(1)


def test_a_fork_needs_what_it_looks_at() -> None:
    cache = make()
    blocks = cache.blocks
    compute(cache, 1, TOKENS[:30], chunk=1)
    assert not blocks.can_fork(1, 20)
    assert blocks.can_fork(1, 29)
    blocks.fork(1, 2, 29)
    cache.check()
    assert [group.num_missing(2, 29, 30) for group in blocks.groups] == [1, 1]
    blocks.grow(2, 29, 30)
    assert len(blocks.pending_copies) == 2, "a copy in each group"
    cache.check()
    blocks.free(1)
    blocks.free(2)
    assert (blocks.num_used, blocks.pending_copies) == (0, [])


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b.groups[1].tables.pop(1),
        lambda b: b.groups[1].tables[1].hashes.pop(),
        lambda b: setattr(b.groups[1].tables[1], "writable_to", 0),
        lambda b: b.groups[1].trim(1, 400),
        lambda b: b.ref_counts.__setitem__(12 + b.groups[1].num_blocks - 1, 4),
    ],
)
def test_check_sees_damage(damage) -> None:
    cache = make()
    compute(cache, 1, TOKENS[:9])
    damage(cache.blocks)
    with pytest.raises(AssertionError):
        cache.check()


def test_size_for_memory_with_a_bound_on_windows() -> None:
    per_block = 2 * 2 * SIZE * 2 * 6 * 4  # of either group
    sizes = {100: (100, 100), 20: (180, 20)}
    for bound, (full, window) in sizes.items():
        got = size_for_memory(CONFIG, 200 * per_block, SIZE, torch.float32, bound)
        assert got == full
        cache = KVCache.for_config(CONFIG, got, SIZE, window_blocks=min(got, bound))
        assert [group.num_blocks for group in cache.blocks.groups] == [full, window]
        assert cache.num_bytes <= 200 * per_block
    assert size_for_memory(CONFIG, 200 * per_block, SIZE, torch.float32, 5000) == 100


def test_how_much_a_sequence_ever_holds() -> None:
    full, window = make().blocks.groups
    for length in (1, 4, 5, 30, 400):
        assert room.peak(full, length, 1) == full.blocks_for(length)
        assert room.peak(window, length, 1) == min(full.blocks_for(length), 3)
        for chunk in range(1, 12):
            held = [(s + chunk - 1) // SIZE - max(0, s - 5) // SIZE + 1 for s in range(40)]
            assert room.peak(window, 400, chunk) == max(held)
