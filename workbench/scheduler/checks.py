"""Whether a scheduler's cache and settings are such, and go together.

Called by `Scheduler` before it keeps either.
"""

from __future__ import annotations

from typing import Any

from workbench.cache import Blocks, KVCache, get_dropping
from workbench.config import SchedulerConfig
from workbench.errors import ConfigError
from workbench.scheduler.dropping import check_droppable


def check_parts(cache: Any, config: Any) -> tuple[SchedulerConfig, Blocks]:
    """Return the settings (None: the defaults) and the cache's blocks; raise `ConfigError`."""
    if not isinstance(cache, KVCache):
        fix = "Pass a `KVCache`: without a model `KVCache.for_config(ModelConfig(…), num_blocks)`."
        raise ConfigError("cache", cache, "is not a KVCache", fix)
    config = SchedulerConfig() if config is None else config
    check_config(cache.blocks, config)
    return config, cache.blocks


def check_config(blocks: Blocks, config: SchedulerConfig) -> None:
    """Raise `ConfigError` for settings that are none, or that ask for what the cache lacks."""
    if not isinstance(config, SchedulerConfig):
        fix = "Pass `SchedulerConfig(max_sequences=…, …)`."
        raise ConfigError("config", config, "is not a SchedulerConfig", fix)
    if config.preemption == "swap" and blocks.host is None:
        fix = "Give the cache one (`host_cache_bytes`), or use preemption='recompute'."
        problem, groups = "the cache has no host tier", blocks.groups
        if len(groups) > 1 or groups[0].window is not None:
            problem += ", nor can it: layers with a window, or several KV groups, have none"
            fix = "Use preemption='recompute'."
        raise ConfigError("preemption", "swap", problem, fix)
    check_droppable(blocks, get_dropping(config.dropping))
