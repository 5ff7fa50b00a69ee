"""`CacheLayout`: what a reader of events must know of the cache: block size, KV groups, host slots.

Kept in a trace's header; made from a live cache or from that header.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from workbench.cache import KVCache
from workbench.errors import TraceError


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """A KV group's blocks: numbers `first_block` to `first_block` + `num_blocks` - 1.

    window: how many tokens a token sees in its layers, itself included (None: all before it).
    """

    first_block: int
    num_blocks: int
    window: int | None = None
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Sizes of a cache. Block numbers run through all groups."""

    block_size: int
    groups: tuple[GroupLayout, ...]
    num_slots: int = 0

    @classmethod
    def of(cls, cache: KVCache) -> CacheLayout:
        """Return a live cache's layout."""
        groups = tuple(
            GroupLayout(manager.pool.ids.start, manager.num_blocks, group.window, group.layers)
            for group, manager in zip(cache.groups, cache.blocks.groups, strict=True)
        )
        host = cache.blocks.host
        return cls(cache.block_size, groups, 0 if host is None else host.num_slots)

    @classmethod
    def from_header(cls, header: dict[str, Any]) -> CacheLayout:
        """Return the layout that `to_header` wrote; `TraceError` if it is not there."""
        try:
            groups = tuple(
                GroupLayout(first, count, window, tuple(layers))
                for first, count, window, layers in header["groups"]
            )
            return cls(header["block_size"], groups, header["num_host_slots"])
        except (KeyError, TypeError, ValueError) as error:
            raise TraceError(
                f"the trace's header says nothing of the cache ({error!r}). "
                "Record with `Trace.record(engine)`, which writes it."
            ) from error

    def to_header(self) -> dict[str, Any]:
        """Return the layout as plain data."""
        groups = [[g.first_block, g.num_blocks, g.window, list(g.layers)] for g in self.groups]
        return {"block_size": self.block_size, "groups": groups, "num_host_slots": self.num_slots}

    @property
    def num_blocks(self) -> int:
        """Blocks of all groups."""
        return sum(group.num_blocks for group in self.groups)

    def group_of(self, block_id: int) -> int:
        """Return which group a block belongs to."""
        for place, group in enumerate(self.groups):
            if block_id < group.first_block + group.num_blocks:
                return place
        raise TraceError(f"block {block_id} is not one of the trace's {self.num_blocks}")
