"""The paged KV cache: `KVCache` (tensors) over `BlockManager` (who owns which block)."""

from workbench.cache.blocks import BlockManager, OutOfBlocks
from workbench.cache.groups import KVGroup, groups_of
from workbench.cache.joint import JointBlocks
from workbench.cache.kv import KVCache
from workbench.cache.lookup import PrefixLookup
from workbench.cache.prefix import PrefixIndex, block_hash
from workbench.cache.table import BlockTable

# What a scheduler drives: the blocks of a model with one KV group, or with several.
Blocks = BlockManager | JointBlocks

__all__ = [
    "BlockManager",
    "BlockTable",
    "Blocks",
    "JointBlocks",
    "KVCache",
    "KVGroup",
    "OutOfBlocks",
    "PrefixIndex",
    "PrefixLookup",
    "block_hash",
    "groups_of",
]
