"""Another number of blocks for a cache in use: its tensors are made anew, between two steps.

What blocks hold waits on the host meanwhile, layer by layer, so that the device never needs room
for two caches. Numbers of blocks stay; whoever knows addresses (a CUDA graph, a tape) must forget
them. Driven by `Engine.rebalance`.
"""

from __future__ import annotations

import torch

from workbench.cache.copies import from_host, to_host
from workbench.cache.kv import KVCache
from workbench.errors import ConfigError


def require_resizable(cache: KVCache) -> None:
    """Raise `ConfigError` if a cache has several KV groups, whose blocks are numbered in a row."""
    if len(cache.groups) > 1:
        names = ", ".join(group.name for group in cache.groups)
        problem = f"a cache of several KV groups ({names}) keeps its size"
        raise ConfigError("num_blocks", cache.num_blocks, problem, "Build another engine.")


def resize(cache: KVCache, num_blocks: int) -> None:
    """Give a cache another number of blocks; of those that go none may be in use.

    What these hold is no longer found. No transfer may be owed. Raises `ConfigError` if a larger
    cache finds no room: it is then as it was.
    """
    require_resizable(cache)
    (manager,) = cache.blocks.groups
    before, kept = manager.num_blocks, cache.tensors[0]
    dtype, device = kept.dtype, kept.device
    manager.resize(num_blocks)
    held = [block for block in manager.pool.held if block < before]
    staged = [to_host(tensor, held) for tensor in (*cache.tensors, *cache.scales)]
    del kept
    cache.release()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # in one piece, if it can be
    failure: Exception | None = None
    try:
        cache.allocate(dtype, device)
    except torch.OutOfMemoryError as error:
        failure = error
    if failure is not None:
        manager.resize(before)
        cache.allocate(dtype, device)
    for tensor, content in zip((*cache.tensors, *cache.scales), staged, strict=True):
        from_host(tensor, held, content)
    if cache.host_memory is not None:
        cache.host_memory.follow([*cache.tensors, *cache.scales])
    if failure is not None:
        problem = f"there is no room for {num_blocks} blocks in one piece"
        raise ConfigError("num_blocks", num_blocks, problem, "Ask for fewer.") from failure
