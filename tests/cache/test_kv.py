"""The KV tensors: their shape and size, copying blocks, and giving the memory back."""

from __future__ import annotations

import weakref

import pytest
import torch

from workbench.cache import KVCache
from workbench.cache.copies import move_slots
from workbench.cache.groups import kv_dtype
from workbench.cache.sizing import size_for_memory
from workbench.config import ModelConfig
from workbench.errors import ConfigError

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=11,
    hidden_size=24,
    intermediate_size=8,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    context=32,
)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def cache(request: pytest.FixtureRequest) -> KVCache:
    """Nine blocks of four tokens, every number of them different."""
    cache = KVCache.for_config(CONFIG, 9, 4, device=request.param)
    cache.tensor.copy_(torch.arange(cache.tensor.numel()).view_as(cache.tensor))
    return cache


def test_shape_and_size(cache: KVCache) -> None:
    assert cache.tensor.shape == (3, 2, 9, 4, 2, 6)
    assert (cache.num_blocks, cache.block_size) == (9, 4)
    assert len(cache.layers) == 3
    for layer, view in enumerate(cache.layers):
        assert view.data_ptr() == cache.tensor[layer].data_ptr(), "a view, not a copy"
        assert view.is_contiguous()
    per_block = KVCache.bytes_per_block(CONFIG, 4, torch.float32)
    assert cache.num_bytes == 9 * per_block == cache.tensor.untyped_storage().nbytes()
    assert cache.describe()["tokens"] == 36
    cache.check()


def copied_one_by_one(tensor: torch.Tensor, copies: list[tuple[int, int]]) -> torch.Tensor:
    tensor = tensor.clone()
    for source, destination in copies:
        tensor[:, :, destination] = tensor[:, :, source]
    return tensor


@pytest.mark.parametrize(
    "copies",
    [
        pytest.param([], id="none"),
        pytest.param([(0, 5)], id="one"),
        pytest.param([(0, 5), (0, 6), (3, 1)], id="one source, two copies"),
        pytest.param([(0, 5), (5, 6)], id="a copy of a copy"),
        pytest.param([(0, 5), (5, 6), (6, 7), (1, 2), (7, 8)], id="a long chain"),
        pytest.param([(0, 1), (2, 0)], id="a source is written after it was read"),
    ],
)
def test_copies_move_the_data_of_every_layer_in_order(
    cache: KVCache, copies: list[tuple[int, int]]
) -> None:
    expected = copied_one_by_one(cache.tensor, copies)
    cache.copy_blocks(copies)
    assert torch.equal(cache.tensor, expected)
    cache.copy_blocks(copies[-1:])
    assert torch.equal(cache.tensor, expected), "a copy may be made twice"


def test_close_gives_the_memory_back(cache: KVCache) -> None:
    tensor = weakref.ref(cache.tensor)
    view = weakref.ref(cache.layers[0])
    cache.close()
    assert tensor() is None
    assert view() is None
    assert cache.num_bytes == 0
    assert "B" in cache.describe()["memory"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_size_for_memory(dtype: torch.dtype) -> None:
    per_block = KVCache.bytes_per_block(CONFIG, 16, dtype)
    assert per_block == 2 * 3 * 16 * 2 * 6 * dtype.itemsize
    for memory, blocks in ((per_block, 1), (2 * per_block - 1, 1), (10 * per_block, 10)):
        assert size_for_memory(CONFIG, memory, 16, dtype) == blocks
        cache = KVCache.for_config(CONFIG, blocks, 16, dtype)
        assert cache.num_bytes <= memory
    with pytest.raises(ConfigError, match=r"num_blocks=.* less memory than one block of .*Give"):
        size_for_memory(CONFIG, per_block - 1, 16, dtype)


def test_bookkeeping_without_tensors() -> None:
    cache = KVCache(num_layers=0, num_kv_heads=1, head_dim=1, num_blocks=3, block_size=2)
    assert cache.num_bytes == 0
    assert cache.layers == []
    cache.copy_blocks([(0, 1)])
    cache.check()


def test_wrong_sizes_allocate_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "zeros", refuse)
    with pytest.raises(ConfigError, match="num_blocks=0"):
        KVCache.for_config(CONFIG, 0, 4)
    with pytest.raises(ConfigError, match="block_size=-4"):
        KVCache.for_config(CONFIG, 9, -4)


@pytest.mark.parametrize("dtype", ["fp8", "int8"])
def test_scales_move_with_their_tokens(dtype: str) -> None:
    cache = KVCache.for_config(CONFIG, 9, 4, kv_dtype(dtype, torch.float32))
    [kept], [scales] = cache.tensors, cache.scales
    assert kept.dtype.itemsize == 1
    assert scales.shape == (3, 2, 9, 2, 4)
    assert cache.num_bytes == kept.nbytes + scales.nbytes
    assert cache.num_bytes == 9 * KVCache.bytes_per_block(CONFIG, 4, kept.dtype)
    kept.view(torch.int8).copy_(torch.arange(kept.numel()).view_as(kept) % 120)
    scales.copy_(torch.arange(scales.numel()).view_as(scales))
    before, before_scales = kept.view(torch.int8).clone(), scales.clone()
    cache.copy_blocks([(0, 5)])
    assert torch.equal(kept.view(torch.int8)[:, :, 5], before[:, :, 0])
    assert torch.equal(scales[:, :, 5], before_scales[:, :, 0])
    for tensor in (kept, scales):  # slots 2 and 14, in blocks 0 and 3, to slots 9 and 2
        move_slots(tensor, [(2, 9), (14, 2)], 4)
    for here, there in (((0, 2), (2, 1)), ((3, 2), (0, 2))):
        moved = kept.view(torch.int8)[:, :, there[0], there[1]]
        assert torch.equal(moved, before[:, :, here[0], here[1]])
        moved = scales[:, :, there[0], :, there[1]]
        assert torch.equal(moved, before_scales[:, :, here[0], :, here[1]])
