"""How many blocks fit into some memory, and which models can have a host tier.

Asked before anything is allocated: by `KVCache` and by the memory plan.
"""

from __future__ import annotations

import torch

from workbench.cache.groups import KVGroup, groups_of
from workbench.config import ModelConfig
from workbench.describe import human_bytes
from workbench.errors import ConfigError


def require_host_possible(groups: tuple[KVGroup, ...], field: str, value: int) -> None:
    """Raise `ConfigError` if a cache of these groups cannot have a host tier."""
    if len(groups) > 1 or groups[0].window is not None:
        raise ConfigError(
            field,
            value,
            "there is no host tier for layers with a window or for several KV groups "
            f"({', '.join(group.name for group in groups)})",
            "Set it to 0, and use preemption='recompute'.",
        )


def size_for_memory(
    config: ModelConfig,
    num_bytes: int,
    block_size: int,
    dtype: torch.dtype,
    window_blocks: int | None = None,
    field: str = "num_blocks",
    *,
    extra: int = 0,
) -> int:
    """Return how many blocks fit into `num_bytes`; raise `ConfigError` if not even one does.

    window_blocks: as for `KVCache`; groups with a window never get more than those without. field:
    the setting that the error names. extra: bytes that a block takes beside the cache's own.
    """
    own = sum(group.bytes_per_block(block_size, dtype) for group in groups_of(config))
    per_block = own + extra
    if num_bytes < per_block:
        raise ConfigError(
            field,
            human_bytes(num_bytes),
            f"less memory than one block of {human_bytes(per_block)}",
            "Give it more memory, or use a smaller block_size.",
        )
    fixed = sum(group.bytes_per_block(block_size, dtype) for group in groups_of(config)[1:])
    if window_blocks is None or num_bytes < window_blocks * per_block:
        return num_bytes // per_block
    return (num_bytes - window_blocks * fixed) // (per_block - fixed)
