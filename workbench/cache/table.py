"""`BlockTable`: a sequence's blocks in order.

Written by `BlockManager` alone, read by whoever turns tokens into slots; apart from it so that the
proof of a cache's structure can name it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from workbench.errors import WorkbenchError


class OutOfBlocks(WorkbenchError, RuntimeError):
    """No free block is left; ask `num_missing` and `num_free` first."""


@dataclass(slots=True)
class BlockTable:
    """A sequence's blocks in order; `hashes` names its first, published ones."""

    namespace: str
    block_ids: list[int] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
