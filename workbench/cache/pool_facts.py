"""`PoolFacts`: what a block manager passes on from its pool.

Mixed into `BlockManager`, so that whoever holds one need not know that there is a pool.
"""

from __future__ import annotations

from typing import Any

from workbench.cache.pool import BlockPool
from workbench.cache.table import BlockTable
from workbench.describe import Described
from workbench.events import EventBus


class PoolFacts(Described):
    """Where facts are stated, and how many blocks there are of each kind."""

    pool: BlockPool
    num_blocks: int
    block_size: int
    tables: dict[int, BlockTable]

    @property
    def bus(self) -> EventBus:
        """Where it is stated what happens to blocks; the engine puts its own here."""
        return self.pool.bus

    @bus.setter
    def bus(self, bus: EventBus) -> None:
        self.pool.bus = bus

    @property
    def step(self) -> int:
        """The step that events are stamped with; the scheduler counts them."""
        return self.pool.step

    @step.setter
    def step(self, step: int) -> None:
        self.pool.step = step

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached ones (evicted for it) included."""
        return self.pool.num_free

    @property
    def num_used(self) -> int:
        """Blocks that some sequence refers to."""
        return self.num_blocks - self.pool.num_free

    @property
    def num_cached(self) -> int:
        """Free blocks whose content can still be found."""
        return len(self.pool.cached)

    def describe(self) -> dict[str, Any]:
        """Return how the blocks are used now."""
        return {
            "blocks": self.num_blocks,
            "block_size": self.block_size,
            "used": self.num_used,
            "cached": self.num_cached,
            "blank": len(self.pool.blank),
            "sequences": len(self.tables),
        }
