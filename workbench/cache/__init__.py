"""The paged KV cache: `KVCache` (tensors) over `BlockManager` (who owns which block)."""

from workbench.cache.blocks import BlockManager
from workbench.cache.companion import CompanionKV
from workbench.cache.dropping import (
    DroppingPolicy,
    HeavyHitter,
    KeptBlock,
    KeptBlocks,
    SinkWindow,
    get_dropping,
    keep_all,
)
from workbench.cache.eviction_policy import Evictable, EvictionPolicy, get_eviction, lru
from workbench.cache.groups import KVGroup, groups_of
from workbench.cache.host import HostTier
from workbench.cache.host_swap import Swapper
from workbench.cache.joint import Blocks, JointBlocks
from workbench.cache.kv import KVCache
from workbench.cache.lookup import PrefixLookup
from workbench.cache.prefix import PrefixIndex, block_hash
from workbench.cache.stats import CacheStats
from workbench.cache.table import BlockTable, OutOfBlocks

__all__ = [
    "BlockManager",
    "BlockTable",
    "Blocks",
    "CacheStats",
    "CompanionKV",
    "DroppingPolicy",
    "Evictable",
    "EvictionPolicy",
    "HeavyHitter",
    "HostTier",
    "JointBlocks",
    "KVCache",
    "KVGroup",
    "KeptBlock",
    "KeptBlocks",
    "OutOfBlocks",
    "PrefixIndex",
    "PrefixLookup",
    "SinkWindow",
    "Swapper",
    "block_hash",
    "get_dropping",
    "get_eviction",
    "groups_of",
    "keep_all",
    "lru",
]
