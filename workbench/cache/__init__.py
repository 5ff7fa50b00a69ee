"""The paged KV cache: `KVCache` (tensors) over `BlockManager` (who owns which block)."""

from workbench.cache.blocks import BlockManager, BlockTable, OutOfBlocks
from workbench.cache.kv import KVCache
from workbench.cache.prefix import PrefixIndex, PrefixLookup, block_hash

__all__ = [
    "BlockManager",
    "BlockTable",
    "KVCache",
    "OutOfBlocks",
    "PrefixIndex",
    "PrefixLookup",
    "block_hash",
]
