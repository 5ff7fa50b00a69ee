"""The paged KV cache: `KVCache` (tensors) over `BlockManager` (who owns which block)."""

from workbench.cache.blocks import BlockManager
from workbench.cache.host import HostTier
from workbench.cache.host_swap import Swapper
from workbench.cache.kv import KVCache
from workbench.cache.prefix import PrefixIndex, PrefixLookup, block_hash
from workbench.cache.stats import CacheStats
from workbench.cache.table import BlockTable, OutOfBlocks

__all__ = [
    "BlockManager",
    "BlockTable",
    "CacheStats",
    "HostTier",
    "KVCache",
    "OutOfBlocks",
    "PrefixIndex",
    "PrefixLookup",
    "Swapper",
    "block_hash",
]
