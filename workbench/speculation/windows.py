"""`check_window`: trees and layers with a window do not meet.

A window counts places in the cache, and a tree's places are not its positions: chains are verified
under a window, trees are refused by name. Asked by proposers when an engine takes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workbench.errors import ConfigError

if TYPE_CHECKING:
    from workbench.cache import KVCache


def check_window(name: str, cache: KVCache, *, is_chain: bool) -> None:
    """Raise `ConfigError` for trees over layers with a window, which verify chains alone."""
    if not is_chain and any(group.window for group in cache.groups):
        problem = "drafts trees, and layers with a window verify chains alone"
        raise ConfigError("proposer", name, problem, "Make it draft chains.")
